//! Who is in a room, and in which rooms somebody is. Client-Server API, "Getting events for a room".

use ::rooms::{Rooms, TimelineToken};
use axum::{Router, extract::State};
use ruma::{
    api::client::membership::{
        get_member_events,
        joined_members::{self, v3::RoomMember},
        joined_rooms,
    },
    events::room::member::MembershipState,
    serde::Raw,
};
use web::{MatrixError, Requester, RequesterOrGuest, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_member_events).ruma_route(joined_members).ruma_route(joined_rooms)
}

/// `GET /rooms/{roomId}/members`.
async fn get_member_events(
    State(rooms): State<Rooms>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<get_member_events::v3::Request>,
) -> Result<Ruma<get_member_events::v3::Response>, MatrixError> {
    let at = request.at.map(|token| token.parse::<TimelineToken>()).transpose()?.map(TimelineToken::position);
    let (only, but) = (request.membership, request.not_membership);
    let events = rooms
        .members(&requester, &request.room_id, at, |member| is_wanted(member, only.as_ref(), but.as_ref()))
        .await?;
    Ok(Ruma(get_member_events::v3::Response::new(events.into_iter().map(Raw::from_json).collect())))
}

/// Of `membership` and `not_membership`, given both, either lets a member through.
fn is_wanted(member: model::Membership, only: Option<&MembershipState>, but: Option<&MembershipState>) -> bool {
    let is = |wanted: &MembershipState| wanted.as_str() == member.as_str();
    match (only, but) {
        (None, None) => true,
        (only, but) => only.is_some_and(is) || but.is_some_and(|but| !is(but)),
    }
}

/// `GET /rooms/{roomId}/joined_members`.
async fn joined_members(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<joined_members::v3::Request>,
) -> Result<Ruma<joined_members::v3::Response>, MatrixError> {
    let members = rooms.joined_members(&requester, &request.room_id).await?;
    let joined = members.into_iter().map(|member| {
        let mut shown = RoomMember::new();
        shown.display_name = member.display_name;
        shown.avatar_url = member.avatar_url.map(Into::into);
        (member.user_id, shown)
    });
    Ok(Ruma(joined_members::v3::Response::new(joined.collect())))
}

/// `GET /joined_rooms`.
async fn joined_rooms(
    State(rooms): State<Rooms>,
    requester: Requester,
    _: Ruma<joined_rooms::v3::Request>,
) -> Result<Ruma<joined_rooms::v3::Response>, MatrixError> {
    Ok(Ruma(joined_rooms::v3::Response::new(rooms.joined_rooms(&requester).await?)))
}

#[cfg(test)]
mod tests {
    use model::Membership;

    use super::*;

    #[test]
    fn members_are_chosen_by_what_they_are_or_are_not() {
        let chosen = |only: Option<MembershipState>, but: Option<MembershipState>| {
            [Membership::Leave, Membership::Invite, Membership::Join]
                .into_iter()
                .filter(|member| is_wanted(*member, only.as_ref(), but.as_ref()))
                .collect::<Vec<_>>()
        };
        assert_eq!(chosen(None, None).len(), 3);
        assert_eq!(chosen(Some(MembershipState::Join), None), [Membership::Join]);
        assert_eq!(chosen(None, Some(MembershipState::Leave)), [Membership::Invite, Membership::Join]);
        // Together they are an "or".
        let both = chosen(Some(MembershipState::Leave), Some(MembershipState::Join));
        assert_eq!(both, [Membership::Leave, Membership::Invite]);
    }
}
