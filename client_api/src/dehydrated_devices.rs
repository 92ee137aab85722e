//! Dehydrated devices. MSC3814, under the paths of before its acceptance.

use accounts::{Accounts, NewDehydratedDevice};
use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::QueryRejection},
    routing::get,
};
use model::{Position, StreamToken};
use ruma::api::client::dehydrated_device::{
    delete_dehydrated_device, get_dehydrated_device, get_events, put_dehydrated_device,
};
use serde::Deserialize;
use serde_json::{Value, json};
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{
    ClientApi,
    keys::{key_upload, value},
    requester::Requester,
};

const EVENTS_PATH: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{argument_1}/events";

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(put_dehydrated_device)
        .ruma_route(get_dehydrated_device)
        .ruma_route(delete_dehydrated_device)
        .ruma_route(get_events)
        .route(EVENTS_PATH, get(get_events_page))
}

/// `PUT /dehydrated_device`.
async fn put_dehydrated_device(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<put_dehydrated_device::unstable::Request>,
) -> Result<Ruma<put_dehydrated_device::unstable::Response>, MatrixError> {
    let device_keys = Some(value(&request.device_keys)?);
    let new = NewDehydratedDevice {
        device_id: request.device_id.clone(),
        display_name: request.initial_device_display_name,
        device_data: request.device_data.into_json(),
        keys: key_upload(device_keys, &request.one_time_keys, &request.fallback_keys)?,
    };
    accounts.put_dehydrated_device(&requester, new).await?;
    Ok(Ruma(put_dehydrated_device::unstable::Response::new(request.device_id)))
}

/// `GET /dehydrated_device`.
async fn get_dehydrated_device(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(_request): Ruma<get_dehydrated_device::unstable::Request>,
) -> Result<Json<Value>, MatrixError> {
    let (device_id, device_data) = accounts.dehydrated_device(&requester).await?;
    Ok(Json(json!({"device_id": device_id, "device_data": device_data})))
}

/// `DELETE /dehydrated_device`.
async fn delete_dehydrated_device(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(_request): Ruma<delete_dehydrated_device::unstable::Request>,
) -> Result<Ruma<delete_dehydrated_device::unstable::Response>, MatrixError> {
    let device_id = accounts.delete_dehydrated_device(&requester).await?;
    Ok(Ruma(delete_dehydrated_device::unstable::Response::new(device_id)))
}

/// `POST /dehydrated_device/{deviceId}/events`, as clients in use ask: they go on until there are no events, so that each answer has a
/// `next_batch`.
async fn get_events(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_events::unstable::Request>,
) -> Result<Json<Value>, MatrixError> {
    let after = position(request.next_batch.as_deref())?;
    let found = accounts.dehydrated_messages(&requester, request.device_id.as_str(), after).await?;
    Ok(Json(json!({"events": found.events, "next_batch": StreamToken::at(found.upto).to_string()})))
}

#[derive(Debug, Deserialize)]
struct EventsQuery {
    from: Option<String>,
}

/// `GET /dehydrated_device/{deviceId}/events`, as the proposal has it by now: the last page has no `next_batch`.
async fn get_events_page(
    State(accounts): State<Accounts>,
    requester: Requester,
    Path(device_id): Path<String>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Json<Value>, MatrixError> {
    let Query(query) = query.map_err(|error| MatrixError::invalid_param(error.body_text()))?;
    let found = accounts.dehydrated_messages(&requester, &device_id, position(query.from.as_deref())?).await?;
    let mut answer = json!({"events": found.events});
    if found.has_more {
        answer["next_batch"] = json!(StreamToken::at(found.upto).to_string());
    }
    Ok(Json(answer))
}

/// Where a page begins: behind the one before.
fn position(token: Option<&str>) -> Result<Position, MatrixError> {
    let Some(token) = token else { return Ok(Position(0)) };
    let token: StreamToken = token.parse().map_err(|_| MatrixError::invalid_param("the token is none of ours"))?;
    Ok(token.position)
}
