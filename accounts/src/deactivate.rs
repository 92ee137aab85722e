//! Closing an account for good.

use tracing::warn;

use crate::{Accounts, Error, Requester};

impl Accounts {
    /// Closes the requester's account: devices, tokens, keys, key backups and profile are gone, the name stays taken. With `erase` the account
    /// data goes too, and whoever joins a room later is shown the user's events redacted. Client-Server API,
    /// "Account deactivation". The stream of profiles and device lists tells the rest of the server, which leaves the rooms.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn deactivate(&self, requester: &Requester, erase: bool) -> Result<(), Error> {
        let user_nr = requester.user_nr;
        if erase {
            // First, so that whoever is interrupted here can ask again.
            self.0.storage.delete_account_data(user_nr).await?;
        }
        self.0.storage.deactivate_user(user_nr, erase).await?;
        self.forget_user(user_nr);
        self.follow_up(user_nr).await;
        // Nobody can read them any more; what is left after a failure goes at the next start.
        if let Err(error) = self.0.storage.empty_deleted_key_backups().await {
            warn!(error = &error as &dyn std::error::Error, "deleted key backups keep their keys until the next start");
        }
        Ok(())
    }
}
