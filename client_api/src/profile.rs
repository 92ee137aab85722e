//! Profiles. Client-Server API, "Profiles".

use accounts::Accounts;
use axum::{Json, Router, extract::State};
use rooms::Presences;
use ruma::api::client::profile::{delete_profile_field, get_profile, get_profile_field, set_profile_field};
use serde_json::{Map, Value};
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, filter::check_own, host::Host, requester::GuestOrRequester};

/// The one field that guests may change. Client-Server API, "Guest Access".
const DISPLAY_NAME: &str = "displayname";
const SHOWN: [&str; 2] = [DISPLAY_NAME, "avatar_url"];

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_profile)
        .ruma_route(get_profile_field)
        .ruma_route(set_profile_field)
        .ruma_route(delete_profile_field)
}

/// `GET /profile/{userId}`.
async fn get_profile(
    State(accounts): State<Accounts>,
    Host(host): Host,
    Ruma(request): Ruma<get_profile::v3::Request>,
) -> Result<Json<Map<String, Value>>, MatrixError> {
    let as_server = accounts.server_of_host(host.as_deref());
    Ok(Json(accounts.profile_of_anyone(as_server, &request.user_id).await?))
}

/// `GET /profile/{userId}/{keyName}`.
async fn get_profile_field(
    State(accounts): State<Accounts>,
    Host(host): Host,
    Ruma(request): Ruma<get_profile_field::v3::Request>,
) -> Result<Json<Map<String, Value>>, MatrixError> {
    let field = request.field.as_str();
    let as_server = accounts.server_of_host(host.as_deref());
    let value = accounts.profile_field_of_anyone(as_server, &request.user_id, field).await?;
    Ok(Json(Map::from_iter([(field.to_owned(), value)])))
}

/// `PUT /profile/{userId}/{keyName}`.
async fn set_profile_field(
    State(accounts): State<Accounts>,
    State(presences): State<Presences>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<set_profile_field::v3::Request>,
) -> Result<Json<Value>, MatrixError> {
    let field = request.value.field_name();
    check_may_change(&requester, &request.user_id, field.as_str())?;
    accounts.set_profile_field(requester.user_nr, field.as_str(), &request.value.value()).await?;
    show(&presences, &requester, field.as_str()).await?;
    Ok(Json(Value::Object(Map::new())))
}

/// `DELETE /profile/{userId}/{keyName}`.
async fn delete_profile_field(
    State(accounts): State<Accounts>,
    State(presences): State<Presences>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<delete_profile_field::v3::Request>,
) -> Result<Ruma<delete_profile_field::v3::Response>, MatrixError> {
    check_may_change(&requester, &request.user_id, request.field.as_str())?;
    accounts.delete_profile_field(requester.user_nr, request.field.as_str()).await?;
    show(&presences, &requester, request.field.as_str()).await?;
    Ok(Ruma(delete_profile_field::v3::Response::new()))
}

/// Presence shows name and picture. So do member events, which follow by themselves: see [`rooms::Rooms::follow_profiles`].
/// Client-Server API, "Events on Change of Profile Information".
async fn show(presences: &Presences, requester: &accounts::Requester, field: &str) -> Result<(), MatrixError> {
    if SHOWN.contains(&field) {
        presences.profile_changed(requester.user_nr).await?;
    }
    Ok(())
}

fn check_may_change(requester: &accounts::Requester, user_id: &ruma::UserId, field: &str) -> Result<(), MatrixError> {
    check_own(requester, user_id)?;
    if requester.is_guest && field != DISPLAY_NAME {
        return Err(MatrixError::guest_access_forbidden());
    }
    Ok(())
}
