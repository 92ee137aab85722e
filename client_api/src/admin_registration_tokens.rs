//! Registration tokens for administrators, on the paths that existing tooling uses.

use accounts::Accounts;
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use storage::{RegistrationTokenRow, Storage};
use web::{JsonBody, MatrixError};

use crate::{ClientApi, requester::Requester};

const PATH: &str = "/_synapse/admin/v1/registration_tokens";
/// Largest body: a name and two numbers.
const BODY_BYTES_MAX: usize = 16_384;
/// Most tokens that one answer shows.
const TOKENS_MAX: u32 = 1_000;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .route(PATH, get(list_tokens))
        .route(&format!("{PATH}/new"), post(create_token))
        .route(&format!("{PATH}/{{token}}"), get(get_token).delete(delete_token))
}

/// A token as tooling knows it. Here a token is used at the moment of registration, so that none is ever `pending`.
#[derive(Serialize)]
struct Token {
    token: String,
    uses_allowed: Option<i64>,
    pending: i64,
    completed: i64,
    expiry_time: Option<i64>,
}

impl From<RegistrationTokenRow> for Token {
    fn from(row: RegistrationTokenRow) -> Self {
        let RegistrationTokenRow { token, uses_allowed, uses, expires_at_ms } = row;
        Self { token, uses_allowed, pending: 0, completed: uses, expiry_time: expires_at_ms }
    }
}

pub(crate) fn check_admin(requester: &accounts::Requester) -> Result<(), MatrixError> {
    if requester.is_admin { Ok(()) } else { Err(MatrixError::forbidden("this is for administrators")) }
}

fn unknown() -> MatrixError {
    MatrixError::not_found("there is no such token")
}

#[derive(Deserialize)]
struct ListQuery {
    /// Only tokens after this one.
    #[serde(default)]
    from: String,
}

/// Lists tokens by name.
async fn list_tokens(
    State(storage): State<Storage>,
    requester: Requester,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, MatrixError> {
    check_admin(&requester)?;
    let rows = storage.list_registration_tokens(&query.from, TOKENS_MAX).await?;
    let tokens: Vec<Token> = rows.into_iter().map(Token::from).collect();
    Ok(Json(json!({"registration_tokens": tokens})))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NewToken {
    token: Option<String>,
    uses_allowed: Option<i64>,
    expiry_time: Option<i64>,
}

/// Makes a token.
async fn create_token(
    State(accounts): State<Accounts>,
    requester: Requester,
    JsonBody(new): JsonBody<NewToken, BODY_BYTES_MAX>,
) -> Result<Json<Token>, MatrixError> {
    check_admin(&requester)?;
    let made = accounts.create_registration_token(new.token, new.uses_allowed, new.expiry_time).await?;
    Ok(Json(made.into()))
}

/// Shows a token.
async fn get_token(
    State(storage): State<Storage>,
    requester: Requester,
    Path(token): Path<String>,
) -> Result<Json<Token>, MatrixError> {
    check_admin(&requester)?;
    Ok(Json(storage.get_registration_token(&token).await?.ok_or_else(unknown)?.into()))
}

/// Deletes a token: nobody can use it any more.
async fn delete_token(
    State(storage): State<Storage>,
    requester: Requester,
    Path(token): Path<String>,
) -> Result<Json<Value>, MatrixError> {
    check_admin(&requester)?;
    if storage.delete_registration_token(&token).await? { Ok(Json(json!({}))) } else { Err(unknown()) }
}
