//! Regular expressions of plugins: PCRE as `ngx.re` reads them, over bytes, with bounded backtracking.

use fancy_regex::{BytesMode, Regex, RegexBuilder};
use sluicegate_model::schema::pattern::{translate, translate_for_line};

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Pcre {
    regex: Regex,
    /// For a text that ends with a line feed, where that makes a difference.
    for_line: Option<Box<Regex>>,
}

/// What an expression captured: the whole match, then its groups; a group that took no part is empty.
pub type Captures = Vec<Box<[u8]>>;

/// Why a search ended without an answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SearchError(String);

impl Pcre {
    /// Compiles an expression that `ngx.re` takes without options.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(source: &str) -> Result<Self, String> {
        Self::with_options(source, "")
    }

    /// Compiles an expression with the options of `ngx.re`; those that only make it faster there
    /// (`j`, `o`, `d`) change nothing.
    ///
    /// # Errors
    /// What is wrong with the expression or its options.
    pub fn with_options(source: &str, options: &str) -> Result<Self, String> {
        let mut unicode = false;
        let mut anchored = false;
        let has = |option| options.contains(option);
        for option in options.chars() {
            match option {
                'j' | 'o' | 'd' | 'i' | 's' | 'm' | 'x' | 'D' | 'J' => {}
                'u' | 'U' => unicode = true,
                'a' => anchored = true,
                other => {
                    return Err(format!("unknown flag \"{other}\" (flags \"{options}\")"));
                }
            }
        }
        let build = |pattern: &str, mode| {
            RegexBuilder::new(pattern)
                .case_insensitive(has('i'))
                .dot_matches_new_line(has('s'))
                .multi_line(has('m'))
                .ignore_whitespace(has('x'))
                .bytes_mode(mode)
                .backtrack_limit(BACKTRACK_MAX)
                .delegate_size_limit(REGEX_BYTES_MAX)
                .build()
        };
        let built = |pattern: String| {
            let pattern = if anchored { format!("\\G(?:{pattern})") } else { pattern };
            let built = match unicode {
                true => build(&pattern, BytesMode::UnicodeBytes),
                // Bytes, as PCRE without its UTF flag; only what cannot be said in bytes is Unicode.
                false => {
                    build(&pattern, BytesMode::Ascii).or_else(|error| match source.is_ascii() {
                        true => Err(error),
                        false => build(&pattern, BytesMode::UnicodeBytes),
                    })
                }
            };
            built.map_err(|error| error.to_string())
        };
        let regex = built(translate(source))?;
        // With `m` every line has an end, with `D` only the text has.
        let for_line = translate_for_line(source).filter(|_| !has('m') && !has('D'));
        Ok(Self { regex, for_line: for_line.map(built).transpose()?.map(Box::new) })
    }

    fn regex(&self, text: &[u8]) -> &Regex {
        match &self.for_line {
            Some(regex) if text.ends_with(b"\n") => regex,
            _ => &self.regex,
        }
    }

    /// Compiles an expression that finds what any of these find; `None` when there is none.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub fn any_of(sources: &[String], options: &str) -> Result<Option<Self>, String> {
        for source in sources {
            Self::with_options(source, options)?;
        }
        if sources.is_empty() {
            return Ok(None);
        }
        Self::with_options(&sources.join("|"), options).map(Some)
    }

    /// Is it found in the text? A search that goes back too often finds nothing.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.regex(text).is_match(text).unwrap_or(false)
    }

    /// The first match and its groups.
    ///
    /// # Errors
    /// The search went back too often.
    pub fn captures(&self, text: &[u8]) -> Result<Option<Captures>, SearchError> {
        let found =
            self.regex(text).captures(text).map_err(|error| SearchError(error.to_string()))?;
        Ok(found.map(|groups| {
            let group = |at| groups.get(at).map(|found| text[found.start()..found.end()].into());
            (0..groups.len()).map(|at| group(at).unwrap_or_default()).collect()
        }))
    }

    /// The text with its first match (or `all` of them) replaced; `None` when there is none.
    ///
    /// # Errors
    /// A search went back too often.
    pub fn replace(
        &self,
        text: &[u8],
        by: &Replacement,
        all: bool,
    ) -> Result<Option<Vec<u8>>, SearchError> {
        let mut out: Option<Vec<u8>> = None;
        let mut copied = 0;
        for found in self.regex(text).captures_iter(text) {
            let groups = found.map_err(|error| SearchError(error.to_string()))?;
            let Some(whole) = groups.get(0) else { break };
            let out = out.get_or_insert_with(|| Vec::with_capacity(text.len()));
            out.extend_from_slice(&text[copied..whole.start()]);
            for part in &by.0 {
                match part {
                    Part::Text(text) => out.extend_from_slice(text),
                    Part::Group(at) => {
                        if let Some(group) = groups.get(*at) {
                            out.extend_from_slice(&text[group.start()..group.end()]);
                        }
                    }
                }
            }
            copied = whole.end();
            if !all {
                break;
            }
        }
        if let Some(out) = &mut out {
            out.extend_from_slice(&text[copied..]);
        }
        Ok(out)
    }
}

/// What a match is replaced by: text with `$1` or `${1}` for groups, `$0` or `$&` for the whole
/// match, and `$$` for a dollar.
#[derive(Clone, Debug)]
pub struct Replacement(Box<[Part]>);

#[derive(Clone, Debug)]
enum Part {
    Text(Box<[u8]>),
    Group(usize),
}

impl Replacement {
    /// Compiles a replacement.
    ///
    /// # Errors
    /// A dollar is followed by something else, which `ngx.re.sub` refuses too.
    pub fn compile(text: &str) -> Result<Self, String> {
        let invalid = || Err(format!("failed to compile the replacement template: {text:?}"));
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                plain.push('$');
                rest = after;
                continue;
            }
            let number = if let Some(after) = rest.strip_prefix('&') {
                rest = after;
                Some(0)
            } else {
                let (digits, braced) = match rest.strip_prefix('{') {
                    Some(inner) => (inner, true),
                    None => (rest, false),
                };
                let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                let number = digits[..end].parse().ok();
                rest = &digits[end..];
                if braced {
                    match rest.strip_prefix('}') {
                        Some(after) => rest = after,
                        None => return invalid(),
                    }
                }
                number
            };
            let Some(number) = number else { return invalid() };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into_bytes().into()));
            }
            parts.push(Part::Group(number));
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into_bytes().into()));
        }
        Ok(Self(parts.into()))
    }
}

/// How often a search may go back before it is given up (nginx's `lua_regex_match_limit` in APISIX).
const BACKTRACK_MAX: usize = 100_000;

/// The largest compiled size of one expression.
const REGEX_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacements_follow_ngx_re() {
        for (pattern, options, text, by, all, expected) in [
            ("^/test/(.*)/(.*)", "jo", "/test/a/b", "/$2/${1}", false, Some("/b/a")),
            ("b", "", "abcb", "[$0$&]", false, Some("a[bb]cb")),
            ("b", "", "abcb", "$$", true, Some("a$c$")),
            ("x", "", "abc", "y", true, None),
            ("X", "i", "axc", "$9y", true, Some("ayc")),
            ("a.b", "s", "a\nb", "-", false, Some("-")),
            ("^b", "m", "a\nb", "-", false, Some("a\n-")),
            ("a b # c", "x", "ab", "-", false, Some("-")),
            ("b", "a", "ab", "-", false, None),
            ("é", "u", "caf\u{e9}", "e", false, Some("cafe")),
            ("", "", "ab", "-", true, Some("-a-b-")),
            (r"\w\S+$", "", "hello world\n", "*", false, Some("hello *\n")),
            (r"\w\S+$", "D", "hello world\n", "*", false, None),
            ("o$", "am", "o\no\n", "-", false, Some("-\no\n")),
        ] {
            let pcre = Pcre::with_options(pattern, options).unwrap();
            let by = Replacement::compile(by).unwrap();
            let out = pcre.replace(text.as_bytes(), &by, all).unwrap();
            let out = out.map(|out| String::from_utf8(out).unwrap());
            assert_eq!(out.as_deref(), expected, "{pattern} {options} on {text:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert!(Pcre::compile("(a").is_err());
        let error = Pcre::with_options("a", "jh").unwrap_err();
        assert_eq!(error, "unknown flag \"h\" (flags \"jh\")");
        for bad in ["$x", "${1", "${x}", "a$"] {
            assert!(Replacement::compile(bad).is_err(), "{bad}");
        }
        let sources = ["a".to_owned(), "(b".to_owned()];
        assert!(Pcre::any_of(&sources, "").is_err());
        assert!(Pcre::any_of(&[], "").unwrap().is_none());
    }

    #[test]
    fn a_search_that_goes_back_too_often_is_given_up() {
        let pcre = Pcre::compile(r"^(?=(a|aa)+$)(a|aa)+\1b$").unwrap();
        assert!(!pcre.is_match(&b"a".repeat(60)));
        assert!(pcre.captures(&b"a".repeat(60)).is_err());
    }

    #[test]
    fn groups_are_counted_and_those_left_out_are_empty() {
        let pcre = Pcre::compile("(a)|(b)").unwrap();
        let groups = pcre.captures(b"xb").unwrap().unwrap();
        assert_eq!(groups, [b"b".as_slice(), b"", b"b"].map(Into::into));
        assert!(pcre.captures(b"x").unwrap().is_none());
    }
}
