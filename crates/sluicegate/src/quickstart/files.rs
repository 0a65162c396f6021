//! The two files that a quickstart's folder holds from the start: `conf/config.yaml` for the
//! gateway, `standin.json` for the stand-in. Each is made when it is missing and obeyed when it is
//! there.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};
use sluicegate_config::{Config, Secret};

use crate::boot;
use crate::cli::Place;

/// Both files, read, or made and not yet written.
pub(super) struct Files {
    pub(super) config: Config,
    pub(super) local: Local,
    new: Vec<(PathBuf, String)>,
}

impl Files {
    /// `ports_from` is for files that are made; with files that are there it is an error.
    pub(super) fn read_or_make(place: &Place, ports_from: Option<u16>) -> anyhow::Result<Self> {
        let ports = ports_from.map_or(Ports::DEFAULT, Ports::from);
        let mut new = Vec::new();
        let env = |name: &str| std::env::var(name).ok();

        let path = place.config();
        let config = if path.exists() {
            Config::load(&path, &env)?.0
        } else {
            let text = config_text(&ports);
            let config = Config::parse(&path.display().to_string(), &text, &env)?.0;
            new.push((path, text));
            config
        };

        let path = place.under(Path::new("standin.json"));
        let shown = format!("{}/standin.json", place.shown());
        let local = if path.exists() {
            Local::read(&path).with_context(|| shown)?
        } else {
            let local = Local::make(&ports);
            new.push((path, local.text()));
            local
        };
        if ports_from.is_some() && new.len() < 2 {
            bail!(
                "--ports-from is for a new folder, and {0} is in use: change the ports in {0}/conf/config.yaml \
                 and {0}/standin.json, or choose another folder with -p",
                place.shown()
            );
        }
        Ok(Self { config, local, new })
    }

    /// Whether neither file was there.
    pub(super) fn are_new(&self) -> bool {
        self.new.len() == 2
    }

    /// Writes what was made, for the owner's eyes only.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        for (path, text) in &self.new {
            Config::create_if_missing(path, text)
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(())
    }
}

/// Where the stand-in listens and the keys that it takes.
pub(super) struct Local {
    pub(super) api_gateway: SocketAddr,
    pub(super) function_url: SocketAddr,
    pub(super) invoke_api: SocketAddr,
    pub(super) origin: SocketAddr,
    pub(super) api_key: Secret,
    pub(super) access_key: String,
    pub(super) secret_key: Secret,
}

impl Local {
    fn make(ports: &Ports) -> Self {
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            api_gateway: addr(ports.api_gateway),
            function_url: addr(ports.function_url),
            invoke_api: addr(ports.invoke_api),
            origin: addr(ports.origin),
            api_key: Secret::new(random(40)),
            access_key: format!("STANDIN{}", random(13).to_ascii_uppercase()),
            secret_key: Secret::new(random(40)),
        }
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let mut text = String::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            bail!("it is larger than {FILE_BYTES_MAX} bytes");
        }
        let value: Value = serde_json::from_str(&text)?;
        let text = |key: &str| {
            let text = value[key].as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned).with_context(|| format!("{key:?} must be a text"))
        };
        let addr = |key: &str| {
            text(key)?.parse().map_err(|_| {
                anyhow!("{key:?} must be an address with a port, as in 127.0.0.1:1980")
            })
        };
        let function_url: SocketAddr = addr("function_url")?;
        let invoke_api = match value.get("invoke_api") {
            Some(_) => addr("invoke_api")?,
            // A file from before there was one: where a new file would have it.
            None => SocketAddr::new(function_url.ip(), function_url.port().wrapping_add(1)),
        };
        Ok(Self {
            api_gateway: addr("api_gateway")?,
            function_url,
            invoke_api,
            origin: addr("origin")?,
            api_key: Secret::new(text("api_key")?),
            access_key: text("access_key")?,
            secret_key: Secret::new(text("secret_key")?),
        })
    }

    fn text(&self) -> String {
        let value = json!({
            "api_gateway": self.api_gateway.to_string(),
            "function_url": self.function_url.to_string(),
            "invoke_api": self.invoke_api.to_string(),
            "origin": self.origin.to_string(),
            "api_key": self.api_key.expose(),
            "access_key": self.access_key,
            "secret_key": self.secret_key.expose(),
        });
        format!("{value:#}\n")
    }
}

struct Ports {
    http: [u16; 2],
    https: u16,
    admin: u16,
    api_gateway: u16,
    function_url: u16,
    invoke_api: u16,
    origin: u16,
    control: u16,
}

impl Ports {
    /// APISIX's, and the port that its documentation's upstreams have.
    const DEFAULT: Self = Self {
        http: [9080, 9081],
        https: 9443,
        admin: 9180,
        origin: 1980,
        api_gateway: 1981,
        function_url: 1982,
        invoke_api: 1983,
        control: 9190,
    };

    fn from(n: u16) -> Self {
        Self {
            http: [n, n + 1],
            https: n + 2,
            admin: n + 3,
            origin: n + 4,
            api_gateway: n + 5,
            function_url: n + 6,
            invoke_api: n + 7,
            control: n + 8,
        }
    }
}

// A quickstart is for one person on one machine, and its keys are on the screen: it listens on
// loopback only. The Control API is not at its usual port because Prometheus likes that too.
fn config_text(ports: &Ports) -> String {
    let Ports { http: [http, http_2], https, admin, control, .. } = ports;
    let (keyring, key) = (random(16), random(32));
    format!(
        "\
# Made by `sluicegate quickstart`, with Apache APISIX's names. docs/configuration.md lists every key.
# It listens on this machine only; `ip: 0.0.0.0` opens a port to the network.

apisix:
  # Plain HTTP/1.1 and HTTP/2, on both ports.
  node_listen:
    - ip: 127.0.0.1
      port: {http}
    - ip: 127.0.0.1
      port: {http_2}
  ssl:
    enable: true
    listen:
      - ip: 127.0.0.1
        port: {https}
    # The certificate for clients that send no server name, as for https://127.0.0.1:{https}
    fallback_sni: localhost
  # For `sluicegate doctor`, and for what else looks inside.
  control:
    ip: 127.0.0.1
    port: {control}
  data_encryption:
    # Encrypts the secrets in the store. Keep it: what it encrypted cannot be read without it.
    keyring:
      - '{keyring}'

plugin_attr:
  aws-lambda:
    # Whose keys routes may sign with: `static` are the route's own. Every other one is an identity of
    # this gateway (env, profile, web_identity, container, imds, chain): docs/lambda-credentials.md.
    allowed_providers:
      - static

deployment:
  role: traditional
  role_traditional:
    config_provider: embedded
  admin:
    allow_admin:
      - 127.0.0.0/24
    admin_listen:
      ip: 127.0.0.1
      port: {admin}
    admin_key:
      - name: admin
        key: '{key}'
        role: admin
"
    )
}

/// Letters and digits, each as likely as the other.
fn random(chars: usize) -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(chars);
    while text.len() < chars {
        let mut byte = [0];
        boot::random(&mut byte);
        // Six bits name 64 places; the two without a letter are drawn again.
        text.extend(ALPHABET.get(usize::from(byte[0] & 63)).map(|letter| char::from(*letter)));
    }
    text
}

/// The largest `standin.json`.
const FILE_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(ports: &Ports) -> Config {
        let (config, warnings) =
            Config::parse("config.yaml", &config_text(ports), &|_| None).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        config
    }

    #[test]
    fn the_configuration_made_is_valid_and_listens_on_loopback_only() {
        for (ports, plain, tls, admin) in [
            (Ports::DEFAULT, [9080, 9081], 9443, 9180),
            (Ports::from(20000), [20000, 20001], 20002, 20003),
            (Ports::from(65527), [65527, 65528], 65529, 65530),
        ] {
            let config = parsed(&ports);
            let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
            assert_eq!(config.http_addrs(), plain.map(addr));
            assert_eq!(config.https_addrs(), [addr(tls)]);
            assert_eq!(config.deployment.admin.admin_listen, addr(admin));
            assert_eq!(config.apisix.control, Some(addr(ports.control)));
            assert_eq!(config.deployment.admin.admin_key[0].key.expose().len(), 32);
        }
    }

    #[test]
    fn two_folders_share_no_key() {
        let (one, other) = (parsed(&Ports::DEFAULT), parsed(&Ports::DEFAULT));
        let key = |config: &Config| config.deployment.admin.admin_key[0].key.expose().to_owned();
        assert_ne!(key(&one), key(&other));
        let (one, other) = (Local::make(&Ports::DEFAULT), Local::make(&Ports::DEFAULT));
        assert_ne!(one.api_key.expose(), other.api_key.expose());
        assert_ne!(one.access_key, other.access_key);
        assert_ne!(one.secret_key.expose(), other.secret_key.expose());
    }

    #[test]
    fn the_stand_ins_file_reads_as_written() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let made = Local::make(&Ports::DEFAULT);
        std::fs::write(&path, made.text()).unwrap();
        let read = Local::read(path.path()).unwrap();
        assert_eq!(read.text(), made.text());
        // One that was made before there was an Invoke API.
        let older = made.text().replace("  \"invoke_api\": \"127.0.0.1:1983\",\n", "");
        assert_ne!(older, made.text());
        std::fs::write(&path, older).unwrap();
        assert_eq!(Local::read(path.path()).unwrap().text(), made.text());
    }

    #[test]
    fn a_wrong_stand_in_file_is_refused_with_the_reason() {
        let good = Local::make(&Ports::DEFAULT).text();
        let long = " ".repeat(FILE_BYTES_MAX as usize + 1 - good.len());
        for (text, reason) in [
            (good.replace("\"origin\"", "\"orign\""), "\"origin\" must be a text"),
            (good.replace("127.0.0.1:1982", "1982"), "\"function_url\" must be an address"),
            (
                good.replace("\"api_key\": \"", "\"api_key\": 1, \"x\": \""),
                "\"api_key\" must be a text",
            ),
            ("{".to_owned(), "EOF"),
            (good.clone() + &long, "larger than 65536 bytes"),
        ] {
            let path = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&path, &text).unwrap();
            let error = Local::read(path.path()).err().map(|error| format!("{error:#}"));
            assert!(error.as_ref().is_some_and(|e| e.contains(reason)), "{error:?}, not {reason}");
        }
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, good.clone() + &long[1..]).unwrap();
        assert!(Local::read(path.path()).is_ok());
    }
}
