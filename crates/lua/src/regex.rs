//! `ngx.re`: regular expressions with a limit on their steps.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use fancy_regex::{Regex, RegexBuilder};

/// Compiled expressions of one core.
#[derive(Default)]
pub(crate) struct Regexes(RefCell<HashMap<Key, Rc<Compiled>>>);

/// The expression and its options.
type Key = (Box<str>, Box<str>);

/// An expression with its options.
pub(crate) struct Compiled {
    pub(crate) regex: Regex,
    /// Matches only where it is asked to begin (option `a`).
    pub(crate) anchored: bool,
}

impl Regexes {
    /// The compiled form.
    pub(crate) fn get(&self, regex: &str, options: &str) -> Result<Rc<Compiled>, String> {
        let key = (Box::from(regex), Box::from(options));
        if let Some(known) = self.0.borrow().get(&key) {
            return Ok(known.clone());
        }
        let compiled = Rc::new(compile(regex, options)?);
        let mut all = self.0.borrow_mut();
        if all.len() >= REGEXES_KEPT {
            all.clear();
        }
        all.insert(key, compiled.clone());
        Ok(compiled)
    }
}

fn compile(regex: &str, options: &str) -> Result<Compiled, String> {
    let (mut flags, mut anchored) = (String::new(), false);
    for option in options.chars() {
        match option {
            'i' | 'm' | 's' | 'x' => flags.push(option),
            'a' => anchored = true,
            // How it is compiled and kept, and what strings are, is not the script's matter here.
            'j' | 'o' | 'u' | 'U' | 'J' => {}
            'd' | 'D' => {}
            other => return Err(format!("unknown flag \"{other}\" (flags \"{options}\")")),
        }
    }
    let source = if flags.is_empty() { regex.to_owned() } else { format!("(?{flags}){regex}") };
    let regex = RegexBuilder::new(&source)
        .backtrack_limit(BACKTRACK_MAX)
        .delegate_size_limit(SIZE_MAX)
        .build()
        .map_err(|error| format!("pcre_compile() failed: {error}"))?;
    Ok(Compiled { regex, anchored })
}

/// One match: where it is, and every group with its name.
pub(crate) struct Match {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) groups: Vec<Option<(usize, usize)>>,
}

impl Compiled {
    /// The first match from byte `at` on.
    pub(crate) fn find(&self, subject: &str, at: usize) -> Result<Option<Match>, String> {
        if at > subject.len() {
            return Ok(None);
        }
        let at = (at..=subject.len()).find(|at| subject.is_char_boundary(*at)).unwrap_or(at);
        let found = self.regex.captures_from_pos(subject, at);
        let found = found.map_err(|error| format!("pcre_exec() failed: {error}"))?;
        let Some(captures) = found else { return Ok(None) };
        let Some(whole) = captures.get(0) else { return Ok(None) };
        if self.anchored && whole.start() != at {
            return Ok(None);
        }
        let groups = (0..captures.len())
            .map(|n| captures.get(n).map(|group| (group.start(), group.end())))
            .collect();
        Ok(Some(Match { from: whole.start(), to: whole.end(), groups }))
    }

    /// The names of groups with their numbers.
    pub(crate) fn names(&self) -> impl Iterator<Item = (usize, &str)> {
        self.regex.capture_names().enumerate().filter_map(|(n, name)| Some((n, name?)))
    }
}

/// Puts what `template` says in the place of a match: `$1`, `${1}`, `$0`, `$$`.
pub(crate) fn expand(
    template: &str,
    subject: &str,
    found: &Match,
    out: &mut String,
) -> Result<(), String> {
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (digits, after) = match rest.strip_prefix('{') {
            Some(inner) => {
                let end =
                    inner.find('}').ok_or("attempt to use an invalid capturing group name")?;
                (&inner[..end], &inner[end + 1..])
            }
            None => {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                rest.split_at(end)
            }
        };
        let number: usize = digits.parse().map_err(|_| {
            format!("attempt to use named capturing variable \"{digits}\" (named captures not supported yet)")
        })?;
        if let Some(Some((from, to))) = found.groups.get(number) {
            out.push_str(&subject[*from..*to]);
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(())
}

/// Compiled expressions kept per core; all are dropped when there are more.
const REGEXES_KEPT: usize = 1024;

/// Steps back of one search, as `lua_regex_match_limit` would have it.
const BACKTRACK_MAX: usize = 500_000;

/// Bytes of a compiled expression.
const SIZE_MAX: usize = 1 << 20;
