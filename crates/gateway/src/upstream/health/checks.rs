//! `checks` of an upstream, read once.
//!
//! Where a part is left out as a whole, lua-resty-healthcheck's defaults count, which the schema
//! does not have; within a part the schema's were filled in before.

use std::time::Duration;

use serde_json::Value;

use super::super::seconds;

/// How an upstream's nodes are checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Checks {
    /// By probes.
    pub active: Active,
    /// By the answers to requests.
    pub passive: Passive,
}

/// Probes.
#[derive(Debug, Clone, PartialEq)]
pub struct Active {
    /// What a probe is.
    pub kind: ProbeKind,
    /// For each step of a probe.
    pub timeout: Duration,
    /// Probes of one upstream at once.
    pub concurrency: usize,
    /// The `Host` of probes, and the name of the nodes among checks.
    pub host: Option<Box<str>>,
    /// The port to probe, in place of the node's own.
    pub port: Option<u16>,
    /// The request line without its version.
    pub request: Box<str>,
    /// Header lines, each with its line end.
    pub headers: Box<str>,
    /// Sent behind the head.
    pub body: Box<str>,
    /// The certificate must be good.
    pub verify: bool,
    /// What makes a node healthy.
    pub healthy: Healthy,
    /// What makes it unhealthy.
    pub unhealthy: Unhealthy,
    /// Time between two probes of a healthy node, and of an unhealthy one; `None`: it gets none.
    pub every: [Option<Duration>; 2],
}

/// What a probe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// A request in the clear.
    Http,
    /// A request over TLS.
    Https,
    /// A connection.
    Tcp,
}

/// Real answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Passive {
    /// Statuses of answers count: the configuration has such a part.
    pub by_status: bool,
    /// What makes a node healthy.
    pub healthy: Healthy,
    /// What makes it unhealthy.
    pub unhealthy: Unhealthy,
}

/// What makes a node healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthy {
    statuses: Box<[u16]>,
    /// So many good answers in a row; 0: none count.
    pub successes: u8,
}

/// What makes a node unhealthy. So many of each kind without a good answer between; 0: none count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    statuses: Box<[u16]>,
    /// Bad statuses.
    pub http_failures: u8,
    /// Failed connections.
    pub tcp_failures: u8,
    /// Time limits that ran out.
    pub timeouts: u8,
}

impl Checks {
    /// Reads `checks`, whose defaults are filled in.
    pub fn compile(checks: &Value) -> Result<Self, String> {
        let none = Value::Null;
        let active = checks.get("active").unwrap_or(&none);
        let passive = checks.get("passive");
        Ok(Self { active: Active::compile(active)?, passive: Passive::compile(passive) })
    }
}

impl Active {
    fn compile(active: &Value) -> Result<Self, String> {
        let text = |name: &str, default: &str| -> Result<Box<str>, String> {
            let text = active.get(name).and_then(Value::as_str).unwrap_or(default);
            // Differs: APISIX sends them as they are, and with them whatever else they hold.
            if text.bytes().any(|b| b.is_ascii_control()) {
                return Err(format!("checks.active.{name} holds a control character: {text:?}"));
            }
            Ok(text.into())
        };
        let mut headers = String::new();
        for line in active.get("req_headers").and_then(Value::as_array).into_iter().flatten() {
            let line = line.as_str().unwrap_or_default();
            if line.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
                return Err(format!(
                    "checks.active.req_headers holds a control character: {line:?}"
                ));
            }
            headers.push_str(line);
            headers.push_str("\r\n");
        }
        let body = active.get("http_req_body").and_then(Value::as_str).unwrap_or_default();
        let every = |part: &str| {
            let interval = active.get(part)?.get("interval")?.as_f64()?;
            (interval > 0.0).then(|| seconds(interval))
        };
        let timeout = active.get("timeout").and_then(Value::as_f64).filter(|t| *t > 0.0);
        let concurrency = active.get("concurrency").and_then(Value::as_f64);
        let method = text("http_method", "GET")?;
        Ok(Self {
            kind: match active.get("type").and_then(Value::as_str) {
                Some("https") => ProbeKind::Https,
                Some("tcp") => ProbeKind::Tcp,
                _ => ProbeKind::Http,
            },
            timeout: seconds(timeout.unwrap_or(1.0)),
            concurrency: concurrency.map_or(10, |n| n as usize).clamp(1, CONCURRENCY_MAX),
            host: match text("host", "")? {
                host if host.is_empty() => None,
                host => Some(host),
            },
            port: active
                .get("port")
                .and_then(Value::as_f64)
                .filter(|port| (1.0..=65535.0).contains(port))
                .map(|port| port as u16),
            // Differs: APISIX always sends GET without a body.
            request: format!("{method} {}", text("http_path", "/")?).into(),
            headers: headers.into(),
            body: body.into(),
            verify: active.get("https_verify_certificate").and_then(Value::as_bool).unwrap_or(true),
            healthy: Healthy::compile(active.get("healthy"), &[200, 302], 2),
            unhealthy: Unhealthy::compile(
                active.get("unhealthy"),
                &[404, 429, 500, 501, 502, 503, 504, 505],
                [5, 2, 3],
            ),
            every: [every("healthy"), every("unhealthy")],
        })
    }
}

impl Passive {
    fn compile(passive: Option<&Value>) -> Self {
        let part = |name: &str| passive.and_then(|passive| passive.get(name));
        let mut healthy = Healthy::compile(part("healthy"), &PASSIVE_HEALTHY, 5);
        let mut unhealthy = Unhealthy::compile(part("unhealthy"), &[429, 500, 503], [5, 2, 7]);
        // APISIX asks for statuses of a part only where the configuration has that part.
        if part("healthy").is_none() {
            healthy.statuses = Box::default();
        }
        if part("unhealthy").is_none() {
            unhealthy.statuses = Box::default();
        }
        Self { by_status: passive.is_some(), healthy, unhealthy }
    }
}

impl Healthy {
    fn compile(part: Option<&Value>, statuses: &[u16], successes: u8) -> Self {
        Self {
            statuses: statuses_of(part, statuses),
            successes: count(part, "successes", successes),
        }
    }

    /// Is this the status of a good answer?
    pub fn has(&self, status: u16) -> bool {
        self.statuses.binary_search(&status).is_ok()
    }
}

impl Unhealthy {
    fn compile(part: Option<&Value>, statuses: &[u16], [http, tcp, timeouts]: [u8; 3]) -> Self {
        Self {
            statuses: statuses_of(part, statuses),
            http_failures: count(part, "http_failures", http),
            tcp_failures: count(part, "tcp_failures", tcp),
            timeouts: count(part, "timeouts", timeouts),
        }
    }

    /// Is this the status of a bad answer?
    pub fn has(&self, status: u16) -> bool {
        self.statuses.binary_search(&status).is_ok()
    }
}

fn statuses_of(part: Option<&Value>, default: &[u16]) -> Box<[u16]> {
    let listed = part.and_then(|part| part.get("http_statuses")).and_then(Value::as_array);
    let mut statuses: Vec<u16> = match listed {
        Some(listed) => {
            listed.iter().filter_map(Value::as_f64).map(|status| status as u16).collect()
        }
        None => default.to_vec(),
    };
    statuses.sort_unstable();
    statuses.into()
}

fn count(part: Option<&Value>, name: &str, default: u8) -> u8 {
    let given = part.and_then(|part| part.get(name)).and_then(Value::as_f64);
    given.map_or(default, |count| count as u8)
}

const PASSIVE_HEALTHY: [u16; 19] =
    [200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 306, 307, 308];

/// Probes of one upstream at once, whatever its configuration says.
const CONCURRENCY_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_left_out_have_the_defaults_of_the_checker() {
        let checks = Checks::compile(&json!({"active": {}})).expect("it compiles");
        assert_eq!(checks.active.every, [None, None]);
        assert_eq!(&*checks.active.request, "GET /");
        assert_eq!(checks.active.kind, ProbeKind::Http);
        assert!(checks.active.verify);
        assert!(checks.active.healthy.has(302) && !checks.active.healthy.has(301));
        assert_eq!(checks.active.unhealthy.tcp_failures, 2);
        assert!(!checks.passive.by_status);
        assert_eq!(checks.passive.unhealthy.timeouts, 7);
        assert!(!checks.passive.unhealthy.has(500), "only connections count");
    }

    #[test]
    fn what_is_configured_counts() {
        let checks = Checks::compile(&json!({
            "active": {
                "type": "https", "timeout": 0.5, "concurrency": 3.0, "host": "h.test", "port": 81,
                "http_path": "/ready?x=1", "req_headers": ["A: b", "C: d"],
                "https_verify_certificate": false, "http_method": "POST", "http_req_body": "hi",
                "healthy": {"interval": 2, "http_statuses": [201, 200], "successes": 1},
                "unhealthy": {"interval": 3, "http_statuses": [500], "http_failures": 4,
                              "tcp_failures": 5, "timeouts": 6},
            },
            "passive": {"unhealthy": {"http_statuses": [502], "http_failures": 1, "tcp_failures": 0}},
        }))
        .expect("it compiles");
        let active = &checks.active;
        assert_eq!(active.kind, ProbeKind::Https);
        assert_eq!(active.timeout, Duration::from_millis(500));
        assert_eq!((active.concurrency, active.port), (3, Some(81)));
        assert_eq!(active.host.as_deref(), Some("h.test"));
        assert_eq!((&*active.request, &*active.headers), ("POST /ready?x=1", "A: b\r\nC: d\r\n"));
        assert_eq!((&*active.body, active.verify), ("hi", false));
        assert_eq!(active.every, [2, 3].map(|s| Some(Duration::from_secs(s))));
        assert!(active.healthy.has(200) && active.healthy.has(201) && !active.healthy.has(302));
        assert_eq!(active.unhealthy.http_failures, 4);
        assert!(checks.passive.by_status && checks.passive.unhealthy.has(502));
        assert!(!checks.passive.healthy.has(200), "it has no such part");
        assert_eq!(checks.passive.unhealthy.tcp_failures, 0);
    }

    #[test]
    fn a_probe_holds_no_second_request() {
        for active in [
            json!({"http_path": "/ HTTP/1.1\r\nX: y"}),
            json!({"req_headers": ["A: b\r\nC: d"]}),
            json!({"host": "a\nb"}),
        ] {
            let refused = Checks::compile(&json!({"active": active})).map(drop);
            assert!(refused.is_err_and(|e| e.contains("control character")), "{active}");
        }
    }
}
