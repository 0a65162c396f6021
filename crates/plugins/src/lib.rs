//! The plugins. This is the one list of them.

mod aws_lambda;
mod azure_functions;
mod openfunction;
mod openwhisk;
pub mod template;

pub use aws_lambda::AwsLambda;
pub use azure_functions::AzureFunctions;
pub use openfunction::OpenFunction;
pub use openwhisk::OpenWhisk;
use sluicegate_gateway::plugin::Registry;

/// Every plugin there is.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add::<AwsLambda>();
    registry.add::<AzureFunctions>();
    registry.add::<OpenFunction>();
    registry.add::<OpenWhisk>();
    registry
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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
