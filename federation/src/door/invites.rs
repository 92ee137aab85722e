//! Other servers invite our users, and ask for invitations of theirs. Server-Server API, "Inviting to a room", "Third-party invites".

use axum::{Router, extract::State};
use model::canonical_object;
use rooms::{Asker, Rooms};
use ruma::{
    CanonicalJsonObject, EventId, RoomId, RoomVersionId,
    api::federation::{
        membership::{RawStrippedState, create_invite},
        thirdparty::exchange_invite,
    },
    events::StateEventType,
};
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{FederationApi, Signed, leaves_and_knocks::read_event};
use crate::invite_v1;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(create_invite).ruma_route(create_invite_v1).ruma_route(exchange_invite)
}

/// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`.
async fn create_invite(
    State(rooms): State<Rooms>,
    signed: Signed<create_invite::v2::Request>,
) -> Result<Ruma<create_invite::v2::Response>, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    let room_state = request.invite_room_state.iter().map(|event| match event {
        RawStrippedState::Pdu(json) => Ok(json.clone()),
        // As servers of before 1.16 send them.
        other => to_raw_value(other).map_err(|error| MatrixError::bad_json(error.to_string())),
    });
    let room_state = room_state.collect::<Result<Vec<_>, _>>()?;
    let ids = (&*request.room_id, &*request.event_id);
    let event = read_event(&request.event)?;
    let event = accept(&rooms, asker, ids, &request.room_version, event, room_state).await?;
    Ok(Ruma(create_invite::v2::Response::new(event)))
}

/// `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`.
async fn create_invite_v1(
    State(rooms): State<Rooms>,
    signed: Signed<invite_v1::Request>,
) -> Result<Ruma<create_invite::v1::Response>, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    rooms.check_server_allowed(&request.room_id, asker.origin).await?;
    let room_state = shown_in_unsigned(&request.event);
    let version = match rooms.room(&request.room_id).await {
        Ok(room) => room.version.clone(),
        Err(rooms::Error::RoomUnknown) => version_of(&room_state),
        Err(error) => return Err(error.into()),
    };
    if !matches!(version, RoomVersionId::V1 | RoomVersionId::V2) {
        return Err(rooms::Error::IncompatibleVersion(version).into());
    }
    let ids = (&*request.room_id, &*request.event_id);
    let event = accept(&rooms, asker, ids, &version, read_event(&request.event)?, room_state).await?;
    let answer = to_raw_value(&json!({ "event": event })).map_err(|error| MatrixError::internal(&error))?;
    Ok(Ruma(create_invite::v1::Response::new(answer)))
}

/// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`.
async fn exchange_invite(
    State(rooms): State<Rooms>,
    signed: Signed<exchange_invite::v1::Request>,
) -> Result<Ruma<exchange_invite::v1::Response>, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    if request.kind != StateEventType::RoomMember {
        return Err(MatrixError::invalid_param("the event is no `m.room.member`"));
    }
    let content = canonical_object(request.content.json()).map_err(|error| MatrixError::bad_json(error.to_string()))?;
    let (sender, invited) = (&request.sender, &request.state_key);
    rooms.exchange_third_party_invite(asker, &request.room_id, sender, invited, content).await?;
    Ok(Ruma(exchange_invite::v1::Response::new()))
}

async fn accept(
    rooms: &Rooms,
    asker: Asker<'_>,
    ids: (&RoomId, &EventId),
    version: &RoomVersionId,
    event: CanonicalJsonObject,
    room_state: Vec<Box<RawValue>>,
) -> Result<Box<RawValue>, MatrixError> {
    let signed = rooms.accept_invite(asker, ids, version, event, room_state).await?;
    to_raw_value(&signed).map_err(|error| MatrixError::internal(&error))
}

/// The events that show the room, where they were before there was a version 2 of the endpoint.
fn shown_in_unsigned(event: &RawValue) -> Vec<Box<RawValue>> {
    #[derive(Deserialize)]
    struct Event {
        unsigned: Unsigned,
    }
    #[derive(Deserialize)]
    struct Unsigned {
        invite_room_state: Vec<Box<RawValue>>,
    }
    serde_json::from_str::<Event>(event.get()).map(|event| event.unsigned.invite_room_state).unwrap_or_default()
}

/// The version that a create event says, if there is one; else the first one.
fn version_of(room_state: &[Box<RawValue>]) -> RoomVersionId {
    #[derive(Deserialize)]
    struct Event {
        #[serde(rename = "type")]
        event_type: String,
        content: Content,
    }
    #[derive(Deserialize)]
    struct Content {
        room_version: Option<RoomVersionId>,
    }
    let events = room_state.iter().filter_map(|event| serde_json::from_str::<Event>(event.get()).ok());
    let mut created = events.filter(|event| event.event_type == "m.room.create");
    created.next().and_then(|create| create.content.room_version).unwrap_or(RoomVersionId::V1)
}
