//! HTTP/1.1 messages as this gateway holds them: one flat buffer a head, framed bodies.
//!
//! Header names keep the case they arrived in, blocks are copied once and written
//! back as they stand. What RFC 9112 leaves open to interpretation between two
//! parsers (bare LF, two lengths, length beside chunks) is refused, not repaired.

pub mod framing;
pub mod head;
pub mod headers;
mod names;
mod sound;
pub(crate) mod writer;

pub use framing::{Decoder, Framing};
pub use head::{HeadError, RequestHead, ResponseHead};
pub use headers::{Headers, Number};
pub use names::{FieldName, Known};
