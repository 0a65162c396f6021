//! Routes and how a request finds its own: APISIX's three `radixtree` routers.
//!
//! - An exact `uri` comes before a prefix, a longer prefix before a shorter one. Where several routes
//!   share a place, the higher `priority` comes first, then the longer pattern, then [`RouteInput::order`],
//!   then the id. A candidate whose other conditions fail is passed over.
//! - [`Mode::HostUri`] looks at hosts first: the exact host, then its wildcards from the longest to the
//!   shortest, then the routes without a host. A host whose routes all fail passes the request on.
//! - In the two other modes hosts are one condition among others.
//!
//! A router never changes. [`Router::updated`] makes a new one that shares everything the change does
//! not touch, so that one change among many routes costs microseconds.

pub(crate) mod map;
mod pattern;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    ops::Range,
    sync::Arc,
};

use smallvec::SmallVec;

use self::{
    map::{Kind, Map, Place},
    pattern::Pattern,
};
use crate::exchange::Exchange;
use crate::expr::{Expr, IpSet, Vars};

/// Which of APISIX's routers is imitated: `apisix.router.http`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// `radixtree_host_uri`
    #[default]
    HostUri,
    /// `radixtree_uri`
    Uri,
    /// `radixtree_uri_with_parameter`
    UriWithParameter,
}

impl Mode {
    /// The mode a configuration names.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "radixtree_host_uri" => Some(Self::HostUri),
            "radixtree_uri" => Some(Self::Uri),
            "radixtree_uri_with_parameter" => Some(Self::UriWithParameter),
            _ => None,
        }
    }
}

/// A condition that only running code can tell: a route's `filter_func`.
pub trait Filter: Send + Sync + std::fmt::Debug {
    /// Whether the route takes this request, whose other conditions hold.
    fn admits(&self, exchange: &Exchange) -> bool;
}

/// What runs `filter_func`s; the gateway itself knows no Lua.
#[derive(Clone, Copy, Debug)]
pub struct FilterFuncs {
    /// Says what is wrong with the source of a function, as the Admin API does.
    pub check: fn(&str) -> Result<(), String>,
    /// Compiles the source of a function; the second text names its route in logs.
    pub compile: CompileFilter,
}

/// Makes a condition of a source.
pub type CompileFilter = fn(&str, &str) -> Result<Arc<dyn Filter>, String>;

/// One route as the router wants it. Routes with `status: 0` are left out by the caller.
#[derive(Clone, Debug)]
pub struct RouteInput<T> {
    /// Names the route in [`Router::updated`].
    pub id: Arc<str>,
    /// What a request gets that finds this route.
    pub payload: T,
    /// `uri` or `uris`.
    pub uris: Vec<String>,
    /// `host` or `hosts`, or else those of the service; none means any.
    pub hosts: Vec<String>,
    /// `methods`; none means any.
    pub methods: Methods,
    /// `remote_addr` or `remote_addrs`.
    pub remote_addrs: Option<IpSet>,
    /// `vars`.
    pub vars: Option<Expr>,
    /// `filter_func`.
    pub filter: Option<Arc<dyn Filter>>,
    /// `priority`, higher first.
    pub priority: i64,
    /// Decides between equals, lower first: APISIX takes the older route.
    pub order: u64,
}

impl<T> RouteInput<T> {
    /// A route with one `uri` and nothing else.
    pub fn new(id: impl Into<Arc<str>>, uri: impl Into<String>, payload: T) -> Self {
        Self {
            id: id.into(),
            payload,
            uris: vec![uri.into()],
            hosts: Vec::new(),
            methods: Methods::ANY,
            remote_addrs: None,
            vars: None,
            filter: None,
            priority: 0,
            order: 0,
        }
    }
}

/// The parts of a request that routes are matched with.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a> {
    /// The normalised path, see [`crate::uri`].
    pub path: &'a [u8],
    /// The host in lower case, without port; empty when there is none.
    pub host: &'a str,
    /// The `Host` header as sent: a route's host that has a port is compared with it.
    pub http_host: Option<&'a str>,
    /// The method.
    pub method: &'a str,
    /// The client's address.
    pub remote_addr: IpAddr,
}

/// How a request found its route. Kept from request to request, it needs no memory of its own.
#[derive(Clone, Debug, Default)]
pub struct Matched {
    path: Text,
    host: Text,
    params: SmallVec<[Param; 2]>,
}

impl Matched {
    /// The `uri` of the route, as configured.
    pub fn path(&self) -> &str {
        std::str::from_utf8(&self.path).unwrap_or_default()
    }

    /// The host of the route in lower case, with its `*`; `None` for a route without hosts.
    pub fn host(&self) -> Option<&str> {
        if self.host.is_empty() { None } else { std::str::from_utf8(&self.host).ok() }
    }

    /// Parameters with their place in the path: those named in the `uri`, and `:ext` for `*`.
    pub fn params(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.params
            .iter()
            .map(|(name, range)| (std::str::from_utf8(name).unwrap_or_default(), range.clone()))
    }

    /// The place of one parameter in the path. The last one of a name counts.
    pub fn param(&self, name: &str) -> Option<Range<usize>> {
        self.params
            .iter()
            .rev()
            .find(|(found, _)| **found == *name.as_bytes())
            .map(|(_, range)| range.clone())
    }

    /// What the route's `*` stands for.
    pub fn ext(&self) -> Option<Range<usize>> {
        self.param(":ext")
    }

    fn clear(&mut self) {
        self.path.clear();
        self.host.clear();
        self.params.clear();
    }

    fn push(&mut self, name: &[u8], range: Range<usize>) {
        self.params.push((SmallVec::from_slice(name), range));
    }

    fn set_host(&mut self, star: &str, text: &str) {
        self.host.clear();
        self.host.extend_from_slice(star.as_bytes());
        self.host.extend_from_slice(text.as_bytes());
    }
}

type Text = SmallVec<[u8; 48]>;
type Param = (SmallVec<[u8; 16]>, Range<usize>);

/// A set of methods; the empty set admits every method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Methods(u16);

impl Methods {
    /// Every method, also those without a name here.
    pub const ANY: Self = Self(0);

    /// Reads the `methods` of a route. The error names what is no method.
    pub fn parse<I>(names: I) -> Result<Self, String>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut methods = Self::ANY;
        for name in names {
            let name = name.as_ref();
            methods.0 |= Self::bit(name).ok_or_else(|| format!("invalid method '{name}'"))?;
        }
        Ok(methods)
    }

    /// Whether a request with this method is admitted.
    pub fn admit(self, method: &str) -> bool {
        self == Self::ANY || Self::bit(method).is_some_and(|bit| self.0 & bit != 0)
    }

    fn bit(name: &str) -> Option<u16> {
        NAMES.iter().position(|&known| known == name).map(|index| 1 << index)
    }
}

const NAMES: [&str; 10] =
    ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PURGE"];

/// The routes of one snapshot. Cloning is cheap.
#[derive(Debug)]
pub struct Router<T> {
    mode: Mode,
    count: usize,
    ids: Map<Arc<Route<T>>>,
    /// By reversed host, for [`Mode::HostUri`] only.
    hosts: Map<Arc<Host<T>>>,
    /// The routes without hosts; in the other modes all of them.
    uris: Map<Entries<T>>,
}

impl<T> Router<T> {
    /// A builder for a whole router. For a change to one, see [`Router::updated`].
    pub fn builder(mode: Mode) -> Builder<T> {
        Builder { mode, routes: Vec::new() }
    }

    /// Finds the route of a request.
    pub fn find(&self, request: &Match<'_>, vars: &dyn Vars, matched: &mut Matched) -> Option<&T> {
        matched.clear();
        if !self.hosts.is_empty() {
            let reversed: Text = request.host.bytes().rev().collect();
            if let Some(host) = self.hosts.exact(&reversed)
                && let Some(route) = host.uris.find(request, vars, matched)
            {
                matched.set_host("", request.host);
                return Some(&route.payload);
            }
            for (length, host) in self.hosts.prefixes(&reversed) {
                if let Some(route) = host.uris.find(request, vars, matched) {
                    let wildcard = request.host.get(request.host.len() - length..);
                    matched.set_host("*", wildcard.unwrap_or_default());
                    return Some(&route.payload);
                }
            }
        }
        let route = find_in(&self.uris, request, vars, matched)?;
        Some(&route.payload)
    }

    /// How it matches.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The payload of the route with this id.
    pub fn get(&self, id: &str) -> Option<&T> {
        self.ids.exact(id.as_bytes()).map(|route| &route.payload)
    }

    /// The route with this id as it was put in, but for the letters' case in its hosts and what
    /// stood there twice.
    pub fn input(&self, id: &str) -> Option<RouteInput<T>>
    where
        T: Clone,
    {
        self.ids.exact(id.as_bytes()).map(|route| route.input())
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no route.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A router with some routes taken away and others put in. A route that is put in takes the
    /// place of the one with its id; an id that is not there is passed over.
    pub fn updated<'i>(
        &self,
        remove: impl IntoIterator<Item = &'i str>,
        insert: impl IntoIterator<Item = RouteInput<T>>,
    ) -> Self {
        let mut router = self.clone();
        for id in remove {
            router.remove(id);
        }
        for input in insert {
            router.remove(&input.id);
            router.insert(Route::compile(input, self.mode));
        }
        router
    }

    fn insert(&mut self, route: Arc<Route<T>>) {
        self.count += 1;
        self.ids.update(route.id.as_bytes(), Kind::Exact, |_| Some(route.clone()));
        self.change_entries(&route, |entries, entry| {
            Some(match entries {
                Some(entries) => entries.with(entry),
                None => Entries::One(entry),
            })
        });
    }

    fn remove(&mut self, id: &str) {
        let Some(route) = self.ids.exact(id.as_bytes()).cloned() else { return };
        self.count -= 1;
        self.ids.update(id.as_bytes(), Kind::Exact, |_| None);
        self.change_entries(&route, |entries, entry| {
            entries.and_then(|entries| entries.without(&entry))
        });
    }

    /// Applies a change at each place a route has in the maps.
    fn change_entries(
        &mut self,
        route: &Arc<Route<T>>,
        change: impl Fn(Option<&Entries<T>>, Entry<T>) -> Option<Entries<T>>,
    ) {
        let change_uris = |uris: &mut Map<Entries<T>>| {
            for (pattern, index) in route.patterns.iter().zip(0..) {
                let (key, kind) = pattern.key();
                uris.update(key, kind, |entries| {
                    change(entries, Entry { route: route.clone(), pattern: index })
                });
            }
        };
        if self.mode != Mode::HostUri || route.hosts.is_empty() {
            return change_uris(&mut self.uris);
        }
        // Hosts that share their places go on sharing them: a route of many hosts and many uris
        // costs their sum, not their product. What was there before is kept until the end, so
        // that its address stays its own.
        let mut changed = HashMap::new();
        for host in &route.hosts {
            let (key, kind) = host.key();
            self.hosts.update(&key, kind, |old| {
                let uris = old.map(|old| &old.uris);
                let change = || {
                    let mut now = uris.map(Uris::to_map).unwrap_or_default();
                    change_uris(&mut now);
                    (uris.cloned(), Uris::of(now))
                };
                let uris = changed.entry(uris.map(Uris::address)).or_insert_with(change).1.clone();
                uris.map(|uris| Arc::new(Host { key: key.clone(), kind, uris }))
            });
        }
    }
}

impl<T> Clone for Router<T> {
    fn clone(&self) -> Self {
        let Self { mode, count, ids, hosts, uris } = self;
        Self {
            mode: *mode,
            count: *count,
            ids: ids.clone(),
            hosts: hosts.clone(),
            uris: uris.clone(),
        }
    }
}

fn find_in<'r, T>(
    uris: &'r Map<Entries<T>>,
    request: &Match<'_>,
    vars: &dyn Vars,
    matched: &mut Matched,
) -> Option<&'r Route<T>> {
    if let Some(entries) = uris.exact(request.path)
        && let Some(route) = entries.find(request, vars, matched)
    {
        return Some(route);
    }
    uris.prefixes(request.path).find_map(|(_, entries)| entries.find(request, vars, matched))
}

/// Collects routes for a new router.
#[derive(Debug)]
pub struct Builder<T> {
    mode: Mode,
    routes: Vec<Arc<Route<T>>>,
}

impl<T> Builder<T> {
    /// Adds a route. Of several with one id, the last one counts.
    pub fn insert(&mut self, input: RouteInput<T>) -> &mut Self {
        self.routes.push(Route::compile(input, self.mode));
        self
    }

    /// Builds the router.
    pub fn build(&self) -> Router<T> {
        let mut by_id: Vec<_> = self.routes.iter().collect();
        by_id.sort_by(|left, right| left.id.cmp(&right.id));
        by_id.reverse();
        by_id.dedup_by(|left, right| left.id == right.id);
        by_id.reverse();

        let (mut by_host, mut by_uri) = (Vec::new(), Vec::new());
        for &route in &by_id {
            if self.mode != Mode::HostUri || route.hosts.is_empty() {
                by_uri.extend(entries_of(route));
            }
            if self.mode == Mode::HostUri {
                by_host.extend(route.hosts.iter().map(|host| (host.key(), route)));
            }
        }
        by_host.sort_by(|left, right| left.0.cmp(&right.0));
        // Hosts of the same routes share their places.
        let mut built: HashMap<Vec<*const Route<T>>, Option<Uris<T>>> = HashMap::new();
        let hosts = by_host.chunk_by(|left, right| left.0 == right.0).filter_map(|group| {
            let ((key, kind), _) = &group[0];
            let routes = group.iter().map(|(_, route)| Arc::as_ptr(route)).collect();
            let uris = built.entry(routes).or_insert_with(|| {
                let entries = group.iter().flat_map(|(_, route)| entries_of(route));
                Uris::of(build_uris(entries.collect()))
            });
            Some(Arc::new(Host { key: key.clone(), kind: *kind, uris: uris.clone()? }))
        });
        Router {
            mode: self.mode,
            count: by_id.len(),
            ids: Map::build(by_id.iter().map(|&route| route.clone())),
            hosts: Map::build(hosts),
            uris: build_uris(by_uri),
        }
    }
}

/// The places of a route, one for each of its patterns.
fn entries_of<T>(route: &Arc<Route<T>>) -> impl Iterator<Item = Entry<T>> {
    (0..).take(route.patterns.len()).map(|pattern| Entry { route: route.clone(), pattern })
}

fn build_uris<T>(mut entries: Vec<Entry<T>>) -> Map<Entries<T>> {
    entries.sort_by(|left, right| {
        let by_key = left.pattern().key().cmp(&right.pattern().key());
        by_key.then_with(|| left.rank().cmp(&right.rank()))
    });
    let groups = entries.chunk_by(|left, right| left.pattern().key() == right.pattern().key());
    Map::build(groups.map(|group| match group {
        [only] => Entries::One(only.clone()),
        several => Entries::Many(Arc::new(several.to_vec())),
    }))
}

/// The places of one host.
#[derive(Debug)]
struct Host<T> {
    /// Reversed. Most fit in here.
    key: HostKey,
    kind: Kind,
    uris: Uris<T>,
}

type HostKey = SmallVec<[u8; 32]>;

impl<T> Place for Arc<Host<T>> {
    const SEPARATOR: u8 = b'.';

    fn key(&self) -> (&[u8], Kind) {
        (&self.key, self.kind)
    }
}

/// The places of a host, mostly one.
#[derive(Debug)]
enum Uris<T> {
    One(Entry<T>),
    Many(Arc<Map<Entries<T>>>),
}

impl<T> Uris<T> {
    fn of(map: Map<Entries<T>>) -> Option<Self> {
        match map.only() {
            Some(Entries::One(entry)) => Some(Self::One(entry.clone())),
            _ => (!map.is_empty()).then(|| Self::Many(Arc::new(map))),
        }
    }

    fn to_map(&self) -> Map<Entries<T>> {
        match self {
            Self::One(entry) => Map::build([Entries::One(entry.clone())]),
            Self::Many(map) => (**map).clone(),
        }
    }

    /// The same for the same places only, while they are there.
    fn address(&self) -> (*const (), u32) {
        match self {
            Self::One(entry) => (Arc::as_ptr(&entry.route).cast(), entry.pattern),
            Self::Many(map) => (Arc::as_ptr(map).cast(), 0),
        }
    }

    fn find(
        &self,
        request: &Match<'_>,
        vars: &dyn Vars,
        matched: &mut Matched,
    ) -> Option<&Route<T>> {
        match self {
            Self::One(entry) => match entry.pattern().key() {
                (key, Kind::Exact) if request.path != key => None,
                (key, Kind::Prefix) if !request.path.starts_with(key) => None,
                _ => entry.find(request, vars, matched),
            },
            Self::Many(uris) => find_in(uris, request, vars, matched),
        }
    }
}

impl<T> Clone for Uris<T> {
    fn clone(&self) -> Self {
        match self {
            Self::One(entry) => Self::One(entry.clone()),
            Self::Many(map) => Self::Many(map.clone()),
        }
    }
}

/// A compiled route. What every look-up reads stands first, close together.
#[derive(Debug)]
#[repr(C)]
struct Route<T> {
    payload: T,
    methods: Methods,
    /// Whether there is more than the method to check.
    conditional: bool,
    hosts_checked: bool,
    patterns: SmallVec<[Pattern; 1]>,
    hosts: Box<[HostPattern]>,
    remote_addrs: Option<Box<IpSet>>,
    vars: Option<Box<Expr>>,
    filter: Option<Arc<dyn Filter>>,
    id: Arc<str>,
    priority: i64,
    order: u64,
}

impl<T> Route<T> {
    fn compile(input: RouteInput<T>, mode: Mode) -> Arc<Self> {
        let with_parameters = mode == Mode::UriWithParameter;
        let (mut uris, mut hosts) = (HashSet::new(), HashSet::new());
        // The host router has looked at hosts before it comes to a route.
        let hosts_checked = mode != Mode::HostUri && !input.hosts.is_empty();
        Arc::new(Self {
            payload: input.payload,
            methods: input.methods,
            conditional: hosts_checked
                || input.remote_addrs.is_some()
                || input.vars.is_some()
                || input.filter.is_some(),
            hosts_checked,
            patterns: (input.uris.iter())
                .filter(|uri| uris.insert(*uri))
                .map(|uri| Pattern::compile(uri, with_parameters))
                .collect(),
            hosts: (input.hosts.iter())
                .map(|host| HostPattern::compile(host))
                .filter(|host| hosts.insert(host.clone()))
                .collect(),
            remote_addrs: input.remote_addrs.map(Box::new),
            vars: input.vars.map(Box::new),
            filter: input.filter,
            id: input.id,
            priority: input.priority,
            order: input.order,
        })
    }

    fn input(&self) -> RouteInput<T>
    where
        T: Clone,
    {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let host = |host: &HostPattern| format!("{}{}", host.star(), host.text);
        RouteInput {
            id: self.id.clone(),
            payload: self.payload.clone(),
            uris: self.patterns.iter().map(|pattern| text(pattern.uri())).collect(),
            hosts: self.hosts.iter().map(host).collect(),
            methods: self.methods,
            remote_addrs: self.remote_addrs.as_deref().cloned(),
            vars: self.vars.as_deref().cloned(),
            filter: self.filter.clone(),
            priority: self.priority,
            order: self.order,
        }
    }

    #[inline]
    fn admits(&self, request: &Match<'_>, vars: &dyn Vars, matched: &mut Matched) -> bool {
        self.methods.admit(request.method)
            && (!self.conditional || self.conditions_hold(request, vars, matched))
    }

    fn conditions_hold(&self, request: &Match<'_>, vars: &dyn Vars, matched: &mut Matched) -> bool {
        if let Some(set) = &self.remote_addrs
            && !set.contains(request.remote_addr)
        {
            return false;
        }
        if self.hosts_checked {
            let Some(host) = self.hosts.iter().find(|host| host.fits(request)) else {
                return false;
            };
            matched.set_host(host.star(), &host.text);
        }
        // Code comes last: it costs more than all the rest.
        self.vars.as_ref().is_none_or(|expr| expr.eval(vars))
            && self.filter.as_ref().is_none_or(|filter| {
                vars.exchange().is_some_and(|exchange| filter.admits(exchange))
            })
    }
}

impl<T> Place for Arc<Route<T>> {
    const SEPARATOR: u8 = 0;

    fn key(&self) -> (&[u8], Kind) {
        (self.id.as_bytes(), Kind::Exact)
    }
}

/// One `host`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct HostPattern {
    /// Whether anything may stand before the text.
    wildcard: bool,
    text: Box<str>,
}

impl HostPattern {
    fn compile(host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            Some(text) => Self { wildcard: true, text: text.into() },
            None => Self { wildcard: false, text: host.into() },
        }
    }

    fn star(&self) -> &'static str {
        if self.wildcard { "*" } else { "" }
    }

    /// The key in the map of reversed hosts.
    fn key(&self) -> (HostKey, Kind) {
        (self.text.bytes().rev().collect(), if self.wildcard { Kind::Prefix } else { Kind::Exact })
    }

    /// Differs: a host with a colon is compared with the `Host` header in any case of letters, and
    /// with the host without port too, so that `[::1]` can be matched.
    fn fits(&self, request: &Match<'_>) -> bool {
        self.fits_text(request.host)
            || (self.text.contains(':')
                && request.http_host.is_some_and(|host| self.fits_text(host)))
    }

    fn fits_text(&self, host: &str) -> bool {
        let (host, text) = (host.as_bytes(), self.text.as_bytes());
        match host.len().checked_sub(text.len()) {
            Some(before) => {
                (before == 0 || self.wildcard) && host[before..].eq_ignore_ascii_case(text)
            }
            None => false,
        }
    }
}

/// The routes that share one place in a map, best first.
#[derive(Debug)]
enum Entries<T> {
    One(Entry<T>),
    Many(Arc<Vec<Entry<T>>>),
}

impl<T> Entries<T> {
    fn as_slice(&self) -> &[Entry<T>] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    #[inline]
    fn find(
        &self,
        request: &Match<'_>,
        vars: &dyn Vars,
        matched: &mut Matched,
    ) -> Option<&Route<T>> {
        self.as_slice().iter().find_map(|entry| entry.find(request, vars, matched))
    }

    fn with(&self, entry: Entry<T>) -> Self {
        let mut entries = self.as_slice().to_vec();
        let place = entries.partition_point(|other| other.rank() <= entry.rank());
        entries.insert(place, entry);
        Self::Many(Arc::new(entries))
    }

    fn without(&self, gone: &Entry<T>) -> Option<Self> {
        let kept = |entry: &&Entry<T>| !Arc::ptr_eq(&entry.route, &gone.route);
        let mut entries: Vec<_> = self.as_slice().iter().filter(kept).cloned().collect();
        match entries.len() {
            0 => None,
            1 => entries.pop().map(Self::One),
            _ => Some(Self::Many(Arc::new(entries))),
        }
    }
}

impl<T> Place for Entries<T> {
    const SEPARATOR: u8 = b'/';

    fn key(&self) -> (&[u8], Kind) {
        self.as_slice().first().map_or((&[], Kind::Exact), |entry| entry.pattern().key())
    }
}

impl<T> Clone for Entries<T> {
    fn clone(&self) -> Self {
        match self {
            Self::One(entry) => Self::One(entry.clone()),
            Self::Many(entries) => Self::Many(entries.clone()),
        }
    }
}

/// One of a route's patterns.
#[derive(Debug)]
struct Entry<T> {
    route: Arc<Route<T>>,
    pattern: u32,
}

impl<T> Entry<T> {
    /// The route, if it takes a request that came to this place.
    #[inline]
    fn find(
        &self,
        request: &Match<'_>,
        vars: &dyn Vars,
        matched: &mut Matched,
    ) -> Option<&Route<T>> {
        let route = &*self.route;
        matched.clear();
        if !route.admits(request, vars, matched) {
            return None;
        }
        let pattern = self.pattern();
        if !pattern.fits(request.path, matched) {
            return None;
        }
        matched.path.extend_from_slice(pattern.uri());
        Some(route)
    }

    fn pattern(&self) -> &Pattern {
        &self.route.patterns[self.pattern as usize]
    }

    /// What decides between entries at one place; the lower one comes first.
    fn rank(&self) -> impl Ord + '_ {
        let length = std::cmp::Reverse(self.pattern().uri().len());
        (
            std::cmp::Reverse(self.route.priority),
            length,
            self.route.order,
            &*self.route.id,
            self.pattern,
        )
    }
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { route: self.route.clone(), pattern: self.pattern }
    }
}
