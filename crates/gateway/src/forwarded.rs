//! What the far side is told about the client: `X-Forwarded-*`, `X-Real-IP`.
//!
//! As in APISIX: `X-Forwarded-Proto`, `-Host` and `-Port` say what this gateway saw, unless
//! a peer in `apisix.trusted_addresses` sent its own; `Forwarded` goes with them. Once
//! trusted addresses are configured, other peers' `X-Forwarded-For` is dropped.

use smallvec::SmallVec;

use crate::exchange::{Exchange, Request};
use crate::http::headers::write_line;
use crate::http::{Headers, Known};

/// What to do with a client's forwarding headers.
#[derive(Clone, Copy)]
pub(crate) struct Forwarded {
    trusted: bool,
    keep_for: bool,
    /// What plugins said themselves, or took away.
    own: OwnForwarded,
}

/// Which of `X-Forwarded-Proto`, `-Host` and `-Port` plugins gave a request: those go on as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnForwarded(u8);

impl OwnForwarded {
    /// A plugin set or removed the field of this name.
    pub fn note(&mut self, name: &str) {
        self.0 |= Self::bit(Known::of(name.as_bytes()));
    }

    /// What is noted in `more` counts as well.
    pub fn add(&mut self, more: Self) {
        self.0 |= more.0;
    }

    fn has(self, known: Known) -> bool {
        self.0 & Self::bit(known) != 0
    }

    fn bit(known: Known) -> u8 {
        match known {
            Known::XForwardedProto => 1,
            Known::XForwardedHost => 2,
            Known::XForwardedPort => 4,
            _ => 0,
        }
    }
}

impl Forwarded {
    /// Decides for one request.
    pub(crate) fn of(exchange: &Exchange) -> Self {
        let trusted = exchange.connection.trusted_peer;
        let own = exchange.own_forwarded;
        Self { trusted: trusted == Some(true), keep_for: trusted != Some(false), own }
    }

    /// Is a client's field replaced or dropped when a request is proxied?
    pub(crate) fn replaces(self, known: Known) -> bool {
        match known {
            Known::XForwardedFor | Known::XRealIp => true,
            Known::XForwardedProto | Known::XForwardedHost | Known::XForwardedPort => {
                !self.trusted && !self.own.has(known)
            }
            Known::Forwarded => !self.trusted,
            _ => false,
        }
    }

    /// The three that tell where a request came in, as far as they are to be set.
    fn seen<'a>(
        self,
        exchange: &'a Exchange,
        port: &'a mut itoa::Buffer,
    ) -> SmallVec<[(&'static str, &'a [u8]); 4]> {
        let headers = &exchange.request.headers;
        let mut fields = SmallVec::new();
        let mut add = |known, name, value| {
            let own = self.own.has(known);
            if !own && (!self.trusted || headers.known(known).is_none()) {
                fields.push((name, value));
            }
        };
        add(Known::XForwardedProto, "X-Forwarded-Proto", exchange.connection.scheme().as_bytes());
        add(
            Known::XForwardedHost,
            "X-Forwarded-Host",
            headers.known(Known::Host).unwrap_or_default(),
        );
        let host = headers.known(Known::Host).unwrap_or_default();
        let port = match named_port(host) {
            Some(named) => named,
            None => port.format(exchange.connection.local.port()).as_bytes(),
        };
        add(Known::XForwardedPort, "X-Forwarded-Port", port);
        fields
    }

    /// What route conditions see in place of a client's field: else whoever is not trusted could
    /// choose a route by them. `None`: the client's own; `Some(None)`: nothing.
    pub(crate) fn instead(self, exchange: &Exchange, name: &str) -> Option<Option<Vec<u8>>> {
        if !name.starts_with("x-forwarded-") && name != "forwarded" {
            return None;
        }
        let mut port = itoa::Buffer::new();
        let seen = self.seen(exchange, &mut port);
        if let Some((_, value)) = seen.iter().find(|(seen, _)| seen.eq_ignore_ascii_case(name)) {
            return Some(Some(value.to_vec()));
        }
        let dropped = match name {
            "forwarded" => !self.trusted,
            "x-forwarded-for" => !self.keep_for,
            _ => false,
        };
        dropped.then_some(None)
    }

    /// Writes what `X-Forwarded-For` says: what the client was believed, then its address.
    fn write_chain(self, exchange: &Exchange, address: &[u8], out: &mut Vec<u8>) {
        if self.keep_for {
            for value in exchange.request.headers.all_known(Known::XForwardedFor) {
                out.extend_from_slice(value);
                out.extend_from_slice(b", ");
            }
        }
        out.extend_from_slice(address);
    }

    /// Writes the fields of a proxied request.
    pub(crate) fn write_proxied(self, exchange: &Exchange, out: &mut Vec<u8>) {
        let address = exchange.remote_addr_text();
        write_line(out, X_REAL_IP.as_bytes(), &address);
        out.extend_from_slice(X_FORWARDED_FOR.as_bytes());
        out.extend_from_slice(b": ");
        self.write_chain(exchange, &address, out);
        out.extend_from_slice(b"\r\n");
        let mut port = itoa::Buffer::new();
        for (name, value) in self.seen(exchange, &mut port) {
            write_line(out, name.as_bytes(), value);
        }
    }

    /// The same as a list.
    pub(crate) fn proxied(self, exchange: &Exchange) -> Vec<(String, Vec<u8>)> {
        let mut text = Vec::new();
        self.write_proxied(exchange, &mut text);
        text.split(|b| *b == b'\n')
            .filter_map(|line| {
                let line = line.strip_suffix(b"\r")?;
                let colon = memchr::memchr(b':', line)?;
                let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
                Some((name, line[colon + 2..].to_vec()))
            })
            .collect()
    }

    /// Does a client's field reach a function?
    pub(crate) fn keeps_for_function(self, known: Known) -> bool {
        match known {
            Known::XForwardedFor => self.keep_for,
            Known::XRealIp => true,
            known => !self.replaces(known),
        }
    }

    /// Adds the fields of a function's request: the three of [`Forwarded::seen`], in lower
    /// case as APISIX's functions get them; nothing is added about the address.
    pub(crate) fn add_for_function(self, exchange: &Exchange, headers: &mut Headers) {
        let mut port = itoa::Buffer::new();
        for (name, value) in self.seen(exchange, &mut port) {
            let name = match name {
                "X-Forwarded-Proto" => "x-forwarded-proto",
                "X-Forwarded-Host" => "x-forwarded-host",
                _ => "x-forwarded-port",
            };
            headers.append(name, value);
        }
    }
}

/// What an upstream would be told about the client, for plugins that tell it in another form.
pub struct ForwardedFields {
    rule: Forwarded,
    list: SmallVec<[Field; 5]>,
}

/// A name and its value.
type Field = (&'static str, SmallVec<[u8; 40]>);

impl ForwardedFields {
    /// Those of a request.
    pub fn of(exchange: &Exchange) -> Self {
        let rule = Forwarded::of(exchange);
        let address = exchange.remote_addr_text();
        let mut chain = Vec::new();
        rule.write_chain(exchange, &address, &mut chain);
        let mut list = SmallVec::new();
        list.push((X_REAL_IP, SmallVec::from_slice(&address)));
        list.push((X_FORWARDED_FOR, chain.into()));
        let mut port = itoa::Buffer::new();
        let seen = rule.seen(exchange, &mut port);
        list.extend(seen.into_iter().map(|(name, value)| (name, SmallVec::from_slice(value))));
        Self { rule, list }
    }

    /// Is a client's field left out, since one of these stands for it or nobody believes it?
    pub fn replaces(&self, known: Known) -> bool {
        self.rule.replaces(known)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.list.iter().map(|(name, value)| (*name, value.as_slice()))
    }
}

const X_REAL_IP: &str = "X-Real-IP";
const X_FORWARDED_FOR: &str = "X-Forwarded-For";

/// The port a `Host` names: where the client connected, as it sees it. Behind a mapped port that is
/// not the one we listen on.
fn named_port(host: &[u8]) -> Option<&[u8]> {
    let port = &host[memchr::memrchr(b':', host)? + 1..];
    (!port.is_empty() && port.iter().all(u8::is_ascii_digit)).then_some(port)
}

/// The fields that a `Connection` header names beyond the usual ones and go no further: those that came
/// with it, so that nobody takes away what plugins tell an upstream (who sends a request).
pub(crate) struct ConnectionTokens<'a>(SmallVec<[&'a [u8]; 2]>);

impl<'a> ConnectionTokens<'a> {
    pub(crate) fn of(headers: &'a Headers) -> Self {
        let named = headers.named_by_connection().filter(|token| !headers.has_own(token));
        Self(named.collect())
    }

    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.0.iter().any(|n| n.eq_ignore_ascii_case(name))
    }
}

/// Does the client ask to switch protocols (RFC 9110 section 7.8)?
pub(crate) fn wants_upgrade(request: &Request) -> bool {
    request.headers.known(Known::Upgrade).is_some() && request.headers.connection_has("upgrade")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_host_is_what_stands_behind_its_last_colon() {
        for (host, port) in [
            ("gate.test:81", Some("81")),
            ("[::1]:9080", Some("9080")),
            ("[::1]", None),
            ("gate.test", None),
            ("gate.test:", None),
            ("", None),
        ] {
            assert_eq!(named_port(host.as_bytes()), port.map(str::as_bytes), "{host}");
        }
    }
}
