//! What a file of resources asks the gateway: whether a resource is good, and whether the file's
//! own list of plugins can be loaded.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use serde_json::Value;
use sluicegate_admin::configs::check_declared;
use sluicegate_model::check::Outside;
use sluicegate_model::encrypt::Keyring;
use sluicegate_model::plugin::Catalog;
use sluicegate_model::resource::Key;
use sluicegate_store::DeclaredStore;
use sluicegate_store::file::{DeclaredPlugin, Format, Judge};

/// A store whose content somebody declares: a file, or whoever uses `/apisix/admin/configs`.
#[derive(Clone)]
pub(crate) enum Source {
    /// `conf/apisix.yaml` or `conf/apisix.json`.
    File { store: Arc<DeclaredStore>, path: PathBuf, format: Format },
    /// The Admin API.
    Api { store: Arc<DeclaredStore> },
}

/// The list of plugins that a declaration of resources may have; it takes the place of the one in
/// config.yaml.
#[derive(Default)]
pub(crate) struct DeclaredPlugins {
    names: ArcSwapOption<Vec<String>>,
    /// Loads the plugins anew; there is nothing to load before the gateway has started.
    reload: Mutex<Option<Reload>>,
}

type Reload = Box<dyn Fn() + Send>;

impl DeclaredPlugins {
    /// The names in force, if a declaration gives any.
    pub(crate) fn names(&self) -> Option<Arc<Vec<String>>> {
        self.names.load_full()
    }

    /// Calls `reload` when the list changes, in place of what was called before.
    pub(crate) fn on_change(&self, reload: impl Fn() + Send + 'static) {
        *self.reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(reload));
    }

    pub(crate) fn set(&self, list: Option<&[DeclaredPlugin]>) {
        let names: Option<Vec<String>> = list.map(|list| {
            let http = list.iter().filter(|plugin| !plugin.stream);
            http.map(|plugin| plugin.name.clone()).collect()
        });
        if self.names.load().as_deref() == names.as_ref() {
            return;
        }
        self.names.store(names.map(Arc::new));
        if let Some(reload) = &*self.reload.lock().unwrap_or_else(PoisonError::into_inner) {
            reload();
        }
    }
}

/// Judges the resources of a file.
pub(crate) struct FileJudge {
    pub(crate) catalog: Arc<ArcSwap<Catalog>>,
    pub(crate) keyring: Keyring,
    pub(crate) outside: Arc<dyn Outside + Send + Sync>,
    pub(crate) plugins: Arc<DeclaredPlugins>,
}

impl Judge for FileJudge {
    fn plugins(&mut self, list: Option<&[DeclaredPlugin]>) {
        self.plugins.set(list);
    }

    fn check(&self, key: &Key, value: &Value) -> Result<(), String> {
        check_declared(&self.catalog.load(), &self.keyring, &*self.outside, key, value)
    }
}
