//! The directory of a name of ours, for other servers. Server-Server API, "Public Room Directory".

use axum::{Router, extract::State};
use http::Uri;
use rooms::{Networks, PUBLIC_ROOMS_MAX, PublicRooms, PublicRoomsRequest, Rooms};
use ruma::{
    UInt,
    api::federation::directory::{get_public_rooms, get_public_rooms_filtered},
    directory::RoomNetwork,
};
use url::form_urlencoded;
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{FederationApi, Signed};

/// Rooms of a page when the server does not say how many.
const PUBLIC_ROOMS_DEFAULT: u32 = 100;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(get_public_rooms).ruma_route(get_public_rooms_filtered)
}

/// `GET /_matrix/federation/v1/publicRooms`.
async fn get_public_rooms(
    State(rooms): State<Rooms>,
    uri: Uri,
    Signed { destination, request, .. }: Signed<get_public_rooms::v1::Request>,
) -> Result<Ruma<get_public_rooms::v1::Response>, MatrixError> {
    // In a query it is a text, which ruma 0.17 does not read as a truth.
    let mut query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let is_all = query.any(|(name, value)| name == "include_all_networks" && value == "true");
    let asked = PublicRoomsRequest {
        server: &destination,
        networks: if is_all { Networks::All } else { networks(request.room_network) },
        limit: limit_of(request.limit),
        since: request.since.as_deref(),
        search: None,
        room_types: None,
    };
    let PublicRooms { rooms, next, previous, total } = rooms.public_rooms(&destination, asked).await?;
    let mut response = get_public_rooms::v1::Response::new();
    response.chunk = rooms;
    response.next_batch = next;
    response.prev_batch = previous;
    response.total_room_count_estimate = total.and_then(UInt::new);
    Ok(Ruma(response))
}

/// `POST /_matrix/federation/v1/publicRooms`.
async fn get_public_rooms_filtered(
    State(rooms): State<Rooms>,
    Signed { destination, request, .. }: Signed<get_public_rooms_filtered::v1::Request>,
) -> Result<Ruma<get_public_rooms_filtered::v1::Response>, MatrixError> {
    let types = &request.filter.room_types;
    let asked = PublicRoomsRequest {
        server: &destination,
        networks: networks(request.room_network),
        limit: limit_of(request.limit),
        since: request.since.as_deref(),
        search: request.filter.generic_search_term.as_deref(),
        room_types: (!types.is_empty())
            .then(|| types.iter().map(|room_type| room_type.as_str().unwrap_or("").to_owned()).collect()),
    };
    let PublicRooms { rooms, next, previous, total } = rooms.public_rooms(&destination, asked).await?;
    let mut response = get_public_rooms_filtered::v1::Response::new();
    response.chunk = rooms;
    response.next_batch = next;
    response.prev_batch = previous;
    response.total_room_count_estimate = total.and_then(UInt::new);
    Ok(Ruma(response))
}

fn networks(network: RoomNetwork) -> Networks {
    match network {
        RoomNetwork::All => Networks::All,
        RoomNetwork::ThirdParty(id) => Networks::ThirdParty(id),
        _ => Networks::Matrix,
    }
}

fn limit_of(limit: Option<UInt>) -> u32 {
    limit.map_or(PUBLIC_ROOMS_DEFAULT, |limit| {
        u32::try_from(u64::from(limit).min(PUBLIC_ROOMS_MAX.into())).unwrap_or(PUBLIC_ROOMS_MAX)
    })
}
