//! The static configuration, `conf/config.yaml`: APISIX's file, key names and defaults.
//!
//! One table, `keys.rs`, holds every key with its type, default and a line about it. The checks,
//! `conf/config.yaml.example` and `docs/configuration.md` all come from it. The way of a file:
//! text → tree with places (`yaml.rs`) → `${{VAR}}` filled in (`variables.rs`) → held against the
//! table (`check.rs`, `kind.rs`) → plain fields ([`Config`], `settings.rs`). An error names file,
//! line, key, what was expected and what was found, and all errors come at once.

mod admin_key;
mod build;
mod check;
mod ciphers;
mod error;
mod file;
mod keys;
mod kind;
mod plugin_names;
mod render;
mod secret;
mod settings;
mod starter;
mod units;
mod variables;
mod yaml;

#[cfg(test)]
mod tests;

pub use admin_key::write_admin_key;
pub use error::{ConfigError, Problem, Warning};
pub use kind::LIST_ITEMS_MAX;
pub use plugin_names::APISIX_PLUGINS;
pub use render::{documentation, example};
pub use secret::Secret;
pub use settings::{
    Admin, AdminKey, AdminRole, AdminTls, Apisix, CacheDisk, CacheZone, Config, ConfigProvider,
    DataEncryption, Deployment, DnsDiscovery, EgressProxy, ErrorLogLevel, Etcd, Http, Limits,
    Listen, LogEscape, LogTarget, NginxConfig, PluginAttr, ProxyCache, ProxyProtocol, Role,
    RouterHttp, Ssl, TlsVersion, TrustedCertificate, UpstreamKeepalive, WorkerProcesses,
};
pub use starter::Starter;
pub use units::{DURATION_MAX, parse_duration, parse_size};
pub use variables::Env;
pub use yaml::{EXPANDED_BYTES_MAX, NESTING_MAX, NODES_MAX};

/// The largest configuration file.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Most problems that one error lists.
pub const PROBLEMS_MAX: usize = 100;
