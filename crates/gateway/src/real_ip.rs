//! The client's address behind trusted proxies: nginx's `real_ip_*` rules.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::exchange::Connection;
use crate::http::headers::Headers;
use crate::settings::RealIp;

/// Is an address in one of the networks? An IPv4 address in IPv6 clothes counts as IPv4.
pub(crate) fn contains(networks: &[IpNet], addr: IpAddr) -> bool {
    let addr = addr.to_canonical();
    networks.iter().any(|n| n.contains(&addr))
}

/// The client's address and port for one request.
pub(crate) fn client(rules: &RealIp, connection: &Connection, headers: &Headers) -> (IpAddr, u16) {
    let peer = (connection.peer.ip().to_canonical(), connection.peer.port());
    if !connection.real_ip_peer || rules.header.is_empty() {
        return peer;
    }
    if rules.header == "x-forwarded-for" {
        let list: Vec<&[u8]> = headers
            .all(&rules.header)
            .flat_map(|v| v.split(|b| *b == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        let mut found = peer;
        for item in list.iter().rev() {
            let Some(addr) = parse(item) else { break };
            found = addr;
            if !rules.recursive || !contains(&rules.from, addr.0) {
                break;
            }
        }
        return found;
    }
    headers.get(&rules.header).and_then(parse).unwrap_or(peer)
}

/// An address with or without a port.
fn parse(text: &[u8]) -> Option<(IpAddr, u16)> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Some((addr.to_canonical(), 0));
    }
    if let Ok(addr) = text.parse::<std::net::SocketAddr>() {
        return Some((addr.ip().to_canonical(), addr.port()));
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    Some((inner.parse::<IpAddr>().ok()?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_believed_peer_is_believed() {
        let from: Vec<IpNet> = vec!["127.0.0.1/32".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        for (header, recursive, believed, values, expected) in [
            ("x-real-ip", false, true, vec!["5.6.7.8"], "5.6.7.8:0"),
            ("x-real-ip", false, true, vec!["[::1]:99"], "[::1]:99"),
            ("x-real-ip", false, true, vec!["nonsense"], "127.0.0.1:7"),
            ("x-real-ip", false, false, vec!["5.6.7.8"], "127.0.0.1:7"),
            ("x-forwarded-for", false, true, vec!["1.1.1.1, 10.0.0.1"], "10.0.0.1:0"),
            ("x-forwarded-for", true, true, vec!["9.9.9.9", "1.1.1.1, 10.0.0.1"], "1.1.1.1:0"),
            ("x-forwarded-for", true, true, vec!["bad, 10.0.0.1"], "10.0.0.1:0"),
            ("", false, true, vec!["5.6.7.8"], "127.0.0.1:7"),
        ] {
            let rules = RealIp { header: header.into(), from: from.clone(), recursive };
            let connection = Connection {
                number: 1,
                peer: "127.0.0.1:7".parse().unwrap(),
                peer_text: "127.0.0.1".into(),
                local: "127.0.0.1:80".parse().unwrap(),
                tls: None,
                real_ip_peer: believed,
                trusted_peer: None,
            };
            let mut headers = Headers::new();
            for value in &values {
                headers.append("X-Real-IP", value.as_bytes());
                headers.append("X-Forwarded-For", value.as_bytes());
            }
            let (ip, port) = client(&rules, &connection, &headers);
            assert_eq!(std::net::SocketAddr::new(ip, port).to_string(), expected, "{values:?}");
        }
    }
}
