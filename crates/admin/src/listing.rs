//! Filters and pages of a list.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;
use sluicegate_model::{Kind, resource::id_text};
use sluicegate_store::Entry;
use tokio::sync::Semaphore;

use crate::{answer::Answer, query::Args};

/// What a list request shows.
pub(crate) struct Selection {
    /// How many match, on all pages.
    pub(crate) total: usize,
    pub(crate) shown: Vec<(Entry, Value)>,
    /// Whether this is one page of several.
    pub(crate) paged: bool,
}

/// Picks the entries that the arguments ask for. `searches` has a permit for each that may look
/// through entries by a pattern at once.
pub(crate) async fn select(
    kind: Kind,
    entries: Vec<(Entry, Value)>,
    args: &Args,
    searches: &Arc<Semaphore>,
) -> Result<Selection, Answer> {
    let filter = Filter::read(kind, args)?;
    let mut shown = match filter.has_patterns() {
        false => filter.apply(entries, None)?,
        true => search(filter, entries, searches).await?,
    };
    let total = shown.len();
    let page = page(args)?;
    if let Some(page) = &page {
        shown.sort_by_key(|(entry, _)| entry.created);
        let skip = (page.number - 1).saturating_mul(page.size);
        shown = shown.into_iter().skip(skip).take(page.size).collect();
    }
    Ok(Selection { total, shown, paged: page.is_some() })
}

/// Filters where it holds up nobody else: a pattern is a program of the caller's.
async fn search(
    filter: Filter,
    entries: Vec<(Entry, Value)>,
    searches: &Arc<Semaphore>,
) -> Result<Vec<(Entry, Value)>, Answer> {
    let busy = || {
        let text = "too many lists are being filtered, try again later";
        Answer::error(StatusCode::SERVICE_UNAVAILABLE, text)
    };
    let permit = Arc::clone(searches).acquire_owned();
    let Ok(Ok(permit)) = tokio::time::timeout(SEARCH_TIME_MAX, permit).await else {
        return Err(busy());
    };
    let found = tokio::task::spawn_blocking(move || {
        // Held to the end, whether or not someone still waits for it.
        let _permit = permit;
        filter.apply(entries, Some(Instant::now() + SEARCH_TIME_MAX))
    });
    match tokio::time::timeout(SEARCH_TIME_MAX + SEARCH_GRACE, found).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Err(busy()),
        Err(_) => Err(takes_too_long()),
    }
}

fn takes_too_long() -> Answer {
    Answer::refused("the patterns of name and uri take too long: simplify them")
}

/// Which page is asked for, if both `page` and `page_size` are numbers.
fn page(args: &Args) -> Result<Option<Page>, Answer> {
    let number =
        |name| args.get(name)?.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    let (Some(page), Some(size)) = (number("page"), number("page_size")) else { return Ok(None) };
    if !(PAGE_SIZE_MIN..=PAGE_SIZE_MAX).contains(&size) {
        let text = "page_size must be between 10 and 500";
        return Err(Answer::bare(StatusCode::BAD_REQUEST, text));
    }
    // Casts saturate, so a page beyond counting is an empty one.
    Ok(Some(Page { number: page.max(1.0) as usize, size: size as usize }))
}

struct Page {
    /// From 1.
    number: usize,
    size: usize,
}

struct Filter {
    name: Option<String>,
    uri: Option<String>,
    label: Option<String>,
    equal: Vec<(String, String)>,
}

impl Filter {
    fn read(kind: Kind, args: &Args) -> Result<Self, Answer> {
        let fields: &[&str] = match kind {
            Kind::Routes | Kind::StreamRoutes => &["service_id", "upstream_id"],
            _ => &[],
        };
        let pattern = |name: &str| {
            let pattern = args.get(name).map(str::to_owned);
            match pattern.as_deref().map(check_pattern) {
                Some(Err(why)) => Err(Answer::refused(format!("invalid argument {name}: {why}"))),
                _ => Ok(pattern),
            }
        };
        let equal = args.nested("filter").filter(|(field, _)| fields.contains(field));
        Ok(Self {
            name: pattern("name")?,
            uri: pattern("uri")?,
            label: args.get("label").map(str::to_owned),
            equal: equal.map(|(field, value)| (field.to_owned(), value.to_owned())).collect(),
        })
    }

    fn has_patterns(&self) -> bool {
        self.name.is_some() || self.uri.is_some()
    }

    /// Those that match, unless the patterns take more time than there is until `end`.
    fn apply(
        &self,
        mut entries: Vec<(Entry, Value)>,
        end: Option<Instant>,
    ) -> Result<Vec<(Entry, Value)>, Answer> {
        let [name, uri] =
            [&self.name, &self.uri].map(|pattern| pattern.as_deref().map(Pattern::compile));
        let mut too_long = false;
        entries.retain(|(_, value)| {
            too_long = too_long || end.is_some_and(|end| Instant::now() >= end);
            if too_long {
                return false;
            }
            let mut finds = |pattern: &Pattern, text: &str| {
                pattern.finds(text).unwrap_or_else(|TooLong| {
                    too_long = true;
                    false
                })
            };
            let text = |name| value.get(name).and_then(Value::as_str);
            let by_label =
                |label: &String| value.get("labels").is_some_and(|all| all.get(label).is_some());
            self.label.as_ref().is_none_or(by_label)
                && self.equal.iter().all(|(field, expected)| {
                    value.get(field).and_then(id_text).is_some_and(|found| found == *expected)
                })
                && name
                    .as_ref()
                    .is_none_or(|pattern| text("name").is_some_and(|name| finds(pattern, name)))
                && uri.as_ref().is_none_or(|pattern| {
                    let uris = value.get("uris").and_then(Value::as_array).into_iter().flatten();
                    let mut all = text("uri").into_iter().chain(uris.filter_map(Value::as_str));
                    all.any(|uri| finds(pattern, uri))
                })
        });
        if too_long { Err(takes_too_long()) } else { Ok(entries) }
    }
}

/// Refuses patterns whose work neither their length nor their backtracking tells: counted
/// repetitions within each other, and groups that are called like functions.
// Differs: APISIX takes any pattern and runs it to its end, other requests waiting.
fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("a pattern has at most {PATTERN_BYTES_MAX} bytes"));
    }
    if GROUP_CALLS.iter().any(|call| pattern.contains(call)) {
        return Err("a pattern cannot call groups".to_owned());
    }
    let counts = pattern.split('{').skip(1).filter_map(|rest| {
        let counts = rest.split('}').next()?.split(',').map(str::trim);
        // One that is too large to be read is too large.
        let digits = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        counts.filter(digits).map(|count| count.parse().unwrap_or(u64::MAX)).max()
    });
    let repeats = counts.fold(1u64, |product, count| product.saturating_mul(count.max(1)));
    if repeats > PATTERN_REPEATS_MAX {
        return Err(format!("a pattern repeats at most {PATTERN_REPEATS_MAX} times by count"));
    }
    Ok(())
}

/// A regular expression; a broken one finds nothing.
struct Pattern(Option<Regex>);

struct TooLong;

impl Pattern {
    fn compile(pattern: &str) -> Self {
        let mut builder = RegexBuilder::new(pattern);
        builder.backtrack_limit(BACKTRACKS_MAX).delegate_size_limit(PATTERN_SIZE_MAX);
        Self(builder.build().ok())
    }

    fn finds(&self, text: &str) -> Result<bool, TooLong> {
        let Some(regex) = &self.0 else { return Ok(false) };
        regex.is_match(text).map_err(|_| TooLong)
    }
}

const PAGE_SIZE_MIN: f64 = 10.0;
const PAGE_SIZE_MAX: f64 = 500.0;
/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 512;
/// How large a pattern may become compiled, in bytes.
const PATTERN_SIZE_MAX: usize = 1 << 20;
/// What the counts of a pattern's repetitions, multiplied, may come to.
const PATTERN_REPEATS_MAX: u64 = 10_000;
/// How often a pattern may go back to try another way through one text.
const BACKTRACKS_MAX: usize = 10_000;
/// How long all patterns of a request may take over all entries, and how long it waits for others.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(1);
/// How much longer the last text may take before the request is answered without it.
const SEARCH_GRACE: Duration = Duration::from_millis(500);
/// How many lists are filtered by patterns at once.
pub(crate) const SEARCHES_MAX: usize = 2;
/// How patterns call groups.
const GROUP_CALLS: &[&str] = &[
    "\\g", "(?R", "(?&", "(?P>", "(?+", "(?-1", "(?0", "(?1", "(?2", "(?3", "(?4", "(?5", "(?6",
    "(?7", "(?8", "(?9",
];
