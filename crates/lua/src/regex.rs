//! `ngx.re`: regular expressions over bytes, with a limit on what one search may take.
//!
//! An expression without look-around, back references and the like runs in time proportional to the
//! subject. The others go back where they fail; between two failures they may pass over the subject
//! once for each loop within a loop, which nothing counts. So how often such an expression may go back
//! depends on how much it can do in between ([`Cost`]): both together stay below [`STEPS_MAX`]. Where
//! that is too seldom for the whole subject, each place in it is tried by itself, for as long as the
//! script may run.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use fancy_regex::{BytesMode, Captures, Error, Expr, Regex, RegexBuilder, RuntimeError};
use sluicegate_model::schema::pattern::{translate, translate_for_line};

use crate::limits::{Budget, TEXT_BYTES_MAX, TEXT_TOO_LONG};

/// Compiled expressions of one core.
#[derive(Default)]
pub(crate) struct Regexes(RefCell<HashMap<Key, Rc<Compiled>>>);

/// The expression and its options.
type Key = (Box<[u8]>, Box<[u8]>, bool);

/// An expression with its options.
pub(crate) struct Compiled {
    source: Source,
    /// It never goes back; what it costs is for each byte of the subject.
    plain: Option<Regex>,
    cost: Cost,
    /// For expressions that go back: by how often they may, as a power of two, and whether they
    /// match only where they are asked to begin.
    hard: RefCell<HashMap<(u32, bool), Rc<Regex>>>,
    names: Vec<(usize, String)>,
}

impl Regexes {
    /// The compiled form, for such a subject.
    pub(crate) fn get(
        &self,
        regex: &[u8],
        options: &[u8],
        subject: &[u8],
    ) -> Result<Rc<Compiled>, String> {
        // With `m` every line has an end, with `D` only the subject has.
        let is_line = subject.ends_with(b"\n")
            && regex.contains(&b'$')
            && !options.iter().any(|option| matches!(option, b'm' | b'D'));
        let key = (Box::from(regex), Box::from(options), is_line);
        if let Some(known) = self.0.borrow().get(&key) {
            return Ok(known.clone());
        }
        let compiled = Rc::new(compile(regex, options, is_line)?);
        let mut all = self.0.borrow_mut();
        if all.len() >= REGEXES_KEPT {
            all.clear();
        }
        all.insert(key, compiled.clone());
        Ok(compiled)
    }
}

/// What an expression is compiled from.
struct Source {
    pattern: String,
    flags: Vec<char>,
    /// Characters are those of UTF-8 (option `u`), not bytes.
    unicode: bool,
    /// Matches only where it is asked to begin (option `a`).
    anchored: bool,
}

impl Source {
    fn build(&self, backtracks: usize, here: bool) -> Result<Regex, String> {
        let has = |option| self.flags.contains(&option);
        let line_end = if has('x') { "\n" } else { "" };
        let here = here.then(|| format!("\\G(?:{}{line_end})", self.pattern));
        let mode = if self.unicode { BytesMode::UnicodeBytes } else { BytesMode::Ascii };
        RegexBuilder::new(here.as_ref().unwrap_or(&self.pattern))
            .case_insensitive(has('i'))
            .dot_matches_new_line(has('s'))
            .multi_line(has('m'))
            .ignore_whitespace(has('x'))
            .bytes_mode(mode)
            .backtrack_limit(backtracks)
            .delegate_size_limit(SIZE_MAX)
            .build()
            .map_err(|error| format!("pcre_compile() failed: {error}"))
    }
}

fn compile(regex: &[u8], options: &[u8], is_line: bool) -> Result<Compiled, String> {
    let failed = |why: &str| format!("pcre_compile() failed: {why}");
    if regex.len() > SOURCE_BYTES_MAX {
        return Err(failed("the expression is too long"));
    }
    let regex = std::str::from_utf8(regex).map_err(|_| failed("it is not UTF-8"))?;
    let options = String::from_utf8_lossy(options);
    // Bytes, as PCRE without its UTF flag; only what cannot be said in bytes is Unicode. Classes are
    // those of ASCII either way.
    let mut source = Source {
        pattern: is_line
            .then(|| translate_for_line(regex))
            .flatten()
            .unwrap_or_else(|| translate(regex)),
        flags: Vec::new(),
        unicode: !regex.is_ascii(),
        anchored: false,
    };
    for option in options.chars() {
        match option {
            'i' | 'm' | 's' | 'x' => source.flags.push(option),
            'a' => source.anchored = true,
            'u' | 'U' => source.unicode = true,
            // How it is compiled and kept is not the script's matter here.
            'j' | 'o' | 'J' | 'd' | 'D' => {}
            other => return Err(format!("unknown flag \"{other}\" (flags \"{options}\")")),
        }
    }
    let tree = Expr::parse_tree(&source.pattern).map_err(|error| failed(&error.to_string()))?;
    let cost = Cost::of(&tree.expr).ok_or_else(|| failed("recursion is not available"))?;
    let built = source.build(1, false)?;
    let names = built.capture_names().enumerate();
    let names = names.filter_map(|(n, name)| Some((n, name?.to_owned()))).collect();
    let plain = (!goes_back(&built)).then_some(built);
    Ok(Compiled { source, plain, cost, hard: RefCell::default(), names })
}

/// Is it run by the engine that goes back where it fails? That is told where an expression is printed
/// for debugging, and nowhere else.
fn goes_back(regex: &Regex) -> bool {
    struct Printed<'a>(&'a Regex);
    impl fmt::Display for Printed<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.debug_print(f)
        }
    }
    !Printed(regex).to_string().starts_with("wrapped Regex")
}

/// The most that an expression can do without a failure, as a polynomial of the subject's length:
/// the factor of each power of it.
#[derive(Clone, Debug, PartialEq)]
struct Cost(Vec<f64>);

impl Cost {
    fn of(expr: &Expr) -> Option<Self> {
        let mut sum = Self(vec![1.0]);
        for child in expr.children_iter() {
            let child = Self::of(child)?;
            for (power, factor) in child.0.into_iter().enumerate() {
                if sum.0.len() <= power {
                    sum.0.push(0.0);
                }
                sum.0[power] += factor;
            }
        }
        match expr {
            // As often as there are bytes, at most.
            Expr::Repeat { hi: usize::MAX, .. } => sum.0.insert(0, 1.0),
            Expr::Repeat { hi, .. } => {
                sum.0.iter_mut().for_each(|factor| *factor *= (*hi).max(1) as f64);
            }
            // Compares as many bytes as there are.
            Expr::Backref { .. } => sum.0 = vec![1.0, 1.0],
            Expr::Literal { val, .. } => sum.0[0] += val.len() as f64,
            Expr::LiteralBytes { bytes } => sum.0[0] += bytes.len() as f64,
            Expr::SubroutineCall(_)
            | Expr::BackrefWithRelativeRecursionLevel { .. }
            | Expr::Absent(_)
            | Expr::DefineGroup { .. }
            | Expr::AstNode(..) => return None,
            _ => {}
        }
        Some(sum)
    }

    /// States of an engine that never goes back.
    fn states(&self) -> f64 {
        self.0.iter().sum()
    }

    fn at(&self, len: usize) -> f64 {
        self.0.iter().rev().fold(0.0, |sum, factor| sum * len as f64 + factor)
    }
}

/// One match: where it is, and every group.
pub(crate) struct Match {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) groups: Vec<Option<(usize, usize)>>,
}

impl Match {
    /// Where the next search begins.
    pub(crate) fn next(&self) -> usize {
        if self.to == self.from { self.to + 1 } else { self.to }
    }
}

impl Compiled {
    /// The first match from byte `at` on.
    pub(crate) fn find(
        &self,
        subject: &[u8],
        at: usize,
        budget: &Budget,
    ) -> Result<Option<Match>, String> {
        let Some(rest) = subject.get(at..) else { return Ok(None) };
        // Not in the middle of a character.
        let inside = rest.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
        let at = if self.source.unicode { at + inside } else { at };
        let found = match &self.plain {
            Some(regex) => {
                if self.cost.states() * rest.len() as f64 > PLAIN_STEPS_MAX {
                    return Err(TOO_LONG.into());
                }
                regex.captures_from_pos(subject, at).map_err(failed)?
            }
            None => self.find_hard(subject, at, budget)?,
        };
        let Some(captures) = found else { return Ok(None) };
        let Some(whole) = captures.get(0) else { return Ok(None) };
        if self.source.anchored && whole.start() != at {
            return Ok(None);
        }
        let groups = (0..captures.len())
            .map(|n| captures.get(n).map(|group| (group.start(), group.end())))
            .collect();
        Ok(Some(Match { from: whole.start(), to: whole.end(), groups }))
    }

    fn find_hard<'s>(
        &self,
        subject: &'s [u8],
        at: usize,
        budget: &Budget,
    ) -> Result<Option<Captures<'s, [u8]>>, String> {
        let len = subject.len() - at;
        let times = (STEPS_MAX / self.cost.at(len)).min(BACKTRACK_MAX);
        if times < 1.0 {
            return Err(TOO_LONG.into());
        }
        let power = times.log2() as u32;
        match self.hard(power, self.source.anchored)?.captures_from_pos(subject, at) {
            Err(Error::RuntimeError(RuntimeError::BacktrackLimitExceeded))
                if times < BACKTRACK_MAX && !self.source.anchored => {}
            found => return found.map_err(failed),
        }
        let here = self.hard(power, true)?;
        for at in at..=subject.len() {
            budget.charge(PLACE_COST).map_err(|error| format!("pcre_exec() failed: {error}"))?;
            if let Some(found) = here.captures_from_pos(subject, at).map_err(failed)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn hard(&self, power: u32, here: bool) -> Result<Rc<Regex>, String> {
        if let Some(built) = self.hard.borrow().get(&(power, here)) {
            return Ok(built.clone());
        }
        let built = Rc::new(self.source.build(1 << power, here)?);
        self.hard.borrow_mut().insert((power, here), built.clone());
        Ok(built)
    }

    /// The names of groups with their numbers.
    pub(crate) fn names(&self) -> impl Iterator<Item = (usize, &str)> {
        self.names.iter().map(|(n, name)| (*n, &**name))
    }
}

fn failed(error: Error) -> String {
    format!("pcre_exec() failed: {error}")
}

/// Puts what `template` says in the place of a match: `$1`, `${1}`, `$0`, `$$`.
pub(crate) fn expand(
    template: &[u8],
    subject: &[u8],
    found: &Match,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let mut rest = template;
    loop {
        let at = rest.iter().position(|byte| *byte == b'$').unwrap_or(rest.len());
        push(out, &rest[..at])?;
        let Some(after) = rest.get(at + 1..) else { return Ok(()) };
        rest = after;
        if let Some(after) = rest.strip_prefix(b"$") {
            out.push(b'$');
            rest = after;
            continue;
        }
        let (digits, after) = match rest.strip_prefix(b"{") {
            Some(inner) => {
                let end = inner.iter().position(|byte| *byte == b'}');
                let end = end.ok_or("attempt to use an invalid capturing group name")?;
                (&inner[..end], &inner[end + 1..])
            }
            None => {
                let end = rest.iter().position(|byte| !byte.is_ascii_digit());
                rest.split_at(end.unwrap_or(rest.len()))
            }
        };
        let digits = String::from_utf8_lossy(digits);
        let number: usize = digits.parse().map_err(|_| {
            format!("attempt to use named capturing variable \"{digits}\" (named captures not supported yet)")
        })?;
        if let Some(Some((from, to))) = found.groups.get(number) {
            push(out, &subject[*from..*to])?;
        }
        rest = after;
    }
}

/// Appends to a text that has a limit.
pub(crate) fn push(out: &mut Vec<u8>, more: &[u8]) -> Result<(), String> {
    if out.len() + more.len() > TEXT_BYTES_MAX {
        return Err(TEXT_TOO_LONG.into());
    }
    out.extend_from_slice(more);
    Ok(())
}

/// Compiled expressions kept per core; all are dropped when there are more.
const REGEXES_KEPT: usize = 1024;

/// Steps back of one search, as `lua_regex_match_limit` would have it.
const BACKTRACK_MAX: f64 = 500_000.0;

/// Steps of one search by an expression that goes back, or of one at a single place, at worst.
const STEPS_MAX: f64 = 2e8;

/// States times bytes of one search by another, at worst.
const PLAIN_STEPS_MAX: f64 = 4e9;

/// What it costs to try one place, in bytes.
const PLACE_COST: usize = 256;

/// Bytes of an expression.
const SOURCE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a compiled expression.
const SIZE_MAX: usize = 1 << 20;

/// Why a search was not begun.
const TOO_LONG: &str =
    "pcre_exec() failed: the subject is too long for an expression that can take so many steps";

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::limits::{Limits, Meter};

    fn cost(regex: &str) -> Vec<f64> {
        compile(regex.as_bytes(), b"", false).unwrap().cost.0
    }

    #[test]
    fn a_loop_within_a_loop_costs_the_length_squared() {
        for (regex, power) in [
            ("abc", 0),
            ("(?<!a)b{3}", 0),
            ("a*(?=b)", 1),
            ("(?:(?=a*)a)*", 2),
            ("(?=(?:(?=a*)a)*)", 2),
            (r"(?:(a+)\1)*", 2),
        ] {
            assert_eq!(cost(regex).len() - 1, power, "{regex}: {:?}", cost(regex));
        }
    }

    #[test]
    fn expressions_that_go_back_are_told_from_others() {
        for (regex, back) in [
            ("^a+b*?(c|d)[e-g]$", false),
            ("(?i)\\bx\\d{3}", false),
            ("a(?=b)c", true),
            (r"(a)\1", true),
            ("(?:a++|ab)c", true),
        ] {
            assert_eq!(
                compile(regex.as_bytes(), b"", false).unwrap().plain.is_none(),
                back,
                "{regex}"
            );
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    /// One search within the limits of a script.
    fn search(regex: &str, text: &str, time: Duration) -> Result<Option<usize>, String> {
        let lua = mlua::Lua::new();
        let budget = Budget::watch(&lua).unwrap();
        let mut meter = Meter::new(&Limits { time, ..Limits::default() });
        let compiled = compile(regex.as_bytes(), b"", false)?;
        let (found, _) =
            budget.metered(&lua, &mut meter, || compiled.find(text.as_bytes(), 0, &budget));
        found.map(|found| found.map(|found| found.from))
    }

    /// Each took minutes or longer.
    #[test]
    fn no_search_takes_longer_than_some_seconds() {
        let a = "a".repeat(900_000);
        for (regex, len) in [
            ("(?:(?=a*)a)*", 900_000),
            ("(?:(?=(?:(?=a*)a)*)a)*", 900_000),
            ("(?:(?=(?:(?=a*)a)*)a)*", 2000),
            ("(?:(?=a*)a)*(?=c)", 3000),
            ("(?=a*c)[ab]", 900_000),
            (r"(a*)\1b", 900_000),
            ("(?:a?){900}b", 900_000),
            (r"^(a+)+(?=c)\1$", 900_000),
        ] {
            let began = Instant::now();
            let found = search(regex, &a[..len], Duration::from_secs(1));
            let refused = found.as_ref().is_err_and(|why| why.starts_with("pcre_exec() failed: "));
            assert!(refused || found == Ok(None), "{regex} on {len}: {found:?}");
            assert!(began.elapsed().as_secs() < 20, "{regex}: {:?}", began.elapsed());
        }
    }

    #[test]
    fn honest_searches_are_not_stopped() {
        let text = format!("{} name=value; token=abc.def ", "x ".repeat(40_000));
        for (regex, from) in [
            (r"(?<!\w)token=(\S+)(?=\s)", Some(80_013)),
            (r"(\w+)=(?!value)", Some(80_013)),
            ("token", Some(80_013)),
            (r"(x) (?!\1)", Some(79_998)),
            (r"^(?=.*[A-Z])(?=.*\d)(?=.*\W).{8,}$", None),
            ("(?:(?=x*)x )* name", Some(0)),
        ] {
            let text = if from == Some(0) { &text[79_000..] } else { &text };
            assert_eq!(search(regex, text, LONG), Ok(from), "{regex}");
        }
    }

    #[test]
    fn classes_are_those_of_ascii() {
        for (regex, text, from) in [
            (r"^\d+$", "\u{663}", None),
            (r"^\d+$", "3", Some(0)),
            (r"(?=\w)", "\u{e9}a", Some(2)),
            ("^.$", "\u{e9}", None),
            ("\u{e9}", "a\u{e9}", Some(1)),
        ] {
            assert_eq!(search(regex, text, LONG), Ok(from), "{regex} on {text}");
        }
        let found = compile(b"^.$", b"u", false).unwrap();
        let lua = mlua::Lua::new();
        let budget = Budget::watch(&lua).unwrap();
        assert!(found.find("\u{e9}".as_bytes(), 0, &budget).unwrap().is_some());
        let bytes = compile(b"b", b"", false).unwrap().find(b"\xffb", 0, &budget).unwrap();
        assert_eq!(bytes.map(|found| found.from), Some(1), "what is no UTF-8 is searched, too");
    }

    #[test]
    fn recursion_and_long_expressions_are_refused() {
        let long = format!("(?x)a{}", " ".repeat(SOURCE_BYTES_MAX - 5));
        assert!(compile(long.as_bytes(), b"", false).is_ok());
        for regex in [&format!("{long} "), r"(a\g<1>?)", "(?~ab)"] {
            let error = compile(regex.as_bytes(), b"", false).err().unwrap_or_default();
            assert!(error.starts_with("pcre_compile() failed: "), "{error}");
        }
    }
}
