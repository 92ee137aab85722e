//! Sending and redacting. Client-Server API, "Sending events to a room" and "Redactions".

use ::rooms::{Presences, Rooms};
use axum::{Router, extract::State};
use event_bus::Typing;
use ruma::{
    MilliSecondsSinceUnixEpoch, UserId,
    api::client::{message::send_message_event, redact::redact_event, state::send_state_event},
    events::TimelineEventType,
};
use web::{MatrixError, Requester, RequesterOrGuest, Ruma, RumaRoutes as _};

use super::{redact_request::RedactEvent, typing::stop_typing};
use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(send_message_event).ruma_route(send_state_event).ruma_route(redact_event)
}

/// `PUT /rooms/{roomId}/send/{eventType}/{txnId}`.
async fn send_message_event(
    State(rooms): State<Rooms>,
    State(presences): State<Presences>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<send_message_event::v3::Request>,
) -> Result<Ruma<send_message_event::v3::Response>, MatrixError> {
    let event_type = TimelineEventType::from(request.event_type.to_string());
    let timestamp = timestamp_of(&requester, request.timestamp);
    let event_id = rooms
        .send_message(&requester, &request.room_id, event_type, &request.txn_id, request.body.json(), timestamp)
        .await?;
    presences.active(&requester);
    Ok(Ruma(send_message_event::v3::Response::new(event_id)))
}

/// `PUT /rooms/{roomId}/state/{eventType}/{stateKey}`.
async fn send_state_event(
    State(rooms): State<Rooms>,
    State(typing): State<Typing>,
    State(presences): State<Presences>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<send_state_event::v3::Request>,
) -> Result<Ruma<send_state_event::v3::Response>, MatrixError> {
    let event_type = TimelineEventType::from(request.event_type.to_string());
    let member = (event_type == TimelineEventType::RoomMember).then(|| request.state_key.clone());
    let timestamp = timestamp_of(&requester, request.timestamp);
    let event_id = rooms
        .send_state(&requester, &request.room_id, event_type, &request.state_key, request.body.json(), timestamp)
        .await?;
    presences.active(&requester);
    if let Some(user_id) = member.and_then(|user_id| UserId::parse(user_id).ok()) {
        stop_typing(&rooms, &typing, &request.room_id, &user_id).await?;
    }
    Ok(Ruma(send_state_event::v3::Response::new(event_id)))
}

/// `PUT /rooms/{roomId}/redact/{eventId}/{txnId}`.
async fn redact_event(
    State(rooms): State<Rooms>,
    State(presences): State<Presences>,
    requester: Requester,
    Ruma(RedactEvent { request, related }): Ruma<RedactEvent>,
) -> Result<Ruma<redact_event::v3::Response>, MatrixError> {
    let (room_id, reason) = (&request.room_id, request.reason.as_deref());
    let event_id =
        rooms.redact_with_related(&requester, room_id, &request.event_id, &request.txn_id, reason, related).await?;
    presences.active(&requester);
    Ok(Ruma(redact_event::v3::Response::new(event_id)))
}

/// Only application services choose the time of an event. Application Service API, "Timestamp massaging".
fn timestamp_of(
    requester: &accounts::Requester,
    asked: Option<MilliSecondsSinceUnixEpoch>,
) -> Option<MilliSecondsSinceUnixEpoch> {
    asked.filter(|_| requester.app_service.is_some())
}
