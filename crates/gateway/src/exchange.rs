//! One request and what is known about it, from its head to its log line.

use std::any::Any;
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ::http::{Method, StatusCode};
use bytes::Bytes;
use smallvec::SmallVec;

use crate::body::{Body, BodyError, Room};
use crate::chain::Chain;
use crate::consumer::{Consumer, Credential, TOLD};
use crate::core::{Core, Held};
use crate::expr::{BodyPath, Value};
pub use crate::forwarded::OwnForwarded;
use crate::graphql;
use crate::http::{FieldName, Headers, Known};
use crate::io::within;
use crate::listen::{DISCARD_MAX, discard};
use crate::mirror::Mirror;
use crate::page;
use crate::plugin::{DynPlugin, Plugin};
use crate::real_ip;
use crate::router::Matched;
use crate::settings::Settings;
use crate::snapshot::Route;
use crate::tls::{ClientAuth, ClientCertificate};
use crate::upstream::Upstream;
use crate::upstream::balance::Hold;
use crate::vars;

/// A request on its way through the gateway.
pub struct Exchange {
    /// The core that serves it.
    pub core: Rc<Core>,
    /// The configuration that serves it, from its first step to its last.
    pub snapshot: Held,
    /// The static configuration that serves it.
    pub settings: Rc<Settings>,
    /// Where it came in.
    pub connection: Rc<Connection>,
    /// The client's address: the peer's, or what a trusted proxy says it is (`real_ip_*`).
    pub remote_addr: IpAddr,
    /// The client's port, or 0 where a trusted proxy named an address only.
    pub remote_port: u16,
    /// The request.
    pub request: Request,
    /// The path as routes and plugins see it: decoded once, dot segments resolved,
    /// slashes merged (the variable `uri`). `None`: the raw path is already that.
    pub uri: Option<Vec<u8>>,
    /// The route that matched.
    pub route: Option<Arc<Route>>,
    /// Who sends the request, once an authentication plugin knows.
    pub consumer: Option<Arc<Consumer>>,
    /// The route's plugins with the consumer's merged in, where it has any.
    pub(crate) merged: Option<Arc<Chain>>,
    /// The upstream that a plugin chose in place of the route's.
    pub chosen_upstream: Option<Arc<Upstream>>,
    /// The query in place of the client's, without `?`; see [`Exchange::set_query`].
    query: Option<Box<[u8]>>,
    /// Header fields that the response will have, whoever makes it.
    pub response_headers: Headers,
    /// Copies that go out when the request does.
    pub mirrors: Vec<Mirror>,
    /// See [`Exchange::when_answered`].
    pub(crate) on_answer: Vec<Answered>,
    /// Compressions and the like that offer to encode the response's body, first come first.
    pub encodings: SmallVec<[Arc<dyn Encode>; 2]>,
    /// The one that encodes it.
    pub(crate) encoder: Option<Box<dyn Encoder>>,
    /// Where the plugins lie whose `body_filter` leaves this response as it is.
    unfiltered: SmallVec<[usize; 2]>,
    /// The client's method, where [`Exchange::set_method`] put another in its place.
    client_method: Option<Method>,
    /// The `Host` for the upstream in place of the client's; the upstream's `pass_host` comes first.
    pub host_for_upstream: Option<Arc<str>>,
    /// Forwarding fields that a plugin set or removed.
    pub own_forwarded: OwnForwarded,
    /// The ids that plugins gave the request; the variable `apisix_request_id` is the last.
    pub apisix_request_ids: SmallVec<[GivenId; 1]>,
    /// What plugins remember about this request.
    pub notes: Notes,
    /// Plugins that do not run for this request any more.
    skipped: Vec<&'static str>,
    /// What nginx calls `$uri` is the path for the upstream, as `proxy-rewrite` wrote it; APISIX's
    /// own variable `uri` stays that of the client.
    pub nginx_uri_is_upstreams: bool,
    /// How it matched: its pattern, wildcard rest, parameters.
    pub matched: Matched,
    /// Routes were matched with `%2F` kept (`apisix.match_uri_encoded_slash`).
    pub matched_slashes_kept: bool,
    /// What the upstream or the function did.
    pub upstream: UpstreamRecord,
    /// The node it is with, where the upstream's balancer wants to know.
    pub(crate) held: Option<Hold>,
    /// When the first byte of the head was read.
    pub started: Instant,
    /// The same moment on the wall clock.
    pub started_at: SystemTime,
    /// When it was over, log lines left out.
    pub ended: Option<Instant>,
    /// Bytes sent to the client, head included.
    pub bytes_sent: u64,
    /// Bytes of body sent to the client.
    pub body_bytes_sent: u64,
    /// Bytes received from the client, head included.
    pub bytes_received: u64,
    /// The status sent; 0 before there is one, 499 when the client went away first.
    pub status: u16,
    /// The response's fields, once its head is sent.
    pub sent: Option<Headers>,
    /// What route conditions see of the body.
    pub preview: Preview,
    /// What paths into a JSON body led to, for those that conditions and plugins asked for.
    pub(crate) body_values: std::cell::RefCell<HashMap<BodyPath, Option<Value<'static>>>>,
    /// The body's or the query's GraphQL, once a route condition asked for it; `None`: it
    /// holds none that can be read.
    pub graphql: std::cell::OnceCell<Option<graphql::Operation>>,
    /// Requests served on the connection so far, this one included.
    pub connection_requests: u64,
    /// The response went out whole.
    pub completed: bool,
    /// A 32-digit random id (`request_id`), made when first asked for.
    pub request_id: std::cell::OnceCell<String>,
}

type Answered = Box<dyn FnOnce(&mut Exchange, &mut Response)>;

/// An id that a plugin gave a request, or found there.
pub struct GivenId {
    /// The field it stands in.
    pub header: FieldName,
    /// The id.
    pub id: SmallVec<[u8; 36]>,
    /// The client is told it, too.
    pub told: bool,
}

/// What plugins remember about a request from one phase to another: one value of each type.
#[derive(Default)]
pub struct Notes(SmallVec<[Box<dyn Any>; 2]>);

impl Notes {
    /// The value of this type, if there is one.
    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.0.iter().find_map(|note| note.downcast_ref())
    }

    /// The value of this type, if there is one, to be changed.
    pub fn get_mut<T: 'static>(&mut self) -> Option<&mut T> {
        self.0.iter_mut().find_map(|note| note.downcast_mut())
    }

    /// The value of this type; made if there is none.
    pub fn get_or_default<T: Default + 'static>(&mut self) -> &mut T {
        let at = self.0.iter().position(|note| note.is::<T>()).unwrap_or_else(|| {
            self.0.push(Box::new(T::default()));
            self.0.len() - 1
        });
        self.0[at].downcast_mut().expect("it was found or made as one of this type")
    }

    /// Puts a value in the place of the one of its type.
    pub fn set<T: 'static>(&mut self, value: T) {
        match self.get_mut::<T>() {
            Some(note) => *note = value,
            None => self.0.push(Box::new(value)),
        }
    }

    /// Takes the value of this type out.
    pub fn take<T: 'static>(&mut self) -> Option<T> {
        let at = self.0.iter().position(|note| note.is::<T>())?;
        self.0.swap_remove(at).downcast().ok().map(|note| *note)
    }
}

/// What is the same for every request of one client connection.
#[derive(Debug)]
pub struct Connection {
    /// A number of its own within this process.
    pub number: u64,
    /// The other end of the socket, or what the PROXY protocol says it is.
    pub peer: SocketAddr,
    /// The address of the other end as text.
    pub peer_text: Box<str>,
    /// This end.
    pub local: SocketAddr,
    /// The TLS version and cipher, when there is TLS, and the name asked for.
    pub tls: Option<TlsInfo>,
    /// The peer is one of `real_ip_from`.
    pub real_ip_peer: bool,
    /// The peer is one of `apisix.trusted_addresses`; `None`: none are configured.
    pub trusted_peer: Option<bool>,
}

/// What the TLS handshake agreed on.
#[derive(Debug, Default)]
pub struct TlsInfo {
    /// `TLSv1.3`.
    pub protocol: String,
    /// The cipher suite's name.
    pub cipher: String,
    /// The server name the client asked for.
    pub sni: Option<String>,
    /// Which certificates the handshake asked for.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// The name the handshake was about: `sni`, or without it `fallback_sni`.
    pub name: Option<Box<str>>,
    /// The certificate the client showed.
    pub client: Option<ClientCertificate>,
}

impl TlsInfo {
    /// `ssl_client_verify`, as nginx words it.
    pub fn client_verify(&self) -> String {
        match &self.client {
            None => "NONE".to_owned(),
            Some(ClientCertificate { failure: None, .. }) => "SUCCESS".to_owned(),
            Some(ClientCertificate { failure: Some(why), .. }) => format!("FAILED:{why}"),
        }
    }

    /// Did the client show a certificate that is believed?
    pub fn is_client_verified(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.failure.is_none())
    }
}

impl Connection {
    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// The request body as route conditions, and plugins whose configuration names a `post_arg`, see it.
///
/// Conditions cannot wait for a body. The first that asks for one leaves word here and counts
/// as false; the body is then read, and the route is looked for once more. So no request
/// waits for its body unless a route that could be its own asks for it.
#[derive(Default)]
pub struct Preview {
    wanted: Cell<u64>,
    looked: u64,
    whole: Option<(Bytes, Option<Room>)>,
}

impl Preview {
    /// The body, if it was read and is at most `limit` bytes long.
    pub fn body(&self, limit: u64) -> Seen<'_> {
        match &self.whole {
            Some((body, _)) if body.len() as u64 <= limit => Seen::Whole(body),
            None if self.looked < limit => {
                self.wanted.set(self.wanted.get().max(limit));
                Seen::NotYet
            }
            _ => Seen::TooLarge,
        }
    }

    /// The limit up to which the body is now to be read, if someone asked for it.
    pub(crate) fn wanted(&self) -> Option<u64> {
        let wanted = self.wanted.get();
        (self.whole.is_none() && wanted > self.looked).then_some(wanted)
    }

    /// Takes what was read of a body of at most `limit` bytes; `None`: it is longer.
    pub(crate) fn put(&mut self, limit: u64, whole: Option<(Bytes, Option<Room>)>) {
        self.looked = limit;
        self.whole = whole;
    }
}

/// What [`Preview::body`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Nothing yet. The body is read next, and conditions are evaluated anew.
    NotYet,
    /// The body is longer than was asked for.
    TooLarge,
    /// All of it.
    Whole(&'a Bytes),
}

/// The HTTP version a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
}

impl Version {
    /// As in a request line and in `server_protocol`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2.0",
        }
    }
}

/// The client's request.
pub struct Request {
    /// The method.
    pub method: Method,
    /// The version it came in.
    pub version: Version,
    /// The header fields. The raw target lies in the same buffer.
    pub headers: Headers,
    /// The body, read as it is needed.
    pub body: Body,
    /// Where path and query lie in the header buffer: start, length.
    pub(crate) target: (usize, usize),
    /// Length of the path within the target.
    pub(crate) path_len: usize,
}

impl Request {
    /// Path and query, raw, as sent.
    pub fn target(&self) -> &[u8] {
        if self.target.1 == 0 { b"/" } else { self.headers.text(self.target.0, self.target.1) }
    }

    /// The raw path.
    pub fn path(&self) -> &[u8] {
        let target = self.target();
        if self.path_len == 0 { b"/" } else { &target[..self.path_len.min(target.len())] }
    }

    /// The raw query, without its `?`; `None` when there is no `?`.
    pub fn query(&self) -> Option<&[u8]> {
        let target = self.headers.text(self.target.0, self.target.1);
        target.get(self.path_len + 1..)
    }

    /// Finds path and query in the target.
    pub(crate) fn set_target(&mut self, at: usize, len: usize) {
        self.target = (at, len);
        let text = self.headers.text(at, len);
        let end = memchr::memchr2(b'?', b'#', text).unwrap_or(len);
        self.path_len = end;
        // A fragment never belongs in a request; what nginx does is to cut it off.
        if text.get(end) == Some(&b'#') {
            self.target.1 = end;
        } else if let Some(hash) = memchr::memchr(b'#', &text[end..]) {
            self.target.1 = end + hash;
        }
    }

    /// The host asked for: without port, lower case.
    pub fn host(&self) -> Cow<'_, str> {
        host_without_port(self.headers.known(Known::Host).unwrap_or_default())
    }
}

/// The host of a `Host` value: no port, lower case, no trailing dot (nginx's `$host`).
pub fn host_without_port(raw: &[u8]) -> Cow<'_, str> {
    let end = match raw.first() {
        Some(b'[') => memchr::memchr(b']', raw).map_or(raw.len(), |at| at + 1),
        _ => memchr::memchr(b':', raw).unwrap_or(raw.len()),
    };
    let host = match &raw[..end] {
        [name @ .., b'.'] if !name.is_empty() => name,
        name => name,
    };
    let host = String::from_utf8_lossy(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        return Cow::Owned(host.to_ascii_lowercase());
    }
    host
}

/// What happened on the far side; feeds the `upstream_*` variables.
#[derive(Debug, Default, Clone)]
pub struct UpstreamRecord {
    /// Every address tried, in order.
    pub addrs: SmallVec<[SocketAddr; 1]>,
    /// Status and time of the tries before the last one, as nginx lists them.
    pub failed: Vec<(u16, Duration)>,
    /// The `Host` sent; `None`: the client's.
    pub host: Option<Arc<str>>,
    /// The last answer's status; 502 or 504 when there was none.
    pub status: Option<u16>,
    /// Waiting for a connection.
    pub connect_time: Option<Duration>,
    /// From the start of the call to the response head.
    pub header_time: Option<Duration>,
    /// From the start of the call to the end of the response.
    pub response_time: Option<Duration>,
    /// When the call, or its last try, began.
    pub began: Option<Instant>,
    /// `http`, `https`, `grpc`, `grpcs`.
    pub scheme: &'static str,
    /// The target sent, where it differs from the client's.
    pub uri: Option<String>,
    /// What configurations call the limit of its silence, where that has a name.
    pub silence: Option<&'static str>,
}

/// Who made a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The gateway or one of its plugins.
    Gateway,
    /// The upstream.
    Upstream,
    /// A function behind a function plugin.
    Function,
}

/// A response on its way to the client.
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// In HTTP/1, the text behind the status where it is not the usual one: no control characters.
    pub reason: Option<Box<str>>,
    /// The header fields.
    pub headers: Headers,
    /// The body.
    pub body: Body,
    /// Who made it.
    pub origin: Origin,
    /// After `101 Switching Protocols`: the upstream's side of the tunnel.
    pub(crate) tunnel: Option<Box<crate::client::Tunnel>>,
}

/// A way to encode the bodies of responses, offered by a plugin in `header_filter` through
/// [`Exchange::encodings`]. It comes after every plugin's `header_filter` and `body_filter`.
pub trait Encode {
    /// Looks at the head of a response that has a body. Takes it, and changes the head accordingly
    /// (the length is taken out by who sends it), or leaves it with `None`.
    fn begin(&self, exchange: &Exchange, response: &mut Response) -> Option<Box<dyn Encoder>>;
}

/// Encodes one body, piece by piece.
pub trait Encoder {
    /// Replaces a piece by its encoded form, so that all that came so far can be read from all that
    /// was sent. `last` comes once.
    fn piece(&mut self, piece: &mut Bytes, last: bool);
}

impl Response {
    /// A response without a body.
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            reason: None,
            headers: Headers::new(),
            body: Body::Empty,
            origin: Origin::Gateway,
            tunnel: None,
        }
    }

    /// The gateway's own page for a status, as short as it can be.
    pub fn page(status: StatusCode) -> Self {
        let mut response = Self::new(status);
        if status.as_u16() == CLOSE_WITHOUT_ANSWER {
            return response;
        }
        response.headers.append("Content-Type", b"text/html; charset=utf-8");
        response.body = Body::from_bytes(page::html(status));
        response
    }

    /// Is the client to get no answer at all? That is what 444 means in nginx where the gateway
    /// itself answers and says nothing else.
    pub(crate) fn is_silence(&self, exchange: &Exchange) -> bool {
        self.status.as_u16() == CLOSE_WITHOUT_ANSWER
            && self.body.is_empty()
            && exchange.upstream.status.is_none()
    }

    /// A text of a plugin, typed as plain text.
    pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Self {
        let mut response = Self::new(status);
        response.headers.append("Content-Type", b"text/plain; charset=utf-8");
        response.body = Body::from_bytes(text);
        response
    }

    /// Puts another body in the place of this one. What is left of an upstream's short body is read
    /// all the same, so that its connection can be kept.
    pub fn replace_body(&mut self, body: Body) {
        let mut before = std::mem::replace(&mut self.body, body);
        let short = before.remaining().is_some_and(|n| (1..=DISCARD_MAX).contains(&n));
        if short && matches!(before, Body::Stream(_)) {
            tokio::task::spawn_local(async move {
                let _ = within(DISCARD_TIME, discard(&mut before)).await;
            });
        }
    }

    /// This response with another body: a text as it stands, anything else as JSON.
    pub(crate) fn saying(mut self, body: &serde_json::Value) -> Self {
        let other = match body {
            serde_json::Value::String(text) => Self::text(self.status, text.clone()),
            json => Self::message(self.status, json),
        };
        for (name, value) in other.headers.iter() {
            let Ok(name) = std::str::from_utf8(name) else { continue };
            self.headers.set(name, value);
        }
        self.headers.remove("Content-Length");
        self.body = other.body;
        self
    }

    /// A plugin's answer the way APISIX sends a Lua table: JSON with a line end, typed
    /// as plain text.
    pub fn message(status: StatusCode, json: &serde_json::Value) -> Self {
        let mut response = Self::new(status);
        response.headers.append("Content-Type", b"text/plain; charset=utf-8");
        response.body = Body::from_bytes(Bytes::from(format!("{json}\n")));
        response
    }
}

impl Exchange {
    /// A request that was just read.
    pub(crate) fn new(
        core: &Rc<Core>,
        connection: &Rc<Connection>,
        request: Request,
        started: Instant,
        connection_requests: u64,
    ) -> Self {
        let settings = core.settings();
        let (remote_addr, remote_port) =
            real_ip::client(&settings.real_ip, connection, &request.headers);
        Self {
            snapshot: core.snapshot(),
            core: core.clone(),
            settings,
            connection: connection.clone(),
            remote_addr,
            remote_port,
            request,
            uri: None,
            route: None,
            consumer: None,
            merged: None,
            chosen_upstream: None,
            query: None,
            response_headers: Headers::new(),
            mirrors: Vec::new(),
            on_answer: Vec::new(),
            encodings: Default::default(),
            encoder: None,
            unfiltered: Default::default(),
            client_method: None,
            host_for_upstream: None,
            own_forwarded: OwnForwarded::default(),
            apisix_request_ids: SmallVec::new(),
            notes: Notes::default(),
            skipped: Vec::new(),
            matched: Default::default(),
            matched_slashes_kept: false,
            upstream: UpstreamRecord::default(),
            held: None,
            started,
            started_at: core.wall_clock(started),
            ended: None,
            bytes_sent: 0,
            body_bytes_sent: 0,
            bytes_received: 0,
            status: 0,
            sent: None,
            nginx_uri_is_upstreams: false,
            preview: Default::default(),
            body_values: Default::default(),
            graphql: Default::default(),
            connection_requests,
            completed: false,
            request_id: Default::default(),
        }
    }

    /// The path as routes and plugins see it.
    pub fn uri(&self) -> &[u8] {
        self.uri.as_deref().unwrap_or_else(|| self.request.path())
    }

    /// The query as plugins left it, raw, without its `?`; `None` when there is none.
    pub fn query(&self) -> Option<&[u8]> {
        match &self.query {
            None => self.request.query(),
            Some(query) => (!query.is_empty()).then_some(query),
        }
    }

    /// Puts a raw query in the place of the client's; an empty one takes it away.
    pub fn set_query(&mut self, query: &[u8]) {
        self.query = Some(query.into());
    }

    /// Takes every argument of this name out of the query. The others stay as they were sent.
    pub fn remove_argument(&mut self, name: &[u8]) {
        let Some(query) = self.query() else { return };
        let kept: Vec<&[u8]> =
            query.split(|b| *b == b'&').filter(|part| !vars::names(part, name)).collect();
        let kept = kept.join(&b"&"[..]);
        if kept.len() != query.len() {
            self.set_query(&kept);
        }
    }

    /// Did a plugin change the query?
    pub(crate) fn query_is_new(&self) -> bool {
        self.query.is_some()
    }

    /// Notes who sends the request, by which credential, and tells the upstream: `X-Consumer-Username`,
    /// `X-Credential-Identifier` and `X-Consumer-Custom-ID`, whatever the client says there.
    pub fn attach_consumer(&mut self, consumer: Arc<Consumer>, credential: Option<&Credential>) {
        let headers = &mut self.request.headers;
        headers.remove_all_by(&TOLD);
        match credential {
            Some(credential) => headers.take_over(&credential.told),
            None => headers.take_over(&consumer.told(None)),
        }
        self.consumer = Some(consumer);
    }

    /// [`Exchange::response_headers`], to be added to, with the memory of an earlier block.
    pub fn add_response_headers(&mut self) -> &mut Headers {
        if self.response_headers.is_empty() {
            self.response_headers = self.core.pool.headers();
        }
        &mut self.response_headers
    }

    /// Has `then` called with the answer as whoever makes it gives it, before any plugin's
    /// `header_filter` and before [`Exchange::response_headers`] are added.
    pub fn when_answered(&mut self, then: impl FnOnce(&mut Exchange, &mut Response) + 'static) {
        self.on_answer.push(Box::new(then));
    }

    /// The plugin of this name does not run for this request any more.
    pub fn skip_plugin(&mut self, name: &'static str) {
        self.skipped.push(name);
    }

    /// This plugin leaves the body of this response as it is. To be said in `header_filter`: a body
    /// that nobody changes keeps its length and is not copied.
    pub fn skip_body_filter<P: Plugin>(&mut self, plugin: &P) {
        self.unfiltered.push(std::ptr::from_ref(plugin).addr());
    }

    /// Does this plugin leave the response's body as it is?
    pub(crate) fn leaves_body(&self, plugin: &dyn DynPlugin) -> bool {
        let at = std::ptr::from_ref(plugin).addr();
        self.unfiltered.contains(&at)
    }

    /// Sends the request on with another method. The client's stays what decides about its answer.
    pub fn set_method(&mut self, method: Method) {
        let before = std::mem::replace(&mut self.request.method, method);
        self.client_method.get_or_insert(before);
    }

    /// The method as the client sent it.
    pub fn client_method(&self) -> &Method {
        self.client_method.as_ref().unwrap_or(&self.request.method)
    }

    /// Does this plugin not run any more?
    pub(crate) fn skips(&self, plugin: &dyn DynPlugin) -> bool {
        self.skipped.contains(&plugin.name())
    }

    /// Has nothing said of a plugin that it does not run, or leaves the body as it is?
    #[inline]
    pub(crate) fn skips_none(&self) -> bool {
        self.skipped.is_empty() && self.unfiltered.is_empty()
    }

    /// Reads the whole request body, and leaves it to be read once more. `None`: it is larger than
    /// `limit` bytes, and still all there.
    ///
    /// # Errors
    /// The body did not arrive, or all held bodies together are over their limit.
    pub async fn peek_body(&mut self, limit: u64) -> Result<Option<Bytes>, BodyError> {
        let used = self.core.shared.buffered.clone();
        let total = self.settings.buffered_body_bytes;
        let Some((body, room)) = self.request.body.peek(limit, &used, total).await? else {
            return Ok(None);
        };
        if let Some(room) = room {
            // It counts until the request is over.
            self.notes.get_or_default::<Vec<Room>>().push(room);
        }
        Ok(Some(body))
    }

    /// The `Host` that the upstream gets.
    pub(crate) fn upstream_host(&self) -> &[u8] {
        match &self.upstream.host {
            Some(host) => host.as_bytes(),
            None => self.request.headers.known(Known::Host).unwrap_or_default(),
        }
    }

    /// The matched route's id, or nothing.
    pub fn route_id(&self) -> &str {
        self.route.as_ref().map_or("", |r| &r.id)
    }

    /// A random id for this request, the same each time it is asked for.
    pub fn request_id(&self) -> &str {
        self.request_id.get_or_init(|| {
            let mut raw = [0_u8; 16];
            self.core.random(&mut raw);
            let digit = |n: u8| b"0123456789abcdef"[usize::from(n)] as char;
            raw.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
        })
    }
}

/// nginx's status for closing the client's connection in place of an answer.
const CLOSE_WITHOUT_ANSWER: u16 = 444;

/// How long the rest of a body that was replaced may take to come.
const DISCARD_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_loses_port_case_and_trailing_dot() {
        for (raw, host) in [
            ("a.test", "a.test"),
            ("A.Test:80", "a.test"),
            ("a.test.", "a.test"),
            ("[::1]:80", "[::1]"),
            (".", "."),
            ("", ""),
        ] {
            assert_eq!(host_without_port(raw.as_bytes()), host);
        }
    }
}
