//! Making a change once, however often it has to be sent.
//!
//! A host that dies or falls silent leaves open whether it made a change. What stands at the key
//! afterwards does not tell: another gateway may have written the same, or over it. And a request
//! in the buffers of a stopped machine may be carried out much later. So two keys beside the
//! resources take part:
//!
//! - Every change puts a number of its own at [`MARK`], in its transaction.
//! - Every change holds only while [`FENCE`] is what it was when the change began.
//!
//! When an answer stays away, the fence is put: no earlier sending is carried out after that. The
//! revisions up to it then show whether the number came; if it did not, the change begins anew.

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    client::{Client, Failure},
    wire::{Target, Txn, WatchLine, compare, range_end, text},
};

/// A change to make.
pub(super) struct Transaction {
    /// What has to hold.
    pub(super) compare: Vec<Value>,
    /// What it does.
    pub(super) success: Vec<Value>,
    /// What it asks for where something does not hold.
    pub(super) failure: Vec<Value>,
    /// About how large it is.
    pub(super) bytes: usize,
}

/// How a change ended.
pub(super) enum Outcome {
    /// etcd answered: done, or refused because something does not hold.
    Answered(Txn),
    /// It was done at this revision; the answer did not come.
    Made(u64),
}

impl Transaction {
    /// The request for a change that began after the revision `since`.
    pub(super) fn body(&self, prefix: &str, mark: &str, since: u64) -> Value {
        let fence = format!("{prefix}{FENCE}");
        let mark_put = json!({"key": text(format!("{prefix}{MARK}")), "value": text(mark)});
        let (mut holds, mut success, mut failure) =
            (self.compare.clone(), self.success.clone(), self.failure.clone());
        holds.push(compare(&fence, Target::NotAfter(since)));
        success.push(json!({"request_put": mark_put}));
        failure.push(json!({"request_range": {"key": text(&fence)}}));
        json!({"compare": holds, "success": success, "failure": failure})
    }
}

/// The revision of the fence that a refused change has met.
pub(super) fn fence_met(refused: &Txn) -> u64 {
    let range = refused.responses.last().and_then(|done| done.response_range.as_ref());
    range.and_then(|range| range.kvs.first()).map_or(0, |kv| kv.mod_revision)
}

/// The request that puts the fence. It may be sent many times.
pub(super) fn put_fence(prefix: &str) -> Value {
    let put = json!({"key": text(format!("{prefix}{FENCE}")), "value": text("")});
    json!({"success": [{"request_put": put}]})
}

/// The revision at which a change was done that began after `since` and cannot be done after
/// `fence`; `None` if it was not.
pub(super) async fn find_mark(
    client: &Client,
    prefix: &str,
    mark: &str,
    (since, fence): (u64, u64),
    deadline: Instant,
) -> Result<Option<u64>, Failure> {
    let folder = format!("{prefix}{FOLDER}");
    let key = format!("{prefix}{MARK}");
    let body = json!({"create_request": {
        "key": text(&folder), "range_end": text(range_end(&folder)),
        "start_revision": (since + 1).to_string(),
    }});
    let host = client.host();
    let late = || client.no_answer(host, "its watch does not tell what was done".to_owned());
    let limit = deadline.saturating_duration_since(Instant::now());
    let mut lines = client.stream(host, "/v3/watch", &body, limit).await?;
    loop {
        let line = timeout_at(deadline, lines.next()).await.map_err(|_| late())?;
        let line = line.map_err(|reason| client.no_answer(host, reason))?.ok_or_else(late)?;
        let watched = match serde_json::from_slice::<WatchLine>(&line) {
            Ok(WatchLine { error: Some(refusal), .. }) => {
                return Err(client.stream_refused(host, refusal));
            }
            Ok(line) => line.result.unwrap_or_default(),
            Err(_) => return Err(late()),
        };
        if watched.compact_revision > 0 {
            return Err(late());
        }
        if watched.canceled {
            return Err(client.watch_cancelled(host, watched.cancel_reason));
        }
        for event in &watched.events {
            if event.kv.key == key.as_bytes() && event.kv.value == mark.as_bytes() {
                return Ok(Some(event.kv.mod_revision));
            }
            if event.kv.mod_revision >= fence {
                return Ok(None);
            }
        }
    }
}

/// The folder of keys that are no resources but ours.
pub(super) const FOLDER: &str = "/sluicegate/";
/// Put by every change, with the change's own number.
const MARK: &str = "/sluicegate/write";
/// Put when an answer stays away: no change that began before is carried out after it.
const FENCE: &str = "/sluicegate/fence";
