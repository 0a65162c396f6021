//! A persistent hash map over bytes: the map under the router.
//!
//! Each key has two places for a value, one for the key itself and one for every longer key that
//! begins with it. A look-up hashes the key, and for each length at which there are prefixes that
//! could fit, the key's beginning. Nodes of up to 64 slots lead to each place in three steps for
//! 100,000 keys, of which only the last waits for memory: a radix tree waited at each of its ten
//! levels and took three times as long.
//!
//! A map that is cloned and changed shares all nodes with the old one but those on the way from the
//! root to the change, so both can be used at once and neither is copied.
//!
//! Invariant: a node below the root leads to at least two places, so that equal contents make equal
//! nodes.

use std::{
    hash::{BuildHasher, Hasher},
    ops::Range,
    sync::Arc,
};

use foldhash::quality::FixedState;
use smallvec::SmallVec;

/// A map from keys and key prefixes to values. Cloning is cheap when cloning a value is.
#[derive(Clone, Debug)]
pub(crate) struct Map<V> {
    root: Node<V>,
    /// At which lengths there are prefixes, longest first.
    lengths: SmallVec<[Length; 1]>,
}

/// A value knows its place.
pub(crate) trait Place: Clone {
    /// What most prefixes end in: a key is only looked for behind those it has.
    const SEPARATOR: u8;

    /// The key, and which of its two places.
    fn key(&self) -> (&[u8], Kind);
}

/// Which of a key's two places is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// The key itself.
    Exact,
    /// Every key that begins with it, itself included.
    Prefix,
}

impl<V: Place> Map<V> {
    /// Builds a map at once from values whose places are all different.
    pub(crate) fn build(values: impl IntoIterator<Item = V>) -> Self {
        let mut lengths = SmallVec::new();
        let mut values: Vec<_> = values
            .into_iter()
            .map(|value| {
                let (key, kind) = value.key();
                if kind == Kind::Prefix {
                    count_prefix::<V>(&mut lengths, key, true);
                }
                (hash(key, kind), value)
            })
            .collect();
        values.sort_unstable_by_key(|(hash, _)| *hash);
        Self { root: Node::build(0, &values), lengths }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.root.slots.is_empty()
    }

    /// The one value there is, if there is only one.
    pub(crate) fn only(&self) -> Option<&V> {
        match &*self.root.slots {
            [Slot::One(_, value)] => Some(value),
            _ => None,
        }
    }

    /// The value at the key itself.
    #[inline]
    pub(crate) fn exact(&self, key: &[u8]) -> Option<&V> {
        self.root.find(hash(key, Kind::Exact), key, Kind::Exact)
    }

    /// The values of all prefixes of a key with their lengths, longest first.
    #[inline]
    pub(crate) fn prefixes(&self, key: &[u8]) -> impl Iterator<Item = (usize, &V)> {
        self.lengths.iter().filter_map(move |length| {
            let start = key.get(..length.bytes as usize)?;
            if length.open == 0 && start.last() != Some(&V::SEPARATOR) {
                return None;
            }
            let value = self.root.find(hash(start, Kind::Prefix), start, Kind::Prefix)?;
            Some((start.len(), value))
        })
    }

    /// Puts another value at one place: what `change` makes of the old one.
    pub(crate) fn update(
        &mut self,
        key: &[u8],
        kind: Kind,
        change: impl FnOnce(Option<&V>) -> Option<V>,
    ) {
        let hash = hash(key, kind);
        let old = self.root.find(hash, key, kind);
        let (was, new) = (old.is_some(), change(old));
        if kind == Kind::Prefix && was != new.is_some() {
            count_prefix::<V>(&mut self.lengths, key, new.is_some());
        }
        match new {
            Some(value) => self.root.insert(0, hash, value),
            None if was => self.root.remove(0, hash, (key, kind)),
            None => {}
        }
    }
}

impl<V> Default for Map<V> {
    fn default() -> Self {
        Self { root: Node::default(), lengths: SmallVec::new() }
    }
}

/// How many prefixes have one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Length {
    bytes: u32,
    /// Those that end in the separator.
    closed: u32,
    open: u32,
}

/// Counts a prefix that has come or gone.
fn count_prefix<V: Place>(lengths: &mut SmallVec<[Length; 1]>, key: &[u8], come: bool) {
    let bytes = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let found = lengths.binary_search_by(|length| bytes.cmp(&length.bytes));
    let place = found.unwrap_or_else(|place| {
        lengths.insert(place, Length { bytes, closed: 0, open: 0 });
        place
    });
    let length = &mut lengths[place];
    let count =
        if key.last() == Some(&V::SEPARATOR) { &mut length.closed } else { &mut length.open };
    *count = if come { *count + 1 } else { count.saturating_sub(1) };
    if (length.closed, length.open) == (0, 0) {
        lengths.remove(place);
    }
}

/// Slots for the next six bits of a hash. Absent ones take no memory.
#[derive(Debug)]
struct Node<V> {
    /// Which of the 64 slots there are.
    filled: u64,
    slots: Arc<[Slot<V>]>,
}

/// Two of them share a cache line, for the router's values.
#[derive(Clone, Debug)]
enum Slot<V> {
    /// A value and its hash.
    One(u64, V),
    Node(Node<V>),
    /// Values that share a hash.
    Same(u64, Arc<[V]>),
}

impl<V: Place> Node<V> {
    #[inline]
    fn find(&self, hash: u64, key: &[u8], kind: Kind) -> Option<&V> {
        let (mut node, mut rest) = (self, hash);
        loop {
            match node.slots.get(node.index(rest).ok()?)? {
                Slot::One(found, value) => {
                    return (*found == hash && value.key() == (key, kind)).then_some(value);
                }
                Slot::Node(below) => (node, rest) = (below, rest << BITS),
                Slot::Same(_, values) => {
                    return values.iter().find(|value| value.key() == (key, kind));
                }
            }
        }
    }

    /// Values in order of their hashes, whose first `depth` digits are the same.
    fn build(depth: u32, values: &[(u64, V)]) -> Self {
        let mut filled = 0;
        let groups = values.chunk_by(|left, right| digit(depth, left.0) == digit(depth, right.0));
        let slots = groups.map(|group| {
            filled |= 1 << digit(depth, group[0].0);
            match group {
                [(hash, value)] => Slot::One(*hash, value.clone()),
                [(first, _), .., (last, _)] if first == last => {
                    Slot::Same(*first, group.iter().map(|(_, value)| value.clone()).collect())
                }
                _ => Slot::Node(Self::build(depth + 1, group)),
            }
        });
        let slots: Vec<_> = slots.collect();
        Self { filled, slots: slots.into() }
    }

    fn insert(&mut self, depth: u32, hash: u64, value: V) {
        let index = match self.index(hash << (BITS * depth)) {
            Ok(index) => index,
            Err(index) => {
                self.filled |= 1 << digit(depth, hash);
                return self.replace(index..index, Some(Slot::One(hash, value)));
            }
        };
        let same = |other: &V| other.key() == value.key();
        let slot = &mut Arc::make_mut(&mut self.slots)[index];
        *slot = match slot {
            Slot::Node(below) => return below.insert(depth + 1, hash, value),
            Slot::One(found, old) if *found == hash => match same(old) {
                true => Slot::One(hash, value),
                false => Slot::Same(hash, [old.clone(), value].into()),
            },
            Slot::Same(found, old) if *found == hash => {
                let others = old.iter().filter(|other| !same(other)).cloned();
                Slot::Same(hash, others.chain([value.clone()]).collect())
            }
            Slot::One(found, _) | Slot::Same(found, _) => {
                let (found, new) = (*found, Slot::One(hash, value));
                Slot::Node(Self::fork(depth + 1, (found, slot.clone()), (hash, new)))
            }
        };
    }

    /// A node that leads to two slots of different hashes.
    fn fork(depth: u32, left: (u64, Slot<V>), right: (u64, Slot<V>)) -> Self {
        let digits = [digit(depth, left.0), digit(depth, right.0)];
        let filled = 1 << digits[0] | 1 << digits[1];
        let slots: Arc<[_]> = if digits[0] == digits[1] {
            [Slot::Node(Self::fork(depth + 1, left, right))].into()
        } else if digits[0] < digits[1] {
            [left.1, right.1].into()
        } else {
            [right.1, left.1].into()
        };
        Self { filled, slots }
    }

    /// Takes away the value at a place, which is there.
    fn remove(&mut self, depth: u32, hash: u64, place: (&[u8], Kind)) {
        let Ok(index) = self.index(hash << (BITS * depth)) else { return };
        if let Slot::One(..) = self.slots[index] {
            self.filled &= !(1 << digit(depth, hash));
            return self.replace(index..index + 1, None);
        }
        let slot = &mut Arc::make_mut(&mut self.slots)[index];
        match slot {
            Slot::One(..) => {}
            Slot::Node(below) => {
                below.remove(depth + 1, hash, place);
                if let [only @ (Slot::One(..) | Slot::Same(..))] = &*below.slots {
                    *slot = only.clone();
                }
            }
            Slot::Same(_, values) => {
                let kept: Vec<_> =
                    values.iter().filter(|value| value.key() != place).cloned().collect();
                *slot = match &*kept {
                    [only] => Slot::One(hash, only.clone()),
                    _ => Slot::Same(hash, kept.into()),
                };
            }
        }
    }

    fn replace(&mut self, gone: Range<usize>, come: Option<Slot<V>>) {
        let (before, after) = (&self.slots[..gone.start], &self.slots[gone.end..]);
        let slots: Vec<_> =
            before.iter().cloned().chain(come).chain(after.iter().cloned()).collect();
        self.slots = slots.into();
    }
}

impl<V> Node<V> {
    /// Where the slot of the digit in the highest bits is, or else would be.
    #[inline]
    fn index(&self, rest: u64) -> Result<usize, usize> {
        let bit = 1 << (rest >> (u64::BITS - BITS));
        let index = (self.filled & (bit - 1)).count_ones() as usize;
        if self.filled & bit == 0 { Err(index) } else { Ok(index) }
    }
}

impl<V> Clone for Node<V> {
    fn clone(&self) -> Self {
        Self { filled: self.filled, slots: self.slots.clone() }
    }
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { filled: 0, slots: Arc::default() }
    }
}

/// Which slot a hash has in the nodes of a depth. The last digit of a hash has only four bits.
fn digit(depth: u32, hash: u64) -> u64 {
    (hash << (BITS * depth)) >> (u64::BITS - BITS)
}

/// Only those who configure the gateway choose keys, so everybody may know the seed.
#[inline]
fn hash(key: &[u8], kind: Kind) -> u64 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    hasher.write(key);
    match kind {
        Kind::Exact => hasher.finish(),
        Kind::Prefix => hasher.finish() ^ PREFIX,
    }
}

/// Sets hashes of prefixes apart from those of whole keys.
const PREFIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bits of a hash that one node looks at.
const BITS: u32 = 6;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A value with its place.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Value(Vec<u8>, Kind, u32);

    impl Place for Value {
        const SEPARATOR: u8 = b'/';

        fn key(&self) -> (&[u8], Kind) {
            (&self.0, self.1)
        }
    }

    type Model = BTreeMap<(Vec<u8>, Kind), u32>;

    fn check_node(node: &Node<Value>, root: bool) -> usize {
        assert_eq!(node.filled.count_ones() as usize, node.slots.len());
        let places = node.slots.iter().map(|slot| match slot {
            Slot::One(..) => 1,
            Slot::Node(below) => check_node(below, false),
            Slot::Same(_, values) => values.len(),
        });
        let places = places.sum();
        assert!(root || places > 1);
        places
    }

    fn check(map: &Map<Value>, model: &Model, key: &[u8]) {
        let value = |key: &[u8], kind| {
            let number = *model.get(&(key.to_vec(), kind))?;
            Some(Value(key.to_vec(), kind, number))
        };
        assert_eq!(map.exact(key).cloned(), value(key, Kind::Exact));
        let prefixes: Vec<_> = (0..=key.len())
            .rev()
            .filter_map(|end| Some((end, value(&key[..end], Kind::Prefix)?)))
            .collect();
        assert_eq!(
            map.prefixes(key).map(|(end, v)| (end, v.clone())).collect::<Vec<_>>(),
            prefixes
        );
    }

    #[test]
    fn a_changed_map_is_the_map_built_anew() {
        let mut state = 7_u64;
        let mut next = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut map, mut model) = (Map::default(), Model::new());
        for step in 0..800_u32 {
            let key: Vec<u8> = (0..next(6)).map(|_| b"ab/\xff"[next(4) as usize]).collect();
            let kind = if next(2) == 0 { Kind::Exact } else { Kind::Prefix };
            let value = (next(3) > 0).then_some(step);
            let old = map.clone();
            let before = model.clone();
            map.update(&key, kind, |found: Option<&Value>| {
                assert_eq!(found.map(|found| found.2), model.get(&(key.clone(), kind)).copied());
                value.map(|value| Value(key.clone(), kind, value))
            });
            match value {
                Some(value) => model.insert((key.clone(), kind), value),
                None => model.remove(&(key.clone(), kind)),
            };
            assert_eq!(map.is_empty(), model.is_empty());
            assert_eq!(check_node(&map.root, true), model.len());
            assert_eq!(map.only().is_some(), model.len() == 1);
            let values = model.iter().map(|((key, kind), value)| Value(key.clone(), *kind, *value));
            let anew = Map::build(values);
            assert_eq!(format!("{anew:?}"), format!("{map:?}"), "step {step}");
            check(&map, &model, &key);
            check(&old, &before, &key);
        }
    }

    #[test]
    fn places_of_one_hash_are_told_apart() {
        let value = |n: u8| Value(vec![n], Kind::Exact, n.into());
        // The third differs from the others in the last digit of the hash only.
        let hashes = [5, 5, 6, 5];
        let mut node = Node::default();
        for n in 0..4 {
            node.insert(0, hashes[usize::from(n)], value(n));
        }
        let found = |node: &Node<Value>, n: u8| {
            node.find(hashes[usize::from(n)], &[n], Kind::Exact).map(|value| value.2)
        };
        assert_eq!(check_node(&node, true), 4);
        assert_eq!([0, 1, 2, 3].map(|n| found(&node, n)), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(node.find(5, &[2], Kind::Exact), None);
        let values: Vec<_> = [0, 1, 3, 2].map(|n| (hashes[usize::from(n)], value(n))).into();
        assert_eq!(format!("{:?}", Node::build(0, &values)), format!("{node:?}"));

        let remove = |node: &mut Node<Value>, n: u8| {
            node.remove(0, hashes[usize::from(n)], (&[n], Kind::Exact));
        };
        remove(&mut node, 1);
        remove(&mut node, 2);
        assert_eq!([0, 1, 2, 3].map(|n| found(&node, n)), [Some(0), None, None, Some(3)]);
        remove(&mut node, 0);
        assert!(matches!(&*node.slots, [Slot::One(5, Value(.., 3))]), "{node:?}");
        remove(&mut node, 3);
        assert!(node.slots.is_empty());
    }

    #[test]
    fn two_slots_share_a_cache_line() {
        assert_eq!(size_of::<Slot<(Arc<u8>, u64)>>(), 32);
    }

    #[test]
    fn a_key_is_looked_for_at_every_length_with_prefixes() {
        let value = |end: usize| Value(vec![b'a'; end], Kind::Prefix, 0);
        let map = Map::build((0..4096).map(value));
        assert_eq!(map.prefixes(&[b'a'; 4096]).count(), 4096);
        assert_eq!(map.prefixes(b"aab").map(|(end, _)| end).collect::<Vec<_>>(), [2, 1, 0]);
    }
}
