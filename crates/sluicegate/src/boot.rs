//! Putting the rooms together. The only place that knows all of them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use axum::Extension;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use sluicegate_admin::control::{ControlState, Status};
use sluicegate_admin::{AdminState, Applied};
use sluicegate_config::{Config, TrustedCertificate, Warning};
use sluicegate_gateway::client::TlsClients;
use sluicegate_gateway::core::Shared;
use sluicegate_gateway::listen::{Gateway, Listeners};
use sluicegate_gateway::plugin::Registry;
use sluicegate_gateway::snapshot::{Change, Compiler, Deps, Report};
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_gateway::upstream::resolve::Resolver;
use sluicegate_model::check::Outside;
use sluicegate_model::encrypt::Keyring;
use sluicegate_model::kind::Kind;
use sluicegate_model::plugin::Catalog;
use sluicegate_store::{Change as StoreChange, EmbeddedStore, Event, Store, StoreError, Watch};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, Semaphore, watch};
use tracing::{debug, error, info, warn};

use crate::cli::Place;
use crate::{error_log, settings};

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
    compiler: Arc<Mutex<Compiler>>,
    upstream_deps: UpstreamDeps,
    _pid: PidFile,
}

impl Running {
    /// Starts a gateway: reads (or makes) its configuration, loads its resources, then listens.
    pub(crate) fn start(place: &Place) -> anyhow::Result<Self> {
        let path = place.config();
        let made = !place.names_config()
            && Config::create_if_missing(&path, &Config::default_text(&mut random))
                .with_context(|| format!("{} is missing and cannot be made", path.display()))?;
        if made {
            eprintln!("sluicegate: made {} with its defaults", path.display());
        }
        let (mut config, mut warnings) = load(&path)?;
        warnings.extend(config.fill_admin_keys(&path, &mut random));
        let log = &config.nginx_config;
        error_log::init(&log.error_log, log.error_log_level, |p| place.under(p))?;
        for warning in &warnings {
            eprintln!("sluicegate: warning: {warning}");
            warn!("{warning}");
        }
        raise_file_limit(config.nginx_config.worker_rlimit_nofile);
        let settings = settings::gateway(&config, place);
        if let Some(log) = &settings.access_log {
            make_folder(&log.path)?;
        }
        let listeners = Listeners::bind(&settings).map_err(|error| {
            anyhow!("{error} (apisix.node_listen, apisix.ssl.listen, apisix.proxy_protocol)")
        })?;
        let admin_listener = match config.apisix.enable_admin {
            true => {
                Some(bind(config.deployment.admin.admin_listen, "deployment.admin.admin_listen")?)
            }
            false => None,
        };
        let control_listener = match config.apisix.control {
            Some(addr) => Some(bind(addr, "apisix.control")?),
            None => None,
        };
        let store_file = settings::store_file(&config, place);
        make_folder(&store_file)?;
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&store_file)?);
        // Behind the store: a second gateway of this folder ends there and leaves the first's.
        let pid = PidFile::write(place)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONTROL_THREADS)
            .thread_name("control")
            .enable_all()
            .build()
            .context("the control threads could not be started")?;

        let tls = Arc::new(tls_clients(&config, place)?);
        if let Some(why) = tls.roots_error() {
            warn!(
                why,
                "There are no root certificates: upstreams and functions cannot be verified; install ca-certificates or set apisix.ssl.ssl_trusted_certificate."
            );
        }
        let upstream_deps = UpstreamDeps {
            resolver: Resolver::new(runtime.handle().clone(), &settings::dns(&config)),
            keepalive: settings::keepalive(&config),
            tls: tls.clone(),
        };
        let registry = enabled(&config);
        let catalog = Arc::new(ArcSwap::from_pointee(registry.catalog()));
        let keyring = settings::keyring(&config);
        let mut compiler = Compiler::new(deps(&config, registry, &upstream_deps));
        let shared = Arc::new(Shared::new(settings, tls).map_err(|e| anyhow!(e))?);

        let (listing, changes) = runtime.block_on(store.snapshot_and_watch("/"))?;
        let revision = listing.revision;
        let initial: Vec<Event> = listing
            .entries
            .into_iter()
            .map(|entry| Event {
                revision: entry.modified,
                key: entry.key.clone(),
                change: StoreChange::Put(entry),
            })
            .collect();
        let decode = Decoder { catalog: catalog.clone(), keyring: keyring.clone() };
        shared.publish(compiler.apply(decode.changes(&initial)));
        let reports = Arc::new(ArcSwap::from_pointee(compiler.reports()));
        let compiler = Arc::new(Mutex::new(compiler));
        let (served, serving) = watch::channel(revision);
        let follow = Follower {
            compiler: compiler.clone(),
            shared: shared.clone(),
            decode,
            served,
            store: store.clone(),
            reports: reports.clone(),
        };
        runtime.spawn(follow.run(changes));

        let gateway = Gateway::start(shared, listeners)
            .context("the request threads could not be started")?;
        let reload = Arc::new(|| {
            // The same way a person takes: config.yaml is read again.
            let own = rustix::process::getpid();
            if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::HUP) {
                error!(%error, "Plugins could not be reloaded.");
            }
        });
        let admin = AdminState::new(
            settings::admin(&config),
            catalog.clone(),
            store.clone(),
            keyring.clone(),
            Arc::new(Certificates(keyring)),
            unix_now,
        )
        .applied(applied(serving))
        .reload_plugins(reload.clone());
        let admin = Arc::new(admin);
        let admin_addr = match admin_listener {
            Some(listener) => {
                let addr = listener.local_addr()?;
                let router = sluicegate_admin::router(admin.clone());
                serve(&runtime, listener, router)?;
                Some(addr)
            }
            None => None,
        };
        if let Some(listener) = control_listener {
            let state = ControlState {
                store,
                catalog,
                key_prefix: sluicegate_admin::Settings::default().key_prefix,
                server: settings::admin(&config).server,
                reload_plugins: Some(reload),
                status: Some(status(gateway.shared.clone(), reports)),
            };
            serve(&runtime, listener, sluicegate_admin::control::router(Arc::new(state)))?;
        }
        let listening: Vec<String> = gateway.addrs.iter().map(|l| l.addr.to_string()).collect();
        info!(data = listening.join(","), admin = ?admin_addr, revision, "Sluicegate serves.");
        Ok(Self {
            runtime,
            started: config.clone(),
            config,
            place: place.clone(),
            gateway,
            admin,
            admin_addr,
            compiler,
            upstream_deps,
            _pid: pid,
        })
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
        self.admin.settings.store(Arc::new(settings::admin(&config)));
        let registry = enabled(&config);
        self.admin.catalog.store(Arc::new(registry.catalog()));
        self.upstream_deps.keepalive = settings::keepalive(&config);
        let deps = deps(&config, registry, &self.upstream_deps);
        let (compiler, shared) = (self.compiler.clone(), self.gateway.shared.clone());
        self.runtime.block_on(async move {
            let mut compiler = compiler.lock().await;
            shared.publish(compiler.rebuild(deps));
        });
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
        let admin = self.admin_addr.map(|addr| format!("; Admin API on {addr}"));
        format!("serves on {}{}", addrs.join(", "), admin.unwrap_or_default())
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
    Ok(warnings)
}

fn load(path: &Path) -> anyhow::Result<(Config, Vec<Warning>)> {
    let env = |name: &str| std::env::var(name).ok();
    let (config, mut warnings) = Config::load(path, &env)?;
    let registry = sluicegate_plugins::registry();
    let names: Vec<&str> = registry.iter().map(|p| p.info.name).collect();
    warnings.extend(config.enabled_plugins(&names).1);
    Ok((config, warnings))
}

fn enabled(config: &Config) -> Registry {
    let registry = sluicegate_plugins::registry();
    let names: Vec<&str> = registry.iter().map(|p| p.info.name).collect();
    let enabled: Vec<String> =
        config.enabled_plugins(&names).0.into_iter().map(str::to_owned).collect();
    registry.only(&enabled)
}

fn deps(config: &Config, registry: Registry, upstream: &UpstreamDeps) -> Deps {
    let attrs = registry.iter().filter_map(|p| {
        Some((p.info.name.to_owned(), config.plugin_attr.get(p.info.name)?.clone()))
    });
    Deps {
        plugin_attr: Value::Object(attrs.collect()),
        registry,
        upstream: upstream.clone(),
        router: settings::router(config),
        workers: settings::workers(config),
    }
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

fn bind(addr: SocketAddr, key: &str) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(addr).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("{addr} is taken by another process: stop it, or choose another port ({key})")
        }
        _ => anyhow!("cannot listen on {addr} ({key}): {error}"),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn serve(
    runtime: &Runtime,
    listener: std::net::TcpListener,
    router: axum::Router,
) -> anyhow::Result<()> {
    let _entered = runtime.enter();
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MANAGEMENT_CONNECTIONS_MAX));
    runtime.spawn(async move {
        // The semaphore is never closed.
        while let Ok(place) = places.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    let router = router.clone().layer(Extension(ConnectInfo(peer)));
                    tokio::spawn(async move {
                        serve_one(tcp, router).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "A connection to a management API could not be accepted.");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    });
    Ok(())
}

/// Serves one connection to a management API. Whoever connects can hold it only so long: the
/// key is asked for when a request's head is there.
async fn serve_one(tcp: TcpStream, router: axum::Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(MANAGEMENT_HEAD_TIME)
        .serve_connection(TokioIo::new(tcp), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        debug!(%error, "A connection to a management API ended.");
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

/// What the control API tells at `/v1/status`.
fn status(shared: Arc<Shared>, reports: Arc<ArcSwap<Vec<Report>>>) -> Status {
    Arc::new(move || {
        let counters: serde_json::Map<String, Value> =
            shared.counters().into_iter().map(|(name, n)| (name.to_owned(), n.into())).collect();
        let broken: Vec<Value> = reports
            .load()
            .iter()
            .map(|r| json!({"kind": r.kind.plural(), "id": r.id, "cause": r.cause}))
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "revision": shared.snapshot().revision,
            "routes": shared.snapshot().router.len(),
            "active_requests": shared.active_requests.load(Ordering::Relaxed),
            "active_connections": shared.active_connections.load(Ordering::Relaxed),
            "buffered_body_bytes": shared.buffered.load(Ordering::Relaxed),
            "counters": counters,
            "broken": broken,
        })
    })
}

/// Turns what the store says into what the compiler takes.
struct Decoder {
    catalog: Arc<ArcSwap<Catalog>>,
    keyring: Keyring,
}

impl Decoder {
    fn changes(&self, events: &[Event]) -> Vec<Change> {
        events.iter().filter_map(|event| self.change(event)).collect()
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let mut parts = event.key.strip_prefix('/')?.splitn(2, '/');
        let kind = Kind::from_plural(parts.next()?)?;
        let id = parts.next()?.to_owned();
        let (value, created) = match &event.change {
            StoreChange::Delete => (None, 0),
            StoreChange::Put(entry) => match serde_json::from_slice::<Value>(&entry.value) {
                Ok(mut value) => {
                    let catalog = self.catalog.load_full();
                    let sealed = catalog.sealed_secrets(&self.keyring, kind, &value);
                    if !sealed.is_empty() {
                        error!(key = %event.key, secrets = sealed.join(", "), "Stored secrets do not open with the keyring and are used as they are: put the key that they were encrypted with into apisix.data_encryption.keyring.");
                    }
                    catalog.decrypt_resource(&self.keyring, kind, &mut value);
                    (Some(value), entry.created)
                }
                Err(error) => {
                    error!(key = %event.key, %error, "A stored resource is not JSON; its previous version serves.");
                    return None;
                }
            },
        };
        Some(Change { kind, id, value, revision: event.revision, created })
    }
}

/// Follows the store and publishes a snapshot for each batch of changes.
struct Follower {
    compiler: Arc<Mutex<Compiler>>,
    shared: Arc<Shared>,
    decode: Decoder,
    served: watch::Sender<u64>,
    store: Arc<dyn Store>,
    reports: Arc<ArcSwap<Vec<Report>>>,
}

impl Follower {
    async fn run(self, mut changes: Watch) {
        loop {
            let events = match changes.changes().await {
                Ok(events) => events,
                Err(error) => {
                    warn!(%error, "The store's changes were lost track of; everything is read anew.");
                    match self.start_over().await {
                        Ok((events, fresh)) => {
                            changes = fresh;
                            events
                        }
                        Err(error) => {
                            error!(%error, "The store cannot be read; it is tried again.");
                            tokio::time::sleep(STORE_RETRY).await;
                            continue;
                        }
                    }
                }
            };
            let Some(last) = events.iter().map(|e| e.revision).max() else { continue };
            let decoded = self.decode.changes(&events);
            let (compiler, shared) = (self.compiler.clone(), self.shared.clone());
            let reports = self.reports.clone();
            // Compiling may take a while: it must not hold up the Admin API's thread.
            let compiled = tokio::task::spawn_blocking(move || {
                let mut compiler = compiler.blocking_lock();
                shared.publish(compiler.apply(decoded));
                reports.store(Arc::new(compiler.reports()));
            });
            if let Err(error) = compiled.await {
                error!(%error, "A configuration change could not be compiled.");
            }
            self.served.send_replace(last);
        }
    }
}

impl Follower {
    /// Everything the store holds as changes, what is gone from it included, and a watch
    /// that goes on from there.
    async fn start_over(&self) -> Result<(Vec<Event>, Watch), StoreError> {
        let (listing, changes) = self.store.snapshot_and_watch("/").await?;
        let revision = listing.revision;
        let kept: HashSet<&str> = listing.entries.iter().map(|e| &*e.key).collect();
        let known = self.compiler.lock().await.known();
        let gone = known
            .iter()
            .map(|(kind, id)| format!("/{}/{id}", kind.plural()))
            .filter(|key| !kept.contains(key.as_str()))
            .map(|key| Event { revision, key: key.into(), change: StoreChange::Delete });
        let mut events: Vec<Event> = gone.collect();
        events.extend(listing.entries.into_iter().map(|entry| Event {
            revision: entry.modified,
            key: entry.key.clone(),
            change: StoreChange::Put(entry),
        }));
        // The watch goes on behind this revision, whatever the entries' own are.
        events.push(Event { revision, key: "/".into(), change: StoreChange::Delete });
        Ok((events, changes))
    }
}

/// The Admin API's check of certificates.
struct Certificates(Keyring);

impl Outside for Certificates {
    fn cert_pair(&self, cert: &str, key: Option<&str>) -> Result<(), String> {
        // The texts are those of the library APISIX uses.
        sluicegate_gateway::tls::parse_certificate(cert)
            .map_err(|_| "failed to parse cert: PEM_read_bio_X509_AUX() failed".to_owned())?;
        let Some(key) = key else { return Ok(()) };
        let plain = self.0.decrypt_pem(key).filter(|plain| plain.contains("-----BEGIN"));
        let key = plain.ok_or("failed to decrypt previous encrypted key")?;
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

fn make_folder(file: &Path) -> anyhow::Result<()> {
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

/// How long a store that cannot be read is left alone.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// How long accepting waits after it failed: files ran out, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Connections to one management API at a time; more wait in the kernel.
const MANAGEMENT_CONNECTIONS_MAX: usize = 256;

/// How long a client of a management API may take to send a request's head, and how long its
/// connection may be idle.
const MANAGEMENT_HEAD_TIME: Duration = Duration::from_secs(30);

/// Threads of everything that is not a request.
const CONTROL_THREADS: usize = 2;
