//! Filters that clients upload. Client-Server API, "Filtering".

use model::UserNr;
use ruma::api::client::filter::FilterDefinition;

use crate::{Accounts, Error, secrets};

/// Most different filters of a user.
const FILTERS_MAX: i64 = 1_000;
/// Largest filter, in bytes.
const FILTER_BYTES_MAX: usize = 65_536;

impl Accounts {
    /// Keeps a filter; the same filter gets the same id.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`], [`Error::InvalidParam`] when the user has too many.
    pub async fn create_filter(&self, user_nr: UserNr, filter: &FilterDefinition) -> Result<String, Error> {
        let content = serde_json::to_string(filter).map_err(|error| Error::BadJson(error.to_string()))?;
        if content.len() > FILTER_BYTES_MAX {
            return Err(Error::TooLarge(FILTER_BYTES_MAX));
        }
        let hash = secrets::hash(&content);
        let filter_nr = self.0.storage.insert_filter(user_nr, hash, &content, FILTERS_MAX).await?;
        let filter_nr = filter_nr.ok_or_else(|| Error::InvalidParam(format!("at most {FILTERS_MAX} filters")))?;
        Ok(filter_nr.to_string())
    }

    /// A filter of a user.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn filter(&self, user_nr: UserNr, filter_id: &str) -> Result<FilterDefinition, Error> {
        let filter_nr: i64 = filter_id.parse().map_err(|_| Error::NotFound("filter"))?;
        let content = self.0.storage.get_filter(user_nr, filter_nr).await?.ok_or(Error::NotFound("filter"))?;
        serde_json::from_str(&content).map_err(|error| storage::Error::Damaged(format!("filter: {error}")).into())
    }
}
