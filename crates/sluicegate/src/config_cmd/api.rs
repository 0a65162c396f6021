//! Resources of a gateway that runs, by its Admin API.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sluicegate_config::{AdminRole, Config};
use sluicegate_model::Kind;
use sluicegate_model::plugin::unique_keys;
use sluicegate_model::resource::Key;
use sluicegate_store::file::{FILE_BYTES_MAX, Item, items};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::resources::{Resource, Resources, Rules, TIMES, listed, who};
use super::{Plan, Where};
use crate::admin_tls;
/// A connection to the Admin API.
pub(super) struct Api {
    runtime: Runtime,
    sender: http1::SendRequest<Body>,
    addr: SocketAddr,
    key: String,
}

impl Api {
    pub(super) fn connect(runtime: Runtime, at: &Where, config: &Config) -> anyhow::Result<Self> {
        let admin = &config.deployment.admin;
        let client = at.admin_cert.as_ref().zip(at.admin_cert_key.as_ref());
        let tls = admin.tls.as_ref();
        let tls = tls.map(|files| admin_tls::connector(files, &at.place, client)).transpose()?;
        let mut addr = at.admin.unwrap_or(admin.admin_listen);
        match addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let key = admin.admin_key.iter().find(|key| key.role == AdminRole::Admin);
        let key = key.map(|key| key.key.expose().to_owned()).unwrap_or_default();
        let connected = runtime.block_on(async {
            let connect = async {
                let stream = TcpStream::connect(addr).await?;
                let Some(tls) = tls else { return handshake(stream).await };
                let stream = tls.connect(admin_tls::server_name(), stream).await;
                let stream = stream.context(
                    "its TLS handshake failed: its certificate has to be the one in admin_ssl_cert (`sluicegate reload` makes it so), and where admin_ssl_ca_cert is set, --admin-cert one of that authority",
                )?;
                handshake(stream).await
            };
            tokio::time::timeout(CONNECT_WAIT, connect).await?
        });
        let sender = connected
            .with_context(|| format!("the gateway runs, but its Admin API at {addr} does not answer (--admin gives another address)"))?;
        Ok(Self { runtime, sender, addr, key })
    }

    fn call(
        &mut self,
        method: Method,
        path: &str,
        body: String,
    ) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::HOST, self.addr.to_string())
            .header("x-api-key", &self.key)
            .body(Body::from(body))
            .with_context(|| format!("{path} is no path"))?;
        let sender = &mut self.sender;
        let answer = async {
            sender.ready().await?;
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body =
                axum::body::to_bytes(Body::new(response.into_body()), FILE_BYTES_MAX).await?;
            anyhow::Ok((status, body.to_vec()))
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(CALL_WAIT, answer).await });
        answer
            .map_err(|_| anyhow!("no answer within {CALL_WAIT:?}"))
            .and_then(|answer| answer)
            .with_context(|| format!("the Admin API at {} failed at {method} {path}", self.addr))
    }

    pub(super) fn all(&mut self) -> anyhow::Result<Resources> {
        let (status, body) = self.call(Method::GET, "/apisix/admin/configs", String::new())?;
        if status != StatusCode::OK {
            bail!("the Admin API answers {status}: {}", told(&body));
        }
        let mut root = serde_json::from_slice(&body).context("the Admin API answers no JSON")?;
        let (items, _) = items(&mut root);
        let found = items
            .into_iter()
            .map(|Item { key, value, .. }| (key.to_string(), Resource::new(key, value)));
        Ok(found.collect())
    }

    /// Makes the changes one by one, each answered before the next.
    ///
    /// What one resource gives up, a key or a plugin, another may take: what is refused waits, and
    /// is sent again when others have been made, until nothing more goes through.
    pub(super) fn apply(&mut self, plan: Plan, rules: &Rules) -> anyhow::Result<()> {
        let total = plan.created.len() + plan.changed.len() + plan.deleted.len();
        let mut made = 0;
        let result = self.apply_counted(plan, rules, &mut made);
        result.with_context(|| format!("the import stopped, {made} of {total} changes were made"))
    }

    fn apply_counted(&mut self, plan: Plan, rules: &Rules, made: &mut usize) -> anyhow::Result<()> {
        // A plugin may stand in one global rule only: those that go make room first.
        let (first, later): (Vec<_>, Vec<_>) =
            plan.deleted.into_iter().partition(|key| key.kind == Kind::GlobalRules);
        let (mut holders, last): (Vec<_>, Vec<_>) =
            later.into_iter().partition(|key| is_consumers(key.kind));
        self.delete(&first, made)?;
        let writes = plan.created.into_iter().chain(plan.changed).collect();
        let mut refused = self.put(writes, made)?;
        let mut bare = HashSet::new();
        while !refused.is_empty() {
            let before = *made;
            let waiting = refused.into_iter().map(|(one, _)| one).collect();
            refused = self.put(waiting, made)?;
            if *made > before {
                continue;
            }
            // Consumers that go stay for as long as nobody waits for their keys.
            let is_key = refused.iter().any(|(one, _)| is_consumers(one.key.kind));
            if is_key && !holders.is_empty() {
                self.delete(&std::mem::take(&mut holders), made)?;
                continue;
            }
            let ring = in_a_ring(&refused).map(|one| &refused[one].0);
            match ring.filter(|one| bare.insert(one.key.to_string())) {
                Some(one) => self.let_go(one, rules)?,
                None => return Err(stuck(&refused)),
            }
        }
        self.delete(&holders, made)?;
        self.delete(&last, made)
    }

    /// Writes what is taken; answers the rest with the reasons.
    fn put(
        &mut self,
        resources: Vec<Resource>,
        made: &mut usize,
    ) -> anyhow::Result<Vec<(Resource, String)>> {
        let mut refused = Vec::new();
        for mut one in resources {
            if let Some(resource) = one.value.as_object_mut() {
                // The Admin API sets them itself.
                TIMES.iter().for_each(|time| drop(resource.shift_remove(*time)));
            }
            match self.change(Method::PUT, &format!("/apisix/admin{}", one.key), &one.value)? {
                None => *made += 1,
                Some(why) => refused.push((one, why)),
            }
        }
        Ok(refused)
    }

    fn delete(&mut self, keys: &[Key], made: &mut usize) -> anyhow::Result<()> {
        for key in keys {
            let path = format!("/apisix/admin{key}?force=true");
            if let Some(why) = self.change(Method::DELETE, &path, &Value::Null)? {
                bail!("DELETE {path} was refused: {why}");
            }
            *made += 1;
        }
        Ok(())
    }

    /// Takes away what no other may have from a resource that is about to be written anew.
    fn let_go(&mut self, one: &Resource, rules: &Rules) -> anyhow::Result<()> {
        let path = format!("/apisix/admin{}", one.key);
        let refusal = if one.key.kind == Kind::Credentials {
            self.change(Method::DELETE, &path, &Value::Null)?
        } else {
            let mut value = one.value.clone();
            if let Some(plugins) = value.get_mut("plugins").and_then(Value::as_object_mut) {
                let unique = unique_keys(&rules.catalog, plugins);
                let names: Vec<String> = unique.iter().map(|key| key.0.to_owned()).collect();
                names.iter().for_each(|name| drop(plugins.shift_remove(name)));
            }
            self.change(Method::PUT, &path, &value)?
        };
        match refusal {
            Some(why) => bail!("{path} was refused: {why}"),
            None => Ok(()),
        }
    }

    /// One change; the reason, where the gateway does not take it as things are.
    fn change(
        &mut self,
        method: Method,
        path: &str,
        value: &Value,
    ) -> anyhow::Result<Option<String>> {
        let body = if value.is_null() { String::new() } else { value.to_string() };
        let (status, answer) = self.call(method.clone(), path, body)?;
        // What belongs to another resource goes with it.
        let went_before = method == Method::DELETE && status == StatusCode::NOT_FOUND;
        if status.is_success() || went_before {
            return Ok(None);
        }
        if status == StatusCode::BAD_REQUEST {
            return Ok(Some(told(&answer)));
        }
        bail!("{method} {path} was answered {status}: {}", told(&answer))
    }
}

pub(super) fn is_consumers(kind: Kind) -> bool {
    matches!(kind, Kind::Consumers | Kind::Credentials)
}

/// One of those that wait for each other: each is refused for a key that the next one has.
fn in_a_ring(refused: &[(Resource, String)]) -> Option<usize> {
    let waits_for = |why: &str| {
        let holder = why.split_once(" found with ")?.1;
        refused.iter().position(|(one, _)| is_consumers(one.key.kind) && who(&one.key) == holder)
    };
    let next: Vec<Option<usize>> = refused.iter().map(|(_, why)| waits_for(why)).collect();
    (0..next.len()).find(|&start| {
        let mut at = next[start];
        for _ in 0..next.len() {
            match at {
                Some(one) if one == start => return true,
                Some(one) => at = next[one],
                None => return false,
            }
        }
        false
    })
}

/// None of these can be written, and what else there was to write is.
fn stuck(refused: &[(Resource, String)]) -> anyhow::Error {
    let reasons: Vec<String> =
        refused.iter().map(|(one, why)| format!("{}: {why}", one.key)).collect();
    anyhow!("the gateway refuses{}", listed(&reasons))
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<http1::SendRequest<Body>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The text of an error.
fn told(body: &[u8]) -> String {
    let value: Option<Value> = serde_json::from_slice(body).ok();
    let text = value
        .as_ref()
        .and_then(|value| value.get("error_msg").or_else(|| value.get("description"))?.as_str());
    match text {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(body).chars().take(TEXT_SHOWN_MAX).collect(),
    }
}

/// How much of an answer that is no JSON is repeated.
const TEXT_SHOWN_MAX: usize = 200;
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long one call of the Admin API may take.
const CALL_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluicegate_model::resource::Key;

    use super::*;

    #[test]
    fn those_that_wait_for_each_other_are_a_ring() {
        let consumer = |id: &str| Key::new(Kind::Consumers, id);
        let credential = Key::parse("/consumers/c/credentials/d").unwrap();
        let held_by = |who: &str| format!("duplicate key of plugin key-auth found with {who}");
        for (refused, ring) in [
            (vec![(consumer("a"), held_by("consumer: b"))], None),
            (vec![(consumer("a"), "wrong type".to_owned())], None),
            // a waits for b and c, who have a ring of their own.
            (
                vec![
                    (consumer("a"), held_by("consumer: b")),
                    (consumer("b"), held_by("credential: d of consumer: c")),
                    (credential, held_by("consumer: b")),
                ],
                Some(1),
            ),
            (
                vec![
                    (consumer("a"), held_by("consumer: b")),
                    (consumer("b"), held_by("consumer: gone")),
                ],
                None,
            ),
        ] {
            let refused: Vec<_> = refused
                .into_iter()
                .map(|(key, why)| (Resource::new(key, json!({})), why))
                .collect();
            assert_eq!(in_a_ring(&refused), ring, "{refused:?}");
        }
    }
}
