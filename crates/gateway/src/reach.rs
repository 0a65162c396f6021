//! Can a server be reached? Its name, its port, its certificate and its clock, looked at step by
//! step, for people who search for what is wrong. Nothing that it runs is run.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;
use sluicegate_fetch::Connection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::client::TlsRequest;
use crate::core::now;
use crate::upstream::UpstreamDeps;

/// One step, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `dns`, `tcp`, or through an egress proxy `tunnel`; then `tls`, `clock`.
    pub name: &'static str,
    /// Did it go well?
    pub ok: bool,
    /// What was seen, or what to do.
    pub detail: String,
}

/// Looks at the server of a URL. The steps after one that failed are left out. `expects_date`: calls
/// depend on the server's clock, so that one that is not seen is not well.
pub async fn steps(url: &str, verify: bool, expects_date: bool, deps: &UpstreamDeps) -> Vec<Step> {
    let mut steps = Vec::new();
    let _ = look(url, verify, expects_date, deps, &mut steps).await;
    steps
}

/// Stops at the first step that failed: it is in the list.
async fn look(
    url: &str,
    verify: bool,
    expects_date: bool,
    deps: &UpstreamDeps,
    steps: &mut Vec<Step>,
) -> Result<(), ()> {
    let mut note = |name, outcome: Result<String, String>| {
        let ok = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|why| why);
        steps.push(Step { name, ok, detail });
        if ok { Ok(()) } else { Err(()) }
    };
    let uri: Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => return note("dns", Err(format!("this is no URL: {error}"))),
    };
    let tls = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let way = deps.egress.as_ref().and_then(|proxies| proxies.way(tls, host, port));
    let stream: Box<dyn Connection> = match way {
        // The proxy resolves the name. Inside the tunnel it is the server that is spoken with.
        Some(way) => match way.open(STEP_TIME).await {
            Ok(stream) => {
                note("tunnel", Ok(format!("the egress proxy opens one to {host}:{port}")))?;
                Box::new(stream)
            }
            Err(error) => return note("tunnel", Err(error.to_string())),
        },
        None => {
            let (addr, told) = match address(host, port, deps).await {
                Ok(found) => found,
                Err(why) => return note("dns", Err(why)),
            };
            note("dns", Ok(told))?;
            match tokio::time::timeout(STEP_TIME, TcpStream::connect(addr)).await {
                Ok(Ok(tcp)) => {
                    note("tcp", Ok(format!("connected to {addr}")))?;
                    Box::new(tcp)
                }
                Ok(Err(error)) => {
                    return note("tcp", Err(format!("cannot connect to {addr}: {error}")));
                }
                Err(_) => {
                    let why = format!(
                        "no connection to {addr} within {STEP_TIME:?}: a firewall, or a proxy that has to be gone through?"
                    );
                    return note("tcp", Err(why));
                }
            }
        }
    };
    if !tls {
        note("tls", Ok("not used".to_owned()))?;
        return note("clock", clock(stream, expects_date).await);
    }
    let request = TlsRequest { server_name: host.to_owned(), verify, h2: false, client: None };
    let target = match deps.tls.target(&request) {
        Ok(target) => target,
        Err(why) => return note("tls", Err(why)),
    };
    let shaken = TlsConnector::from(target.config.clone()).connect(target.name.clone(), stream);
    match tokio::time::timeout(STEP_TIME, shaken).await {
        Ok(Ok(stream)) => {
            let version =
                stream.get_ref().1.protocol_version().and_then(|v| v.as_str().map(str::to_owned));
            let version = version.unwrap_or_default();
            let believed = if verify {
                "the certificate is believed"
            } else {
                "the certificate was not verified"
            };
            note("tls", Ok(format!("{version}, {believed}")))?;
            note("clock", clock(stream, expects_date).await)
        }
        Ok(Err(error)) => note("tls", Err(format!("the handshake failed: {error}"))),
        Err(_) => note("tls", Err(format!("no handshake within {STEP_TIME:?}"))),
    }
}

/// An address of the host, and what is told of it.
async fn address(
    host: &str,
    port: u16,
    deps: &UpstreamDeps,
) -> Result<(SocketAddr, String), String> {
    if let Ok(ip) = host.parse() {
        return Ok((SocketAddr::new(ip, port), format!("{ip} is an address already")));
    }
    match deps.resolver.name(host).first(STEP_TIME).await {
        Ok(ip) => Ok((SocketAddr::new(ip, port), format!("{host} is {ip}"))),
        Err(why) => Err(format!("{host} does not resolve: {why}")),
    }
}

/// The server's `Date` beside our clock. The request has no `Host`, so any server refuses it before
/// anything runs (RFC 9112, section 3.2). It need not close the connection after that.
async fn clock(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    expects_date: bool,
) -> Result<String, String> {
    let mut head = Vec::new();
    let asked = tokio::time::timeout(STEP_TIME, async {
        stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await?;
        stream.flush().await?;
        let mut limited = stream.take(HEAD_BYTES_MAX);
        while memchr::memmem::find(&head, b"\r\n\r\n").is_none() {
            if limited.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    });
    let asked = asked.await;
    // What came before a server fell silent counts.
    let head = String::from_utf8_lossy(&head);
    let date = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim())
    });
    let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else {
        let why = match asked {
            Err(_) => format!("no answer within {STEP_TIME:?}"),
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(())) => "the server tells no time".to_owned(),
        };
        return match expects_date {
            true => Err(format!("not seen: {why}; AWS tells one, and signatures depend on it")),
            false => Ok(format!("not seen: {why}")),
        };
    };
    let ours = now();
    let (apart, which) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let told = format!("ours is {} s {which} the server's", apart.as_secs());
    if apart > CLOCK_APART_MAX {
        return Err(format!("{told}: set the clock (NTP); AWS takes signatures of five minutes"));
    }
    Ok(told)
}

/// How long each step may take.
const STEP_TIME: Duration = Duration::from_secs(5);
/// The most bytes of an answer that are looked at.
const HEAD_BYTES_MAX: u64 = 8 << 10;
/// A difference that AWS would refuse, with some room.
const CLOCK_APART_MAX: Duration = Duration::from_secs(240);
