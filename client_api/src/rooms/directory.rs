//! The published directory of rooms. Client-Server API, "Published room directory".

use ::rooms::{PUBLIC_ROOMS_MAX, PublicRoom, PublicRooms, Rooms};
use axum::{Router, extract::State};
use ruma::{
    UInt,
    api::client::{
        directory::{get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility},
        room::Visibility,
    },
    directory::{PublicRoomsChunk, PublicRoomsChunkInit, RoomNetwork},
};
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

/// Rooms of a page when the client does not say how many.
const PUBLIC_ROOMS_DEFAULT: u32 = 100;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_room_visibility)
        .ruma_route(set_room_visibility)
        .ruma_route(get_public_rooms)
        .ruma_route(get_public_rooms_filtered)
}

/// `GET /directory/list/room/{roomId}`; without a token too.
async fn get_room_visibility(
    State(rooms): State<Rooms>,
    Ruma(request): Ruma<get_room_visibility::v3::Request>,
) -> Result<Ruma<get_room_visibility::v3::Response>, MatrixError> {
    let listed = rooms.is_listed(&request.room_id).await?;
    let visibility = if listed { Visibility::Public } else { Visibility::Private };
    Ok(Ruma(get_room_visibility::v3::Response::new(visibility)))
}

/// `PUT /directory/list/room/{roomId}`.
async fn set_room_visibility(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<set_room_visibility::v3::Request>,
) -> Result<Ruma<set_room_visibility::v3::Response>, MatrixError> {
    let listed = match request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        _ => return Err(MatrixError::invalid_param("`visibility` is `public` or `private`")),
    };
    rooms.set_listed(&requester, &request.room_id, listed).await?;
    Ok(Ruma(set_room_visibility::v3::Response::new()))
}

/// `GET /publicRooms`; without a token too.
async fn get_public_rooms(
    State(rooms): State<Rooms>,
    Ruma(request): Ruma<get_public_rooms::v3::Request>,
) -> Result<Ruma<get_public_rooms::v3::Response>, MatrixError> {
    let server = request.server.as_deref().unwrap_or(rooms.servers().primary());
    let page = rooms.public_rooms(server, limit_of(request.limit), request.since.as_deref(), None, None).await?;
    let (next_batch, prev_batch, total) = edges(&page);
    let mut response = get_public_rooms::v3::Response::new(page.rooms.into_iter().map(chunk).collect());
    response.next_batch = next_batch;
    response.prev_batch = prev_batch;
    response.total_room_count_estimate = total;
    Ok(Ruma(response))
}

/// `POST /publicRooms`.
async fn get_public_rooms_filtered(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<get_public_rooms_filtered::v3::Request>,
) -> Result<Ruma<get_public_rooms_filtered::v3::Response>, MatrixError> {
    let mut response = get_public_rooms_filtered::v3::Response::new();
    if let RoomNetwork::ThirdParty(_) = request.room_network {
        // No bridge is connected, so no room comes from another network.
        response.total_room_count_estimate = Some(UInt::MIN);
        return Ok(Ruma(response));
    }
    let server = request.server.as_deref().unwrap_or(requester.user_id.server_name());
    let search = request.filter.generic_search_term.as_deref();
    let types = &request.filter.room_types;
    let types = (!types.is_empty())
        .then(|| types.iter().map(|room_type| room_type.as_str().unwrap_or("").to_owned()).collect());
    let page = rooms.public_rooms(server, limit_of(request.limit), request.since.as_deref(), search, types).await?;
    let (next_batch, prev_batch, total) = edges(&page);
    response.chunk = page.rooms.into_iter().map(chunk).collect();
    response.next_batch = next_batch;
    response.prev_batch = prev_batch;
    response.total_room_count_estimate = total;
    Ok(Ruma(response))
}

fn edges(page: &PublicRooms) -> (Option<String>, Option<String>, Option<UInt>) {
    let text = |token: Option<::rooms::DirectoryToken>| token.map(|token| token.to_string());
    (text(page.next), text(page.previous), UInt::new(page.total))
}

fn limit_of(limit: Option<UInt>) -> u32 {
    limit.map_or(PUBLIC_ROOMS_DEFAULT, |limit| {
        u32::try_from(u64::from(limit).min(PUBLIC_ROOMS_MAX.into())).unwrap_or(PUBLIC_ROOMS_MAX)
    })
}

fn chunk(room: PublicRoom) -> PublicRoomsChunk {
    let summary = room.summary;
    let mut chunk = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: UInt::new_saturating(room.joined),
        room_id: room.room_id,
        world_readable: summary.history_visibility == "world_readable",
        guest_can_join: summary.guest_access == "can_join",
    });
    chunk.canonical_alias = summary.canonical_alias.and_then(|alias| alias.try_into().ok());
    chunk.name = summary.name;
    chunk.topic = summary.topic;
    chunk.avatar_url = summary.avatar_url.map(Into::into);
    chunk.join_rule = summary.join_rule.into();
    chunk.room_type = summary.room_type.map(Into::into);
    chunk
}
