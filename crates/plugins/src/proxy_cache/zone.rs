//! A zone: which answers are kept, under which keys, within which bounds.
//!
//! Every core uses the same zones. A look takes a read lock on one of a few shards, for as long as it
//! takes to find a key in a table. What is in a table is never changed, only replaced, so that a look
//! holds a whole answer whatever happens to the table meanwhile.
//!
//! Room is made by second chance: keys are gone through in the order they came, and those that were
//! asked for since the last time stay.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use bytes::Bytes;
use http::StatusCode;
use sluicegate_gateway::http::Headers;

use super::rules::{self, Digest};

/// A cache of answers.
pub(super) struct Zone {
    shards: Box<[RwLock<Shard>]>,
    memory: Budget,
    /// Bytes of files; without bound where there are none.
    disk: Budget,
    /// Bytes of bodies that are on their way into this zone.
    pub(super) gathering: AtomicU64,
    next_id: AtomicU64,
    /// Whose turn it is to make room.
    turn: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    slots: HashMap<Digest, Arc<Slot>>,
    /// In the order in which they are looked at when room is needed. An entry whose number is not its
    /// slot's any more counts for nothing.
    queue: VecDeque<(Digest, u64)>,
}

/// What is kept under a key.
pub(super) struct Slot {
    id: u64,
    /// The request fields that answers depend on.
    vary: Box<[Box<str>]>,
    /// The oldest first.
    variants: Vec<Arc<Variant>>,
    used: AtomicBool,
}

/// An answer.
pub(super) struct Variant {
    /// See [`rules::variant`].
    pub(super) signature: Digest,
    pub(super) times: Times,
    pub(super) kept: Kept,
}

/// How old an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// When it came, in milliseconds since 1970.
    pub(super) stored_ms: u64,
    /// How long it is good from then on.
    pub(super) ttl_ms: u64,
    /// How old it was then.
    pub(super) age_s: u64,
}

impl Times {
    /// How long it has been here.
    pub(super) fn resident_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.stored_ms)
    }

    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        self.resident_ms(now_ms) >= self.ttl_ms
    }

    /// Its age in seconds.
    pub(super) fn age_s(&self, now_ms: u64) -> u64 {
        self.age_s + self.resident_ms(now_ms) / 1000
    }
}

/// Where an answer is.
pub(super) enum Kept {
    Memory {
        status: StatusCode,
        headers: Headers,
        headers_bytes: usize,
        body: Bytes,
    },
    /// In the file of this name, with so many bytes.
    Disk {
        name: Digest,
        bytes: u64,
    },
}

impl Variant {
    fn memory(&self) -> u64 {
        let bytes = match &self.kept {
            Kept::Memory { headers_bytes, body, .. } => headers_bytes + body.len(),
            Kept::Disk { .. } => 0,
        };
        (bytes + VARIANT_BYTES) as u64
    }

    fn disk(&self) -> u64 {
        match &self.kept {
            Kept::Memory { .. } => 0,
            Kept::Disk { bytes, .. } => bytes.next_multiple_of(BLOCK_BYTES),
        }
    }

    fn file(&self) -> Option<Digest> {
        match &self.kept {
            Kept::Memory { .. } => None,
            Kept::Disk { name, .. } => Some(*name),
        }
    }
}

impl Slot {
    /// The variant that a request asks for.
    pub(super) fn find(&self, request: &Headers, post: bool) -> Option<&Arc<Variant>> {
        let signature = rules::variant(&self.vary, request, post);
        self.variants.iter().find(|variant| variant.signature == signature)
    }

    fn weights(&self) -> (u64, u64) {
        let names: usize = self.vary.iter().map(|name| name.len()).sum();
        let own = (SLOT_BYTES + names) as u64;
        self.variants.iter().fold((own, 0), |(memory, disk), variant| {
            (memory + variant.memory(), disk + variant.disk())
        })
    }

    fn is_long_over(&self, now_ms: u64) -> bool {
        let long_ago = now_ms.saturating_sub(OVER_KEPT_MS);
        self.variants.iter().all(|variant| variant.times.is_over(long_ago))
    }

    fn files(&self) -> impl Iterator<Item = Digest> {
        self.variants.iter().filter_map(|variant| variant.file())
    }
}

struct Budget {
    max: u64,
    used: AtomicU64,
}

impl Budget {
    fn new(max: u64) -> Self {
        Self { max, used: AtomicU64::new(0) }
    }

    fn is_over(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.max
    }
}

impl Zone {
    /// An empty zone.
    pub(super) fn new(memory_max: u64, disk_max: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            memory: Budget::new(memory_max),
            disk: Budget::new(disk_max),
            gathering: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    /// Bytes that it may keep in memory.
    pub(super) fn memory_max(&self) -> u64 {
        self.memory.max
    }

    /// Bytes that it may keep in files.
    pub(super) fn disk_max(&self) -> u64 {
        self.disk.max
    }

    fn shard(&self, key: &Digest) -> &RwLock<Shard> {
        &self.shards[usize::from(key[0]) % self.shards.len()]
    }

    /// What is kept under a key.
    pub(super) fn get(&self, key: &Digest) -> Option<Arc<Slot>> {
        let shard = self.shard(key).read().unwrap_or_else(PoisonError::into_inner);
        let slot = shard.slots.get(key)?.clone();
        drop(shard);
        // Written only where it changes something: the line stays in every core's cache.
        if !slot.used.load(Ordering::Relaxed) {
            slot.used.store(true, Ordering::Relaxed);
        }
        Some(slot)
    }

    /// Keeps an answer; the files that nothing refers to any more.
    pub(super) fn insert(
        &self,
        key: Digest,
        vary: Box<[Box<str>]>,
        variant: Variant,
        now_ms: u64,
    ) -> Vec<Digest> {
        let mut gone = Vec::new();
        let file = variant.file();
        let variant = Arc::new(variant);
        let mut shard = write(self.shard(&key));
        let before = shard.slots.get(&key).cloned();
        let mut variants = match &before {
            // Under other fields the variants of before cannot be found.
            Some(slot) if slot.vary == vary => slot.variants.clone(),
            _ => Vec::new(),
        };
        variants.retain(|other| other.signature != variant.signature);
        if variants.len() >= VARIANTS_MAX {
            variants.remove(0);
        }
        variants.push(variant);
        let id = match &before {
            Some(slot) => slot.id,
            None => self.next_id.fetch_add(1, Ordering::Relaxed),
        };
        let mut slot = Slot { id, vary, variants, used: AtomicBool::new(false) };
        let fits = |slot: &Slot| {
            let (memory, disk) = slot.weights();
            memory <= self.memory.max && disk <= self.disk.max
        };
        while !fits(&slot) {
            if slot.variants.len() == 1 {
                // Nothing changes but that its file goes.
                drop(shard);
                return file.into_iter().collect();
            }
            slot.variants.remove(0);
        }
        let slot = Arc::new(slot);
        self.count(&slot, true);
        shard.slots.insert(key, slot.clone());
        match before {
            Some(before) => {
                self.count(&before, false);
                let kept: Vec<Digest> = slot.files().collect();
                gone.extend(before.files().filter(|file| !kept.contains(file)));
            }
            None => shard.queue.push_back((key, id)),
        }
        for _ in 0..LOOKS {
            self.look(&mut shard, now_ms, None, &mut gone);
        }
        drop(shard);
        self.make_room(&key, now_ms, &mut gone);
        gone
    }

    /// Forgets what is kept under a key. `None`: nothing is; otherwise the files that were its.
    pub(super) fn purge(&self, key: &Digest) -> Option<Vec<Digest>> {
        let slot = write(self.shard(key)).slots.remove(key)?;
        self.count(&slot, false);
        Some(slot.files().collect())
    }

    /// Takes out answers until there is room for what is in; not the one that just came.
    fn make_room(&self, newest: &Digest, now_ms: u64, gone: &mut Vec<Digest>) {
        let mut idle = 0;
        // The first round may only find what was asked for since the last one.
        while (self.memory.is_over() || self.disk.is_over()) && idle < 2 * self.shards.len() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.shards.len();
            let mut shard = write(&self.shards[turn]);
            let looks = shard.queue.len();
            let took = (0..looks).any(|_| self.look(&mut shard, now_ms, Some(newest), gone));
            idle = if took { 0 } else { idle + 1 };
        }
    }

    /// Looks at the first of a shard's queue, and takes it out if it is long over, or, where room has to
    /// be made for `newest`, if nobody asked for it since the last look. Says whether it did.
    fn look(
        &self,
        shard: &mut Shard,
        now_ms: u64,
        newest: Option<&Digest>,
        gone: &mut Vec<Digest>,
    ) -> bool {
        let Some((key, id)) = shard.queue.pop_front() else { return false };
        let Some(slot) = shard.slots.get(&key).filter(|slot| slot.id == id) else { return false };
        let goes = match newest {
            Some(newest) if *newest == key => false,
            Some(_) if !slot.used.swap(false, Ordering::Relaxed) => true,
            _ => slot.is_long_over(now_ms),
        };
        if !goes {
            shard.queue.push_back((key, id));
            return false;
        }
        if let Some(slot) = shard.slots.remove(&key) {
            self.count(&slot, false);
            gone.extend(slot.files());
        }
        true
    }

    fn count(&self, slot: &Slot, more: bool) {
        let (memory, disk) = slot.weights();
        for (budget, bytes) in [(&self.memory, memory), (&self.disk, disk)] {
            match more {
                true => budget.used.fetch_add(bytes, Ordering::Relaxed),
                false => budget.used.fetch_sub(bytes, Ordering::Relaxed),
            };
        }
    }

    #[cfg(test)]
    fn used(&self) -> (u64, u64) {
        (self.memory.used.load(Ordering::Relaxed), self.disk.used.load(Ordering::Relaxed))
    }
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}

/// Locks of a zone.
const SHARDS: usize = 16;
/// Answers under one key, as in APISIX; one more takes the place of the oldest.
const VARIANTS_MAX: usize = 64;
/// What an answer takes besides its fields and body, and what a key does; rounded up.
const VARIANT_BYTES: usize = 256;
const SLOT_BYTES: usize = 256;
/// Files take whole blocks.
const BLOCK_BYTES: u64 = 4096;
/// Keys looked at for each answer that comes.
const LOOKS: usize = 2;
/// For so long it is known of an answer that it was kept and is over.
const OVER_KEPT_MS: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Digest {
        let mut parts = rules::Parts::new();
        parts.add(&n.to_le_bytes());
        parts.digest()
    }

    fn none() -> Box<[Box<str>]> {
        Box::default()
    }

    fn answer(bytes: usize, signature: Digest) -> Variant {
        Variant {
            signature,
            times: Times { stored_ms: 0, ttl_ms: 1000, age_s: 0 },
            kept: Kept::Memory {
                status: StatusCode::OK,
                headers: Headers::new(),
                headers_bytes: 0,
                body: vec![7; bytes].into(),
            },
        }
    }

    fn plain(bytes: usize) -> Variant {
        answer(bytes, rules::variant(&[], &Headers::new(), false))
    }

    fn has(zone: &Zone, n: u64) -> bool {
        zone.get(&key(n)).is_some_and(|slot| slot.find(&Headers::new(), false).is_some())
    }

    #[test]
    fn a_zone_never_keeps_more_than_it_may_and_keeps_what_is_asked_for() {
        let max = 1 << 20;
        let zone = Zone::new(max, u64::MAX);
        for n in 0..1000 {
            zone.insert(key(n), none(), plain(10_000), 0);
            assert!(zone.used().0 <= max);
            assert!(has(&zone, 0), "what everybody asks for is still there after {n}");
        }
        let kept = (0..1000).filter(|n| has(&zone, *n)).count();
        assert!((80..=100).contains(&kept), "{kept}");
        assert!(has(&zone, 999));
        for n in 0..1000 {
            zone.purge(&key(n));
        }
        assert_eq!(zone.used(), (0, 0));
    }

    #[test]
    fn what_is_larger_than_the_zone_is_not_kept() {
        let zone = Zone::new(10_000, u64::MAX);
        let own = (VARIANT_BYTES + SLOT_BYTES) as u64;
        zone.insert(key(1), none(), plain(10_000 - usize::try_from(own).unwrap()), 0);
        assert!(has(&zone, 1));
        zone.insert(key(2), none(), plain(10_001 - usize::try_from(own).unwrap()), 0);
        assert!(!has(&zone, 2));
        assert!(has(&zone, 1));
    }

    #[test]
    fn a_file_that_nothing_refers_to_is_told_once() {
        let zone = Zone::new(1 << 20, 3 * BLOCK_BYTES);
        let file =
            |n: u64, bytes: u64| Variant { kept: Kept::Disk { name: key(n), bytes }, ..plain(0) };
        let none_gone = Vec::<Digest>::new();
        assert_eq!(zone.insert(key(1), none(), file(1, 1), 0), none_gone);
        assert_eq!(zone.insert(key(1), none(), file(1, 2), 0), none_gone, "it has its name");
        assert_eq!(zone.insert(key(2), none(), file(2, BLOCK_BYTES + 1), 0), none_gone);
        assert_eq!(zone.used().1, 3 * BLOCK_BYTES);
        let gone = zone.insert(key(3), none(), file(3, 1), 0);
        assert!(gone == [key(1)] || gone == [key(2)], "one made room");
        assert_eq!(zone.insert(key(4), none(), file(4, 4 * BLOCK_BYTES), 0), [key(4)]);
        assert_eq!(zone.purge(&key(3)), Some(vec![key(3)]));
        assert_eq!(zone.purge(&key(3)), None);
    }

    #[test]
    fn variants_of_a_key_are_kept_up_to_their_number() {
        let zone = Zone::new(1 << 20, u64::MAX);
        let vary = || -> Box<[Box<str>]> { Box::new(["a".into()]) };
        let request = |n: usize| {
            let mut headers = Headers::new();
            headers.append("A", n.to_string().as_bytes());
            headers
        };
        for n in 0..=VARIANTS_MAX {
            let signature = rules::variant(&vary(), &request(n), false);
            zone.insert(key(1), vary(), answer(1, signature), 0);
        }
        let slot = zone.get(&key(1)).unwrap();
        for n in 0..=VARIANTS_MAX {
            assert_eq!(slot.find(&request(n), false).is_some(), n > 0, "{n}");
            assert!(slot.find(&request(n), true).is_none(), "a POST asks for another one");
        }
        zone.insert(key(1), none(), plain(1), 0);
        let slot = zone.get(&key(1)).unwrap();
        assert!(slot.variants.len() == 1, "what cannot be found any more goes");
    }

    #[test]
    fn what_is_long_over_goes_by_itself() {
        let zone = Zone::new(1 << 30, u64::MAX);
        for n in 0..100 {
            zone.insert(key(n), none(), plain(1), 0);
        }
        let late = OVER_KEPT_MS + 2000;
        for n in 100..1000 {
            let mut fresh = plain(1);
            fresh.times.stored_ms = late;
            zone.insert(key(n), none(), fresh, late);
        }
        assert_eq!((0..100).filter(|n| has(&zone, *n)).count(), 0);
        assert_eq!((100..1000).filter(|n| has(&zone, *n)).count(), 900);
    }

    #[test]
    fn an_answer_is_good_until_its_time_is_over() {
        let times = Times { stored_ms: 5_000, ttl_ms: 2_000, age_s: 3 };
        for (now, over, age) in
            [(5_000, false, 3), (6_999, false, 4), (7_000, true, 5), (0, false, 3)]
        {
            assert_eq!((times.is_over(now), times.age_s(now)), (over, age), "{now}");
        }
    }
}
