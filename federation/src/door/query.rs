//! Short questions. Server-Server API, "Querying for information".

use accounts::Accounts;
use axum::{Json, Router, extract::State};
use rooms::Rooms;
use ruma::api::federation::query::{get_profile_information, get_room_information};
use serde_json::{Map, Value};
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{FederationApi, Signed};

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(get_profile_information).ruma_route(get_room_information)
}

/// `GET /_matrix/federation/v1/query/profile`.
async fn get_profile_information(
    State(accounts): State<Accounts>,
    Signed { request, destination, .. }: Signed<get_profile_information::v1::Request>,
) -> Result<Json<Map<String, Value>>, MatrixError> {
    if request.user_id.server_name() != destination {
        return Err(MatrixError::not_found(format!("{} is not a user of {destination}", request.user_id)));
    }
    let Some(field) = request.field else { return Ok(Json(accounts.profile(&request.user_id).await?)) };
    let value = accounts.profile_field(&request.user_id, field.as_str()).await?;
    Ok(Json(Map::from_iter([(field.to_string(), value)])))
}

/// `GET /_matrix/federation/v1/query/directory`.
async fn get_room_information(
    State(rooms): State<Rooms>,
    Signed { request, destination, .. }: Signed<get_room_information::v1::Request>,
) -> Result<Ruma<get_room_information::v1::Response>, MatrixError> {
    if request.room_alias.server_name() != destination {
        return Err(MatrixError::not_found(format!("{} is not an alias of {destination}", request.room_alias)));
    }
    let (room_id, servers) = rooms.resolve_local_alias(&request.room_alias).await?;
    Ok(Ruma(get_room_information::v1::Response::new(room_id, servers)))
}
