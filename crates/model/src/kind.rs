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
    /// `credentials` of a consumer: `/consumers/{consumer}/credentials/{id}`
    Credentials,
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
    /// `graphql_cost_decorations` of a service: `/services/{service}/graphql_cost_decorations/{id}`
    GraphqlCostDecorations,
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
    pub const ALL: [Self; 14] = [
        Self::Routes,
        Self::Services,
        Self::Upstreams,
        Self::Ssls,
        Self::Consumers,
        Self::Credentials,
        Self::ConsumerGroups,
        Self::GlobalRules,
        Self::PluginConfigs,
        Self::PluginMetadata,
        Self::Protos,
        Self::Secrets,
        Self::StreamRoutes,
        Self::GraphqlCostDecorations,
    ];

    /// The segment in URLs and store keys: `routes`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Services => "services",
            Self::Upstreams => "upstreams",
            Self::Ssls => "ssls",
            Self::Consumers => "consumers",
            Self::Credentials => "credentials",
            Self::ConsumerGroups => "consumer_groups",
            Self::GlobalRules => "global_rules",
            Self::PluginConfigs => "plugin_configs",
            Self::PluginMetadata => "plugin_metadata",
            Self::Protos => "protos",
            Self::Secrets => "secrets",
            Self::StreamRoutes => "stream_routes",
            Self::GraphqlCostDecorations => "graphql_cost_decorations",
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
            Self::Credentials => "credential",
            Self::ConsumerGroups => "consumer group",
            Self::GlobalRules => "global rule",
            Self::PluginConfigs => "plugin config",
            Self::PluginMetadata => "plugin_metadata",
            Self::Protos => "proto",
            Self::Secrets => "secret",
            Self::StreamRoutes => "stream route",
            Self::GraphqlCostDecorations => "graphql cost decoration",
        }
    }

    /// The kind that a segment of a URL or store key names.
    pub fn from_plural(segment: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == segment)
    }

    /// The kind whose resources own those of this kind: they live under its key, and go with it.
    pub fn parent(self) -> Option<Self> {
        match self {
            Self::Credentials => Some(Self::Consumers),
            Self::GraphqlCostDecorations => Some(Self::Services),
            _ => None,
        }
    }

    /// The kind whose resources are owned by those of this kind.
    pub fn child(self) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.parent() == Some(self))
    }

    /// Whether the Admin API takes a method for this kind; otherwise it answers 405.
    pub fn supports(self, method: Method) -> bool {
        match method {
            Method::Get | Method::Put | Method::Delete => true,
            Method::Post => !matches!(
                self,
                Self::Consumers
                    | Self::Credentials
                    | Self::ConsumerGroups
                    | Self::GlobalRules
                    | Self::PluginConfigs
                    | Self::PluginMetadata
                    | Self::Secrets
            ),
            Method::Patch => !matches!(
                self,
                Self::Consumers
                    | Self::Credentials
                    | Self::PluginMetadata
                    | Self::Protos
                    | Self::StreamRoutes
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
            Self::Credentials => once!(resources::credential()),
            Self::ConsumerGroups => once!(resources::consumer_group()),
            Self::GlobalRules => once!(resources::global_rule()),
            Self::PluginConfigs => once!(resources::plugin_config()),
            Self::Protos => once!(resources::proto()),
            Self::StreamRoutes => once!(resources::stream_route()),
            Self::GraphqlCostDecorations => once!(resources::graphql_cost_decoration()),
            Self::PluginMetadata | Self::Secrets => once!(json!({"type": "object"})),
        }
    }
}

/// The secret managers that `secrets` can name.
pub const SECRET_MANAGERS: [&str; 3] = ["vault", "aws", "gcp"];

/// The schema of a secret manager's settings as JSON, if there is such a manager.
pub fn secret_schema_json(manager: &str) -> Option<&'static Value> {
    secret_schemas(manager).map(|schemas| &schemas.json)
}

/// The schema of a secret manager's settings, if there is such a manager.
pub fn secret_schema(manager: &str) -> Option<&'static Schema> {
    secret_schemas(manager).map(|schemas| &schemas.compiled)
}

fn secret_schemas(manager: &str) -> Option<&'static Both> {
    static VAULT: LazyLock<Both> = LazyLock::new(|| Both::new(resources::vault()));
    static AWS: LazyLock<Both> = LazyLock::new(|| Both::new(resources::aws()));
    static GCP: LazyLock<Both> = LazyLock::new(|| Both::new(resources::gcp()));
    match manager {
        "vault" => Some(&VAULT),
        "aws" => Some(&AWS),
        "gcp" => Some(&GCP),
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
        for manager in SECRET_MANAGERS {
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
                "credentials",
                "consumer_groups",
                "global_rules",
                "plugin_configs",
                "plugin_metadata",
                "secrets"
            ]
        );
        assert_eq!(
            refused(Method::Patch),
            ["consumers", "credentials", "plugin_metadata", "protos", "stream_routes"]
        );
        for method in [Method::Get, Method::Put, Method::Delete] {
            assert!(refused(method).is_empty());
        }
    }
}
