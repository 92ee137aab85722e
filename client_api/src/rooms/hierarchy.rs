//! The rooms of a space. Client-Server API, "Discovering rooms within spaces".

use ::rooms::{HIERARCHY_ROOMS_DEFAULT, HierarchyRequest, Rooms};
use axum::{Router, extract::State};
use ruma::{
    UInt,
    api::client::space::{SpaceHierarchyRoomsChunk, get_hierarchy},
    serde::Raw,
};
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_hierarchy)
}

/// `GET /rooms/{roomId}/hierarchy`.
async fn get_hierarchy(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<get_hierarchy::v1::Request>,
) -> Result<Ruma<get_hierarchy::v1::Response>, MatrixError> {
    if request.limit == Some(UInt::MIN) {
        return Err(MatrixError::invalid_param("`limit` is greater than zero"));
    }
    let asked = HierarchyRequest {
        from: request.from.as_deref(),
        limit: request.limit.map_or(HIERARCHY_ROOMS_DEFAULT, saturating),
        max_depth: request.max_depth.map(saturating),
        suggested_only: request.suggested_only,
    };
    let page = rooms.hierarchy(&requester, &request.room_id, &asked).await?;
    let mut response = get_hierarchy::v1::Response::new();
    let show = |room: ::rooms::HierarchyRoom| {
        SpaceHierarchyRoomsChunk::new(room.summary, room.children.into_iter().map(Raw::from_json).collect())
    };
    response.rooms = page.rooms.into_iter().map(show).collect();
    response.next_batch = page.next;
    Ok(Ruma(response))
}

fn saturating(number: UInt) -> u32 {
    u32::try_from(u64::from(number)).unwrap_or(u32::MAX)
}
