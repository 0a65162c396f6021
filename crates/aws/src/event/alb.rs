//! An Application Load Balancer's event.

use super::fields::{Arguments, Case, Headers};
use super::json::{Object, Sink};
use super::{EventEncoder, EventRequest, write_body};

pub(super) fn write<S: Sink>(
    encoder: &EventEncoder,
    request: &EventRequest<'_>,
    multi_value: bool,
    out: &mut S,
) {
    let headers = Headers::of_one_client(request, |_| true);
    // An ALB leaves the escapes in.
    let arguments = Arguments::as_sent(request.query);

    let mut event = Object::open(out);
    let mut context = event.object("requestContext");
    let mut elb = context.object("elb");
    elb.text_or_null("targetGroupArn", encoder.target_group_arn.as_deref());
    elb.close();
    context.close();
    event.text("httpMethod", request.method);
    event.text("path", request.path);
    if multi_value {
        arguments.write_all(event.name("multiValueQueryStringParameters"));
        headers.write_all(Case::Lower, event.name("multiValueHeaders"));
    } else {
        arguments.write_last(event.name("queryStringParameters"));
        headers.write_last(Case::Lower, event.name("headers"));
    }
    let base64 = encoder.body.is_base64(&headers, request);
    write_body(request.body, base64, event.name("body"));
    event.bool("isBase64Encoded", base64);
    event.close();
}
