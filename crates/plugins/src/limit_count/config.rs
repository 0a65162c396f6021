//! The configuration of `limit-count`.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use sluicegate_gateway::plugin::ConfigError;

use super::Headers;
use crate::limit::schema;

/// The plugin's schema.
pub(super) fn schema() -> Value {
    let amount =
        || json!({"oneOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}]});
    json!({
        "type": "object",
        "properties": {
            "count": amount(),
            "time_window": amount(),
            "window_type": {"type": "string", "enum": ["fixed", "sliding"], "default": "fixed"},
            "rules": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "count": amount(),
                        "time_window": amount(),
                        "key": {"type": "string"},
                        "header_prefix": {
                            "type": "string",
                            "description": "stands in the names of the headers about this rule",
                        },
                    },
                    "required": ["count", "time_window", "key"],
                },
            },
            "group": {"type": "string"},
            "key": {"type": "string", "default": "remote_addr"},
            "key_type": {
                "type": "string",
                "enum": ["var", "var_combination", "constant"],
                "default": "var",
            },
            "rejected_code": {"type": "integer", "minimum": 200, "maximum": 599, "default": 503},
            "rejected_msg": {"type": "string", "minLength": 1},
            "policy": {
                "type": "string",
                "enum": ["local", "redis", "redis-cluster", "redis-sentinel"],
                "default": "local",
            },
            "allow_degradation": {"type": "boolean", "default": false},
            "show_limit_quota_header": {"type": "boolean", "default": true},
            "sync_interval": {"type": "number", "default": NO_DELAYED_SYNC},
        },
        "oneOf": [
            {"required": ["count", "time_window"]},
            // Both together are refused by `Config::check`, with a clearer text.
            {"required": ["rules"], "not": {"required": ["count", "time_window"]}},
        ],
        "if": schema::policy_is("redis"),
        "then": schema::redis(None),
        "else": {
            "if": schema::policy_is("redis-cluster"),
            "then": schema::redis_cluster(None),
            "else": {
                "if": schema::policy_is("redis-sentinel"),
                "then": schema::redis_sentinel(),
            },
        },
        "encrypt_fields": ["redis_password", "sentinel_password"],
    })
}

/// The schema of the plugin's metadata.
pub(super) fn metadata_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "limit_header": {"type": "string", "default": LIMIT},
            "remaining_header": {"type": "string", "default": REMAINING},
            "reset_header": {"type": "string", "default": RESET},
        },
    })
}

/// The plugin's configuration.
#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) count: Value,
    #[serde(default)]
    pub(super) time_window: Value,
    pub(super) window_type: String,
    pub(super) rules: Option<Vec<RuleConfig>>,
    pub(super) group: Option<String>,
    pub(super) key: String,
    pub(super) key_type: String,
    pub(super) rejected_code: u16,
    pub(super) rejected_msg: Option<String>,
    pub(super) policy: String,
    pub(super) allow_degradation: bool,
    pub(super) show_limit_quota_header: bool,
    pub(super) sync_interval: f64,
}

/// One of `rules`.
#[derive(Deserialize)]
pub(super) struct RuleConfig {
    pub(super) count: Value,
    pub(super) time_window: Value,
    pub(super) key: String,
    pub(super) header_prefix: Option<String>,
}

impl Config {
    /// Reads what passed the schema.
    pub(super) fn read(value: &Value) -> Result<Self, ConfigError> {
        Self::deserialize(value).map_err(|error| ConfigError(error.to_string()))
    }

    /// Checks what the schema cannot say.
    pub(super) fn check(&self, in_workflow: bool) -> Result<(), ConfigError> {
        let refuse = |why: &str| Err(ConfigError(why.to_owned()));
        if self.rules.is_some() && !(self.count.is_null() && self.time_window.is_null()) {
            return refuse("count/time_window and rules cannot be specified at the same time");
        }
        if self.group.is_some() && self.rules.is_some() {
            return refuse("group and rules cannot be specified at the same time");
        }
        if self.group.is_some() && in_workflow {
            return refuse("group is not supported");
        }
        if self.policy != "local" && self.is_delayed() {
            if self.sync_interval < SYNC_INTERVAL_MIN_S {
                return refuse("sync_interval should not be smaller than 0.1");
            }
            if self.time_window.as_f64().is_some_and(|window| self.sync_interval >= window) {
                return refuse("sync_interval should be smaller than time_window");
            }
        }
        let rules = self.rules.as_deref().unwrap_or_default();
        for (at, rule) in rules.iter().enumerate() {
            if rules[..at].iter().any(|other| other.key == rule.key) {
                return refuse(&format!("duplicate key '{}' in rules", rule.key));
            }
        }
        Ok(())
    }

    pub(super) fn is_sliding(&self) -> bool {
        self.window_type == "sliding"
    }

    /// How often a Redis is told what was counted, if it is not asked for each request.
    pub(super) fn delay(&self) -> Option<Duration> {
        self.is_delayed().then(|| Duration::try_from_secs_f64(self.sync_interval).ok()).flatten()
    }

    /// Is a Redis told now and then, rather than for each request?
    fn is_delayed(&self) -> bool {
        self.sync_interval != NO_DELAYED_SYNC
    }
}

/// A configuration that is in use for a group; it lives as long as a plugin that was compiled from
/// it.
pub(super) struct GroupInUse(Value);

impl GroupInUse {
    /// Checks that a configuration agrees with the one in use for its group.
    pub(super) fn check(group: &str, config: &Value) -> Result<(), ConfigError> {
        let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        match groups.get(group).and_then(Weak::upgrade) {
            Some(used) if used.0 != without_meta(config) => {
                Err(ConfigError("group conf mismatched".into()))
            }
            _ => Ok(()),
        }
    }

    /// Notes that a configuration is in use for its group.
    ///
    /// Differs: APISIX refuses another one as long as it remembers the first, even for the only
    /// route of a group, and what is in the store already as well. Here what is in the store serves.
    pub(super) fn note(group: &str, config: &Value) -> Arc<Self> {
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        let config = without_meta(config);
        if let Some(used) = groups.get(group).and_then(Weak::upgrade)
            && used.0 == config
        {
            return used;
        }
        groups.retain(|_, used| used.strong_count() > 0);
        let used = Arc::new(Self(config));
        groups.insert(group.to_owned(), Arc::downgrade(&used));
        used
    }
}

static GROUPS: LazyLock<Mutex<HashMap<String, Weak<GroupInUse>>>> = LazyLock::new(Mutex::default);

fn without_meta(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.shift_remove("_meta");
    }
    config
}

/// The plugin's metadata.
#[derive(Deserialize)]
pub(super) struct Metadata {
    #[serde(default = "Metadata::limit")]
    limit_header: String,
    #[serde(default = "Metadata::remaining")]
    remaining_header: String,
    #[serde(default = "Metadata::reset")]
    reset_header: String,
}

impl Metadata {
    /// Reads it; without any, the usual names stand.
    pub(super) fn read(metadata: Option<&Value>) -> Result<Self, ConfigError> {
        let none = json!({});
        Self::deserialize(metadata.unwrap_or(&none)).map_err(|e| ConfigError(e.to_string()))
    }

    fn limit() -> String {
        LIMIT.to_owned()
    }
    fn remaining() -> String {
        REMAINING.to_owned()
    }
    fn reset() -> String {
        RESET.to_owned()
    }

    /// The names for a rule; a prefix comes before `RateLimit-`.
    pub(super) fn headers(&self, prefix: Option<&String>) -> Headers {
        let name = |name: &String| match prefix {
            None => name.as_str().into(),
            Some(prefix) => {
                let with_prefix = format!("{prefix}-RateLimit-");
                name.replacen("RateLimit-", &with_prefix, 1).as_str().into()
            }
        };
        Headers {
            limit: name(&self.limit_header),
            remaining: name(&self.remaining_header),
            reset: name(&self.reset_header),
        }
    }
}

const LIMIT: &str = "X-RateLimit-Limit";
const REMAINING: &str = "X-RateLimit-Remaining";
const RESET: &str = "X-RateLimit-Reset";
const NO_DELAYED_SYNC: f64 = -1.0;
/// More often a Redis is not told what was counted.
const SYNC_INTERVAL_MIN_S: f64 = 0.1;
