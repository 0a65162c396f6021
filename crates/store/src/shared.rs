//! What engines that hold everything in memory share: the entries, the recent changes, watches.
//!
//! Reads and watches never touch a disk. A watch has no queue of its own: it remembers a revision
//! and reads on in the one bounded history, so a slow reader costs nothing and is told
//! ([`StoreError::Compacted`]) when it fell behind too far.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use tokio::sync::watch;

use crate::{Change, Entry, Event, Listing, StoreError};

/// Entries and history behind one lock, held only for moments and never across an await.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    /// The last revision whose change is visible; wakes watches.
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Arc<str>, Entry>,
    /// The last revision that changed something.
    revision: u64,
    history: VecDeque<Event>,
    history_bytes: usize,
    /// Every change from this revision on is in `history`.
    oldest: u64,
    /// How often everything was replaced.
    era: u64,
}

impl Shared {
    pub(crate) fn new(entries: BTreeMap<Arc<str>, Entry>, revision: u64) -> Arc<Self> {
        let state = State { entries, revision, oldest: revision + 1, ..State::default() };
        Arc::new(Self { state: RwLock::new(state), revision: watch::Sender::new(revision) })
    }

    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.state().entries.get(key).cloned()
    }

    pub(crate) fn list(&self, prefix: &str) -> Listing {
        self.state().list(prefix)
    }

    pub(crate) fn snapshot_and_watch(self: &Arc<Self>, prefix: &str) -> (Listing, Watch) {
        let state = self.state();
        let listing = state.list(prefix);
        let watch = self.watch_unchecked(&state, prefix, listing.revision + 1);
        (listing, watch)
    }

    pub(crate) fn watch(self: &Arc<Self>, from: u64) -> Result<Watch, StoreError> {
        let state = self.state();
        if from < state.oldest {
            return Err(StoreError::Compacted { oldest: state.oldest });
        }
        Ok(self.watch_unchecked(&state, "", from))
    }

    fn watch_unchecked(self: &Arc<Self>, state: &State, prefix: &str, next: u64) -> Watch {
        let revision = self.revision.subscribe();
        let (shared, prefix, era) = (Arc::clone(self), prefix.into(), state.era);
        Watch { shared, revision, prefix, next, era }
    }

    /// Makes committed changes visible, all at once.
    ///
    /// Invariant: revisions in `events` do not fall and are above every one applied before; so all
    /// changes of one revision come in one call.
    pub(crate) fn apply(&self, events: impl IntoIterator<Item = Event>) {
        self.apply_up_to(events, 0);
    }

    /// As [`apply`](Self::apply), and moves on to `revision`, which may have changed nothing that
    /// is held here.
    pub(crate) fn apply_up_to(&self, events: impl IntoIterator<Item = Event>, revision: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            state.apply(event);
        }
        state.revision = state.revision.max(revision);
        let revision = state.revision;
        drop(state);
        self.revision.send_replace(revision);
    }

    /// Holds something else from now on, whose revisions have nothing to do with those before:
    /// every watch ends with [`StoreError::Compacted`].
    pub(crate) fn replace(&self, entries: BTreeMap<Arc<str>, Entry>, revision: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let era = state.era + 1;
        *state = State { entries, revision, oldest: revision + 1, era, ..State::default() };
        drop(state);
        self.revision.send_replace(revision);
    }

    /// The last revision that is visible.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Tells of every new [`revision`](Self::revision).
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        // Nothing under the lock can panic half-way through a change, so a poisoned one is whole.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn list(&self, prefix: &str) -> Listing {
        let entries = self
            .entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect();
        Listing { revision: self.revision, entries }
    }

    fn apply(&mut self, event: Event) {
        self.revision = event.revision;
        match &event.change {
            Change::Put(entry) => self.entries.insert(Arc::clone(&event.key), entry.clone()),
            Change::Delete => self.entries.remove(&event.key),
        };
        self.history_bytes += weight(&event);
        self.history.push_back(event);
        while self.history.len() > HISTORY_EVENTS_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(forgotten) = self.history.pop_front() else { break };
            self.history_bytes -= weight(&forgotten);
            self.oldest = forgotten.revision + 1;
        }
    }

    fn since(&self, from: u64, prefix: &str) -> Result<Vec<Event>, StoreError> {
        if from < self.oldest {
            return Err(StoreError::Compacted { oldest: self.oldest });
        }
        let start = self.history.partition_point(|event| event.revision < from);
        let news = self.history.range(start..).filter(|event| event.key.starts_with(prefix));
        Ok(news.cloned().collect())
    }
}

/// Changes in revision order, from where it was started on.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    revision: watch::Receiver<u64>,
    prefix: Box<str>,
    /// The first revision not delivered yet.
    next: u64,
    era: u64,
}

impl Watch {
    /// The changes since the last call, at least one; waits for one when there is none.
    ///
    /// Changes that were committed together come together. Dropping the future loses nothing.
    /// After an error the watch is of no more use: start a new one.
    pub async fn changes(&mut self) -> Result<Vec<Event>, StoreError> {
        loop {
            // Marked as seen before reading, so that a change in between wakes the wait below.
            self.revision.borrow_and_update();
            let (events, revision) = {
                let state = self.shared.state();
                if state.era != self.era {
                    return Err(StoreError::Compacted { oldest: state.oldest });
                }
                (state.since(self.next, &self.prefix)?, state.revision)
            };
            self.next = self.next.max(revision + 1);
            if !events.is_empty() {
                return Ok(events);
            }
            self.revision.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }

    /// Every change up to this revision has been delivered.
    pub fn delivered(&self) -> u64 {
        self.next - 1
    }
}

/// What an event in the history is counted as, in bytes.
fn weight(event: &Event) -> usize {
    let value = match &event.change {
        Change::Put(entry) => entry.value.len(),
        Change::Delete => 0,
    };
    size_of::<Event>() + event.key.len() + value
}

/// How many changes are remembered for watches.
pub(crate) const HISTORY_EVENTS_MAX: usize = 4_096;
/// How many bytes of changes are remembered for watches.
const HISTORY_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn put(revision: u64, len: usize) -> Event {
        let key: Arc<str> = "/routes/1".into();
        let value = vec![b' '; len].into();
        let entry = Entry { key: Arc::clone(&key), value, created: 1, modified: revision };
        Event { revision, key, change: Change::Put(entry) }
    }

    #[tokio::test]
    async fn history_is_bounded_in_events_and_in_bytes() {
        for (len, kept) in [(1, HISTORY_EVENTS_MAX as u64), (1 << 20, 63)] {
            let shared = Shared::new(BTreeMap::new(), 0);
            let mut watch = shared.watch(1).unwrap();
            shared.apply((1..=kept).map(|revision| put(revision, len)));
            assert_eq!(shared.watch(1).unwrap().changes().await.unwrap().len() as u64, kept);
            shared.apply([put(kept + 1, len)]);
            for error in [shared.watch(1).unwrap_err(), watch.changes().await.unwrap_err()] {
                assert!(matches!(error, StoreError::Compacted { oldest: 2 }), "{error} len={len}");
            }
            assert_eq!(shared.watch(2).unwrap().changes().await.unwrap().len() as u64, kept);
        }
    }
}
