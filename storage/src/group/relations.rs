//! The rows of relations. Client-Server API, "Forming relationships between events".

use std::collections::BTreeSet;

use super::{GroupWriter, made_ms};
use crate::{
    batch::Batch,
    db::args,
    relations::{ADD_TO_THREADS, INSERT_RELATIONS, RelationRow, relation_rows, thread_rows},
    rows::Rows,
    statement::statements,
};

statements! {
    DELETE_RELATIONS = ["DELETE FROM relations WHERE event_nr", (in_list 1)];
    /// Takes events off their threads, which costs by what is redacted, not by what the threads have. What was redacted before relates to
    /// nothing any more, so that an event that is redacted twice counts once.
    TAKE_OFF_THREADS = ["
        UPDATE threads SET events = threads.events - gone.events
          FROM (SELECT c.room_nr, c.parent_id, count(*) AS events FROM relations c
                 WHERE c.event_nr", (in_list 1), "
                 GROUP BY c.room_nr, c.parent_id) AS gone
         WHERE threads.room_nr = gone.room_nr AND threads.root_id = gone.parent_id"];
    /// The newest event of a thread may be gone.
    PLACE_THREADS = ["
        UPDATE threads
           SET anchor = coalesce((SELECT c.anchor FROM relations c
                          WHERE c.room_nr = r.room_nr AND c.parent_id = r.root_id AND c.rel_type_nr = r.rel_type_nr
                          ORDER BY c.anchor DESC, c.step DESC LIMIT 1), 0),
               step = coalesce((SELECT c.step FROM relations c
                          WHERE c.room_nr = r.room_nr AND c.parent_id = r.root_id AND c.rel_type_nr = r.rel_type_nr
                          ORDER BY c.anchor DESC, c.step DESC LIMIT 1), 0)
          FROM", (rows [1 room_nr bigint, 2 root_id text, 3 rel_type_nr bigint]), "
         WHERE threads.room_nr = r.room_nr AND threads.root_id = r.root_id"];
}

impl GroupWriter<'_> {
    /// Client-Server API, "Forming relationships between events".
    pub(super) fn add_relations(&self, batch: &mut Batch) {
        let redactions = self.rooms.iter().flat_map(|room| room.redactions.iter().map(|gone| (room.room_nr, gone)));
        let broken: Vec<_> =
            redactions.filter_map(|(room, gone)| Some((room, gone, gone.relation.as_ref()?))).collect();
        let of_threads: Vec<i64> =
            broken.iter().filter(|(.., relation)| relation.is_thread).map(|(_, gone, _)| gone.event_nr.0).collect();
        if !of_threads.is_empty() {
            batch.first_with(&TAKE_OFF_THREADS, args![of_threads]);
        }
        if !broken.is_empty() {
            // First: what our user has taken back may be said again in the same group.
            batch.first_with(
                &DELETE_RELATIONS,
                args![broken.iter().map(|(_, gone, _)| gone.event_nr.0).collect::<Vec<_>>()],
            );
        }
        // Only events of a timeline count.
        let events = self.rooms.iter().flat_map(|room| room.events.iter().map(|_| room.room_nr)).zip(&self.events);
        let new: Vec<RelationRow<'_>> = events
            .filter_map(|(room_nr, (position, _, event))| {
                Some(RelationRow {
                    event_nr: event.nr,
                    room_nr,
                    type_nr: event.type_nr,
                    sender_nr: event.sender_nr,
                    origin_server_ts: made_ms(event),
                    place: event.placement.in_timeline(*position)?,
                    relation: event.relation.as_ref()?,
                })
            })
            .collect();
        batch.add(INSERT_RELATIONS, relation_rows(&new));
        batch.add(ADD_TO_THREADS, thread_rows(&new));
        let shrunk: BTreeSet<_> = broken
            .iter()
            .filter(|(_, _, relation)| relation.is_thread)
            .map(|(room, _, relation)| (room.0, relation.parent.as_str(), relation.rel_type_nr.0))
            .collect();
        let rows = Rows::new()
            .bigint(shrunk.iter().map(|(room, ..)| *room))
            .text(shrunk.iter().map(|(_, root, _)| (*root).to_owned()))
            .bigint(shrunk.iter().map(|(.., rel_type_nr)| *rel_type_nr));
        batch.then(&PLACE_THREADS, rows);
    }
}
