//! Filters and pages of a list.

use axum::http::StatusCode;
use fancy_regex::Regex;
use serde_json::Value;
use sluicegate_model::{Kind, resource::id_text};
use sluicegate_store::Entry;

use crate::{answer::Answer, query::Args};

/// What a list request shows.
pub(crate) struct Selection<'a> {
    /// How many match, on all pages.
    pub(crate) total: usize,
    pub(crate) shown: Vec<(&'a Entry, Value)>,
    /// Whether this is one page of several.
    pub(crate) paged: bool,
}

/// Picks the entries that the arguments ask for.
pub(crate) fn select<'a>(
    kind: Kind,
    entries: impl Iterator<Item = (&'a Entry, Value)>,
    args: &Args,
) -> Result<Selection<'a>, Answer> {
    let filter = Filter::compile(kind, args);
    let mut shown: Vec<_> = entries.filter(|(_, value)| filter.matches(value)).collect();
    let total = shown.len();
    let page = page(args)?;
    if let Some(page) = &page {
        shown.sort_by_key(|(entry, _)| entry.created);
        let skip = (page.number - 1).saturating_mul(page.size);
        shown = shown.into_iter().skip(skip).take(page.size).collect();
    }
    Ok(Selection { total, shown, paged: page.is_some() })
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

struct Filter<'a> {
    name: Option<Pattern>,
    uri: Option<Pattern>,
    label: Option<&'a str>,
    equal: Vec<(&'a str, &'a str)>,
}

impl<'a> Filter<'a> {
    fn compile(kind: Kind, args: &'a Args) -> Self {
        let fields: &[&str] = match kind {
            Kind::Routes | Kind::StreamRoutes => &["service_id", "upstream_id"],
            _ => &[],
        };
        Self {
            name: args.get("name").map(Pattern::compile),
            uri: args.get("uri").map(Pattern::compile),
            label: args.get("label"),
            equal: args.nested("filter").filter(|(field, _)| fields.contains(field)).collect(),
        }
    }

    fn matches(&self, value: &Value) -> bool {
        let text = |name| value.get(name).and_then(Value::as_str);
        let name = |pattern: &Pattern| text("name").is_some_and(|name| pattern.finds(name));
        let uri = |pattern: &Pattern| {
            let uris = value.get("uris").and_then(Value::as_array).into_iter().flatten();
            let mut all = text("uri").into_iter().chain(uris.filter_map(Value::as_str));
            all.any(|uri| pattern.finds(uri))
        };
        let label = |label| value.get("labels").is_some_and(|labels| labels.get(label).is_some());
        self.name.as_ref().is_none_or(name)
            && self.uri.as_ref().is_none_or(uri)
            && self.label.is_none_or(label)
            && self.equal.iter().all(|(field, expected)| {
                value.get(*field).and_then(id_text).is_some_and(|found| found == *expected)
            })
    }
}

/// A regular expression; a broken one finds nothing.
struct Pattern(Option<Regex>);

impl Pattern {
    fn compile(pattern: &str) -> Self {
        Self(Regex::new(pattern).ok())
    }

    fn finds(&self, text: &str) -> bool {
        self.0.as_ref().is_some_and(|regex| regex.is_match(text).unwrap_or(false))
    }
}

const PAGE_SIZE_MIN: f64 = 10.0;
const PAGE_SIZE_MAX: f64 = 500.0;
