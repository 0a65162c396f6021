//! Where our canonical request and AWS's part ways, for a signature that AWS refused.
//!
//! With the text "The request signature we calculated does not match" AWS prints the canonical
//! request it made. Its first line that differs from ours names the cause.

use std::fmt;

/// The first line that differs. A session token and a client context in it are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What the line is about.
    pub part: &'static str,
    /// The line as we signed it; nothing where it is AWS's alone.
    pub ours: String,
    /// The line as AWS has it; nothing where it is ours alone.
    pub theirs: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, ours, theirs } = self;
        write!(f, "{part}: we signed {ours:?}, AWS read {theirs:?}")
    }
}

/// What AWS printed of its canonical request; `None`: the text holds none.
pub fn printed_canonical_request(said: &str) -> Option<String> {
    // As text, or inside of JSON, where line ends and quotes are escaped.
    let text = match serde_json::from_str::<serde_json::Value>(said) {
        Ok(value) => {
            let message = value.get("message").or_else(|| value.get("Message"))?;
            message.as_str()?.to_owned()
        }
        Err(_) => said.to_owned(),
    };
    let (_, rest) = text.split_once(BEFORE)?;
    let rest = rest.trim_start().strip_prefix('\'')?;
    let (request, _) = rest.split_once(AFTER)?;
    Some(request.trim_end().strip_suffix('\'')?.to_owned())
}

/// The first difference between two canonical requests; `None`: they are the same, and the key is
/// another.
pub fn first_difference(ours: &str, theirs: &str) -> Option<Difference> {
    difference(&ours.lines().collect::<Vec<_>>(), &theirs.lines().collect::<Vec<_>>(), true)
}

/// As [`first_difference`], the hashes of the bodies left out: for a body that cannot be made once
/// more, as an event that has an id and a time of its own.
pub fn first_difference_before_body(ours: &str, theirs: &str) -> Option<Difference> {
    let (mut our_lines, mut their_lines): (Vec<_>, Vec<_>) =
        (ours.lines().collect(), theirs.lines().collect());
    let is_hash = |line: &mut &str| line.len() == 64 && line.bytes().all(|b| b.is_ascii_hexdigit());
    for lines in [&mut our_lines, &mut their_lines] {
        lines.pop_if(is_hash);
    }
    difference(&our_lines, &their_lines, false)
}

fn difference(ours: &[&str], theirs: &[&str], with_hash: bool) -> Option<Difference> {
    let last = ours.len() - usize::from(with_hash).min(ours.len());
    (0..ours.len().max(theirs.len())).find_map(|at| {
        let line = |lines: &[&str]| lines.get(at).copied().unwrap_or_default().to_owned();
        let (our_line, their_line) = (line(ours), line(theirs));
        if our_line == their_line {
            return None;
        }
        let part = match at {
            0 => "method",
            1 => "path",
            2 => "query",
            at if with_hash && at == last => "hash of the body",
            at if at + 1 == last => "list of signed headers",
            _ if our_line.starts_with(TOKEN) || their_line.starts_with(TOKEN) => "session token",
            _ => "header",
        };
        Some(Difference { part, ours: masked(our_line), theirs: masked(their_line) })
    })
}

/// A line without what is no one's business.
fn masked(line: String) -> String {
    match [TOKEN, CLIENT_CONTEXT].into_iter().find(|name| line.starts_with(name)) {
        Some(name) => format!("{name}***"),
        None => line,
    }
}

/// The seconds since 1970 of the `x-amz-date` line in a canonical request.
pub fn signed_time(canonical: &str) -> Option<u64> {
    let stamp = canonical.lines().find_map(|line| line.strip_prefix("x-amz-date:"))?;
    let number = |range: std::ops::Range<usize>| stamp.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(9..11)?, number(11..13)?, number(13..15)?);
    let known = stamp.len() == 16 && stamp.as_bytes()[8] == b'T' && stamp.ends_with('Z');
    if !known || year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 of a date in the Gregorian calendar, years counted from March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

const TOKEN: &str = "x-amz-security-token:";
const CLIENT_CONTEXT: &str = "x-amz-client-context:";
const BEFORE: &str = "The Canonical String for this request should have been";
const AFTER: &str = "\n\nThe String-to-Sign should have been";

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "GET\n/a\nb=1\nhost:h\nx-amz-date:20260102T030405Z\n\nhost;x-amz-date\ne3b0";

    #[test]
    fn what_aws_printed_is_found_as_text_and_in_json() {
        let text = format!(
            "The request signature we calculated does not match the signature you provided.\n\n\
             {BEFORE}\n'{OURS}'{AFTER}\n'AWS4-HMAC-SHA256\n...'\n"
        );
        assert_eq!(printed_canonical_request(&text).as_deref(), Some(OURS));
        for name in ["message", "Message"] {
            let json = serde_json::json!({name: text}).to_string();
            assert_eq!(printed_canonical_request(&json).as_deref(), Some(OURS), "{name}");
        }
        for text in ["", "{}", "Forbidden", BEFORE, r#"{"message":null}"#] {
            assert_eq!(printed_canonical_request(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_line_that_differs_is_named() {
        for (from, to, part) in [
            ("GET", "POST", "method"),
            ("/a\n", "/b\n", "path"),
            ("b=1", "b=2", "query"),
            ("host:h\n", "host:other\n", "header"),
            ("\nhost;x-amz-date\n", "\nhost\n", "list of signed headers"),
            ("e3b0", "ffff", "hash of the body"),
        ] {
            let theirs = OURS.replacen(from, to, 1);
            let found = first_difference(OURS, &theirs);
            assert_eq!(found.map(|it| it.part), Some(part), "{from} {to}");
        }
        assert_eq!(first_difference(OURS, OURS), None);
        let shorter = first_difference(OURS, "GET\n/a").map(|it| (it.ours, it.theirs));
        assert_eq!(shorter, Some(("b=1".to_owned(), String::new())));
    }

    #[test]
    fn a_session_token_is_masked_on_whichever_side_it_is() {
        let with = OURS.replace("x-amz-date:", "x-amz-security-token:top/secret+==\nx-amz-date:");
        for (ours, theirs) in [(OURS, &*with), (&*with, OURS)] {
            let found = first_difference(ours, theirs).expect("they differ");
            assert_eq!(found.part, "session token");
            assert!(!format!("{found} {found:?}").contains("top/secret"), "{found}");
        }
    }

    #[test]
    fn a_body_that_cannot_be_made_again_is_left_out_and_nothing_else() {
        let hash = |digit: &str| OURS.replace("e3b0", &digit.repeat(64));
        assert_eq!(first_difference_before_body(&hash("a"), &hash("b")), None);
        for (from, to, part) in [
            ("GET", "POST", "method"),
            ("host:h\n", "host:other\n", "header"),
            ("\nhost;x-amz-date\n", "\nhost\n", "list of signed headers"),
        ] {
            let theirs = hash("b").replacen(from, to, 1);
            let found = first_difference_before_body(&hash("a"), &theirs);
            assert_eq!(found.map(|it| it.part), Some(part), "{from}");
        }
    }

    #[test]
    fn the_time_of_a_signature_is_read_back() {
        for (stamp, time) in [
            ("19700101T000000Z", Some(0)),
            ("20260102T030405Z", Some(1_767_323_045)),
            ("20000229T235959Z", Some(951_868_799)),
            ("20260102 030405Z", None),
            ("20261302T030405Z", None),
            ("x", None),
        ] {
            assert_eq!(signed_time(&format!("GET\nx-amz-date:{stamp}\n")), time, "{stamp}");
        }
        assert_eq!(signed_time("GET\n/"), None);
    }
}
