//! What the Control API explains about `aws-lambda`: asked of the plugin, with the values of
//! references in place.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;
use sluicegate_admin::explain::{Explain, Question};
use sluicegate_gateway::snapshot::References as _;
use sluicegate_gateway::upstream::UpstreamDeps;
use sluicegate_plugins::{ExplainPlace, ExplainRequest};

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
            let Question { mut config, route_uri, is_given, request } = question;
            let request: ExplainRequest =
                serde_json::from_value(request).map_err(|error| error.to_string())?;
            let written = config.clone();
            // What somebody writes into a question gets no secrets put in.
            if !is_given {
                references.put_values(&mut config)?;
            }
            let place = ExplainPlace {
                attr: attrs.get("aws-lambda"),
                route_uri: route_uri.as_deref(),
                is_given,
                hides_target: TARGET.iter().any(|field| written.get(field) != config.get(field)),
            };
            let explained = sluicegate_plugins::explain(&config, place, &deps, &request).await;
            let has_values = config != written;
            let redact = |text: String| references.redact(text);
            match explained {
                Ok(mut told) => {
                    walk(&mut told, &redact);
                    Ok(told)
                }
                // Texts quote what is wrong, also in part.
                Err(why) if has_values => Err(without_quotes(&redact(why))),
                Err(why) => Err(redact(why)),
            }
        })
    })
}

fn walk(told: &mut Value, redact: &dyn Fn(String) -> String) {
    match told {
        Value::String(text) => *text = redact(std::mem::take(text)),
        Value::Array(items) => items.iter_mut().for_each(|item| walk(item, redact)),
        Value::Object(members) => members.values_mut().for_each(|member| walk(member, redact)),
        _ => {}
    }
}

/// A text without what stands between its first and its last double quote.
fn without_quotes(text: &str) -> String {
    match (text.find('"'), text.rfind('"')) {
        (Some(first), Some(last)) => format!("{}\"***\"{}", &text[..first], &text[last + 1..]),
        _ => text.to_owned(),
    }
}

/// Fields that say where a call goes.
const TARGET: [&str; 2] = ["function_uri", "function"];
