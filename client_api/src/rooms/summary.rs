//! What a room shows of itself before somebody comes in. Client-Server API, "Room Summary".

use ::rooms::Rooms;
use axum::{Router, extract::State, routing::get};
use ruma::{OwnedRoomId, api::client::room::get_summary, events::room::member::MembershipState};
use web::{MatrixError, OptionalRequester, Ruma, RumaRoutes as _};

use crate::ClientApi;

/// Where it was at first, and where matrix-js-sdk looks for it at a server that advertises neither release nor feature. MSC3266.
const FIRST_PATH: &str = "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}";

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_summary).route(FIRST_PATH, get(get_summary))
}

/// `GET /room_summary/{roomIdOrAlias}`; without a token too.
async fn get_summary(
    State(rooms): State<Rooms>,
    OptionalRequester(requester): OptionalRequester,
    Ruma(request): Ruma<get_summary::v1::Request>,
) -> Result<Ruma<get_summary::v1::Response>, MatrixError> {
    let server = requester.as_ref().map_or(rooms.servers().primary(), |requester| requester.user_id.server_name());
    let mut via = request.via;
    let room_id = match OwnedRoomId::try_from(request.room_id_or_alias) {
        Ok(room_id) => room_id,
        Err(alias) => {
            let (room_id, servers) = rooms.resolve_alias(server, &alias).await?;
            via.extend(servers);
            room_id
        }
    };
    // Before version 12, the name in the id is that of the server that made the room.
    via.extend(room_id.server_name().map(ToOwned::to_owned));
    let preview = rooms.room_summary(requester.as_ref(), &room_id, &via).await?;
    let mut response = get_summary::v1::Response::new(preview.summary);
    // Who never was anything to the room has left it, too.
    response.membership =
        requester.map(|_| preview.membership.map_or(MembershipState::Leave, |membership| membership.as_str().into()));
    Ok(Ruma(response))
}
