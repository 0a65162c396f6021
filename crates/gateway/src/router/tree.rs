//! A persistent radix tree over bytes: the map under the router.
//!
//! Each key has two places for a value, one for the key itself and one for every longer key that
//! begins with it. A changed tree shares all nodes with the old one but those on the way from the
//! root to the change, so both can be used at once and neither is copied.
//!
//! Invariant: but for the root, a node holds a value or has at least two children.

use std::{ops::Range, sync::Arc};

use smallvec::SmallVec;

/// A map from keys and key prefixes to values. Cloning is cheap when cloning a value is.
#[derive(Clone, Debug)]
pub(super) struct Tree<V> {
    root: Option<Node<V>>,
}

/// Which of a key's two places is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The key itself.
    Exact,
    /// Every key that begins with it, itself included.
    Prefix,
}

/// What a tree holds for one key.
pub(super) struct Hits<'t, V> {
    pub(super) exact: Option<&'t V>,
    /// The values of all prefixes with their lengths, shortest first.
    pub(super) prefixes: SmallVec<[(usize, &'t V); 8]>,
}

impl<V: Clone> Tree<V> {
    /// Builds a tree at once from pairs sorted by key and kind, each occurring once.
    pub(super) fn from_sorted<K: AsRef<[u8]>>(pairs: &[(K, Kind, V)]) -> Self {
        // The nodes on the way to the last key, with how many of its bytes lead to each.
        let mut open: Vec<(usize, Node<V>, Vec<Node<V>>)> = Vec::new();
        let mut last: &[u8] = &[];
        for (key, kind, value) in pairs {
            let key = key.as_ref();
            let fork = shared(last, key);
            while let Some((end, node, children)) = open.pop_if(|(end, ..)| *end > fork) {
                if open.last().is_none_or(|(end, ..)| *end < fork) {
                    open.push((fork, Node::default(), Vec::new()));
                }
                if let Some((above, _, siblings)) = open.last_mut() {
                    siblings.push(node.completed(&last[*above..end], children));
                }
            }
            if open.last().is_none_or(|(end, ..)| *end < key.len()) {
                open.push((key.len(), Node::default(), Vec::new()));
            }
            if let Some((_, node, _)) = open.last_mut() {
                *node.place(*kind) = Some(value.clone());
            }
            last = key;
        }
        while let Some((end, node, children)) = open.pop() {
            match open.last_mut() {
                Some((above, _, siblings)) => {
                    siblings.push(node.completed(&last[*above..end], children))
                }
                None => return Self { root: Some(node.completed(&last[..end], children)) },
            }
        }
        Self::default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&V> {
        self.hits(key).exact
    }

    /// Everything that matches a key.
    #[inline]
    pub(super) fn hits(&self, key: &[u8]) -> Hits<'_, V> {
        let mut hits = Hits { exact: None, prefixes: SmallVec::new() };
        let (mut next, mut rest) = (self.root.as_ref(), key);
        while let Some(node) = next {
            let Some(below) = rest.strip_prefix(node.label.as_slice()) else { break };
            if let Some(value) = &node.prefix {
                hits.prefixes.push((key.len() - below.len(), value));
            }
            let Some(&byte) = below.first() else {
                hits.exact = node.exact.as_ref();
                break;
            };
            next = node.child(byte);
            rest = below;
        }
        hits
    }

    /// The tree with another value at one place: what `change` makes of the old one.
    pub(super) fn updated(
        &self,
        key: &[u8],
        kind: Kind,
        change: impl FnOnce(Option<&V>) -> Option<V>,
    ) -> Self {
        let Some(mut node) = self.root.as_ref() else {
            return Self { root: change(None).map(|value| Node::leaf(key, kind, value)) };
        };
        let (mut rest, mut above) = (key, SmallVec::<[_; 32]>::new());
        let changed = loop {
            let end = shared(&node.label, rest);
            let below = &rest[end..];
            if end < node.label.len() {
                let Some(value) = change(None) else { return self.clone() };
                break Some(node.split(end, below, kind, value));
            }
            let Some(&byte) = below.first() else {
                break node.with_value(kind, change);
            };
            match node.bytes().binary_search(&byte) {
                Ok(index) => {
                    above.push((node, index));
                    (node, rest) = (&node.children()[index], below);
                }
                Err(index) => {
                    let Some(value) = change(None) else { return self.clone() };
                    break node.with_child(index..index, Some(Node::leaf(below, kind, value)));
                }
            }
        };
        let root = (above.iter().rev())
            .fold(changed, |child, (node, index)| node.with_child(*index..*index + 1, child));
        Self { root }
    }
}

impl<V> Default for Tree<V> {
    fn default() -> Self {
        Self { root: None }
    }
}

/// As large as a cache line, for the router's values: a look-up mostly waits for memory.
#[derive(Clone, Debug)]
struct Node<V> {
    /// The bytes between the parent and this node.
    label: SmallVec<[u8; 16]>,
    below: Below<V>,
    exact: Option<V>,
    prefix: Option<V>,
}

#[derive(Debug)]
struct Children<V> {
    /// The first byte of each child's label, in order.
    bytes: SmallVec<[u8; 16]>,
    nodes: Box<[Node<V>]>,
}

/// The children of a node, if any. Dropped without recursion: a tree may be as deep as its longest key.
#[derive(Clone, Debug)]
struct Below<V>(Option<Arc<Children<V>>>);

impl<V> Drop for Below<V> {
    fn drop(&mut self) {
        let mut rest: SmallVec<[_; 8]> = self.0.take().into_iter().collect();
        while let Some(mut children) = rest.pop() {
            // Whoever holds the last reference takes the children out before the nodes go.
            if let Some(children) = Arc::get_mut(&mut children) {
                rest.extend(children.nodes.iter_mut().filter_map(|node| node.below.0.take()));
            }
        }
    }
}

impl<V> Node<V> {
    fn children(&self) -> &[Self] {
        self.below.0.as_ref().map_or(&[], |children| &children.nodes)
    }

    fn bytes(&self) -> &[u8] {
        self.below.0.as_ref().map_or(&[], |children| &children.bytes)
    }

    fn place(&mut self, kind: Kind) -> &mut Option<V> {
        match kind {
            Kind::Exact => &mut self.exact,
            Kind::Prefix => &mut self.prefix,
        }
    }

    #[inline]
    fn child(&self, byte: u8) -> Option<&Self> {
        let children = self.below.0.as_ref()?;
        let index = match children.bytes.len() {
            0..=LINEAR_MAX => children.bytes.iter().position(|&found| found == byte)?,
            _ => children.bytes.binary_search(&byte).ok()?,
        };
        children.nodes.get(index)
    }

    fn leaf(label: &[u8], kind: Kind, value: V) -> Self {
        let mut node = Self { label: label.into(), ..Self::default() };
        *node.place(kind) = Some(value);
        node
    }

    fn completed(mut self, label: &[u8], children: Vec<Self>) -> Self {
        self.label = label.into();
        self.below.0 = (!children.is_empty()).then(|| {
            let bytes = children.iter().map(|child| child.label[0]).collect();
            Arc::new(Children { bytes, nodes: children.into() })
        });
        self
    }
}

impl<V: Clone> Node<V> {
    /// A node in place of this one that ends `end` bytes into its label, to hold a value beside it.
    fn split(&self, end: usize, below: &[u8], kind: Kind, value: V) -> Self {
        let label = &self.label[..end];
        let mut old = self.clone();
        old.label.drain(..end);
        if below.is_empty() {
            return Self::leaf(&[], kind, value).completed(label, vec![old]);
        }
        let mut children = vec![old, Self::leaf(below, kind, value)];
        children.sort_unstable_by_key(|child| child.label[0]);
        Self::default().completed(label, children)
    }

    fn with_value(&self, kind: Kind, change: impl FnOnce(Option<&V>) -> Option<V>) -> Option<Self> {
        let mut node = self.clone();
        let place = node.place(kind);
        *place = change(place.as_ref());
        node.settled()
    }

    /// A copy with some children replaced by one or none.
    fn with_child(&self, replaced: Range<usize>, child: Option<Self>) -> Option<Self> {
        let old = self.children();
        let mut children = Vec::with_capacity(old.len() + 1);
        children.extend_from_slice(&old[..replaced.start]);
        children.extend(child);
        children.extend_from_slice(&old[replaced.end..]);
        let node =
            Self { exact: self.exact.clone(), prefix: self.prefix.clone(), ..Self::default() };
        node.completed(&self.label, children).settled()
    }

    /// Restores the invariant after a value or a child may have gone.
    fn settled(self) -> Option<Self> {
        if self.exact.is_some() || self.prefix.is_some() {
            return Some(self);
        }
        match self.children() {
            [] => None,
            [only] => {
                let mut merged = only.clone();
                merged.label.insert_from_slice(0, &self.label);
                Some(merged)
            }
            _ => Some(self),
        }
    }
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { label: SmallVec::new(), below: Below(None), exact: None, prefix: None }
    }
}

/// How many bytes two keys share at their beginning.
fn shared(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// Up to how many children are looked through one by one.
const LINEAR_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Model = BTreeMap<(Vec<u8>, Kind), u32>;

    fn check_node(node: &Node<u32>, root: bool) {
        let children = node.children();
        assert!(root || !node.label.is_empty());
        assert!(node.exact.is_some() || node.prefix.is_some() || children.len() > 1);
        assert!(node.bytes().is_sorted() && node.bytes().len() == children.len());
        for (byte, child) in node.bytes().iter().zip(children) {
            assert_eq!(*byte, child.label[0]);
            check_node(child, false);
        }
    }

    fn check(tree: &Tree<u32>, model: &Model, key: &[u8]) {
        let hits = tree.hits(key);
        assert_eq!(hits.exact, model.get(&(key.to_vec(), Kind::Exact)));
        let prefixes: Vec<_> = (0..=key.len())
            .filter_map(|end| Some((end, model.get(&(key[..end].to_vec(), Kind::Prefix))?)))
            .collect();
        assert_eq!(hits.prefixes.to_vec(), prefixes);
    }

    #[test]
    fn a_changed_tree_is_the_tree_built_anew() {
        let mut state = 7_u64;
        let mut next = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut tree, mut model) = (Tree::default(), Model::new());
        for step in 0..1500_u32 {
            let key: Vec<u8> = (0..next(6)).map(|_| b"ab/\xff"[next(4) as usize]).collect();
            let kind = if next(2) == 0 { Kind::Exact } else { Kind::Prefix };
            let value = (next(3) > 0).then_some(step);
            let old = tree.clone();
            let before = model.clone();
            tree = tree.updated(&key, kind, |found| {
                assert_eq!(found, model.get(&(key.clone(), kind)));
                value
            });
            match value {
                Some(value) => model.insert((key.clone(), kind), value),
                None => model.remove(&(key.clone(), kind)),
            };
            assert_eq!(tree.is_empty(), model.is_empty());
            if let Some(root) = &tree.root {
                check_node(root, true);
            }
            let pairs: Vec<_> =
                model.iter().map(|((key, kind), value)| (key, *kind, *value)).collect();
            let anew = Tree::from_sorted(&pairs);
            assert_eq!(format!("{anew:?}"), format!("{tree:?}"), "step {step}");
            check(&tree, &model, &key);
            check(&old, &before, &key);
        }
    }

    #[test]
    fn a_node_is_as_large_as_a_cache_line() {
        assert_eq!(size_of::<Node<(Arc<u8>, u64)>>(), 64);
    }

    #[test]
    fn a_wide_node_finds_each_child() {
        let pairs: Vec<_> = (0..=255_u8).map(|byte| ([b'x', byte], Kind::Exact, byte)).collect();
        let tree = Tree::from_sorted(&pairs);
        for (key, _, value) in &pairs {
            assert_eq!(tree.get(key), Some(value));
        }
        assert_eq!(tree.get(b"x"), None);
    }

    #[test]
    fn keys_nested_as_deep_as_a_uri_is_long_do_not_exhaust_the_stack() {
        const DEPTH: usize = 4096;
        let key = vec![b'a'; DEPTH];
        let pairs: Vec<_> = (1..=DEPTH).map(|end| (&key[..end], Kind::Prefix, end)).collect();
        let tree = Tree::from_sorted(&pairs).updated(&key, Kind::Exact, |_| Some(0));
        assert_eq!(tree.hits(&key).prefixes.len(), DEPTH);
        assert_eq!(tree.get(&key), Some(&0));
    }
}
