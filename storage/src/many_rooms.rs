//! What an answer about many rooms reads, each thing in one statement for all of them.

use std::collections::HashMap;

use model::{EventNr, Membership, NodeNr, Position, RoomNr, UserNr};

use crate::{Error, Storage, TimelinePlace, db::args, rows::Rows, statement::statements};

statements! {
    // PostgreSQL joins each room with its newest events; SQLite has no such join, and looks up the numbers of a list.
    LIST_TIMELINES = [(either "
        SELECT e.room_nr, e.event_nr, e.anchor, e.step
          FROM json_each($1) r CROSS JOIN events e
         WHERE e.event_nr IN (
               SELECT event_nr FROM events
                WHERE room_nr = r.value AND anchor IS NOT NULL AND anchor > $2 AND anchor <= $3
                ORDER BY anchor DESC, step DESC LIMIT $4)
         ORDER BY e.room_nr, e.anchor DESC, e.step DESC" "
        SELECT e.room_nr, e.event_nr, e.anchor, e.step
          FROM UNNEST($1::bigint[]) AS r(room_nr) CROSS JOIN LATERAL (
               SELECT room_nr, event_nr, anchor, step FROM events
                WHERE room_nr = r.room_nr AND anchor IS NOT NULL AND anchor > $2 AND anchor <= $3
                ORDER BY anchor DESC, step DESC LIMIT $4) e
         ORDER BY e.room_nr, e.anchor DESC, e.step DESC")];
    LIST_STATES = ["
        SELECT r.room_nr, r.position, s.state_node FROM", (rows [1 room_nr bigint, 2 position bigint]), "
          JOIN room_states s ON s.room_nr = r.room_nr
           AND s.position = (SELECT max(t.position) FROM room_states t
                              WHERE t.room_nr = r.room_nr AND t.position <= r.position)"];
    LIST_OLDEST_MEMBERS = [(either "
        SELECT m.room_nr, m.user_nr, m.event_nr
          FROM json_each($1) r CROSS JOIN memberships m
         WHERE m.room_nr = r.value AND m.user_nr IN (
               SELECT user_nr FROM memberships
                WHERE room_nr = r.value AND membership IN (SELECT value FROM json_each($2))
                ORDER BY position, user_nr LIMIT $3)
         ORDER BY m.room_nr, m.position, m.user_nr" "
        SELECT m.room_nr, m.user_nr, m.event_nr
          FROM UNNEST($1::bigint[]) AS r(room_nr) CROSS JOIN LATERAL (
               SELECT room_nr, user_nr, event_nr, position FROM memberships
                WHERE room_nr = r.room_nr AND membership = ANY($2)
                ORDER BY position, user_nr LIMIT $3) m
         ORDER BY m.room_nr, m.position, m.user_nr")];
}

/// Most rooms that one statement is about: on SQLite a read must be over soon.
const ROOMS_AT_ONCE: usize = 500;

impl Storage {
    /// The newest events of the timelines of rooms after a position up to another, newest first, at most `limit` of each room. Rooms
    /// without any are left out.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_timelines(
        &self,
        rooms: &[RoomNr],
        (after, upto): (Position, Position),
        limit: u32,
    ) -> Result<HashMap<RoomNr, Vec<(EventNr, TimelinePlace)>>, Error> {
        let mut timelines: HashMap<RoomNr, Vec<(EventNr, TimelinePlace)>> = HashMap::new();
        for rooms in rooms.chunks(ROOMS_AT_ONCE) {
            let numbers: Vec<i64> = rooms.iter().map(|room| room.0).collect();
            for row in self.db().read(&LIST_TIMELINES, args![numbers, after, upto, i64::from(limit)]).await? {
                timelines.entry(row.nr(0)?).or_default().push((row.nr(1)?, (row.nr(2)?, row.get(3)?)));
            }
        }
        Ok(timelines)
    }

    /// The states of rooms, each at a position of its own: see [`Storage::get_state_at`]. Where there was no state yet nothing is said.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_states_at(
        &self,
        places: &[(RoomNr, Position)],
    ) -> Result<HashMap<(RoomNr, Position), NodeNr>, Error> {
        let mut states = HashMap::with_capacity(places.len());
        for places in places.chunks(ROOMS_AT_ONCE) {
            let rows = Rows::new()
                .bigint(places.iter().map(|(room_nr, _)| room_nr.0))
                .bigint(places.iter().map(|(_, position)| position.0));
            for row in self.db().read(&LIST_STATES, rows).await? {
                states.insert((row.nr(0)?, row.nr(1)?), row.nr(2)?);
            }
        }
        Ok(states)
    }

    /// The members of some kinds of rooms and their events, oldest first, at most `limit` of each room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_oldest_members(
        &self,
        rooms: &[RoomNr],
        kinds: &[Membership],
        limit: u32,
    ) -> Result<HashMap<RoomNr, Vec<(UserNr, EventNr)>>, Error> {
        let kinds: Vec<i64> = kinds.iter().map(|kind| kind.code()).collect();
        let mut members: HashMap<RoomNr, Vec<(UserNr, EventNr)>> = HashMap::new();
        for rooms in rooms.chunks(ROOMS_AT_ONCE) {
            let numbers: Vec<i64> = rooms.iter().map(|room| room.0).collect();
            let rows = self.db().read(&LIST_OLDEST_MEMBERS, args![numbers, kinds.clone(), i64::from(limit)]).await?;
            for row in rows {
                members.entry(row.nr(0)?).or_default().push((row.nr(1)?, row.nr(2)?));
            }
        }
        Ok(members)
    }
}
