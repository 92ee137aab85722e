//! Events that wait on disk until their listener has worked them off.

use super::Client;
use crate::{Error, inbox::KeptEvent};

impl Client {
    /// Keeps everything that happens in rooms from now on until [`Self::forget_kept`], over restarts, whoever syncs with this store: for
    /// listeners that must miss nothing. What is kept is bounded; beyond 100,000 events the oldest are dropped.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn keep_events(&self) -> Result<(), Error> {
        self.machine().await.inbox_open().await
    }

    /// The oldest events that are kept, at most `max`, each with its number. [`Self::events`] says when there may be more.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn kept_events(&self, max: usize) -> Result<Vec<(u64, KeptEvent)>, Error> {
        self.machine().await.kept_events(max).await
    }

    /// The listener has done what there is to do about all kept events up to this number.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn forget_kept(&self, number: u64) -> Result<(), Error> {
        self.machine().await.forget_kept(number).await
    }
}
