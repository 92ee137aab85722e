//! Reading the state of a room. Client-Server API, "Getting events for a room".

use ::rooms::Rooms;
use axum::{Router, extract::State, response::Response};
use ruma::api::client::state::{
    get_state_event_for_key::{self, v3::StateEventFormat},
    get_state_events,
};
use web::{MatrixError, RequesterOrGuest, Ruma, RumaRoutes as _};

use super::pieces::answer_with_events;
use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_state_events).ruma_route(get_state_event_for_key)
}

/// `GET /rooms/{roomId}/state`.
async fn get_state_events(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_state_events::v3::Request>,
) -> Result<Response, MatrixError> {
    answer_with_events("[", rooms.full_state(&requester, &request.room_id).await?, "]").await
}

/// `GET /rooms/{roomId}/state/{eventType}/{stateKey}`.
async fn get_state_event_for_key(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_state_event_for_key::v3::Request>,
) -> Result<Ruma<get_state_event_for_key::v3::Response>, MatrixError> {
    let event_type = request.event_type.to_string();
    let (reader, event) = rooms.state_event(&requester, &request.room_id, &event_type, &request.state_key).await?;
    let answer = match request.format {
        StateEventFormat::Content => event.pdu.content.clone(),
        StateEventFormat::Event => {
            let mut rendered = rooms.render(&reader, &[event], true).await?;
            rendered.pop().ok_or_else(|| MatrixError::from(rooms::Error::StateUnknown))?
        }
        _ => return Err(MatrixError::invalid_param("`format` is `content` or `event`")),
    };
    Ok(Ruma(get_state_event_for_key::v3::Response::new(answer)))
}
