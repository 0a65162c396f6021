//! The plugins. This is the one list of them.

mod answers;
mod apis;
mod auth;
mod aws_lambda;
mod azure_functions;
mod batch_requests;
mod brotli;
mod client_control;
mod coding;
mod cors;
mod echo;
mod fault_injection;
mod gzip;
mod headers;
mod ip_restriction;
mod key_auth;
mod limit;
mod limit_count;
mod mocking;
mod node_status;
mod openfunction;
mod openwhisk;
pub mod pcre;
mod proxy_rewrite;
mod public_api;
mod real_ip;
mod redirect;
mod referer_restriction;
mod request_id;
mod request_validation;
mod response_rewrite;
pub mod template;
mod ua_restriction;
mod uri_blocker;

pub use self::brotli::Brotli;
pub use aws_lambda::AwsLambda;
pub use azure_functions::AzureFunctions;
pub use batch_requests::BatchRequests;
pub use client_control::ClientControl;
pub use cors::Cors;
pub use echo::Echo;
pub use fault_injection::FaultInjection;
pub use gzip::Gzip;
pub use ip_restriction::IpRestriction;
pub use key_auth::KeyAuth;
pub use limit_count::LimitCount;
pub use mocking::Mocking;
pub use node_status::NodeStatus;
pub use openfunction::OpenFunction;
pub use openwhisk::OpenWhisk;
pub use proxy_rewrite::ProxyRewrite;
pub use public_api::PublicApi;
pub use real_ip::RealIp;
pub use redirect::Redirect;
pub use referer_restriction::RefererRestriction;
pub use request_id::RequestId;
pub use request_validation::RequestValidation;
pub use response_rewrite::ResponseRewrite;
use sluicegate_gateway::plugin::Registry;
pub use ua_restriction::UaRestriction;
pub use uri_blocker::UriBlocker;

/// Every plugin there is.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add::<AwsLambda>();
    registry.add::<AzureFunctions>();
    registry.add::<Cors>();
    registry.add::<KeyAuth>();
    registry.add::<LimitCount>();
    registry.add::<OpenFunction>();
    registry.add::<OpenWhisk>();
    registry.add::<ProxyRewrite>();
    registry.add::<Redirect>();
    registry.add::<RequestId>();
    registry.add::<ResponseRewrite>();
    registry.add::<ClientControl>();
    registry.add::<Echo>();
    registry.add::<IpRestriction>();
    registry.add::<RealIp>();
    registry.add::<RefererRestriction>();
    registry.add::<UaRestriction>();
    registry.add::<UriBlocker>();
    registry.add::<BatchRequests>();
    registry.add::<NodeStatus>();
    registry.add::<PublicApi>();
    registry.add::<FaultInjection>();
    registry.add::<Mocking>();
    registry.add::<RequestValidation>();
    registry.add::<Gzip>();
    registry.add::<Brotli>();
    registry
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
