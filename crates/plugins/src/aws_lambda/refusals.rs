//! What AWS refused, by route and kind: the counters behind the log lines.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sluicegate_gateway::plugin::CompileCtx;

/// Refusals and failures of all routes since the gateway began.
#[derive(Default)]
pub struct AwsRefusals(Mutex<BTreeMap<(Box<str>, &'static str), Refusals>>);

/// Those of one route and kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusals {
    /// The route's id.
    pub route: Box<str>,
    /// `throttled`, `signature_mismatch`…: the kinds of the log; `function_error`, `malformed_answer`,
    /// `broken_stream` for what is not AWS's own.
    pub kind: &'static str,
    /// How many.
    pub count: u64,
    /// AWS's id of the last one.
    pub last_request_id: Box<str>,
}

impl AwsRefusals {
    /// Counts one. Beyond [`KINDS_MAX`] pairs, new routes count together as `(others)`.
    pub(super) fn note(&self, route: &str, kind: &'static str, request_id: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.contains_key(&(Box::from(route), kind));
        let route = if known || all.len() < KINDS_MAX { route } else { OTHERS };
        let entry = all.entry((route.into(), kind)).or_insert_with(|| Refusals {
            route: route.into(),
            kind,
            count: 0,
            last_request_id: Box::default(),
        });
        entry.count += 1;
        entry.last_request_id = request_id.into();
    }

    /// All of them, by route and kind.
    pub fn all(&self) -> Vec<Refusals> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }
}

/// Where the running gateway counts them; in a trial, nowhere that anybody looks.
pub(super) fn refusals(ctx: &CompileCtx<'_>) -> Arc<AwsRefusals> {
    ctx.deps.map(|deps| deps.state.get()).unwrap_or_default()
}

/// Pairs of route and kind that are counted apart.
const KINDS_MAX: usize = 1000;
const OTHERS: &str = "(others)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_count_by_route_and_kind_and_their_number_is_bounded() {
        let refusals = AwsRefusals::default();
        refusals.note("a", "throttled", "1");
        refusals.note("a", "throttled", "2");
        refusals.note("b", "throttled", "3");
        let told = |it: &Refusals| (it.route.to_string(), it.count, it.last_request_id.to_string());
        let text = |route: &str, count, id: &str| (route.to_owned(), count, id.to_owned());
        let all: Vec<_> = refusals.all().iter().map(told).collect();
        assert_eq!(all, [text("a", 2, "2"), text("b", 1, "3")]);
        for n in 0..2 * KINDS_MAX {
            refusals.note(&n.to_string(), "throttled", "");
        }
        let all = refusals.all();
        assert_eq!(all.len(), KINDS_MAX + 1);
        assert_eq!(all.iter().map(|it| it.count).sum::<u64>(), 2 * KINDS_MAX as u64 + 3);
    }
}
