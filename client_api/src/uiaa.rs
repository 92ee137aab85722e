//! What the endpoints with user-interactive authentication have in common.

use accounts::{Accounts, Requester};
use ruma::api::client::uiaa::AuthData;
use serde_json::Value;
use web::MatrixError;

/// Asks for the requester's password before `endpoint` does what `body` says.
pub(crate) async fn confirm(
    accounts: &Accounts,
    requester: &Requester,
    endpoint: &str,
    body: Value,
    auth: Option<&AuthData>,
) -> Result<(), MatrixError> {
    Ok(accounts.confirm_by_password(requester, endpoint, &body, auth).await?)
}
