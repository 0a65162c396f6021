//! A node under watch: its state and counters, by the rules of lua-resty-healthcheck.
//!
//! A node is `healthy` or `unhealthy`, or on its way from one to the other (`mostly_…`). What
//! speaks for the state it is in is not counted; what speaks against it is, by kind, until one
//! kind reaches its threshold. A success forgets all failures, a failure all successes.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::super::NodeAddr;

/// A node under watch. It outlives changes of the configuration.
pub struct Target {
    /// Which one it is.
    pub id: TargetId,
    /// Where probes go.
    pub(super) addr: NodeAddr,
    health: AtomicU8,
    counters: Mutex<Counters>,
}

/// What tells targets of an upstream apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetId {
    /// The node's address or name.
    pub host: Box<str>,
    /// The port that is probed.
    pub port: u16,
    /// `checks.active.host`, or the node's address.
    pub hostname: Box<str>,
    /// The `Host` of probes, where it differs from that.
    pub host_header: Option<Box<str>>,
}

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the state it spells")]
pub enum Health {
    Healthy,
    MostlyHealthy,
    MostlyUnhealthy,
    Unhealthy,
}

/// What was seen since the state last changed its mind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each counts what it spells")]
pub struct Counters {
    pub success: u8,
    pub http_failure: u8,
    pub tcp_failure: u8,
    pub timeout_failure: u8,
}

/// What a probe or a request saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A good answer.
    Success,
    /// A bad status, or none.
    HttpFailure,
    /// No connection, or one that broke.
    TcpFailure,
    /// A time limit ran out.
    Timeout,
}

impl Target {
    pub(super) fn new(id: TargetId, addr: NodeAddr) -> Self {
        Self { id, addr, health: AtomicU8::new(Health::Healthy as u8), counters: Mutex::default() }
    }

    /// How it is.
    pub fn health(&self) -> Health {
        Health::of(self.health.load(Ordering::Acquire))
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the Control API shows it.
    pub fn show(&self) -> Value {
        let Counters { success, http_failure, tcp_failure, timeout_failure } = self.counters();
        let TargetId { host, port, hostname, host_header } = &self.id;
        let mut shown = json!({
            "counter": {
                "http_failure": http_failure,
                "success": success,
                "tcp_failure": tcp_failure,
                "timeout_failure": timeout_failure,
            },
            "hostname": hostname,
            "ip": match self.addr.known() {
                Some(addr) => addr.ip().to_string(),
                None => host.to_string(),
            },
            "port": port,
            "status": self.health().as_str(),
        });
        if let Some(header) = host_header {
            shown["hostheader"] = (**header).into();
        }
        shown
    }

    /// Counts what was seen; at `limit` of it the state changes. Says what the state was and is,
    /// if it changed.
    pub fn see(&self, seen: Seen, limit: u8) -> Option<(Health, Health)> {
        let settled = match seen {
            Seen::Success => Health::Healthy,
            _ => Health::Unhealthy,
        };
        if limit == 0 || self.health() == settled {
            return None;
        }
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.health();
        if before == settled {
            return None;
        }
        let count = counters.count(seen);
        let after = match before {
            _ if count >= limit => settled,
            Health::Healthy => Health::MostlyHealthy,
            Health::Unhealthy => Health::MostlyUnhealthy,
            between => between,
        };
        if after == before {
            return None;
        }
        self.health.store(after as u8, Ordering::Release);
        Some((before, after))
    }
}

impl Counters {
    /// Counts; says how many of the kind there are now.
    fn count(&mut self, seen: Seen) -> u8 {
        if seen == Seen::Success {
            *self = Self { success: self.success, ..Self::default() };
        } else {
            self.success = 0;
        }
        let counter = match seen {
            Seen::Success => &mut self.success,
            Seen::HttpFailure => &mut self.http_failure,
            Seen::TcpFailure => &mut self.tcp_failure,
            Seen::Timeout => &mut self.timeout_failure,
        };
        *counter = counter.saturating_add(1);
        *counter
    }
}

impl Health {
    const ALL: [Self; 4] =
        [Self::Healthy, Self::MostlyHealthy, Self::MostlyUnhealthy, Self::Unhealthy];

    fn of(number: u8) -> Self {
        Self::ALL.into_iter().find(|health| *health as u8 == number).unwrap_or(Self::Healthy)
    }

    /// Does such a node get requests?
    pub fn is_up(self) -> bool {
        matches!(self, Self::Healthy | Self::MostlyHealthy)
    }

    /// As the Control API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::MostlyHealthy => "mostly_healthy",
            Self::MostlyUnhealthy => "mostly_unhealthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_change_at_their_thresholds() {
        use Health::*;
        use Seen::*;
        let target = Target::new(
            TargetId { host: "a".into(), port: 80, hostname: "a".into(), host_header: None },
            NodeAddr::Ip(([127, 0, 0, 1], 80).into()),
        );
        let counted = |success, http_failure, tcp_failure, timeout_failure| Counters {
            success,
            http_failure,
            tcp_failure,
            timeout_failure,
        };
        for (step, (seen, limit, health, counters)) in [
            // Nothing speaks against it: nothing is counted.
            (Success, 2, Healthy, counted(0, 0, 0, 0)),
            (TcpFailure, 2, MostlyHealthy, counted(0, 0, 1, 0)),
            // Kinds count for themselves.
            (HttpFailure, 2, MostlyHealthy, counted(0, 1, 1, 0)),
            (Timeout, 0, MostlyHealthy, counted(0, 1, 1, 0)),
            // A success forgets failures, and is one of two that are asked for.
            (Success, 2, MostlyHealthy, counted(1, 0, 0, 0)),
            (TcpFailure, 2, MostlyHealthy, counted(0, 0, 1, 0)),
            (Success, 2, MostlyHealthy, counted(1, 0, 0, 0)),
            (Success, 2, Healthy, counted(2, 0, 0, 0)),
            (Timeout, 2, MostlyHealthy, counted(0, 0, 0, 1)),
            (Timeout, 2, Unhealthy, counted(0, 0, 0, 2)),
            (TcpFailure, 2, Unhealthy, counted(0, 0, 0, 2)),
            (Success, 3, MostlyUnhealthy, counted(1, 0, 0, 0)),
            (HttpFailure, 2, MostlyUnhealthy, counted(0, 1, 0, 0)),
            (HttpFailure, 2, Unhealthy, counted(0, 2, 0, 0)),
            (Success, 1, Healthy, counted(1, 0, 0, 0)),
        ]
        .into_iter()
        .enumerate()
        {
            let before = target.health();
            let changed = target.see(seen, limit);
            assert_eq!((target.health(), target.counters()), (health, counters), "step {step}");
            assert_eq!(changed, (before != health).then_some((before, health)), "step {step}");
        }
    }
}
