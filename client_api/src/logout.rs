//! Logging out. Client-Server API, "Legacy API", "Logout".

use accounts::Accounts;
use axum::{Router, extract::State};
use ruma::api::client::session::{logout, logout_all};
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, requester::Requester};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(logout).ruma_route(logout_all)
}

/// `POST /logout`.
async fn logout(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(_request): Ruma<logout::v3::Request>,
) -> Result<Ruma<logout::v3::Response>, MatrixError> {
    accounts.log_out(&requester).await?;
    Ok(Ruma(logout::v3::Response::new()))
}

/// `POST /logout/all`.
async fn logout_all(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(_request): Ruma<logout_all::v3::Request>,
) -> Result<Ruma<logout_all::v3::Response>, MatrixError> {
    accounts.log_out_all(requester.user_nr, None).await?;
    Ok(Ruma(logout_all::v3::Response::new()))
}
