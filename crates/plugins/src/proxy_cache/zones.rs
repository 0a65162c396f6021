//! The zones that config.yaml names: which there are, and each once for the whole gateway.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::Value;
use sluicegate_gateway::plugin::{CompileCtx, ConfigError};
use tracing::error;

use super::disk::Disk;
use super::zone::Zone;

/// What config.yaml says about caches (`apisix.proxy_cache`).
#[derive(Deserialize)]
pub(super) struct Caches {
    /// How long an answer on disk is good that does not say.
    pub(super) cache_ttl_s: u64,
    zones: Vec<ZoneConfig>,
    /// Zones that are not listed may exist all the same: there is no config.yaml.
    #[serde(skip)]
    open_end: bool,
}

#[derive(Deserialize)]
struct ZoneConfig {
    name: String,
    memory_bytes: u64,
    disk: Option<DiskConfig>,
}

#[derive(Deserialize)]
struct DiskConfig {
    path: PathBuf,
    bytes: u64,
    levels: Vec<usize>,
}

impl Caches {
    /// What `attr` says. Where nothing is said, as in tests, there is one zone, in memory.
    pub(super) fn read(attr: Option<&Value>) -> Result<Self, ConfigError> {
        match attr.filter(|attr| !attr.is_null()) {
            Some(attr) => Self::deserialize(attr)
                .map_err(|why| ConfigError(format!("`apisix.proxy_cache`: {why}"))),
            None => Ok(Self {
                cache_ttl_s: 10,
                zones: vec![ZoneConfig {
                    name: "memory_cache".into(),
                    memory_bytes: 50 << 20,
                    disk: None,
                }],
                open_end: true,
            }),
        }
    }

    /// Checks that there is a zone of this name and kind, and takes it where there is a gateway.
    pub(super) fn zone(
        &self,
        name: &str,
        on_disk: bool,
        ctx: &CompileCtx<'_>,
    ) -> Result<Option<Open>, ConfigError> {
        let Some(zone) = self.zones.iter().find(|zone| zone.name == name) else {
            return match self.open_end {
                false => Err(ConfigError(format!("cache_zone {name} not found"))),
                true => Ok(None),
            };
        };
        if zone.disk.is_some() != on_disk {
            let strategy = if on_disk { "disk" } else { "memory" };
            return Err(ConfigError(format!(
                "invalid or empty cache_zone for cache_strategy: {strategy}"
            )));
        }
        let Some(deps) = ctx.deps else { return Ok(None) };
        let zones: Arc<Zones> = deps.state.get();
        let mut open = zones.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.get(name) {
            return Ok(Some(open.clone()));
        }
        let opened = match &zone.disk {
            None => Open { zone: Arc::new(Zone::new(zone.memory_bytes, u64::MAX)), disk: None },
            Some(disk) => {
                let in_it = Arc::new(Zone::new(zone.memory_bytes, disk.bytes));
                match Disk::open(&disk.path, &disk.levels, deps.background.clone()) {
                    Ok(folder) => {
                        let folder = Arc::new(folder);
                        folder.scan(&in_it);
                        Open { zone: in_it, disk: Some(folder) }
                    }
                    Err(error) => {
                        error!(zone = name, folder = %disk.path.display(), %error, "A cache's folder cannot be used: nothing is kept on disk.");
                        // Not one byte fits: every answer comes from its upstream.
                        Open { zone: Arc::new(Zone::new(0, 0)), disk: None }
                    }
                }
            }
        };
        open.insert(name.to_owned(), opened.clone());
        Ok(Some(opened))
    }
}

/// A zone in use.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) zone: Arc<Zone>,
    pub(super) disk: Option<Arc<Disk>>,
}

/// Zones by their names.
#[derive(Default)]
struct Zones(Mutex<HashMap<String, Open>>);
