//! Smooth weighted round robin, worked out when the nodes are known.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::gcd;

/// The order in which nodes of one priority take turns.
#[derive(Debug)]
pub struct RoundRobin {
    /// Node indexes, one full round.
    order: Box<[u32]>,
    turn: AtomicUsize,
}

impl RoundRobin {
    /// One round over nodes `(index, weight)`. Nodes of weight 0 take no turn, unless all
    /// are of weight 0.
    pub fn new(nodes: &[(usize, u32)]) -> Self {
        let all_zero = nodes.iter().all(|(_, weight)| *weight == 0);
        let weights: Vec<u64> =
            nodes.iter().map(|(_, w)| if all_zero { 1 } else { u64::from(*w) }).collect();
        let divisor = weights.iter().copied().fold(0, gcd).max(1);
        let total: u64 = weights.iter().map(|w| w / divisor).sum();
        // A long round is scaled down: shares stay within one part in ROUND_MAX.
        let scaled: Vec<i64> = weights
            .iter()
            .map(|w| {
                let w = w / divisor;
                let w = if total > ROUND_MAX && w > 0 { (w * ROUND_MAX / total).max(1) } else { w };
                i64::try_from(w).unwrap_or(i64::MAX)
            })
            .collect();
        let total: i64 = scaled.iter().sum();
        let mut current = vec![0_i64; nodes.len()];
        let mut order = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
        for _ in 0..total {
            for (now, weight) in current.iter_mut().zip(&scaled) {
                *now += weight;
            }
            let Some(best) = (0..nodes.len()).rev().max_by_key(|at| current[*at]) else { break };
            current[best] -= total;
            order.push(u32::try_from(nodes[best].0).unwrap_or(u32::MAX));
        }
        Self { order: order.into(), turn: AtomicUsize::new(0) }
    }

    /// The node whose turn it is, of those that are `usable`.
    pub fn pick(&self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let len = self.order.len();
        if len == 0 {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..len)
            .map(|step| self.order[turn.wrapping_add(step) % len] as usize)
            .find(|node| usable(*node))
    }
}

/// Turns in one round at most.
const ROUND_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(weights: &[u32], expected: &[usize]) {
        let nodes: Vec<_> = weights.iter().copied().enumerate().collect();
        let robin = RoundRobin::new(&nodes);
        let picked: Vec<_> = (0..expected.len()).filter_map(|_| robin.pick(|_| true)).collect();
        assert_eq!(picked, expected, "{weights:?}");
    }

    #[test]
    fn turns_follow_weights_and_are_spread_out() {
        check(&[1], &[0, 0, 0]);
        check(&[1, 1], &[0, 1, 0, 1]);
        check(&[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0]);
        check(&[2, 0], &[0, 0]);
        check(&[0, 0], &[0, 1]);
        check(&[], &[]);
        check(&[4_000_000, 4_000_000], &[0, 1]);
    }

    #[test]
    fn a_heavy_node_does_not_starve_a_light_one() {
        let robin = RoundRobin::new(&[(0, 1_000_000), (1, 1)]);
        assert!((0..5000).filter_map(|_| robin.pick(|_| true)).any(|n| n == 1));
    }

    #[test]
    fn tried_nodes_are_left_out() {
        let robin = RoundRobin::new(&[(0, 1), (1, 1), (2, 1)]);
        assert_eq!(robin.pick(|node| ![0, 1].contains(&node)), Some(2));
        assert_eq!(robin.pick(|_| false), None);
    }
}
