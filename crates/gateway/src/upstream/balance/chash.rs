//! Consistent hashing: the ring of lua-resty-balancer's `resty.chash`, which APISIX uses, point
//! by point, so that gateways of both kinds in front of the same nodes agree.
//!
//! A node has 160 points for each unit of its weight. Each is the CRC-32 of the node's name
//! (`host:port` with zero bytes in place of the colons) and the four bytes of the point before
//! it, lowest first. A key belongs to the first point at or above its own CRC-32.

use std::sync::Arc;

use sluicegate_model::upstream as model;

use super::gcd;
use crate::expr::{Builtin, Template, VarName, Vars};

/// A ring over the nodes of one priority.
pub struct Chash {
    key: Arc<HashKey>,
    /// Where each point lies, and whose it is; in their order around the ring.
    points: Box<[(u32, u32)]>,
}

impl Chash {
    /// A ring over nodes `(index, name, weight)`. If all are of weight 0, all count alike.
    pub fn new<'a>(
        key: Arc<HashKey>,
        nodes: impl Iterator<Item = (usize, &'a str, u32)> + Clone,
    ) -> Self {
        Self::limited(key, nodes, UNITS_MAX)
    }

    fn limited<'a>(
        key: Arc<HashKey>,
        nodes: impl Iterator<Item = (usize, &'a str, u32)> + Clone,
        units_max: u64,
    ) -> Self {
        let divisor = nodes.clone().fold(0, |all, (_, _, weight)| gcd(all, u64::from(weight)));
        let units = |weight: u32| u64::from(weight).checked_div(divisor).unwrap_or(1);
        let total: u64 = nodes.clone().map(|(_, _, weight)| units(weight)).sum();
        // Differs: APISIX lays out as many points as the weights ask for.
        let scaled = |units: u64| match total > units_max && units > 0 {
            true => (units * units_max / total).max(1),
            false => units,
        };
        let mut points = Vec::new();
        for (at, name, weight) in nodes {
            let node = u32::try_from(at).unwrap_or(u32::MAX);
            let mut start = Crc::default();
            for (n, part) in name.split(':').enumerate() {
                if n > 0 {
                    start.update(&[0]);
                }
                start.update(part.as_bytes());
            }
            let mut point = 0_u32;
            for _ in 0..scaled(units(weight)) * POINTS_OF_A_UNIT {
                let mut crc = start;
                crc.update(&point.to_le_bytes());
                point = crc.value();
                points.push((point, node));
            }
        }
        // Where two nodes share a point, APISIX's choice is that of a hash table's order.
        points.sort_unstable();
        Self { key, points: points.into() }
    }

    /// The node that a request's key belongs to; if it is not `usable`, the next one around the
    /// ring that is.
    pub fn pick(&self, vars: &dyn Vars, usable: impl Fn(usize) -> bool) -> Option<usize> {
        self.find(self.key.hash(vars), usable)
    }

    fn find(&self, hash: u32, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let first = self.points.partition_point(|(point, _)| *point < hash);
        let (before, behind) = self.points.split_at(first);
        let mut last = None;
        behind.iter().chain(before).map(|(_, node)| *node).find_map(|node| {
            // What was just found wanting need not be asked again.
            if last == Some(node) {
                return None;
            }
            last = Some(node);
            let node = node as usize;
            usable(node).then_some(node)
        })
    }
}

/// What a request is hashed by.
pub enum HashKey {
    /// A variable, a header, a cookie or the consumer's name.
    Var(VarName),
    /// Several variables in a text.
    Combination(Template),
}

impl HashKey {
    /// Reads `hash_on` and `key`.
    pub fn compile(config: &model::Upstream) -> Result<Self, String> {
        let key = config.key.as_deref();
        let named = || key.ok_or_else(|| format!("hash_on {:?} needs a key", config.hash_on));
        Ok(match config.hash_on.as_str() {
            "" | "vars" => Self::Var(VarName::parse(named()?)),
            "header" => Self::Var(VarName::parse(&format!("http_{}", named()?))),
            "cookie" => Self::Var(VarName::parse(&format!("cookie_{}", named()?))),
            "consumer" => Self::Var(VarName::Builtin(Builtin::ConsumerName)),
            "vars_combinations" => Self::Combination(Template::parse(named()?)),
            other => return Err(format!("hash_on {other:?} is not known")),
        })
    }

    /// The key's hash; where it has no value, that of the client's address.
    fn hash(&self, vars: &dyn Vars) -> u32 {
        let of = |name: &VarName| {
            let value = vars.var(name)?;
            let mut crc = Crc::default();
            crc.update(&value.to_bytes()?);
            Some(crc.value())
        };
        let hash = match self {
            Self::Var(name) => of(name),
            Self::Combination(template) => {
                let mut crc = Crc::default();
                let resolved = template.fill(vars, |text| crc.update(text));
                (resolved > 0).then(|| crc.value())
            }
        };
        hash.or_else(|| of(&VarName::Builtin(Builtin::RemoteAddr))).unwrap_or_default()
    }
}

/// CRC-32 as of zlib, byte by byte: keys are short.
#[derive(Clone, Copy)]
struct Crc(u32);

impl Default for Crc {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc {
    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let at = (self.0 ^ u32::from(*byte)) & 0xff;
            self.0 = TABLE[at as usize] ^ (self.0 >> 8);
        }
    }

    fn value(self) -> u32 {
        !self.0
    }
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

const POINTS_OF_A_UNIT: u64 = 160;

/// Units of weight on one ring at most: 2.6 million points, 21 MB. Weights beyond are scaled down.
const UNITS_MAX: u64 = 1 << 14;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fmt::Write as _;

    use super::*;
    use crate::expr::Value;

    fn crc(text: &str) -> u32 {
        let mut crc = Crc::default();
        crc.update(text.as_bytes());
        crc.value()
    }

    fn ring(nodes: &[(&str, u32)]) -> Chash {
        let key = Arc::new(HashKey::Var(VarName::parse("uri")));
        Chash::new(key, nodes.iter().enumerate().map(|(at, (name, weight))| (at, *name, *weight)))
    }

    // Expected values: computed with lua-resty-balancer's own chash.lua and chash.c under nginx's
    // Lua module, with nodes named as APISIX names them. `ring` is the CRC-32 of all points in
    // their order, each as eight hexadecimal digits and the node's index; `picks` that of the
    // node and of the next other node for the keys key-0 to key-1999; `first` the first 32 pairs.
    #[test]
    fn the_ring_is_that_of_apisix() {
        for (nodes, points, all, picks, first) in [
            (
                &[("127.0.0.1:1980", 1), ("127.0.0.1:1981", 1), ("127.0.0.1:1982", 1)][..],
                480,
                4269294832,
                1422341615,
                "2020212101212121012012022101010210100201201012100221010212010112",
            ),
            (
                &[("10.0.0.1:80", 5), ("10.0.0.2:80", 3), ("10.0.0.3:8080", 2), ("10.0.0.4:80", 0)],
                1600,
                722122360,
                69665874,
                "0101010101101010020201011202200202100201210101010101200101212102",
            ),
            (
                &[("10.0.0.1:80", 100), ("10.0.0.2:80", 200)],
                480,
                173296241,
                3683787591,
                "1010101001011010010110011010100110011010100110100110101001011001",
            ),
            (
                &[("[::1]:80", 1), ("[2001:db8::7]:443", 7)],
                1280,
                2927913765,
                2005448877,
                "1001100110101010101010100110101010101010101010101010101010101010",
            ),
            (
                &[
                    ("127.0.0.1:1980", 3),
                    ("127.0.0.1:1981", 7),
                    ("127.0.0.2:1982", 11),
                    ("127.0.0.3:1983", 13),
                    ("192.168.44.55:65535", 17),
                ],
                8160,
                2725248013,
                1489931122,
                "1312342342143224142134234343214142342434422434344213431430432431",
            ),
        ] {
            let ring = ring(nodes);
            assert_eq!(ring.points.len(), points, "{nodes:?}");
            let mut text = String::new();
            for (point, node) in &ring.points {
                let _ = write!(text, "{point:08x}{node}");
            }
            assert_eq!(crc(&text), all, "{nodes:?}");
            let mut text = String::new();
            for n in 0..2000 {
                let hash = crc(&format!("key-{n}"));
                let picked = ring.find(hash, |_| true).unwrap_or(9);
                let next = ring.find(hash, |node| node != picked).unwrap_or(9);
                let _ = write!(text, "{picked}{next}");
            }
            assert_eq!(&text[..64], first, "{nodes:?}");
            assert_eq!(crc(&text), picks, "{nodes:?}");
        }
    }

    #[test]
    fn a_ring_has_a_limit() {
        let key = Arc::new(HashKey::Var(VarName::parse("uri")));
        let nodes = [(0, "a:80", u32::MAX), (1, "b:80", 1)];
        let ring = Chash::limited(key, nodes.into_iter(), 10);
        assert!((1440..=1760).contains(&ring.points.len()), "{}", ring.points.len());
        assert!(ring.find(0, |node| node == 1).is_some());
    }

    struct Table(HashMap<&'static str, &'static str>);

    impl Vars for Table {
        fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>> {
            self.0.get(name.to_string().as_str()).map(|text| Value::from(*text))
        }
    }

    #[test]
    fn a_key_comes_from_where_hash_on_says() {
        let vars = Table(HashMap::from([
            ("uri", "/u"),
            ("remote_addr", "192.0.2.1"),
            ("http_x_tenant", "t"),
            ("cookie_Sid", "s"),
            ("consumer_name", "jack"),
            ("arg_a", "1"),
        ]));
        for (hash_on, key, hashed) in [
            ("vars", Some("uri"), "/u"),
            ("vars", Some("arg_a"), "1"),
            ("vars", Some("arg_none"), "192.0.2.1"),
            ("header", Some("X-Tenant"), "t"),
            ("header", Some("x-none"), "192.0.2.1"),
            ("cookie", Some("Sid"), "s"),
            ("consumer", None, "jack"),
            ("vars_combinations", Some("$uri#$arg_a"), "/u#1"),
            ("vars_combinations", Some("$arg_x#$arg_y"), "192.0.2.1"),
            ("vars_combinations", Some("fixed"), "192.0.2.1"),
        ] {
            let config = model::Upstream {
                hash_on: hash_on.to_owned(),
                key: key.map(str::to_owned),
                ..Default::default()
            };
            let hash = HashKey::compile(&config).map(|key| key.hash(&vars));
            assert_eq!(hash, Ok(crc(hashed)), "{hash_on} {key:?}");
        }
    }
}
