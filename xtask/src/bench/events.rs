//! `events`: what the largest events of functions take while many of them are under way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cases::{Setup, Work};
use super::http::Connection;
use super::origin::{ACCESS_KEY, REGION, SECRET_KEY};
use super::peers::sluicegate::Prefix;
use super::peers::{Peer, Stand};
use super::report::{Facts, Report};

pub(crate) fn run(stand: &Stand, report: &mut Report) -> Result<()> {
    let mut facts = Facts::new("events");
    let setup = Setup::new(Peer::Sluicegate, Work::Proxy);
    let prefix = Prefix::make(stand, setup, "events")?;
    for (kind, media, bytes) in [
        ("text, which an event holds as it is", "text/plain", TEXT_BYTES),
        ("bytes, which an event holds in base64", "application/octet-stream", BINARY_BYTES),
    ] {
        // Anew for each: room that one kind leaves would hide the other's.
        let server = prefix.start(stand.launcher, setup.place)?;
        let held = Held::start()?;
        prefix.admin.put("/routes/events", &route(held.port))?;
        super::server::wait_for("the route", || {
            let mut one = Connection::open(prefix.data)?;
            Ok(one.request("POST", "/events", &[], b"{}")?.status == 200)
        })?;
        std::thread::sleep(SETTLE);
        let before = server.memory()?.rss_mib();
        held.hold(IN_FLIGHT);
        let body = vec![b'x'; bytes];
        let during = std::thread::scope(|scope| -> Result<f64> {
            let calls: Vec<_> =
                (0..IN_FLIGHT).map(|_| scope.spawn(|| call(prefix.data, media, &body))).collect();
            held.wait_for_all()?;
            let during = server.memory()?.rss_mib();
            held.release();
            for call in calls {
                let status = call.join().ok().context("a caller panicked")??;
                ensure!(status == 200, "a call answered {status}");
            }
            Ok(during)
        })?;
        let peak = server.memory()?.peak_mib();
        std::thread::sleep(SETTLE);
        let after = server.memory()?.rss_mib();
        let sent = held.event_bytes() as f64 * f64::from(IN_FLIGHT) / (1024.0 * 1024.0);
        for (when, value) in [
            ("before", before),
            ("while all wait for their function", during),
            ("at the most", peak),
            ("after", after),
        ] {
            let what = format!("{IN_FLIGHT} events of together {sent:.0} MiB ({kind}): {when}");
            let bar = (when == "at the most").then_some(before + sent * COPIES_MAX);
            facts.add(report, &what, value, "MiB", bar);
        }
    }
    Ok(())
}

fn call(port: u16, media: &str, body: &[u8]) -> Result<u16> {
    let mut connection = Connection::open(port)?;
    Ok(connection.request("POST", "/events", &[("Content-Type", media)], body)?.status)
}

/// A function by name at an endpoint, so that requests become events.
fn route(port: u16) -> String {
    format!(
        r#"{{"uri": "/events", "plugins": {{"aws-lambda": {{
            "function": {{"name": "events", "region": "{REGION}",
                "endpoint": "http://127.0.0.1:{port}"}},
            "max_req_body_size": {TEXT_BYTES}, "timeout": 60000,
            "authorization": {{"iam": {{"accesskey": "{ACCESS_KEY}", "secretkey": "{SECRET_KEY}"}}}}
        }}}}}}"#
    )
}

/// An end of the Invoke API that answers nobody before all are there.
struct Held {
    port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    /// Calls to come before the first answer goes.
    awaited: u32,
    held: bool,
    event_bytes: usize,
}

impl Held {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let state = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let shared = Arc::clone(&state);
        // Ends with the process: it waits for connections and holds nothing else.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Ok(Self { port, state })
    }

    fn hold(&self, awaited: u32) {
        let mut state = self.state.0.lock().expect("no holder panics");
        (state.awaited, state.held) = (awaited, true);
    }

    fn wait_for_all(&self) -> Result<()> {
        let (state, changed) = &*self.state;
        let state = state.lock().expect("no holder panics");
        let waiting = |state: &mut State| state.awaited > 0;
        let (state, _) =
            changed.wait_timeout_while(state, PATIENCE, waiting).expect("no holder panics");
        ensure!(state.awaited == 0, "{} events have not come", state.awaited);
        Ok(())
    }

    fn release(&self) {
        self.state.0.lock().expect("no holder panics").held = false;
        self.state.1.notify_all();
    }

    fn event_bytes(&self) -> usize {
        self.state.0.lock().expect("no holder panics").event_bytes
    }
}

/// Takes calls off one connection until it ends.
fn serve(stream: TcpStream, (state, changed): &(Mutex<State>, Condvar)) -> Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(length) = head(&mut stream)? {
        let read = std::io::copy(&mut (&mut stream).take(length), &mut std::io::sink())?;
        ensure!(read == length, "an event ends early");
        let mut state = state.lock().expect("no holder panics");
        state.awaited = state.awaited.saturating_sub(1);
        state.event_bytes = usize::try_from(length)?;
        changed.notify_all();
        let held = |state: &mut State| state.held;
        let (state, _) =
            changed.wait_timeout_while(state, PATIENCE, held).expect("no holder panics");
        drop(state);
        stream.get_mut().write_all(ANSWER)?;
    }
    Ok(())
}

/// The length of the body that follows; none at the end of the connection.
fn head(stream: &mut impl BufRead) -> Result<Option<u64>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse()?;
            }
            None if line.trim_end().is_empty() => return Ok(Some(length)),
            _ => {}
        }
    }
}

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n\
                        {\"statusCode\": 200}";
const IN_FLIGHT: u32 = 100;
/// With an event around it just below Lambda's 6,291,456.
const TEXT_BYTES: usize = 6_288_000;
/// Likewise, in base64.
const BINARY_BYTES: usize = 4_716_000;
/// A call under way may keep its request and the event made of it, but nothing else of that size.
const COPIES_MAX: f64 = 2.1;
const PATIENCE: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(2);
