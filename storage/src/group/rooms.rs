//! The rows of rooms: what is new in them, their heads, events and states.

use model::{EventNr, Position, RoomNr};

use super::{GroupWriter, made_ms};
use crate::{
    RoomCommit,
    batch::Batch,
    commit::{NewEvent, Placement},
    events::{
        FLAG_HELD, FLAG_LACKS_MEMBERS, FLAG_OUTLIER, FLAG_PASSED_ON, FLAG_REJECTED, FLAG_SOFT_FAILED, encode_body,
    },
    packed::pack_events,
    partial_rooms::add_partial_rooms,
    rows::Rows,
    statement::statements,
};

statements! {
    INSERT_ROOMS = ["
        INSERT INTO rooms (room_nr, room_id, version)
        SELECT room_nr, room_id, version FROM", (rows [1 room_nr bigint, 2 room_id text, 3 version text])];
    UPSERT_HEADS = ["
        INSERT INTO room_heads (room_nr, state_node, depth, position, extremities, bump)
        SELECT room_nr, state_node, depth, position, extremities, bump
          FROM", (rows [1 room_nr bigint, 2 state_node bigint, 3 depth bigint, 4 position bigint, 5 extremities bytea,
                        6 bump bigint]), "
         WHERE TRUE
            ON CONFLICT (room_nr) DO UPDATE
           SET state_node = excluded.state_node, depth = excluded.depth,
               position = excluded.position, extremities = excluded.extremities,
               bump = ", (either "max" "greatest"), "(room_heads.bump, excluded.bump)"];
    INSERT_EVENTS = ["
        INSERT INTO events (event_nr, event_id, room_nr, position, anchor, step, sender_nr, type_nr, state_key_nr, depth,
                            state_node, replaces, body_month, flags, prev, auth, origin_server_ts)
        SELECT event_nr, event_id, room_nr, position, anchor, step, sender_nr, type_nr, state_key_nr, depth,
               state_node, replaces, body_month, flags, prev, auth, origin_server_ts
          FROM", (rows [1 event_nr bigint, 2 event_id text, 3 room_nr bigint, 4 position bigint, 5 anchor bigint, 6 sender_nr bigint,
                        7 type_nr bigint, 8 state_key_nr bigint, 9 depth bigint, 10 state_node bigint, 11 replaces bigint,
                        12 body_month bigint, 13 flags bigint, 14 prev bytea, 15 auth bytea, 16 origin_server_ts bigint,
                        17 step bigint])];
    /// An outlier gets state and place.
    PLACE_OUTLIERS = ["
        UPDATE events
           SET position = r.position, anchor = r.anchor, step = r.step,
               state_node = r.state_node, replaces = r.replaces, flags = r.flags, prev = r.prev
          FROM", (rows [1 event_nr bigint, 2 position bigint, 3 anchor bigint, 4 state_node bigint, 5 replaces bigint,
                        6 flags bigint, 7 prev bytea, 8 step bigint]), "
         WHERE events.event_nr = r.event_nr"];
    INSERT_STRIPPED_STATES = ["
        INSERT INTO stripped_states (event_nr, events)
        SELECT event_nr, events FROM", (rows [1 event_nr bigint, 2 events text])];
    INSERT_GAPS = ["
        INSERT INTO backward_gaps (room_nr, event_nr)
        SELECT room_nr, event_nr FROM", (rows [1 room_nr bigint, 2 event_nr bigint]), " WHERE TRUE ON CONFLICT DO NOTHING"];
    DELETE_GAPS = ["
        DELETE FROM backward_gaps WHERE (room_nr, event_nr) IN (
               SELECT room_nr, event_nr FROM", (rows [1 room_nr bigint, 2 event_nr bigint]), ")"];
    INSERT_BODIES = ["
        INSERT INTO event_bodies (month, event_nr, body)
        SELECT month, event_nr, body FROM", (rows [1 month bigint, 2 event_nr bigint, 3 body bytea])];
    INSERT_NODES = ["
        INSERT INTO state_nodes (room_nr, node_nr, node)
        SELECT room_nr, node_nr, node FROM", (rows [1 room_nr bigint, 2 node_nr bigint, 3 node bytea])];
    INSERT_ROOM_STATES = ["
        INSERT INTO room_states (room_nr, position, state_node)
        SELECT room_nr, position, state_node
          FROM", (rows [1 room_nr bigint, 2 position bigint, 3 state_node bigint])];
    UPSERT_SUMMARIES = ["
        INSERT INTO room_summary (room_nr, name, topic, avatar_url, canonical_alias, room_type, encryption, join_rule,
                                  history_visibility, guest_access, joined, invited)
        SELECT room_nr, name, topic, avatar_url, canonical_alias, room_type, encryption, join_rule, history_visibility,
               guest_access, 0, 0
          FROM", (rows [1 room_nr bigint, 2 name text, 3 topic text, 4 avatar_url text, 5 canonical_alias text,
                        6 room_type text, 7 encryption text, 8 join_rule text, 9 history_visibility text,
                        10 guest_access text]), "
         WHERE TRUE
            ON CONFLICT (room_nr) DO UPDATE
           SET name = excluded.name, topic = excluded.topic, avatar_url = excluded.avatar_url,
               canonical_alias = excluded.canonical_alias, room_type = excluded.room_type,
               encryption = excluded.encryption, join_rule = excluded.join_rule,
               history_visibility = excluded.history_visibility, guest_access = excluded.guest_access"];
    INSERT_ALIASES = ["
        INSERT INTO aliases (alias, room_nr, creator_nr, created_at_ms)
        SELECT alias, room_nr, creator_nr, created_at_ms
          FROM", (rows [1 alias text, 2 room_nr bigint, 3 creator_nr bigint, 4 created_at_ms bigint])];
    INSERT_DIRECTORY = ["
        INSERT INTO directory (server, room_nr)
        SELECT server, room_nr FROM", (rows [1 server text, 2 room_nr bigint]), " WHERE TRUE ON CONFLICT DO NOTHING"];
}

impl GroupWriter<'_> {
    pub(super) fn add_rooms(&self, batch: &mut Batch) {
        let new: Vec<_> = self.rooms.iter().filter_map(|room| Some((room.room_nr, room.new_room.as_ref()?))).collect();
        let rows = Rows::new()
            .bigint(new.iter().map(|(nr, _)| nr.0))
            .text(new.iter().map(|(_, room)| room.room_id.to_string()))
            .text(new.iter().map(|(_, room)| room.version.to_string()));
        batch.add(&INSERT_ROOMS, rows);
        let room_nrs = self.rooms.iter().flat_map(|room| room.events.iter().map(|_| room.room_nr));
        let (placed, events): (Vec<_>, Vec<_>) =
            self.events.iter().zip(room_nrs).partition(|((_, _, event), _)| event.was_outlier);
        let room_nrs: Vec<RoomNr> = events.iter().map(|(_, room_nr)| *room_nr).collect();
        let events: Vec<_> = events.into_iter().map(|(event, _)| event).collect();
        let place = |(position, _, event): &(Option<Position>, i64, &NewEvent)| event.placement.in_timeline(*position);
        let anchor = |event: &_| place(event).map(|(anchor, _)| anchor.0);
        let step = |event: &_| place(event).map(|(_, step)| step);
        let rows = Rows::new()
            .bigint(events.iter().map(|(_, _, event)| event.nr.0))
            .text(events.iter().map(|(_, _, event)| event.pdu.event_id.to_string()))
            .bigint(room_nrs.iter().map(|room_nr| room_nr.0))
            .bigint(events.iter().map(|(position, _, _)| position.map(|position| position.0)))
            .bigint(events.iter().map(|event| anchor(event)))
            .bigint(events.iter().map(|(_, _, event)| event.sender_nr.0))
            .bigint(events.iter().map(|(_, _, event)| event.type_nr.0))
            .bigint(events.iter().map(|(_, _, event)| event.state_key_nr.map(|nr| nr.0)))
            .bigint(events.iter().map(|(_, _, event)| event.pdu.depth))
            .bigint(events.iter().map(|(_, _, event)| event.state.0))
            .bigint(events.iter().map(|(_, _, event)| event.replaces.map(|nr| nr.0)))
            .bigint(events.iter().map(|(_, month, _)| *month))
            .bigint(events.iter().map(|(_, _, event)| flags_of(event)))
            .bytea(events.iter().map(|(_, _, event)| pack_events(&event.prev)))
            .bytea(events.iter().map(|(_, _, event)| pack_events(&event.auth)))
            .bigint(events.iter().map(|(_, _, event)| made_ms(event)))
            .bigint(events.iter().map(|event| step(event)));
        batch.add(&INSERT_EVENTS, rows);
        let rows = Rows::new()
            .bigint(events.iter().map(|(_, month, _)| *month))
            .bigint(events.iter().map(|(_, _, event)| event.nr.0))
            .bytea(events.iter().map(|(_, _, event)| encode_body(&event.pdu.json)));
        batch.add(&INSERT_BODIES, rows);
        let rows = Rows::new()
            .bigint(placed.iter().map(|((_, _, event), _)| event.nr.0))
            .bigint(placed.iter().map(|((position, _, _), _)| position.map(|position| position.0)))
            .bigint(placed.iter().map(|(event, _)| anchor(event)))
            .bigint(placed.iter().map(|((_, _, event), _)| event.state.0))
            .bigint(placed.iter().map(|((_, _, event), _)| event.replaces.map(|nr| nr.0)))
            .bigint(placed.iter().map(|((_, _, event), _)| flags_of(event)))
            .bytea(placed.iter().map(|((_, _, event), _)| pack_events(&event.prev)))
            .bigint(placed.iter().map(|(event, _)| step(event)));
        batch.then(&PLACE_OUTLIERS, rows);
        self.add_lacks(batch);
        let rows = Rows::new()
            .bigint(self.heads.iter().map(|(nr, ..)| nr.0))
            .bigint(self.heads.iter().map(|(_, head, ..)| head.state.0))
            .bigint(self.heads.iter().map(|(_, head, ..)| head.depth))
            .bigint(self.heads.iter().map(|(_, _, position, _)| position.0))
            .bytea(self.heads.iter().map(|(_, head, ..)| pack_events(&head.extremities)))
            .bigint(self.heads.iter().map(|(.., bump)| bump.0));
        batch.add(&UPSERT_HEADS, rows);
        let positions = self.heads.iter().map(|(nr, _, position, _)| (*nr, *position)).collect();
        add_partial_rooms(batch, &self.rooms, &positions, self.now_ms);
        let aliases: Vec<_> =
            self.rooms.iter().flat_map(|room| room.aliases.iter().map(|alias| (room.room_nr, alias))).collect();
        let rows = Rows::new()
            .text(aliases.iter().map(|(_, (alias, _))| alias.clone()))
            .bigint(aliases.iter().map(|(nr, _)| nr.0))
            .bigint(aliases.iter().map(|(_, (_, creator))| creator.0))
            .bigint(aliases.iter().map(|_| self.now_ms));
        batch.add(&INSERT_ALIASES, rows);
    }

    /// What is missing of rooms here, and what was shown of those that none of our servers is in.
    pub(super) fn add_lacks(&self, batch: &mut Batch) {
        let stripped: Vec<_> = self.rooms.iter().filter_map(|room| room.stripped_state.as_ref()).collect();
        let rows = Rows::new()
            .bigint(stripped.iter().map(|(event_nr, _)| event_nr.0))
            .text(stripped.iter().map(|(_, events)| events.clone()));
        batch.add(&INSERT_STRIPPED_STATES, rows);
        let gaps = |of: fn(&RoomCommit) -> &Vec<EventNr>| {
            let gaps = self.rooms.iter().flat_map(move |room| of(room).iter().map(|nr| (room.room_nr.0, nr.0)));
            let (rooms, events): (Vec<i64>, Vec<i64>) = gaps.unzip();
            Rows::new().bigint(rooms).bigint(events)
        };
        batch.add(&INSERT_GAPS, gaps(|room| &room.gaps_opened));
        batch.then(&DELETE_GAPS, gaps(|room| &room.gaps_closed));
    }

    pub(super) fn add_projections(&self, batch: &mut Batch) {
        let rows = Rows::new()
            .bigint(self.nodes.iter().map(|(room, _, _)| room.0))
            .bigint(self.nodes.iter().map(|(_, nr, _)| nr.0))
            .bytea(self.nodes.iter().map(|(_, _, node)| node.to_bytes()));
        batch.add(&INSERT_NODES, rows);
        let rows = Rows::new()
            .bigint(self.states.iter().map(|(room, _, _)| room.0))
            .bigint(self.states.iter().map(|(_, position, _)| position.0))
            .bigint(self.states.iter().map(|(_, _, state)| state.0));
        batch.add(&INSERT_ROOM_STATES, rows);
        let summaries: Vec<_> =
            self.rooms.iter().filter_map(|room| Some((room.room_nr, room.summary.as_ref()?))).collect();
        let rows = Rows::new()
            .bigint(summaries.iter().map(|(nr, _)| nr.0))
            .text(summaries.iter().map(|(_, summary)| summary.name.clone()))
            .text(summaries.iter().map(|(_, summary)| summary.topic.clone()))
            .text(summaries.iter().map(|(_, summary)| summary.avatar_url.clone()))
            .text(summaries.iter().map(|(_, summary)| summary.canonical_alias.clone()))
            .text(summaries.iter().map(|(_, summary)| summary.room_type.clone()))
            .text(summaries.iter().map(|(_, summary)| summary.encryption.clone()))
            .text(summaries.iter().map(|(_, summary)| summary.join_rule.clone()))
            .text(summaries.iter().map(|(_, summary)| summary.history_visibility.clone()))
            .text(summaries.iter().map(|(_, summary)| summary.guest_access.clone()));
        batch.add(&UPSERT_SUMMARIES, rows);
        self.add_memberships(batch);
        let listed: Vec<_> =
            self.rooms.iter().filter_map(|room| Some((room.room_nr, room.listed_on.as_ref()?))).collect();
        let rows = Rows::new()
            .text(listed.iter().map(|(_, server)| server.to_string()))
            .bigint(listed.iter().map(|(nr, _)| nr.0));
        batch.add(&INSERT_DIRECTORY, rows);
    }
}

fn flags_of(event: &NewEvent) -> i64 {
    let placement = match event.placement {
        Placement::Live | Placement::Backfilled { .. } => 0,
        Placement::Outlier | Placement::Outside => FLAG_OUTLIER,
        Placement::Rejected => FLAG_REJECTED,
        Placement::SoftFailed => FLAG_SOFT_FAILED,
        Placement::Held => FLAG_HELD,
    };
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    placement | flag(event.passed_on, FLAG_PASSED_ON) | flag(event.lacks_members, FLAG_LACKS_MEMBERS)
}
