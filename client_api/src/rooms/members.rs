//! Who is in a room, and in which rooms somebody is. Client-Server API, "Getting events for a room".

use std::sync::Arc;

use ::rooms::{MemberKinds, Rooms, TimelineToken};
use axum::{Router, extract::State, response::Response};
use futures_util::{StreamExt as _, stream};
use model::Membership;
use ruma::{
    UInt,
    api::client::membership::{get_member_events, get_mutual_rooms, joined_members, joined_rooms},
    events::room::member::MembershipState,
};
use web::{MatrixError, Requester, RequesterOrGuest, Ruma, RumaRoutes as _};

use super::pieces::{PIECES_AT_ONCE, answer_in_pieces, answer_with_events};
use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_member_events)
        .ruma_route(joined_members)
        .ruma_route(joined_rooms)
        .ruma_route(get_mutual_rooms)
}

/// `GET /rooms/{roomId}/members`.
async fn get_member_events(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_member_events::v3::Request>,
) -> Result<Response, MatrixError> {
    let at = request.at.map(|token| token.parse::<TimelineToken>()).transpose()?.map(TimelineToken::position);
    let kinds = MemberKinds {
        only: request.membership.map(membership).transpose()?,
        but: request.not_membership.map(membership).transpose()?,
    };
    let list = rooms.members(&requester, &request.room_id, at, kinds).await?;
    answer_with_events(r#"{"chunk":["#, list, "]}").await
}

fn membership(state: MembershipState) -> Result<Membership, MatrixError> {
    Membership::from_word(state.as_str()).ok_or_else(|| MatrixError::invalid_param("there is no such membership"))
}

/// `GET /rooms/{roomId}/joined_members`.
async fn joined_members(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<joined_members::v3::Request>,
) -> Result<Response, MatrixError> {
    let list = Arc::new(rooms.joined_members(&requester, &request.room_id).await?);
    let pieces = stream::iter(list.pieces()).map(move |piece| {
        let list = list.clone();
        async move { list.profiles(piece).await }
    });
    answer_in_pieces(r#"{"joined":{"#, pieces.buffered(PIECES_AT_ONCE), "}}").await
}

/// `GET /joined_rooms`.
async fn joined_rooms(
    State(rooms): State<Rooms>,
    requester: Requester,
    _: Ruma<joined_rooms::v3::Request>,
) -> Result<Ruma<joined_rooms::v3::Response>, MatrixError> {
    Ok(Ruma(joined_rooms::v3::Response::new(rooms.joined_rooms(&requester).await?)))
}

/// `GET /mutual_rooms`.
async fn get_mutual_rooms(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<get_mutual_rooms::v1::Request>,
) -> Result<Ruma<get_mutual_rooms::v1::Response>, MatrixError> {
    let page = rooms.mutual_rooms(&requester, &request.user_id, request.from.as_deref()).await?;
    let mut response = get_mutual_rooms::v1::Response::new(UInt::new_saturating(page.count), page.rooms);
    response.next_batch = page.next;
    Ok(Ruma(response))
}
