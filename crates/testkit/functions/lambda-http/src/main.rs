//! Tells what it saw as JSON, with two cookies; at `/binary` it answers bytes that are no text.

use lambda_http::http::header::{CONTENT_TYPE, SET_COOKIE};
use lambda_http::{Body, Error, Request, RequestExt as _, Response, run, service_fn};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(answer)).await
}

async fn answer(request: Request) -> Result<Response<Body>, Error> {
    let body: Vec<u8> = match request.body() {
        Body::Empty => Vec::new(),
        Body::Text(text) => text.as_bytes().to_vec(),
        Body::Binary(bytes) => bytes.clone(),
        _ => return Err("a body of another kind".into()),
    };
    let response = Response::builder()
        .status(201)
        .header("x-adapter", "lambda_http")
        .header(SET_COOKIE, "a=1; Path=/")
        .header(SET_COOKIE, "b=2; HttpOnly");
    if request.raw_http_path().ends_with("/binary") {
        let bytes: Vec<u8> = (0..=255).chain(body).collect();
        return Ok(response.header(CONTENT_TYPE, "image/png").body(Body::Binary(bytes))?);
    }
    let query: Vec<String> = request
        .query_string_parameters()
        .iter()
        .map(|(name, value)| format!("{name}={}", value.replace(' ', "%20")))
        .collect();
    let headers: Vec<(String, String)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let seen = json!({
        "method": request.method().as_str(),
        "path": request.raw_http_path(),
        "query": query.join("&"),
        "headers": headers,
        "client": [],
        "body": body.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
    });
    let text = seen.to_string();
    Ok(response.header(CONTENT_TYPE, "application/json").body(Body::Text(text))?)
}
