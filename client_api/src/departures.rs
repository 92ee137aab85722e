//! Users who have closed their account leave their rooms. Client-Server API, "Account deactivation".
//!
//! The account is closed first: then nobody can join any more while rooms are left. The database keeps that rooms are to be left until a
//! look finds none, so that a busy room, a failure or a restart keeps nobody in.

use std::time::Duration;

use accounts::{Accounts, Requester};
use model::Membership;
use rooms::{Error, Rooms};
use tracing::{debug, warn};

/// How often is looked for what is left to do.
const LOOKED_EVERY: Duration = Duration::from_secs(60);

/// What a look at the rooms of a user found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Look {
    /// Rooms that the user has left now.
    left: usize,
    /// Rooms that could not be left for a reason that passes.
    busy: usize,
}

/// Lets those leave who have closed their account, until `stop` ends. Run it as one task of the process.
pub async fn follow_departures(accounts: Accounts, rooms: Rooms, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let mut look = tokio::time::interval(LOOKED_EVERY);
    loop {
        tokio::select! {
            () = &mut stop => return,
            _ = look.tick() => {}
        }
        tokio::select! {
            () = &mut stop => return,
            outcome = take_up(&accounts, &rooms) => {
                if let Err(error) = outcome {
                    warn!(error = &error as &dyn std::error::Error, "could not ask who is still to leave rooms");
                }
            }
        }
    }
}

async fn take_up(accounts: &Accounts, rooms: &Rooms) -> Result<(), accounts::Error> {
    let mut after = None;
    loop {
        let departures = accounts.departures(after.as_ref()).await?;
        let Some(last) = departures.last() else { return Ok(()) };
        after = Some(last.requester.clone());
        for departure in departures {
            // Only a look that finds nothing to leave is the last one: a request that was under way when the account was closed may
            // have joined a room after the look before.
            if leave_all(accounts, rooms, &departure.requester).await? == Look::default() {
                accounts.departed(departure).await?;
            }
        }
    }
}

/// Leaves all rooms of a user whose account is closed and declines all invitations, as far as that goes now; [`follow_departures`] does
/// the rest.
pub(crate) async fn depart(accounts: &Accounts, rooms: &Rooms, requester: &Requester) {
    if let Err(error) = leave_all(accounts, rooms, requester).await {
        warn!(error = &error as &dyn std::error::Error, "could not look for the rooms of a deactivated user");
    }
}

/// Leaves what can be left. A room that refuses is passed over: nobody is held by it.
async fn leave_all(accounts: &Accounts, rooms: &Rooms, requester: &Requester) -> Result<Look, accounts::Error> {
    let storage = accounts.storage();
    let is_in = |membership| matches!(membership, Membership::Join | Membership::Invite | Membership::Knock);
    let memberships = storage.list_rooms_of_user(requester.user_nr).await?;
    let numbers: Vec<_> = memberships.iter().filter(|row| is_in(row.membership)).map(|row| row.room_nr).collect();
    let mut look = Look::default();
    for room in storage.get_rooms(&numbers).await?.values() {
        match rooms.leave(requester, &room.id, None).await {
            Ok(()) => look.left += 1,
            Err(error @ (Error::Busy | Error::Storage(_))) => {
                look.busy += 1;
                let error = &error as &dyn std::error::Error;
                warn!(room.id = %room.id, error, "a deactivated user will leave {} later", room.id);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                debug!(room.id = %room.id, error, "a deactivated user could not leave {}", room.id);
            }
        }
    }
    Ok(look)
}
