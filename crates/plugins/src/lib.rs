//! The plugins. This is the one list of them.

mod answers;
mod api_breaker;
mod apis;
mod auth;
mod aws_lambda;
mod azure_functions;
mod basic_auth;
mod batch_requests;
mod brotli;
mod client_control;
mod coding;
mod consumer_restriction;
mod cors;
mod csrf;
mod echo;
mod example_plugin;
mod fault_injection;
mod forward_auth;
mod google_cloud_functions;
mod gzip;
mod headers;
mod hmac_auth;
mod ip_restriction;
mod jwt_auth;
mod key_auth;
mod limit;
mod limit_conn;
mod limit_count;
mod limit_req;
mod mocking;
mod multi_auth;
mod node_status;
mod opa;
mod openfunction;
mod openwhisk;
mod padding;
pub mod pcre;
mod proxy_cache;
mod proxy_mirror;
mod proxy_rewrite;
mod public_api;
mod real_ip;
mod redirect;
mod referer_restriction;
mod request_id;
mod request_validation;
mod response_rewrite;
#[cfg(feature = "lua")]
mod serverless;
pub mod template;
mod tokens;
mod traffic_split;
mod ua_restriction;
mod uri_blocker;
mod workflow;

pub use self::brotli::Brotli;
pub use api_breaker::ApiBreaker;
pub use aws_lambda::{
    AwsIdentities, AwsLambda, AwsRefusals, ExplainPlace, ExplainRequest, FieldValues, Refusals,
    explain,
};
pub use azure_functions::AzureFunctions;
pub use basic_auth::BasicAuth;
pub use batch_requests::BatchRequests;
pub use client_control::ClientControl;
pub use consumer_restriction::ConsumerRestriction;
pub use cors::Cors;
pub use csrf::Csrf;
pub use echo::Echo;
pub use example_plugin::ExamplePlugin;
pub use fault_injection::FaultInjection;
pub use forward_auth::ForwardAuth;
pub use google_cloud_functions::GoogleCloudFunctions;
pub use gzip::Gzip;
pub use hmac_auth::HmacAuth;
pub use ip_restriction::IpRestriction;
pub use jwt_auth::JwtAuth;
pub use key_auth::KeyAuth;
pub use limit_conn::LimitConn;
pub use limit_count::LimitCount;
pub use limit_req::LimitReq;
pub use mocking::Mocking;
pub use multi_auth::MultiAuth;
pub use node_status::NodeStatus;
pub use opa::Opa;
pub use openfunction::OpenFunction;
pub use openwhisk::OpenWhisk;
pub use proxy_cache::ProxyCache;
pub use proxy_mirror::ProxyMirror;
pub use proxy_rewrite::ProxyRewrite;
pub use public_api::PublicApi;
pub use real_ip::RealIp;
pub use redirect::Redirect;
pub use referer_restriction::RefererRestriction;
pub use request_id::RequestId;
pub use request_validation::RequestValidation;
pub use response_rewrite::ResponseRewrite;
#[cfg(feature = "lua")]
pub use serverless::{ServerlessPostFunction, ServerlessPreFunction};
use sluicegate_gateway::plugin::Registry;
pub use tokens::TokenIdentities;
pub use traffic_split::TrafficSplit;
pub use ua_restriction::UaRestriction;
pub use uri_blocker::UriBlocker;
pub use workflow::Workflow;

/// Every plugin there is.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add::<ApiBreaker>();
    registry.add::<AwsLambda>();
    registry.add::<AzureFunctions>();
    registry.add::<BasicAuth>();
    registry.add::<BatchRequests>();
    registry.add::<Brotli>();
    registry.add::<ClientControl>();
    registry.add::<ConsumerRestriction>();
    registry.add::<Cors>();
    registry.add::<Csrf>();
    registry.add::<Echo>();
    registry.add::<ExamplePlugin>();
    registry.add::<FaultInjection>();
    registry.add::<ForwardAuth>();
    registry.add::<GoogleCloudFunctions>();
    registry.add::<Gzip>();
    registry.add::<HmacAuth>();
    registry.add::<IpRestriction>();
    registry.add::<JwtAuth>();
    registry.add::<KeyAuth>();
    registry.add::<LimitConn>();
    registry.add::<LimitCount>();
    registry.add::<LimitReq>();
    registry.add::<Mocking>();
    registry.add::<MultiAuth>();
    registry.add::<NodeStatus>();
    registry.add::<Opa>();
    registry.add::<OpenFunction>();
    registry.add::<OpenWhisk>();
    registry.add::<ProxyCache>();
    registry.add::<ProxyMirror>();
    registry.add::<ProxyRewrite>();
    registry.add::<PublicApi>();
    registry.add::<RealIp>();
    registry.add::<Redirect>();
    registry.add::<RefererRestriction>();
    registry.add::<RequestId>();
    registry.add::<RequestValidation>();
    registry.add::<ResponseRewrite>();
    registry.add::<TrafficSplit>();
    registry.add::<UaRestriction>();
    registry.add::<UriBlocker>();
    registry.add::<Workflow>();
    #[cfg(feature = "lua")]
    {
        registry.add::<ServerlessPostFunction>();
        registry.add::<ServerlessPreFunction>();
        registry.run_filter_funcs(sluicegate_lua::FILTER_FUNCS);
    }
    registry
}

/// A random UUID (version 4) of these bytes.
pub fn uuid_v4(raw: [u8; 16]) -> String {
    request_id::uuid(raw, 4).map(char::from).iter().collect()
}

/// Takes `plugin_attr.serverless` of config.yaml: what Lua functions may use; and the names and sizes
/// of the zones that they share.
///
/// # Errors
/// Which key has a value that it cannot have; the limits before stay in force.
pub fn configure_lua(attr: &serde_json::Value, zones: &[(String, u64)]) -> Result<(), String> {
    #[cfg(feature = "lua")]
    {
        sluicegate_lua::configure_zones(zones);
        sluicegate_lua::configure(sluicegate_lua::Limits::read(attr)?);
    }
    #[cfg(not(feature = "lua"))]
    let _ = (attr, zones);
    Ok(())
}

/// Are these limits that [`configure_lua`] takes?
///
/// # Errors
/// Which key has a value that it cannot have.
pub fn check_lua(attr: &serde_json::Value) -> Result<(), String> {
    #[cfg(feature = "lua")]
    sluicegate_lua::Limits::read(attr)?;
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
