//! Where resources are exported from and imported to: a store, or the gateway that has it open.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, test_kill_process};
use sluicegate_config::{Config, ConfigProvider};
use sluicegate_model::resource::Key;
use sluicegate_store::{Bulk, BulkError, EtcdStore, Store, StoreError};
use tokio::runtime::Runtime;

use super::api::Api;
use super::resources::{Resource, Resources, Rules, TIMES, with_id};
use super::{Plan, Where};
use crate::boot;
use crate::cli::Place;
use crate::stores::{self, Opened};
/// Where resources are.
pub(super) enum Side {
    /// The Admin API of the gateway that runs.
    Api(Api),
    /// A store that this process opened.
    Store { runtime: Runtime, store: Arc<dyn Store>, _lock: Option<std::fs::File> },
}

impl Side {
    pub(super) fn open(place: &Where, config: &Config) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("a thread could not be started")?;
        if !place.etcd.is_empty() {
            let mut options = stores::etcd(config, &place.place);
            options.prefix.clone_from(&place.etcd_prefix);
            // config.yaml's are for config.yaml's hosts.
            (options.hosts, options.user, options.password) = etcd_hosts(&place.etcd)?;
            return Self::etcd(runtime, options);
        }
        if matches!(config.deployment.config_provider, ConfigProvider::Yaml | ConfigProvider::Json)
        {
            bail!(
                "the configuration of this gateway is a file already: conf/apisix.yaml, conf/apisix.json or what was sent to /apisix/admin/configs"
            );
        }
        if config.apisix.enable_admin && (place.admin.is_some() || runs(&place.place)) {
            return Api::connect(runtime, place, config).map(Self::Api);
        }
        if config.deployment.config_provider == ConfigProvider::Etcd {
            return Self::etcd(runtime, stores::etcd(config, &place.place));
        }
        let Opened { store, lock, .. } = stores::open(config, &place.place, &runtime)?;
        Ok(Self::Store { runtime, store, _lock: lock })
    }

    /// Without a copy on disk: that is the gateway's.
    fn etcd(runtime: Runtime, mut options: sluicegate_store::EtcdOptions) -> anyhow::Result<Self> {
        (options.copy, options.read_only) = (None, false);
        let store = runtime.block_on(EtcdStore::open(options))?;
        Ok(Self::Store { runtime, store: Arc::new(store), _lock: None })
    }

    /// Everything, as it is stored.
    pub(super) fn all(&mut self) -> anyhow::Result<Resources> {
        match self {
            Self::Api(api) => api.all(),
            Self::Store { runtime, store, .. } => {
                let listing = runtime.block_on(store.list("/"))?;
                let mut found = Resources::new();
                for entry in listing.entries {
                    let Some(key) = Key::parse(&entry.key) else { continue };
                    let value = serde_json::from_slice(&entry.value)
                        .with_context(|| format!("{} holds no JSON", entry.key))?;
                    found.insert(entry.key.to_string(), Resource::new(key, value));
                }
                Ok(found)
            }
        }
    }

    pub(super) fn apply(&mut self, plan: Plan, rules: &Rules) -> anyhow::Result<()> {
        match self {
            Self::Api(api) => api.apply(plan, rules),
            Self::Store { runtime, store, .. } => {
                let mut changes: Vec<Bulk> = Vec::new();
                for mut one in plan.created.into_iter().chain(plan.changed) {
                    rules.seal(&mut one);
                    let mut value = with_id(&one);
                    if one.key.kind.has_times() && value.get("create_time").is_none() {
                        TIMES.iter().for_each(|time| value[*time] = boot::unix_now().into());
                    }
                    let value = value.to_string().into_bytes().into();
                    changes.push((one.key.to_string().into(), Some(value)));
                }
                changes.extend(plan.deleted.iter().map(|key| (key.to_string().into(), None)));
                let total = changes.len();
                runtime.block_on(store.write_all(changes)).map_err(|BulkError { made, error }| {
                    let made = match (made, &error) {
                        (0, StoreError::OutcomeUnknown { .. } | StoreError::Write { .. }) => {
                            "it is not certain that nothing was changed".to_owned()
                        }
                        (0, _) => "nothing was changed".to_owned(),
                        (made, StoreError::OutcomeUnknown { .. }) => format!(
                            "{made} of {total} changes were made, maybe some more: run it again"
                        ),
                        (made, _) => format!("{made} of {total} changes were made: run it again"),
                    };
                    anyhow::Error::new(error).context(format!("the import stopped, {made}"))
                })
            }
        }
    }
}

/// The hosts of `--etcd` without what they were given to authenticate with, and that.
fn etcd_hosts(urls: &[String]) -> anyhow::Result<(Vec<String>, Option<String>, Option<String>)> {
    let mut hosts = Vec::new();
    let mut given: Option<(String, String)> = None;
    for url in urls {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let Some((own, _)) = authority.rsplit_once('@') else {
            hosts.push(url.clone());
            continue;
        };
        // The URL itself would show the password.
        let host = format!("{scheme}://{}", &rest[own.len() + 1..]);
        let own = own
            .split_once(':')
            .and_then(|(user, password)| Some((unescaped(user)?, unescaped(password)?)))
            .with_context(|| format!("--etcd: before the @ of {host} stands no USER:PASSWORD"))?;
        if given.as_ref().is_some_and(|given| *given != own) {
            bail!("--etcd: the hosts of one etcd have one user and password, {host} has another");
        }
        given = Some(own);
        hosts.push(host);
    }
    let (user, password) = given.unzip();
    Ok((hosts, user, password))
}

/// A part of a URL with its `%XX` decoded.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = digits.iter().map(|digit| char::from(*digit).to_digit(16));
        let byte = digits.into_iter().try_fold(0, |byte, digit| Some(byte * 16 + digit?))?;
        bytes.push(u8::try_from(byte).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// Does the gateway of this folder run?
fn runs(place: &Place) -> bool {
    let pid = std::fs::read_to_string(place.pid_file());
    let pid = pid.ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_gets_the_user_of_its_url_and_no_other() {
        let good = |hosts: &[&str], user: Option<&str>, password: Option<&str>| {
            let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
            Ok((hosts, user.map(str::to_owned), password.map(str::to_owned)))
        };
        for (urls, expected) in [
            (
                &["http://h:1", "https://i/a@b:c"][..],
                good(&["http://h:1", "https://i/a@b:c"], None, None),
            ),
            (&["https://u:p@h:1"], good(&["https://h:1"], Some("u"), Some("p"))),
            (
                &["http://u%40x:a:%2fb@@[::1]:1/"],
                good(&["http://[::1]:1/"], Some("u@x"), Some("a:/b@")),
            ),
            (
                &["http://u:p@h:1", "http://i:1"],
                good(&["http://h:1", "http://i:1"], Some("u"), Some("p")),
            ),
            (
                &["http://u:p@h:1", "http://u:q@i:1"],
                Err(
                    "--etcd: the hosts of one etcd have one user and password, http://i:1 has another",
                ),
            ),
            (
                &["http://secret@h:1"],
                Err("--etcd: before the @ of http://h:1 stands no USER:PASSWORD"),
            ),
            (
                &["http://u:a%2@h:1"],
                Err("--etcd: before the @ of http://h:1 stands no USER:PASSWORD"),
            ),
            (
                &["http://u:%ff@h:1"],
                Err("--etcd: before the @ of http://h:1 stands no USER:PASSWORD"),
            ),
        ] {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            let found = etcd_hosts(&urls).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{urls:?}");
        }
    }
}
