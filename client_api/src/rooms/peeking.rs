//! Looking into a room without being in it. Client-Server API, "Room Previews".

use std::time::Duration;

use ::rooms::{PageRequest, Rooms};
use axum::{Router, extract::State};
use ruma::{
    api::client::{
        peeking::{
            get_current_state::{self, v3::PaginationChunk},
            listen_to_new_events,
        },
        room::Visibility,
    },
    serde::Raw,
};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use storage::{Storage, TimelineDirection};
use sync::Sync;
use web::{MatrixError, ReadyJson, RequesterOrGuest, Ruma, RumaRoutes as _};

use crate::ClientApi;

/// Messages that come with the state of a room.
const MESSAGES: u32 = 20;

#[derive(Serialize)]
struct AccountData<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    content: Option<Box<RawValue>>,
}

/// What has happened in a room. Not ruma's type, which leaves an empty `chunk` out: matrix-js-sdk wants one.
#[derive(Serialize)]
struct Events {
    start: String,
    end: String,
    chunk: Vec<Box<RawValue>>,
}

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_current_state).ruma_route(listen_to_new_events)
}

/// `GET /rooms/{roomId}/initialSync`.
async fn get_current_state(
    State(rooms): State<Rooms>,
    State(storage): State<Storage>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_current_state::v3::Request>,
) -> Result<Ruma<get_current_state::v3::Response>, MatrixError> {
    let asked = PageRequest { direction: TimelineDirection::Backward, from: None, to: None, limit: MESSAGES };
    let mut page = rooms.messages(&requester, &request.room_id, asked, |_| true).await?;
    page.events.reverse();
    let (reader, room_nr) = (&page.reader, page.reader.room.nr);
    let state = rooms.events_of_state(&reader.room, rooms.state_for(reader).await?).await?;

    let mut response = get_current_state::v3::Response::new(request.room_id);
    let messages = rooms.render(reader, &page.events, true).await?;
    let mut messages = PaginationChunk::new(raw(messages), page.start.to_string());
    messages.start = page.end.map(|end| end.to_string());
    response.messages = Some(messages);
    response.state = raw(rooms.render(reader, &state, true).await?);
    response.membership = reader.membership.map(|row| row.membership.as_str().into());
    let is_listed = rooms.is_listed(&response.room_id).await?;
    response.visibility = Some(if is_listed { Visibility::Public } else { Visibility::Private });
    for row in storage.list_account_data_of_room(requester.user_nr, room_nr).await? {
        let event = AccountData { event_type: &row.event_type, content: serde_json::from_str(&row.content).ok() };
        response.account_data.extend(to_raw_value(&event).ok().map(Raw::from_json));
    }
    Ok(Ruma(response))
}

/// `GET /events?room_id=`.
async fn listen_to_new_events(
    State(rooms): State<Rooms>,
    State(sync): State<Sync>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<listen_to_new_events::v3::Request>,
) -> Result<ReadyJson, MatrixError> {
    let timeout = request.timeout.unwrap_or(Duration::ZERO);
    let news = Box::pin(sync.peek(&requester, &request.room_id, request.from.as_deref(), timeout)).await?;
    let chunk = rooms.render(&news.reader, &news.events, true).await?;
    let events = Events { start: news.start.to_string(), end: news.end.to_string(), chunk };
    Ok(ReadyJson(serde_json::to_vec(&events).map_err(|error| MatrixError::internal(&error))?.into()))
}

fn raw<T>(events: Vec<Box<RawValue>>) -> Vec<Raw<T>> {
    events.into_iter().map(Raw::from_json).collect()
}
