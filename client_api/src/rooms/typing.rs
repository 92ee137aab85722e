//! Who is typing. Client-Server API, "Typing Notifications".

use ::rooms::{Presences, Rooms};
use axum::{Router, extract::State};
use event_bus::Typing;
use ruma::{
    RoomId, UserId,
    api::client::typing::create_typing_event::{self, v3},
};
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::<ClientApi>::new().ruma_route(create_typing_event)
}

/// `PUT /rooms/{roomId}/typing/{userId}`.
async fn create_typing_event(
    State(rooms): State<Rooms>,
    State(typing): State<Typing>,
    State(presences): State<Presences>,
    requester: Requester,
    Ruma(request): Ruma<create_typing_event::v3::Request>,
) -> Result<Ruma<create_typing_event::v3::Response>, MatrixError> {
    if request.user_id != requester.user_id {
        return Err(MatrixError::forbidden("nobody types for somebody else"));
    }
    let room = rooms.joined_room(&requester, &request.room_id).await?;
    let for_ms = match request.state {
        v3::Typing::No => None,
        // The bus has a bound of its own.
        v3::Typing::Yes(info) => Some(i64::try_from(info.timeout.as_millis()).unwrap_or(i64::MAX)),
    };
    typing.set(room.nr, requester.user_nr, for_ms);
    if for_ms.is_some() {
        presences.active(&requester);
    }
    Ok(Ruma(create_typing_event::v3::Response::new()))
}

/// Whoever is out of a room does not type there any more.
pub(super) async fn stop_typing(
    rooms: &Rooms,
    typing: &Typing,
    room_id: &RoomId,
    user_id: &UserId,
) -> Result<(), MatrixError> {
    if let Some((room_nr, user_nr)) = rooms.numbers_of_former_member(room_id, user_id).await? {
        typing.set(room_nr, user_nr, None);
    }
    Ok(())
}
