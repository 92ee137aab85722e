//! Spaces for other servers. Server-Server API, "Spaces".

use axum::{Router, extract::State};
use rooms::Rooms;
use ruma::{
    api::federation::space::{SpaceHierarchyParentSummary, get_hierarchy},
    serde::Raw,
};
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{FederationApi, Signed};

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(get_hierarchy)
}

/// `GET /_matrix/federation/v1/hierarchy/{roomId}`.
async fn get_hierarchy(
    State(rooms): State<Rooms>,
    Signed { origin, request, .. }: Signed<get_hierarchy::v1::Request>,
) -> Result<Ruma<get_hierarchy::v1::Response>, MatrixError> {
    let space = rooms.space_for_server(&origin, &request.room_id, request.suggested_only).await?;
    let children_state = space.children_state.into_iter().map(Raw::from_json).collect();
    let mut response = get_hierarchy::v1::Response::new(SpaceHierarchyParentSummary::new(space.room, children_state));
    response.children = space.children;
    response.inaccessible_children = space.inaccessible;
    Ok(Ruma(response))
}
