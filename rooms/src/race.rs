//! What a commit does when other processes were faster.

use std::time::Duration;

use storage::CommitError;
use tokio::time::sleep;

/// After so many lost races in a row the room is leased.
const LOST_BEFORE_LEASE: usize = 3;
/// How often it is built again. With the lease the next try wins; it may be lost to a process that took too long.
const LOST_MAX: usize = 20;
/// How long is waited before a room that another process has for itself is tried again: it needs it for moments only.
const WAIT: Duration = Duration::from_millis(15);
/// How often that is waited for: some seconds, for many processes have their turn before.
const WAITS_MAX: usize = 1_000;

/// How a commit fares against those of other processes.
#[derive(Default)]
pub(crate) struct Race {
    lost: usize,
    waits: usize,
}

impl Race {
    /// Whether a try was lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost > 0
    }

    /// Whether the room is to be leased, should the next try be lost, too.
    pub(crate) fn wants_lease(&self) -> bool {
        self.lost + 1 >= LOST_BEFORE_LEASE
    }

    /// Notes why a try failed, and waits if another process has the room; whether to build it again.
    pub(crate) async fn goes_on(&mut self, error: &CommitError) -> bool {
        match error {
            CommitError::StateChanged | CommitError::EventExists => {
                self.lost += 1;
                self.lost < LOST_MAX
            }
            CommitError::Leased { for_ms } => {
                self.waits += 1;
                let for_ms = Duration::from_millis(u64::try_from(*for_ms).unwrap_or(0));
                sleep(WAIT.min(for_ms)).await;
                self.waits < WAITS_MAX
            }
            _ => false,
        }
    }
}
