//! The event of Envoy's AWS Lambda filter.

use super::fields::{Arguments, Headers};
use super::json::{Object, Sink, write_joined};
use super::{EventEncoder, EventRequest, write_body};

pub(super) fn write<S: Sink>(encoder: &EventEncoder, request: &EventRequest<'_>, out: &mut S) {
    let headers = Headers::of(request);
    let mut event = Object::open(out);
    let path = request.path.as_bytes();
    if request.query.is_empty() {
        event.text("raw_path", request.path);
    } else {
        let pieces = [path, request.query.as_bytes()];
        write_joined(pieces.into_iter(), b"?", event.name("raw_path"));
    }
    event.text("method", request.method);
    headers.write_joined(event.name("headers"));
    // The filter takes the first value of a name and leaves escapes in; its page speaks of the last.
    Arguments::as_sent(request.query).write_first(event.name("query_string_parameters"));
    let base64 = encoder.body.is_base64(&headers, request);
    write_body(request.body, base64, event.name("body"));
    event.bool("is_base64_encoded", base64);
    event.close();
}
