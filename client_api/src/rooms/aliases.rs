//! Names of rooms. Client-Server API, "Room aliases".

use ::rooms::Rooms;
use accounts::Accounts;
use axum::{Router, extract::State};
use http::request::Parts;
use ruma::api::client::{
    alias::{create_alias, delete_alias, get_alias},
    room::aliases,
};
use web::{MatrixError, OptionalRequester, RateLimits, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_alias).ruma_route(create_alias).ruma_route(delete_alias).ruma_route(aliases)
}

/// `GET /directory/room/{roomAlias}`; without a token too, but for an alias of another server: strangers do not make us ask it.
async fn get_alias(
    State(rooms): State<Rooms>,
    State(limits): State<RateLimits>,
    OptionalRequester(requester): OptionalRequester,
    parts: Parts,
    Ruma(request): Ruma<get_alias::v3::Request>,
) -> Result<Ruma<get_alias::v3::Response>, MatrixError> {
    let as_server = match &requester {
        Some(requester) => requester.user_id.server_name(),
        None if rooms.servers().is_local(request.room_alias.server_name()) => rooms.servers().primary(),
        None => return Err(MatrixError::missing_token()),
    };
    if !rooms.servers().is_local(request.room_alias.server_name()) {
        limits.check_change(&parts)?;
    }
    let (room_id, servers) = rooms.resolve_alias(as_server, &request.room_alias).await?;
    Ok(Ruma(get_alias::v3::Response::new(room_id, servers)))
}

/// `PUT /directory/room/{roomAlias}`.
async fn create_alias(
    State(rooms): State<Rooms>,
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<create_alias::v3::Request>,
) -> Result<Ruma<create_alias::v3::Response>, MatrixError> {
    accounts.check_alias(&requester, &request.room_alias)?;
    rooms.create_alias(&requester, &request.room_alias, &request.room_id).await?;
    Ok(Ruma(create_alias::v3::Response::new()))
}

/// `DELETE /directory/room/{roomAlias}`.
async fn delete_alias(
    State(rooms): State<Rooms>,
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<delete_alias::v3::Request>,
) -> Result<Ruma<delete_alias::v3::Response>, MatrixError> {
    accounts.check_alias(&requester, &request.room_alias)?;
    rooms.delete_alias(&requester, &request.room_alias).await?;
    Ok(Ruma(delete_alias::v3::Response::new()))
}

/// `GET /rooms/{roomId}/aliases`.
async fn aliases(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<aliases::v3::Request>,
) -> Result<Ruma<aliases::v3::Response>, MatrixError> {
    Ok(Ruma(aliases::v3::Response::new(rooms.aliases(&requester, &request.room_id).await?)))
}
