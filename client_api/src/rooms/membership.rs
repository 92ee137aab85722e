//! Coming and going. Client-Server API, "Room membership".

use ::rooms::Rooms;
use accounts::Accounts;
use axum::{Router, extract::State};
use event_bus::Typing;
use ruma::{
    OwnedRoomId, OwnedRoomOrAliasId, OwnedServerName, UserId,
    api::client::{
        knock::knock_room,
        membership::{
            ThirdPartySigned, ban_user, forget_room,
            invite_user::{self, v3::InvitationRecipient},
            join_room_by_id, join_room_by_id_or_alias, kick_user, leave_room, unban_user,
        },
    },
};
use web::{MatrixError, Requester, RequesterOrGuest, Ruma, RumaRoutes as _};

use super::{create::no_identity_server, typing::stop_typing};
use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(join_room_by_id)
        .ruma_route(join_room_by_id_or_alias)
        .ruma_route(knock_room)
        .ruma_route(invite_user)
        .ruma_route(leave_room)
        .ruma_route(kick_user)
        .ruma_route(ban_user)
        .ruma_route(unban_user)
        .ruma_route(forget_room)
}

/// `POST /rooms/{roomId}/join`.
async fn join_room_by_id(
    State(rooms): State<Rooms>,
    State(accounts): State<Accounts>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<join_room_by_id::v3::Request>,
) -> Result<Ruma<join_room_by_id::v3::Response>, MatrixError> {
    refuse_third_party(request.third_party_signed.as_ref())?;
    let reason = request.reason.as_deref();
    let room_id = rooms.join_with_settings(&accounts, &requester, &request.room_id, &[], reason).await?;
    Ok(Ruma(join_room_by_id::v3::Response::new(room_id)))
}

/// `POST /join/{roomIdOrAlias}`.
async fn join_room_by_id_or_alias(
    State(rooms): State<Rooms>,
    State(accounts): State<Accounts>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<join_room_by_id_or_alias::v3::Request>,
) -> Result<Ruma<join_room_by_id_or_alias::v3::Response>, MatrixError> {
    refuse_third_party(request.third_party_signed.as_ref())?;
    let (room_id, via) = resolve_via(&rooms, &requester.user_id, request.room_id_or_alias, request.via).await?;
    let room_id = rooms.join_with_settings(&accounts, &requester, &room_id, &via, request.reason.as_deref()).await?;
    Ok(Ruma(join_room_by_id_or_alias::v3::Response::new(room_id)))
}

/// `POST /knock/{roomIdOrAlias}`.
async fn knock_room(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<knock_room::v3::Request>,
) -> Result<Ruma<knock_room::v3::Response>, MatrixError> {
    let (room_id, via) = resolve_via(&rooms, &requester.user_id, request.room_id_or_alias, request.via).await?;
    let room_id = rooms.knock_via(&requester, &room_id, &via, request.reason.as_deref()).await?;
    Ok(Ruma(knock_room::v3::Response::new(room_id)))
}

/// The room of an id or an alias, and servers that may bring somebody into it: those that were named, and those that an alias names.
async fn resolve_via(
    rooms: &Rooms,
    user_id: &UserId,
    id_or_alias: OwnedRoomOrAliasId,
    mut via: Vec<OwnedServerName>,
) -> Result<(OwnedRoomId, Vec<OwnedServerName>), MatrixError> {
    match OwnedRoomId::try_from(id_or_alias) {
        Ok(room_id) => Ok((room_id, via)),
        Err(alias) => {
            let (room_id, servers) = rooms.resolve_alias(user_id.server_name(), &alias).await?;
            via.push(alias.server_name().to_owned());
            via.extend(servers);
            Ok((room_id, via))
        }
    }
}

/// `POST /rooms/{roomId}/invite`.
async fn invite_user(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<invite_user::v3::Request>,
) -> Result<Ruma<invite_user::v3::Response>, MatrixError> {
    let InvitationRecipient::UserId(recipient) = request.recipient else { return Err(no_identity_server()) };
    rooms.invite(&requester, &request.room_id, &recipient.user_id, recipient.reason.as_deref()).await?;
    Ok(Ruma(invite_user::v3::Response::new()))
}

/// `POST /rooms/{roomId}/leave`.
async fn leave_room(
    State(rooms): State<Rooms>,
    State(typing): State<Typing>,
    requester: RequesterOrGuest,
    Ruma(request): Ruma<leave_room::v3::Request>,
) -> Result<Ruma<leave_room::v3::Response>, MatrixError> {
    rooms.leave(&requester, &request.room_id, request.reason.as_deref()).await?;
    stop_typing(&rooms, &typing, &request.room_id, &requester.user_id).await?;
    Ok(Ruma(leave_room::v3::Response::new()))
}

/// `POST /rooms/{roomId}/kick`.
async fn kick_user(
    State(rooms): State<Rooms>,
    State(typing): State<Typing>,
    requester: Requester,
    Ruma(request): Ruma<kick_user::v3::Request>,
) -> Result<Ruma<kick_user::v3::Response>, MatrixError> {
    rooms.kick(&requester, &request.room_id, &request.user_id, request.reason.as_deref()).await?;
    stop_typing(&rooms, &typing, &request.room_id, &request.user_id).await?;
    Ok(Ruma(kick_user::v3::Response::new()))
}

/// `POST /rooms/{roomId}/ban`.
async fn ban_user(
    State(rooms): State<Rooms>,
    State(typing): State<Typing>,
    requester: Requester,
    Ruma(request): Ruma<ban_user::v3::Request>,
) -> Result<Ruma<ban_user::v3::Response>, MatrixError> {
    rooms.ban(&requester, &request.room_id, &request.user_id, request.reason.as_deref()).await?;
    stop_typing(&rooms, &typing, &request.room_id, &request.user_id).await?;
    Ok(Ruma(ban_user::v3::Response::new()))
}

/// `POST /rooms/{roomId}/unban`.
async fn unban_user(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<unban_user::v3::Request>,
) -> Result<Ruma<unban_user::v3::Response>, MatrixError> {
    rooms.unban(&requester, &request.room_id, &request.user_id, request.reason.as_deref()).await?;
    Ok(Ruma(unban_user::v3::Response::new()))
}

/// `POST /rooms/{roomId}/forget`.
async fn forget_room(
    State(rooms): State<Rooms>,
    requester: Requester,
    Ruma(request): Ruma<forget_room::v3::Request>,
) -> Result<Ruma<forget_room::v3::Response>, MatrixError> {
    rooms.forget(&requester, &request.room_id).await.map_err(|error| match error {
        // Client-Server API, "POST /rooms/{roomId}/forget": 400 `M_UNKNOWN` for somebody who is still in the room.
        rooms::Error::InvalidParam(message) => {
            MatrixError::new(http::StatusCode::BAD_REQUEST, ruma::api::error::ErrorKind::Unknown, message)
        }
        other => other.into(),
    })?;
    Ok(Ruma(forget_room::v3::Response::new()))
}

/// Nobody is invited by mail address or telephone number here, so nobody can prove such an invitation.
fn refuse_third_party(signed: Option<&ThirdPartySigned>) -> Result<(), MatrixError> {
    match signed {
        Some(_) => Err(MatrixError::forbidden("this server knows no invitation by a third party")),
        None => Ok(()),
    }
}
