//! Networks that application services bridge. Client-Server API, "Third-party Networks".
//!
//! What a protocol is like, and who is where on its networks, only its application service knows. None is asked yet, so that no protocol is
//! known: lists are empty, and what is asked of a protocol is not found. Rooms that application services published on their networks are in
//! the directory all the same.

use std::collections::BTreeMap;

use ::rooms::Rooms;
use axum::{Router, extract::State};
use ruma::api::client::thirdparty::{
    get_location_for_protocol, get_location_for_room_alias, get_protocol, get_protocols, get_user_for_protocol,
    get_user_for_user_id,
};
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_protocols)
        .ruma_route(get_protocol)
        .ruma_route(get_location_for_protocol)
        .ruma_route(get_user_for_protocol)
        .ruma_route(get_location_for_room_alias)
        .ruma_route(get_user_for_user_id)
}

/// `GET /thirdparty/protocols`.
async fn get_protocols(
    _requester: Requester,
    Ruma(_): Ruma<get_protocols::v3::Request>,
) -> Ruma<get_protocols::v3::Response> {
    Ruma(get_protocols::v3::Response::new(BTreeMap::new()))
}

/// `GET /thirdparty/protocol/{protocol}`.
async fn get_protocol(
    _requester: Requester,
    Ruma(_): Ruma<get_protocol::v3::Request>,
) -> Result<Ruma<get_protocol::v3::Response>, MatrixError> {
    Err(unknown_protocol())
}

/// `GET /thirdparty/location/{protocol}`.
async fn get_location_for_protocol(
    _requester: Requester,
    Ruma(_): Ruma<get_location_for_protocol::v3::Request>,
) -> Result<Ruma<get_location_for_protocol::v3::Response>, MatrixError> {
    Err(unknown_protocol())
}

/// `GET /thirdparty/user/{protocol}`.
async fn get_user_for_protocol(
    _requester: Requester,
    Ruma(_): Ruma<get_user_for_protocol::v3::Request>,
) -> Result<Ruma<get_user_for_protocol::v3::Response>, MatrixError> {
    Err(unknown_protocol())
}

/// `GET /thirdparty/location`.
async fn get_location_for_room_alias(
    State(rooms): State<Rooms>,
    _requester: Requester,
    Ruma(request): Ruma<get_location_for_room_alias::v3::Request>,
) -> Result<Ruma<get_location_for_room_alias::v3::Response>, MatrixError> {
    rooms.resolve_local_alias(&request.alias).await?;
    Ok(Ruma(get_location_for_room_alias::v3::Response::new(Vec::new())))
}

/// `GET /thirdparty/user`.
async fn get_user_for_user_id(
    _requester: Requester,
    Ruma(_): Ruma<get_user_for_user_id::v3::Request>,
) -> Ruma<get_user_for_user_id::v3::Response> {
    Ruma(get_user_for_user_id::v3::Response::new(Vec::new()))
}

fn unknown_protocol() -> MatrixError {
    MatrixError::not_found("this server knows no such protocol")
}
