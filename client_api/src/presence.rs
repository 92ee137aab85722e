//! Presence. Client-Server API, "Presence".

use ::rooms::Presences;
use axum::{Router, extract::State};
use event_bus::Availability;
use ruma::{
    api::client::presence::{get_presence, set_presence},
    presence::PresenceState,
};
use std::time::Duration;
use sync::Sync;
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::{ClientApi, filter::check_own};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_presence).ruma_route(set_presence)
}

/// `GET /presence/{userId}/status`.
async fn get_presence(
    State(sync): State<Sync>,
    requester: Requester,
    Ruma(request): Ruma<get_presence::v3::Request>,
) -> Result<Ruma<get_presence::v3::Response>, MatrixError> {
    let presence = sync.get_presence(&requester, &request.user_id).await?;
    let state = match presence.shown.availability {
        Availability::Online => PresenceState::Online,
        Availability::Unavailable => PresenceState::Unavailable,
        Availability::Offline => PresenceState::Offline,
    };
    let mut response = get_presence::v3::Response::new(state);
    response.currently_active = presence.currently_active();
    response.last_active_ago = presence.last_active_ago_ms.map(|ms| Duration::from_millis(ms.unsigned_abs()));
    response.status_msg = presence.shown.says.status_msg;
    Ok(Ruma(response))
}

/// `PUT /presence/{userId}/status`.
async fn set_presence(
    State(presences): State<Presences>,
    requester: Requester,
    Ruma(request): Ruma<set_presence::v3::Request>,
) -> Result<Ruma<set_presence::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    presences.set(&requester, availability(&request.presence)?, request.status_msg).await?;
    Ok(Ruma(set_presence::v3::Response::new()))
}

/// What a client says of itself; states that the specification does not know are refused.
pub(crate) fn availability(state: &PresenceState) -> Result<Availability, MatrixError> {
    match state {
        PresenceState::Online => Ok(Availability::Online),
        PresenceState::Unavailable => Ok(Availability::Unavailable),
        PresenceState::Offline => Ok(Availability::Offline),
        _ => Err(MatrixError::invalid_param("presence is `online`, `unavailable` or `offline`")),
    }
}
