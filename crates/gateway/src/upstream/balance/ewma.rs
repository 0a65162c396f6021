//! The quicker of two nodes drawn by lot, as APISIX's `ewma` does it: a node's pace is the
//! average of its response times, of which old ones count less and less.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Load;

/// Nodes of one priority.
pub(super) struct Ewma {
    nodes: Box<[(usize, Arc<Load>)]>,
    draws: AtomicU64,
}

impl Ewma {
    /// Chooses among nodes `(index, load)`. Weights do not count.
    pub(super) fn new(nodes: impl Iterator<Item = (usize, Arc<Load>)>) -> Self {
        Self { nodes: nodes.collect(), draws: AtomicU64::new(0) }
    }

    /// The quicker of two usable nodes.
    pub(super) fn pick(&self, now: Instant, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.nodes.iter().filter(|(node, _)| usable(*node)).count() as u64;
        let nth = |n: u64| {
            let mut nodes = self.nodes.iter().filter(|(node, _)| usable(*node));
            nodes.nth(usize::try_from(n).unwrap_or_default())
        };
        if count < 2 {
            return nth(0).map(|(node, _)| *node);
        }
        let lot = scatter(self.draws.fetch_add(1, Ordering::Relaxed));
        let first = (lot >> 32) % count;
        let second = (lot & 0xffff_ffff) % (count - 1);
        let second = if second >= first { second + 1 } else { second };
        let ((first, a), (second, b)) = (nth(first)?, nth(second)?);
        Some(if a.pace(now) > b.pace(now) { *second } else { *first })
    }
}

/// Numbers in a row, scattered (the output step of SplitMix64).
fn scatter(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_quicker_node_gets_the_requests_until_its_fame_is_old() {
        let now = Instant::now();
        let loads: Vec<Arc<Load>> = (0..2).map(|_| Arc::default()).collect();
        let ewma = Ewma::new(loads.iter().cloned().enumerate());
        loads[0].took(Duration::from_millis(200), now);
        loads[1].took(Duration::from_millis(10), now);
        for _ in 0..20 {
            assert_eq!(ewma.pick(now, |_| true), Some(1));
        }
        assert_eq!(ewma.pick(now, |node| node == 0), Some(0));
        assert_eq!(ewma.pick(now, |_| false), None);
        // Node 0 goes on being asked about, node 1 not: 0 is known to be slow, 1 no longer.
        let later = now + Duration::from_secs(30);
        loads[0].took(Duration::from_millis(50), later);
        assert_eq!(ewma.pick(later, |_| true), Some(1));
    }

    #[test]
    fn nodes_nobody_knows_share_by_lot() {
        let ewma = Ewma::new((0..4).map(|node| (node, Arc::default())));
        let mut counts = [0; 4];
        for _ in 0..4000 {
            counts[ewma.pick(Instant::now(), |_| true).expect("a node is there")] += 1;
        }
        assert!(counts.iter().all(|n| (800..1200).contains(n)), "{counts:?}");
    }
}
