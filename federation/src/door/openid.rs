//! Who a user is, for services that the user showed a token. Server-Server API, "OpenID".

use accounts::Accounts;
use axum::{Router, extract::State};
use ruma::api::federation::openid::get_openid_userinfo;
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::FederationApi;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(get_openid_userinfo)
}

/// `GET /_matrix/federation/v1/openid/userinfo`: without a signature, limited by address.
async fn get_openid_userinfo(
    State(accounts): State<Accounts>,
    Ruma(request): Ruma<get_openid_userinfo::v1::Request>,
) -> Result<Ruma<get_openid_userinfo::v1::Response>, MatrixError> {
    let user_id = accounts.user_of_openid_token(&request.access_token).await?;
    let user_id = user_id.ok_or_else(|| MatrixError::unknown_token(false))?;
    Ok(Ruma(get_openid_userinfo::v1::Response::new(user_id)))
}
