//! Resources that belong to others: credentials of a consumer, cost decorations of a service.
//!
//! They live under the key of their owner, and go with it.

use axum::http::StatusCode;
use serde_json::Value;
use sluicegate_model::{
    Kind,
    resource::{Key, id_text},
};

use crate::{
    AdminState,
    answer::Answer,
    resource::{parse, store_failed},
};

/// Prepares what is sent for a decoration: it belongs to the service of the path, and is the only
/// one of its field there.
pub(crate) async fn bind_decoration(
    state: &AdminState,
    service: &str,
    id: Option<&str>,
    value: &mut Value,
) -> Result<(), Answer> {
    let named = value.get("service_id").and_then(id_text);
    if named.is_some_and(|named| named != service) {
        return Err(Answer::refused("wrong service_id, it is taken from the path"));
    }
    let owner = Key::new(Kind::Services, service).to_string();
    if state.store.get(&owner).await.map_err(store_failed)?.is_none() {
        return Err(Answer::error(StatusCode::NOT_FOUND, "service not found"));
    }
    refuse_second_decoration(state, service, id, value).await?;
    value["service_id"] = service.into();
    Ok(())
}

/// Refuses a second decoration of a field.
pub(crate) async fn refuse_second_decoration(
    state: &AdminState,
    service: &str,
    id: Option<&str>,
    value: &Value,
) -> Result<(), Answer> {
    let Some(field) = value.get("field_path").and_then(Value::as_str) else { return Ok(()) };
    let body_id = value.get("id").and_then(id_text);
    let own = id.or(body_id.as_deref());
    let folder = Key::folder(Kind::GraphqlCostDecorations, Some(service));
    for entry in state.store.list(&folder).await.map_err(store_failed)?.entries {
        let other = entry.key.rsplit('/').next().unwrap_or_default();
        if own == Some(other) || parse(&entry)?["field_path"] != field {
            continue;
        }
        return Err(Answer::refused(format!(
            "field_path {field} is already decorated on this service by [{other}]"
        )));
    }
    Ok(())
}

/// Refuses a credential of a consumer that is not there.
pub(crate) async fn refuse_without_consumer(state: &AdminState, key: &Key) -> Result<(), Answer> {
    let (Kind::Credentials, Some(consumer)) = (key.kind, &key.parent) else { return Ok(()) };
    let owner = Key::new(Kind::Consumers, consumer.as_str()).to_string();
    match state.store.get(&owner).await.map_err(store_failed)? {
        Some(_) => Ok(()),
        None => Err(Answer::error(StatusCode::NOT_FOUND, "consumer not found")),
    }
}
