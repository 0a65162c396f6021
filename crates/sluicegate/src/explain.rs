//! What the Control API explains about `aws-lambda`: asked of the plugin, with the values of
//! references in place.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;
use sluicegate_admin::explain::{Explain, Question};
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_plugins::ExplainRequest;

use crate::references::References;

/// Explains with what the running gateway has. `attrs` is `plugin_attr` of config.yaml.
pub(crate) fn explain(
    deps: UpstreamDeps,
    attrs: Arc<ArcSwap<Value>>,
    references: Arc<References>,
) -> Explain {
    Arc::new(move |question| {
        let (deps, attrs, references) = (deps.clone(), attrs.load_full(), references.clone());
        Box::pin(async move {
            let Question { mut config, route_uri, request } = question;
            // What somebody writes into a question gets no secrets put in.
            if route_uri.is_some() {
                references.put_values(&mut config)?;
            }
            let request: ExplainRequest =
                serde_json::from_value(request).map_err(|error| error.to_string())?;
            let attr = attrs.get("aws-lambda");
            sluicegate_plugins::explain(&config, attr, &deps, route_uri.as_deref(), &request).await
        })
    })
}
