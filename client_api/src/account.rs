//! The requester's account: who it is, its password, its end.

use accounts::Accounts;
use axum::{Json, Router, extract::State};
use rooms::Rooms;
use ruma::api::client::account::{ThirdPartyIdRemovalStatus, change_password, deactivate, get_3pids, whoami};
use serde_json::{Value, json};
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{
    ClientApi,
    departures::depart,
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
    requester: Requester,
    Ruma(request): Ruma<deactivate::v3::Request>,
) -> Result<Ruma<deactivate::v3::Response>, MatrixError> {
    let body = json!({"erase": request.erase});
    uiaa::confirm(&accounts, &requester, "deactivate", body, request.auth.as_ref()).await?;
    accounts.deactivate(&requester, request.erase).await?;
    depart(&accounts, &rooms, &requester).await;
    // There is no identity server that anything could be unbound from.
    Ok(Ruma(deactivate::v3::Response::new(ThirdPartyIdRemovalStatus::Success)))
}

/// `GET /account/3pid`: a server that takes no mail addresses or phone numbers has none.
async fn get_3pids(_requester: Requester, Ruma(_request): Ruma<get_3pids::v3::Request>) -> Json<Value> {
    Json(json!({"threepids": []}))
}
