//! Registration. Client-Server API, "Account registration".

use accounts::{Accounts, NewAccount, Registration, SessionRequest};
use axum::{Router, extract::State};
use ruma::{
    ServerName,
    api::client::{
        account::{
            check_registration_token_validity, get_username_availability,
            register::{self, LoginType, RegistrationKind},
        },
        uiaa::AuthType,
    },
};
use storage::UserRow;
use web::{AccessToken, ClientAddress, MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, host::Host};

type Request = register::v3::Request;
type Response = register::v3::Response;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(register)
        .ruma_route(get_username_availability)
        .ruma_route(check_registration_token_validity)
}

/// `POST /register`.
async fn register(
    State(accounts): State<Accounts>,
    Host(host): Host,
    ClientAddress(ip): ClientAddress,
    AccessToken(token): AccessToken,
    Ruma(request): Ruma<Request>,
) -> Result<Ruma<Response>, MatrixError> {
    let server = accounts.server_of_host(host.as_deref());
    let is_service = matches!(request.login_type, Some(LoginType::ApplicationService));
    let user = match request.kind {
        _ if is_service => register_for_service(&accounts, server, token, &request).await?,
        RegistrationKind::Guest => register_guest(&accounts, server).await?,
        RegistrationKind::User => register_user(&accounts, server, &request).await?,
        _ => return Err(MatrixError::invalid_param("`kind` is `user` or `guest`")),
    };
    let mut response = Response::new(user.user_id.clone());
    // A guest without a token would be nobody.
    if !request.inhibit_login || user.is_guest {
        let session = SessionRequest {
            // Client-Server API, "POST /register": the device id of a guest is the server's to choose.
            device_id: request.device_id.filter(|_| !user.is_guest),
            display_name: request.initial_device_display_name,
            refresh_token: request.refresh_token,
            ip,
        };
        let session = accounts.log_in(&user, session).await?;
        response.access_token = Some(session.access_token);
        response.device_id = Some(session.device_id);
        response.refresh_token = session.refresh_token;
        response.expires_in = session.expires_in;
    }
    Ok(Ruma(response))
}

async fn register_user(accounts: &Accounts, server: &ServerName, request: &Request) -> Result<UserRow, MatrixError> {
    let flows = match accounts.options().registration {
        Registration::Open => [vec![AuthType::Dummy]],
        Registration::Token => [vec![AuthType::RegistrationToken]],
        Registration::Closed => return Err(MatrixError::forbidden("registration is closed on this server")),
    };
    // 1. What is wrong with the request is said before anybody has to prove anything.
    let guest = match &request.guest_access_token {
        Some(token) => Some(accounts.guest_of_token(token, request.username.as_deref()).await?),
        None => None,
    };
    let user_id = match &request.username {
        Some(name) if guest.is_none() => Some(accounts.check_available(name, server, None).await?),
        _ => None,
    };
    match &request.password {
        Some(password) => accounts.check_new_password(password)?,
        // Clients ask with an empty body for the flows first.
        None if request.auth.is_some() => return Err(MatrixError::missing_param("`password` is missing")),
        None => {}
    }
    // 2. Prove.
    let proof = accounts.authenticate_interactively(None, "register", &flows, request.auth.as_ref()).await?;
    // 3. Make.
    let password = request.password.clone().ok_or_else(|| MatrixError::missing_param("`password` is missing"))?;
    let user_id = match user_id {
        Some(user_id) => user_id,
        None => accounts.new_user_id(&accounts.random_name(), server)?,
    };
    let account = NewAccount { password: Some(password), ..NewAccount::default() };
    Ok(accounts.register_with_proof(&user_id, guest.as_ref(), account, proof).await?)
}

async fn register_guest(accounts: &Accounts, server: &ServerName) -> Result<UserRow, MatrixError> {
    if !accounts.options().guests {
        return Err(MatrixError::forbidden("guests are not allowed on this server"));
    }
    let user_id = accounts.new_user_id(&accounts.random_name(), server)?;
    Ok(accounts.register(&user_id, NewAccount { is_guest: true, ..NewAccount::default() }).await?)
}

/// Client-Server API, "Appservices", "Server admin style permissions".
async fn register_for_service(
    accounts: &Accounts,
    server: &ServerName,
    token: Option<String>,
    request: &Request,
) -> Result<UserRow, MatrixError> {
    let token = token.ok_or_else(MatrixError::missing_token)?;
    let service = accounts.app_service_of(&token).ok_or_else(|| MatrixError::unknown_token(false))?;
    let name = request.username.as_deref().ok_or_else(|| MatrixError::missing_param("`username` is missing"))?;
    let user_id = accounts.check_available(name, server, Some(&service)).await?;
    let account = NewAccount { app_service: Some(service.id.clone()), ..NewAccount::default() };
    Ok(accounts.register(&user_id, account).await?)
}

/// `GET /register/available`.
async fn get_username_availability(
    State(accounts): State<Accounts>,
    Host(host): Host,
    Ruma(request): Ruma<get_username_availability::v3::Request>,
) -> Result<Ruma<get_username_availability::v3::Response>, MatrixError> {
    accounts.check_available(&request.username, accounts.server_of_host(host.as_deref()), None).await?;
    Ok(Ruma(get_username_availability::v3::Response::new(true)))
}

/// `GET /register/m.login.registration_token/validity`.
async fn check_registration_token_validity(
    State(accounts): State<Accounts>,
    Ruma(request): Ruma<check_registration_token_validity::v1::Request>,
) -> Result<Ruma<check_registration_token_validity::v1::Response>, MatrixError> {
    if accounts.options().registration == Registration::Closed {
        let message = "registration is closed on this server";
        return Err(MatrixError::forbidden(message));
    }
    let valid = accounts.is_registration_token_valid(&request.token).await?;
    Ok(Ruma(check_registration_token_validity::v1::Response::new(valid)))
}
