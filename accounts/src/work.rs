//! What changes of users cause, done after the change: the database keeps it until it is done.

use std::time::Duration;

use model::UserNr;
use storage::{ChangedKeys, ChangedKeysRow, ChangedProfile, Commit, DeviceListChange, UserWork};
use tracing::warn;

use crate::{Accounts, Error};

/// What is taken up again here; the rooms of users who have gone are left by whoever knows rooms.
const OURS: [UserWork; 4] =
    [UserWork::TellDevices, UserWork::TellProfile, UserWork::TellNameOrPicture, UserWork::DeleteToDevice];
/// How often it is taken up.
pub(crate) const TAKEN_UP_EVERY: Duration = Duration::from_secs(60);
/// Users that are read at once.
const USERS_AT_ONCE: u32 = 100;
/// When more of a user's devices and keys changed, it is told that anything may have.
const CHANGES_MAX: usize = 20;

impl Accounts {
    /// Does what a change of a user's caused. The change has been made: what cannot be done now is done later, by
    /// [`Accounts::run`] of any process, also after a restart.
    pub(crate) async fn follow_up(&self, user_nr: UserNr) {
        if let Err(error) = self.do_work(user_nr).await {
            let error = &error as &dyn std::error::Error;
            warn!(error, "what a change of a user caused could not be done; it is tried again");
        }
    }

    /// Takes up what was not done, here or in a process that ended.
    pub(crate) async fn take_up_work(&self) {
        let mut after = UserNr(0);
        loop {
            let users = match self.0.storage.list_users_with_work(&OURS, after, USERS_AT_ONCE).await {
                Ok(users) => users,
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "could not ask what is still to be done for users");
                    return;
                }
            };
            let Some(last) = users.last() else { return };
            after = *last;
            for user_nr in users {
                self.follow_up(user_nr).await;
            }
        }
    }

    async fn do_work(&self, user_nr: UserNr) -> Result<(), Error> {
        let storage = &self.0.storage;
        let work = storage.list_user_work(user_nr).await?;
        // In two processes at once this is told twice, which is no harm.
        let is_noted = |wanted: UserWork| work.iter().any(|row| row.work == wanted);
        let is_in_rooms = is_noted(UserWork::TellNameOrPicture);
        let (mut changed, mut device_lists) = (Vec::new(), Vec::new());
        // What was noted since the work was read is told by whoever reads that: until then it stays.
        if is_noted(UserWork::TellDevices) {
            changed = storage.list_changed_keys(user_nr).await?;
            device_lists = told_changes(user_nr, &changed);
        }
        let profiles =
            (is_in_rooms || is_noted(UserWork::TellProfile)).then_some(ChangedProfile { user_nr, is_in_rooms });
        let profiles: Vec<_> = profiles.into_iter().collect();
        if !device_lists.is_empty() || !profiles.is_empty() {
            storage.commit(Commit { device_lists, profiles, ..Commit::default() }).await?;
        }
        storage.delete_changed_keys(user_nr, &changed).await?;
        for row in work {
            match row.work {
                UserWork::TellDevices | UserWork::TellProfile | UserWork::TellNameOrPicture => {}
                UserWork::DeleteToDevice => storage.delete_to_gone_devices(user_nr).await?,
                UserWork::LeaveRooms => continue,
            }
            storage.delete_user_work(user_nr, row).await?;
        }
        Ok(())
    }
}

/// What is told of a user's devices and keys that were noted to have changed.
fn told_changes(user_nr: UserNr, changed: &[ChangedKeysRow]) -> Vec<DeviceListChange> {
    if changed.is_empty() || changed.len() > CHANGES_MAX || changed.iter().any(|row| row.what == ChangedKeys::Anything)
    {
        return vec![user_nr.into()];
    }
    changed.iter().map(|row| DeviceListChange { user_nr, what: row.what.clone() }).collect()
}
