//! The PROXY protocol's header, versions 1 and 2, as HAProxy's specification defines it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Reads the header; the client's and the server's address, or nothing for a connection
/// that speaks of itself (`LOCAL`, `UNKNOWN`).
pub(super) async fn read(tcp: &mut TcpStream) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let mut start = [0_u8; 12];
    tcp.read_exact(&mut start).await?;
    if start == SIGNATURE {
        let mut head = [0_u8; 4];
        tcp.read_exact(&mut head).await?;
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if len > V2_BYTES_MAX {
            return Err(bad("the header is too long"));
        }
        let mut rest = vec![0; len];
        tcp.read_exact(&mut rest).await?;
        return version_2(head[0], head[1], &rest);
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_BYTES_MAX || !line.starts_with(b"PROXY ") {
            return Err(bad("the header is neither version 1 nor version 2"));
        }
        // Byte by byte: what follows the line is not ours to read.
        line.push(tcp.read_u8().await?);
    }
    version_1(&line[..line.len() - 2])
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn version_1(line: &[u8]) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let text = std::str::from_utf8(line).map_err(|_| bad("the header is not text"))?;
    let mut words = text.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        return Ok(None);
    }
    let mut next = || words.next().ok_or_else(|| bad("the header is too short"));
    let ip = |text: &str| text.parse::<IpAddr>().map_err(|_| bad("an address is malformed"));
    let port = |text: &str| text.parse::<u16>().map_err(|_| bad("a port is malformed"));
    let (source, target) = (ip(next()?)?, ip(next()?)?);
    let (from, to) = (port(next()?)?, port(next()?)?);
    if source.is_ipv4() != (family == "TCP4") || source.is_ipv4() != target.is_ipv4() {
        return Err(bad("an address is of another family"));
    }
    Ok(Some((SocketAddr::new(source, from), SocketAddr::new(target, to))))
}

fn version_2(version: u8, family: u8, rest: &[u8]) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    match version {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(bad("the command is unknown")),
    }
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match (family >> 4, rest.len()) {
        (1, 12..) => {
            let ip = |at: usize| Ipv4Addr::new(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]);
            Ok(Some((
                SocketAddr::new(ip(0).into(), port(8)),
                SocketAddr::new(ip(4).into(), port(10)),
            )))
        }
        (2, 36..) => {
            let ip = |at: usize| {
                let mut octets = [0_u8; 16];
                octets.copy_from_slice(&rest[at..at + 16]);
                IpAddr::from(Ipv6Addr::from(octets))
            };
            Ok(Some((SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34)))))
        }
        (0 | 3, _) => Ok(None),
        _ => Err(bad("the address is too short")),
    }
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1, by its specification.
const V1_BYTES_MAX: usize = 107;

/// Bytes of addresses and extensions taken in version 2.
const V2_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_the_ends() {
        let show = |r: io::Result<Option<(SocketAddr, SocketAddr)>>| match r {
            Ok(Some((a, b))) => format!("{a} {b}"),
            Ok(None) => "none".into(),
            Err(e) => format!("error: {e}"),
        };
        for (line, expected) in [
            ("PROXY TCP4 1.2.3.4 5.6.7.8 9 10", "1.2.3.4:9 5.6.7.8:10"),
            ("PROXY TCP6 ::1 ::2 9 10", "[::1]:9 [::2]:10"),
            ("PROXY UNKNOWN", "none"),
            ("PROXY TCP4 ::1 ::2 9 10", "error: an address is of another family"),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 9", "error: the header is too short"),
            ("PROXY TCP4 1.2.3.4 5.6.7.8 9 99999", "error: a port is malformed"),
        ] {
            assert_eq!(show(version_1(line.as_bytes())), expected, "{line}");
        }
        let v4 = [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10];
        assert_eq!(show(version_2(0x21, 0x11, &v4)), "1.2.3.4:9 5.6.7.8:10");
        assert_eq!(show(version_2(0x20, 0, &[])), "none");
        assert_eq!(show(version_2(0x21, 0x21, &v4)), "error: the address is too short");
    }
}
