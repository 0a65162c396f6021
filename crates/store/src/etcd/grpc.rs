//! Reading everything over etcd's own wire: gRPC on HTTP/2, one call for each page.
//!
//! The JSON gateway costs etcd ten times the processor time that its own wire costs, most of it
//! where a large configuration is read at start. So listing begins here; where it fails, whatever
//! the reason, the JSON gateway goes on from the page it came to, and the reasons that people see are
//! the gateway's. The two messages are written and read by hand: they have four fields each.
//!
//! Rules: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>,
//! <https://protobuf.dev/programming-guides/encoding/>, `etcdserverpb.RangeRequest`.

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use http::{HeaderMap, HeaderValue, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::wire::{Header, Kv, Range};

/// A connection that speaks gRPC.
pub(super) struct Connection {
    send: SendRequest<Bytes>,
    authority: String,
    scheme: &'static str,
    token: Option<HeaderValue>,
}

/// Which keys, as of when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) key: &'a [u8],
    pub(super) range_end: &'a [u8],
    pub(super) limit: u64,
    /// 0: as of now.
    pub(super) revision: u64,
}

impl Connection {
    /// Begins to speak HTTP/2 over `stream`.
    pub(super) async fn open(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        authority: String,
        tls: bool,
        token: Option<HeaderValue>,
    ) -> Result<Self, String> {
        let (send, connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES_MAX)
            .handshake(stream)
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "A connection to etcd ended.");
            }
        });
        Ok(Self { send, authority, scheme: if tls { "https" } else { "http" }, token })
    }

    /// Reads one page.
    pub(super) async fn range(&mut self, asked: Asked<'_>) -> Result<Range, String> {
        let text = |error: h2::Error| error.to_string();
        let uri = http::Uri::builder()
            .scheme(self.scheme)
            .authority(self.authority.as_str())
            .path_and_query("/etcdserverpb.KV/Range")
            .build()
            .map_err(|error| error.to_string())?;
        let mut request = Request::post(uri)
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = &self.token {
            request = request.header("token", token.clone());
        }
        let request = request.body(()).map_err(|error| error.to_string())?;
        let mut send = self.send.clone().ready().await.map_err(text)?;
        let (answer, mut stream) = send.send_request(request, false).map_err(text)?;
        stream.send_data(framed(&asked.encode()), true).map_err(text)?;
        let answer = answer.await.map_err(text)?;
        if answer.status() != 200 {
            return Err(format!("status {}", answer.status()));
        }
        // An answer that is an error and nothing else has it here.
        check(answer.headers())?;
        let mut body = answer.into_body();
        let mut bytes = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece.map_err(text)?;
            if bytes.len() + piece.len() > MESSAGE_BYTES_MAX {
                return Err("its answer is too large".to_owned());
            }
            body.flow_control().release_capacity(piece.len()).map_err(text)?;
            bytes.extend_from_slice(&piece);
        }
        let trailers = body.trailers().await.map_err(text)?;
        let trailers = trailers.ok_or("its answer broke off")?;
        if !trailers.contains_key(STATUS) {
            return Err("its answer has no status".to_owned());
        }
        check(&trailers)?;
        let malformed = || "its answer is malformed".to_owned();
        let message = unframed(bytes.freeze()).ok_or_else(malformed)?;
        read_range(message).ok_or_else(malformed)
    }
}

/// Refuses every status but 0.
fn check(headers: &HeaderMap) -> Result<(), String> {
    let Some(status) = headers.get(STATUS).filter(|status| *status != "0") else { return Ok(()) };
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes).unwrap_or_default();
    let message: String = String::from_utf8_lossy(message).chars().take(TEXT_CHARS_MAX).collect();
    Err(format!("gRPC status {}: {message}", status.to_str().unwrap_or("?")))
}

/// A message as it goes over the wire: not compressed, its length, itself.
fn framed(message: &[u8]) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes.into()
}

/// The one message of an answer.
fn unframed(mut bytes: Bytes) -> Option<Bytes> {
    if bytes.len() < 5 || bytes.get_u8() != 0 {
        return None;
    }
    let length = usize::try_from(bytes.get_u32()).ok()?;
    (bytes.len() == length).then_some(bytes)
}

impl Asked<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (field, bytes) in [(1, self.key), (2, self.range_end)] {
            push_varint(field << 3 | LENGTH, &mut out);
            push_varint(bytes.len() as u64, &mut out);
            out.extend_from_slice(bytes);
        }
        for (field, number) in [(3, self.limit), (4, self.revision)] {
            push_varint(field << 3 | VARINT, &mut out);
            push_varint(number, &mut out);
        }
        out
    }
}

/// `etcdserverpb.RangeResponse`.
fn read_range(message: Bytes) -> Option<Range> {
    let mut range = Range::default();
    each_field(message, |field, value| match (field, value) {
        (1, Value::Bytes(header)) => {
            range.header = Header::default();
            each_field(header, |field, value| {
                match (field, value) {
                    (1, Value::Number(id)) => range.header.cluster_id = id,
                    (3, Value::Number(revision)) => range.header.revision = revision,
                    _ => {}
                }
                Some(())
            })
        }
        (2, Value::Bytes(kv)) => {
            range.kvs.push(read_kv(kv)?);
            Some(())
        }
        (3, Value::Number(more)) => {
            range.more = more != 0;
            Some(())
        }
        _ => Some(()),
    })?;
    Some(range)
}

/// `mvccpb.KeyValue`.
fn read_kv(message: Bytes) -> Option<Kv> {
    let mut kv = Kv::default();
    each_field(message, |field, value| {
        match (field, value) {
            (1, Value::Bytes(key)) => kv.key = key,
            (2, Value::Number(revision)) => kv.create_revision = revision,
            (3, Value::Number(revision)) => kv.mod_revision = revision,
            (5, Value::Bytes(value)) => kv.value = value,
            _ => {}
        }
        Some(())
    })?;
    Some(kv)
}

enum Value {
    Number(u64),
    /// A part of the answer; nothing is copied.
    Bytes(Bytes),
    /// Of a type that no field here has.
    Other,
}

/// Calls `take` for every field of a message; `None` when it is malformed.
fn each_field(mut message: Bytes, mut take: impl FnMut(u64, Value) -> Option<()>) -> Option<()> {
    while !message.is_empty() {
        let tag = read_varint(&mut message)?;
        let value = match tag & 7 {
            VARINT => Value::Number(read_varint(&mut message)?),
            LENGTH => {
                let length = usize::try_from(read_varint(&mut message)?).ok()?;
                Value::Bytes((length <= message.len()).then(|| message.split_to(length))?)
            }
            kind @ (1 | 5) => {
                let length = if kind == 1 { 8 } else { 4 };
                (length <= message.len()).then(|| message.advance(length))?;
                Value::Other
            }
            _ => return None,
        };
        take(tag >> 3, value)?;
    }
    Some(())
}

fn read_varint(bytes: &mut Bytes) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = if bytes.is_empty() { return None } else { bytes.get_u8() };
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn push_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

const STATUS: &str = "grpc-status";

/// Types of fields on the wire.
const VARINT: u64 = 0;
const LENGTH: u64 = 2;

/// The longest page, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// What etcd may send ahead.
const WINDOW_BYTES: u32 = 4 << 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// How much of etcd's own words is repeated.
const TEXT_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn field(field: u64, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_varint(field << 3 | LENGTH, &mut out);
        push_varint(bytes.len() as u64, &mut out);
        out.extend_from_slice(bytes);
        out
    }

    fn number(field: u64, number: u64) -> Vec<u8> {
        let mut out = Vec::new();
        push_varint(field << 3, &mut out);
        push_varint(number, &mut out);
        out
    }

    #[test]
    fn a_page_is_read_whatever_else_stands_in_it() {
        let header = [number(1, u64::MAX), number(2, 7), number(3, 300), number(4, 2)].concat();
        let kv = [
            field(1, b"/apisix/routes/1"),
            number(2, 5),
            number(3, 299),
            number(4, 1),
            field(5, b"{}"),
            number(6, 9),
        ]
        .concat();
        let mut page = [field(1, &header), field(2, &kv), field(2, b""), number(3, 1)].concat();
        // Fields of types that a later version may bring.
        page.extend_from_slice(&[0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4]);
        let range = read_range(page.clone().into()).unwrap();
        assert_eq!((range.header.cluster_id, range.header.revision), (u64::MAX, 300));
        assert!(range.more);
        let [first, second] = &range.kvs[..] else { panic!("{range:?}") };
        assert_eq!((&first.key[..], &first.value[..]), (&b"/apisix/routes/1"[..], &b"{}"[..]));
        assert_eq!((first.create_revision, first.mod_revision), (5, 299));
        assert_eq!((second.key.len(), second.mod_revision), (0, 0));
        // Cut anywhere it is malformed, or a shorter page, and never more than that.
        for at in 0..page.len() {
            let cut = read_range(page[..at].to_vec().into());
            assert!(cut.is_none_or(|cut| cut.kvs.len() <= 2), "{at}");
        }
    }

    #[test]
    fn a_number_ends_within_ten_bytes() {
        for (bytes, read) in [
            (&[0x05][..], Some(5)),
            (&[0xac, 0x02], Some(300)),
            (&[0xff; 9], None),
            (&[0x80; 11], None),
            (&[], None),
        ] {
            assert_eq!(read_varint(&mut Bytes::copy_from_slice(bytes)), read, "{bytes:?}");
        }
    }

    #[test]
    fn a_frame_holds_one_whole_message() {
        assert_eq!(unframed(framed(b"abc")).as_deref(), Some(&b"abc"[..]));
        for bytes in
            [&b"\0\0\0\0\x04abc"[..], b"\x01\0\0\0\x03abc", b"\0\0\0\0", b"\0\0\0\0\x02abc"]
        {
            assert_eq!(unframed(Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_request_is_what_protobuf_makes_of_it() {
        let asked = Asked { key: b"a", range_end: b"b", limit: 300, revision: 1 };
        assert_eq!(asked.encode(), b"\x0a\x01a\x12\x01b\x18\xac\x02\x20\x01");
    }
}
