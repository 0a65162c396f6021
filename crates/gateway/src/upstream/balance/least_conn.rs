//! The node with the fewest requests under way, by its weight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Load;

/// Nodes of one priority.
pub(super) struct LeastConn {
    nodes: Box<[(usize, u32, Arc<Load>)]>,
    /// Where the search begins, so that nodes with equally little to do take turns.
    turn: AtomicUsize,
}

impl LeastConn {
    /// Chooses among nodes `(index, weight, load)`; no weight is 0.
    pub(super) fn new(nodes: impl Iterator<Item = (usize, u32, Arc<Load>)>) -> Self {
        Self { nodes: nodes.collect(), turn: AtomicUsize::new(0) }
    }

    /// The usable node for which one more request weighs least.
    pub(super) fn pick(&self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.nodes.len().max(1);
        let (before, behind) = self.nodes.split_at(turn);
        let usable = behind.iter().chain(before).filter(|(node, ..)| usable(*node));
        let weighed =
            usable.map(|(node, weight, load)| (*node, u64::from(*weight), 1 + load.in_flight()));
        // a/v < b/w, without the fractions.
        let least = weighed.reduce(|least, other| match other.2 * least.1 < least.2 * other.1 {
            true => other,
            false => least,
        });
        least.map(|(node, ..)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Hold;
    use super::*;

    #[test]
    fn requests_go_where_the_fewest_are_under_way() {
        let loads: Vec<Arc<Load>> = (0..2).map(|_| Arc::default()).collect();
        let nodes = [(0, 3, loads[0].clone()), (1, 2, loads[1].clone())];
        let least = LeastConn::new(nodes.into_iter());
        let mut held = Vec::new();
        let mut next = || {
            let node = least.pick(|_| true).expect("a node is there");
            held.push(Hold::new(loads[node].clone()));
            node
        };
        // One more on either: 1/3 or 1/2; then 2/3 or 1/2; then 2/3 or 2/2.
        assert_eq!([next(), next(), next()], [0, 1, 0]);
        assert_eq!([loads[0].in_flight(), loads[1].in_flight()], [2, 1]);
        drop(held);
        assert_eq!([loads[0].in_flight(), loads[1].in_flight()], [0, 0]);
        assert_eq!(least.pick(|_| true), Some(0));
        assert_eq!(least.pick(|node| node != 0), Some(1));
        assert_eq!(least.pick(|_| false), None);
    }

    #[test]
    fn idle_nodes_of_one_weight_take_turns() {
        let least = LeastConn::new((0..3).map(|node| (node, 1, Arc::default())));
        let picked: Vec<_> = (0..6).filter_map(|_| least.pick(|_| true)).collect();
        assert_eq!(picked, [0, 1, 2, 0, 1, 2]);
    }
}
