//! The rows of what counts as unread, and of who has read up to where.

use std::collections::HashMap;

use model::{Membership, Position, RoomNr, UserNr};

use super::GroupWriter;
use crate::{
    batch::Batch,
    rows::Rows,
    statement::statements,
    unread::{ALL_THREADS, to_column},
};

statements! {
    INSERT_COUNTABLE = ["
        INSERT INTO countable_events (room_nr, position, user_nr, sender_nr, class, thread)
        SELECT room_nr, position, user_nr, sender_nr, class, thread
          FROM", (rows [1 room_nr bigint, 2 position bigint, 3 user_nr bigint, 4 sender_nr bigint, 5 class bigint,
                        6 thread text])];
    UPSERT_READ_POSITIONS = ["
        INSERT INTO read_positions (user_nr, room_nr, thread, position)
        SELECT user_nr, room_nr, thread, position
          FROM", (rows [1 user_nr bigint, 2 room_nr bigint, 3 thread text, 4 position bigint]), "
         WHERE TRUE
            ON CONFLICT (user_nr, room_nr, thread) DO UPDATE SET position = excluded.position
         WHERE excluded.position > read_positions.position"];
}

impl GroupWriter<'_> {
    /// What counts as unread, and who has read up to where.
    pub(super) fn add_countable(&self, batch: &mut Batch) {
        let mut rows = Vec::new();
        // A statement may touch a row once: the furthest counts.
        let mut read: HashMap<(UserNr, RoomNr, &str), Position> = HashMap::new();
        let mut has_read = |user_nr, room_nr, thread, position: Position| {
            let furthest = read.entry((user_nr, room_nr, thread)).or_default();
            *furthest = position.max(*furthest);
        };
        let rooms = self.rooms.iter().flat_map(|room| room.events.iter().map(|_| room.room_nr));
        for ((position, _, event), room_nr) in self.events.iter().zip(rooms) {
            let (Some(position), Some(countable)) = (*position, &event.countable) else { continue };
            rows.push((room_nr, position, 0, event.sender_nr, countable));
            let mentioned =
                countable.mentions.iter().map(|user| (room_nr, position, user.0, event.sender_nr, countable));
            rows.extend(mentioned);
            if countable.has_been_read_to {
                has_read(event.sender_nr, room_nr, countable.thread.as_str(), position);
            }
        }
        for (position, room_nr, _, change) in &self.memberships {
            let joins = change.after == Membership::Join && change.before != Some(Membership::Join);
            if change.is_local && joins {
                has_read(change.user_nr, *room_nr, ALL_THREADS, *position);
            }
        }
        for receipt in self.commits.iter().flat_map(|commit| &commit.receipts) {
            if let Some(position) = receipt.read_upto {
                has_read(receipt.user_nr, receipt.room_nr, to_column(receipt.thread.as_ref()), position);
            }
        }
        let countable = Rows::new()
            .bigint(rows.iter().map(|(room_nr, ..)| room_nr.0))
            .bigint(rows.iter().map(|(_, position, ..)| position.0))
            .bigint(rows.iter().map(|(_, _, user, ..)| *user))
            .bigint(rows.iter().map(|(_, _, _, sender, _)| sender.0))
            .bigint(rows.iter().map(|(_, _, _, _, countable)| countable.class))
            .text(rows.iter().map(|(_, _, _, _, countable)| countable.thread.as_str().to_owned()));
        batch.add(&INSERT_COUNTABLE, countable);
        let mut read: Vec<_> = read.into_iter().collect();
        read.sort_unstable();
        let rows = Rows::new()
            .bigint(read.iter().map(|((user_nr, _, _), _)| user_nr.0))
            .bigint(read.iter().map(|((_, room_nr, _), _)| room_nr.0))
            .text(read.iter().map(|((_, _, thread), _)| (*thread).to_owned()))
            .bigint(read.iter().map(|(_, position)| position.0));
        batch.add(&UPSERT_READ_POSITIONS, rows);
    }
}
