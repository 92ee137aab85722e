//! Registration with the shared secret, on the path that existing tooling uses.

use accounts::{Accounts, SessionRequest, SharedSecretRegistration};
use axum::{Json, Router, extract::State, routing::get};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use web::{ClientAddress, JsonBody, MatrixError};

use crate::{ClientApi, host::Host};

const PATH: &str = "/_synapse/admin/v1/register";
/// Largest body: a few names and a password.
const BODY_BYTES_MAX: usize = 16_384;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().route(PATH, get(get_nonce).post(register))
}

/// Gives a nonce for one registration.
async fn get_nonce(State(accounts): State<Accounts>) -> Result<Json<Value>, MatrixError> {
    Ok(Json(json!({"nonce": accounts.registration_nonce()?})))
}

#[derive(Deserialize)]
struct Request {
    nonce: String,
    username: String,
    password: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    displayname: Option<String>,
    mac: String,
    #[serde(default)]
    inhibit_login: bool,
}

#[derive(Serialize)]
struct Response {
    user_id: String,
    home_server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<String>,
}

/// Makes a user for whoever proves with the nonce to know the secret.
async fn register(
    State(accounts): State<Accounts>,
    Host(host): Host,
    ClientAddress(ip): ClientAddress,
    JsonBody(request): JsonBody<Request, BODY_BYTES_MAX>,
) -> Result<Json<Response>, MatrixError> {
    let inhibit_login = request.inhibit_login;
    let shown = SharedSecretRegistration {
        nonce: request.nonce,
        username: request.username,
        password: request.password,
        admin: request.admin,
        user_type: request.user_type,
        displayname: request.displayname,
        mac: request.mac,
    };
    let user = accounts.register_by_secret(accounts.server_of_host(host.as_deref()), shown).await?;
    let home_server = user.user_id.server_name().to_string();
    let session = match inhibit_login {
        true => None,
        false => Some(accounts.log_in(&user, SessionRequest { ip, ..SessionRequest::default() }).await?),
    };
    let (access_token, device_id) = session.map(|new| (new.access_token, new.device_id.to_string())).unzip();
    Ok(Json(Response { user_id: user.user_id.to_string(), home_server, access_token, device_id }))
}
