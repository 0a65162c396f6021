//! API Gateway's payload 2.0, which function URLs send, too.

use super::fields::{
    Arguments, Headers, cookies, is_cookie, write_certificate, write_pairs, write_time,
};
use super::json::{Object, Sink, write_texts};
use super::{EventEncoder, EventRequest, push_resource, write_body, write_claims};
use crate::event::json::write_text;

pub(super) fn write<S: Sink>(encoder: &EventEncoder, request: &EventRequest<'_>, out: &mut S) {
    // Cookies have a list of their own, and adapters join it to `headers`.
    let headers = Headers::of_one_client(request, |name| !is_cookie(name));
    let arguments = Arguments::decoded(request.query);
    let route_key = match request.route_pattern {
        Some(pattern) => {
            let mut key = format!("{} ", request.method).into_bytes();
            push_resource(pattern, &mut key);
            key
        }
        None => b"$default".to_vec(),
    };

    let mut event = Object::open(out);
    event.text("version", "2.0");
    write_text(&route_key, event.name("routeKey"));
    event.text("rawPath", request.path);
    event.text("rawQueryString", request.query);
    if cookies(request).next().is_some() {
        write_texts(cookies(request), event.name("cookies"));
    }
    headers.write_joined(event.name("headers"));
    if !arguments.is_empty() {
        arguments.write_joined(event.name("queryStringParameters"));
    }
    write_context(encoder, request, &route_key, &mut event.object("requestContext"));
    event.out.raw(b"}");
    let base64 = encoder.body.is_base64(&headers, request);
    if !request.body.is_empty() {
        write_body(request.body, base64, event.name("body"));
    }
    if !request.path_parameters.is_empty() {
        write_pairs(request.path_parameters, event.name("pathParameters"));
    }
    event.bool("isBase64Encoded", base64);
    if let Some(variables) = &encoder.stage_variables {
        event.name("stageVariables").raw(variables.as_bytes());
    }
    event.close();
}

fn write_context<S: Sink>(
    encoder: &EventEncoder,
    request: &EventRequest<'_>,
    route_key: &[u8],
    context: &mut Object<'_, S>,
) {
    // A function URL that lets everyone in says `anonymous`.
    context.text("accountId", encoder.account_id.as_deref().unwrap_or("anonymous"));
    context.text("apiId", encoder.api_id(request).unwrap_or("sluicegate"));
    if let Some(certificate) = &request.client_certificate {
        let mut authentication = context.object("authentication");
        write_certificate(certificate, authentication.name("clientCert"));
        authentication.close();
    }
    write_authorizer(request, context);
    context.text("domainName", request.host);
    context.text("domainPrefix", request.domain_prefix());
    let mut http = context.object("http");
    http.text("method", request.method);
    http.text("path", request.path);
    http.text("protocol", request.protocol);
    http.text("sourceIp", request.client_ip);
    http.text("userAgent", request.user_agent.unwrap_or_default());
    http.close();
    context.text("requestId", request.request_id);
    write_text(route_key, context.name("routeKey"));
    context.text("stage", encoder.stage());
    write_time(request.time_ms, context.name("time"));
    context.number("timeEpoch", request.time_ms);
}

/// Claims as a JWT authorizer's, the consumer as a Lambda authorizer's. AWS never has both; here a
/// token may belong to a consumer, and neither is hidden.
fn write_authorizer<S: Sink>(request: &EventRequest<'_>, context: &mut Object<'_, S>) {
    if request.consumer.is_none() && request.claims.is_none() {
        return;
    }
    let mut authorizer = context.object("authorizer");
    if let Some(claims) = request.claims {
        let mut jwt = authorizer.object("jwt");
        write_claims(claims, jwt.name("claims"));
        match request.scopes() {
            Some(scopes) => write_texts(scopes.map(str::as_bytes), jwt.name("scopes")),
            None => jwt.null("scopes"),
        }
        jwt.close();
    }
    if let Some(consumer) = request.consumer {
        let mut lambda = authorizer.object("lambda");
        lambda.text("consumer", consumer);
        lambda.close();
    }
    authorizer.close();
}
