//! `/sync`. Client-Server API, "Syncing".

use std::time::Duration;

use axum::{Router, extract::State};
use ruma::api::client::{
    filter::FilterDefinition,
    sync::sync_events::{self, v3::Filter},
};
use storage::Storage;
use sync::{Sync, v3::Request};
use web::{MatrixError, RequesterOrGuest, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(sync_events)
}

/// `GET /sync`.
async fn sync_events(
    State(sync): State<Sync>,
    State(storage): State<Storage>,
    RequesterOrGuest(requester): RequesterOrGuest,
    Ruma(request): Ruma<sync_events::v3::Request>,
) -> Result<Ruma<sync_events::v3::Response>, MatrixError> {
    let filter = match request.filter {
        None => FilterDefinition::default(),
        Some(Filter::FilterDefinition(filter)) => filter,
        Some(Filter::FilterId(id)) => {
            let unknown = || MatrixError::invalid_param(format!("you have no filter with the id {id}"));
            let filter_nr: i64 = id.parse().map_err(|_| unknown())?;
            let content = storage.get_filter(requester.user_nr, filter_nr).await?.ok_or_else(unknown)?;
            serde_json::from_str(&content).map_err(|error| MatrixError::internal(&error))?
        }
        Some(_) => return Err(MatrixError::invalid_param("the filter is neither an id nor a filter")),
    };
    let since = request.since.map(|since| since.parse()).transpose();
    let request = Request {
        since: since.map_err(|_| MatrixError::invalid_param("`since` is not a token of this server"))?,
        filter,
        full_state: request.full_state,
        timeout: request.timeout.unwrap_or(Duration::ZERO),
        use_state_after: request.use_state_after,
    };
    Ok(Ruma(sync.sync_events(&requester, &request).await?))
}
