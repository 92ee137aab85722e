//! How long a user has been in a room, and what they see of its timeline by that.

use std::sync::Arc;

use model::{Membership, Position};
use rooms::Reader;
use storage::{RoomMembership, StoredEvent};

use crate::{Error, Sync};

/// What a user was to a room over the time that an answer is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Joined all the time.
    Joined,
    /// Joined at its start, and away since then for a while.
    Away,
    /// Not joined at its start.
    New,
}

impl Sync {
    /// What a user, who is joined now, was to a room since a position.
    pub(crate) async fn stay(&self, since: Option<Position>, row: &RoomMembership) -> Result<Stay, Error> {
        let Some(since) = since else { return Ok(Stay::New) };
        if row.position <= since {
            return Ok(Stay::Joined);
        }
        // A member's event changes with their name, too.
        let log = self.0.storage.list_membership_log(row.room_nr, row.user_nr).await?;
        let (before, after) = log.split_at(log.partition_point(|(at, _)| *at <= since));
        let is_join = |(_, membership): &(Position, Membership)| *membership == Membership::Join;
        Ok(match before.last().is_some_and(is_join) {
            true if after.iter().all(is_join) => Stay::Joined,
            true => Stay::Away,
            false => Stay::New,
        })
    }

    /// Whether a user was joined at a position.
    pub(crate) async fn was_joined_at(&self, row: &RoomMembership, position: Option<Position>) -> Result<bool, Error> {
        let Some(position) = position else { return Ok(false) };
        let log = self.0.storage.list_membership_log(row.room_nr, row.user_nr).await?;
        let last = log.iter().take_while(|(at, _)| *at <= position).last();
        Ok(last.is_some_and(|(_, membership)| *membership == Membership::Join))
    }

    /// The events after the last one that the reader may not see, and whether there is one: a timeline has no holes, and what is
    /// before it is told as state.
    pub(crate) async fn visible_end(
        &self,
        reader: &Reader,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<(Vec<Arc<StoredEvent>>, bool), Error> {
        let mut visible = self.0.rooms.visible(reader, events.clone()).await?;
        let hidden = events.iter().rposition(|event| !visible.iter().any(|seen| seen.nr == event.nr));
        let Some(hidden) = hidden else { return Ok((visible, false)) };
        visible.retain(|event| events[hidden + 1..].iter().any(|later| later.nr == event.nr));
        Ok((visible, true))
    }
}
