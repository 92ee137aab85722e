//! One after the other, for what is read, changed and written back.

use model::UserNr;
use tokio::sync::{Mutex, MutexGuard};

/// How many users may have their turn at once.
const TURNS: usize = 64;

/// Guards the account data of users while it is changed; users share a lock with a few others. No lock inside but those of the
/// database. Between processes of a cluster the last writer wins, as with two devices of a user.
pub(crate) struct Turns(Vec<Mutex<()>>);

impl Turns {
    pub(crate) fn new() -> Self {
        Self((0..TURNS).map(|_| Mutex::new(())).collect())
    }

    /// Waits for the user's turn.
    pub(crate) async fn of(&self, user_nr: UserNr) -> MutexGuard<'_, ()> {
        self.0[user_nr.0.unsigned_abs() as usize % TURNS].lock().await
    }
}
