//! Account data for all rooms and for one, and tags. Client-Server API, "Client Config" and "Room Tagging".

use accounts::Accounts;
use axum::{Json, Router, extract::State};
use rooms::Rooms;
use ruma::{
    api::client::{
        config::{get_global_account_data, get_room_account_data, set_global_account_data, set_room_account_data},
        tag::{create_tag, delete_tag, get_tags},
    },
    serde::Raw,
};
use serde_json::{Value, json, value::RawValue};
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, filter::check_own, requester::Requester};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_global_account_data)
        .ruma_route(set_global_account_data)
        .ruma_route(get_room_account_data)
        .ruma_route(set_room_account_data)
        .ruma_route(get_tags)
        .ruma_route(create_tag)
        .ruma_route(delete_tag)
}

fn raw<T>(content: String) -> Result<Raw<T>, MatrixError> {
    Ok(Raw::from_json(RawValue::from_string(content).map_err(|error| MatrixError::internal(&error))?))
}

/// `GET /user/{userId}/account_data/{type}`.
async fn get_global_account_data(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_global_account_data::v3::Request>,
) -> Result<Ruma<get_global_account_data::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let content = accounts.account_data(requester.user_nr, None, &request.event_type.to_string()).await?;
    Ok(Ruma(get_global_account_data::v3::Response::new(raw(content)?)))
}

/// `PUT /user/{userId}/account_data/{type}`.
async fn set_global_account_data(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<set_global_account_data::v3::Request>,
) -> Result<Ruma<set_global_account_data::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let (event_type, content) = (request.event_type.to_string(), request.data.json().get());
    accounts.set_account_data(requester.user_nr, None, &event_type, content).await?;
    Ok(Ruma(set_global_account_data::v3::Response::new()))
}

/// `GET /user/{userId}/rooms/{roomId}/account_data/{type}`.
async fn get_room_account_data(
    State(accounts): State<Accounts>,
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<get_room_account_data::v3::Request>,
) -> Result<Ruma<get_room_account_data::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let room = rooms.noted_room(&requester, &request.room_id).await?;
    let event_type = request.event_type.to_string();
    let content = accounts.account_data(requester.user_nr, Some(room.nr), &event_type).await?;
    Ok(Ruma(get_room_account_data::v3::Response::new(raw(content)?)))
}

/// `PUT /user/{userId}/rooms/{roomId}/account_data/{type}`.
async fn set_room_account_data(
    State(accounts): State<Accounts>,
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<set_room_account_data::v3::Request>,
) -> Result<Ruma<set_room_account_data::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let room = rooms.noted_room(&requester, &request.room_id).await?;
    let (event_type, content) = (request.event_type.to_string(), request.data.json().get());
    accounts.set_account_data(requester.user_nr, Some(room.nr), &event_type, content).await?;
    Ok(Ruma(set_room_account_data::v3::Response::new()))
}

/// `GET /user/{userId}/rooms/{roomId}/tags`.
async fn get_tags(
    State(accounts): State<Accounts>,
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<get_tags::v3::Request>,
) -> Result<Json<Value>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let room = rooms.noted_room(&requester, &request.room_id).await?;
    Ok(Json(json!({"tags": accounts.tags(requester.user_nr, room.nr).await?})))
}

/// `PUT /user/{userId}/rooms/{roomId}/tags/{tag}`.
async fn create_tag(
    State(accounts): State<Accounts>,
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<create_tag::v3::Request>,
) -> Result<Ruma<create_tag::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let room = rooms.noted_room(&requester, &request.room_id).await?;
    let info = serde_json::to_value(&request.tag_info).map_err(|error| MatrixError::bad_json(error.to_string()))?;
    accounts.set_tag(requester.user_nr, room.nr, &request.tag, info).await?;
    Ok(Ruma(create_tag::v3::Response::new()))
}

/// `DELETE /user/{userId}/rooms/{roomId}/tags/{tag}`.
async fn delete_tag(
    State(accounts): State<Accounts>,
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<delete_tag::v3::Request>,
) -> Result<Ruma<delete_tag::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let room = rooms.noted_room(&requester, &request.room_id).await?;
    accounts.delete_tag(requester.user_nr, room.nr, &request.tag).await?;
    Ok(Ruma(delete_tag::v3::Response::new()))
}
