//! Looking into a room without being in it. Client-Server API, "Room Previews".

use std::time::Duration;

use ::rooms::Rooms;
use axum::{Router, extract::State, response::Response};
use ruma::{
    RoomId,
    api::client::peeking::{get_current_state, listen_to_new_events},
};
use serde::Serialize;
use serde_json::value::RawValue;
use storage::{AccountDataRow, Storage};
use sync::Sync;
use web::{MatrixError, ReadyJson, RequesterOrGuest, Ruma, RumaRoutes as _};

use super::pieces::answer_with_events;
use crate::ClientApi;

/// Messages that come with the state of a room.
const MESSAGES: u32 = 20;

/// A room but for its state. Client-Server API, "GET /rooms/{roomId}/initialSync".
#[derive(Serialize)]
struct Snapshot<'a> {
    room_id: &'a RoomId,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
    messages: Messages,
    visibility: &'static str,
    account_data: Vec<AccountData<'a>>,
}

#[derive(Serialize)]
struct Messages {
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    end: String,
    chunk: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct AccountData<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    content: &'a RawValue,
}

impl<'a> AccountData<'a> {
    fn of(row: &'a AccountDataRow) -> Option<Self> {
        Some(Self { event_type: &row.event_type, content: serde_json::from_str(&row.content).ok()? })
    }
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
) -> Result<Response, MatrixError> {
    let room_id = &*request.room_id;
    let (mut page, state) = rooms.snapshot(&requester, room_id, MESSAGES).await?;
    page.events.reverse();
    let reader = &page.reader;
    let chunk = rooms.render(reader, &page.events, true).await?;
    let data = storage.list_account_data_of_room(requester.user_nr, reader.room.nr).await?;
    let snapshot = Snapshot {
        room_id,
        membership: reader.membership.map(|row| row.membership.as_str()),
        messages: Messages { start: page.end.map(|end| end.to_string()), end: page.start.to_string(), chunk },
        visibility: if rooms.is_listed(room_id).await? { "public" } else { "private" },
        account_data: data.iter().filter_map(AccountData::of).collect(),
    };
    let mut before = serde_json::to_vec(&snapshot).map_err(|error| MatrixError::internal(&error))?;
    // The state goes into the same object, as its last field: it may be large.
    before.pop();
    before.extend_from_slice(br#","state":["#);
    answer_with_events(before, state, "]}").await
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
