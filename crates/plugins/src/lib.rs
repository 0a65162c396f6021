//! The plugins. This is the one list of them.

mod auth;
mod aws_lambda;
mod azure_functions;
mod basic_auth;
mod coding;
mod consumer_restriction;
mod cors;
mod csrf;
mod forward_auth;
mod headers;
mod hmac_auth;
mod jwt_auth;
mod key_auth;
mod limit;
mod limit_count;
mod multi_auth;
mod opa;
mod openfunction;
mod openwhisk;
pub mod pcre;
mod proxy_rewrite;
mod redirect;
mod request_id;
mod response_rewrite;
#[cfg(feature = "lua")]
mod serverless;
pub mod template;

pub use aws_lambda::AwsLambda;
pub use azure_functions::AzureFunctions;
pub use basic_auth::BasicAuth;
pub use consumer_restriction::ConsumerRestriction;
pub use cors::Cors;
pub use csrf::Csrf;
pub use forward_auth::ForwardAuth;
pub use hmac_auth::HmacAuth;
pub use jwt_auth::{JwtAuth, JwtClaims};
pub use key_auth::KeyAuth;
pub use limit_count::LimitCount;
pub use multi_auth::MultiAuth;
pub use opa::Opa;
pub use openfunction::OpenFunction;
pub use openwhisk::OpenWhisk;
pub use proxy_rewrite::ProxyRewrite;
pub use redirect::Redirect;
pub use request_id::RequestId;
pub use response_rewrite::ResponseRewrite;
#[cfg(feature = "lua")]
pub use serverless::{ServerlessPostFunction, ServerlessPreFunction};
use sluicegate_gateway::plugin::Registry;

/// Every plugin there is.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add::<ServerlessPostFunction>();
    registry.add::<ServerlessPreFunction>();
    registry.run_filter_funcs(sluicegate_lua::FILTER_FUNCS);
    #[cfg(feature = "lua")]
    {
        registry.add::<AwsLambda>();
        registry.add::<AzureFunctions>();
        registry.add::<BasicAuth>();
        registry.add::<ConsumerRestriction>();
        registry.add::<Cors>();
        registry.add::<Csrf>();
        registry.add::<ForwardAuth>();
        registry.add::<HmacAuth>();
        registry.add::<JwtAuth>();
        registry.add::<KeyAuth>();
        registry.add::<LimitCount>();
        registry.add::<MultiAuth>();
        registry.add::<Opa>();
        registry.add::<OpenFunction>();
        registry.add::<OpenWhisk>();
        registry.add::<ProxyRewrite>();
        registry.add::<Redirect>();
        registry.add::<RequestId>();
        registry.add::<ResponseRewrite>();
    }
    registry
}

/// Takes `plugin_attr.serverless` of config.yaml: what Lua functions may use.
///
/// # Errors
/// Which key has a value that it cannot have; the limits before stay in force.
pub fn configure_lua(attr: &serde_json::Value) -> Result<(), String> {
    #[cfg(feature = "lua")]
    sluicegate_lua::configure(sluicegate_lua::Limits::read(attr)?);
    #[cfg(not(feature = "lua"))]
    let _ = attr;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluicegate_gateway::plugin::Plugin;

    use super::*;

    /// What a plugin says against a configuration.
    #[track_caller]
    pub(crate) fn refusal<P: Plugin>(config: &serde_json::Value) -> String {
        let mut registry = Registry::default();
        registry.add::<P>();
        let plugin = registry.get(P::NAME).unwrap();
        (plugin.info.check)(config).expect_err(&config.to_string())
    }

    #[cfg(feature = "lua")]
    #[test]
    fn plugins_run_in_the_order_of_the_golden_list() {
        let registry = registry();
        let lines = registry.iter().map(|p| format!("{} {}\n", p.info.priority, p.info.name));
        let order: String = lines.collect();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("order.txt");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&file, &order).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(order, golden, "UPDATE_EXPECT=1 cargo test -p sluicegate-plugins rewrites it");
    }
}
