//! API Gateway's payload 1.0.

use super::fields::{Arguments, Case, Headers, write_certificate, write_pairs, write_time};
use super::json::{Object, Sink, write_texts};
use super::{EventEncoder, EventRequest, write_body, write_claims, write_resource};

pub(super) fn write<S: Sink>(encoder: &EventEncoder, request: &EventRequest<'_>, out: &mut S) {
    let headers = Headers::of_one_client(request, |_| true);
    let arguments = Arguments::decoded(request.query);
    let resource = request.route_pattern.unwrap_or("/*");

    let mut event = Object::open(out);
    event.text("version", "1.0");
    write_resource(resource, event.name("resource"));
    event.text("path", request.path);
    event.text("httpMethod", request.method);
    headers.write_last(Case::AsSent, event.name("headers"));
    headers.write_all(Case::AsSent, event.name("multiValueHeaders"));
    if arguments.is_empty() {
        event.null("queryStringParameters");
        event.null("multiValueQueryStringParameters");
    } else {
        arguments.write_last(event.name("queryStringParameters"));
        arguments.write_all(event.name("multiValueQueryStringParameters"));
    }
    if request.path_parameters.is_empty() {
        event.null("pathParameters");
    } else {
        write_pairs(request.path_parameters, event.name("pathParameters"));
    }
    match &encoder.stage_variables {
        Some(variables) => event.name("stageVariables").raw(variables.as_bytes()),
        None => event.null("stageVariables"),
    }
    write_context(encoder, request, resource, &mut event.object("requestContext"));
    event.out.raw(b"}");
    let base64 = encoder.body.is_base64(&headers, request);
    if request.body.is_empty() {
        event.null("body");
    } else {
        write_body(request.body, base64, event.name("body"));
    }
    event.bool("isBase64Encoded", base64);
    event.close();
}

fn write_context<S: Sink>(
    encoder: &EventEncoder,
    request: &EventRequest<'_>,
    resource: &str,
    context: &mut Object<'_, S>,
) {
    context.text_or_null("accountId", encoder.account_id.as_deref());
    context.text_or_null("apiId", encoder.api_id(request));
    write_authorizer(request, context);
    context.text("domainName", request.host);
    context.text("domainPrefix", request.domain_prefix());
    context.text("extendedRequestId", request.request_id);
    context.text("httpMethod", request.method);
    write_identity(request, context);
    match encoder.stage() {
        "$default" => context.text("path", request.path),
        stage => {
            let path = format!("/{stage}{}", request.path);
            context.text("path", &path);
        }
    }
    context.text("protocol", request.protocol);
    context.text("requestId", request.request_id);
    write_time(request.time_ms, context.name("requestTime"));
    context.number("requestTimeEpoch", request.time_ms);
    context.text_or_null("resourceId", request.route_id);
    write_resource(resource, context.name("resourcePath"));
    context.text("stage", encoder.stage());
}

fn write_authorizer<S: Sink>(request: &EventRequest<'_>, context: &mut Object<'_, S>) {
    if request.consumer.is_none() && request.claims.is_none() {
        return context.null("authorizer");
    }
    let mut authorizer = context.object("authorizer");
    if let Some(consumer) = request.consumer {
        authorizer.text("principalId", consumer);
    }
    if let Some(claims) = request.claims {
        write_claims(claims, authorizer.name("claims"));
        match request.scopes() {
            Some(scopes) => {
                write_texts(scopes.map(str::as_bytes), authorizer.name("scopes"));
            }
            None => authorizer.null("scopes"),
        }
    }
    authorizer.close();
}

fn write_identity<S: Sink>(request: &EventRequest<'_>, context: &mut Object<'_, S>) {
    let mut identity = context.object("identity");
    for name in ["accessKey", "accountId", "apiKey", "apiKeyId", "caller"] {
        identity.null(name);
    }
    match &request.client_certificate {
        Some(certificate) => write_certificate(certificate, identity.name("clientCert")),
        None => identity.null("clientCert"),
    }
    for name in [
        "cognitoAuthenticationProvider",
        "cognitoAuthenticationType",
        "cognitoIdentityId",
        "cognitoIdentityPoolId",
        "principalOrgId",
    ] {
        identity.null(name);
    }
    identity.text("sourceIp", request.client_ip);
    identity.null("user");
    identity.text_or_null("userAgent", request.user_agent);
    identity.null("userArn");
    identity.close();
}
