//! Rooms that users of ours have joined and whose members are not all here yet.

use std::collections::{HashMap, HashSet};

use model::{EventNr, NodeNr, Position, RoomNr, StateKeyNr, TypeNr, UserNr};
use ruma::{OwnedEventId, OwnedServerName};

use crate::{
    Error, RoomMembership, StateKey, Storage,
    batch::Batch,
    commit::{Completion, NewPartial, RoomCommit},
    db::{Row, args},
    packed::unpack_events,
    room_reads::membership_of,
    rows::Rows,
    statement::statements,
};

statements! {
    INSERT_PARTIAL = ["
        INSERT INTO partial_rooms (room_nr, join_nr, as_server, resident, begun_at_ms, tries, next_try_ms)
        SELECT room_nr, join_nr, as_server, resident, at_ms, 0, at_ms
          FROM", (rows [1 room_nr bigint, 2 join_nr bigint, 3 as_server text, 4 resident text, 5 at_ms bigint]), "
         WHERE TRUE
            ON CONFLICT (room_nr) DO UPDATE
           SET join_nr = excluded.join_nr, as_server = excluded.as_server, resident = excluded.resident,
               begun_at_ms = excluded.begun_at_ms, tries = 0, next_try_ms = excluded.next_try_ms"];
    SET_PARTIAL = ["
        UPDATE room_heads SET is_partial = r.is_partial
          FROM", (rows [1 room_nr bigint, 2 is_partial boolean]), "
         WHERE room_heads.room_nr = r.room_nr"];
    INSERT_TOLD_SERVERS = ["
        INSERT INTO room_servers (room_nr, server, joined, told)
        SELECT room_nr, server, 0, TRUE FROM", (rows [1 room_nr bigint, 2 server text]), "
         WHERE TRUE
            ON CONFLICT (room_nr, server) DO UPDATE SET told = TRUE"];
    DELETE_PARTIAL = ["DELETE FROM partial_rooms WHERE room_nr", (in_list 1)];
    FORGET_TOLD_SERVERS = ["UPDATE room_servers SET told = FALSE WHERE told AND room_nr", (in_list 1)];
    DELETE_EMPTY_SERVERS = ["DELETE FROM room_servers WHERE joined <= 0 AND room_nr", (in_list 1)];
    /// Their state is whole now; some of them it forbids.
    COMPLETE_EVENTS = ["
        UPDATE events
           SET state_node = r.state_node, replaces = r.replaces, flags = (events.flags & ~32) | r.more_flags
          FROM", (rows [1 event_nr bigint, 2 state_node bigint, 3 replaces bigint, 4 more_flags bigint]), "
         WHERE events.event_nr = r.event_nr"];
    INSERT_SPAN = ["
        INSERT INTO partial_spans (room_nr, began, ended)
        SELECT p.room_nr, e.position, r.ended
          FROM", (rows [1 room_nr bigint, 2 ended bigint]), "
          JOIN partial_rooms p ON p.room_nr = r.room_nr
          JOIN events e ON e.event_nr = p.join_nr
         WHERE e.position IS NOT NULL ON CONFLICT DO NOTHING"];
    FIND_SPAN_AT = ["
        SELECT ended FROM partial_spans WHERE room_nr = $1 AND ended > $2 AND began <= $2 ORDER BY ended LIMIT 1"];
    HAS_ENDED = ["SELECT 1 FROM partial_spans WHERE room_nr = $1 AND ended > $2 AND ended <= $3 LIMIT 1"];
    IS_PARTIAL = ["SELECT 1 FROM room_heads WHERE room_nr = $1 AND is_partial"];
    IS_IN_PARTIAL = ["
        SELECT 1 FROM room_servers s JOIN room_heads h ON h.room_nr = s.room_nr AND h.is_partial
         WHERE s.server = $1 AND s.room_nr", (in_list 2), " LIMIT 1"];
    LIST_UNKNOWN_MEMBERS = ["
        SELECT r.room_nr, r.user_nr FROM", (rows [1 room_nr bigint, 2 user_nr bigint, 3 server text]), "
          JOIN room_heads h ON h.room_nr = r.room_nr AND h.is_partial
          JOIN room_servers s ON s.room_nr = r.room_nr AND s.server = r.server
         WHERE NOT EXISTS (SELECT 1 FROM memberships m WHERE m.room_nr = r.room_nr AND m.user_nr = r.user_nr)"];
    LIST_DUE = ["
        SELECT room_nr, join_nr, as_server, resident, begun_at_ms, tries, next_try_ms FROM partial_rooms
         WHERE next_try_ms <= $1 ORDER BY next_try_ms, room_nr LIMIT $2"];
    GET_JOIN_DEPTH = ["
        SELECT e.depth FROM partial_rooms p JOIN events e ON e.event_nr = p.join_nr WHERE p.room_nr = $1"];
    TRY_LATER = ["UPDATE partial_rooms SET tries = $2, next_try_ms = $3 WHERE room_nr = $1"];
    LIST_LACKING = ["
        SELECT event_nr, prev FROM events WHERE room_nr = $1 AND event_nr > $2 AND flags & 32 <> 0
         ORDER BY event_nr LIMIT $3"];
    /// What was rejected (flag 2) is the state of nothing.
    LIST_STATE_KEYS = [(packed "event_nr, type_nr, state_key_nr"), "
          FROM events
         WHERE room_nr = $1 AND state_key_nr IS NOT NULL AND flags & 2 = 0 AND event_id", (in_list 2)];
    LIST_MEMBER_EVENTS = [(packed "event_nr, user_nr"), " FROM memberships WHERE room_nr = $1"];
    LIST_MEMBERSHIPS_OF = ["
        SELECT room_nr, user_nr, membership, event_nr, position, forgotten FROM memberships
         WHERE room_nr = $1 AND user_nr", (in_list 2), " ORDER BY user_nr"];
}

/// Events whose state lacks members, in one question.
const LACKING_AT_ONCE: i64 = 5_000;

/// A room whose members are not all here.
#[derive(Clone, Debug)]
pub struct PartialRoom {
    /// The room.
    pub room_nr: RoomNr,
    /// The join by which it came here.
    pub join_nr: EventNr,
    /// The one of our names that joined.
    pub as_server: OwnedServerName,
    /// The server that let it in.
    pub resident: OwnedServerName,
    /// When, in milliseconds since 1970.
    pub begun_at_ms: i64,
    /// How often completing it failed.
    pub tries: i64,
    /// When it is to be tried next, in milliseconds since 1970.
    pub next_try_ms: i64,
}

fn partial_of(row: &Row) -> Result<PartialRoom, Error> {
    let room_nr: RoomNr = row.nr(0)?;
    let name = |index| {
        OwnedServerName::try_from(row.get::<String>(index)?)
            .map_err(|_| Error::Damaged(format!("servers of partial room {room_nr}")))
    };
    Ok(PartialRoom {
        room_nr,
        join_nr: row.nr(1)?,
        as_server: name(2)?,
        resident: name(3)?,
        begun_at_ms: row.get(4)?,
        tries: row.get(5)?,
        next_try_ms: row.get(6)?,
    })
}

impl Storage {
    /// Whether the current state of a room lacks members.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn is_partial(&self, room_nr: RoomNr) -> Result<bool, Error> {
        Ok(self.db().read_one(&IS_PARTIAL, args![room_nr]).await?.is_some())
    }

    /// Whether a server has members, or is said to have some, in one of these rooms whose current state lacks members.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn is_in_partial_room(&self, rooms: &[RoomNr], server: &str) -> Result<bool, Error> {
        let rooms: Vec<i64> = rooms.iter().map(|room_nr| room_nr.0).collect();
        Ok(self.db().read_one(&IS_IN_PARTIAL, args![server, rooms]).await?.is_some())
    }

    /// Of these pairs of a room and a user of a server those in rooms whose current state lacks members, where nothing is known of the user
    /// and the server has other members or is said to have some.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_unknown_members(
        &self,
        pairs: &[(RoomNr, UserNr)],
        server: &str,
    ) -> Result<Vec<(RoomNr, UserNr)>, Error> {
        let rows = Rows::new()
            .bigint(pairs.iter().map(|(room, _)| room.0))
            .bigint(pairs.iter().map(|(_, user)| user.0))
            .text(pairs.iter().map(|_| server.to_owned()));
        self.db().read(&LIST_UNKNOWN_MEMBERS, rows).await?.iter().map(|row| Ok((row.nr(0)?, row.nr(1)?))).collect()
    }

    /// The position at which all members of a room were here, if some were not at an earlier one; else that one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn whole_position(&self, room_nr: RoomNr, at: Position) -> Result<Position, Error> {
        self.db().read_one(&FIND_SPAN_AT, args![room_nr, at]).await?.map_or(Ok(at), |row| row.nr(0))
    }

    /// Whether the members of a room that it lacked came to be here after a position, up to another.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn has_become_whole(&self, room_nr: RoomNr, after: Position, upto: Position) -> Result<bool, Error> {
        Ok(self.db().read_one(&HAS_ENDED, args![room_nr, after, upto]).await?.is_some())
    }

    /// Rooms that are to be completed now, who has waited longest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_due_partial_rooms(&self, limit: u32) -> Result<Vec<PartialRoom>, Error> {
        let rows = self.db().read(&LIST_DUE, args![self.clock().now_ms(), i64::from(limit)]).await?;
        rows.iter().map(partial_of).collect()
    }

    /// The depth of the join by which a room came here whose members are not all here.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_partial_join_depth(&self, room_nr: RoomNr) -> Result<Option<i64>, Error> {
        self.db().read_one(&GET_JOIN_DEPTH, args![room_nr]).await?.map(|row| row.get(0)).transpose()
    }

    /// Notes that completing a room failed, and when it is to be tried again, in milliseconds from now.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn try_partial_room_later(&self, room_nr: RoomNr, tries: i64, in_ms: i64) -> Result<(), Error> {
        self.db().write(&TRY_LATER, args![room_nr, tries, self.clock().now_ms() + in_ms]).await.map(|_| ())
    }

    /// The events of a room whose state lacks members, each with those right before it, by number.
    ///
    /// # Errors
    ///
    /// When the database fails or a list is damaged.
    pub async fn list_events_lacking_members(&self, room_nr: RoomNr) -> Result<Vec<(EventNr, Vec<EventNr>)>, Error> {
        let mut found: Vec<(EventNr, Vec<EventNr>)> = Vec::new();
        loop {
            let after = found.last().map_or(EventNr(0), |(nr, _)| *nr);
            let rows = self.db().read(&LIST_LACKING, args![room_nr, after, LACKING_AT_ONCE]).await?;
            for row in &rows {
                let nr: EventNr = row.nr(0)?;
                let prev = unpack_events(&row.get::<Vec<u8>>(1)?);
                found.push((nr, prev.ok_or_else(|| Error::Damaged(format!("events before event {nr}")))?));
            }
            if rows.len() < LACKING_AT_ONCE as usize {
                return Ok(found);
            }
        }
    }

    /// What some users are to a room, by number; those who never were anything to it are left out.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_memberships_of(&self, room_nr: RoomNr, users: &[UserNr]) -> Result<Vec<RoomMembership>, Error> {
        let users: Vec<i64> = users.iter().map(|user| user.0).collect();
        self.db().read(&LIST_MEMBERSHIPS_OF, args![room_nr, users]).await?.iter().map(membership_of).collect()
    }
}

impl Storage {
    /// Of what some events of a room are the state, with their numbers; what is no state event, was rejected or is not stored is left
    /// out.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_state_keys(
        &self,
        room_nr: RoomNr,
        events: &[OwnedEventId],
    ) -> Result<Vec<(EventNr, StateKey)>, Error> {
        let mut found = Vec::with_capacity(events.len());
        for ids in events.chunks(LACKING_AT_ONCE as usize) {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            let rows: Vec<(i64, i64, i64)> = self.db().read_packed(&LIST_STATE_KEYS, args![room_nr, ids]).await?;
            found.extend(rows.into_iter().map(|(nr, kind, key)| (EventNr(nr), (TypeNr(kind), StateKeyNr(key)))));
        }
        Ok(found)
    }

    /// The member events of all who are or were something to a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_member_events(&self, room_nr: RoomNr) -> Result<HashSet<EventNr>, Error> {
        let rows: Vec<(i64, i64)> = self.db().read_packed(&LIST_MEMBER_EVENTS, args![room_nr]).await?;
        Ok(rows.into_iter().map(|(nr, _)| EventNr(nr)).collect())
    }
}

/// Adds what becomes of rooms that lack members, and of their events.
///
/// `positions` are those up to which each of the rooms has come.
pub(crate) fn add_partial_rooms(
    batch: &mut Batch,
    rooms: &[&RoomCommit],
    positions: &HashMap<RoomNr, Position>,
    now_ms: i64,
) {
    let begun: Vec<(&RoomCommit, &NewPartial)> =
        rooms.iter().filter_map(|room| Some((*room, room.partial.as_ref()?))).collect();
    let ended: Vec<(&RoomCommit, &Completion)> =
        rooms.iter().filter_map(|room| Some((*room, room.completion.as_ref()?))).collect();
    if begun.is_empty() && ended.is_empty() {
        return;
    }
    let rows = Rows::new()
        .bigint(begun.iter().map(|(room, _)| room.room_nr.0))
        .bigint(begun.iter().map(|(_, new)| new.join_nr.0))
        .text(begun.iter().map(|(_, new)| new.as_server.to_string()))
        .text(begun.iter().map(|(_, new)| new.resident.to_string()))
        .bigint(begun.iter().map(|_| now_ms));
    batch.then(&INSERT_PARTIAL, rows);
    let told =
        begun.iter().flat_map(|(room, new)| new.servers.iter().map(|server| (room.room_nr.0, server.to_string())));
    let (numbers, servers): (Vec<i64>, Vec<String>) = told.unzip();
    batch.then(&INSERT_TOLD_SERVERS, Rows::new().bigint(numbers).text(servers));
    let marks = begun.iter().map(|(room, _)| (room.room_nr.0, true));
    let marks = marks.chain(ended.iter().map(|(room, _)| (room.room_nr.0, false)));
    let (numbers, marks): (Vec<i64>, Vec<bool>) = marks.unzip();
    batch.then(&SET_PARTIAL, Rows::new().bigint(numbers).boolean(marks));
    if ended.is_empty() {
        return;
    }
    let events = || ended.iter().flat_map(|(_, ended)| &ended.events);
    let rows = Rows::new()
        .bigint(events().map(|event| event.nr.0))
        .bigint(events().map(|event| event.state.0))
        .bigint(events().map(|event| event.replaces.map(|nr| nr.0)))
        .bigint(events().map(|event| if event.is_rejected { crate::events::FLAG_REJECTED } else { 0 }));
    batch.then(&COMPLETE_EVENTS, rows);
    let numbers: Vec<i64> = ended.iter().map(|(room, _)| room.room_nr.0).collect();
    let at = ended.iter().map(|(room, _)| positions.get(&room.room_nr).map_or(0, |position| position.0));
    batch.then(&INSERT_SPAN, Rows::new().bigint(numbers.clone()).bigint(at));
    batch.then_with(&DELETE_PARTIAL, args![numbers.clone()]);
    batch.then_with(&FORGET_TOLD_SERVERS, args![numbers.clone()]);
    batch.then_with(&DELETE_EMPTY_SERVERS, args![numbers]);
}

/// What an event whose state lacked members comes to be.
#[derive(Clone, Copy, Debug)]
pub struct CompletedEvent {
    /// The event.
    pub nr: EventNr,
    /// The state after it, whole.
    pub state: NodeNr,
    /// The state event that it replaced.
    pub replaces: Option<EventNr>,
    /// Whether the state before it forbids it.
    pub is_rejected: bool,
}
