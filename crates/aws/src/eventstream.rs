//! Frames of `application/vnd.amazon.eventstream`, the framing of `InvokeWithResponseStream`.
//!
//! A frame is a prelude of 12 bytes (length of all, length of the headers, CRC-32 of these eight
//! bytes), headers, a payload, and a CRC-32 of everything before it:
//! <https://smithy.io/2.0/aws/amazon-eventstream.html>.
//!
//! - [`FrameDecoder`] takes bytes in pieces of any size and gives whole frames; payloads are slices
//!   of what came in, not copies.
//! - [`InvokeStreamDecoder`] reads those frames as Lambda's events: pieces of the answer, then one
//!   [`Completion`], which may be an error long after the first byte went to the client.
//! - [`write_frame`] writes a frame, for whoever stands in for AWS.
//!
//! Invariant: a payload is given away only after both checksums of its frame were right.

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;

/// Cuts a stream of bytes into frames.
///
/// Push what arrived, then call [`next_frame`](Self::next_frame) until it gives none. At the end of
/// the stream, [`finish`](Self::finish) tells whether it ended between frames.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    /// Length of the frame at the buffer's start, once its prelude was checked.
    total: Option<(usize, usize)>,
    payload_bytes_max: usize,
    failed: bool,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new(PAYLOAD_BYTES_MAX)
    }
}

impl FrameDecoder {
    /// A decoder that takes payloads up to this size; [`PAYLOAD_BYTES_MAX`] is what AWS allows.
    pub fn new(payload_bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), total: None, payload_bytes_max, failed: false }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for the rest of their frame.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole frame, or `None` until more bytes are pushed. After an error the stream is
    /// lost: nothing tells where the next frame would start, and every further call says so.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.failed {
            return Err(FrameError::AfterError);
        }
        let next = self.try_next();
        self.failed = next.is_err();
        next
    }

    /// Whether the stream may end here.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.buffer.len() {
            0 => Ok(()),
            bytes => Err(FrameError::Truncated { bytes }),
        }
    }

    fn try_next(&mut self) -> Result<Option<Frame>, FrameError> {
        let (total, headers) = match self.total {
            Some(lengths) => lengths,
            None => match self.read_prelude()? {
                Some(lengths) => *self.total.insert(lengths),
                None => return Ok(None),
            },
        };
        if self.buffer.len() < total {
            // The size was checked against the limit, so this reserve is bounded.
            self.buffer.reserve(total - self.buffer.len());
            return Ok(None);
        }
        self.total = None;
        let mut frame = self.buffer.split_to(total).freeze();
        let stated = (&frame[total - CRC_BYTES..]).get_u32();
        let computed = crc32fast::hash(&frame[..total - CRC_BYTES]);
        if stated != computed {
            return Err(FrameError::MessageChecksum { stated, computed });
        }
        frame.truncate(total - CRC_BYTES);
        frame.advance(PRELUDE_BYTES);
        let headers = frame.split_to(headers);
        check_headers(&headers)?;
        Ok(Some(Frame { headers, payload: frame }))
    }

    fn read_prelude(&self) -> Result<Option<(usize, usize)>, FrameError> {
        let Some(mut prelude) = self.buffer.get(..PRELUDE_BYTES) else { return Ok(None) };
        let computed = crc32fast::hash(&prelude[..8]);
        let (total, headers) = (prelude.get_u32() as usize, prelude.get_u32() as usize);
        let stated = prelude.get_u32();
        if stated != computed {
            return Err(FrameError::PreludeChecksum { stated, computed });
        }
        if headers > HEADERS_BYTES_MAX {
            return Err(FrameError::HeadersTooLarge { bytes: headers });
        }
        let Some(payload) = total.checked_sub(PRELUDE_BYTES + headers + CRC_BYTES) else {
            return Err(FrameError::Lengths { total, headers });
        };
        if payload > self.payload_bytes_max {
            return Err(FrameError::PayloadTooLarge {
                bytes: payload,
                limit: self.payload_bytes_max,
            });
        }
        Ok(Some((total, headers)))
    }
}

/// One frame, its checksums right and its headers readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    headers: Bytes,
    payload: Bytes,
}

impl Frame {
    /// The headers in the order they were sent.
    pub fn headers(&self) -> impl Iterator<Item = (&str, HeaderValue<'_>)> {
        Headers { rest: &self.headers }.map_while(Result::ok)
    }

    /// The first header of this name, if it is a text.
    pub fn text_header(&self, wanted: &str) -> Option<&str> {
        self.headers().find(|(name, _)| *name == wanted).and_then(|(_, value)| match value {
            HeaderValue::Text(text) => Some(text),
            _ => None,
        })
    }

    /// The payload; cheap to clone.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The payload itself.
    pub fn into_payload(self) -> Bytes {
        self.payload
    }
}

/// The value of a frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderValue<'a> {
    /// Types 0 and 1.
    Bool(bool),
    /// Type 2.
    Byte(i8),
    /// Type 3.
    Short(i16),
    /// Type 4.
    Integer(i32),
    /// Type 5.
    Long(i64),
    /// Type 6.
    Bytes(&'a [u8]),
    /// Type 7.
    Text(&'a str),
    /// Type 8: milliseconds since 1970.
    Timestamp(i64),
    /// Type 9.
    Uuid([u8; 16]),
}

struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Headers<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or(FrameError::Header("is cut off"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn sized(&mut self) -> Result<&'a [u8], FrameError> {
        let bytes = usize::from(self.take(2)?.get_u16());
        if bytes > HEADER_VALUE_BYTES_MAX {
            return Err(FrameError::Header("has a value above 32,767 bytes"));
        }
        self.take(bytes)
    }

    fn read(&mut self) -> Result<(&'a str, HeaderValue<'a>), FrameError> {
        let text =
            |bytes| std::str::from_utf8(bytes).map_err(|_| FrameError::Header("is not UTF-8"));
        let name_bytes = usize::from(self.take(1)?[0]);
        if name_bytes == 0 {
            return Err(FrameError::Header("has no name"));
        }
        let name = text(self.take(name_bytes)?)?;
        let value = match self.take(1)?[0] {
            0 => HeaderValue::Bool(true),
            1 => HeaderValue::Bool(false),
            2 => HeaderValue::Byte(self.take(1)?.get_i8()),
            3 => HeaderValue::Short(self.take(2)?.get_i16()),
            4 => HeaderValue::Integer(self.take(4)?.get_i32()),
            5 => HeaderValue::Long(self.take(8)?.get_i64()),
            6 => HeaderValue::Bytes(self.sized()?),
            7 => HeaderValue::Text(text(self.sized()?)?),
            8 => HeaderValue::Timestamp(self.take(8)?.get_i64()),
            9 => HeaderValue::Uuid(self.take(16)?.try_into().expect("sixteen bytes were taken")),
            _ => return Err(FrameError::Header("is of an unknown type")),
        };
        Ok((name, value))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<(&'a str, HeaderValue<'a>), FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.rest.is_empty()).then(|| self.read())
    }
}

fn check_headers(headers: &[u8]) -> Result<(), FrameError> {
    let mut count = 0;
    for header in (Headers { rest: headers }) {
        header?;
        count += 1;
        if count > HEADERS_MAX {
            return Err(FrameError::Header("is one of more than 128"));
        }
    }
    Ok(())
}

/// Appends a frame with these headers and this payload.
///
/// Refuses what no decoder would take: too large a payload, names or values.
pub fn write_frame(
    headers: &[(&str, HeaderValue<'_>)],
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(FrameError::PayloadTooLarge { bytes: payload.len(), limit: PAYLOAD_BYTES_MAX });
    }
    let start = out.len();
    out.extend_from_slice(&[0; PRELUDE_BYTES]);
    for (name, value) in headers {
        write_header(name, value, out)?;
    }
    let headers_bytes = out.len() - start - PRELUDE_BYTES;
    if headers_bytes > HEADERS_BYTES_MAX {
        return Err(FrameError::HeadersTooLarge { bytes: headers_bytes });
    }
    out.extend_from_slice(payload);
    let total = out.len() - start + CRC_BYTES;
    let length = |bytes| u32::try_from(bytes).expect("both limits are far below 4 GiB");
    out[start..start + 4].copy_from_slice(&length(total).to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&length(headers_bytes).to_be_bytes());
    let prelude = crc32fast::hash(&out[start..start + 8]);
    out[start + 8..start + 12].copy_from_slice(&prelude.to_be_bytes());
    let message = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&message.to_be_bytes());
    Ok(())
}

fn write_header(name: &str, value: &HeaderValue<'_>, out: &mut Vec<u8>) -> Result<(), FrameError> {
    match u8::try_from(name.len()) {
        Ok(bytes @ 1..) => out.push(bytes),
        Ok(0) => return Err(FrameError::Header("has no name")),
        Err(_) => return Err(FrameError::Header("has a name above 255 bytes")),
    }
    out.extend_from_slice(name.as_bytes());
    let (kind, bytes): (u8, &[u8]) = match value {
        HeaderValue::Bool(true) => (0, &[]),
        HeaderValue::Bool(false) => (1, &[]),
        HeaderValue::Byte(value) => (2, &value.to_be_bytes()),
        HeaderValue::Short(value) => (3, &value.to_be_bytes()),
        HeaderValue::Integer(value) => (4, &value.to_be_bytes()),
        HeaderValue::Long(value) => (5, &value.to_be_bytes()),
        HeaderValue::Bytes(value) => (6, value),
        HeaderValue::Text(value) => (7, value.as_bytes()),
        HeaderValue::Timestamp(value) => (8, &value.to_be_bytes()),
        HeaderValue::Uuid(value) => (9, value),
    };
    out.push(kind);
    if let 6 | 7 = kind {
        let length = u16::try_from(bytes.len())
            .ok()
            .filter(|_| bytes.len() <= HEADER_VALUE_BYTES_MAX)
            .ok_or(FrameError::Header("has a value above 32,767 bytes"))?;
        out.extend_from_slice(&length.to_be_bytes());
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// Reads a response stream of Lambda.
#[derive(Debug, Default)]
pub struct InvokeStreamDecoder {
    frames: FrameDecoder,
    complete: bool,
}

impl InvokeStreamDecoder {
    /// Takes the next bytes of AWS's answer.
    pub fn push(&mut self, bytes: &[u8]) {
        self.frames.push(bytes);
    }

    /// Bytes that wait for the rest of their frame.
    pub fn buffered_bytes(&self) -> usize {
        self.frames.buffered_bytes()
    }

    /// The next event, or `None` until more bytes are pushed. Events of a kind that Lambda may add
    /// one day are passed over.
    pub fn next_event(&mut self) -> Result<Option<InvokeEvent>, InvokeStreamError> {
        while let Some(frame) = self.frames.next_frame()? {
            if self.complete {
                return Err(InvokeStreamError::AfterCompletion);
            }
            match frame.text_header(":message-type") {
                Some("event") => {}
                Some("exception") => {
                    let kind = limited(frame.text_header(":exception-type").unwrap_or("unnamed"));
                    let message = exception_message(frame.payload());
                    return Err(InvokeStreamError::Exception { kind, message });
                }
                Some("error") => {
                    return Err(InvokeStreamError::Exception {
                        kind: limited(frame.text_header(":error-code").unwrap_or("unnamed")),
                        message: limited(frame.text_header(":error-message").unwrap_or_default()),
                    });
                }
                _ => return Err(InvokeStreamError::MessageType),
            }
            match frame.text_header(":event-type") {
                Some("PayloadChunk") => {
                    return Ok(Some(InvokeEvent::PayloadChunk(frame.into_payload())));
                }
                Some("InvokeComplete") => {
                    self.complete = true;
                    let completion = Completion::parse(frame.payload())?;
                    return Ok(Some(InvokeEvent::InvokeComplete(completion)));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Whether the stream may end here: after `InvokeComplete`, and not inside a frame.
    pub fn finish(&self) -> Result<(), InvokeStreamError> {
        self.frames.finish()?;
        if self.complete { Ok(()) } else { Err(InvokeStreamError::Incomplete) }
    }
}

/// What Lambda says in a response stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvokeEvent {
    /// The next bytes of the function's answer.
    PayloadChunk(Bytes),
    /// The function has ended; nothing follows.
    InvokeComplete(Completion),
}

/// How a streamed call ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Completion {
    /// The error's type, absent when the function succeeded.
    pub error_code: Option<String>,
    /// What the function said of the error: often JSON with `errorMessage` and `errorType`.
    pub error_details: Option<String>,
    /// The end of the log in base64, when it was asked for.
    pub log_result: Option<String>,
}

impl Completion {
    /// Whether the function ended with an error.
    pub fn is_error(&self) -> bool {
        self.error_code.as_deref().is_some_and(|code| !code.is_empty())
    }

    fn parse(payload: &[u8]) -> Result<Self, InvokeStreamError> {
        if payload.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(payload).map_err(|_| InvokeStreamError::Completion)
    }
}

/// Why a stream of frames cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The lengths were changed on their way, or this is no event stream.
    #[error("a frame's prelude has checksum {computed:08x}, and says {stated:08x}")]
    PreludeChecksum {
        /// What the frame says.
        stated: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// Some byte of the frame was changed.
    #[error("a frame has checksum {computed:08x}, and says {stated:08x}")]
    MessageChecksum {
        /// What the frame says.
        stated: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The lengths contradict each other.
    #[error("a frame of {total} bytes cannot hold {headers} bytes of headers")]
    Lengths {
        /// The frame's stated length.
        total: usize,
        /// The stated length of its headers.
        headers: usize,
    },
    /// More headers than AWS allows.
    #[error("{bytes} bytes of headers in a frame are more than {HEADERS_BYTES_MAX}")]
    HeadersTooLarge {
        /// The headers' length.
        bytes: usize,
    },
    /// A larger payload than this side takes.
    #[error("a frame's payload of {bytes} bytes is more than {limit}")]
    PayloadTooLarge {
        /// The payload's length.
        bytes: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// A header that cannot be read or written.
    #[error("a frame's header {0}")]
    Header(&'static str),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame, after {bytes} bytes of it")]
    Truncated {
        /// How much of the frame there is.
        bytes: usize,
    },
    /// The decoder had failed before.
    #[error("the stream was unreadable before")]
    AfterError,
}

/// Why a response stream of Lambda cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvokeStreamError {
    /// The framing is broken.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Lambda ended the stream with an error of its own.
    #[error("Lambda ended the stream with {kind}: {message}")]
    Exception {
        /// AWS's name of it.
        kind: String,
        /// AWS's text.
        message: String,
    },
    /// A frame that is neither event nor exception.
    #[error("a frame has no known `:message-type`")]
    MessageType,
    /// `InvokeComplete` without the JSON it should hold.
    #[error("`InvokeComplete` holds no JSON object")]
    Completion,
    /// A frame came after `InvokeComplete`.
    #[error("a frame came after `InvokeComplete`")]
    AfterCompletion,
    /// The stream ended without `InvokeComplete`: the answer may lack its end.
    #[error("the stream ended before `InvokeComplete`")]
    Incomplete,
}

fn exception_message(payload: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        #[serde(alias = "Message")]
        message: String,
    }
    match serde_json::from_slice::<Said>(payload) {
        Ok(said) => limited(&said.message),
        Err(_) => limited(&String::from_utf8_lossy(&payload[..payload.len().min(TEXT_BYTES_MAX)])),
    }
}

fn limited(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

/// The content type of an event stream.
pub const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";
/// The largest payload AWS allows in a frame.
pub const PAYLOAD_BYTES_MAX: usize = 24 * 1024 * 1024;
/// The most bytes of headers AWS allows in a frame.
pub const HEADERS_BYTES_MAX: usize = 128 * 1024;
/// The largest text or byte value of a header.
pub const HEADER_VALUE_BYTES_MAX: usize = 32_767;
/// The most headers a frame may have.
pub const HEADERS_MAX: usize = 128;
/// The most of an error text that is kept.
const TEXT_BYTES_MAX: usize = 1024;
const PRELUDE_BYTES: usize = 12;
const CRC_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(value: &str) -> HeaderValue<'_> {
        HeaderValue::Text(value)
    }

    fn event(kind: &str, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let headers = [(":message-type", text("event")), (":event-type", text(kind))];
        write_frame(&headers, payload, &mut out).unwrap();
        out
    }

    #[test]
    fn frames_come_out_however_the_bytes_are_cut() {
        let mut stream = event("PayloadChunk", b"first");
        stream.extend(event("PayloadChunk", b""));
        stream.extend(event("PayloadChunk", &[0xff; 3000]));
        for size in [1, 2, 3, 7, 12, 13, 100, stream.len()] {
            let mut decoder = FrameDecoder::default();
            let mut payloads = Vec::new();
            for piece in stream.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    payloads.push(frame.into_payload());
                }
            }
            decoder.finish().unwrap();
            assert_eq!(payloads, [&b"first"[..], b"", &[0xff; 3000]], "pieces of {size}");
        }
    }

    #[test]
    fn a_lambda_stream_is_chunks_and_one_completion() {
        let mut decoder = InvokeStreamDecoder::default();
        decoder.push(&event("PayloadChunk", b"Hel"));
        decoder.push(&event("SomethingNew", b"passed over"));
        decoder.push(&event("PayloadChunk", b"lo"));
        assert_eq!(
            decoder.next_event().unwrap(),
            Some(InvokeEvent::PayloadChunk(Bytes::from_static(b"Hel")))
        );
        assert_eq!(
            decoder.next_event().unwrap(),
            Some(InvokeEvent::PayloadChunk(Bytes::from_static(b"lo")))
        );
        assert_eq!(decoder.next_event().unwrap(), None);
        assert_eq!(decoder.finish(), Err(InvokeStreamError::Incomplete));
        let details = r#"{"ErrorCode":"Unhandled","ErrorDetails":"{\"errorType\":\"E\"}"}"#;
        decoder.push(&event("InvokeComplete", details.as_bytes()));
        let Some(InvokeEvent::InvokeComplete(completion)) = decoder.next_event().unwrap() else {
            panic!("the completion comes");
        };
        assert!(completion.is_error());
        assert_eq!(completion.error_details.as_deref(), Some(r#"{"errorType":"E"}"#));
        decoder.finish().unwrap();
        decoder.push(&event("PayloadChunk", b"late"));
        assert_eq!(decoder.next_event(), Err(InvokeStreamError::AfterCompletion));
    }

    #[test]
    fn exceptions_and_odd_events_of_lambda_are_named() {
        let exception = |headers: &[(&str, HeaderValue<'_>)], payload: &[u8]| {
            let mut out = Vec::new();
            write_frame(headers, payload, &mut out).unwrap();
            let mut decoder = InvokeStreamDecoder::default();
            decoder.push(&out);
            decoder.next_event().unwrap_err().to_string()
        };
        for (headers, payload, says) in [
            (
                vec![
                    (":message-type", text("exception")),
                    (":exception-type", text("ServiceException")),
                ],
                r#"{"Message":"sorry"}"#,
                "Lambda ended the stream with ServiceException: sorry",
            ),
            (
                vec![
                    (":message-type", text("error")),
                    (":error-code", text("500")),
                    (":error-message", text("no")),
                ],
                "",
                "Lambda ended the stream with 500: no",
            ),
            (vec![], "", "a frame has no known `:message-type`"),
            (
                vec![(":message-type", text("event")), (":event-type", text("InvokeComplete"))],
                "[]]",
                "`InvokeComplete` holds no JSON object",
            ),
        ] {
            assert_eq!(exception(&headers, payload.as_bytes()), says);
        }
    }

    #[test]
    fn limits_hold_at_their_edge_and_not_past_it() {
        let mut whole = Vec::new();
        let value = "v".repeat(HEADER_VALUE_BYTES_MAX);
        write_frame(&[("n", text(&value))], &[7; 10], &mut whole).unwrap();
        let mut decoder = FrameDecoder::new(10);
        decoder.push(&whole);
        assert_eq!(decoder.next_frame().unwrap().unwrap().text_header("n"), Some(&*value));

        let mut decoder = FrameDecoder::new(9);
        decoder.push(&whole[..PRELUDE_BYTES]);
        let error = decoder.next_frame().unwrap_err();
        assert_eq!(error, FrameError::PayloadTooLarge { bytes: 10, limit: 9 });
        assert_eq!(decoder.next_frame(), Err(FrameError::AfterError));

        let mut out = Vec::new();
        let value = "v".repeat(HEADER_VALUE_BYTES_MAX + 1);
        assert!(write_frame(&[("n", text(&value))], b"", &mut out).is_err());
        assert!(write_frame(&[(&"n".repeat(256), text("v"))], b"", &mut out).is_err());
        assert!(write_frame(&[("", text("v"))], b"", &mut out).is_err());
        let many: Vec<_> = (0..=HEADERS_MAX).map(|_| ("n", HeaderValue::Bool(true))).collect();
        for (count, fine) in [(HEADERS_MAX, true), (HEADERS_MAX + 1, false)] {
            let mut out = Vec::new();
            write_frame(&many[..count], b"", &mut out).unwrap();
            let mut decoder = FrameDecoder::default();
            decoder.push(&out);
            assert_eq!(decoder.next_frame().is_ok(), fine, "{count} headers");
        }
    }

    #[test]
    fn a_stream_cut_inside_a_frame_is_not_finished() {
        let frame = event("PayloadChunk", b"x");
        let mut decoder = FrameDecoder::default();
        decoder.push(&frame[..frame.len() - 1]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.finish(), Err(FrameError::Truncated { bytes: frame.len() - 1 }));
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_goes_unseen(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            change in 1..=255u8,
        ) {
            let mut frame = event("PayloadChunk", &payload);
            let at = at.index(frame.len());
            frame[at] ^= change;
            let mut decoder = FrameDecoder::default();
            decoder.push(&frame);
            prop_assert!(!matches!(decoder.next_frame(), Ok(Some(_))));
        }

        #[test]
        fn any_bytes_end_in_frames_or_an_error(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..8),
        ) {
            let mut decoder = InvokeStreamDecoder::default();
            for piece in pieces {
                decoder.push(&piece);
                while let Ok(Some(_)) = decoder.next_event() {}
            }
            let _ = decoder.finish();
        }

        #[test]
        fn any_header_bytes_under_right_checksums_end_in_a_frame_or_an_error(
            headers in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut frame = Vec::new();
            frame.extend_from_slice(&(headers.len() as u32 + 16).to_be_bytes());
            frame.extend_from_slice(&(headers.len() as u32).to_be_bytes());
            frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
            frame.extend_from_slice(&headers);
            frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
            let mut decoder = FrameDecoder::default();
            decoder.push(&frame);
            if let Ok(Some(frame)) = decoder.next_frame() {
                // What is readable is written back to the same bytes.
                let read: Vec<_> = frame.headers().collect();
                let mut again = Vec::new();
                write_frame(&read, b"", &mut again).unwrap();
                prop_assert_eq!(&again[12..again.len() - 4], &headers[..]);
            }
        }
    }
}
