//! What is read of other servers for a client that asks: their directories, spaces and times.

use std::time::Duration;

use outbound::Bounds;
use rooms::{Networks, PublicRooms, PublicRoomsRequest, RemoteError, ServedSpace};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, ServerName,
    api::{
        Direction,
        federation::{directory::get_public_rooms_filtered, event::get_event_by_timestamp, space::get_hierarchy},
    },
    directory::{Filter, RoomNetwork, RoomTypeFilter},
};
use storage::TimelineDirection;

use super::{is_not_found, unavailable};
use crate::Federation;

/// What an answer may be: somebody waits for it.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(15), body_bytes_max: 4 << 20 };
/// The same about a space: on a walk there are many of them.
const SPACE_BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(10), body_bytes_max: 1 << 20 };
/// Longest token of another server that is passed on, in bytes.
const TOKEN_BYTES_MAX: usize = 1_000;

/// A page of the directory of another server. Server-Server API, "POST /publicRooms".
pub(super) async fn public_rooms(
    federation: &Federation,
    as_server: &ServerName,
    asked: &PublicRoomsRequest<'_>,
) -> Result<PublicRooms, RemoteError> {
    let mut request = get_public_rooms_filtered::v1::Request::new();
    request.limit = Some(asked.limit.into());
    request.since = asked.since.map(str::to_owned);
    request.filter = Filter::new();
    request.filter.generic_search_term = asked.search.map(str::to_owned);
    let types = asked.room_types.iter().flatten();
    request.filter.room_types =
        types.map(|kind| RoomTypeFilter::from(Some(&**kind).filter(|kind| !kind.is_empty()))).collect();
    request.room_network = match &asked.networks {
        Networks::Matrix => RoomNetwork::Matrix,
        Networks::All => RoomNetwork::All,
        Networks::ThirdParty(id) => RoomNetwork::ThirdParty(id.clone()),
    };
    let answer = federation.client().send(as_server, asked.server, request, BOUNDS).await;
    let mut answer = answer.map_err(|error| unavailable(asked.server, error))?;
    answer.chunk.truncate(asked.limit as usize);
    let token = |token: Option<String>| token.filter(|token| token.len() <= TOKEN_BYTES_MAX);
    Ok(PublicRooms {
        rooms: answer.chunk,
        next: token(answer.next_batch),
        previous: token(answer.prev_batch),
        total: answer.total_room_count_estimate.map(u64::from),
    })
}

/// A space of another server, or another room, with its children as far as our server may come in there; nothing when it knows none, or
/// not for us. Server-Server API, "GET /hierarchy/{roomId}".
pub(super) async fn space(
    federation: &Federation,
    as_server: &ServerName,
    server: &ServerName,
    room_id: &RoomId,
) -> Result<Option<ServedSpace>, RemoteError> {
    let request = get_hierarchy::v1::Request::new(room_id.to_owned());
    match federation.client().send(as_server, server, request, SPACE_BOUNDS).await {
        Ok(answer) => Ok(Some(ServedSpace {
            room: answer.room.summary,
            children_state: answer.room.children_state.into_iter().map(|event| event.into_json()).collect(),
            children: answer.children,
            inaccessible: answer.inaccessible_children,
        })),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(unavailable(server, error)),
    }
}

/// The event of a room closest to a time, as another server knows it, and when it was made. Server-Server API,
/// "GET /timestamp_to_event/{roomId}".
pub(super) async fn event_by_timestamp(
    federation: &Federation,
    as_server: &ServerName,
    server: &ServerName,
    room_id: &RoomId,
    (time, direction): (MilliSecondsSinceUnixEpoch, TimelineDirection),
) -> Result<Option<(OwnedEventId, MilliSecondsSinceUnixEpoch)>, RemoteError> {
    let direction = match direction {
        TimelineDirection::Backward => Direction::Backward,
        TimelineDirection::Forward => Direction::Forward,
    };
    let request = get_event_by_timestamp::v1::Request::new(room_id.to_owned(), time, direction);
    match federation.client().send(as_server, server, request, BOUNDS).await {
        Ok(answer) => Ok(Some((answer.event_id, answer.origin_server_ts))),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(unavailable(server, error)),
    }
}
