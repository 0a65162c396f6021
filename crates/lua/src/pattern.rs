//! Lua's patterns, with a limit on their steps.
//!
//! The matcher of LuaJIT runs in C, where no instruction is counted: four nested repetitions over a
//! few kilobytes would hold a core for hours. This one gives up after [`STEPS_MAX`] steps.

/// Why a pattern did not run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternError {
    /// It took too long.
    #[error("pattern too complex: it took more than {STEPS_MAX} steps")]
    TooComplex,
    /// It is no pattern.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Where a capture lies: its start, and its length or what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capture {
    start: usize,
    len: Len,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Len {
    Open,
    Position,
    Bytes(usize),
}

/// What a capture holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Held<'s> {
    /// Text.
    Text(&'s [u8]),
    /// A position, counted from 1.
    Position(usize),
}

/// One match: from, behind the end, captures.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it begins, counted from 0.
    pub(crate) from: usize,
    /// Behind its end.
    pub(crate) end: usize,
    captures: Vec<Capture>,
}

impl Found {
    /// The captures; the whole match where the pattern has none.
    pub(crate) fn captures<'s>(&self, subject: &'s [u8]) -> Vec<Held<'s>> {
        if self.captures.is_empty() {
            return vec![Held::Text(&subject[self.from..self.end])];
        }
        self.explicit(subject)
    }

    /// The captures that the pattern has.
    pub(crate) fn explicit<'s>(&self, subject: &'s [u8]) -> Vec<Held<'s>> {
        let held = |capture: &Capture| match capture.len {
            Len::Bytes(len) => Held::Text(&subject[capture.start..capture.start + len]),
            Len::Position | Len::Open => Held::Position(capture.start + 1),
        };
        self.captures.iter().map(held).collect()
    }
}

/// Looks for `pattern` in `subject` from `init` on.
pub(crate) fn find(
    subject: &[u8],
    pattern: &[u8],
    init: usize,
    steps: &mut u64,
) -> Result<Option<Found>, PatternError> {
    let (anchored, pattern_at) = match pattern.first() {
        Some(b'^') => (true, 1),
        _ => (false, 0),
    };
    let mut state = State { subject, pattern, captures: Vec::new(), steps, depth: 0 };
    let mut from = init;
    loop {
        state.captures.clear();
        if let Some(end) = state.matched(from, pattern_at)? {
            if state.captures.iter().any(|capture| capture.len == Len::Open) {
                return Err(PatternError::Malformed("unfinished capture"));
            }
            return Ok(Some(Found { from, end, captures: state.captures }));
        }
        from += 1;
        if anchored || from > subject.len() {
            return Ok(None);
        }
    }
}

/// Is there nothing in the pattern but plain text?
pub(crate) fn is_plain(pattern: &[u8]) -> bool {
    !pattern.iter().any(|b| b"^$*+?.([%-".contains(b))
}

struct State<'a> {
    subject: &'a [u8],
    pattern: &'a [u8],
    captures: Vec<Capture>,
    steps: &'a mut u64,
    depth: u32,
}

type Matched = Result<Option<usize>, PatternError>;

impl State<'_> {
    fn step(&mut self) -> Result<(), PatternError> {
        *self.steps += 1;
        if *self.steps > STEPS_MAX { Err(PatternError::TooComplex) } else { Ok(()) }
    }

    /// The end of a match of the pattern from `p` on at `s`.
    fn matched(&mut self, s: usize, p: usize) -> Matched {
        self.depth += 1;
        let matched = if self.depth > DEPTH_MAX {
            Err(PatternError::TooComplex)
        } else {
            self.matched_here(s, p)
        };
        self.depth -= 1;
        matched
    }

    fn matched_here(&mut self, mut s: usize, mut p: usize) -> Matched {
        loop {
            self.step()?;
            match (self.pattern.get(p), self.pattern.get(p + 1)) {
                (None, _) => return Ok(Some(s)),
                (Some(b'('), Some(b')')) => return self.open(s, p + 2, Len::Position),
                (Some(b'('), _) => return self.open(s, p + 1, Len::Open),
                (Some(b')'), _) => return self.close(s, p + 1),
                (Some(b'$'), None) => return Ok((s == self.subject.len()).then_some(s)),
                (Some(b'%'), Some(b'b')) => match self.balanced(s, p + 2)? {
                    Some(end) => {
                        s = end;
                        p += 4;
                        continue;
                    }
                    None => return Ok(None),
                },
                (Some(b'%'), Some(b'f')) => {
                    p += 2;
                    if self.pattern.get(p) != Some(&b'[') {
                        return Err(PatternError::Malformed("missing '[' after '%f' in pattern"));
                    }
                    let end = self.class_end(p)?;
                    let before = if s == 0 { 0 } else { self.subject[s - 1] };
                    let here = self.subject.get(s).copied().unwrap_or(0);
                    if !self.in_set(before, p, end - 1) && self.in_set(here, p, end - 1) {
                        p = end;
                        continue;
                    }
                    return Ok(None);
                }
                (Some(b'%'), Some(digit)) if digit.is_ascii_digit() => {
                    match self.repeated(s, *digit)? {
                        Some(end) => {
                            s = end;
                            p += 2;
                            continue;
                        }
                        None => return Ok(None),
                    }
                }
                _ => {}
            }
            let end = self.class_end(p)?;
            match self.pattern.get(end) {
                Some(b'?') => {
                    if self.single(s, p, end)
                        && let Some(found) = self.matched(s + 1, end + 1)?
                    {
                        return Ok(Some(found));
                    }
                    p = end + 1;
                }
                Some(b'*') => return self.most(s, s, p, end),
                Some(b'+') => {
                    return if self.single(s, p, end) {
                        self.most(s, s + 1, p, end)
                    } else {
                        Ok(None)
                    };
                }
                Some(b'-') => return self.least(s, p, end),
                _ => {
                    if !self.single(s, p, end) {
                        return Ok(None);
                    }
                    s += 1;
                    p = end;
                }
            }
        }
    }

    /// As many as there are from `from` on, then fewer, down to none behind `from`.
    fn most(&mut self, _s: usize, from: usize, p: usize, end: usize) -> Matched {
        let mut n = 0;
        while self.single(from + n, p, end) {
            self.step()?;
            n += 1;
        }
        loop {
            if let Some(found) = self.matched(from + n, end + 1)? {
                return Ok(Some(found));
            }
            if n == 0 {
                return Ok(None);
            }
            n -= 1;
        }
    }

    fn least(&mut self, mut s: usize, p: usize, end: usize) -> Matched {
        loop {
            if let Some(found) = self.matched(s, end + 1)? {
                return Ok(Some(found));
            }
            if !self.single(s, p, end) {
                return Ok(None);
            }
            self.step()?;
            s += 1;
        }
    }

    fn open(&mut self, s: usize, p: usize, len: Len) -> Matched {
        if self.captures.len() >= CAPTURES_MAX {
            return Err(PatternError::Malformed("too many captures"));
        }
        let level = self.captures.len();
        self.captures.push(Capture { start: s, len });
        let found = self.matched(s, p)?;
        if found.is_none() {
            self.captures.truncate(level);
        }
        Ok(found)
    }

    fn close(&mut self, s: usize, p: usize) -> Matched {
        let open = self.captures.iter().rposition(|capture| capture.len == Len::Open);
        let at = open.ok_or(PatternError::Malformed("invalid pattern capture"))?;
        self.captures[at].len = Len::Bytes(s - self.captures[at].start);
        let found = self.matched(s, p)?;
        if found.is_none() {
            self.captures[at].len = Len::Open;
        }
        Ok(found)
    }

    fn balanced(&mut self, s: usize, p: usize) -> Matched {
        let (Some(&open), Some(&close)) = (self.pattern.get(p), self.pattern.get(p + 1)) else {
            return Err(PatternError::Malformed("malformed pattern (missing arguments to '%b')"));
        };
        if self.subject.get(s) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1_usize;
        for at in s + 1..self.subject.len() {
            self.step()?;
            let byte = self.subject[at];
            if byte == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(at + 1));
                }
            } else if byte == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    fn repeated(&mut self, s: usize, digit: u8) -> Matched {
        let bad = PatternError::Malformed("invalid capture index");
        let Some(index) = digit.checked_sub(b'1') else { return Err(bad) };
        match self.captures.get(usize::from(index)) {
            Some(Capture { start, len: Len::Bytes(len) }) => {
                let text = &self.subject[*start..start + len];
                Ok(self.subject[s..].starts_with(text).then_some(s + len))
            }
            _ => Err(bad),
        }
    }

    /// Behind the single class that begins at `p`.
    fn class_end(&self, p: usize) -> Result<usize, PatternError> {
        let at = |p: usize| self.pattern.get(p);
        match at(p) {
            Some(b'%') => match at(p + 1) {
                Some(_) => Ok(p + 2),
                None => Err(PatternError::Malformed("malformed pattern (ends with '%')")),
            },
            Some(b'[') => {
                let mut p = p + 1;
                if at(p) == Some(&b'^') {
                    p += 1;
                }
                // The first character of a set may be a bracket.
                let mut first = true;
                loop {
                    match at(p) {
                        None => {
                            return Err(PatternError::Malformed("malformed pattern (missing ']')"));
                        }
                        Some(b']') if !first => return Ok(p + 1),
                        Some(b'%') => p += 2,
                        Some(_) => p += 1,
                    }
                    first = false;
                }
            }
            Some(_) => Ok(p + 1),
            None => Ok(p),
        }
    }

    fn single(&self, s: usize, p: usize, end: usize) -> bool {
        let Some(&byte) = self.subject.get(s) else { return false };
        match self.pattern[p] {
            b'.' => true,
            b'%' => in_class(byte, self.pattern[p + 1]),
            b'[' => self.in_set(byte, p, end - 1),
            other => other == byte,
        }
    }

    /// Is the byte in the set from `p` (its `[`) to `last` (its `]`)?
    fn in_set(&self, byte: u8, p: usize, last: usize) -> bool {
        let pattern = self.pattern;
        let negated = pattern.get(p + 1) == Some(&b'^');
        let mut at = if negated { p + 2 } else { p + 1 };
        while at < last {
            if pattern[at] == b'%' {
                if in_class(byte, pattern[at + 1]) {
                    return !negated;
                }
                at += 2;
            } else if pattern[at + 1] == b'-' && at + 2 < last {
                if (pattern[at]..=pattern[at + 2]).contains(&byte) {
                    return !negated;
                }
                at += 3;
            } else {
                if pattern[at] == byte {
                    return !negated;
                }
                at += 1;
            }
        }
        negated
    }
}

fn in_class(byte: u8, class: u8) -> bool {
    let is = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'g' => byte.is_ascii_graphic(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        b's' => byte.is_ascii_whitespace() || byte == 0x0b,
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        b'z' => byte == 0,
        _ => return class == byte,
    };
    is != class.is_ascii_uppercase()
}

/// Steps of one call, all its matches together.
pub(crate) const STEPS_MAX: u64 = 5_000_000;

/// Nested calls of the matcher, as in LuaJIT.
const DEPTH_MAX: u32 = 200;

/// Captures of a pattern, as in Lua.
const CAPTURES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(subject: &str, pattern: &str, expected: &[&str]) {
        let found = find(subject.as_bytes(), pattern.as_bytes(), 0, &mut 0).unwrap();
        let all: Vec<String> = found.map_or_else(Vec::new, |found| {
            let held = found.captures(subject.as_bytes());
            held.iter()
                .map(|held| match held {
                    Held::Text(text) => String::from_utf8_lossy(text).into_owned(),
                    Held::Position(at) => at.to_string(),
                })
                .collect()
        });
        assert_eq!(all, expected, "{subject:?} {pattern:?}");
    }

    #[test]
    fn patterns_match_as_luas_do() {
        for (subject, pattern, expected) in [
            ("hello", "l+", &["ll"][..]),
            ("hello", "^l+", &[]),
            ("hello", "(h)(.-)(o)$", &["h", "ell", "o"]),
            ("key = value", "^(%w+)%s*=%s*(%w+)$", &["key", "value"]),
            ("f(a(b)c)d", "%b()", &["(a(b)c)"]),
            ("THE (quick) fox", "%f[%a]%a+%f[%A]", &["THE"]),
            ("abab", "(ab)%1", &["ab"]),
            ("x", "()x()", &["1", "2"]),
            ("a]b", "[]]", &["]"]),
            ("a-b", "[a%-]+", &["a-"]),
            ("0123", "[^0-2]", &["3"]),
            ("", ".*", &[""]),
            ("abc", "b?c", &["bc"]),
            ("a.b", "%.", &["."]),
            ("ac", "a-c", &["ac"]),
            ("[x]", "%[(.-)%]", &["x"]),
        ] {
            check(subject, pattern, expected);
        }
    }

    #[test]
    fn malformed_patterns_are_told_as_lua_tells_them() {
        for (pattern, text) in [
            ("[a", "malformed pattern (missing ']')"),
            ("%", "malformed pattern (ends with '%')"),
            ("(a", "unfinished capture"),
            ("a)", "invalid pattern capture"),
            ("%1", "invalid capture index"),
            ("%b", "malformed pattern (missing arguments to '%b')"),
            ("%fa", "missing '[' after '%f' in pattern"),
            ("[%", "malformed pattern (missing ']')"),
            ("[a-", "malformed pattern (missing ']')"),
        ] {
            let error = find(b"aaa", pattern.as_bytes(), 0, &mut 0).unwrap_err();
            assert_eq!(error.to_string(), text, "{pattern:?}");
        }
    }

    #[test]
    fn a_pattern_that_runs_away_is_stopped() {
        let subject = "a".repeat(20_000);
        let found = find(subject.as_bytes(), b".-.-.-.-.-b", 0, &mut 0);
        assert_eq!(found.unwrap_err(), PatternError::TooComplex);
    }
}
