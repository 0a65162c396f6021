//! Ports for servers that may be down for a while.
//!
//! Uses nothing but `std`, as the store's tests include this file as it is.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::TcpListener;

/// A port that was free a moment ago, out of those that systems hand to nobody by themselves: what
/// is bound to port 0 or connects does not take it, even while its server is down. Where port 0 can
/// be used, use it.
pub fn free_port() -> u16 {
    let seed = RandomState::new().build_hasher().finish();
    let start = PORTS.start + (seed % u64::from(PORTS.end - PORTS.start)) as u16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (start..PORTS.end).chain(PORTS.start..start).find(free).expect("loopback has a free port")
}

/// Below `net.ipv4.ip_local_port_range` as Linux has it, above what people choose.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
