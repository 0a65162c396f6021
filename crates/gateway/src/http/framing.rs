//! How long a body is, and taking it out of the bytes that carry it.
//!
//! RFC 9112 sections 6 and 7. Chunk extensions are skipped, trailers are kept; both have
//! a limit. A bare LF ends no line here.

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body at all.
    Empty,
    /// This many bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Up to the end of the connection (responses only).
    UntilClose,
}

/// Takes a body out of the wire's bytes, piece by piece.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of chunk extensions and trailers not yet paid for by data, against
    /// [`CHUNK_OVERHEAD_MAX`].
    overhead: usize,
    trailers: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    /// Reading a chunk-size line: the size so far, digits seen, inside an extension.
    Size {
        size: u64,
        digits: u8,
        extension: bool,
    },
    SizeLf {
        size: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    /// In a trailer line (or at its start).
    Trailer {
        at_start: bool,
    },
    TrailerLf {
        last: bool,
    },
    End,
}

/// What one step of decoding found at the front of the given bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Skip this many bytes: they are framing.
    Skip(usize),
    /// The first `n` bytes are body.
    Data(usize),
    /// The body is over.
    End,
}

/// The bytes do not follow the framing rules.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("malformed chunked body: {0}")]
pub struct FramingError(&'static str);

impl Decoder {
    /// A decoder for a body framed this way.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::End,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::Size { size: 0, digits: 0, extension: false },
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, overhead: 0, trailers: Vec::new() }
    }

    /// Has the whole body been taken?
    pub fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// Is the body over if the connection ends here?
    pub fn may_end_at_close(&self) -> bool {
        matches!(self.state, State::End | State::UntilClose)
    }

    /// Bytes still to come, where the framing says so.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::End => Some(0),
            State::Length(n) => Some(n),
            _ => None,
        }
    }

    /// The raw trailer lines received after a chunked body.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Looks at the front of `bytes` (not empty) and says what to do with it. After
    /// [`Step::Data`] the caller uses any part `k` of it and calls [`Decoder::took`].
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, FramingError> {
        match self.state {
            State::End => return Ok(Step::End),
            State::UntilClose => return Ok(Step::Data(bytes.len())),
            State::Length(n) | State::Data(n) => {
                return Ok(Step::Data(usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len())));
            }
            _ => {}
        }
        let mut used = 0;
        for &b in bytes {
            if matches!(self.state, State::Data(_) | State::End) {
                break;
            }
            used += 1;
            if matches!(self.state, State::Size { extension: true, .. } | State::Trailer { .. }) {
                self.overhead += 1;
                if self.overhead > CHUNK_OVERHEAD_MAX {
                    return Err(FramingError("too many bytes of chunk extensions or trailers"));
                }
            }
            self.state = self.next(b)?;
        }
        Ok(Step::Skip(used))
    }

    fn next(&mut self, b: u8) -> Result<State, FramingError> {
        Ok(match self.state {
            State::Size { size, digits, extension } => match b {
                b'\r' if digits > 0 => State::SizeLf { size },
                b'\r' => return Err(FramingError("chunk size is missing")),
                b'\n' => return Err(FramingError("bare LF")),
                _ if extension => match b {
                    0..0x20 if b != b'\t' => {
                        return Err(FramingError("control byte in a chunk extension"));
                    }
                    _ => State::Size { size, digits, extension },
                },
                b';' | b' ' | b'\t' if digits > 0 => State::Size { size, digits, extension: true },
                _ => {
                    let digit = (b as char)
                        .to_digit(16)
                        .ok_or(FramingError("chunk size is not hexadecimal"))?;
                    if digits == CHUNK_SIZE_DIGITS_MAX {
                        return Err(FramingError("chunk size is too large"));
                    }
                    State::Size {
                        size: size << 4 | u64::from(digit),
                        digits: digits + 1,
                        extension,
                    }
                }
            },
            State::SizeLf { size } => match (b, size) {
                (b'\n', 0) => State::Trailer { at_start: true },
                (b'\n', n) => State::Data(n),
                _ => return Err(FramingError("CR without LF")),
            },
            State::DataCr if b == b'\r' => State::DataLf,
            State::DataLf if b == b'\n' => State::Size { size: 0, digits: 0, extension: false },
            State::DataCr | State::DataLf => {
                return Err(FramingError("chunk data is longer than its size"));
            }
            State::Trailer { at_start } => match b {
                b'\r' => State::TrailerLf { last: at_start },
                b'\n' | 0 => return Err(FramingError("bare LF or NUL in a trailer")),
                b' ' | b'\t' if at_start => return Err(FramingError("folded trailer")),
                _ => {
                    self.trailers.push(b);
                    State::Trailer { at_start: false }
                }
            },
            State::TrailerLf { last } => match (b, last) {
                (b'\n', true) => State::End,
                (b'\n', false) => {
                    self.trailers.extend_from_slice(b"\r\n");
                    State::Trailer { at_start: true }
                }
                _ => return Err(FramingError("CR without LF")),
            },
            other => other,
        })
    }

    /// `n` bytes of data announced by [`Step::Data`] have been used.
    pub fn took(&mut self, n: usize) {
        match &mut self.state {
            State::Length(left) => {
                *left -= n as u64;
                if *left == 0 {
                    self.state = State::End;
                }
            }
            State::Data(left) => {
                *left -= n as u64;
                // Data pays: only a peer that sends extensions without data runs out.
                self.overhead = self.overhead.saturating_sub(n);
                if *left == 0 {
                    self.state = State::DataCr;
                }
            }
            _ => {}
        }
    }
}

/// Bytes of chunk extensions and trailers a peer may send beyond the data that pays
/// for them.
pub const CHUNK_OVERHEAD_MAX: usize = 16 << 10;

/// Hexadecimal digits of a chunk size; more would not fit 60 bits.
const CHUNK_SIZE_DIGITS_MAX: u8 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `wire` cut into pieces of `cut` bytes: the data, the trailers, the rest.
    fn decode(
        framing: Framing,
        wire: &[u8],
        cut: usize,
    ) -> Result<(String, String, usize), FramingError> {
        let mut decoder = Decoder::new(framing);
        let (mut data, mut used) = (Vec::new(), 0);
        while !decoder.is_end() && used < wire.len() {
            let end = (used + cut).min(wire.len());
            match decoder.step(&wire[used..end])? {
                Step::Skip(n) => used += n,
                Step::Data(n) => {
                    data.extend_from_slice(&wire[used..used + n]);
                    decoder.took(n);
                    used += n;
                }
                Step::End => break,
            }
        }
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Ok((text(&data), text(decoder.trailers()), wire.len() - used))
    }

    #[track_caller]
    fn check(wire: &str, expected: Result<(&str, &str, usize), &'static str>) {
        for cut in [1, 2, 3, 7, 1000] {
            let got = decode(Framing::Chunked, wire.as_bytes(), cut);
            let want = match expected {
                Ok((d, t, rest)) => Ok((d.to_owned(), t.to_owned(), rest)),
                Err(why) => Err(FramingError(why)),
            };
            assert_eq!(got, want, "{wire:?} cut {cut}");
        }
    }

    #[test]
    fn chunks_are_taken_out_of_their_framing() {
        check("3\r\nabc\r\n0\r\n\r\n", Ok(("abc", "", 0)));
        check(
            "3;x=\"y\"\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\nU: 2\r\n\r\nGET",
            Ok(("abc0123456789", "T: 1\r\nU: 2\r\n", 3)),
        );
        check("3\nabc", Err("bare LF"));
        check("\r\n", Err("chunk size is missing"));
        check("g\r\n", Err("chunk size is not hexadecimal"));
        check("0x3\r\nabc", Err("chunk size is not hexadecimal"));
        check("3\r\nabcd\r\n", Err("chunk data is longer than its size"));
        check("fffffffffffffffff\r\n", Err("chunk size is too large"));
        check("0\r\n folded\r\n\r\n", Err("folded trailer"));
        check("3\rXabc", Err("CR without LF"));
    }

    #[test]
    fn endless_framing_without_data_is_cut_off() {
        let wire = format!("1;{}\r\na\r\n", "x".repeat(CHUNK_OVERHEAD_MAX));
        assert!(decode(Framing::Chunked, wire.as_bytes(), 4096).is_err());
        // Small chunks alone never reach the limit.
        let wire = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(20_000));
        assert_eq!(decode(Framing::Chunked, wire.as_bytes(), 4096).expect("valid").0.len(), 20_000);
    }

    #[test]
    fn a_length_is_exact() {
        assert_eq!(decode(Framing::Length(3), b"abcdef", 2), Ok(("abc".into(), String::new(), 3)));
        assert!(Decoder::new(Framing::Empty).is_end());
        assert!(!Decoder::new(Framing::Length(1)).may_end_at_close());
        assert!(Decoder::new(Framing::UntilClose).may_end_at_close());
    }
}
