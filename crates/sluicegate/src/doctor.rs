//! `sluicegate doctor ROUTE`: asks the running gateway what a route's function call looks like and
//! what stands in its way, and prints it for people.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use sluicegate_config::Config;
use sluicegate_fetch::{Endpoint, Limits, Network, NetworkFuture, exchange};

use crate::cli::Place;

/// What `doctor` is asked.
#[derive(Args)]
pub(crate) struct Options {
    /// The route's id
    route: String,
    /// The request's method
    #[arg(short = 'X', long, default_value = "GET")]
    method: String,
    /// Path and query of the request [default: the start of the route's own path]
    #[arg(short, long)]
    uri: Option<String>,
    /// A header of the request, as curl takes it; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The body of the request
    #[arg(short, long, default_value = "")]
    data: String,
    /// A file with what AWS said when it refused the signature, to find the first difference
    #[arg(long, value_name = "FILE")]
    refusal: Option<PathBuf>,
    /// Only what would be sent: no look at name, port, certificate and clock, no dry run
    #[arg(long)]
    no_checks: bool,
    /// Print the gateway's answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Runs it. An error tells that something stands in the way, or could not be asked.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let place = &options.place;
    let path = place.config();
    let env = |name: &str| std::env::var(name).ok();
    let (config, _) = Config::load(&path, &env).with_context(|| {
        format!("{} cannot be read (give the gateway's folder with -p)", path.display())
    })?;
    let mut addr = config
        .apisix
        .control
        .context("the Control API is off: set apisix.enable_control, and restart the gateway")?;
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let mut headers = serde_json::Map::new();
    for line in &options.headers {
        let (name, value) = line
            .split_once(':')
            .with_context(|| format!("-H {line:?} has no colon: NAME: VALUE"))?;
        let values = headers.entry(name.trim()).or_insert_with(|| json!([]));
        if let Some(values) = values.as_array_mut() {
            values.push(value.trim().into());
        }
    }
    let refusal = options.refusal.as_ref().map(|file| {
        std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
    });
    let mut question = json!({
        "route_id": options.route,
        "method": options.method,
        "headers": headers,
        "body": options.data,
        "checks": !options.no_checks,
    });
    if let Some(uri) = &options.uri {
        question["uri"] = uri.as_str().into();
    }
    if let Some(refusal) = refusal.transpose()? {
        question["refusal"] = refusal.into();
    }
    let told = ask(addr, &question)?;
    if options.json {
        println!("{told:#}");
    } else {
        print!("{}", report(&options.route, &told));
    }
    let failed: Vec<&str> = told["checks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|check| check["ok"] == false)
        .filter_map(|check| check["name"].as_str())
        .collect();
    if let Some(why) = told["credentials_error"].as_str() {
        bail!("there are no credentials: {why}");
    }
    if !failed.is_empty() {
        bail!("not well: {}", failed.join(", "));
    }
    Ok(())
}

fn ask(addr: SocketAddr, question: &Value) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = Endpoint::parse(&format!("http://{addr}")).map_err(|why| anyhow!(why))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/aws-lambda/explain")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(question.to_string())))?;
    let limits = Limits { time: ANSWER_TIME, response_bytes: ANSWER_BYTES_MAX };
    let answer = runtime.block_on(exchange(&Nearby, &endpoint, false, request, limits));
    let answer = answer.with_context(|| {
        format!(
            "the Control API at {addr} does not answer: is the gateway running (sluicegate start)?"
        )
    })?;
    let told: Value = serde_json::from_slice(&answer.body).with_context(|| {
        format!("the Control API at {addr} answers no JSON: is it another gateway's?")
    })?;
    if !answer.status.is_success() {
        let why = told["error_msg"].as_str().unwrap_or_default();
        bail!("{why}");
    }
    Ok(told)
}

/// The answer in words.
fn report(route: &str, told: &Value) -> String {
    use std::fmt::Write as _;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut out = String::new();
    let _ = writeln!(out, "Route {route} reaches {}", text(&told["url"]));
    if let Some(function) = told["function"].as_str() {
        let _ = writeln!(out, "  function   {function}");
    }
    let query = told["query"].as_str().map(|query| format!("?{query}")).unwrap_or_default();
    let _ = writeln!(out, "  sends      {} {}{query}", text(&told["method"]), text(&told["path"]));
    for (name, value) in told["headers"].as_object().into_iter().flatten() {
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in values {
            let _ = writeln!(out, "             {name}: {}", text(value));
        }
    }
    let _ = writeln!(out, "  body       {} bytes", told["body_bytes"]);
    match told["body"].as_str() {
        Some("") | None => {}
        Some(body) => drop(writeln!(out, "{body}")),
    }
    if let Some(signing) = told["signing"].as_object() {
        let of = |name: &str| text(signing.get(name).unwrap_or(&Value::Null));
        let _ = writeln!(
            out,
            "Signed for {} in {}, with {} from {}; AWS's clock is {} s ahead as far as known",
            of("service"),
            of("region"),
            of("access_key"),
            of("credential_source"),
            of("clock_offset_seconds"),
        );
        let _ = writeln!(out, "Canonical request\n{}", indented(&text(&told["canonical_request"])));
        let _ = writeln!(out, "String to sign\n{}", indented(&text(&told["string_to_sign"])));
    } else if let Some(why) = told["credentials_error"].as_str() {
        let _ = writeln!(out, "Not signed: {why}");
    } else {
        let why = told["unsigned_because"].as_str().unwrap_or("there is no authorization.iam");
        let _ = writeln!(out, "Not signed: {why}");
    }
    let refusal = &told["refusal"];
    if let Some(difference) = refusal["first_difference"].as_object() {
        let of = |name: &str| text(difference.get(name).unwrap_or(&Value::Null));
        let _ = writeln!(
            out,
            "First difference from what AWS printed: {}\n    ours: {}\n    AWS:  {}",
            of("part"),
            of("ours"),
            of("theirs"),
        );
    }
    if let Some(what) = refusal["not_compared"].as_str() {
        let _ = writeln!(out, "Not compared: {what}");
    }
    if let Some(cause) = refusal["likely_cause"].as_str() {
        let _ = writeln!(out, "Likely cause: {cause}");
    }
    for check in told["checks"].as_array().into_iter().flatten() {
        let mark = if check["ok"] == true { "ok  " } else { "FAIL" };
        let _ = writeln!(out, "{mark} {:8} {}", text(&check["name"]), text(&check["detail"]));
    }
    out
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// The Control API has an address and no TLS.
struct Nearby;

impl Network for Nearby {
    fn address<'a>(&'a self, host: &'a str) -> NetworkFuture<'a, Result<IpAddr, String>> {
        Box::pin(async move { Err(format!("{host} is no address")) })
    }

    fn tls(
        &self,
        _: &str,
        _: bool,
    ) -> Result<(Arc<rustls::ClientConfig>, ServerName<'static>), String> {
        Err("it has no TLS".to_owned())
    }
}

/// How long the gateway may look around: each of its steps has a limit of its own.
const ANSWER_TIME: Duration = Duration::from_secs(45);
/// The largest answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;
