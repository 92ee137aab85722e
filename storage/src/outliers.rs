//! What is stored before it counts: events of a room that are known but have no place in it, and state that others have said.
//!
//! A room of another server is staged piece by piece, which nobody sees; one small commit makes it count.

use std::{collections::HashMap, sync::Arc};

use model::{EventNr, NodeNr, Pdu, Position, RoomNr};
use ruma::{OwnedEventId, RoomId, RoomVersionId, UserId};

use crate::{
    Error, NewNodes, RoomRow, StateKey, Storage, TimelinePlace,
    db::args,
    events::{FLAG_OUTLIER, FLAG_REJECTED, body_month, encode_body},
    packed::pack_events,
    rows::Rows,
    statement::statements,
};

/// Most rows that are written in one transaction: others wait for the writer meanwhile.
const ROWS_AT_ONCE: usize = 500;

/// Up to so many different keys, a state is made out of another one by changes, and shares with it all that is equal.
const CHANGES_MAX: usize = 64;

statements! {
    INSERT_ROOM = ["INSERT INTO rooms (room_nr, room_id, version) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"];
    INSERT_HEAD = ["
        INSERT INTO room_heads (room_nr, state_node, depth, position, extremities, bump)
        SELECT room_nr, 0, 0, 0, extremities, 0 FROM", (rows [1 room_nr bigint, 2 extremities bytea]), "
         WHERE TRUE ON CONFLICT DO NOTHING"];
    /// What a room is of which nothing is known.
    INSERT_SUMMARY = ["
        INSERT INTO room_summary (room_nr, join_rule, history_visibility, guest_access, joined, invited)
        VALUES ($1, 'invite', 'shared', 'forbidden', 0, 0) ON CONFLICT DO NOTHING"];
    INSERT_OUTLIERS = ["
        INSERT INTO events (event_nr, event_id, room_nr, sender_nr, type_nr, state_key_nr, depth, state_node, body_month, flags,
                            prev, auth, origin_server_ts)
        SELECT event_nr, event_id, room_nr, sender_nr, type_nr, state_key_nr, depth, 0, body_month, flags, prev, auth,
               origin_server_ts
          FROM", (rows [1 event_nr bigint, 2 event_id text, 3 room_nr bigint, 4 sender_nr bigint, 5 type_nr bigint,
                        6 state_key_nr bigint, 7 depth bigint, 8 body_month bigint, 9 flags bigint, 10 prev bytea, 11 auth bytea,
                        12 origin_server_ts bigint]), "
         WHERE TRUE ON CONFLICT DO NOTHING"];
    INSERT_BODIES = ["
        INSERT INTO event_bodies (month, event_nr, body)
        SELECT month, event_nr, body FROM", (rows [1 month bigint, 2 event_nr bigint, 3 body bytea])];
    INSERT_NODES = ["
        INSERT INTO state_nodes (room_nr, node_nr, node)
        SELECT room_nr, node_nr, node FROM", (rows [1 room_nr bigint, 2 node_nr bigint, 3 node bytea])];
    IS_ANY_IN_ROOM = ["SELECT 1 FROM room_servers WHERE room_nr = $1 AND joined > 0 AND server", (in_list 2), " LIMIT 1"];
    GET_STRIPPED_STATE = ["SELECT events FROM stripped_states WHERE event_nr = $1"];
    /// Gaps between two places of a timeline, the newest first.
    LIST_GAPS_BETWEEN = ["
        SELECT g.event_nr, e.anchor, e.step FROM backward_gaps g JOIN events e ON e.event_nr = g.event_nr
         WHERE g.room_nr = $1 AND e.anchor IS NOT NULL AND (e.anchor, e.step) <= ($2, $3) AND (e.anchor, e.step) >= ($4, $5)
         ORDER BY e.anchor DESC, e.step DESC LIMIT $6"];
    /// The farthest step behind a live event.
    MIN_STEP = ["SELECT coalesce(min(step), 0) FROM events WHERE room_nr = $1 AND anchor = $2"];
    /// The next step behind one.
    NEXT_STEP = ["SELECT max(step) FROM events WHERE room_nr = $1 AND anchor = $2 AND step < $3"];
    LIST_GAPS = ["SELECT event_nr FROM backward_gaps WHERE room_nr = $1 ORDER BY event_nr DESC LIMIT $2"];
}

impl Storage {
    /// The room of an id; one that nothing is known of yet, and nobody is in, if there was none.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn ensure_room(&self, room_id: &RoomId, version: &RoomVersionId) -> Result<RoomRow, Error> {
        if let Some(row) = self.find_room(room_id).await? {
            return Ok(row);
        }
        let room_nr = self.take_room_nr().await?;
        let mut tx = self.db().begin().await?;
        let inserted = tx.execute(&INSERT_ROOM, args![room_nr, room_id.as_str(), version.as_str()]).await?;
        if inserted > 0 {
            tx.execute(&INSERT_HEAD, Rows::new().bigint([room_nr.0]).bytea([pack_events(&[])])).await?;
            tx.execute(&INSERT_SUMMARY, args![room_nr]).await?;
        }
        tx.commit().await?;
        self.find_room(room_id).await?.ok_or_else(|| Error::Damaged(format!("room {room_id}")))
    }

    /// Whether any of some servers has somebody in a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn is_any_in_room(&self, room_nr: RoomNr, servers: impl Iterator<Item = String>) -> Result<bool, Error> {
        Ok(self.db().read_one(&IS_ANY_IN_ROOM, args![room_nr, servers.collect::<Vec<_>>()]).await?.is_some())
    }

    /// Stores events that have no place in their room (yet), and gives the numbers of all of them. What is stored already stays as it is.
    ///
    /// Those of their `auth_events` that are new come before them in the list; all others are stored already.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_outliers(
        &self,
        room_nr: RoomNr,
        events: &[Arc<Pdu>],
    ) -> Result<HashMap<OwnedEventId, EventNr>, Error> {
        let referred = events.iter().flat_map(|pdu| pdu.auth_events.iter().chain([&pdu.event_id]));
        let mut referred: Vec<OwnedEventId> = referred.cloned().collect();
        referred.sort_unstable();
        referred.dedup();
        let mut numbers = HashMap::with_capacity(referred.len());
        for ids in referred.chunks(ROWS_AT_ONCE) {
            numbers.extend(self.find_event_nrs(ids).await?);
        }
        let new: Vec<&Arc<Pdu>> = events.iter().filter(|pdu| !numbers.contains_key(&pdu.event_id)).collect();
        for chunk in new.chunks(ROWS_AT_ONCE) {
            self.intern_words_of(chunk).await?;
            while !self.try_insert_outliers(room_nr, chunk, &mut numbers).await? {
                // Somebody else was first with one of them, whose number counts.
                let ids: Vec<OwnedEventId> = chunk.iter().map(|pdu| pdu.event_id.clone()).collect();
                numbers.extend(self.find_event_nrs(&ids).await?);
            }
        }
        Ok(events.iter().filter_map(|pdu| Some((pdu.event_id.clone(), *numbers.get(&pdu.event_id)?))).collect())
    }

    async fn intern_words_of(&self, events: &[&Arc<Pdu>]) -> Result<(), Error> {
        let types: Vec<String> = events.iter().map(|pdu| pdu.event_type.to_string()).collect();
        let types: Vec<&str> = types.iter().map(String::as_str).collect();
        let keys: Vec<&str> = events.iter().filter_map(|pdu| pdu.state_key.as_deref()).collect();
        let senders: Vec<&UserId> = events.iter().map(|pdu| &*pdu.sender).collect();
        self.intern(&types, &keys, &senders).await
    }

    /// Writes a chunk, unless one of its events exists by now: then nothing.
    async fn try_insert_outliers(
        &self,
        room_nr: RoomNr,
        chunk: &[&Arc<Pdu>],
        numbers: &mut HashMap<OwnedEventId, EventNr>,
    ) -> Result<bool, Error> {
        let mut new: Vec<&Arc<Pdu>> =
            chunk.iter().copied().filter(|pdu| !numbers.contains_key(&pdu.event_id)).collect();
        let mut all = numbers_of(chunk, numbers);
        for (pdu, nr) in new.iter().zip(self.take_event_nrs(new.len()).await?) {
            all.insert(pdu.event_id.clone(), nr);
        }
        // In one order for all, so that two who write the same wait for each other and not in a circle.
        new.sort_unstable_by(|one, other| one.event_id.cmp(&other.event_id));
        let now = body_month(self.clock().now_ms());
        let month = |pdu: &Pdu| if pdu.state_key.is_some() { 0 } else { now };
        let (mut senders, mut types, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for pdu in &new {
            senders.push(self.user_nr(&pdu.sender).await?.0);
            types.push(self.type_nr(&pdu.event_type.to_string()).await?.0);
            keys.push(match &pdu.state_key {
                Some(state_key) => Some(self.state_key_nr(state_key).await?.0),
                None => None,
            });
        }
        let list =
            |ids: &[OwnedEventId]| pack_events(&ids.iter().filter_map(|id| all.get(id).copied()).collect::<Vec<_>>());
        let rows = Rows::new()
            .bigint(new.iter().map(|pdu| all[&pdu.event_id].0))
            .text(new.iter().map(|pdu| pdu.event_id.to_string()))
            .bigint(new.iter().map(|_| room_nr.0))
            .bigint(senders)
            .bigint(types)
            .bigint(keys)
            .bigint(new.iter().map(|pdu| pdu.depth))
            .bigint(new.iter().map(|pdu| month(pdu)))
            .bigint(new.iter().map(|pdu| FLAG_OUTLIER | if pdu.rejected { FLAG_REJECTED } else { 0 }))
            .bytea(new.iter().map(|_| pack_events(&[])))
            .bytea(new.iter().map(|pdu| list(&pdu.auth_events)))
            .bigint(new.iter().map(|pdu| i64::from(pdu.origin_server_ts.get())));
        let bodies = Rows::new()
            .bigint(new.iter().map(|pdu| month(pdu)))
            .bigint(new.iter().map(|pdu| all[&pdu.event_id].0))
            .bytea(new.iter().map(|pdu| encode_body(&pdu.json)));
        let mut tx = self.db().begin().await?;
        if tx.execute(&INSERT_OUTLIERS, rows).await? < new.len() as u64 {
            tx.rollback().await?;
            return Ok(false);
        }
        tx.execute(&INSERT_BODIES, bodies).await?;
        tx.commit().await?;
        numbers.extend(all);
        Ok(true)
    }

    /// The state of a room that consists of these entries. Where it differs little from `base`, a state of the same room, it shares the
    /// rest with it.
    ///
    /// New nodes may be read at once in this process; see [`Storage::insert_state_nodes`].
    ///
    /// # Errors
    ///
    /// When the database fails or a node is missing.
    pub async fn build_state(
        &self,
        room_nr: RoomNr,
        base: NodeNr,
        mut entries: Vec<(StateKey, EventNr)>,
        new: &mut NewNodes,
    ) -> Result<NodeNr, Error> {
        entries.sort_unstable();
        entries.dedup_by_key(|entry| entry.0);
        if base != NodeNr(0) {
            let standing: HashMap<StateKey, EventNr> = self.list_state(room_nr, base).await?.into_iter().collect();
            let wanted: HashMap<StateKey, EventNr> = entries.iter().copied().collect();
            let gone = standing.keys().filter(|key| !wanted.contains_key(key)).map(|key| (*key, None));
            let changed = entries.iter().filter(|(key, nr)| standing.get(key) != Some(nr));
            let changes: Vec<_> = gone.chain(changed.map(|(key, nr)| (*key, Some(*nr)))).collect();
            if changes.len() <= CHANGES_MAX {
                let mut state = base;
                for (key, event) in changes {
                    state = self.change_state(room_nr, state, key, event, new).await?;
                }
                return Ok(state);
            }
        }
        self.build_whole_state(room_nr, entries, new).await
    }

    /// Stores the nodes of a state before any commit names it: large states are too much for one commit.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn insert_state_nodes(&self, room_nr: RoomNr, new: NewNodes) -> Result<(), Error> {
        for nodes in new.nodes.chunks(ROWS_AT_ONCE) {
            let rows = Rows::new()
                .bigint(nodes.iter().map(|_| room_nr.0))
                .bigint(nodes.iter().map(|(nr, _)| nr.0))
                .bytea(nodes.iter().map(|(_, node)| node.to_bytes()));
            self.db().write(&INSERT_NODES, rows).await?;
        }
        Ok(())
    }

    /// What somebody was shown of a room that none of our servers was in, by their member event: a list of events in JSON.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_stripped_state(&self, event_nr: EventNr) -> Result<Option<String>, Error> {
        self.db().read_one(&GET_STRIPPED_STATE, args![event_nr]).await?.map(|row| row.get(0)).transpose()
    }

    /// Events of a room's timeline between two places, both included, before which something is missing here: the newest first, at most
    /// `limit`, with their places.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_gaps_between(
        &self,
        room_nr: RoomNr,
        newest: TimelinePlace,
        oldest: TimelinePlace,
        limit: u32,
    ) -> Result<Vec<(EventNr, TimelinePlace)>, Error> {
        let args = args![room_nr, newest.0, newest.1, oldest.0, oldest.1, i64::from(limit)];
        let rows = self.db().read(&LIST_GAPS_BETWEEN, args).await?;
        rows.iter().map(|row| Ok((row.nr(0)?, (row.nr(1)?, row.get(2)?)))).collect()
    }

    /// The step of the oldest event that lies behind a live one; zero when none does.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn farthest_step(&self, room_nr: RoomNr, anchor: Position) -> Result<i64, Error> {
        self.db().read_one(&MIN_STEP, args![room_nr, anchor]).await?.map_or(Ok(0), |row| row.get(0))
    }

    /// The step of the event that comes next behind a place, of those that lie behind the same live event.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn next_step(&self, room_nr: RoomNr, (anchor, step): TimelinePlace) -> Result<Option<i64>, Error> {
        self.db().read_one(&NEXT_STEP, args![room_nr, anchor, step]).await?.map_or(Ok(None), |row| row.get(0))
    }

    /// Events of a room's timeline before which something is missing here: at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_backward_gaps(&self, room_nr: RoomNr, limit: u32) -> Result<Vec<EventNr>, Error> {
        self.db().read(&LIST_GAPS, args![room_nr, i64::from(limit)]).await?.iter().map(|row| row.nr(0)).collect()
    }
}

/// The numbers of what the events of a chunk refer to, of those that are known.
fn numbers_of(chunk: &[&Arc<Pdu>], numbers: &HashMap<OwnedEventId, EventNr>) -> HashMap<OwnedEventId, EventNr> {
    let referred = chunk.iter().flat_map(|pdu| pdu.auth_events.iter().chain([&pdu.event_id]));
    referred.filter_map(|id| Some((id.clone(), *numbers.get(id)?))).collect()
}
