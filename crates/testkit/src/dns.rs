//! A DNS server that knows what a test tells it, over UDP.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The server. It stops when it is dropped.
pub struct Dns {
    /// Where it listens.
    pub addr: SocketAddr,
    state: Arc<State>,
}

/// What a record holds.
#[derive(Clone, Debug)]
pub enum Data {
    /// An IPv4 address.
    A([u8; 4]),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name.
    Cname(&'static str),
    /// Priority, weight, port, host.
    Srv(u16, u16, u16, &'static str),
}

struct State {
    records: Mutex<Option<Vec<(String, u32, Data)>>>,
    asked: Mutex<Vec<(String, u16)>>,
    stopped: AtomicBool,
}

impl Dns {
    /// A server with these records: name, seconds to live, data.
    pub fn start(records: &[(&str, u32, Data)]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
        // So that it looks whether it is to end.
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("sockets have it");
        let addr = socket.local_addr().expect("the socket is bound");
        let state = Arc::new(State {
            records: Mutex::default(),
            asked: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while !shared.stopped.load(Ordering::SeqCst) {
                let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
                if let Some(answer) = shared.answer(&query[..length]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        let server = Self { addr, state };
        server.tell(records);
        server
    }

    /// Replaces its records.
    pub fn tell(&self, records: &[(&str, u32, Data)]) {
        let records = records.iter();
        let records = records.map(|(name, ttl, data)| ((*name).to_owned(), *ttl, data.clone()));
        *lock(&self.state.records) = Some(records.collect());
    }

    /// It answers nothing any more, until it is told records again.
    pub fn fall_silent(&self) {
        *lock(&self.state.records) = None;
    }

    /// Names and numbers of types that were asked for, in order.
    pub fn asked(&self) -> Vec<(String, u16)> {
        lock(&self.state.asked).clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// RFC 1035 section 4.1: one question, and all records of its name and type, aliases too.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = read_name(query.get(12..)?)?;
        let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        let question_end = query.len() - rest.len() + 4;
        lock(&self.asked).push((name.clone(), kind));
        let records = lock(&self.records).clone()?;
        let known = records.iter().any(|(other, ..)| *other == name);
        let found = records.iter().filter(|(other, _, data)| {
            *other == name && (data.kind() == kind || data.kind() == CNAME)
        });
        let mut answers = Vec::new();
        let mut count = 0_u16;
        for (_, ttl, data) in found {
            count += 1;
            answers.extend_from_slice(&[0xc0, 12]);
            answers.extend_from_slice(&data.kind().to_be_bytes());
            answers.extend_from_slice(&1_u16.to_be_bytes());
            answers.extend_from_slice(&ttl.to_be_bytes());
            let data = data.encode();
            answers.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
            answers.extend_from_slice(&data);
        }
        let mut message = query.get(..2)?.to_vec();
        // An answer, with recursion; 3: there is no such name.
        message.extend_from_slice(&[0x81, if known { 0x80 } else { 0x83 }, 0, 1]);
        message.extend_from_slice(&count.to_be_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(query.get(12..question_end)?);
        message.extend_from_slice(&answers);
        Some(message)
    }
}

impl Data {
    fn kind(&self) -> u16 {
        match self {
            Self::A(_) => 1,
            Self::Cname(_) => CNAME,
            Self::Aaaa(_) => 28,
            Self::Srv(..) => 33,
        }
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::A(ip) => Ipv4Addr::from(*ip).octets().to_vec(),
            Self::Aaaa(ip) => ip.octets().to_vec(),
            Self::Cname(name) => write_name(name),
            Self::Srv(priority, weight, port, host) => {
                let mut data = Vec::new();
                for number in [priority, weight, port] {
                    data.extend_from_slice(&number.to_be_bytes());
                }
                data.extend_from_slice(&write_name(host));
                data
            }
        }
    }
}

fn read_name(mut bytes: &[u8]) -> Option<(String, &[u8])> {
    let mut name = String::new();
    loop {
        let (&length, rest) = bytes.split_first()?;
        if length == 0 {
            return Some((name.to_ascii_lowercase(), rest));
        }
        let label = rest.get(..length.into())?;
        if !name.is_empty() {
            name.push('.');
        }
        name += std::str::from_utf8(label).ok()?;
        bytes = rest.get(length.into()..)?;
    }
}

fn write_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("labels are short"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

const CNAME: u16 = 5;
