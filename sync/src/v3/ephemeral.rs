//! Typing and receipts in an answer.

use std::{collections::HashMap, sync::Arc};

use model::{Membership, Position, RoomNr};
use ruma::{api::client::sync::sync_events::v3::JoinedRoom, serde::Raw};
use storage::{RoomMembership, RoomRow};

use super::{Answer, filter::matches_part};
use crate::{Error, Sync, ephemeral::EventByRoom};

/// Most receipts of others in a room that is new to the client: who read it long ago is of no interest.
const RECEIPTS_MAX: u32 = 1_000;

impl Sync {
    /// The receipts of rooms as events: new ones, and the newest of a room that is new to the client.
    pub(super) async fn receipts(
        &self,
        answer: &Answer<'_>,
        rows: &[(&RoomMembership, &Arc<RoomRow>)],
    ) -> Result<EventByRoom, Error> {
        let storage = &self.0.storage;
        let since = answer.since.unwrap_or(Position(0));
        let joined = rows.iter().map(|(row, _)| *row).filter(|row| row.membership == Membership::Join);
        let (new, old): (Vec<&RoomMembership>, Vec<&RoomMembership>) = joined.partition(|row| row.position > since);
        let mut found = HashMap::new();
        let numbers = |rows: Vec<&RoomMembership>| -> Vec<RoomNr> { rows.iter().map(|row| row.room_nr).collect() };
        let (new, old) = (numbers(new), numbers(old));
        if !new.is_empty() {
            let user_nr = answer.requester.user_nr;
            found.extend(storage.list_newest_receipts(user_nr, &new, answer.upto, RECEIPTS_MAX).await?);
        }
        if !old.is_empty() {
            found.extend(storage.list_receipts(&old, since, answer.upto).await?);
        }
        self.receipt_events(answer.requester, found).await
    }
}

/// Adds who is typing in a room and who has read what, as far as it is new and wanted.
pub(super) fn add_ephemeral(
    answer: &Answer<'_>,
    shown: &mut JoinedRoom,
    room: &RoomRow,
    events: [(&str, &EventByRoom); 2],
) {
    let filter = &answer.request.filter.room.ephemeral;
    for (event_type, events) in events {
        if let Some(event) = events.get(&room.nr).filter(|_| matches_part(filter, &room.id, event_type)) {
            shown.ephemeral.events.push(Raw::from_json(event.clone()));
        }
    }
}
