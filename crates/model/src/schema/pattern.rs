//! Patterns: PCRE as schemas have it, run by `fancy-regex`.
//!
//! The two differ in writing (`[` inside a class, a lone `{`) and in reach (`\d`, `\w`, `\s` are
//! ASCII in PCRE), so a pattern is rewritten before it is compiled.

use fancy_regex::{Regex, RegexBuilder};

/// A compiled pattern and its source.
#[derive(Debug)]
pub(super) struct Pattern {
    source: String,
    /// `None` for a pattern that everything matches.
    regex: Option<Regex>,
}

impl Pattern {
    pub(super) fn compile(source: &str) -> Result<Self, String> {
        let regex = if matches!(source, ".*" | "^.*$" | "") {
            None
        } else {
            let regex = RegexBuilder::new(&translate(source))
                .backtrack_limit(BACKTRACK_MAX)
                .delegate_size_limit(COMPILED_BYTES_MAX)
                .build()
                .map_err(|error| format!("invalid pattern {source:?}: {error}"))?;
            Some(regex)
        };
        Ok(Self { source: source.to_owned(), regex })
    }

    /// A search that runs into its limit finds nothing, as with PCRE.
    pub(super) fn matches(&self, text: &str) -> bool {
        self.regex.as_ref().is_none_or(|regex| regex.is_match(text).unwrap_or(false))
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }
}

/// Rewrites a PCRE pattern so that `fancy-regex` reads it with the same meaning, but for a text that
/// ends with a line feed: see [`translate_for_line`].
pub fn translate(source: &str) -> String {
    rewrite(source, "$").0
}

/// The same for texts that end with a line feed: PCRE's `$` is found before it, too. `None`: there is
/// no `$`, and [`translate`] does for all texts.
pub fn translate_for_line(source: &str) -> Option<String> {
    let (pattern, has_end) = rewrite(source, r"(?:$|(?=\n\z))");
    has_end.then_some(pattern)
}

/// The pattern with `end` for each `$`, and whether there was one.
fn rewrite(source: &str, end: &str) -> (String, bool) {
    let mut has_end = false;
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len() + 16);
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        match c {
            '\\' => {
                let Some(&escaped) = chars.get(at + 1) else {
                    out.push('\\');
                    break;
                };
                match escaped {
                    'd' => out.push_str("[0-9]"),
                    'D' => out.push_str("[^0-9]"),
                    'w' => out.push_str("[0-9A-Za-z_]"),
                    'W' => out.push_str("[^0-9A-Za-z_]"),
                    's' => out.push_str(r"[ \t\n\x0B\f\r]"),
                    'S' => out.push_str(r"[^ \t\n\x0B\f\r]"),
                    _ if escaped.is_ascii_alphanumeric() => out.extend(['\\', escaped]),
                    _ => push_literal(&mut out, escaped),
                }
                at += 2;
            }
            '[' => at = class(&chars, at, &mut out),
            '$' => {
                has_end = true;
                out.push_str(end);
                at += 1;
            }
            '{' if !is_quantifier(&chars[at..]) => {
                out.push_str(r"\{");
                at += 1;
            }
            _ => {
                out.push(c);
                at += 1;
            }
        }
    }
    (out, has_end)
}

/// Rewrites the class that starts at `at`; returns the place after it.
fn class(chars: &[char], mut at: usize, out: &mut String) -> usize {
    out.push('[');
    at += 1;
    if chars.get(at) == Some(&'^') {
        out.push('^');
        at += 1;
    }
    let mut first = true;
    while let Some(&c) = chars.get(at) {
        if c == ']' && !first {
            out.push(']');
            return at + 1;
        }
        first = false;
        if c == '['
            && chars.get(at + 1) == Some(&':')
            && let Some(length) =
                chars[at..].windows(2).position(|pair| pair == [':', ']']).filter(|&n| n > 1)
        {
            out.extend(&chars[at..at + length + 2]);
            at += length + 2;
            continue;
        }
        let (low, next) = class_atom(chars, at);
        at = next;
        // A range needs a single character on both sides; otherwise the hyphen is a hyphen.
        if low.single && chars.get(at) == Some(&'-') && chars.get(at + 1).is_some_and(|&c| c != ']')
        {
            let (high, next) = class_atom(chars, at + 1);
            if high.single {
                out.push_str(&low.text);
                out.push('-');
                out.push_str(&high.text);
                at = next;
                continue;
            }
        }
        out.push_str(&low.text);
    }
    // No end: leave it to the regex compiler to say so.
    at
}

struct ClassAtom {
    text: String,
    single: bool,
}

fn class_atom(chars: &[char], at: usize) -> (ClassAtom, usize) {
    let mut text = String::new();
    if chars[at] != '\\' {
        push_literal(&mut text, chars[at]);
        return (ClassAtom { text, single: true }, at + 1);
    }
    let Some(&escaped) = chars.get(at + 1) else {
        return (ClassAtom { text: r"\\".to_owned(), single: true }, at + 1);
    };
    let wide = match escaped {
        'd' => "0-9",
        'D' => "[^0-9]",
        'w' => "0-9A-Za-z_",
        'W' => "[^0-9A-Za-z_]",
        's' => r" \t\n\x0B\f\r",
        'S' => r"[^ \t\n\x0B\f\r]",
        _ => "",
    };
    if !wide.is_empty() {
        return (ClassAtom { text: wide.to_owned(), single: false }, at + 2);
    }
    match escaped {
        'b' => text.push_str(r"\x08"),
        'x' => {
            let digits: String = chars[at + 2..]
                .iter()
                .copied()
                .take(2)
                .take_while(char::is_ascii_hexdigit)
                .collect();
            let code = u32::from_str_radix(&digits, 16).unwrap_or(0);
            push_literal(&mut text, char::from_u32(code).unwrap_or('\0'));
            return (ClassAtom { text, single: true }, at + 2 + digits.len());
        }
        _ if escaped.is_ascii_alphanumeric() => text.extend(['\\', escaped]),
        _ => push_literal(&mut text, escaped),
    }
    (ClassAtom { text, single: true }, at + 2)
}

/// Adds a character that stands for itself, inside a class or outside.
fn push_literal(out: &mut String, c: char) {
    if matches!(
        c,
        '\\' | '['
            | ']'
            | '^'
            | '-'
            | '&'
            | '~'
            | '.'
            | '*'
            | '+'
            | '?'
            | '('
            | ')'
            | '{'
            | '}'
            | '|'
            | '$'
            | '#'
    ) {
        out.push('\\');
    }
    out.push(c);
}

/// Whether `{` starts `{n}`, `{n,}` or `{n,m}`.
fn is_quantifier(chars: &[char]) -> bool {
    let Some(end) = chars.iter().position(|&c| c == '}') else { return false };
    let inside = &chars[1..end];
    inside.first().is_some_and(char::is_ascii_digit)
        && inside.iter().all(|c| c.is_ascii_digit() || *c == ',')
        && inside.iter().filter(|&&c| c == ',').count() <= 1
}

/// Steps back a match may take before it counts as failed.
const BACKTRACK_MAX: usize = 100_000;
/// Memory one compiled pattern may take. `{1,64}` of a wide class fits, nested repeats do not.
const COMPILED_BYTES_MAX: usize = 10 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_before_a_last_line_feed_too() {
        for (pattern, text, expected) in [
            ("d$", "end\n", Some(2..3)),
            ("^end$", "end\n", Some(0..3)),
            ("d$", "end\n\n", None),
            (r"\s*$", "a \n", Some(1..3)),
            (r"\s*?$", "a \n", Some(1..2)),
            ("^$", "\n", Some(0..0)),
        ] {
            let regex = Regex::new(&translate_for_line(pattern).unwrap()).unwrap();
            let found = regex.find(text).unwrap().map(|found| found.range());
            assert_eq!(found, expected, "{pattern} {text:?}");
        }
        for pattern in ["d", r"\$", "[$]", r"[^\]$]"] {
            assert_eq!(translate_for_line(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn patterns_mean_what_pcre_means() {
        for (pattern, text, expected) in [
            ("^[a-zA-Z0-9-_.]+$", "a-B_9.", true),
            ("^[a-zA-Z0-9-_.]+$", "a$", false),
            (r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$", "*.example.com", true),
            (r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$", "[::1]:80", true),
            (r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$", "a/b", false),
            (r"^[^\/]+:\/\/([\da-zA-Z.-]+|\[[\da-fA-F:]+\])(:\d+)?", "http://[::1]:8200", true),
            (r"^[^\/]+:\/\/([\da-zA-Z.-]+|\[[\da-fA-F:]+\])(:\d+)?", "http//x", false),
            (r"^\S+$", "größe", true),
            (r"^\S+$", "a b", false),
            (r"^\d$", "٣", false),
            (r"^\w+$", "é", false),
            ("^[^[]+$", "a]b", true),
            ("^[^[]+$", "a[b", false),
            ("^[]a]+$", "]a", true),
            ("^a{b$", "a{b", true),
            ("^a{2}$", "aa", true),
            ("^[a&&b~~-]+$", "&~-", true),
            ("^[[:alpha:]]+$", "abc", true),
            (r"^[\x20-\x21\x23-\x5B\]-\x7E]+$", "a]b", true),
            (r"^[\x20-\x21\x23-\x5B\]-\x7E]+$", "a\"b", false),
            (r"^[+\-.]+$", "+-.", true),
            (r"^(?!x)\w+$", "abc", true),
            (r"^(?!x)\w+$", "xbc", false),
            (".*", "", true),
            ("^(/[^/]+)+$", "/a/b", true),
            (r"^[\s\S]*$", "a\nb", true),
        ] {
            let compiled = Pattern::compile(pattern).unwrap();
            assert_eq!(compiled.matches(text), expected, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn a_broken_pattern_is_refused_and_a_runaway_one_does_not_match() {
        assert!(Pattern::compile("(").is_err());
        assert!(Pattern::compile("[a").is_err());
        assert!(Pattern::compile(r"a\").is_err());
        let runaway = Pattern::compile(r"^(?=(a+)+$)(a+)+\1$").unwrap();
        assert!(!runaway.matches(&format!("{}b", "a".repeat(64))));
    }
}
