//! Counters of routes: one for each request thread, so that counting takes no lock.

use std::sync::Arc;

use crate::core::Count;

/// How many requests a route served.
#[derive(Clone)]
pub struct RouteCounters {
    /// One for each thread; other routes have their places in them too.
    lines: Arc<[Line]>,
    place: usize,
}

impl RouteCounters {
    /// Counts a request on thread `index`.
    pub fn add(&self, index: usize) {
        if let Some(line) = self.lines.get(index) {
            line.0[self.place].add(1);
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.lines.iter().map(|line| line.0[self.place].get()).sum()
    }
}

/// Counters of one thread, so that no two threads write to one cache line.
#[repr(align(64))]
#[derive(Default)]
struct Line([Count; PLACES]);

/// Gives out counters.
pub(super) struct Source {
    threads: usize,
    lines: Arc<[Line]>,
    given: usize,
}

impl Source {
    pub(super) fn new(threads: usize) -> Self {
        Self { threads, lines: Arc::default(), given: PLACES }
    }

    pub(super) fn counters(&mut self) -> RouteCounters {
        if self.given == PLACES {
            let lines = (0..self.threads).map(|_| Line::default());
            (self.lines, self.given) = (lines.collect(), 0);
        }
        self.given += 1;
        RouteCounters { lines: self.lines.clone(), place: self.given - 1 }
    }
}

/// Counters in a line.
const PLACES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_has_its_own_counters_on_every_thread() {
        let mut source = Source::new(2);
        let routes: Vec<_> = (0..2 * PLACES + 1).map(|_| source.counters()).collect();
        for (n, route) in routes.iter().enumerate() {
            for _ in 0..n {
                route.add(n % 2);
            }
            route.add(0);
            route.add(2);
        }
        for (n, route) in routes.iter().enumerate() {
            assert_eq!(route.clone().total(), n as u64 + 1);
        }
    }
}
