//! The origin behind every gateway, plain and with TLS, and the certificates of a run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::cases::BIG_BODY_BYTES;
use super::peers::nginx;
use super::server::{Launcher, Place, Server, free_ports};
use crate::command::{output, program};

/// nginx with one worker, which refuses what does not carry what a gateway is there to add.
pub(crate) struct Origin {
    _server: Server,
    pub(crate) http: u16,
    pub(crate) https: u16,
}

impl Origin {
    pub(crate) fn start(folder: &Path, launcher: Launcher, files: &Certificates) -> Result<Self> {
        let [http, https] = free_ports()?;
        let page = folder.join("page");
        fs::create_dir_all(&page)?;
        fs::write(page.join("big"), vec![b'x'; BIG_BODY_BYTES])?;
        let text = http_block(http, https, files, &page);
        let mut server = nginx::spawn(folder, "origin", launcher, Place::Load, 1, &text)?;
        server.wait_for_port(http)?;
        server.wait_for_port(https)?;
        Ok(Self { _server: server, http, https })
    }

    pub(crate) fn port(&self, tls: bool) -> u16 {
        if tls { self.https } else { self.http }
    }
}

fn http_block(http: u16, https: u16, files: &Certificates, page: &Path) -> String {
    let Certificates { leaf, key, .. } = files;
    let (leaf, key, page) = (leaf.display(), key.display(), page.display());
    // nginx reads a request's body only where something needs it: the mirrored request to nowhere does.
    format!(
        r#"default_type application/json;
client_max_body_size 8m;
client_body_buffer_size 2m;
sendfile on;
server {{
  listen 127.0.0.1:{http} backlog=4096;
  listen 127.0.0.1:{https} ssl backlog=4096;
  ssl_certificate {leaf};
  ssl_certificate_key {key};
  ssl_session_cache shared:sessions:4m;
  location / {{ return 200 '{ORIGIN_BODY}'; }}
  location = /big {{
    root {page};
    error_page 405 =200 $uri;
    mirror /nowhere;
  }}
  location = /nowhere {{ internal; return 204; }}
  location = /function/apikey {{
    if ($http_x_api_key != "{API_KEY}") {{ return 403; }}
    if ($host != "127.0.0.1") {{ return 421; }}
    return 200 '{ORIGIN_BODY}';
  }}
  location = /function/iam {{
    if ($http_authorization !~ "^AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/[0-9]+/{REGION}/{SERVICE}/aws4_request, ?SignedHeaders=[^,]+, ?Signature=[0-9a-f]+$") {{ return 403; }}
    if ($http_x_amz_date = "") {{ return 403; }}
    if ($host != "127.0.0.1") {{ return 421; }}
    return 200 '{ORIGIN_BODY}';
  }}
}}"#
    )
}

/// Files in PEM: an authority, and a certificate by it for `localhost` and 127.0.0.1.
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) leaf: PathBuf,
    pub(crate) key: PathBuf,
    /// Certificate and key in one file.
    pub(crate) both: PathBuf,
}

impl Certificates {
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        let file = |name: &str| folder.join(name);
        let (authority, authority_key) = (file("authority.pem"), file("authority.key"));
        let files = Self {
            leaf: file("leaf.pem"),
            key: file("leaf.key"),
            both: file("both.pem"),
            authority,
        };
        let settings = file("openssl.conf");
        fs::write(&settings, OPENSSL)?;
        let request = |extensions: &str, name: &str| {
            let mut command = program("openssl");
            command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
            command.args(["-nodes", "-days", "30", "-extensions", extensions, "-subj", name]);
            command.arg("-config").arg(&settings);
            command
        };
        let mut make_authority = request("authority", "/CN=Bench authority");
        make_authority.arg("-keyout").arg(&authority_key).arg("-out").arg(&files.authority);
        output(&mut make_authority)?;
        let mut make_leaf = request("leaf", "/CN=localhost");
        make_leaf.arg("-CA").arg(&files.authority).arg("-CAkey").arg(&authority_key);
        output(make_leaf.arg("-keyout").arg(&files.key).arg("-out").arg(&files.leaf))?;
        let both = fs::read_to_string(&files.leaf)? + &fs::read_to_string(&files.key)?;
        fs::write(&files.both, both)?;
        Ok(files)
    }
}

const OPENSSL: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
CN = unused
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
";

/// What the origin answers.
pub(crate) const ORIGIN_BODY: &str = r#""Hello, bench!""#;
pub(crate) const API_KEY: &str = "bench-api-key";
pub(crate) const ACCESS_KEY: &str = "AKIDBENCH";
pub(crate) const SECRET_KEY: &str = "bench+secret/key";
pub(crate) const REGION: &str = "us-east-1";
pub(crate) const SERVICE: &str = "lambda";
