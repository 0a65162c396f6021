//! The `conf/config.yaml` that is made where none is.

use std::io;
use std::path::Path;

use crate::secret::Secret;
use crate::settings::Config;

/// What a new configuration file says beside the defaults.
#[derive(Debug, Clone)]
pub struct Starter {
    /// `apisix.node_listen`.
    pub node_listen: Vec<u16>,
}

impl Default for Starter {
    fn default() -> Self {
        Self { node_listen: vec![9080] }
    }
}

impl Starter {
    /// The file's text, with a keyring of its own and an admin key that is generated at start.
    pub fn text(&self, random: &mut dyn FnMut(&mut [u8])) -> String {
        let ports: String = self.node_listen.iter().map(|port| format!("\n    - {port}")).collect();
        let keyring = random_text(KEYRING_CHARS, random);
        format!(
            "\
# Sluicegate's configuration, with Apache APISIX's names. What is not set here has its default;
# docs/configuration.md and conf/config.yaml.example list every key.
#
# `sluicegate test` checks this file, `sluicegate reload` takes it into a running gateway.
# Values may come from the environment: ${{{{NAME}}}}, or ${{{{NAME:=value when unset}}}}.

apisix:
  # Where clients connect with plain HTTP/1.1 and HTTP/2.
  node_listen:{ports}
  # Where clients connect with TLS.
  ssl:
    enable: true
    listen:
      - port: 9443
  data_encryption:
    # Encrypts the secrets in the store. Keep it: what it encrypted cannot be read without it.
    # A new key goes first, with the old ones behind it.
    keyring:
      - '{}'

deployment:
  role: traditional
  role_traditional:
    config_provider: embedded
  admin:
    # Who may connect to the Admin API.
    allow_admin:
      - 127.0.0.0/24
    admin_listen:
      ip: 0.0.0.0
      port: 9180
    admin_key:
      - name: admin
        key: ''  # an empty key is generated at start and written here
        role: admin
",
            keyring.expose()
        )
    }
}

impl Config {
    /// The text of a configuration file for a start without one.
    pub fn default_text(random: &mut dyn FnMut(&mut [u8])) -> String {
        Starter::default().text(random)
    }

    /// Writes `text` to `path` when there is no file, readable by its owner only, at once whole.
    /// Folders on the way are made. `true` when it was written.
    pub fn create_if_missing(path: &Path, text: &str) -> io::Result<bool> {
        crate::file::create(path, text)
    }
}

/// Letters and digits, each as likely as the other. `random` fills its buffer with random bytes.
pub(crate) fn random_text(chars: usize, random: &mut dyn FnMut(&mut [u8])) -> Secret {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    // Bytes from 248 on would make the first letters more likely than the rest.
    const FAIR: u8 = 62 * 4;
    let mut text = String::with_capacity(chars);
    let mut bytes = [0u8; 64];
    while text.len() < chars {
        random(&mut bytes);
        let fair = bytes.iter().filter(|byte| **byte < FAIR);
        text.extend(
            fair.take(chars - text.len()).map(|byte| char::from(ALPHABET[(byte % 62) as usize])),
        );
    }
    Secret::new(text)
}

/// AES-128.
const KEYRING_CHARS: usize = 16;
