//! The checks a resource goes through before it is stored, in APISIX's order and words.
//!
//! What needs something from outside comes in as a function ([`Outside`]) or goes out as a question
//! ([`references`]). Plugins are checked by [`plugin::check_plugins`](crate::plugin::check_plugins),
//! `vars` by the catalog's function; an Admin API calls, in this order: [`resource`], the look-up of
//! [`references`], plugins, `vars`.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;
use serde_json::Value;

use crate::kind::{Kind, secret_schema};
use crate::proto;
use crate::resource::{id_of, id_text, is_id, is_secret_reference, is_shallow};
use crate::schema::{Schema, resources};
use crate::upstream::split_address;

/// What a check needs that this crate cannot know.
pub trait Outside {
    /// Checks that a certificate and, if given, its private key can be read. The key may be
    /// encrypted, as stored.
    ///
    /// # Errors
    /// `failed to parse cert: …`, `failed to parse key: …` or `failed to decrypt previous encrypted key`.
    fn cert_pair(&self, cert: &str, key: Option<&str>) -> Result<(), String>;
}

/// Checks a resource against its schema and the rules beyond it.
///
/// # Errors
/// The whole text of the answer, `invalid configuration: ` included.
pub fn resource(kind: Kind, value: &Value, outside: &dyn Outside) -> Result<(), String> {
    if kind == Kind::Routes {
        one_of(value, "host", "hosts")?;
        one_of(value, "remote_addr", "remote_addrs")?;
    }
    if kind == Kind::Upstreams {
        bracketed(value)?;
    }
    let mut value = value.clone();
    kind.schema().check_and_fill(&mut value).map_err(invalid)?;
    if !is_shallow(&value) {
        return Err(invalid("nested too deeply"));
    }
    if kind.has_id() && value.get("id").is_some() {
        // Differs: APISIX takes a secret reference (`$env://…`) for an id, and anything for that of
        // a secret.
        if !id_of(&value).is_some_and(|id| is_id_of(kind, &id)) {
            return Err(invalid(
                "property \"id\" validation failed: object matches none of the required",
            ));
        }
    }
    match kind {
        Kind::Upstreams => upstream_beyond_schema(&value, outside),
        Kind::Routes | Kind::Services => match value.get("upstream") {
            Some(upstream) => {
                bracketed(upstream)?;
                upstream_beyond_schema(upstream, outside)
            }
            None => Ok(()),
        },
        Kind::Ssls => ssl_beyond_schema(&value, outside),
        Kind::Protos => proto::check(text(&value, "content")),
        Kind::Secrets => secret(&value),
        Kind::StreamRoutes => stream_route_beyond_schema(&value),
        _ => Ok(()),
    }
}

/// Whether a text can be the id inside a resource of this kind.
fn is_id_of(kind: Kind, id: &str) -> bool {
    match kind {
        Kind::Secrets => id.split('/').count() == 2 && id.split('/').all(is_id),
        // A file of configuration names a credential with its consumer.
        Kind::Credentials => match id.split_once("/credentials/") {
            Some((consumer, id)) => is_id(consumer) && is_id(id),
            None => is_id(id),
        },
        _ => is_id(id),
    }
}

/// Checks the settings of a secret manager, which the id names: `vault/1`.
fn secret(value: &Value) -> Result<(), String> {
    let id = text(value, "id");
    let Some((manager, _)) = id.split_once('/') else {
        return Err(format!("invalid secret id: {id}"));
    };
    let schema =
        secret_schema(manager).ok_or_else(|| format!("invalid secret manager: {manager}"))?;
    schema.check(value).map_err(invalid)
}

fn stream_route_beyond_schema(route: &Value) -> Result<(), String> {
    let superior = route.get("protocol").and_then(|protocol| protocol.get("superior_id"));
    if superior.and_then(id_text).is_some_and(|superior| id_of(route).as_ref() == Some(&superior)) {
        return Err("stream route can not set itself as superior_id".to_owned());
    }
    for name in ["remote_addr", "server_addr"] {
        if let Some(address) = route.get(name).and_then(Value::as_str)
            && address.parse::<IpAddr>().is_err()
            && address.parse::<IpNet>().is_err()
        {
            return Err(format!("invalid {name}: {address}"));
        }
    }
    Ok(())
}

/// Checks an upstream on its own, as inside a plugin's configuration.
///
/// # Errors
/// As [`resource`].
pub fn upstream(value: &Value, outside: &dyn Outside) -> Result<(), String> {
    resource(Kind::Upstreams, value, outside)
}

/// Refuses times in what a client sends with `PUT` or `POST`.
///
/// # Errors
/// `the property is forbidden:  create_time`, its two spaces included.
pub fn no_times(value: &Value) -> Result<(), String> {
    let truthy = |value: Option<&Value>| value.is_some_and(|value| *value != Value::Bool(false));
    for (inside, prefix) in
        [(None, ""), (Some("upstream"), "upstream."), (Some("plugins"), "plugins.")]
    {
        let place = match inside {
            Some(name) => value.get(name),
            None => Some(value),
        };
        for name in ["create_time", "update_time"] {
            if truthy(place.and_then(|place| place.get(name))) {
                return Err(format!("the property is forbidden:  {prefix}{name}"));
            }
        }
    }
    Ok(())
}

/// A resource that another one names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Kind of the one named.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// The protocol it must speak, if it is a stream route.
    protocol: Option<String>,
}

impl Reference {
    /// The answer when there is no such resource.
    pub fn missing(&self) -> String {
        if self.kind == Kind::StreamRoutes {
            return format!("failed to fetch stream routes[{}], response code: 404", self.id);
        }
        let word = self.kind.singular();
        format!("failed to fetch {word} info by {word} id [{}], response code: 404", self.id)
    }

    /// Checks the resource that was found: a certificate for an upstream must be a client's, and a
    /// superior stream route must speak the same protocol.
    ///
    /// # Errors
    /// The whole text of the answer.
    pub fn check(&self, found: &Value) -> Result<(), String> {
        if self.kind == Kind::Ssls && found.get("type").and_then(Value::as_str) != Some("client") {
            return Err(format!(
                "failed to fetch ssl info by ssl id [{}], wrong ssl type",
                self.id
            ));
        }
        let superior = found.get("protocol").map(|protocol| text(protocol, "name"));
        if let (Some(own), Some(superior)) = (&self.protocol, superior)
            && own != superior
        {
            return Err(format!(
                "protocol mismatch: subordinate protocol [{own}] does not match superior protocol [{superior}]"
            ));
        }
        Ok(())
    }
}

/// What a resource refers to, in the order in which APISIX looks.
pub fn references(kind: Kind, value: &Value) -> Vec<Reference> {
    let certificate =
        |upstream: Option<&Value>| upstream?.get("tls")?.get("client_cert_id").and_then(id_text);
    let field = |name: &str| value.get(name).and_then(id_text);
    let found = match kind {
        Kind::Routes => vec![
            (Kind::Ssls, certificate(value.get("upstream"))),
            (Kind::Upstreams, field("upstream_id")),
            (Kind::Services, field("service_id")),
            (Kind::PluginConfigs, field("plugin_config_id")),
        ],
        Kind::Services => {
            vec![
                (Kind::Ssls, certificate(value.get("upstream"))),
                (Kind::Upstreams, field("upstream_id")),
            ]
        }
        Kind::Upstreams => vec![(Kind::Ssls, certificate(Some(value)))],
        Kind::Consumers => vec![(Kind::ConsumerGroups, field("group_id"))],
        Kind::StreamRoutes => {
            let superior = value.get("protocol").and_then(|protocol| protocol.get("superior_id"));
            vec![
                (Kind::Upstreams, field("upstream_id")),
                (Kind::Services, field("service_id")),
                (Kind::StreamRoutes, superior.and_then(id_text)),
            ]
        }
        _ => Vec::new(),
    };
    let protocol = value.get("protocol");
    let named = |(kind, id): (Kind, Option<String>)| {
        Some(Reference { kind, id: id?, protocol: protocol_name(kind, protocol) })
    };
    found.into_iter().filter_map(named).collect()
}

fn protocol_name(kind: Kind, protocol: Option<&Value>) -> Option<String> {
    let name = protocol.filter(|_| kind == Kind::StreamRoutes)?.get("name")?;
    name.as_str().map(str::to_owned)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn one_of(value: &Value, one: &str, many: &str) -> Result<(), String> {
    if value.get(one).is_some() && value.get(many).is_some() {
        return Err(format!("only one of {one} or {many} is allowed"));
    }
    Ok(())
}

/// Refuses a bare IPv6 address among listed nodes: with a port behind it, it could mean two things.
fn bracketed(upstream: &Value) -> Result<(), String> {
    let nodes = upstream.get("nodes").and_then(Value::as_array).into_iter().flatten();
    for node in nodes {
        if node
            .get("host")
            .and_then(Value::as_str)
            .is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
        {
            return Err(invalid("IPv6 address must be enclosed with '[' and ']'"));
        }
    }
    Ok(())
}

fn upstream_beyond_schema(upstream: &Value, outside: &dyn Outside) -> Result<(), String> {
    if let Some(nodes) = upstream.get("nodes").and_then(Value::as_object) {
        for address in nodes.keys() {
            if let (_, Some(port)) = split_address(address)
                && !(1.0..=65535.0).contains(&port)
            {
                return Err(format!("invalid port {port}"));
            }
        }
    }
    let text = |name: &str| upstream.get(name).and_then(Value::as_str);
    if text("pass_host") == Some("rewrite") && text("upstream_host").unwrap_or_default().is_empty()
    {
        return Err("`upstream_host` can't be empty when `pass_host` is `rewrite`".to_owned());
    }
    if let Some(tls) = upstream.get("tls")
        && let Some(cert) = tls.get("client_cert").and_then(Value::as_str)
    {
        outside.cert_pair(cert, tls.get("client_key").and_then(Value::as_str))?;
    }
    if text("type") == Some("chash") {
        hash_key(text("hash_on").unwrap_or("vars"), upstream.get("key"))?;
    }
    Ok(())
}

/// The key a consistent hash is made of.
fn hash_key(hash_on: &str, key: Option<&Value>) -> Result<(), String> {
    static VARS: LazyLock<Schema> = LazyLock::new(|| built_in(&resources::hash_vars()));
    static HEADER: LazyLock<Schema> = LazyLock::new(|| built_in(&resources::hash_header()));
    static COMBINATIONS: LazyLock<Schema> =
        LazyLock::new(|| built_in(&resources::hash_vars_combinations()));
    if hash_on == "consumer" {
        return Ok(());
    }
    let Some(key) = key else { return Err("missing key".to_owned()) };
    let schema = match hash_on {
        "vars" => &VARS,
        "header" | "cookie" => &HEADER,
        _ => &COMBINATIONS,
    };
    schema.check(key).map_err(invalid)
}

fn built_in(schema: &Value) -> Schema {
    Schema::compile(schema).expect("built-in schemas compile; a test uses each")
}

fn ssl_beyond_schema(ssl: &Value, outside: &dyn Outside) -> Result<(), String> {
    let text = |name: &str| ssl.get(name).and_then(Value::as_str).unwrap_or_default();
    let pair = |cert: &str, key: &str| match is_secret_reference(cert) || is_secret_reference(key) {
        true => Ok(()),
        false => outside.cert_pair(cert, Some(key)),
    };
    pair(text("cert"), text("key"))?;
    if text("type") == "client" {
        return Ok(());
    }
    let list = |name: &str| ssl.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (certs, keys) = (list("certs"), list("keys"));
    if certs.len() != keys.len() {
        return Err("mismatched number of certs and keys".to_owned());
    }
    for (index, (cert, key)) in certs.iter().zip(keys).enumerate() {
        pair(cert.as_str().unwrap_or_default(), key.as_str().unwrap_or_default())
            .map_err(|error| format!("failed to handle cert-key pair[{}]: {error}", index + 1))?;
    }
    if let Some(ca) = ssl.get("client").and_then(|client| client.get("ca")).and_then(Value::as_str)
        && !is_secret_reference(ca)
    {
        outside
            .cert_pair(ca, None)
            .map_err(|error| format!("failed to validate client_cert: {error}"))?;
    }
    let skipped = ssl.get("client").and_then(|client| client.get("skip_mtls_uri_regex"));
    for text in skipped.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        // Differs: APISIX stores a broken expression, which then skips nothing and says so nowhere.
        fancy_regex::Regex::new(text).map_err(|error| {
            format!(
                "property \"client.skip_mtls_uri_regex\" has an invalid regex {text:?}: {error}"
            )
        })?;
    }
    let versions = list("ssl_protocols");
    if !versions.is_empty() && versions.iter().all(|version| version == "TLSv1.1") {
        // Differs: APISIX serves TLS 1.1, which the TLS library here has no code for.
        return Err(
            "property \"ssl_protocols\" needs TLSv1.2 or TLSv1.3: TLSv1.1 is not served".into()
        );
    }
    Ok(())
}

fn invalid(error: impl std::fmt::Display) -> String {
    format!("invalid configuration: {error}")
}

#[cfg(test)]
mod tests;
