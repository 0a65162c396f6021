//! The check of a `protos` resource: its content is read as a `.proto` file, or else as the base64
//! of a compiled set of them.
//!
//! A text is read, not linked: a type that is not defined anywhere is found where the proto is used.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Checks the content of a proto.
///
/// # Errors
/// `invalid content: ` and what the reader says about the text.
// Differs: the words after `invalid content:` are our reader's, and it knows the grammar more
// closely than APISIX's; APISIX also refuses a text whose imports it does not have.
pub fn check(content: &str) -> Result<(), String> {
    let Err(error) = protox_parse::parse(FILE_NAME, content) else { return Ok(()) };
    match STANDARD.decode(content.trim_ascii()).map(|bytes| FileDescriptorSet::decode(&*bytes)) {
        Ok(Ok(set)) if !set.file.is_empty() => Ok(()),
        _ => Err(format!("invalid content: {error}")),
    }
}

/// What the text is called in errors.
const FILE_NAME: &str = "proto";

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "syntax = \"proto3\"; package p; message M { string a = 1; } \
                        service S { rpc R (M) returns (M); }";

    #[test]
    fn a_proto_is_text_or_a_compiled_set_in_base64() {
        let file = protox_parse::parse(FILE_NAME, TEXT).unwrap();
        let compiled = STANDARD.encode(FileDescriptorSet { file: vec![file] }.encode_to_vec());
        for content in [TEXT, &compiled, &format!("{compiled}\n"), "import \"other.proto\";"] {
            assert_eq!(check(content), Ok(()), "{content}");
        }
    }

    #[test]
    fn what_is_neither_is_refused_in_the_words_of_the_reader() {
        for (content, error) in [
            ("zzz", "but found 'zzz'"),
            ("zzzz", "but found 'zzzz'"),
            ("message M {", "but reached end of file"),
            ("AAAA", "but found 'AAAA'"),
        ] {
            let refused = check(content).unwrap_err();
            assert!(refused.starts_with("invalid content: "), "{refused}");
            assert!(refused.ends_with(error), "{refused}");
        }
    }

    #[test]
    fn nesting_without_end_is_refused_without_exhausting_the_stack() {
        let most = 1024 * 1024;
        for (open, close) in [("message A {", "}"), ("message A { oneof a { group B = 1 {", "}}}")]
        {
            let levels = most / (open.len() + close.len());
            let deep = open.repeat(levels) + &close.repeat(levels);
            assert!(check(&deep).is_err(), "{open}");
        }
        // What is inside an option is only looked through.
        let levels = most / 4 - 10;
        let option = format!("option (a) = {{ {} {} }};", "a {".repeat(levels), "}".repeat(levels));
        assert_eq!(check(&option), Ok(()));
    }
}
