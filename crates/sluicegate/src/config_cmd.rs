//! `sluicegate config export` and `import`: all resources as one file, in APISIX's standalone form.
//!
//! While a gateway runs it is asked through its Admin API; otherwise the store is opened, and with
//! `--etcd` an etcd directly. Secrets are exported as they are stored (encrypted, where there is a
//! keyring) unless `--decrypt` is given; an import opens them with the keyring of config.yaml, and
//! stores them encrypted by it. An import checks everything before it changes anything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use clap::{Args, Subcommand};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, test_kill_process};
use serde_json::{Map, Value};
use sluicegate_admin::NO_STREAMS;
use sluicegate_admin::configs::{check_declared, declaration};
use sluicegate_config::{AdminRole, Config, ConfigProvider};
use sluicegate_model::Kind;
use sluicegate_model::check::references;
use sluicegate_model::encrypt::{Keyring, each_private_key};
use sluicegate_model::plugin::{Catalog, unique_keys};
use sluicegate_model::resource::Key;
use sluicegate_store::file::{FILE_BYTES_MAX, Format, Item, Variables, items, parse};
use sluicegate_store::{Bulk, BulkError, EtcdStore, Store, StoreError, yaml};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::admin_tls;
use crate::boot::{self, Certificates};
use crate::cli::Place;
use crate::settings;
use crate::stores::{self, Opened};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write all resources to a file (YAML, or JSON by its name); `-` is the standard output
    Export(Export),
    /// Check a file of resources, then store what it holds; `-` is the standard input
    Import(Import),
}

#[derive(Args)]
pub(crate) struct Export {
    /// The file; a name that ends with .json makes it JSON
    file: PathBuf,
    /// Write secrets and private keys in the clear
    #[arg(long)]
    decrypt: bool,
    #[command(flatten)]
    from: Where,
}

#[derive(Args)]
pub(crate) struct Import {
    /// The file; a name that ends with .json means JSON
    file: PathBuf,
    /// Delete resources that are not in the file
    #[arg(long)]
    replace: bool,
    /// Check the file and say what would change, without changing it
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    to: Where,
}

/// Which configuration is meant.
#[derive(Args)]
struct Where {
    #[command(flatten)]
    place: Place,
    /// An etcd instead of the gateway's store; may be given several times. A user and a password
    /// stand in the URL (https://USER:PASSWORD@HOST:PORT): those of config.yaml are not sent there
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// The prefix of keys in that etcd
    #[arg(long, value_name = "PREFIX", default_value = "/apisix", requires = "etcd")]
    etcd_prefix: String,
    /// Address of the running gateway's Admin API [default: as in config.yaml]
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "etcd")]
    admin: Option<SocketAddr>,
    /// The certificate to show to an Admin API that asks for one (admin_ssl_ca_cert): a PEM file
    #[arg(long, value_name = "FILE", requires = "admin_cert_key", conflicts_with = "etcd")]
    admin_cert: Option<PathBuf>,
    /// The private key of that certificate: a PEM file
    #[arg(long, value_name = "FILE", requires = "admin_cert")]
    admin_cert_key: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Export(export) => export.run(),
        Command::Import(import) => import.run(),
    }
}

impl Export {
    fn run(&self) -> anyhow::Result<()> {
        let rules = Rules::load(&self.from.place)?;
        let mut side = Side::open(&self.from, &rules.config)?;
        let mut all = side.all()?;
        if matches!(side, Side::Api(_)) && rules.config.redact_secrets {
            eprintln!(
                "sluicegate: warning: sluicegate.admin.redact_secrets: the Admin API answers \"***\" for every secret, and so reads the file; stop the gateway to export what is stored"
            );
        }
        if self.decrypt {
            for resource in all.values_mut() {
                rules.open(resource);
            }
        }
        let hidden: Vec<_> = all.values().filter(|one| one.hides_its_key()).collect();
        for one in &hidden {
            eprintln!(
                "sluicegate: warning: {} is written without its private key: it is stored in the clear, and the Admin API never shows such keys; stop the gateway to export it",
                one.key
            );
        }
        let format = format_of(&self.file);
        if let (Format::Json, Some(one)) = (format, all.values().find(|one| one.has_variable())) {
            bail!(
                "{}: a text in it reads ${{{{NAME}}}}, which an import from JSON would fill in from the environment, and JSON has no way to say that it must not: export to YAML",
                one.key
            );
        }
        let count = all.len();
        let entries = all.into_iter().map(|(key, one)| (key, one.value)).collect::<Vec<_>>();
        let whole = declaration(entries.iter().map(|(key, value)| (key.as_str(), value.clone())));
        let text = match format {
            Format::Json => format!("{:#}\n", Value::Object(whole)),
            Format::Yaml if whole.is_empty() => "#END\n".to_owned(),
            Format::Yaml => format!("{}#END\n", yaml::write(&Value::Object(whole))),
        };
        if self.file == Path::new("-") {
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(());
        }
        write_file(&self.file, &text)
            .with_context(|| format!("{} cannot be written", self.file.display()))?;
        println!("exported {count} resources to {}", self.file.display());
        Ok(())
    }
}

impl Import {
    fn run(&self) -> anyhow::Result<()> {
        let rules = Rules::load(&self.to.place)?;
        let wanted = rules.read(&self.file)?;
        let mut side = Side::open(&self.to, &rules.config)?;
        let mut found = side.all()?;
        for resource in found.values_mut() {
            rules.open(resource);
        }
        rules.check(&wanted, if self.replace { None } else { Some(&found) })?;

        let plan = Plan::new(wanted, &found, self.replace);
        let told = plan.told();
        if self.dry_run {
            println!("{} would be: {told}", self.file.display());
            return Ok(());
        }
        side.apply(plan, &rules)?;
        println!("imported {}: {told}", self.file.display());
        Ok(())
    }
}

/// A resource outside of a store, its id in its key.
#[derive(Debug, Clone)]
struct Resource {
    key: Key,
    value: Value,
}

impl Resource {
    fn new(key: Key, mut value: Value) -> Self {
        if let Some(resource) = value.as_object_mut() {
            resource.shift_remove("id");
        }
        Self { key, value }
    }

    /// Equal but for what a store adds.
    fn says_the_same(&self, other: &Self) -> bool {
        let plain = |one: &Self| {
            let mut value = one.value.clone();
            if let Some(resource) = value.as_object_mut() {
                TIMES.iter().for_each(|time| drop(resource.shift_remove(*time)));
            }
            value
        };
        plain(self) == plain(other)
    }

    /// Would a reader of JSON fill something in?
    fn has_variable(&self) -> bool {
        let text = self.value.to_string();
        if !text.contains("${{") {
            return false;
        }
        let is_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_asked);
        let variables: Variables = Box::new(move |_| {
            asked.store(true, Ordering::Relaxed);
            None
        });
        let read = parse(text.as_bytes(), Format::Json, &variables);
        read.is_err() || is_asked.load(Ordering::Relaxed)
    }

    fn hides_its_key(&self) -> bool {
        let of_tls = |tls: &str| {
            let tls = self.value.pointer(tls);
            tls.is_some_and(|tls| {
                tls.get("client_cert").is_some() && tls.get("client_key").is_none()
            })
        };
        match self.key.kind {
            Kind::Ssls => self.value.get("key").is_none(),
            _ => of_tls("/tls") || of_tls("/upstream/tls"),
        }
    }
}

type Resources = BTreeMap<String, Resource>;

/// What resources are held against, from config.yaml.
struct Rules {
    config: Config,
    catalog: Catalog,
    keyring: Keyring,
}

impl Rules {
    fn load(place: &Place) -> anyhow::Result<Self> {
        let path = place.config();
        if !path.exists() {
            bail!("there is no {}: give its folder with -p", path.display());
        }
        let (config, _) = boot::load(&path)?;
        let catalog = boot::enabled(&config, &Default::default()).catalog();
        let keyring = settings::keyring(&config);
        Ok(Self { config, catalog, keyring })
    }

    /// Opens what is encrypted.
    fn open(&self, resource: &mut Resource) {
        self.catalog.decrypt_resource(&self.keyring, resource.key.kind, &mut resource.value);
    }

    /// Encrypts what is secret, as the Admin API does.
    fn seal(&self, resource: &mut Resource) {
        let (kind, value) = (resource.key.kind, &mut resource.value);
        if self.config.apisix.data_encryption.enable_encrypt_fields {
            self.catalog
                .each_secret(kind, value, |conf, paths| self.keyring.encrypt_paths(conf, paths));
        }
        each_private_key(kind, value, |key| *key = self.keyring.encrypt_pem(key));
    }

    /// Reads a file; everything wrong with it comes at once.
    fn read(&self, file: &Path) -> anyhow::Result<Resources> {
        let mut bytes = Vec::new();
        let limit = FILE_BYTES_MAX as u64 + 1;
        match file == Path::new("-") {
            true => std::io::stdin().take(limit).read_to_end(&mut bytes),
            false => std::fs::File::open(file).and_then(|f| f.take(limit).read_to_end(&mut bytes)),
        }
        .with_context(|| format!("{} cannot be read", file.display()))?;
        let variables: Variables = Box::new(|name: &str| std::env::var(name).ok());
        let mut root = parse(&bytes, format_of(file), &variables)
            .map_err(|error| anyhow!("{}: {error}", file.display()))?;
        let mut problems = Vec::new();
        if root.remove("plugins").is_some() {
            eprintln!(
                "sluicegate: warning: the file's list of plugins is left out: it stands in config.yaml"
            );
        }
        let (list, refused) = items(&mut root);
        problems.extend(refused.into_iter().map(|one| format!("{}: {}", one.place, one.reason)));
        problems.extend(
            root.keys()
                .filter(|key| !key.ends_with("_conf_version"))
                .map(|key| format!("{key}: there is no such kind of resource")),
        );
        let mut found = Resources::new();
        for Item { key, value, .. } in list {
            let name = key.to_string();
            if found.insert(name.clone(), Resource::new(key, value)).is_some() {
                problems.push(format!("{name}: it is there twice"));
            }
        }
        for (name, one) in &mut found {
            let sealed = self.catalog.sealed_secrets(&self.keyring, one.key.kind, &one.value);
            if !sealed.is_empty() {
                problems.push(format!(
                    "{name}: {} does not open with apisix.data_encryption.keyring",
                    sealed.join(", ")
                ));
            }
            self.open(one);
        }
        refuse(file, problems)?;
        Ok(found)
    }

    /// Checks every resource, and that what it names is there: in the file or, when that is merged
    /// into it, in the store.
    fn check(&self, wanted: &Resources, found: Option<&Resources>) -> anyhow::Result<()> {
        let outside = Certificates(self.keyring.clone());
        let there = |key: &Key| {
            let key = key.to_string();
            wanted.get(&key).or_else(|| found?.get(&key))
        };
        let owner = |one: &Resource| {
            let owner = one.key.kind.parent().zip(one.key.parent.as_deref());
            owner.map(|(kind, id)| Key::new(kind, id))
        };
        let mut problems = Vec::new();
        for (name, one) in wanted {
            let value = with_id(one);
            let checked = check_declared(&self.catalog, &self.keyring, &outside, &one.key, &value);
            if let Err(why) = checked {
                problems.push(format!("{name}: {why}"));
                continue;
            }
            if one.key.kind == Kind::Consumers && one.value["username"] != *one.key.id {
                problems.push(format!("{name}: wrong username"));
            }
            if one.key.kind == Kind::StreamRoutes && !self.config.apisix.stream_proxy {
                problems.push(format!("{name}: {NO_STREAMS}"));
            }
            for reference in references(one.key.kind, &one.value) {
                let checked = match there(&Key::new(reference.kind, reference.id.as_str())) {
                    Some(named) => reference.check(&named.value),
                    None => Err(reference.missing()),
                };
                problems.extend(checked.err().map(|why| format!("{name}: {why}")));
            }
            if let Some(owner) = owner(one).filter(|owner| there(owner).is_none()) {
                problems.push(format!(
                    "{name}: there is no {} {}",
                    owner.kind.singular(),
                    owner.id
                ));
            }
        }
        let kept = || found.into_iter().flatten().filter(|(name, _)| !wanted.contains_key(*name));
        let mut keys: HashMap<(&str, &str, &str), Vec<&Key>> = HashMap::new();
        for (name, one) in kept().chain(wanted) {
            let plugins = one.value.get("plugins").and_then(Value::as_object);
            // A credential that its consumer left behind is nobody's.
            let left = owner(one).is_some_and(|owner| there(&owner).is_none());
            if let Some(plugins) = plugins.filter(|_| is_consumers(one.key.kind) && !left) {
                for (plugin, member, text) in unique_keys(&self.catalog, plugins) {
                    let others = keys.entry((plugin, member, text)).or_default();
                    if let Some(other) = others.iter().find(|other| !may_share(other, &one.key))
                        && wanted.contains_key(name)
                    {
                        problems.push(format!(
                            "{name}: duplicate {member} of plugin {plugin} found with {}",
                            who(other)
                        ));
                    }
                    others.push(&one.key);
                }
            }
        }
        let mut rules: HashMap<&str, &str> = HashMap::new();
        for (name, one) in wanted.iter().chain(kept()) {
            let plugins = one.value.get("plugins").and_then(Value::as_object);
            let of_rule = plugins.filter(|_| one.key.kind == Kind::GlobalRules);
            for plugin in of_rule.into_iter().flat_map(Map::keys) {
                if let Some(other) = rules.insert(plugin, name) {
                    problems.push(format!("plugin '{plugin}' stands in {other} and in {name}"));
                }
            }
        }
        refuse(Path::new("the configuration"), problems)
    }
}

/// A consumer may be found by what one of its own credentials is found by; no two others may.
fn may_share(one: &Key, other: &Key) -> bool {
    let own = |consumer: &Key, credential: &Key| {
        consumer.kind == Kind::Consumers && credential.parent.as_deref() == Some(&*consumer.id)
    };
    own(one, other) || own(other, one)
}

/// How the Admin API calls a consumer or credential.
fn who(key: &Key) -> String {
    match &key.parent {
        Some(consumer) => format!("credential: {} of consumer: {consumer}", key.id),
        None => format!("consumer: {}", key.id),
    }
}

fn refuse(file: &Path, problems: Vec<String>) -> anyhow::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(PROBLEMS_SHOWN_MAX);
    let mut text = problems
        .iter()
        .take(PROBLEMS_SHOWN_MAX)
        .fold(String::new(), |text, problem| text + "\n  " + problem);
    if more > 0 {
        text += &format!("\n  and {more} more");
    }
    bail!("{} is refused, nothing was changed:{text}", file.display())
}

/// What an import does.
struct Plan {
    created: Vec<Resource>,
    changed: Vec<Resource>,
    deleted: Vec<Key>,
    same: usize,
}

impl Plan {
    fn new(wanted: Resources, found: &Resources, replace: bool) -> Self {
        let is_left = |one: &Resource| {
            let owner = one.key.kind.parent().zip(one.key.parent.as_deref());
            owner.is_some_and(|(kind, id)| !found.contains_key(&Key::new(kind, id).to_string()))
        };
        let mut plan =
            Self { created: Vec::new(), changed: Vec::new(), deleted: Vec::new(), same: 0 };
        if replace {
            let gone = found.iter().filter(|(name, _)| !wanted.contains_key(*name));
            plan.deleted = gone.map(|(_, one)| one.key.clone()).collect();
        }
        for (name, one) in wanted {
            match found.get(&name) {
                None => plan.created.push(one),
                // What an owner left behind goes when the owner comes again.
                Some(old) if old.says_the_same(&one) && !is_left(old) => plan.same += 1,
                Some(_) => plan.changed.push(one),
            }
        }
        // What is named comes before what names it, and goes after it.
        plan.created.sort_by_key(|one| rank(one.key.kind));
        plan.changed.sort_by_key(|one| rank(one.key.kind));
        plan.deleted.sort_by_key(|key| std::cmp::Reverse(rank(key.kind)));
        plan
    }

    fn told(&self) -> String {
        format!(
            "{} created, {} changed, {} unchanged, {} deleted",
            self.created.len(),
            self.changed.len(),
            self.same,
            self.deleted.len()
        )
    }
}

fn rank(kind: Kind) -> usize {
    let order = [
        Kind::Secrets,
        Kind::Ssls,
        Kind::Protos,
        Kind::PluginMetadata,
        Kind::Upstreams,
        Kind::Services,
        Kind::GraphqlCostDecorations,
        Kind::PluginConfigs,
        Kind::ConsumerGroups,
        Kind::Consumers,
        Kind::Credentials,
        Kind::GlobalRules,
    ];
    order.iter().position(|one| *one == kind).unwrap_or(order.len())
}

/// Where resources are.
enum Side {
    /// The Admin API of the gateway that runs.
    Api(Api),
    /// A store that this process opened.
    Store { runtime: Runtime, store: Arc<dyn Store>, _lock: Option<std::fs::File> },
}

impl Side {
    fn open(place: &Where, config: &Config) -> anyhow::Result<Self> {
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
    fn all(&mut self) -> anyhow::Result<Resources> {
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

    fn apply(&mut self, plan: Plan, rules: &Rules) -> anyhow::Result<()> {
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

/// The value as the Admin API stores it.
fn with_id(one: &Resource) -> Value {
    let mut value = one.value.clone();
    if one.key.kind != Kind::Consumers {
        value["id"] = one.key.id.as_str().into();
    }
    value
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

/// A connection to the Admin API.
struct Api {
    runtime: Runtime,
    sender: http1::SendRequest<Body>,
    addr: SocketAddr,
    key: String,
}

impl Api {
    fn connect(runtime: Runtime, at: &Where, config: &Config) -> anyhow::Result<Self> {
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

    fn all(&mut self) -> anyhow::Result<Resources> {
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
    fn apply(&mut self, plan: Plan, rules: &Rules) -> anyhow::Result<()> {
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

fn is_consumers(kind: Kind) -> bool {
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
    let mut text = "the gateway refuses".to_owned();
    for (one, why) in refused.iter().take(PROBLEMS_SHOWN_MAX) {
        text += &format!("\n  {}: {why}", one.key);
    }
    if let Some(more) = refused.len().checked_sub(PROBLEMS_SHOWN_MAX).filter(|more| *more > 0) {
        text += &format!("\n  and {more} more");
    }
    anyhow!(text)
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

fn format_of(file: &Path) -> Format {
    match file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        true => Format::Json,
        false => Format::Yaml,
    }
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    // Its name is nobody's guess, its mode 0600.
    let mut file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

const TIMES: [&str; 2] = ["create_time", "update_time"];
/// Problems that an error lists.
const PROBLEMS_SHOWN_MAX: usize = 50;
/// How much of an answer that is no JSON is repeated.
const TEXT_SHOWN_MAX: usize = 200;
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long one call of the Admin API may take.
const CALL_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_is_written_through_nothing_that_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let [file, other, bait] =
            ["all.yaml", "other", "all.yaml.new"].map(|n| folder.path().join(n));
        std::fs::write(&other, "untouched").unwrap();
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o666)).unwrap();
        symlink(&other, &bait).unwrap();
        // The second time, the file itself is a link.
        for _ in 0..2 {
            write_file(&file, "secret").unwrap();
            let found = std::fs::symlink_metadata(&file).unwrap();
            assert!(found.is_file());
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "secret");
            assert_eq!(std::fs::read_to_string(&other).unwrap(), "untouched");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
            std::fs::remove_file(&file).unwrap();
            symlink(&other, &file).unwrap();
        }
        assert!(write_file(&folder.path().join("none/all.yaml"), "").is_err());
    }

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

    #[test]
    fn a_variable_is_what_json_would_fill_in() {
        for (value, expected) in [
            (json!({"desc": "${{HOME}}"}), true),
            (json!({"labels": [{"a ${{ NO:=x }}": 1}]}), true),
            (json!({"desc": "${{-}} {{HOME}} $HOME ${{HOME}"}), false),
            (json!({"${{HOME": "}}"}), false),
        ] {
            let key = Key::new(Kind::Routes, "r");
            assert_eq!(Resource::new(key, value.clone()).has_variable(), expected, "{value}");
        }
    }
}
