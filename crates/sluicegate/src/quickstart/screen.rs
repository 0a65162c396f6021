//! What the quickstart says: what listens where, and lines that can be pasted and work.

use std::io::Write;
use std::net::SocketAddr;

use sluicegate_gateway::settings::Listen;

use super::files::Local;
use super::{FUNCTION, REGION, SERVICE, loopback};

pub(super) struct Screen<'a> {
    pub(super) listen: &'a [Listen],
    pub(super) admin: Option<SocketAddr>,
    pub(super) local: &'a Local,
    /// The folder as the person would type it.
    pub(super) folder: String,
    /// This program as the person would type it.
    pub(super) program: String,
}

impl Screen<'_> {
    pub(super) fn text(&self) -> String {
        let mut out =
            format!("Sluicegate {} runs; Ctrl-C stops it.\n\n", env!("CARGO_PKG_VERSION"));
        self.places(&mut out);
        self.calls(&mut out);
        if let Some(admin) = self.admin {
            self.changes(&mut out, loopback(admin));
        }
        out
    }

    /// What listens where, and what lies where.
    fn places(&self, out: &mut String) {
        let Local { api_gateway, function_url, invoke_api, origin, .. } = self.local;
        let folder = &self.folder;
        let mut row = |name: &str, place: String, what: &str| {
            *out += format!("  {name:<13} {place:<34} {what}").trim_end();
            out.push('\n');
        };
        let mut name = "Gateway";
        for addr in self.plain() {
            row(name, format!("http://{addr}"), "HTTP/1.1 and HTTP/2");
            name = "";
        }
        if let Some(addr) = self.tls() {
            row(name, format!("https://{addr}"), "self-signed, for localhost");
        }
        if let Some(addr) = self.admin {
            row(
                "Admin API",
                format!("http://{}/apisix/admin", loopback(addr)),
                "from this machine only",
            );
        }
        row("AWS, locally", format!("http://{api_gateway}"), "API Gateway: checks the API key");
        row("", format!("http://{function_url}"), "function URL: checks the SigV4 signature");
        row("", format!("http://{invoke_api}"), "Invoke API: functions by name, signed");
        row("Origin", format!("http://{origin}"), "tells what it received");
        row("Files", format!("{folder}/conf/config.yaml"), "configuration with the admin key");
        row("", format!("{folder}/standin.json"), "keys of the local AWS");
        row("", format!("{folder}/logs/"), "access.log, error.log");
    }

    /// Requests to try.
    fn calls(&self, out: &mut String) {
        let mut plain = self.plain();
        let Some(first) = plain.next() else { return };
        let second = plain.next().unwrap_or(first);
        *out += "\nCall the function; each line answers Hello, APISIX!\n\n";
        let mut call = |line: String| *out += &format!("  curl {line}\n");
        call(format!("\"http://{first}/aws?name=APISIX\""));
        call(format!("--http2-prior-knowledge \"http://{second}/aws?name=APISIX\""));
        if let Some(tls) = self.tls() {
            call(format!("-k \"https://localhost:{}/aws?name=APISIX\"", tls.port()));
        }
        call(format!("\"http://{first}/aws-iam?name=APISIX\""));
        call(format!("\"http://{first}/aws-path/default/test-apisix?name=APISIX\""));
        call(format!("\"http://{first}/aws-function?name=APISIX\""));
        *out += "\nA function that streams; one number every half second:\n\n";
        *out += &format!("  curl -N \"http://{first}/aws-stream\"\n");
        *out += "\nWhat a route sends to its function, and what stands in the way:\n\n";
        *out += &format!("  {} doctor quickstart-function -p {}\n", self.program, self.folder);
    }

    /// Changes of route 1 to try.
    fn changes(&self, out: &mut String, admin: SocketAddr) {
        let Local { api_gateway, function_url, invoke_api, origin, .. } = self.local;
        let config = format!("{}/conf/config.yaml", self.folder);
        *out += &format!(
            "\nChange route 1 at once, by the Admin API. The admin key, with yq or without:\n\n  \
             admin_key=$(yq '.deployment.admin.admin_key[0].key' {config} | sed 's/\"//g')\n  \
             admin_key=$(grep -A 3 admin_key: {config} | sed -n \"s/.*key: '\\(.*\\)'.*/\\1/p\")\n"
        );
        let mut put = |what: &str, body: &str| {
            *out += &format!(
                "\nRoute 1 to {what}:\n\n  curl \"http://{admin}/apisix/admin/routes/1\" -X PUT -H \"X-API-KEY: ${{admin_key}}\" -d '{body}'\n"
            );
        };
        put(
            "a function behind API Gateway, with an API key",
            &format!(
                r#"
  {{ "uri": "/aws", "plugins": {{ "aws-lambda": {{
      "function_uri": "http://{api_gateway}{FUNCTION}",
      "authorization": {{ "apikey": "{}" }} }} }} }}"#,
                self.local.api_key.expose()
            ),
        );
        put(
            "a function URL, with IAM keys",
            &format!(
                r#"
  {{ "uri": "/aws", "plugins": {{ "aws-lambda": {{
      "function_uri": "http://{function_url}/",
      "authorization": {{ "iam": {{
        "accesskey": "{}",
        "secretkey": "{}",
        "aws_region": "{REGION}", "service": "{SERVICE}" }} }} }} }} }}"#,
                self.local.access_key,
                self.local.secret_key.expose()
            ),
        );
        put(
            "a function by its name, by the Invoke API",
            &format!(
                r#"
  {{ "uri": "/aws", "plugins": {{ "aws-lambda": {{
      "function": {{ "name": "greet", "region": "{REGION}", "endpoint": "http://{invoke_api}" }},
      "authorization": {{ "iam": {{
        "accesskey": "{}",
        "secretkey": "{}" }} }} }} }} }}"#,
                self.local.access_key,
                self.local.secret_key.expose()
            ),
        );
        put(
            "a plain upstream",
            &format!(
                r#"
  {{ "uri": "/aws", "upstream": {{ "type": "roundrobin", "nodes": {{ "{origin}": 1 }} }} }}"#
            ),
        );
    }

    fn plain(&self) -> impl Iterator<Item = SocketAddr> {
        let listen = self.listen.iter().filter(|listen| !listen.tls && !listen.proxy_protocol);
        listen.map(|listen| loopback(listen.addr))
    }

    fn tls(&self) -> Option<SocketAddr> {
        let listen = self.listen.iter().find(|listen| listen.tls && !listen.proxy_protocol);
        listen.map(|listen| loopback(listen.addr))
    }
}

/// A terminal that is gone is no reason to stop serving.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
