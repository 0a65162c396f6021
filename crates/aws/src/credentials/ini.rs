//! The files `~/.aws/config` and `~/.aws/credentials`, read as botocore reads them: the rules of
//! Python's `configparser` with no default section and duplicates refused.
//!
//! What that means where INI files differ: keys are lower-cased, `=` or `:` divides (the first of
//! them), `#` and `;` begin a comment only at the start of a line, a deeper indented line goes on
//! with the value above it. A value that begins on the next line holds settings of its own (`s3 =`);
//! none of those is about credentials, so it is kept out of sight.

use std::collections::BTreeMap;

/// One section: its keys and values.
pub type Section = BTreeMap<String, String>;

/// Reads a file into its sections, in their order.
///
/// # Errors
/// The first line that cannot be read. The text names the line, never its content: a line in the
/// wrong place may hold a key.
pub fn parse(text: &str) -> Result<Vec<(String, Section)>, IniError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader::default();
    for (index, line) in lines(text).enumerate() {
        reader.line(line).map_err(|cause| IniError { line: index + 1, cause })?;
    }
    reader.end_option();
    Ok(reader.sections)
}

/// Why a file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {cause}")]
pub struct IniError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub cause: &'static str,
}

#[derive(Default)]
struct Reader<'a> {
    sections: Vec<(String, Section)>,
    /// The key whose value may go on, and the lines of that value.
    option: Option<(String, Vec<&'a str>)>,
    indent: usize,
}

impl<'a> Reader<'a> {
    fn line(&mut self, line: &'a str) -> Result<(), &'static str> {
        let value = line.trim();
        if value.starts_with(['#', ';']) {
            return Ok(());
        }
        if value.is_empty() {
            if let Some((_, lines)) = &mut self.option {
                lines.push("");
            }
            return Ok(());
        }
        let indent = line.chars().take_while(|c| c.is_whitespace()).count();
        if let Some((_, lines)) = &mut self.option
            && indent > self.indent
        {
            lines.push(value);
            return Ok(());
        }
        self.indent = indent;
        self.end_option();
        if let Some(name) = header(value) {
            if self.sections.iter().any(|(known, _)| known == name) {
                return Err("a section of this name was there before");
            }
            self.sections.push((name.to_owned(), Section::new()));
            return Ok(());
        }
        let Some((_, section)) = self.sections.last() else {
            return Err("there is no [section] yet");
        };
        let (key, value) = value.split_once(['=', ':']).ok_or("it is no `key = value`")?;
        let key = key.trim_end().to_lowercase();
        if key.is_empty() {
            return Err("it has no key");
        }
        if section.contains_key(&key) {
            return Err("the section has this key already");
        }
        self.option = Some((key, vec![value.trim()]));
        Ok(())
    }

    fn end_option(&mut self) {
        let Some((key, lines)) = self.option.take() else { return };
        if let Some((_, section)) = self.sections.last_mut() {
            section.insert(key, lines.join("\n").trim_end().to_owned());
        }
    }
}

/// The name between `[` and the last `]`; what follows it is not looked at.
fn header(line: &str) -> Option<&str> {
    let rest = line.strip_prefix('[')?;
    let name = &rest[..rest.rfind(']')?];
    Some(name).filter(|name| !name.is_empty())
}

/// Lines that end in LF, CRLF or CR.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// Splits a command line into words as a POSIX shell (and Python's `shlex`) does, without
/// expanding anything; `None` when a quote or an escape is not ended.
pub fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &[(&str, &str)])]) {
        let owned = |keys: &[(&str, &str)]| -> Section {
            keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let expected: Vec<_> =
            expected.iter().map(|(name, keys)| ((*name).to_owned(), owned(keys))).collect();
        assert_eq!(parse(text), Ok(expected), "{text:?}");
    }

    // Each of these was also put through Python 3.11's configparser.
    #[test]
    fn files_are_read_as_pythons_configparser_reads_them() {
        check("", &[]);
        check("# only\n; comments\n", &[]);
        check("[default]\nA_Key = x\n", &[("default", &[("a_key", "x")])]);
        check("[a]\r\nk=v\r\n[b]\rk : w\r", &[("a", &[("k", "v")]), ("b", &[("k", "w")])]);
        check("[a]\nk = v = w : x\n", &[("a", &[("k", "v = w : x")])]);
        check("[a]\nk = v # no comment\n", &[("a", &[("k", "v # no comment")])]);
        check("[a]\n  k = v\n  l = w\n", &[("a", &[("k", "v"), ("l", "w")])]);
        check("[a]\nk = v\n  more\n\n  still\n# gone\n", &[("a", &[("k", "v\nmore\n\nstill")])]);
        check(
            "[a]\ns3 =\n  style = path\nk = v",
            &[("a", &[("k", "v"), ("s3", "\nstyle = path")])],
        );
        check("[a]\nk =\n", &[("a", &[("k", "")])]);
        check("[profile \"a ]b\"] rest\nk=v", &[("profile \"a ]b\"", &[("k", "v")])]);
        check("\u{feff}[a]\nk=v", &[("a", &[("k", "v")])]);
    }

    #[test]
    fn what_configparser_refuses_is_refused_with_its_line() {
        for (text, line) in [
            ("k = v\n", 1),
            ("[a]\nk\n", 2),
            ("[a]\n= v\n", 2),
            ("[a]\nk=v\nK = w\n", 3),
            ("[a]\n[b]\n[a]\n", 3),
            ("[]\n", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error}");
            assert!(!error.to_string().contains("= w"), "the content is not told: {error}");
        }
    }

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        let split = |line| words(line).map(|words| words.join("|"));
        for (line, expected) in [
            ("profile dev", Some("profile|dev")),
            ("profile 'a b'", Some("profile|a b")),
            (r#"run "a \"b\" \c" x\ y"#, Some(r#"run|a "b" \c|x y"#)),
            ("a''b ''", Some("ab|")),
            ("  ", Some("")),
            ("'open", None),
            ("\"open", None),
            ("end\\", None),
        ] {
            assert_eq!(split(line).as_deref(), expected, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\PC|[\\[\\]=:#; \t\r\n]){0,200}") {
            let _ = parse(&text);
            let _ = words(&text);
        }

        #[test]
        fn what_is_written_is_read_again(
            sections in proptest::collection::btree_map(
                "[a-z][a-z0-9 ._-]{0,10}[a-z]",
                proptest::collection::btree_map("[a-z_]{1,12}", "([!-~]{1,20})?", 0..5),
                0..5,
            ),
        ) {
            let mut text = String::new();
            for (name, keys) in &sections {
                text.push_str(&format!("[{name}]\n# comment\n"));
                for (key, value) in keys {
                    text.push_str(&format!("{key} = {value}\n\n"));
                }
            }
            let read = parse(&text).unwrap();
            prop_assert_eq!(read, sections.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn quoted_words_come_back(list in proptest::collection::vec("\\PC{0,12}", 0..5)) {
            let quoted: Vec<String> =
                list.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
            prop_assert_eq!(words(&quoted.join(" ")), Some(list));
        }
    }
}
