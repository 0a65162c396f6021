//! What is compared with what: the cases, the gateways each needs, and the bars they are held to.

use super::peers::Peer;
use super::report::median;
use super::server::Place;

/// A comparison with a name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    Proxy,
    ProxyTlsUp,
    LambdaApikey,
    LambdaIam,
    LambdaIamTls,
    /// `lambda-iam` with the request as an event of this format.
    LambdaEvent(&'static str),
    TlsDown,
    H2cDown,
    /// So many routes beside one.
    Routes(u32),
    BigBody,
    LuaEmpty,
    LuaHeader,
    AccessLog,
    AccessLogJson,
    KeyAuth,
    LimitCount,
    CorsRewrite,
    /// Six plugins beside the last of them.
    LambdaChain,
    /// Two workers beside one.
    Scale,
}

impl Case {
    pub(crate) const ALL: [Self; 24] = [
        Self::Proxy,
        Self::ProxyTlsUp,
        Self::LambdaApikey,
        Self::LambdaIam,
        Self::LambdaIamTls,
        Self::LambdaEvent("apigw_v1"),
        Self::LambdaEvent("apigw_v2"),
        Self::LambdaEvent("alb"),
        Self::LambdaEvent("kong"),
        Self::LambdaEvent("envoy"),
        Self::TlsDown,
        Self::H2cDown,
        Self::Routes(10_000),
        Self::Routes(100_000),
        Self::BigBody,
        Self::LuaEmpty,
        Self::LuaHeader,
        Self::AccessLog,
        Self::AccessLogJson,
        Self::KeyAuth,
        Self::LimitCount,
        Self::CorsRewrite,
        Self::LambdaChain,
        Self::Scale,
    ];

    pub(crate) fn name(self) -> String {
        let name = match self {
            Self::Proxy => "proxy",
            Self::ProxyTlsUp => "proxy-tls-up",
            Self::LambdaApikey => "lambda-apikey",
            Self::LambdaIam => "lambda-iam",
            Self::LambdaIamTls => "lambda-iam-tls",
            Self::LambdaEvent(format) => return event_name(format).to_owned(),
            Self::TlsDown => "tls-down",
            Self::H2cDown => "h2c-down",
            Self::Routes(count) if count.is_multiple_of(1000) => {
                return format!("routes-{}k", count / 1000);
            }
            Self::Routes(count) => return format!("routes-{count}"),
            Self::BigBody => "big-body",
            Self::LuaEmpty => "lua-empty",
            Self::LuaHeader => "lua-header",
            Self::AccessLog => "access-log",
            Self::AccessLogJson => "access-log-json",
            Self::KeyAuth => "key-auth",
            Self::LimitCount => "limit-count",
            Self::CorsRewrite => "cors-rewrite",
            Self::LambdaChain => "lambda-chain",
            Self::Scale => "scale",
        };
        name.to_owned()
    }

    /// The setups measured in turn, ours first, and what ours is held to.
    pub(crate) fn plan(self) -> Plan {
        use Peer::{Envoy, Nginx, Sluicegate};
        let cpu = |own: Setup, peer: Setup, limit| Bar { figure: Figure::Cpu, own, peer, limit };
        let plain = |work| {
            let peers = Peer::OTHERS.map(|peer| Setup::new(peer, work)).into_iter();
            let own = Setup::new(Sluicegate, work);
            let setups = [own].into_iter().chain(peers).filter(|setup| setup.is_possible());
            (setups.collect::<Vec<_>>(), own)
        };
        let at_most_nginx = |work, times| {
            let (setups, own) = plain(work);
            let bars = vec![cpu(own, Setup::new(Nginx, work), Limit::Times(times))];
            (setups, bars)
        };
        // Ours with plugins beside ours without.
        let with_plugins = |work, without, limit| {
            let (own, plain) = (Setup::new(Sluicegate, work), Setup::new(Sluicegate, without));
            (vec![own], vec![cpu(own, plain, limit)])
        };
        let (mut setups, bars) = match self {
            Self::Proxy => {
                let (setups, mut bars) = at_most_nginx(Work::Proxy, 1.0);
                let (own, nginx) = (bars[0].own, bars[0].peer);
                let envoy = Setup::new(Envoy, Work::Proxy);
                bars.push(cpu(own, envoy, Limit::Times(0.4)));
                for (figure, times) in [(Figure::P99, 1.05), (Figure::P999, 1.5)] {
                    bars.push(Bar { figure, own, peer: nginx, limit: Limit::Times(times) });
                }
                (setups, bars)
            }
            Self::ProxyTlsUp => at_most_nginx(Work::ProxyTlsUp, 1.0),
            Self::TlsDown => at_most_nginx(Work::TlsDown, 1.0),
            Self::H2cDown => at_most_nginx(Work::H2cDown, 1.0),
            Self::BigBody => at_most_nginx(Work::BigBody, 1.0),
            Self::LuaEmpty | Self::LuaHeader => {
                let work = if self == Self::LuaEmpty { Work::LuaEmpty } else { Work::LuaHeader };
                let own = Setup::new(Sluicegate, work);
                let bars = vec![
                    cpu(own, Setup::new(Sluicegate, Work::Proxy), Limit::Unlimited),
                    // What APISIX's plain route costs, without any function in it.
                    cpu(own, Setup::new(Nginx, Work::Proxy), Limit::Times(2.0)),
                ];
                (vec![own], bars)
            }
            Self::LambdaApikey => at_most_nginx(Work::LambdaApikey, 1.1),
            Self::LambdaIam => {
                let (setups, own) = plain(Work::LambdaIam);
                let bars = vec![
                    cpu(own, Setup::new(Nginx, Work::Proxy), Limit::Times(1.35)),
                    cpu(own, Setup::new(Nginx, Work::LambdaApikey), Limit::Times(1.25)),
                    cpu(own, Setup::new(Envoy, Work::LambdaIam), Limit::Times(0.4)),
                ];
                (setups, bars)
            }
            Self::LambdaIamTls => {
                let (setups, own) = plain(Work::LambdaIamTls);
                let nginx = Setup::new(Nginx, Work::ProxyTlsUp);
                (setups, vec![cpu(own, nginx, Limit::MicrosecondsMore(3.0))])
            }
            Self::LambdaEvent(format) => {
                let own = Setup::new(Sluicegate, Work::LambdaEvent(format));
                let beside = [Work::Proxy, Work::LambdaIam];
                let bars =
                    beside.map(|work| cpu(own, Setup::new(Sluicegate, work), Limit::Unlimited));
                (vec![own], bars.to_vec())
            }
            Self::Routes(count) => {
                let (setups, own) = plain(Work::Routes { count, paths: count });
                // The same requests, all for one route.
                let one = Setup::new(Sluicegate, Work::Routes { count: 1, paths: count });
                let times = if count > 10_000 { 1.1 } else { 1.05 };
                let p99 = Bar { figure: Figure::P99, own, peer: one, limit: Limit::Times(1.1) };
                (setups, vec![cpu(own, one, Limit::Times(times)), p99])
            }
            Self::AccessLog | Self::AccessLogJson => {
                let log = if self == Self::AccessLog { Log::Text } else { Log::Json };
                let without = Setup::new(Sluicegate, Work::Proxy);
                let own = Setup { log, ..without };
                // nginx's own ratio says how much of ours is the machine's.
                let nginx_without = Setup::new(Nginx, Work::Proxy);
                let nginx = Setup { log, ..nginx_without };
                let bars = vec![
                    cpu(own, without, Limit::Times(1.08)),
                    cpu(nginx, nginx_without, Limit::Unlimited),
                ];
                (vec![own, nginx], bars)
            }
            Self::KeyAuth => with_plugins(Work::KeyAuth, Work::Proxy, Limit::Unlimited),
            Self::LimitCount => with_plugins(Work::LimitCount, Work::Proxy, Limit::Unlimited),
            Self::CorsRewrite => with_plugins(Work::CorsRewrite, Work::Proxy, Limit::Unlimited),
            Self::LambdaChain => {
                with_plugins(Work::LambdaChain, Work::LambdaIam, Limit::MicrosecondsMore(4.0))
            }
            Self::Scale => {
                let unpinned = |peer, workers| Setup {
                    workers,
                    place: Place::Anywhere,
                    ..Setup::new(peer, Work::Proxy)
                };
                let (own, one) = (unpinned(Sluicegate, 2), unpinned(Sluicegate, 1));
                // nginx's own ratio says how much of ours is the machine's.
                let (nginx, nginx_one) = (unpinned(Nginx, 2), unpinned(Nginx, 1));
                let bars = vec![
                    cpu(own, one, Limit::Times(1.05)),
                    cpu(nginx, nginx_one, Limit::Unlimited),
                ];
                (vec![own, nginx], bars)
            }
        };
        for bar in &bars {
            if !setups.contains(&bar.peer) {
                setups.push(bar.peer);
            }
        }
        Plan { setups, bars }
    }
}

/// One comparison, ready to be run.
pub(crate) struct Plan {
    pub(crate) setups: Vec<Setup>,
    pub(crate) bars: Vec<Bar>,
}

/// A gateway started in one way for one kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) peer: Peer,
    pub(crate) work: Work,
    pub(crate) workers: u32,
    pub(crate) place: Place,
    pub(crate) log: Log,
}

impl Setup {
    pub(crate) const fn new(peer: Peer, work: Work) -> Self {
        Self { peer, work, workers: 1, place: Place::Gateway, log: Log::Off }
    }

    fn is_possible(self) -> bool {
        match (self.peer, self.work) {
            (Peer::Nginx | Peer::Haproxy, Work::LambdaIam | Work::LambdaIamTls) => false,
            (Peer::Sluicegate, _) => true,
            (_, work) if !work.plugins().is_empty() => false,
            (_, Work::Routes { count, .. }) => count <= PEER_ROUTES_MAX,
            _ => true,
        }
    }

    /// How it is told from the other setups of its comparison.
    pub(crate) fn label(self) -> String {
        let mut label = self.peer.name().to_owned();
        match self.work {
            Work::Routes { count: 1, .. } => label += ", one route",
            Work::Routes { .. } => {}
            work => label = format!("{label}, {}", work.name()),
        }
        match self.log {
            Log::Off => {}
            Log::Text => label += ", logging",
            Log::Json => label += ", logging JSON",
        }
        if self.place == Place::Anywhere {
            label += match self.workers {
                1 => ", one worker",
                _ => ", two workers",
            };
        }
        label
    }
}

/// What a request asks of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A GET to an upstream, connections kept on both sides.
    Proxy,
    /// The same to an upstream behind TLS, whose certificate is verified.
    ProxyTlsUp,
    /// `Proxy` for clients that come with TLS.
    TlsDown,
    /// `Proxy` for clients that come with HTTP/2, by prior knowledge.
    H2cDown,
    /// A POST of 1 KiB to a function behind an API key, which the gateway adds.
    LambdaApikey,
    /// The same to a function that wants a signature.
    LambdaIam,
    /// The same behind TLS, whose certificate is verified.
    LambdaIamTls,
    /// `LambdaIam` with the request as an event of this `request_format`.
    LambdaEvent(&'static str),
    /// `Proxy` through `count` routes with requests for `paths` different paths, at random.
    Routes { count: u32, paths: u32 },
    /// `BIG_BODY_BYTES` there and as many back.
    BigBody,
    /// `Proxy` behind a function in Lua that does nothing.
    LuaEmpty,
    /// `Proxy` behind a function in Lua that sets a header.
    LuaHeader,
    /// `Proxy` behind `key-auth`, for one of `CONSUMERS`.
    KeyAuth,
    /// `Proxy` behind `limit-count`, which counts on the gateway.
    LimitCount,
    /// `Proxy` behind `cors` and `proxy-rewrite`.
    CorsRewrite,
    /// `LambdaIam` behind `request-id`, which makes an id, `cors`, which answers an `Origin`, `key-auth`,
    /// `limit-count` and `proxy-rewrite`.
    LambdaChain,
}

impl Work {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::ProxyTlsUp => "proxy-tls-up",
            Self::TlsDown => "tls-down",
            Self::H2cDown => "h2c-down",
            Self::LambdaApikey => "lambda-apikey",
            Self::LambdaIam => "lambda-iam",
            Self::LambdaIamTls => "lambda-iam-tls",
            Self::LambdaEvent(format) => event_name(format),
            Self::Routes { .. } => "routes",
            Self::BigBody => "big-body",
            Self::LuaEmpty => "lua-empty",
            Self::LuaHeader => "lua-header",
            Self::KeyAuth => "key-auth",
            Self::LimitCount => "limit-count",
            Self::CorsRewrite => "cors-rewrite",
            Self::LambdaChain => "lambda-chain",
        }
    }

    /// The function in Lua that the route has.
    pub(crate) fn lua(self) -> Option<&'static str> {
        match self {
            Self::LuaEmpty => Some("return function() end"),
            Self::LuaHeader => {
                Some("return function(conf, ctx) ngx.req.set_header('X-Passed', ctx.var.uri) end")
            }
            _ => None,
        }
    }

    /// Our plugins in front of the upstream or the function.
    pub(crate) fn plugins(self) -> Vec<(&'static str, &'static str)> {
        let key_auth = ("key-auth", "{}");
        let limit = ("limit-count", r#"{"count": 1000000000, "time_window": 86400}"#);
        let cors = ("cors", r#"{"allow_origins": "*"}"#);
        match self {
            Self::KeyAuth => vec![key_auth],
            Self::LimitCount => vec![limit],
            Self::CorsRewrite => vec![cors, ("proxy-rewrite", r#"{"uri": "/hello"}"#)],
            Self::LambdaChain => {
                let stage = r#"{"headers": {"set": {"X-Stage": "bench"}}}"#;
                vec![("request-id", "{}"), cors, key_auth, limit, ("proxy-rewrite", stage)]
            }
            _ => Vec::new(),
        }
    }

    pub(crate) fn method(self) -> &'static str {
        if self.body_bytes() == 0 { "GET" } else { "POST" }
    }

    /// The path and query asked for, or the first of them.
    pub(crate) fn path(self) -> String {
        match self {
            Self::Routes { .. } => route_path(0),
            Self::BigBody => "/big".to_owned(),
            work if work.function_path().is_some() => {
                "/invoke?name=value1&id=12345&flag=true".to_owned()
            }
            _ => "/hello?a=1".to_owned(),
        }
    }

    /// Where the function is at the origin.
    pub(crate) fn function_path(self) -> Option<&'static str> {
        match self {
            Self::LambdaApikey => Some("/function/apikey"),
            Self::LambdaIam | Self::LambdaIamTls | Self::LambdaEvent(_) | Self::LambdaChain => {
                Some("/function/iam")
            }
            _ => None,
        }
    }

    pub(crate) fn body_bytes(self) -> usize {
        match self {
            Self::BigBody => BIG_BODY_BYTES,
            work if work.function_path().is_some() => FUNCTION_BODY_BYTES,
            _ => 0,
        }
    }

    /// What a request brings beside its Host and the fields of its body.
    pub(crate) fn headers(self) -> Vec<(&'static str, &'static str)> {
        let mut headers = HEADERS.to_vec();
        match self {
            Self::KeyAuth => headers.push(CONSUMER),
            Self::LambdaChain => {
                // `request-id` makes one then, and `cors` has something to answer.
                headers.retain(|(name, _)| *name != "X-Request-Id");
                headers.extend([CONSUMER, ("Origin", "https://shop.example")]);
            }
            _ => {}
        }
        headers
    }

    pub(crate) fn body(self) -> Vec<u8> {
        match self.body_bytes() {
            0 => Vec::new(),
            bytes => format!("{{\"k\":\"{}\"}}", "x".repeat(bytes - 8)).into_bytes(),
        }
    }

    pub(crate) fn origin_has_tls(self) -> bool {
        matches!(self, Self::ProxyTlsUp | Self::LambdaIamTls)
    }
}

fn event_name(format: &'static str) -> &'static str {
    match format {
        "apigw_v1" => "lambda-event-apigw-v1",
        "apigw_v2" => "lambda-event-apigw-v2",
        "alb" => "lambda-event-alb",
        "kong" => "lambda-event-kong",
        _ => "lambda-event-envoy",
    }
}

/// The path that only route `index` of many takes.
pub(crate) fn route_path(index: u32) -> String {
    format!("/svc/{index}/items/1")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    Off,
    /// Our default line; of it, for nginx, what it can tell.
    Text,
    /// The same in both.
    Json,
}

impl Log {
    /// In variables that nginx knows too.
    pub(crate) fn format(self) -> Option<&'static str> {
        match self {
            Self::Off => None,
            Self::Text => Some(TEXT_LOG),
            Self::Json => Some(JSON_LOG),
        }
    }
}

/// What one of our figures is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bar {
    pub(crate) figure: Figure,
    pub(crate) own: Setup,
    pub(crate) peer: Setup,
    pub(crate) limit: Limit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// CPU time per request.
    Cpu,
    P99,
    P999,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    Times(f64),
    MicrosecondsMore(f64),
    /// Shown for comparison only.
    Unlimited,
}

impl Limit {
    /// `0.97 x nginx, proxy (bar 1.00)`, with a word when it is missed: the median over the rounds,
    /// each figure beside the other's of its round, since a machine is not as fast in each.
    pub(crate) fn compare(self, own: &[f64], peer: &[f64], of: &str) -> String {
        let missed = |is_missed| if is_missed { ", missed" } else { "" };
        let rounds = || own.iter().zip(peer);
        let ratio = median(rounds().map(|(own, peer)| own / peer));
        match self {
            Self::Times(bar) => {
                format!("{ratio:.2} x {of} (bar {bar:.2}{})", missed(ratio > bar))
            }
            Self::MicrosecondsMore(bar) => {
                let more = median(rounds().map(|(own, peer)| own - peer));
                format!("{more:+.1} µs to {of} (bar +{bar:.1}{})", missed(more > bar))
            }
            Self::Unlimited => format!("{ratio:.2} x {of}"),
        }
    }

    /// `beside nginx, proxy: not measured (bar 1.00)`.
    pub(crate) fn without(self, why: &str, of: &str) -> String {
        match self {
            Self::Times(bar) => format!("beside {of}: {why} (bar {bar:.2})"),
            Self::MicrosecondsMore(bar) => format!("beside {of}: {why} (bar +{bar:.1})"),
            Self::Unlimited => format!("beside {of}: {why}"),
        }
    }
}

/// APISIX's default, without its four variables that nginx lacks.
const TEXT_LOG: &str = r#"$remote_addr - $remote_user [$time_local] $http_host "$request" $status $body_bytes_sent $request_time "$http_referer" "$http_user_agent" $upstream_addr $upstream_status $upstream_response_time "$request_uri" "$request_id""#;
/// As JSON.
const JSON_LOG: &str = r#"{"client": "$remote_addr", "user": "$remote_user", "time": "$time_local", "host": "$http_host", "request": "$request", "status": "$status", "bytes": "$body_bytes_sent", "seconds": "$request_time", "referer": "$http_referer", "agent": "$http_user_agent", "upstream": "$upstream_addr", "upstream_status": "$upstream_status", "upstream_seconds": "$upstream_response_time", "uri": "$request_uri", "id": "$request_id"}"#;
/// Headers of requests, where a case does not say otherwise.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("Content-Type", "application/json"),
    ("Accept", "*/*"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "bench"),
    ("X-Request-Id", "0d9fc2a1-4b57-4c2e-9a3d-6f1e8b7a5c40"),
];
/// The key of one of the consumers, as `key-auth` wants it.
const CONSUMER: (&str, &str) = ("apikey", "key-777");
/// Where `key-auth` is, each with a key of its own.
pub(crate) const CONSUMERS: u32 = 1000;
const FUNCTION_BODY_BYTES: usize = 1024;
/// A start with more takes others too long.
const PEER_ROUTES_MAX: u32 = 10_000;
/// Each way.
pub(crate) const BIG_BODY_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_compares_two_different_setups_of_its_plan() {
        for case in Case::ALL {
            let plan = case.plan();
            assert!(plan.setups.len() > 1 && !plan.bars.is_empty(), "{}", case.name());
            for bar in &plan.bars {
                let name = case.name();
                assert!(
                    plan.setups.contains(&bar.own) && plan.setups.contains(&bar.peer),
                    "{name}"
                );
                assert_ne!(bar.own.label(), bar.peer.label(), "{name}");
            }
            let mut labels: Vec<String> = plan.setups.iter().map(|s| s.label()).collect();
            labels.sort();
            labels.dedup();
            assert_eq!(labels.len(), plan.setups.len(), "{}: {labels:?}", case.name());
        }
    }

    #[test]
    fn a_missed_bar_says_so() {
        for (limit, own, expected) in [
            (Limit::Times(1.0), 9.7, "0.97 x nginx (bar 1.00)"),
            (Limit::Times(0.9), 9.7, "0.97 x nginx (bar 0.90, missed)"),
            (Limit::MicrosecondsMore(3.0), 13.5, "+3.5 µs to nginx (bar +3.0, missed)"),
            (Limit::MicrosecondsMore(3.0), 9.0, "-1.0 µs to nginx (bar +3.0)"),
            (Limit::Unlimited, 20.0, "2.00 x nginx"),
        ] {
            assert_eq!(limit.compare(&[own], &[10.0], "nginx"), expected);
        }
        // A round in which the machine was slow says as much as the others.
        let (own, peer) = ([12.0, 90.0, 11.0], [10.0, 80.0, 10.0]);
        let ratio = Limit::Times(1.1).compare(&own, &peer, "nginx");
        assert_eq!(ratio, "1.12 x nginx (bar 1.10, missed)");
        let more = Limit::MicrosecondsMore(2.0).compare(&own, &peer, "nginx");
        assert_eq!(more, "+2.0 µs to nginx (bar +2.0)");
    }

    #[test]
    fn a_bar_without_figures_says_why() {
        for (limit, expected) in [
            (Limit::Times(1.1), "beside nginx: not measured (bar 1.10)"),
            (Limit::MicrosecondsMore(3.0), "beside nginx: not measured (bar +3.0)"),
            (Limit::Unlimited, "beside nginx: not measured"),
        ] {
            assert_eq!(limit.without("not measured", "nginx"), expected);
        }
    }

    #[test]
    fn functions_are_sent_a_kibibyte_of_json() {
        let body = Work::LambdaIam.body();
        assert_eq!((body.len(), Work::LambdaIam.method()), (1024, "POST"));
        assert_eq!((Work::Proxy.body().len(), Work::Proxy.method()), (0, "GET"));
    }
}
