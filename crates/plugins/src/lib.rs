//! The plugins. This is the one list of them.

mod aws_lambda;

pub use aws_lambda::AwsLambda;
use sluicegate_gateway::plugin::Registry;

/// Every plugin there is.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add::<AwsLambda>();
    registry
}
