//! The rows of redactions. Room Versions, "Redactions" and "Handling redactions".

use super::GroupWriter;
use crate::{batch::Batch, commit::Placement, db::args, events::encode_body, rows::Rows, statement::statements};

statements! {
    /// What is redacted notifies nobody any more.
    DELETE_COUNTABLE = ["
        DELETE FROM countable_events WHERE (room_nr, position) IN (
               SELECT e.room_nr, e.position FROM", (rows [1 event_nr bigint]), "
                 JOIN events e ON e.event_nr = r.event_nr)"];
    REDACT_EVENTS = ["
        UPDATE events SET redacted_by = r.by FROM", (rows [1 event_nr bigint, 2 by bigint]), "
         WHERE events.event_nr = r.event_nr"];
    REDACT_BODIES = ["
        UPDATE event_bodies SET body = r.body FROM", (rows [1 event_nr bigint, 2 body bytea]), ", events
         WHERE events.event_nr = r.event_nr AND event_bodies.event_nr = r.event_nr
           AND event_bodies.month = events.body_month"];
    INSERT_HELD = ["
        INSERT INTO held_redactions (event_nr, room_nr, target_id)
        SELECT event_nr, room_nr, target_id FROM", (rows [1 event_nr bigint, 2 room_nr bigint, 3 target_id text])];
    DELETE_HELD = ["DELETE FROM held_redactions WHERE event_nr", (in_list 1)];
    PLACE_EVENTS = ["
        UPDATE events SET position = r.position, anchor = r.position, step = 0, flags = 0
          FROM", (rows [1 event_nr bigint, 2 position bigint]), "
         WHERE events.event_nr = r.event_nr"];
    INSERT_RELATED_REDACTIONS = ["
        INSERT INTO related_redactions (redaction_nr, room_nr, target_id, target_rel_type, rel_types, looks, is_done)
        SELECT redaction_nr, room_nr, target_id, target_rel_type, rel_types, 0, FALSE
          FROM", (rows [1 redaction_nr bigint, 2 room_nr bigint, 3 target_id text, 4 target_rel_type text, 5 rel_types text])];
    LOOK_AGAIN = ["
        UPDATE related_redactions SET looks = looks + 1, is_done = FALSE
          FROM", (rows [1 room_nr bigint, 2 target_id text]), "
         WHERE related_redactions.room_nr = r.room_nr AND related_redactions.target_id = r.target_id"];
}

impl GroupWriter<'_> {
    /// Room Versions, "Redactions" and "Handling redactions".
    pub(super) fn add_redactions(&self, batch: &mut Batch) {
        let redactions: Vec<_> = self.rooms.iter().flat_map(|room| &room.redactions).collect();
        let rows = Rows::new()
            .bigint(redactions.iter().map(|redaction| redaction.event_nr.0))
            .bigint(redactions.iter().map(|redaction| redaction.by.0));
        batch.then(&REDACT_EVENTS, rows);
        let rows = Rows::new()
            .bigint(redactions.iter().map(|redaction| redaction.event_nr.0))
            .bytea(redactions.iter().map(|redaction| encode_body(&redaction.json)));
        batch.then(&REDACT_BODIES, rows);
        batch.then(&DELETE_COUNTABLE, Rows::new().bigint(redactions.iter().map(|redaction| redaction.event_nr.0)));
        let events = self.rooms.iter().flat_map(|room| room.events.iter().map(|event| (room.room_nr, event)));
        let held: Vec<_> = events
            .filter(|(_, event)| event.placement == Placement::Held)
            .filter_map(|(room, event)| Some((room, event.nr, event.pdu.redacts.as_ref()?)))
            .collect();
        let rows = Rows::new()
            .bigint(held.iter().map(|(_, nr, _)| nr.0))
            .bigint(held.iter().map(|(room, ..)| room.0))
            .text(held.iter().map(|(.., target)| target.to_string()));
        batch.add(&INSERT_HELD, rows);
        if !self.released.is_empty() {
            batch.then_with(&DELETE_HELD, args![self.released.iter().map(|(nr, _)| nr.0).collect::<Vec<_>>()]);
        }
        let rows = Rows::new()
            .bigint(self.released.iter().map(|(nr, _)| nr.0))
            .bigint(self.released.iter().map(|(_, position)| position.0));
        batch.then(&PLACE_EVENTS, rows);
        let related: Vec<_> =
            self.rooms.iter().flat_map(|room| room.related_redactions.iter().map(|new| (room.room_nr, new))).collect();
        let rows = Rows::new()
            .bigint(related.iter().map(|(_, new)| new.redaction_nr.0))
            .bigint(related.iter().map(|(room, _)| room.0))
            .text(related.iter().map(|(_, new)| new.target.to_string()))
            .text(related.iter().map(|(_, new)| new.target_rel_type.clone()))
            .text(related.iter().map(|(_, new)| serde_json::json!(new.rel_types).to_string()));
        batch.add(&INSERT_RELATED_REDACTIONS, rows);
        let again: Vec<_> =
            self.rooms.iter().flat_map(|room| room.related_again.iter().map(|target| (room.room_nr, target))).collect();
        let rows = Rows::new()
            .bigint(again.iter().map(|(room, _)| room.0))
            .text(again.iter().map(|(_, target)| target.to_string()));
        batch.then(&LOOK_AGAIN, rows);
    }
}
