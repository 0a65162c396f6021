//! Counters of this gateway: exact over all its cores, bounded in number.
//!
//! A counter is a few atomics that every core shares. Each request thread remembers the counters it
//! used by their names, so that counting once more takes no lock; only a counter that is new to a
//! thread is looked up in the table of all, which is cut into shards with a lock each. There names are
//! known by 128 bits of a keyed hash: nobody can make two names meet, and long names take no room.
//!
//! Invariant: a name has one living counter. One that leaves the table is retired first, under its
//! own rules (see [`Counter::retire`]), and says so to threads that remember it.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::LocalKey;

use foldhash::fast::RandomState as QuickState;

/// A counter that a [`Store`] keeps.
pub(crate) trait Counter: Default + Send + Sync + 'static {
    /// Retires it if it is over, or, with `forced`, if nothing breaks without it. A retired counter
    /// counts nothing any more.
    fn retire(&self, now_ms: u64, forced: bool) -> bool;

    /// The counters of this kind that a thread remembers.
    fn remembered() -> &'static LocalKey<RefCell<Remembered<Self>>>;
}

/// The counters that a thread remembers: by the store they are in, and by their name.
pub(crate) struct Remembered<C>(Vec<(u64, ByName<C>)>);

type ByName<C> = HashMap<Box<[u8]>, Arc<C>, QuickState>;

impl<C> Default for Remembered<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C> Remembered<C> {
    fn get(&self, store: u64, name: &[u8]) -> Option<&Arc<C>> {
        self.0.iter().find(|(of, _)| *of == store)?.1.get(name)
    }

    fn put(&mut self, store: u64, name: &[u8], counter: Arc<C>) {
        if name.len() > REMEMBERED_NAME_MAX {
            return;
        }
        let at = self.0.iter().position(|(of, _)| *of == store).unwrap_or_else(|| {
            self.0.push((store, ByName::default()));
            self.0.len() - 1
        });
        let all = &mut self.0[at].1;
        if all.len() >= REMEMBERED_MAX {
            all.clear();
        }
        all.insert(name.into(), counter);
    }
}

/// All counters of one kind of a gateway.
pub(crate) struct Store<C> {
    /// Which of the stores of this process it is.
    number: u64,
    hasher: RandomState,
    shards: Box<[Mutex<Shard<C>>]>,
    shard_max: usize,
}

struct Shard<C> {
    counters: HashMap<u128, Arc<C>, ByItself>,
    /// In the order in which they are looked at when room is needed.
    queue: VecDeque<u128>,
}

impl<C> Default for Store<C> {
    fn default() -> Self {
        Self::with_max(COUNTERS_MAX)
    }
}

impl<C> Store<C> {
    fn with_max(max: usize) -> Self {
        let shard = || Mutex::new(Shard { counters: HashMap::default(), queue: VecDeque::new() });
        static STORES: AtomicU64 = AtomicU64::new(0);
        Self {
            number: STORES.fetch_add(1, Ordering::Relaxed),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            shard_max: (max / SHARDS).max(1),
        }
    }
}

impl<C: Counter> Store<C> {
    /// Counts: `count` says `None` of a counter that is retired.
    pub(crate) fn count<R>(
        &self,
        name: &[u8],
        now_ms: u64,
        mut count: impl FnMut(&Arc<C>) -> Option<R>,
    ) -> R {
        let known =
            C::remembered().with_borrow(|all| all.get(self.number, name).and_then(&mut count));
        if let Some(counted) = known {
            return counted;
        }
        let hash = self.hash(name);
        loop {
            let counter = self.find(hash, now_ms);
            if let Some(counted) = count(&counter) {
                C::remembered().with_borrow_mut(|all| all.put(self.number, name, counter));
                return counted;
            }
        }
    }

    /// The counter of a name, if there is one.
    pub(crate) fn peek(&self, name: &[u8]) -> Option<Arc<C>> {
        let hash = self.hash(name);
        self.shard(hash).counters.get(&hash).cloned()
    }

    fn shard(&self, hash: u128) -> MutexGuard<'_, Shard<C>> {
        let at = usize::try_from(hash >> 120).unwrap_or(0) % self.shards.len();
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, name: &[u8]) -> u128 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(name);
        let high = hasher.finish();
        // The hash of the name with one more byte has nothing to do with that of the name.
        hasher.write_u8(1);
        u128::from(high) << 64 | u128::from(hasher.finish())
    }

    /// The living counter of a name, made if there is none.
    fn find(&self, hash: u128, now_ms: u64) -> Arc<C> {
        let mut shard = self.shard(hash);
        // What is in the table is not retired: whoever retires a counter takes it out, under this
        // lock.
        if let Some(counter) = shard.counters.get(&hash) {
            return counter.clone();
        }
        shard.make_room(self.shard_max, now_ms);
        let counter = Arc::new(C::default());
        shard.counters.insert(hash, counter.clone());
        shard.queue.push_back(hash);
        counter
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let lock = |shard: &Mutex<Shard<C>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).counters.len()
        };
        self.shards.iter().map(lock).sum()
    }
}

impl<C: Counter> Shard<C> {
    /// Takes out counters that are over, a few at a time, so that their number follows what is in
    /// use; and, where all places are taken, the one that has been there longest.
    fn make_room(&mut self, max: usize, now_ms: u64) {
        for _ in 0..LOOKS {
            self.look(now_ms, false);
        }
        if self.counters.len() >= max {
            self.look(now_ms, true);
        }
    }

    fn look(&mut self, now_ms: u64, forced: bool) {
        let Some(hash) = self.queue.pop_front() else { return };
        match self.counters.get(&hash) {
            Some(counter) if counter.retire(now_ms, forced) => {
                self.counters.remove(&hash);
            }
            Some(_) => self.queue.push_back(hash),
            None => {}
        }
    }
}

/// The hash of a hash is its low half.
#[derive(Clone, Copy, Default)]
pub(crate) struct ByItself;

impl BuildHasher for ByItself {
    type Hasher = Itself;
    fn build_hasher(&self) -> Itself {
        Itself(0)
    }
}

/// See [`ByItself`].
pub(crate) struct Itself(u64);

impl Hasher for Itself {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "half of it is enough")]
    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Counters of one kind at most: about 100 bytes each. Beyond, the one there longest is forgotten.
const COUNTERS_MAX: usize = 1 << 20;
/// Counters of a store that one thread remembers at most, and bytes of the name of such a one.
const REMEMBERED_MAX: usize = 1 << 14;
const REMEMBERED_NAME_MAX: usize = 192;
/// Locks of a store.
const SHARDS: usize = 64;
/// Counters looked at for each that is made.
const LOOKS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up; over when `now_ms` is past its number times ten.
    #[derive(Default)]
    struct Plain(AtomicU64);

    const GONE: u64 = u64::MAX / 2;

    impl Counter for Plain {
        fn retire(&self, now_ms: u64, forced: bool) -> bool {
            let count = self.0.load(Ordering::SeqCst);
            let over = forced || count * 10 < now_ms;
            over && self.0.compare_exchange(count, GONE, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        }
        fn remembered() -> &'static LocalKey<RefCell<Remembered<Self>>> {
            thread_local!(static REMEMBERED: RefCell<Remembered<Plain>> = RefCell::default());
            &REMEMBERED
        }
    }

    fn add(store: &Store<Plain>, name: &[u8], now_ms: u64) -> u64 {
        store.count(name, now_ms, |plain| {
            let before = plain.0.fetch_add(1, Ordering::SeqCst);
            (before < GONE).then_some(before + 1)
        })
    }

    #[test]
    fn every_name_has_one_counter_on_all_threads() {
        let store = Store::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..1000 {
                        add(&store, format!("name {}", round % 10).as_bytes(), 0);
                    }
                });
            }
        });
        let counts: Vec<u64> =
            (0..10).map(|at| add(&store, format!("name {at}").as_bytes(), 0)).collect();
        assert_eq!(counts, [401; 10]);
    }

    #[test]
    fn stores_share_no_counters_and_long_names_count_as_well() {
        let long = vec![b'x'; REMEMBERED_NAME_MAX + 1];
        let (one, two) = (Store::default(), Store::default());
        for name in [b"a".as_slice(), &long] {
            assert_eq!([1, 2].map(|_| add(&one, name, 0)), [1, 2]);
            assert_eq!([1, 2].map(|_| add(&two, name, 0)), [1, 2]);
        }
    }

    #[test]
    fn the_number_of_counters_is_bounded_and_a_forgotten_one_starts_anew() {
        let store = Store::with_max(SHARDS * 2);
        assert_eq!(add(&store, b"first", 0), 1);
        for at in 0..10_000 {
            add(&store, format!("name {at}").as_bytes(), 0);
        }
        assert!(store.len() <= SHARDS * 2, "{}", store.len());
        // This thread still remembers it, and learns that it is gone.
        assert_eq!(add(&store, b"first", 0), 1);
        assert_eq!(add(&store, b"first", 0), 2);
    }

    #[test]
    fn counters_that_are_over_leave_room() {
        let store = Store::default();
        for at in 0..10_000 {
            add(&store, format!("name {at}").as_bytes(), 0);
        }
        for at in 0..10_000 {
            add(&store, format!("later {at}").as_bytes(), 1000);
        }
        assert!(store.len() <= 10_000 + SHARDS * LOOKS, "{}", store.len());
    }
}
