//! Closing an account for good.

use model::UserNr;
use storage::{UserWork, UserWorkRow};
use tracing::warn;

use crate::{Accounts, Error, Requester};

/// Users that are read at once.
const USERS_AT_ONCE: u32 = 100;

/// A user who has closed the account, and may still be in rooms.
#[derive(Clone, Debug)]
pub struct Departure {
    /// As whom the rooms are left. Nobody can show a token of this user any more.
    pub requester: Requester,
    work: UserWorkRow,
}

impl Accounts {
    /// Closes the requester's account: devices, tokens, keys, key backups and profile are gone, the name stays taken. With `erase` the account
    /// data goes too, and whoever joins a room later is shown the user's events redacted. Client-Server API,
    /// "Account deactivation". The stream of profiles and device lists tells the rest of the server. Rooms are to be left now: see
    /// [`Accounts::departures`].
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

    /// Users who have closed their account and may still be in rooms, in order, after one. None is the end.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn departures(&self, after: Option<&Requester>) -> Result<Vec<Departure>, Error> {
        let storage = &self.0.storage;
        let after = after.map_or(UserNr(0), |requester| requester.user_nr);
        let users = storage.list_users_with_work(&[UserWork::LeaveRooms], after, USERS_AT_ONCE).await?;
        let names = storage.user_ids(&users).await?;
        let mut departures = Vec::with_capacity(users.len());
        for user_nr in users {
            let work = storage.list_user_work(user_nr).await?.into_iter().find(|row| row.work == UserWork::LeaveRooms);
            let (Some(work), Some(user_id)) = (work, names.get(&user_nr)) else { continue };
            let requester = Requester {
                user_id: user_id.clone(),
                user_nr,
                device_id: None,
                is_guest: false,
                is_admin: false,
                app_service: None,
            };
            departures.push(Departure { requester, work });
        }
        Ok(departures)
    }

    /// A user is in no room any more.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn departed(&self, departure: Departure) -> Result<(), Error> {
        Ok(self.0.storage.delete_user_work(departure.requester.user_nr, departure.work).await?)
    }
}
