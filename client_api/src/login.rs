//! Logging in. Client-Server API, "Legacy API", "Login".

use std::sync::Arc;

use accounts::{Accounts, SessionRequest};
use axum::{Router, extract::State};
use ruma::{
    ServerName,
    api::client::{
        session::{
            get_login_token, get_login_types,
            get_login_types::v3::{ApplicationServiceLoginType, LoginType, PasswordLoginType, TokenLoginType},
            login::{
                self,
                v3::{ApplicationService, DiscoveryInfo, HomeserverInfo, LoginInfo, Password},
            },
            refresh_token,
        },
        uiaa::{MatrixUserIdentifier, UserIdentifier},
    },
};
use serde_json::json;
use storage::UserRow;
use web::{AccessToken, ClientAddress, MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, Options, host::Host, requester::Requester, uiaa};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(get_login_types).ruma_route(login).ruma_route(refresh_token).ruma_route(get_login_token)
}

/// `GET /login`.
async fn get_login_types(
    State(accounts): State<Accounts>,
    Ruma(_request): Ruma<get_login_types::v3::Request>,
) -> Ruma<get_login_types::v3::Response> {
    let mut flows = vec![LoginType::Password(PasswordLoginType::new())];
    if accounts.options().login_tokens {
        let mut token = TokenLoginType::new();
        token.get_login_token = true;
        flows.push(LoginType::Token(token));
    }
    if !accounts.options().app_services.is_empty() {
        flows.push(LoginType::ApplicationService(ApplicationServiceLoginType::new()));
    }
    Ruma(get_login_types::v3::Response::new(flows))
}

/// `POST /login`.
async fn login(
    State(accounts): State<Accounts>,
    State(options): State<Arc<Options>>,
    Host(host): Host,
    ClientAddress(ip): ClientAddress,
    AccessToken(token): AccessToken,
    Ruma(request): Ruma<login::v3::Request>,
) -> Result<Ruma<login::v3::Response>, MatrixError> {
    let server = accounts.server_of_host(host.as_deref());
    let user = match &request.login_info {
        LoginInfo::Password(login) => by_password(&accounts, server, login).await?,
        LoginInfo::Token(login) => accounts.take_login_token(&login.token).await?,
        LoginInfo::ApplicationService(login) => for_service(&accounts, server, token, login).await?,
        _ => return Err(accounts::Error::Unknown("this type of login is not known").into()),
    };
    let session = SessionRequest {
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
        refresh_token: request.refresh_token,
        ip,
    };
    let session = accounts.log_in(&user, session).await?;
    let mut response = login::v3::Response::new(session.user_id, session.access_token, session.device_id);
    response.refresh_token = session.refresh_token;
    response.expires_in = session.expires_in;
    response.well_known = options.public_url.clone().map(|url| DiscoveryInfo::new(HomeserverInfo::new(url)));
    Ok(Ruma(response))
}

async fn by_password(accounts: &Accounts, server: &ServerName, login: &Password) -> Result<UserRow, MatrixError> {
    #[expect(deprecated, reason = "clients in use still send it")]
    let identifier = identifier(login.identifier.as_ref(), login.user.as_deref())?;
    let user_id = accounts.user_of_identifier(&identifier, server);
    Ok(accounts.check_password(user_id.as_deref(), &login.password).await?)
}

/// Client-Server API, "Appservice Login".
async fn for_service(
    accounts: &Accounts,
    server: &ServerName,
    token: Option<String>,
    login: &ApplicationService,
) -> Result<UserRow, MatrixError> {
    let token = token.ok_or_else(MatrixError::missing_token)?;
    let service = accounts.app_service_of(&token).ok_or_else(|| MatrixError::unknown_token(false))?;
    #[expect(deprecated, reason = "application services in use still send it")]
    let identifier = identifier(login.identifier.as_ref(), login.user.as_deref())?;
    let user_id = accounts.user_of_identifier(&identifier, server);
    let user_id = user_id.ok_or_else(|| MatrixError::invalid_param("`identifier` names no user of this server"))?;
    Ok(accounts.user_of_service(&service, &user_id).await?)
}

fn identifier(identifier: Option<&UserIdentifier>, user: Option<&str>) -> Result<UserIdentifier, MatrixError> {
    let of_user = || user.map(|user| UserIdentifier::Matrix(MatrixUserIdentifier::new(user.to_owned())));
    identifier.cloned().or_else(of_user).ok_or_else(|| MatrixError::missing_param("`identifier` is missing"))
}

/// `POST /refresh`.
async fn refresh_token(
    State(accounts): State<Accounts>,
    Ruma(request): Ruma<refresh_token::v3::Request>,
) -> Result<Ruma<refresh_token::v3::Response>, MatrixError> {
    let session = accounts.refresh(&request.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(session.access_token);
    response.refresh_token = session.refresh_token;
    response.expires_in_ms = session.expires_in;
    Ok(Ruma(response))
}

/// `POST /login/get_token`.
async fn get_login_token(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<get_login_token::v1::Request>,
) -> Result<Ruma<get_login_token::v1::Response>, MatrixError> {
    if !accounts.options().login_tokens {
        return Err(MatrixError::forbidden("login tokens are not given out"));
    }
    uiaa::confirm(&accounts, &requester, "get_login_token", json!({}), request.auth.as_ref()).await?;
    let (token, expires_in) = accounts.make_login_token(&requester).await?;
    Ok(Ruma(get_login_token::v1::Response::new(expires_in, token)))
}
