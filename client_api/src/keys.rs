//! Keys for end-to-end encryption. Client-Server API, "End-to-End Encryption".
//!
//! Keys go through as the JSON that they are: whatever ruma does not know of them stays, and so do their signatures.

use std::{collections::BTreeMap, time::Duration};

use accounts::{Accounts, CrossSigningKeys, KeyUpload, QueriedKeys};
use axum::{Json, Router, extract::State};
use model::StreamToken;
use ruma::{
    api::client::keys::{claim_keys, get_key_changes, get_keys, upload_keys, upload_signatures, upload_signing_keys},
    serde::Raw,
};
use serde_json::{Value, json};
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{
    ClientApi,
    requester::{GuestOrRequester, Requester},
    uiaa,
};

/// How long other servers are waited for. Client-Server API, "POST /keys/query", "POST /keys/claim": 10 seconds are recommended.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(upload_keys)
        .ruma_route(get_keys)
        .ruma_route(get_key_changes)
        .ruma_route(claim_keys)
        .ruma_route(upload_signing_keys)
        .ruma_route(upload_signatures)
}

/// JSON as it came.
pub(crate) fn value<T>(raw: &Raw<T>) -> Result<Value, MatrixError> {
    serde_json::from_str(raw.json().get()).map_err(|error| MatrixError::bad_json(error.to_string()))
}

fn values<K: ToString, T>(raw: &BTreeMap<K, Raw<T>>) -> Result<BTreeMap<String, Value>, MatrixError> {
    raw.iter().map(|(name, key)| Ok((name.to_string(), value(key)?))).collect()
}

/// What a device uploads.
pub(crate) fn key_upload<K: ToString, T>(
    device_keys: Option<Value>,
    one_time_keys: &BTreeMap<K, Raw<T>>,
    fallback_keys: &BTreeMap<K, Raw<T>>,
) -> Result<KeyUpload, MatrixError> {
    Ok(KeyUpload { device_keys, one_time_keys: values(one_time_keys)?, fallback_keys: values(fallback_keys)? })
}

/// `POST /keys/upload`.
async fn upload_keys(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<upload_keys::v3::Request>,
) -> Result<Json<Value>, MatrixError> {
    let device_keys = request.device_keys.as_ref().map(value).transpose()?;
    let upload = key_upload(device_keys, &request.one_time_keys, &request.fallback_keys)?;
    Ok(Json(json!({"one_time_key_counts": accounts.upload_keys(&requester, upload).await?})))
}

/// `POST /keys/query`.
async fn get_keys(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<get_keys::v3::Request>,
) -> Result<Json<QueriedKeys>, MatrixError> {
    let patience = request.timeout.unwrap_or(PATIENCE);
    Ok(Json(accounts.query_keys(&requester, &request.device_keys, patience).await?))
}

/// `GET /keys/changes`.
async fn get_key_changes(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_key_changes::v3::Request>,
) -> Result<Ruma<get_key_changes::v3::Response>, MatrixError> {
    let position = |token: &str| {
        let token: Result<StreamToken, _> = token.parse();
        token.map(|token| token.position).map_err(|error| MatrixError::invalid_param(error.to_string()))
    };
    let (changed, left) = accounts.key_changes(&requester, position(&request.from)?, position(&request.to)?).await?;
    Ok(Ruma(get_key_changes::v3::Response::new(changed, left)))
}

/// `POST /keys/claim`.
async fn claim_keys(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<claim_keys::v3::Request>,
) -> Result<Json<Value>, MatrixError> {
    let wanted = request.one_time_keys.into_iter().map(|(user_id, devices)| {
        (user_id, devices.into_iter().map(|(device_id, algorithm)| (device_id, algorithm.to_string())).collect())
    });
    let patience = request.timeout.unwrap_or(PATIENCE);
    let claimed = accounts.claim_keys(&requester, wanted.collect(), patience).await?;
    Ok(Json(json!({"failures": claimed.failures, "one_time_keys": claimed.one_time_keys})))
}

/// `POST /keys/device_signing/upload`.
async fn upload_signing_keys(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<upload_signing_keys::v3::Request>,
) -> Result<Ruma<upload_signing_keys::v3::Response>, MatrixError> {
    let keys = CrossSigningKeys {
        master_key: request.master_key.as_ref().map(value).transpose()?,
        self_signing_key: request.self_signing_key.as_ref().map(value).transpose()?,
        user_signing_key: request.user_signing_key.as_ref().map(value).transpose()?,
    };
    if !accounts.upload_exempt_cross_signing_keys(&requester, &keys).await? {
        let body = json!([keys.master_key, keys.self_signing_key, keys.user_signing_key]);
        uiaa::confirm(&accounts, &requester, "upload_signing_keys", body, request.auth.as_ref()).await?;
        accounts.upload_cross_signing_keys(&requester, &keys).await?;
    }
    Ok(Ruma(upload_signing_keys::v3::Response::new()))
}

/// `POST /keys/signatures/upload`.
async fn upload_signatures(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<upload_signatures::v3::Request>,
) -> Result<Json<Value>, MatrixError> {
    let mut signed = BTreeMap::new();
    for (user_id, keys) in request.signed_keys {
        let keys = serde_json::to_value(&keys).and_then(serde_json::from_value);
        signed.insert(user_id, keys.map_err(|error| MatrixError::bad_json(error.to_string()))?);
    }
    Ok(Json(json!({"failures": accounts.upload_signatures(&requester, &signed).await?})))
}
