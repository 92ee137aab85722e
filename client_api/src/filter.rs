//! Filters. Client-Server API, "Filtering".

use accounts::Accounts;
use axum::{Router, extract::State};
use ruma::{
    UserId,
    api::client::filter::{create_filter, get_filter},
};
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, requester::GuestOrRequester};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(create_filter).ruma_route(get_filter)
}

/// Refuses what is about somebody else.
pub(crate) fn check_own(requester: &accounts::Requester, user_id: &UserId) -> Result<(), MatrixError> {
    if *user_id == *requester.user_id { Ok(()) } else { Err(MatrixError::forbidden("this belongs to another user")) }
}

/// `POST /user/{userId}/filter`.
async fn create_filter(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<create_filter::v3::Request>,
) -> Result<Ruma<create_filter::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let filter_id = accounts.create_filter(requester.user_nr, &request.filter).await?;
    Ok(Ruma(create_filter::v3::Response::new(filter_id)))
}

/// `GET /user/{userId}/filter/{filterId}`.
async fn get_filter(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<get_filter::v3::Request>,
) -> Result<Ruma<get_filter::v3::Response>, MatrixError> {
    check_own(&requester, &request.user_id)?;
    let filter = accounts.filter(requester.user_nr, &request.filter_id).await?;
    Ok(Ruma(get_filter::v3::Response::new(filter)))
}
