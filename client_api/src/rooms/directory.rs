//! The published directory of rooms. Client-Server API, "Published room directory".

use ::rooms::{Networks, PUBLIC_ROOMS_MAX, PublicRooms, PublicRoomsRequest, Rooms};
use axum::{Router, extract::State};
use ruma::{
    UInt,
    api::client::{
        appservice,
        directory::{get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility},
        room::Visibility,
    },
    directory::RoomNetwork,
};
use web::{MatrixError, OptionalRequester, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

/// Rooms of a page when the client does not say how many.
const PUBLIC_ROOMS_DEFAULT: u32 = 100;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_room_visibility)
        .ruma_route(set_room_visibility)
        .ruma_route(set_room_visibility_on_network)
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
    rooms.set_listed(&requester, &request.room_id, is_public(&request.visibility)?).await?;
    Ok(Ruma(set_room_visibility::v3::Response::new()))
}

/// `PUT /directory/list/appservice/{networkId}/{roomId}`.
async fn set_room_visibility_on_network(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<appservice::set_room_visibility::v3::Request>,
) -> Result<Ruma<appservice::set_room_visibility::v3::Response>, MatrixError> {
    let listed = is_public(&request.visibility)?;
    rooms.set_listed_on_network(&requester, &request.network_id, &request.room_id, listed).await?;
    Ok(Ruma(appservice::set_room_visibility::v3::Response::new()))
}

fn is_public(visibility: &Visibility) -> Result<bool, MatrixError> {
    match visibility {
        Visibility::Public => Ok(true),
        Visibility::Private => Ok(false),
        _ => Err(MatrixError::invalid_param("`visibility` is `public` or `private`")),
    }
}

/// `GET /publicRooms`; of our own directory without a token too.
async fn get_public_rooms(
    State(rooms): State<Rooms>,
    OptionalRequester(requester): OptionalRequester,
    Ruma(request): Ruma<get_public_rooms::v3::Request>,
) -> Result<Ruma<get_public_rooms::v3::Response>, MatrixError> {
    let own = requester.as_ref().map_or(rooms.servers().primary(), |requester| requester.user_id.server_name());
    let server = request.server.as_deref().unwrap_or(rooms.servers().primary());
    // Nobody is asked for strangers.
    if requester.is_none() && !rooms.servers().is_local(server) {
        return Err(MatrixError::missing_token());
    }
    let asked = PublicRoomsRequest {
        server,
        networks: Networks::Matrix,
        limit: limit_of(request.limit),
        since: request.since.as_deref(),
        search: None,
        room_types: None,
    };
    let PublicRooms { rooms, next, previous, total } = rooms.public_rooms(own, asked).await?;
    let mut response = get_public_rooms::v3::Response::new(rooms);
    response.next_batch = next;
    response.prev_batch = previous;
    response.total_room_count_estimate = total.and_then(UInt::new);
    Ok(Ruma(response))
}

/// `POST /publicRooms`.
async fn get_public_rooms_filtered(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<get_public_rooms_filtered::v3::Request>,
) -> Result<Ruma<get_public_rooms_filtered::v3::Response>, MatrixError> {
    let types = &request.filter.room_types;
    let asked = PublicRoomsRequest {
        server: request.server.as_deref().unwrap_or(requester.user_id.server_name()),
        networks: match request.room_network {
            RoomNetwork::All => Networks::All,
            RoomNetwork::ThirdParty(id) => Networks::ThirdParty(id),
            _ => Networks::Matrix,
        },
        limit: limit_of(request.limit),
        since: request.since.as_deref(),
        search: request.filter.generic_search_term.as_deref(),
        room_types: (!types.is_empty())
            .then(|| types.iter().map(|room_type| room_type.as_str().unwrap_or("").to_owned()).collect()),
    };
    let PublicRooms { rooms, next, previous, total } =
        rooms.public_rooms(requester.user_id.server_name(), asked).await?;
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.chunk = rooms;
    response.next_batch = next;
    response.prev_batch = previous;
    response.total_room_count_estimate = total.and_then(UInt::new);
    Ok(Ruma(response))
}

fn limit_of(limit: Option<UInt>) -> u32 {
    limit.map_or(PUBLIC_ROOMS_DEFAULT, |limit| {
        u32::try_from(u64::from(limit).min(PUBLIC_ROOMS_MAX.into())).unwrap_or(PUBLIC_ROOMS_MAX)
    })
}
