//! Moving a room to another version. Client-Server API, "Room upgrades".

use ::rooms::Rooms;
use accounts::Accounts;
use axum::{Router, extract::State};
use ruma::api::client::room::upgrade_room;
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(upgrade_room)
}

/// `POST /rooms/{roomId}/upgrade`.
async fn upgrade_room(
    State(rooms): State<Rooms>,
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<upgrade_room::v3::Request>,
) -> Result<Ruma<upgrade_room::v3::Response>, MatrixError> {
    let (version, creators) = (request.new_version, request.additional_creators);
    let new_room = rooms.upgrade(&accounts, &requester, &request.room_id, version, creators).await?;
    Ok(Ruma(upgrade_room::v3::Response::new(new_room)))
}
