//! Users of other servers leave our rooms, refuse invitations, and knock. Server-Server API, "Leaving Rooms (Rejecting Invites)",
//! "Knocking upon a room".

use axum::{Router, extract::State};
use model::canonical_object;
use rooms::{Asker, Handshake, Rooms, Template};
use ruma::{
    CanonicalJsonObject, RoomId, RoomVersionId, UserId,
    api::federation::membership::{
        RawStrippedState, create_knock_event, create_leave_event, prepare_knock_event, prepare_leave_event,
    },
    signatures::PublicKeyMap,
};
use serde_json::value::RawValue;
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{FederationApi, Signed};
use crate::Federation;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new()
        .ruma_route(prepare_leave_event)
        .ruma_route(create_leave_event)
        .ruma_route(prepare_knock_event)
        .ruma_route(create_knock_event)
}

/// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`.
async fn prepare_leave_event(
    State(rooms): State<Rooms>,
    signed: Signed<prepare_leave_event::v1::Request>,
) -> Result<Ruma<prepare_leave_event::v1::Response>, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    let template = template(&rooms, asker, &request.room_id, &request.user_id, Handshake::Leave, None).await?;
    Ok(Ruma(prepare_leave_event::v1::Response::new(Some(template.version), template.event)))
}

/// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`.
async fn create_leave_event(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    signed: Signed<create_leave_event::v2::Request>,
) -> Result<Ruma<create_leave_event::v2::Response>, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    let (event, keys) = read_event(&rooms, &federation, &request.room_id, &request.pdu).await?;
    let ids = (&*request.room_id, &*request.event_id);
    rooms.accept_handshake(asker, ids, Handshake::Leave, event, &keys).await?;
    Ok(Ruma(create_leave_event::v2::Response::new()))
}

/// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}`.
async fn prepare_knock_event(
    State(rooms): State<Rooms>,
    signed: Signed<prepare_knock_event::v1::Request>,
) -> Result<Ruma<prepare_knock_event::v1::Response>, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    let versions = Some(&*request.ver);
    let template = template(&rooms, asker, &request.room_id, &request.user_id, Handshake::Knock, versions).await?;
    Ok(Ruma(prepare_knock_event::v1::Response::new(template.version, template.event)))
}

/// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`.
async fn create_knock_event(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    signed: Signed<create_knock_event::v1::Request>,
) -> Result<Ruma<create_knock_event::v1::Response>, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    let (event, keys) = read_event(&rooms, &federation, &request.room_id, &request.pdu).await?;
    let ids = (&*request.room_id, &*request.event_id);
    let knock = rooms.accept_handshake(asker, ids, Handshake::Knock, event, &keys).await?;
    let state = rooms.shown_to_knocking(&knock).await?.into_iter().map(RawStrippedState::Pdu).collect();
    Ok(Ruma(create_knock_event::v1::Response::new(state)))
}

pub(super) async fn template(
    rooms: &Rooms,
    asker: Asker<'_>,
    room_id: &RoomId,
    user_id: &UserId,
    handshake: Handshake,
    versions: Option<&[RoomVersionId]>,
) -> Result<Template, MatrixError> {
    Ok(rooms.handshake_template(asker, room_id, user_id, handshake, versions).await?)
}

/// An event of a room as it was sent to us, and the keys of those who must have signed it.
pub(super) async fn read_event(
    rooms: &Rooms,
    federation: &Federation,
    room_id: &RoomId,
    event: &RawValue,
) -> Result<(CanonicalJsonObject, PublicKeyMap), MatrixError> {
    let room = rooms.room(room_id).await?;
    let event = canonical_object(event).map_err(|error| MatrixError::bad_json(error.to_string()))?;
    let rules = room.version.rules().ok_or_else(|| MatrixError::not_found("unknown room version"))?;
    let keys = federation.keys_of_event(&event, &rules).await.map_err(|error| MatrixError::internal(&error))?;
    Ok((event, keys))
}
