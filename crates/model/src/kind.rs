//! The kinds of resources the Admin API knows, and what differs between them.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::schema::{Schema, resources};

/// A kind of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `routes`
    Routes,
    /// `services`
    Services,
    /// `upstreams`
    Upstreams,
    /// `ssls`
    Ssls,
    /// `consumers`
    Consumers,
    /// `consumer_groups`
    ConsumerGroups,
    /// `global_rules`
    GlobalRules,
    /// `plugin_configs`
    PluginConfigs,
    /// `plugin_metadata`
    PluginMetadata,
    /// `protos`
    Protos,
    /// `secrets`
    Secrets,
    /// `stream_routes`
    StreamRoutes,
}

/// What the Admin API can be asked to do with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Read one or list.
    Get,
    /// Create or replace.
    Put,
    /// Create under a generated id.
    Post,
    /// Change a part.
    Patch,
    /// Remove.
    Delete,
}

impl Kind {
    /// Every kind, in the order of the enum.
    pub const ALL: [Self; 12] = [
        Self::Routes,
        Self::Services,
        Self::Upstreams,
        Self::Ssls,
        Self::Consumers,
        Self::ConsumerGroups,
        Self::GlobalRules,
        Self::PluginConfigs,
        Self::PluginMetadata,
        Self::Protos,
        Self::Secrets,
        Self::StreamRoutes,
    ];

    /// The segment in URLs and store keys: `routes`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Services => "services",
            Self::Upstreams => "upstreams",
            Self::Ssls => "ssls",
            Self::Consumers => "consumers",
            Self::ConsumerGroups => "consumer_groups",
            Self::GlobalRules => "global_rules",
            Self::PluginConfigs => "plugin_configs",
            Self::PluginMetadata => "plugin_metadata",
            Self::Protos => "protos",
            Self::Secrets => "secrets",
            Self::StreamRoutes => "stream_routes",
        }
    }

    /// The word in error texts: `route`, `consumer group`.
    pub fn singular(self) -> &'static str {
        match self {
            Self::Routes => "route",
            Self::Services => "service",
            Self::Upstreams => "upstream",
            Self::Ssls => "ssl",
            Self::Consumers => "consumer",
            Self::ConsumerGroups => "consumer group",
            Self::GlobalRules => "global rule",
            Self::PluginConfigs => "plugin config",
            Self::PluginMetadata => "plugin_metadata",
            Self::Protos => "proto",
            Self::Secrets => "secret",
            Self::StreamRoutes => "stream route",
        }
    }

    /// The kind that a segment of a URL or store key names.
    pub fn from_plural(segment: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == segment)
    }

    /// Whether the Admin API takes a method for this kind; otherwise it answers 405.
    pub fn supports(self, method: Method) -> bool {
        match method {
            Method::Get | Method::Put | Method::Delete => true,
            Method::Post => !matches!(
                self,
                Self::Consumers
                    | Self::ConsumerGroups
                    | Self::GlobalRules
                    | Self::PluginConfigs
                    | Self::PluginMetadata
                    | Self::Secrets
            ),
            Method::Patch => !matches!(
                self,
                Self::Consumers | Self::PluginMetadata | Self::Protos | Self::StreamRoutes
            ),
        }
    }

    /// Whether the resource carries its id inside, and a write without one is refused. Consumers are
    /// named by `username`, plugin metadata by the plugin.
    pub fn has_id(self) -> bool {
        !matches!(self, Self::Consumers | Self::PluginMetadata)
    }

    /// Whether a write stamps `create_time` and `update_time`.
    pub fn has_times(self) -> bool {
        self != Self::PluginMetadata
    }

    /// The schema as the Admin API serves it.
    ///
    /// `plugin_metadata` is judged by its plugin's own schema and `secrets` by
    /// [`secret_schema`]; both are only said to be objects here.
    pub fn schema_json(self) -> &'static Value {
        &self.schemas().json
    }

    /// The schema to check values with.
    pub fn schema(self) -> &'static Schema {
        &self.schemas().compiled
    }

    fn schemas(self) -> &'static Both {
        macro_rules! once {
            ($json:expr) => {{
                static BOTH: LazyLock<Both> = LazyLock::new(|| Both::new($json));
                &BOTH
            }};
        }
        match self {
            Self::Routes => once!(resources::route()),
            Self::Services => once!(resources::service()),
            Self::Upstreams => once!(resources::upstream()),
            Self::Ssls => once!(resources::ssl()),
            Self::Consumers => once!(resources::consumer()),
            Self::ConsumerGroups => once!(resources::consumer_group()),
            Self::GlobalRules => once!(resources::global_rule()),
            Self::PluginConfigs => once!(resources::plugin_config()),
            Self::Protos => once!(resources::proto()),
            Self::StreamRoutes => once!(resources::stream_route()),
            Self::PluginMetadata | Self::Secrets => once!(json!({"type": "object"})),
        }
    }
}

/// The schema of a secret manager's settings, if there is such a manager.
pub fn secret_schema(manager: &str) -> Option<&'static Schema> {
    static VAULT: LazyLock<Both> = LazyLock::new(|| Both::new(resources::vault()));
    static AWS: LazyLock<Both> = LazyLock::new(|| Both::new(resources::aws()));
    static GCP: LazyLock<Both> = LazyLock::new(|| Both::new(resources::gcp()));
    match manager {
        "vault" => Some(&VAULT.compiled),
        "aws" => Some(&AWS.compiled),
        "gcp" => Some(&GCP.compiled),
        _ => None,
    }
}

/// A schema in both forms.
struct Both {
    json: Value,
    compiled: Schema,
}

impl Both {
    fn new(json: Value) -> Self {
        let compiled =
            Schema::compile(&json).expect("built-in schemas compile; a test compiles each");
        Self { json, compiled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_and_is_found_by_its_plural() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_plural(kind.plural()), Some(kind));
            assert_eq!(kind.schema_json()["type"], "object", "{kind:?}");
            assert!(kind.schema().check(&json!("text")).is_err(), "{kind:?}");
        }
        assert_eq!(Kind::from_plural("nonsense"), None);
        for manager in ["vault", "aws", "gcp"] {
            assert!(secret_schema(manager).is_some_and(|schema| schema.check(&json!({})).is_err()));
        }
        assert!(secret_schema("zzz").is_none());
    }

    #[test]
    fn methods_are_refused_where_apisix_refuses_them() {
        let refused = |method| {
            Kind::ALL
                .into_iter()
                .filter(|kind| !kind.supports(method))
                .map(Kind::plural)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            refused(Method::Post),
            [
                "consumers",
                "consumer_groups",
                "global_rules",
                "plugin_configs",
                "plugin_metadata",
                "secrets"
            ]
        );
        assert_eq!(
            refused(Method::Patch),
            ["consumers", "plugin_metadata", "protos", "stream_routes"]
        );
        for method in [Method::Get, Method::Put, Method::Delete] {
            assert!(refused(method).is_empty());
        }
    }
}
