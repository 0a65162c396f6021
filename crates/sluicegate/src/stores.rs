//! Choosing the store that config.yaml names, and opening it.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use sluicegate_config::{Config, ConfigProvider, Role, TrustedCertificate};
use sluicegate_store::file::Format;
use sluicegate_store::{
    DeclaredStore, ETCD_WRITE_TIME_MAX, EmbeddedStore, EtcdOptions, EtcdStore, Store, TlsOptions,
};
use tokio::runtime::Runtime;

use crate::boot::make_folder;
use crate::cli::Place;
use crate::judge::Source;
use crate::settings;

/// A store that is open.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    /// Held as long as the gateway runs, so that a second one of this folder ends at its start.
    pub(crate) lock: Option<File>,
    /// Who declares its content, if it is one that is declared.
    pub(crate) source: Option<Source>,
}

/// Opens the store. What it does in the background runs on `runtime`.
pub(crate) fn open(config: &Config, place: &Place, runtime: &Runtime) -> anyhow::Result<Opened> {
    match config.deployment.config_provider {
        ConfigProvider::Embedded => {
            let file = settings::store_file(config, place);
            make_folder(&file)?;
            // redb holds a lock of its own.
            Ok(Opened { store: Arc::new(EmbeddedStore::open(&file)?), lock: None, source: None })
        }
        ConfigProvider::Etcd => {
            let options = etcd(config, place);
            let lock = lock(&place.under(Path::new(ETCD_LOCK)))?;
            let store = runtime.block_on(EtcdStore::open(options))?;
            Ok(Opened { store: Arc::new(store), lock: Some(lock), source: None })
        }
        ConfigProvider::Yaml | ConfigProvider::Json => declared(config, place),
    }
}

/// A store that is told what it holds: by a file, or by the Admin API where APISIX, too, takes that
/// for yaml's source.
fn declared(config: &Config, place: &Place) -> anyhow::Result<Opened> {
    let lock = Some(lock(&place.under(Path::new(DECLARED_LOCK)))?);
    let provider = config.deployment.config_provider;
    if config.apisix.enable_admin && provider == ConfigProvider::Yaml {
        let store = DeclaredStore::new("send the whole configuration to /apisix/admin/configs");
        let source = Some(Source::Api { store: store.clone() });
        return Ok(Opened { store, lock, source });
    }
    let (name, format) = match provider {
        ConfigProvider::Json => ("conf/apisix.json", Format::Json),
        _ => ("conf/apisix.yaml", Format::Yaml),
    };
    let path = place.under(Path::new(name));
    let store = DeclaredStore::new(format!("edit {}", path.display()));
    let source = Some(Source::File { store: store.clone(), path, format });
    Ok(Opened { store, lock, source })
}

/// `deployment.etcd` in the store's terms.
pub(crate) fn etcd(config: &Config, place: &Place) -> EtcdOptions {
    let from = &config.deployment.etcd;
    let file = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| place.under(path));
    EtcdOptions {
        hosts: from.host.clone(),
        prefix: from.prefix.clone(),
        user: from.user.clone(),
        password: from.password.as_ref().map(|password| password.expose().to_owned()),
        timeout: from.timeout,
        write_time: ETCD_WRITE_TIME_MAX,
        watch_timeout: from.watch_timeout,
        resync_delay: from.resync_delay,
        health_check_timeout: from.health_check_timeout,
        startup_retry: from.startup_retry,
        tls: TlsOptions {
            cert: file(&from.tls_cert),
            key: file(&from.tls_key),
            verify: from.tls_verify,
            sni: from.tls_sni.clone(),
            ca: match &config.apisix.ssl.trusted_certificate {
                TrustedCertificate::System => None,
                TrustedCertificate::File(path) => Some(place.under(path)),
            },
        },
        copy: Some(place.under(Path::new(ETCD_COPY))),
        read_only: config.deployment.role == Role::DataPlane,
    }
}

fn lock(path: &Path) -> anyhow::Result<File> {
    make_folder(path)?;
    let failed = || format!("{} cannot be made", path.display());
    let file =
        File::options().create(true).truncate(false).write(true).open(path).with_context(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(anyhow!("another gateway runs in {}", path.parent().unwrap_or(path).display()))
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(failed),
    }
}

/// The last-known-good copy of what etcd held, under the prefix.
const ETCD_COPY: &str = "data/etcd.copy";
/// What a running gateway holds a lock on.
const DECLARED_LOCK: &str = "data/declared.lock";
const ETCD_LOCK: &str = "data/etcd.lock";
