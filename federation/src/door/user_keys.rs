//! Devices and keys of our users. Server-Server API, "Device Management", "End-to-End Encryption".

use accounts::Accounts;
use axum::{Json, Router, extract::State};
use ruma::api::federation::{
    device::get_devices,
    keys::{claim_keys, get_keys},
};
use serde_json::{Value, json};
use web::{MatrixError, RumaRoutes as _};

use super::{FederationApi, Signed};

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(get_devices).ruma_route(get_keys).ruma_route(claim_keys)
}

/// `GET /_matrix/federation/v1/user/devices/{userId}`.
async fn get_devices(
    State(accounts): State<Accounts>,
    Signed { request, destination, .. }: Signed<get_devices::v1::Request>,
) -> Result<Json<Value>, MatrixError> {
    let user_id = request.user_id;
    if user_id.server_name() != destination {
        return Err(MatrixError::not_found(format!("{user_id} is not a user of {destination}")));
    }
    let list = accounts.device_list_of(&user_id).await?;
    let devices = list.devices.into_iter().map(|(device_id, keys)| json!({"device_id": device_id, "keys": keys}));
    let devices: Vec<Value> = devices.collect();
    let mut answer = json!({"user_id": user_id, "stream_id": list.stream_id, "devices": devices});
    for (name, key) in [("master_key", list.master_key), ("self_signing_key", list.self_signing_key)] {
        if let Some(key) = key {
            answer[name] = key;
        }
    }
    Ok(Json(answer))
}

/// `POST /_matrix/federation/v1/user/keys/query`.
async fn get_keys(
    State(accounts): State<Accounts>,
    Signed { request, destination, .. }: Signed<get_keys::v1::Request>,
) -> Result<Json<Value>, MatrixError> {
    let found = accounts.query_keys_for_server(&destination, &request.device_keys).await?;
    Ok(Json(json!({
        "device_keys": found.device_keys,
        "master_keys": found.master_keys,
        "self_signing_keys": found.self_signing_keys,
    })))
}

/// `POST /_matrix/federation/v1/user/keys/claim`.
async fn claim_keys(
    State(accounts): State<Accounts>,
    Signed { request, destination, .. }: Signed<claim_keys::v1::Request>,
) -> Result<Json<Value>, MatrixError> {
    let wanted = request.one_time_keys.into_iter().map(|(user_id, devices)| {
        (user_id, devices.into_iter().map(|(device_id, algorithm)| (device_id, algorithm.to_string())).collect())
    });
    let claimed = accounts.claim_keys_for_server(&destination, wanted.collect()).await?;
    Ok(Json(json!({"one_time_keys": claimed.one_time_keys})))
}
