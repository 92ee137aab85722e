//! The requester's account: who it is, its password, its end.

use accounts::Accounts;
use axum::{Json, Router, extract::State};
use model::Membership;
use rooms::Rooms;
use ruma::api::client::account::{ThirdPartyIdRemovalStatus, change_password, deactivate, get_3pids, whoami};
use serde_json::{Value, json};
use storage::Storage;
use tracing::debug;
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{
    ClientApi,
    requester::{GuestOrRequester, Requester},
    uiaa,
};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(whoami).ruma_route(change_password).ruma_route(deactivate).ruma_route(get_3pids)
}

/// `GET /account/whoami`.
async fn whoami(requester: GuestOrRequester, Ruma(_request): Ruma<whoami::v3::Request>) -> Ruma<whoami::v3::Response> {
    let mut response = whoami::v3::Response::new(requester.user_id.clone(), requester.is_guest);
    response.device_id.clone_from(&requester.device_id);
    Ruma(response)
}

/// `POST /account/password`. Client-Server API, "Password management".
async fn change_password(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<change_password::v3::Request>,
) -> Result<Ruma<change_password::v3::Response>, MatrixError> {
    accounts.check_new_password(&request.new_password)?;
    // A session is bound to what it was made for, not to the password itself, which has no place in the database.
    let body = json!({"logout_devices": request.logout_devices});
    uiaa::confirm(&accounts, &requester, "change_password", body, request.auth.as_ref()).await?;
    accounts.change_password(&requester, &request.new_password, request.logout_devices).await?;
    Ok(Ruma(change_password::v3::Response::new()))
}

/// `POST /account/deactivate`. Client-Server API, "Account deactivation".
async fn deactivate(
    State(accounts): State<Accounts>,
    State(rooms): State<Rooms>,
    State(storage): State<Storage>,
    requester: Requester,
    Ruma(request): Ruma<deactivate::v3::Request>,
) -> Result<Ruma<deactivate::v3::Response>, MatrixError> {
    let body = json!({"erase": request.erase});
    uiaa::confirm(&accounts, &requester, "deactivate", body, request.auth.as_ref()).await?;
    // First, so that whoever is interrupted here can ask again.
    leave_all(&rooms, &storage, &requester).await?;
    accounts.deactivate(&requester, request.erase).await?;
    // There is no identity server that anything could be unbound from.
    Ok(Ruma(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::Success)))
}

/// Leaves all rooms and declines all invitations. A room that refuses is passed over: nobody is held by it.
async fn leave_all(rooms: &Rooms, storage: &Storage, requester: &accounts::Requester) -> Result<(), MatrixError> {
    let memberships = storage.list_rooms_of_user(requester.user_nr).await?;
    let is_in = |membership| matches!(membership, Membership::Join | Membership::Invite | Membership::Knock);
    let numbers: Vec<_> = memberships.iter().filter(|row| is_in(row.membership)).map(|row| row.room_nr).collect();
    for room in storage.get_rooms(&numbers).await?.values() {
        if let Err(error) = rooms.leave(requester, &room.id, None).await {
            debug!(room.id = %room.id, error = &error as &dyn std::error::Error, "a deactivated user could not leave {}", room.id);
        }
    }
    Ok(())
}

/// `GET /account/3pid`: a server that takes no mail addresses or phone numbers has none.
async fn get_3pids(_requester: Requester, Ruma(_request): Ruma<get_3pids::v3::Request>) -> Json<Value> {
    Json(json!({"threepids": []}))
}
