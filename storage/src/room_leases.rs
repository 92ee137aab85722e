//! Rooms that one process has for itself for a moment, because it lost races for them.
//!
//! A commit is built upon the room's state and fails when that is another by then. With several processes that change the state of
//! one room all the time, one may lose again and again. One that has lost often asks for the lease with its next try: should that
//! fail too, nobody else changes the room's state until it has, or for [`LEASE_MS`]. Messages change no state and go on.
//!
//! The lease stands in the room's head, which the committer reads anyway, and is written under the order lock.

use model::RoomNr;

use crate::{CommitError, Error, RoomCommit, committer::StoredHead, db::Tx, rows::Rows, statement::statements};

/// How long a process has a room for itself.
const LEASE_MS: i64 = 1_000;

statements! {
    UPDATE_LEASES = ["
        UPDATE room_heads SET lease_process = r.process, lease_until_ms = r.until_ms
          FROM", (rows [1 room_nr bigint, 2 process text, 3 until_ms bigint]), "
         WHERE room_heads.room_nr = r.room_nr"];
}

/// The lease of a room.
pub(crate) struct RoomLease {
    pub(crate) process: String,
    pub(crate) until_ms: i64,
}

/// Checks the commits of a group, and gathers the leases that it takes and gives back.
pub(crate) struct RoomLeases<'a> {
    process: &'a str,
    now_ms: i64,
    changes: Vec<(RoomNr, i64)>,
}

impl<'a> RoomLeases<'a> {
    pub(crate) fn new(process: &'a str, now_ms: i64) -> Self {
        Self { process, now_ms, changes: Vec::new() }
    }

    /// Why a commit cannot be written upon the head of its room, if it cannot.
    pub(crate) fn check(&mut self, room: &RoomCommit, head: Option<&StoredHead>) -> Option<CommitError> {
        let expected = room.new_room.is_none().then_some(room.expected_state);
        let is_current = head.map(|head| head.state) == expected
            && room.expected_position.is_none_or(|position| head.is_some_and(|head| head.position == position))
            // All members came between: what lacks some is of the past.
            && (head.is_some_and(|head| head.is_partial) || !room.events.iter().any(|event| event.lacks_members) || room.partial.is_some());
        let lease = head.and_then(|head| head.lease.as_ref());
        if let Some(for_ms) = lease.and_then(|lease| self.held_by_another(lease))
            && (room.state != room.expected_state || (!is_current && room.lease))
        {
            return Some(CommitError::Leased { for_ms });
        }
        if !is_current {
            if room.lease && head.is_some() {
                self.changes.push((room.room_nr, self.now_ms + LEASE_MS));
            }
            return Some(CommitError::StateChanged);
        }
        if lease.is_some_and(|lease| lease.process == self.process) {
            self.changes.push((room.room_nr, 0));
        }
        None
    }

    /// For how long another process has the room. A lease that lasts longer than any is from a clock that is wrong: it counts for nothing.
    fn held_by_another(&self, lease: &RoomLease) -> Option<i64> {
        let for_ms = lease.until_ms - self.now_ms;
        (lease.process != self.process && (1..=LEASE_MS).contains(&for_ms)).then_some(for_ms)
    }

    /// Writes them; whether there were any.
    pub(crate) async fn write(&self, tx: &mut Tx) -> Result<bool, Error> {
        if self.changes.is_empty() {
            return Ok(false);
        }
        let rows = Rows::new()
            .bigint(self.changes.iter().map(|(room_nr, _)| room_nr.0))
            .text(self.changes.iter().map(|_| self.process.to_owned()))
            .bigint(self.changes.iter().map(|(_, until_ms)| *until_ms));
        tx.execute(&UPDATE_LEASES, rows).await?;
        Ok(true)
    }
}
