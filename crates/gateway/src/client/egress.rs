//! Calls that leave by an HTTP proxy: which of them do, and the tunnel they go through.
//!
//! Every call is tunnelled with `CONNECT` (RFC 9110 section 9.3.6), those to plain `http://`
//! addresses too: what the proxy answers can then never pass for what the function answers, and
//! a signed request arrives as it was signed. Names are resolved by the proxy.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::http::{StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::head::{HeadError, HeadLimits, ResponseHead};
use crate::http::headers::Headers;
use crate::io::{Stream, within};
use crate::upstream::resolve::{Name, NoAddress, Resolver};

use super::{TlsClients, TlsRequest, TlsTarget};

/// `sluicegate.egress_proxy` as it is written.
#[derive(Clone, Default)]
pub struct EgressSettings {
    /// The proxy of calls to `https://` addresses; empty for none. It may hold a password.
    pub https_proxy: String,
    /// The proxy of calls to `http://` addresses; empty for none. It may hold a password.
    pub http_proxy: String,
    /// Whom no proxy is used for.
    pub no_proxy: Vec<String>,
}

/// The proxies by which calls leave, compiled.
pub struct Egress {
    https: Option<Arc<Proxy>>,
    http: Option<Arc<Proxy>>,
    direct: Direct,
    tunnels: Mutex<HashMap<(bool, String), Arc<Tunnelled>>>,
}

/// The way to one authority through a proxy.
pub struct Tunnelled {
    /// Never given twice; 0 stands for the direct way. Invariant: connections are pooled by it,
    /// so none that was made for one authority, or without a proxy, serves another.
    id: u64,
    proxy: Arc<Proxy>,
    /// Host and port, as `CONNECT` has them.
    authority: String,
}

struct Proxy {
    /// Scheme, host and port: what may be shown.
    shown: String,
    host: ProxyHost,
    port: u16,
    tls: Option<Arc<TlsTarget>>,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

enum ProxyHost {
    Ip(IpAddr),
    Name(Arc<Name>),
}

impl Egress {
    /// Compiles the settings; `None` when they name no proxy.
    ///
    /// # Errors
    /// Which setting cannot be used, and why; nothing of a password is in it.
    pub fn new(
        settings: &EgressSettings,
        resolver: &Arc<Resolver>,
        tls: &TlsClients,
    ) -> Result<Option<Arc<Self>>, String> {
        let proxy = |key: &str, url: &str| match url.trim() {
            "" => Ok(None),
            url => Proxy::parse(url, resolver, tls)
                .map(|proxy| Some(Arc::new(proxy)))
                .map_err(|why| format!("{key} {why}")),
        };
        let https = proxy("https_proxy", &settings.https_proxy)?;
        let http = proxy("http_proxy", &settings.http_proxy)?;
        let direct = Direct::parse(&settings.no_proxy)?;
        if https.is_none() && http.is_none() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self { https, http, direct, tunnels: Mutex::default() })))
    }

    /// The way to a host, without brackets; `None` for the direct one.
    pub fn way(&self, tls: bool, host: &str, port: u16) -> Option<Arc<Tunnelled>> {
        let proxy = if tls { &self.https } else { &self.http }.as_ref()?;
        if self.direct.takes(host, port) {
            return None;
        }
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let mut tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (tls, authority);
        if let Some(way) = tunnels.get(&key) {
            return Some(way.clone());
        }
        if tunnels.len() >= WAYS_KEPT {
            tunnels.retain(|_, way| Arc::strong_count(way) > 1);
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let way = Arc::new(Tunnelled { id, proxy: proxy.clone(), authority: key.1.clone() });
        tunnels.insert(key, way.clone());
        Some(way)
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |proxy: &Option<Arc<Proxy>>| proxy.as_ref().map(|proxy| proxy.shown.clone());
        f.debug_struct("Egress")
            .field("https", &shown(&self.https))
            .field("http", &shown(&self.http))
            .finish_non_exhaustive()
    }
}

impl Tunnelled {
    /// A number for this way alone; never 0.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The proxy, without user name and password.
    pub fn proxy(&self) -> &str {
        &self.proxy.shown
    }

    /// The host and port it leads to.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// An address of the proxy; waits for the first if its name was never resolved.
    ///
    /// # Errors
    /// The proxy's name does not resolve.
    pub async fn address(&self, limit: Duration) -> Result<SocketAddr, EgressError> {
        let ip = match &self.proxy.host {
            ProxyHost::Ip(ip) => *ip,
            ProxyHost::Name(name) => match name.next() {
                Some(ip) => ip,
                None => name.first(limit).await.map_err(|cause| {
                    self.failed(match cause {
                        NoAddress::Told(cause) => Fault::Name(cause),
                        NoAddress::Late(limit) => Fault::Late(limit),
                    })
                })?,
            },
        };
        Ok(SocketAddr::new(ip, self.proxy.port))
    }

    /// Connects within `limit`, the look-up of the proxy's name included.
    ///
    /// # Errors
    /// There is no tunnel.
    pub async fn open(&self, limit: Duration) -> Result<Stream, EgressError> {
        let began = Instant::now();
        let addr = self.address(limit).await?;
        let left = limit.saturating_sub(began.elapsed());
        let opened = within(left, self.connect(addr)).await;
        opened.unwrap_or_else(|| Err(self.late(limit)))
    }

    /// Connects to the proxy at `addr` and has it open the tunnel.
    pub(super) async fn connect(&self, addr: SocketAddr) -> Result<Stream, EgressError> {
        let tcp = TcpStream::connect(addr).await;
        let tcp = tcp.map_err(|source| self.failed(Fault::Connect(source)))?;
        super::connect::tune(&tcp).map_err(|source| self.failed(Fault::Connect(source)))?;
        let mut stream = match &self.proxy.tls {
            None => Stream::Tcp(tcp),
            Some(tls) => {
                let session =
                    TlsConnector::from(tls.config.clone()).connect(tls.name.clone(), tcp).await;
                let session = session.map_err(|source| self.failed(Fault::Tls(source)))?;
                Stream::ClientTls(Box::new(session))
            }
        };
        self.ask(&mut stream).await.map_err(|fault| self.failed(fault))?;
        Ok(stream)
    }

    /// Asks for the tunnel and reads the answer's head.
    async fn ask(&self, stream: &mut Stream) -> Result<(), Fault> {
        let mut head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", self.authority);
        if let Some(authorization) = &self.proxy.authorization {
            head += &format!("Proxy-Authorization: {authorization}\r\n");
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).await.map_err(Fault::Io)?;
        // TLS may hold what was written.
        stream.flush().await.map_err(Fault::Io)?;
        let limits = HeadLimits { bytes: ANSWER_BYTES_MAX, fields: ANSWER_FIELDS_MAX };
        let mut answer = Vec::new();
        let mut headers = Headers::new();
        loop {
            let room = ANSWER_BYTES_MAX - answer.len();
            let read = (&mut *stream).take(room as u64).read_buf(&mut answer).await;
            if read.map_err(Fault::Io)? == 0 {
                return Err(Fault::Closed);
            }
            headers.clear();
            let Some(head) = ResponseHead::parse(&answer, &mut headers, limits)? else { continue };
            if !head.status.is_success() {
                return Err(Fault::Refused(head.status));
            }
            // Neither HTTP nor TLS begins with the server: such bytes would be taken for the
            // answer to a request that was not sent yet.
            return if head.len == answer.len() { Ok(()) } else { Err(Fault::Early) };
        }
    }

    /// The tunnel or the TLS session in it took longer than `limit`.
    pub(super) fn late(&self, limit: Duration) -> EgressError {
        self.failed(Fault::Late(limit))
    }

    /// The TLS session inside the tunnel failed.
    pub(super) fn no_session(&self, source: io::Error) -> EgressError {
        self.failed(Fault::Session(source))
    }

    fn failed(&self, fault: Fault) -> EgressError {
        let (proxy, authority) = (self.proxy.shown.clone(), self.authority.clone());
        EgressError { proxy, authority, fault }
    }
}

impl Proxy {
    fn parse(url: &str, resolver: &Arc<Resolver>, tls: &TlsClients) -> Result<Self, String> {
        // No text below repeats the URL: it may hold a password.
        let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("does not begin with http:// or https://".into()),
        };
        let authority = uri.authority().ok_or("has no host")?;
        let (user, place) = match authority.as_str().rsplit_once('@') {
            None => (None, authority.as_str()),
            Some((user, place)) => (Some(user), place),
        };
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err("has a path or a query; a proxy has neither".into());
        }
        let host = authority.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.is_empty() {
            return Err("has no host".into());
        }
        let port = match place.get(host.len()..).unwrap_or_default() {
            "" => {
                if secure {
                    443
                } else {
                    80
                }
            }
            port => port
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .ok_or("has no valid port")?,
        };
        let authorization = match user {
            None => None,
            Some(user) => {
                let plain = unescape(user).ok_or("has a % that is no escape in its user part")?;
                if !plain.contains(&b':') {
                    return Err("has a user name without a password".into());
                }
                Some(format!("Basic {}", STANDARD.encode(plain)))
            }
        };
        let session = match secure {
            false => None,
            true => Some(tls.target(&TlsRequest {
                server_name: bare.to_owned(),
                verify: true,
                h2: false,
                client: None,
            })?),
        };
        Ok(Self {
            shown: format!("{}://{host}:{port}", if secure { "https" } else { "http" }),
            host: match bare.parse() {
                Ok(ip) => ProxyHost::Ip(ip),
                Err(_) => ProxyHost::Name(resolver.name(bare)),
            },
            port,
            tls: session,
            authorization,
        })
    }
}

/// Whom no proxy is used for.
#[derive(Debug, Default)]
struct Direct {
    all: bool,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    port: Option<u16>,
    what: What,
}

#[derive(Debug)]
enum What {
    Net(IpNet),
    /// A name in lower case, and whether what is below it is meant alone.
    Name {
        name: String,
        below: bool,
    },
}

impl Direct {
    fn parse(entries: &[String]) -> Result<Self, String> {
        let mut direct = Self::default();
        let entries = entries.iter().flat_map(|list| list.split([',', ' ']));
        for entry in entries.filter(|entry| !entry.is_empty()) {
            if direct.rules.len() == RULES_MAX {
                return Err(format!("no_proxy has more than {RULES_MAX} entries"));
            }
            if entry == "*" {
                direct.all = true;
            } else {
                let rule = Rule::parse(entry)
                    .ok_or_else(|| format!("no_proxy: {entry:?} is no host, network or *"))?;
                direct.rules.push(rule);
            }
        }
        Ok(direct)
    }

    fn takes(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let ip = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let at_home = match ip {
            Some(ip) => is_at_home(ip),
            None => host == "localhost" || host.ends_with(".localhost"),
        };
        self.all || at_home || self.rules.iter().any(|rule| rule.takes(&host, ip, port))
    }
}

impl Rule {
    fn parse(entry: &str) -> Option<Self> {
        if entry.contains('/') {
            return Some(Self { port: None, what: What::Net(entry.parse().ok()?) });
        }
        // An IPv6 address is full of colons, and has a port behind brackets alone.
        if let Ok(ip) = entry.parse::<IpAddr>() {
            return Some(Self { port: None, what: What::Net(ip.to_canonical().into()) });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (entry, None),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(host).parse::<IpAddr>() {
            return Some(Self { port, what: What::Net(ip.to_canonical().into()) });
        }
        let name = host.strip_prefix('*').unwrap_or(host);
        let below = name.starts_with('.');
        let name = name.trim_matches('.').to_ascii_lowercase();
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let odd = host.starts_with('*') && !below;
        (!name.is_empty() && !odd && name.bytes().all(fits))
            .then_some(Self { port, what: What::Name { name, below } })
    }

    fn takes(&self, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
        if self.port.is_some_and(|only| only != port) {
            return false;
        }
        match (&self.what, ip) {
            (What::Net(net), Some(ip)) => net.contains(&ip),
            (What::Name { name, below }, None) => match host.strip_suffix(name.as_str()) {
                Some("") => !below,
                Some(front) => front.ends_with('.'),
                None => false,
            },
            _ => false,
        }
    }
}

/// Addresses that no proxy can reach in our stead: this machine's own, and those that only its
/// own link has, where AWS keeps its metadata services.
fn is_at_home(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.segments()[..2] == AWS_METADATA_PREFIX
        }
    }
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        plain.push(u8::try_from(value).ok()?);
    }
    Some(plain)
}

/// Why there is no tunnel, or nothing could be said in it.
#[derive(Debug, thiserror::Error)]
#[error("no connection to {authority} through the egress proxy {proxy}: {fault}")]
pub struct EgressError {
    proxy: String,
    authority: String,
    fault: Fault,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("its name does not resolve: {0}")]
    Name(String),
    #[error("it cannot be reached: {0}")]
    Connect(io::Error),
    #[error("TLS with it failed: {0}")]
    Tls(io::Error),
    #[error("{0}")]
    Io(io::Error),
    #[error("it closed the connection without an answer")]
    Closed,
    #[error("its answer is malformed: {0}")]
    Malformed(#[from] HeadError),
    #[error("it answered {0}{hint}", hint = hint(*.0))]
    Refused(StatusCode),
    #[error("it sent more than the head of its answer")]
    Early,
    #[error("not within {0:?}")]
    Late(Duration),
    #[error("TLS in the tunnel failed: {0}")]
    Session(io::Error),
}

impl EgressError {
    /// The time limit, where that is the cause.
    pub fn expired(&self) -> Option<Duration> {
        match self.fault {
            Fault::Late(limit) => Some(limit),
            _ => None,
        }
    }

    /// The status a client sees.
    pub fn status(&self) -> StatusCode {
        match self.fault {
            Fault::Late(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        }
    }
}

/// What a refusal means most likely.
fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            " (it wants a user name and a password that it knows)"
        }
        StatusCode::FORBIDDEN => " (it does not let us reach this host or port)",
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => " (it does not tunnel)",
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            " (it does not reach the host itself)"
        }
        _ => "",
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Most bytes of the head that a proxy answers `CONNECT` with.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Most fields in it.
const ANSWER_FIELDS_MAX: usize = 100;

/// Most entries of `no_proxy`: each call to a new host looks at all.
const RULES_MAX: usize = 1000;

/// Ways kept before those that nobody uses are dropped.
const WAYS_KEPT: usize = 1024;

/// `fd00:ec2::/32`.
const AWS_METADATA_PREFIX: [u16; 2] = [0xfd00, 0x0ec2];

#[cfg(test)]
mod tests;
