//! Sets of IP addresses and CIDR ranges, as `remote_addrs` and `ipmatch` name them.
//!
//! Invariant: the ranges of a set are sorted and do not overlap, so that a look-up is one binary
//! search however many entries the configuration holds.

use std::net::IpAddr;

use ipnet::IpNet;

/// A set of IPv4 and IPv6 addresses, built from single addresses and CIDR ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl IpSet {
    /// Parses entries such as `10.0.0.0/8`, `127.0.0.1`, `::1` or `fe80::/32`.
    pub fn parse<I>(entries: I) -> Result<Self, String>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for entry in entries {
            let text = entry.as_ref();
            let net = (text.parse::<IpNet>().ok())
                .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
                .ok_or_else(|| format!("invalid ip address: {text}"))?;
            match net {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Ok(Self { v4: disjoint(v4), v6: disjoint(v6) })
    }

    /// Whether the set holds this address. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => holds(&self.v4, address.to_bits()),
            IpAddr::V6(address) => holds(&self.v6, address.to_bits()),
        }
    }
}

fn holds<N: Ord + Copy>(ranges: &[(N, N)], number: N) -> bool {
    let after = ranges.partition_point(|&(first, _)| first <= number);
    after > 0 && ranges[after - 1].1 >= number
}

/// Sorts ranges and merges those that overlap.
fn disjoint<N: Ord + Copy>(mut ranges: Vec<(N, N)>) -> Box<[(N, N)]> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
    ranges.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ranges_of_both_families_are_found() {
        let set =
            IpSet::parse(["127.0.0.1", "192.168.3.7/16", "192.168.4.0/24", "::1", "fe80::/32"]);
        let set = set.expect("all entries are well-formed");
        for (address, inside) in [
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("192.168.0.0", true),
            ("192.168.255.255", true),
            ("192.169.0.0", false),
            ("192.167.255.255", false),
            ("::ffff:127.0.0.1", true),
            ("::1", true),
            ("::2", false),
            ("fe80::1", true),
            ("fe81::1", false),
            ("fe80:0:ffff::", true),
            ("fe80:1::", false),
        ] {
            let parsed: IpAddr = address.parse().expect("table addresses are well-formed");
            assert_eq!(set.contains(parsed), inside, "{address}");
        }
    }

    #[test]
    fn a_range_over_everything_holds_one_family_only() {
        let set = IpSet::parse(["0.0.0.0/0"]).expect("well-formed");
        assert!(set.contains(IpAddr::from([255, 255, 255, 255])));
        assert!(!set.contains("::2".parse().expect("well-formed")));
        assert!(!IpSet::default().contains(IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in
            ["", "localhost", "1.2.3", "1.2.3.4/33", "::1/129", "1.2.3.4/", "01.2.3.4", " ::1"]
        {
            assert_eq!(IpSet::parse([text]), Err(format!("invalid ip address: {text}")));
        }
    }
}
