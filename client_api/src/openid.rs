//! Tokens by which users show services who they are. Client-Server API, "OpenID".

use accounts::Accounts;
use axum::{Router, extract::State};
use ruma::{api::client::account::request_openid_token, authentication::TokenType};
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, filter::check_own, requester::Requester};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(request_openid_token)
}

/// `POST /user/{userId}/openid/request_token`.
async fn request_openid_token(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<request_openid_token::v3::Request>,
) -> Result<Ruma<request_openid_token::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let (token, lifetime) = accounts.make_openid_token(&requester).await?;
    let server = requester.user_id.server_name().to_owned();
    Ok(Ruma(request_openid_token::v3::Response::new(token, TokenType::Bearer, server, lifetime)))
}
