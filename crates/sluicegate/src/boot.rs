//! Putting the rooms together. The only place that knows all of them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use sluicegate_admin::configs::Declared;
use sluicegate_admin::control::ControlState;
use sluicegate_admin::status::StatusState;
use sluicegate_admin::{AdminState, Applied};
use sluicegate_config::{Config, ConfigProvider, TrustedCertificate, Warning};
use sluicegate_gateway::client::{Egress, TlsClients};
use sluicegate_gateway::core::Shared;
use sluicegate_gateway::listen::{Gateway, Listeners};
use sluicegate_gateway::plugin::Registry;
use sluicegate_gateway::snapshot::{Compiler, Deps, Report};
use sluicegate_gateway::upstream::discovery::Services;
use sluicegate_gateway::upstream::health::HealthChecks;
use sluicegate_gateway::upstream::resolve::Resolver;
use sluicegate_gateway::upstream::{Known, UpstreamDeps};
use sluicegate_model::check::Outside;
use sluicegate_model::encrypt::Keyring;
use sluicegate_model::plugin::Catalog;
use sluicegate_store::{Event, Store};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Mutex, watch};
use tracing::{error, info, warn};

use crate::cli::Place;
use crate::doors::{Door, DoorTls, Doors};
use crate::follow::{Decoder, Follower, PLUGINS_KEY, gone, managers_first, put, take_plugins};
use crate::judge::{DeclaredPlugins, FileJudge, Source};
use crate::references::{CHANGE_WAIT, References, START_WAIT};
use crate::signals::Signals;
use crate::status::{Inside, Staleness, Unreadable, look, status};
use crate::stores::{self, Opened};
use crate::{error_log, explain, settings};

/// A gateway that runs.
pub(crate) struct Running {
    /// Everything that is not a request runs here.
    pub(crate) runtime: Runtime,
    /// The static configuration in force.
    pub(crate) config: Config,
    /// The one the gateway started with: what needs a restart is as it says.
    started: Config,
    place: Place,
    gateway: Gateway,
    admin: Arc<AdminState>,
    /// Where the Admin API listens.
    pub(crate) admin_addr: Option<SocketAddr>,
    admin_tls: Option<DoorTls>,
    reloader: Reloader,
    source: Option<Source>,
    references: Arc<References>,
    upstream_deps: UpstreamDeps,
    _pid: PidFile,
    _lock: Option<std::fs::File>,
}

impl Running {
    /// Starts a gateway: reads (or makes) its configuration, loads its resources, then listens, to
    /// signals, too: whoever can reach it can already have it reload.
    pub(crate) fn start(place: &Place) -> anyhow::Result<(Self, Signals)> {
        let path = place.config();
        let made = !place.names_config()
            && Config::create_if_missing(&path, &Config::default_text(&mut random))
                .with_context(|| format!("{} is missing and cannot be made", path.display()))?;
        if made {
            eprintln!("sluicegate: made {} with its defaults", path.display());
        }
        let (mut config, mut warnings) = load(&path)?;
        settings::place_caches(&mut config, place);
        warnings.extend(config.fill_admin_keys(&path, &mut random));
        let log = &config.nginx_config;
        error_log::init(&log.error_log, log.error_log_level, |p| place.under(p))?;
        for warning in &warnings {
            eprintln!("sluicegate: warning: {warning}");
            warn!("{warning}");
        }
        raise_file_limit(config.nginx_config.worker_rlimit_nofile);
        let settings = settings::gateway(&config, place);
        settings::keep_instance_id(&settings.instance_id, &config, place);
        if let Some(log) = &settings.access_log {
            make_folder(&log.path)?;
        }
        let listeners = Listeners::bind(&settings).map_err(|error| {
            anyhow!("{error} (apisix.node_listen, apisix.ssl.listen, apisix.proxy_protocol)")
        })?;
        let doors = Doors::bind(&config, place)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONTROL_THREADS)
            .thread_name("control")
            .enable_all()
            .build()
            .context("the control threads could not be started")?;
        let inside = Arc::new(OnceLock::new());
        let status_addr = doors.status.as_ref().map(Door::addr).transpose()?;
        if let Some(door) = doors.status {
            let state =
                StatusState { look: look(inside.clone()), server: settings::admin(&config).server };
            door.open(&runtime, sluicegate_admin::status::router(Arc::new(state)))?;
        }
        let Opened { store, lock, source } = stores::open(&config, place, &runtime)?;
        // Behind the store: a second gateway of this folder ends there and leaves the first's.
        let pid = PidFile::write(place)?;

        let tls = Arc::new(tls_clients(&config, place)?);
        if let Some(why) = tls.roots_error() {
            warn!(
                why,
                "There are no root certificates: upstreams and functions cannot be verified; install ca-certificates or set apisix.ssl.ssl_trusted_certificate."
            );
        }
        let resolver = Resolver::new(runtime.handle().clone(), &settings::dns(&config));
        let egress = Egress::new(&settings::egress(&config), &resolver, &tls)
            .map_err(|why| anyhow!("sluicegate.egress_proxy: {why}"))?;
        let services = settings::dns_discovery(&config)
            .map(|discovery| Services::new(runtime.handle().clone(), &discovery))
            .transpose()
            .map_err(|why| anyhow!("discovery.dns: {why}"))?;
        let upstream_deps = UpstreamDeps {
            known: Arc::new(Known {
                health: match config.apisix.disable_upstream_healthcheck {
                    true => HealthChecks::off(),
                    false => HealthChecks::start(runtime.handle(), tls.clone()),
                },
                ..Known::default()
            }),
            resolver,
            services,
            egress,
            keepalive: settings::keepalive(&config),
            tls: tls.clone(),
            state: Arc::default(),
            background: runtime.handle().clone(),
        };
        let keyring = settings::keyring(&config);
        let certificates: Arc<dyn Outside + Send + Sync> = Arc::new(Certificates(keyring.clone()));
        let plugins = Arc::new(DeclaredPlugins::default());
        let catalog = Arc::new(ArcSwap::from_pointee(enabled(&config, &plugins).catalog()));
        // A file is read before anything is compiled: it may have a list of plugins of its own.
        if let Some(Source::File { store, path, format }) = &source {
            let (config, names, shown) = (config.clone(), plugins.clone(), catalog.clone());
            plugins.on_change(move || shown.store(Arc::new(enabled(&config, &names).catalog())));
            let judge = FileJudge {
                catalog: catalog.clone(),
                keyring: keyring.clone(),
                outside: certificates.clone(),
                plugins: plugins.clone(),
            };
            let variables = Box::new(|name: &str| std::env::var(name).ok());
            store.follow(path.clone(), *format, variables, judge)?;
        }
        // A data plane has the plugins that its control plane has, as in APISIX.
        let of_control_plane = (source.is_none()
            && config.deployment.config_provider == ConfigProvider::Etcd
            && !config.apisix.enable_admin)
            .then(|| plugins.clone());
        let (listing, changes) = runtime.block_on(store.snapshot_and_watch("/"))?;
        if let Some(plugins) = &of_control_plane
            && let Some(entry) = listing.entries.iter().find(|entry| *entry.key == *PLUGINS_KEY)
        {
            take_plugins(plugins, &entry.value);
        }
        let taken = plugins.names();
        let registry = enabled(&config, &plugins);
        catalog.store(Arc::new(registry.catalog()));
        let attrs = plugin_attr(&config, &registry);
        let references = References::start(&runtime, settings::secrets(&config), &upstream_deps);
        let mut compiler = Compiler::new(deps(&config, registry, &upstream_deps))
            .with_references(references.clone());
        let shared = Arc::new(Shared::new(settings, tls).map_err(|e| anyhow!(e))?);

        let revision = listing.revision;
        let unreadable = Arc::new(Unreadable::default());
        let decode = Decoder {
            catalog: catalog.clone(),
            keyring: keyring.clone(),
            plain: source.is_some(),
            unreadable: unreadable.clone(),
        };
        // Managers of secrets come before those who ask them. All is read piece by piece, so that
        // a large configuration is never in memory as a whole in every form it takes.
        let begun = Instant::now();
        let entries = managers_first(listing.entries);
        let initial = entries.chunks(START_PIECE).flat_map(|entries| {
            let events: Vec<Event> = entries.iter().cloned().map(put).collect();
            let wait = START_WAIT.saturating_sub(begun.elapsed());
            let prepared = references.prepare(decode.changes(&events), wait);
            references.resolve(runtime.block_on(prepared), false)
        });
        shared.publish(compiler.apply(initial));
        drop(entries);
        let reports = Arc::new(ArcSwap::new(compiler.reports()));
        let compiler = Arc::new(Mutex::new(compiler));
        let (served, serving) = watch::channel(revision);
        let read = Arc::new(AtomicU64::new(revision));
        let follow = Follower {
            compiler: compiler.clone(),
            shared: shared.clone(),
            decode: decode.clone(),
            read: read.clone(),
            served,
            store: store.clone(),
            reports: reports.clone(),
            references: references.clone(),
            of_control_plane,
        };
        let reloader = Reloader {
            plugins: plugins.clone(),
            catalog: catalog.clone(),
            compiler: compiler.clone(),
            shared: shared.clone(),
            reports: reports.clone(),
            attrs: Arc::new(ArcSwap::from_pointee(attrs)),
            store: store.clone(),
            decode,
            read,
            references: references.clone(),
            runtime: runtime.handle().clone(),
        };
        reloader.follow_declared(&config, &upstream_deps);
        if plugins.names() != taken {
            // A file has been changed since it was read.
            reloader.reload(&config, &upstream_deps);
        }
        runtime.spawn(follow.clone().follow_references());
        runtime.spawn(follow.run(changes));

        // Before anybody can ask for one: unheard, a signal would end the process.
        let signals = Signals::hear(&runtime).context("signals cannot be heard")?;
        let gateway = Gateway::start(shared, listeners)
            .context("the request threads could not be started")?;
        let reload = Arc::new(|| {
            // The same way a person takes: config.yaml is read again.
            let own = rustix::process::getpid();
            if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::HUP) {
                error!(%error, "Plugins could not be reloaded.");
            }
        });
        let mut admin = AdminState::new(
            settings::admin(&config),
            catalog.clone(),
            store.clone(),
            keyring.clone(),
            certificates,
            unix_now,
        )
        .applied(applied(serving))
        .reload_plugins(reload.clone());
        if let Some(Source::Api { store }) = &source {
            let declared = Declared::new(store.clone(), move |list| plugins.set(list));
            admin = admin.declared(declared);
        }
        let admin = Arc::new(admin);
        let admin_addr = doors.admin.as_ref().map(Door::addr).transpose()?;
        let control_addr = doors.control.as_ref().map(Door::addr).transpose()?;
        let admin_tls = doors.admin.as_ref().and_then(Door::tls);
        if let Some(door) = doors.admin {
            door.open(&runtime, sluicegate_admin::router(admin.clone()))?;
            let _entered = runtime.enter();
            admin.prepare();
        }
        let staleness = Arc::new(Staleness::default());
        runtime.spawn(staleness.clone().watch(store.clone()));
        let within = Inside {
            shared: gateway.shared.clone(),
            reports: reports.clone(),
            store: store.clone(),
            references: references.clone(),
            unreadable,
            staleness,
            plugin_state: upstream_deps.state.clone(),
        };
        if let Some(door) = doors.control {
            let state = ControlState {
                store,
                catalog,
                keyring: keyring.clone(),
                // What a file declares has no other key than its own.
                key_prefix: match &source {
                    Some(Source::File { .. }) => String::new(),
                    _ => settings::admin(&config).key_prefix,
                },
                server: settings::admin(&config).server,
                reload_plugins: Some(reload),
                status: Some(status(within.clone())),
                explain: Some(explain::explain(
                    upstream_deps.clone(),
                    reloader.attrs.clone(),
                    references.clone(),
                )),
                health: Some(health(upstream_deps.known.clone())),
            };
            door.open(&runtime, sluicegate_admin::control::router(Arc::new(state)))?;
        }
        // Nobody else sets it.
        let _ = inside.set(within);
        let listening: Vec<String> = gateway.addrs.iter().map(|l| l.addr.to_string()).collect();
        info!(
            data = listening.join(","),
            admin = ?admin_addr,
            control = ?control_addr,
            status = ?status_addr,
            revision,
            "Sluicegate serves."
        );
        crate::memory::give_back_start_code();
        let running = Self {
            runtime,
            started: config.clone(),
            config,
            place: place.clone(),
            gateway,
            admin,
            admin_addr,
            admin_tls,
            reloader,
            source,
            references,
            upstream_deps,
            _pid: pid,
            _lock: lock,
        };
        Ok((running, signals))
    }

    /// Reads config.yaml again. A file that is wrong changes nothing.
    pub(crate) fn reload(&mut self) {
        let path = self.place.config();
        let (mut config, mut warnings) = match load(&path) {
            Ok(loaded) => loaded,
            Err(error) => {
                error!(%error, "The configuration was not reloaded; the one before stays in force.");
                return;
            }
        };
        warnings.extend(config.fill_admin_keys(&path, &mut random));
        for warning in &warnings {
            warn!("{warning}");
        }
        let restart = Config::restart_needed(&self.started, &config);
        if !restart.is_empty() {
            warn!(
                keys = restart.join(", "),
                "These keys have changed and need a restart; their old values stay in force."
            );
        }
        // A cache is what it was when it was opened.
        config.apisix.proxy_cache.clone_from(&self.started.apisix.proxy_cache);
        let mut settings = settings::gateway(&config, &self.place);
        let before = self.gateway.shared.settings();
        // Listeners and threads stay as they are.
        settings.listen.clone_from(&before.listen);
        settings.workers = before.workers;
        if let Some(log) = &settings.access_log
            && let Err(error) = make_folder(&log.path)
        {
            error!("The access log has no folder: {error:#}");
        }
        if let Err(error) = self.gateway.shared.reload(settings) {
            error!(error, "The configuration was not reloaded; the one before stays in force.");
            return;
        }
        let log = &config.nginx_config;
        if let Err(error) =
            error_log::init(&log.error_log, log.error_log_level, |p| self.place.under(p))
        {
            error!(%error, "The error log stays where it was.");
        }
        if let Some(tls) = &self.admin_tls
            && let Err(error) = tls.reload(&config, &self.place)
        {
            error!("The Admin API keeps the certificate it had: {error:#}");
        }
        self.admin.settings.store(Arc::new(settings::admin(&config)));
        self.references.configure(settings::secrets(&config));
        self.upstream_deps.keepalive = settings::keepalive(&config);
        self.reloader.reload(&config, &self.upstream_deps);
        self.reloader.follow_declared(&config, &self.upstream_deps);
        if let Some(Source::File { store, .. }) = &self.source {
            // Its resources may be good under the new list of plugins, or no more.
            store.reread();
        }
        self.config = config;
        info!("The configuration was reloaded.");
    }

    /// Opens the log files again.
    pub(crate) fn reopen_logs(&self) {
        error_log::reopen();
        // The request threads open theirs when they see their settings anew.
        let settings = self.gateway.shared.settings();
        if let Err(error) = self.gateway.shared.reload((*settings).clone()) {
            error!(error, "The access log was not reopened.");
        }
    }

    /// Stops: no new connections, requests under way get `limit`.
    pub(crate) fn drain(self, limit: Duration) {
        info!(?limit, "Sluicegate stops; requests under way finish.");
        if !self.gateway.drain(limit) {
            warn!(?limit, "Some requests did not finish in time and were ended.");
        }
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }

    /// How long a graceful stop may take.
    pub(crate) fn drain_limit(&self) -> Duration {
        self.config.nginx_config.worker_shutdown_timeout
    }

    /// What listens where, in a line.
    pub(crate) fn told(&self) -> String {
        let addrs: Vec<String> = self.gateway.addrs.iter().map(|l| l.addr.to_string()).collect();
        let data = (!addrs.is_empty()).then(|| format!("serves on {}", addrs.join(", ")));
        let admin = self.admin_addr.map(|addr| format!("Admin API on {addr}"));
        data.into_iter().chain(admin).collect::<Vec<_>>().join("; ")
    }

    /// The data plane's addresses.
    pub(crate) fn addrs(&self) -> &[sluicegate_gateway::settings::Listen] {
        &self.gateway.addrs
    }
}

/// `sluicegate test`: reads the configuration and says what is wrong.
pub(crate) fn test(place: &Place) -> anyhow::Result<()> {
    for warning in check(place)? {
        eprintln!("sluicegate: warning: {warning}");
    }
    println!("{} is ok", place.config().display());
    Ok(())
}

/// Reads the configuration as `start` would, and its warnings.
pub(crate) fn check(place: &Place) -> anyhow::Result<Vec<Warning>> {
    let path = place.config();
    if !path.exists() {
        bail!(
            "there is no {}: give its folder with -p; `sluicegate start` makes one",
            path.display()
        );
    }
    let (config, warnings) = load(&path)?;
    tls_clients(&config, place)?;
    DoorTls::of(&config, place)?;
    Ok(warnings)
}

pub(crate) fn load(path: &Path) -> anyhow::Result<(Config, Vec<Warning>)> {
    let env = |name: &str| std::env::var(name).ok();
    let (config, mut warnings) = Config::load(path, &env)?;
    // Were it only warned about, functions would run without any of the limits that are named.
    sluicegate_plugins::check_lua(lua_limits(&config))
        .map_err(|why| anyhow!("{}: {why}", path.display()))?;
    let registry = sluicegate_plugins::registry();
    let names: Vec<&str> = registry.iter().map(|p| p.info.name).collect();
    warnings.extend(config.enabled_plugins(&names).1);
    Ok((config, warnings))
}

pub(crate) fn enabled(config: &Config, declared: &DeclaredPlugins) -> Registry {
    let registry = sluicegate_plugins::registry();
    registry.know_attrs(plugin_attr(config, &registry));
    if let Some(names) = declared.names() {
        return registry.only(&names);
    }
    let names: Vec<&str> = registry.iter().map(|p| p.info.name).collect();
    let enabled: Vec<String> =
        config.enabled_plugins(&names).0.into_iter().map(str::to_owned).collect();
    registry.only(&enabled)
}

/// The limits of Lua functions, as config.yaml has them.
fn lua_limits(config: &Config) -> &Value {
    config.plugin_attr.get("serverless").unwrap_or(&Value::Null)
}

fn deps(config: &Config, registry: Registry, upstream: &UpstreamDeps) -> Deps {
    let lua = lua_limits(config);
    let zones = &config.nginx_config.http.custom_lua_shared_dict;
    if let Err(why) = sluicegate_plugins::configure_lua(lua, zones) {
        warn!("Lua functions keep the limits they have: {why}.");
    }
    Deps {
        unknown_plugins: settings::unknown_plugins(config),
        plugin_attr: plugin_attr(config, &registry),
        registry,
        upstream: upstream.clone(),
        router: settings::router(config),
        workers: settings::workers(config),
    }
}

/// `plugin_attr` of config.yaml, as far as it is about plugins there are.
fn plugin_attr(config: &Config, registry: &Registry) -> Value {
    let attrs = registry.iter().filter_map(|p| {
        Some((p.info.name.to_owned(), settings::plugin_attr(config, p.info.name)?))
    });
    Value::Object(attrs.collect())
}

/// What the Control API shows of an upstream's nodes.
fn health(known: Arc<Known>) -> sluicegate_admin::control::Health {
    Arc::new(move |key| {
        let checker = known.health.look(key)?;
        Some(checker.targets().map(|target| target.show()).collect())
    })
}

fn tls_clients(config: &Config, place: &Place) -> anyhow::Result<TlsClients> {
    match &config.apisix.ssl.trusted_certificate {
        TrustedCertificate::System => Ok(TlsClients::new(None)),
        TrustedCertificate::File(path) => {
            let path = place.under(path);
            let pem = std::fs::read(&path).with_context(|| {
                format!("apisix.ssl.ssl_trusted_certificate: {} cannot be read", path.display())
            })?;
            let clients = TlsClients::new(Some(&pem));
            if clients.roots_error().is_some() {
                bail!(
                    "apisix.ssl.ssl_trusted_certificate: {} holds no certificate",
                    path.display()
                );
            }
            Ok(clients)
        }
    }
}

/// Waits until a revision is served, before the write that made it is answered.
fn applied(serving: watch::Receiver<u64>) -> Applied {
    Arc::new(move |revision| {
        let mut serving = serving.clone();
        Box::pin(async move {
            // An error means the gateway is going down.
            let _ = serving.wait_for(|served| *served >= revision).await;
        })
    })
}

/// Loads plugins anew: what they are shown and checked by, and everything compiled with them.
#[derive(Clone)]
struct Reloader {
    plugins: Arc<DeclaredPlugins>,
    catalog: Arc<ArcSwap<Catalog>>,
    compiler: Arc<Mutex<Compiler>>,
    shared: Arc<Shared>,
    reports: Arc<ArcSwap<Vec<Report>>>,
    /// `plugin_attr` of config.yaml.
    attrs: Arc<ArcSwap<Value>>,
    store: Arc<dyn Store>,
    decode: Decoder,
    /// See [`Follower::read`].
    read: Arc<AtomicU64>,
    references: Arc<References>,
    runtime: Handle,
}

impl Reloader {
    /// Blocks while everything is compiled; not for a thread that runs tasks.
    ///
    /// What a plugin's secrets are is known by those who know the plugin: everything is read from
    /// the store once more, with the new ones.
    fn reload(&self, config: &Config, upstream: &UpstreamDeps) {
        let registry = enabled(config, &self.plugins);
        self.catalog.store(Arc::new(registry.catalog()));
        self.attrs.store(Arc::new(plugin_attr(config, &registry)));
        let deps = deps(config, registry, upstream);
        let mut compiler = self.compiler.blocking_lock();
        let events = match self.runtime.block_on(self.store.list("/")) {
            Ok(listing) => {
                // Whoever holds changes up to here has decoded them with the plugins before.
                self.read.fetch_max(listing.revision, Ordering::AcqRel);
                let mut events = gone(&compiler, &self.references, &listing);
                events.extend(managers_first(listing.entries).into_iter().map(put));
                events
            }
            Err(error) => {
                error!(%error, "The store cannot be read; what was read before is loaded anew.");
                Vec::new()
            }
        };
        let begun = Instant::now();
        let changes = events.chunks(START_PIECE).flat_map(|events| {
            let wait = CHANGE_WAIT.saturating_sub(begun.elapsed());
            let prepared = self.references.prepare(self.decode.changes(events), wait);
            self.references.resolve(self.runtime.block_on(prepared), false)
        });
        self.shared.publish(compiler.rebuild(deps, changes));
        self.reports.store(compiler.reports());
    }

    /// Does so whenever a declaration changes its list of plugins.
    fn follow_declared(&self, config: &Config, upstream: &UpstreamDeps) {
        let (own, config, upstream) = (self.clone(), config.clone(), upstream.clone());
        // The list may come from a task, of the Admin API.
        self.plugins.on_change(move || {
            let (own, config, upstream) = (own.clone(), config.clone(), upstream.clone());
            let reload = std::thread::spawn(move || own.reload(&config, &upstream));
            if reload.join().is_err() {
                error!("The plugins could not be loaded anew.");
            }
        });
    }
}

/// The Admin API's check of certificates.
pub(crate) struct Certificates(pub(crate) Keyring);

impl Outside for Certificates {
    fn cert_pair(&self, cert: &str, key: Option<&str>) -> Result<(), String> {
        // The texts are those of the library APISIX uses.
        sluicegate_gateway::tls::parse_certificate(cert)
            .map_err(|_| "failed to parse cert: PEM_read_bio_X509_AUX() failed".to_owned())?;
        let Some(key) = key else { return Ok(()) };
        let plain = self.0.decrypt_pem(key).filter(|plain| plain.contains("-----BEGIN"));
        let key = plain.ok_or("failed to decrypt previous encrypted key")?;
        sluicegate_gateway::tls::parse_key(&key)
            .map_err(|_| "failed to parse key: PEM_read_bio_PrivateKey() failed".to_owned())?;
        // Differs: APISIX stores a certificate and a key that do not belong together.
        sluicegate_gateway::tls::certified(cert, &key).map(drop)
    }
}

/// `logs/sluicegate.pid`, removed when the gateway ends.
struct PidFile(std::path::PathBuf);

impl PidFile {
    fn write(place: &Place) -> anyhow::Result<Self> {
        let path = place.pid_file();
        make_folder(&path)?;
        std::fs::write(&path, format!("{}\n", std::process::id()))
            .with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(crate) fn make_folder(file: &Path) -> anyhow::Result<()> {
    match file.parent() {
        Some(folder) => std::fs::create_dir_all(folder)
            .with_context(|| format!("the folder {} cannot be made", folder.display())),
        None => Ok(()),
    }
}

/// Every connection is an open file.
fn raise_file_limit(wanted: u32) {
    let now = getrlimit(Resource::Nofile);
    let wanted = u64::from(wanted);
    if now.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = now.maximum.map_or(wanted, |max| wanted.min(max));
    let raised = Rlimit { current: Some(current), maximum: now.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, wanted, "The limit of open files could not be raised.");
    } else if current < wanted {
        warn!(
            wanted,
            current,
            "The limit of open files is lower than nginx_config.worker_rlimit_nofile: the hard limit is in the way."
        );
    }
}

/// Fills a buffer with random bytes of the system.
pub(crate) fn random(out: &mut [u8]) {
    use ring::rand::SecureRandom;
    ring::rand::SystemRandom::new().fill(out).expect("the system has random bytes");
}

/// Unix time in seconds.
pub(crate) fn unix_now() -> u64 {
    sluicegate_gateway::core::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Resources that are read together when the gateway starts.
const START_PIECE: usize = 1024;

/// Threads of everything that is not a request.
const CONTROL_THREADS: usize = 2;
