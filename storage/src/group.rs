//! The rows of one group of commits, gathered from all of them, then written with one statement a table.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use model::{EventNr, Membership, NodeNr, Position, RoomNr, Thread, UserNr, is_bump};

use crate::{
    Commit, RoomCommit, StateNode, StoredEvent,
    batch::Batch,
    commit::{ChangedKeys, MembershipChange, NewEvent, Placement},
    committer::StoredHead,
    db::args,
    events::{FLAG_HELD, FLAG_OUTLIER, FLAG_PASSED_ON, FLAG_REJECTED, FLAG_SOFT_FAILED, body_month, encode_body},
    packed::pack_events,
    received_transactions::{INSERT_RECEIVED, answer_rows},
    relations::{ADD_TO_THREADS, INSERT_RELATIONS, RelationRow, relation_rows, thread_rows},
    rows::Rows,
    statement::statements,
    stream::{Item, Published, pack_items, pack_uncounted},
    unread::{ALL_THREADS, to_column},
};

statements! {
    INSERT_COMMITS = ["
        INSERT INTO commits (position, at_ms, items, redacted, uncounted)
        SELECT position, at_ms, items, redacted, uncounted
          FROM", (rows [1 position bigint, 2 at_ms bigint, 3 items bytea, 4 redacted bytea, 5 uncounted bytea])];
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
    UPSERT_MEMBERSHIPS = ["
        INSERT INTO memberships (room_nr, user_nr, membership, event_nr, position, is_local, forgotten)
        SELECT room_nr, user_nr, membership, event_nr, position, is_local, FALSE
          FROM", (rows [1 room_nr bigint, 2 user_nr bigint, 3 membership bigint, 4 event_nr bigint, 5 position bigint,
                        6 is_local boolean]), "
         WHERE TRUE
            ON CONFLICT (room_nr, user_nr) DO UPDATE
           SET membership = excluded.membership, event_nr = excluded.event_nr, position = excluded.position,
               forgotten = FALSE"];
    INSERT_MEMBERSHIP_LOG = ["
        INSERT INTO membership_log (user_nr, room_nr, position, membership)
        SELECT user_nr, room_nr, position, membership
          FROM", (rows [1 user_nr bigint, 2 room_nr bigint, 3 position bigint, 4 membership bigint])];
    UPSERT_ROOM_SERVERS = ["
        INSERT INTO room_servers (room_nr, server, joined)
        SELECT room_nr, server, joined FROM", (rows [1 room_nr bigint, 2 server text, 3 joined bigint]), "
         WHERE TRUE
            ON CONFLICT (room_nr, server) DO UPDATE SET joined = room_servers.joined + excluded.joined"];
    DELETE_ROOM_SERVERS = ["DELETE FROM room_servers WHERE joined <= 0 AND room_nr", (in_list 1)];
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
    ADD_COUNTS = ["
        UPDATE room_summary SET joined = room_summary.joined + r.joined, invited = room_summary.invited + r.invited
          FROM", (rows [1 room_nr bigint, 2 joined bigint, 3 invited bigint]), "
         WHERE room_summary.room_nr = r.room_nr"];
    INSERT_ALIASES = ["
        INSERT INTO aliases (alias, room_nr, creator_nr, created_at_ms)
        SELECT alias, room_nr, creator_nr, created_at_ms
          FROM", (rows [1 alias text, 2 room_nr bigint, 3 creator_nr bigint, 4 created_at_ms bigint])];
    INSERT_DIRECTORY = ["
        INSERT INTO directory (server, room_nr)
        SELECT server, room_nr FROM", (rows [1 server text, 2 room_nr bigint]), " WHERE TRUE ON CONFLICT DO NOTHING"];
    INSERT_COUNTABLE = ["
        INSERT INTO countable_events (room_nr, position, user_nr, sender_nr, class, thread)
        SELECT room_nr, position, user_nr, sender_nr, class, thread
          FROM", (rows [1 room_nr bigint, 2 position bigint, 3 user_nr bigint, 4 sender_nr bigint, 5 class bigint,
                        6 thread text])];
    /// What is redacted notifies nobody any more.
    DELETE_COUNTABLE = ["
        DELETE FROM countable_events WHERE (room_nr, position) IN (
               SELECT e.room_nr, e.position FROM", (rows [1 event_nr bigint]), "
                 JOIN events e ON e.event_nr = r.event_nr)"];
    UPSERT_READ_POSITIONS = ["
        INSERT INTO read_positions (user_nr, room_nr, thread, position)
        SELECT user_nr, room_nr, thread, position
          FROM", (rows [1 user_nr bigint, 2 room_nr bigint, 3 thread text, 4 position bigint]), "
         WHERE TRUE
            ON CONFLICT (user_nr, room_nr, thread) DO UPDATE SET position = excluded.position
         WHERE excluded.position > read_positions.position"];
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
    INSERT_TRANSACTIONS = ["
        INSERT INTO transaction_ids (user_nr, device_id, scope, transaction_id, event_nr, at_ms)
        SELECT user_nr, device_id, scope, transaction_id, event_nr, at_ms
          FROM", (rows [1 user_nr bigint, 2 device_id text, 3 scope text, 4 transaction_id text, 5 event_nr bigint,
                        6 at_ms bigint])];
    /// A receipt never goes back to an event that lies before the one that it is at.
    UPSERT_RECEIPTS = ["
        INSERT INTO receipts (room_nr, user_nr, receipt_type, thread, event_id, at_ms, position)
        SELECT room_nr, user_nr, receipt_type, thread, event_id, at_ms, position
          FROM", (rows [1 room_nr bigint, 2 user_nr bigint, 3 receipt_type text, 4 thread text, 5 event_id text,
                        6 at_ms bigint, 7 position bigint]), "
         WHERE TRUE
            ON CONFLICT (room_nr, user_nr, receipt_type, thread) DO UPDATE
           SET event_id = excluded.event_id, at_ms = excluded.at_ms, position = excluded.position
         WHERE NOT EXISTS (
               SELECT 1 FROM events standing JOIN events wanted ON wanted.event_id = excluded.event_id
                WHERE standing.event_id = receipts.event_id
                  AND (standing.anchor, standing.step) > (wanted.anchor, wanted.step))"];
    UPSERT_ACCOUNT_DATA = ["
        INSERT INTO account_data (user_nr, room_nr, type, content, position)
        SELECT user_nr, room_nr, type, content, position
          FROM", (rows [1 user_nr bigint, 2 room_nr bigint, 3 type text, 4 content text, 5 position bigint]), "
         WHERE TRUE
            ON CONFLICT (user_nr, room_nr, type) DO UPDATE
           SET content = excluded.content, position = excluded.position"];
    INSERT_TO_DEVICE = ["
        INSERT INTO to_device (position, user_nr, device_id, message)
        SELECT position, user_nr, device_id, message
          FROM", (rows [1 position bigint, 2 user_nr bigint, 3 device_id text, 4 message text])];
    INSERT_OUTGOING_EDUS = ["
        INSERT INTO outgoing_edus (position, origin, destination, edu)
        SELECT position, origin, destination, edu
          FROM", (rows [1 position bigint, 2 origin text, 3 destination text, 4 edu text])];
    /// What came before it in the same group is given, and what came before the group is looked up.
    INSERT_DEVICE_LISTS = ["
        INSERT INTO device_list_changes (position, user_nr, device_id, follows)
        SELECT r.position, r.user_nr, r.device_id, coalesce(r.follows, (
               SELECT CASE WHEN d.device_id = '' THEN d.follows ELSE d.position END FROM device_list_changes d
                WHERE d.user_nr = r.user_nr ORDER BY d.position DESC LIMIT 1))
          FROM", (rows [1 position bigint, 2 user_nr bigint, 3 device_id text, 4 follows bigint])];
    UPSERT_KEY_SIGNATURES = ["
        INSERT INTO key_signatures (user_nr, target, signer_nr, key_id, signature)
        SELECT user_nr, target, signer_nr, key_id, signature
          FROM", (rows [1 user_nr bigint, 2 target text, 3 signer_nr bigint, 4 key_id text, 5 signature text]), "
         WHERE TRUE
            ON CONFLICT (user_nr, target, signer_nr, key_id) DO UPDATE SET signature = excluded.signature"];
    UPSERT_SIGNED_USERS = ["
        INSERT INTO signed_users (user_nr, signed_nr, position)
        SELECT user_nr, signed_nr, position FROM", (rows [1 user_nr bigint, 2 signed_nr bigint, 3 position bigint]), "
         WHERE TRUE ON CONFLICT (user_nr, signed_nr) DO UPDATE SET position = excluded.position"];
    /// A client does not make a manual subscription (2) automatic (1).
    UPSERT_THREAD_SUBSCRIPTIONS = ["
        INSERT INTO thread_subscriptions (user_nr, root_nr, room_nr, state, position)
        SELECT user_nr, root_nr, room_nr, state, position
          FROM", (rows [1 user_nr bigint, 2 root_nr bigint, 3 room_nr bigint, 4 state bigint, 5 position bigint]), "
         WHERE TRUE
            ON CONFLICT (user_nr, root_nr) DO UPDATE
           SET state = excluded.state, position = excluded.position
         WHERE excluded.state <> 1 OR thread_subscriptions.state = 0"];
    INSERT_PROFILES = ["
        INSERT INTO profile_changes (position, user_nr)
        SELECT position, user_nr FROM", (rows [1 position bigint, 2 user_nr bigint])];
}

/// The rows of a group.
pub(crate) struct GroupWriter<'a> {
    /// The newest position before the group.
    before: Position,
    next: i64,
    now_ms: i64,
    /// The parts of the group with their positions, for those who listen.
    items: Vec<(Position, Item)>,
    rooms: Vec<&'a RoomCommit>,
    /// With the position of the head and, zero for none, that of the newest event that counts as activity.
    heads: Vec<(RoomNr, StoredHead, Position, Position)>,
    events: Vec<(Option<Position>, i64, &'a NewEvent)>,
    nodes: Vec<(RoomNr, NodeNr, &'a Arc<StateNode>)>,
    states: Vec<(RoomNr, Position, NodeNr)>,
    memberships: Vec<(Position, RoomNr, EventNr, &'a MembershipChange)>,
    released: Vec<(EventNr, Position)>,
    commits: Vec<&'a Commit>,
    receipts: Vec<Position>,
    account_data: Vec<Position>,
    to_device: Vec<Position>,
    outgoing_edus: Vec<Position>,
    /// Who signed keys of whom.
    signed: Vec<(UserNr, UserNr, Position)>,
    device_lists: Vec<Position>,
    /// Changes of profiles that rooms are to show.
    profiles: Vec<(Position, UserNr)>,
    thread_subscriptions: Vec<Position>,
}

impl<'a> GroupWriter<'a> {
    /// A writer whose first part gets the position after `newest`.
    pub(crate) fn new(newest: Position, now_ms: i64) -> Self {
        Self {
            before: newest,
            next: newest.0 + 1,
            now_ms,
            items: Vec::new(),
            rooms: Vec::new(),
            heads: Vec::new(),
            events: Vec::new(),
            nodes: Vec::new(),
            states: Vec::new(),
            memberships: Vec::new(),
            released: Vec::new(),
            commits: Vec::new(),
            receipts: Vec::new(),
            account_data: Vec::new(),
            to_device: Vec::new(),
            outgoing_edus: Vec::new(),
            signed: Vec::new(),
            device_lists: Vec::new(),
            profiles: Vec::new(),
            thread_subscriptions: Vec::new(),
        }
    }

    /// The position of the last part so far. A group of transaction ids alone takes one all the same: it is answered by one.
    pub(crate) fn newest(&self) -> Position {
        Position((self.next - 1).max(self.before.0 + 1))
    }

    fn take(&mut self, item: Item) -> Position {
        let position = Position(self.next);
        self.next += 1;
        self.items.push((position, item));
        position
    }

    /// Adds a commit that has passed its check; `head` is its room's as it is stored.
    pub(crate) fn add(&mut self, commit: &'a Commit, head: Option<&StoredHead>) {
        if let Some(room) = &commit.room {
            self.add_room(room, head);
        }
        for receipt in &commit.receipts {
            let position = self.take(Item::Receipt(receipt.room_nr, receipt.user_nr));
            self.receipts.push(position);
        }
        for data in &commit.account_data {
            let position = self.take(Item::AccountData(data.user_nr));
            self.account_data.push(position);
        }
        for message in &commit.to_device {
            let position = self.take(Item::ToDevice(message.user_nr, message.device_id.clone()));
            self.to_device.push(position);
        }
        for edu in &commit.outgoing_edus {
            let position = self.take(Item::Outgoing(edu.origin.clone(), edu.destination.clone()));
            self.outgoing_edus.push(position);
        }
        // What users sign of their own is a change of their devices.
        let others = commit.key_signatures.iter().filter(|signature| signature.signer_nr != signature.user_nr);
        for (signer, signed) in others.map(|other| (other.signer_nr, other.user_nr)).collect::<BTreeSet<_>>() {
            let position = self.take(Item::Signed(signer));
            self.signed.push((signer, signed, position));
        }
        for change in &commit.device_lists {
            let position = self.take(Item::DeviceList(change.user_nr));
            self.device_lists.push(position);
        }
        for profile in &commit.profiles {
            let position = self.take(Item::Profile(profile.user_nr));
            if profile.is_in_rooms {
                self.profiles.push((position, profile.user_nr));
            }
        }
        for subscription in &commit.thread_subscriptions {
            let position = self.take(Item::ThreadSubscription(subscription.user_nr));
            self.thread_subscriptions.push(position);
        }
        self.commits.push(commit);
    }

    fn add_room(&mut self, room: &'a RoomCommit, head: Option<&StoredHead>) {
        let month = body_month(self.now_ms);
        let mut positions = HashMap::new();
        let mut bump = Position(0);
        for event in &room.events {
            let month = if event.state_key_nr.is_some() { 0 } else { month };
            let is_told = matches!(event.placement, Placement::Live | Placement::Outside);
            let position = is_told.then(|| {
                let stored = StoredEvent::of_new(event, room.room_nr, Some(Position(self.next)));
                self.take(Item::Event(Arc::new(stored)))
            });
            positions.extend(position.map(|position| (event.nr, position)));
            if let Some(position) = position.filter(|_| is_bump(&event.pdu.event_type)) {
                bump = position;
            }
            self.events.push((position, month, event));
        }
        // After each event the current state is the event's own; after the last, resolution may have had a say.
        let mut state = head.map_or(NodeNr(0), |head| head.state);
        let live = room.events.iter().filter(|event| event.placement == Placement::Live);
        let live: Vec<_> = live.filter_map(|event| Some((positions.get(&event.nr)?, event.state))).collect();
        for (index, (position, after)) in live.iter().enumerate() {
            let after = if index + 1 == live.len() { room.state } else { *after };
            if after != state {
                state = after;
                self.states.push((room.room_nr, **position, state));
            }
        }
        self.nodes.extend(room.state_nodes.iter().map(|(nr, node)| (room.room_nr, *nr, node)));
        for change in &room.state_changes {
            let position = match change.event_nr.and_then(|nr| positions.get(&nr)) {
                Some(position) => *position,
                None => self.take(Item::State(room.room_nr)),
            };
            if let Some(membership) = &change.membership {
                self.memberships.push((position, room.room_nr, membership.event_nr, membership));
            }
        }
        let newest = self.newest();
        let members = room.members.iter().map(|change| (newest, room.room_nr, change.event_nr, change));
        self.memberships.extend(members);
        if state != room.state {
            // Resolution changed it without an event in the timeline.
            self.states.push((room.room_nr, self.newest(), room.state));
        }
        for event in &room.released {
            let placed = Arc::new(event.placed_at(Position(self.next)));
            let position = self.take(Item::Event(placed));
            self.released.push((event.nr, position));
        }
        // Another process may have added messages since these events were built: its extremities stay beside ours.
        let mut extremities = head.map(|head| head.extremities.clone()).unwrap_or_default();
        extremities.retain(|nr| !room.extremities_used.contains(nr));
        extremities.extend(room.extremities_added.iter().filter(|nr| !room.extremities_used.contains(nr)));
        let depth = room.depth.max(head.map_or(0, |head| head.depth));
        let merged = StoredHead { state: room.state, depth, extremities, lease: None };
        self.heads.push((room.room_nr, merged, self.newest(), bump));
        self.rooms.push(room);
    }

    /// The events that are others than they were: those that the group redacts, and those that it gives a place.
    fn redacted(&self) -> Vec<EventNr> {
        let redacted = self.rooms.iter().flat_map(|room| &room.redactions).map(|redaction| redaction.event_nr);
        let placed = self.rooms.iter().flat_map(|room| &room.events).filter(|event| event.was_outlier);
        redacted.chain(self.released.iter().map(|(nr, _)| *nr)).chain(placed.map(|event| event.nr)).collect()
    }

    /// Those of the redacted events that might count as unread, with whether they were in a thread.
    fn uncounted(&self) -> Vec<(EventNr, bool)> {
        let redacted = self.rooms.iter().flat_map(|room| &room.redactions);
        redacted.filter_map(|gone| Some((gone.event_nr, gone.counted_in.as_ref()? != &Thread::Main))).collect()
    }

    /// What the group puts into the stream.
    pub(crate) fn into_published(self) -> Published {
        let (redacted, uncounted) = (self.redacted(), self.uncounted());
        Published { previous: self.before, position: self.newest(), redacted, uncounted, items: self.items }
    }

    /// The rows of the group. Fails on a key that exists when an event, a room, an alias or a transaction exists already.
    pub(crate) fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        let commit = Rows::new()
            .bigint([self.newest().0])
            .bigint([self.now_ms])
            .bytea([pack_items(&self.items)])
            .bytea([pack_events(&self.redacted())])
            .bytea([pack_uncounted(&self.uncounted())]);
        batch.add(&INSERT_COMMITS, commit);
        self.add_rooms(&mut batch);
        self.add_transactions(&mut batch);
        self.add_projections(&mut batch);
        self.add_redactions(&mut batch);
        self.add_relations(&mut batch);
        self.add_countable(&mut batch);
        self.add_streams(&mut batch);
        batch
    }

    fn add_rooms(&self, batch: &mut Batch) {
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
    fn add_lacks(&self, batch: &mut Batch) {
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

    fn add_transactions(&self, batch: &mut Batch) {
        let transactions: Vec<_> = self.commits.iter().flat_map(|commit| &commit.transactions).collect();
        let rows = Rows::new()
            .bigint(transactions.iter().map(|transaction| transaction.key.user_nr.0))
            .text(transactions.iter().map(|transaction| transaction.key.device_id.clone()))
            .text(transactions.iter().map(|transaction| transaction.key.scope.clone()))
            .text(transactions.iter().map(|transaction| transaction.key.transaction_id.clone()))
            .bigint(transactions.iter().map(|transaction| transaction.event_nr.map(|nr| nr.0)))
            .bigint(transactions.iter().map(|_| self.now_ms));
        batch.add(&INSERT_TRANSACTIONS, rows);
        let received: Vec<_> = self.commits.iter().flat_map(|commit| &commit.received_transactions).collect();
        batch.add(INSERT_RECEIVED, answer_rows(&received, self.now_ms));
    }

    fn add_projections(&self, batch: &mut Batch) {
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

    /// Room Versions, "Redactions" and "Handling redactions".
    fn add_redactions(&self, batch: &mut Batch) {
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

    /// Client-Server API, "Forming relationships between events".
    fn add_relations(&self, batch: &mut Batch) {
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

    /// What counts as unread, and who has read up to where.
    fn add_countable(&self, batch: &mut Batch) {
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

    fn add_memberships(&self, batch: &mut Batch) {
        // A statement may touch a row once: the last membership of a user in the group counts.
        let mut last = HashMap::new();
        let mut counts: HashMap<RoomNr, (i64, i64)> = HashMap::new();
        let mut servers: HashMap<(RoomNr, &str), i64> = HashMap::new();
        for entry @ (_, room, _, change) in &self.memberships {
            last.insert((*room, change.user_nr), entry);
            let (joined, invited) = counts.entry(*room).or_default();
            let step =
                |membership| i64::from(change.after == membership) - i64::from(change.before == Some(membership));
            *joined += step(Membership::Join);
            *invited += step(Membership::Invite);
            *servers.entry((*room, change.server.as_str())).or_default() += step(Membership::Join);
        }
        let mut last: Vec<_> = last.into_values().collect();
        last.sort_unstable_by_key(|(position, ..)| *position);
        let rows = Rows::new()
            .bigint(last.iter().map(|(_, room, _, _)| room.0))
            .bigint(last.iter().map(|(_, _, _, change)| change.user_nr.0))
            .bigint(last.iter().map(|(_, _, _, change)| change.after.code()))
            .bigint(last.iter().map(|(_, _, event, _)| event.0))
            .bigint(last.iter().map(|(position, ..)| position.0))
            .boolean(last.iter().map(|(_, _, _, change)| change.is_local));
        batch.add(&UPSERT_MEMBERSHIPS, rows);
        let all = &self.memberships;
        let rows = Rows::new()
            .bigint(all.iter().map(|(_, _, _, change)| change.user_nr.0))
            .bigint(all.iter().map(|(_, room, _, _)| room.0))
            .bigint(all.iter().map(|(position, ..)| position.0))
            .bigint(all.iter().map(|(_, _, _, change)| change.after.code()));
        batch.add(&INSERT_MEMBERSHIP_LOG, rows);
        let mut counts: Vec<_> = counts.into_iter().filter(|(_, change)| *change != (0, 0)).collect();
        counts.sort_unstable();
        let rows = Rows::new()
            .bigint(counts.iter().map(|(room, _)| room.0))
            .bigint(counts.iter().map(|(_, (joined, _))| *joined))
            .bigint(counts.iter().map(|(_, (_, invited))| *invited));
        batch.then(&ADD_COUNTS, rows);
        let mut servers: Vec<_> = servers.into_iter().filter(|(_, joined)| *joined != 0).collect();
        servers.sort_unstable();
        let rows = Rows::new()
            .bigint(servers.iter().map(|((room, _), _)| room.0))
            .text(servers.iter().map(|((_, server), _)| (*server).to_owned()))
            .bigint(servers.iter().map(|(_, joined)| *joined));
        batch.add(&UPSERT_ROOM_SERVERS, rows);
        let left: Vec<i64> = servers.iter().filter(|(_, joined)| *joined < 0).map(|((room, _), _)| room.0).collect();
        if !left.is_empty() {
            batch.then_with(&DELETE_ROOM_SERVERS, args![left]);
        }
    }

    fn add_streams(&self, batch: &mut Batch) {
        // A statement may touch a row once: of two for the same key, the later counts.
        let mut receipts = HashMap::new();
        for (receipt, position) in self.commits.iter().flat_map(|commit| &commit.receipts).zip(&self.receipts) {
            let key = (receipt.room_nr, receipt.user_nr, &receipt.receipt_type, &receipt.thread);
            receipts.insert(key, (receipt, *position));
        }
        let receipts: Vec<_> = receipts.into_values().collect();
        let rows = Rows::new()
            .bigint(receipts.iter().map(|(receipt, _)| receipt.room_nr.0))
            .bigint(receipts.iter().map(|(receipt, _)| receipt.user_nr.0))
            .text(receipts.iter().map(|(receipt, _)| receipt.receipt_type.clone()))
            .text(receipts.iter().map(|(receipt, _)| to_column(receipt.thread.as_ref()).to_owned()))
            .text(receipts.iter().map(|(receipt, _)| receipt.event_id.to_string()))
            .bigint(receipts.iter().map(|(receipt, _)| receipt.at_ms))
            .bigint(receipts.iter().map(|(_, position)| position.0));
        batch.add(&UPSERT_RECEIPTS, rows);
        let mut data = HashMap::new();
        for (new, position) in self.commits.iter().flat_map(|commit| &commit.account_data).zip(&self.account_data) {
            data.insert((new.user_nr, new.room_nr, &new.event_type), (new, *position));
        }
        let data: Vec<_> = data.into_values().collect();
        let rows = Rows::new()
            .bigint(data.iter().map(|(new, _)| new.user_nr.0))
            .bigint(data.iter().map(|(new, _)| new.room_nr.0))
            .text(data.iter().map(|(new, _)| new.event_type.clone()))
            .text(data.iter().map(|(new, _)| new.content.clone()))
            .bigint(data.iter().map(|(_, position)| position.0));
        batch.add(&UPSERT_ACCOUNT_DATA, rows);
        let messages: Vec<_> = self.commits.iter().flat_map(|commit| &commit.to_device).collect();
        let rows = Rows::new()
            .bigint(self.to_device.iter().map(|position| position.0))
            .bigint(messages.iter().map(|message| message.user_nr.0))
            .text(messages.iter().map(|message| message.device_id.clone()))
            .text(messages.iter().map(|message| message.message.to_string()));
        batch.add(&INSERT_TO_DEVICE, rows);
        let edus = || self.commits.iter().flat_map(|commit| &commit.outgoing_edus);
        let rows = Rows::new()
            .bigint(self.outgoing_edus.iter().map(|position| position.0))
            .text(edus().map(|edu| edu.origin.to_string()))
            .text(edus().map(|edu| edu.destination.to_string()))
            .text(edus().map(|edu| edu.edu.to_string()));
        batch.add(&INSERT_OUTGOING_EDUS, rows);
        self.add_keys(batch);
        let rows = Rows::new()
            .bigint(self.profiles.iter().map(|(position, _)| position.0))
            .bigint(self.profiles.iter().map(|(_, user_nr)| user_nr.0));
        batch.add(&INSERT_PROFILES, rows);
        let new = self.commits.iter().flat_map(|commit| &commit.thread_subscriptions).zip(&self.thread_subscriptions);
        // A statement may touch a row once: of two for the same thread, the later counts.
        let new: HashMap<_, _> = new.map(|(new, position)| ((new.user_nr, new.root_nr), (new, *position))).collect();
        let rows = Rows::new()
            .bigint(new.values().map(|(new, _)| new.user_nr.0))
            .bigint(new.values().map(|(new, _)| new.root_nr.0))
            .bigint(new.values().map(|(new, _)| new.room_nr.0))
            .bigint(new.values().map(|(new, _)| new.state.code()))
            .bigint(new.values().map(|(_, position)| position.0));
        batch.add(&UPSERT_THREAD_SUBSCRIPTIONS, rows);
    }

    fn add_keys(&self, batch: &mut Batch) {
        let changes = || self.commits.iter().flat_map(|commit| &commit.device_lists);
        let mut newest: HashMap<UserNr, Position> = HashMap::new();
        let mut follows = Vec::with_capacity(self.device_lists.len());
        for (change, position) in changes().zip(&self.device_lists) {
            follows.push(newest.get(&change.user_nr).map(|position| position.0));
            if change.what != ChangedKeys::CrossSigning {
                newest.insert(change.user_nr, *position);
            }
        }
        let rows = Rows::new()
            .bigint(self.device_lists.iter().map(|position| position.0))
            .bigint(changes().map(|change| change.user_nr.0))
            .text(changes().map(|change| change.what.column()))
            .bigint(follows);
        batch.add(&INSERT_DEVICE_LISTS, rows);
        // A statement may touch a row once: of two, the later counts.
        let signatures = self.commits.iter().flat_map(|commit| &commit.key_signatures);
        let signatures: HashMap<_, _> =
            signatures.map(|one| ((one.user_nr, &one.target, one.signer_nr, &one.key_id), &one.signature)).collect();
        let rows = Rows::new()
            .bigint(signatures.keys().map(|(user_nr, ..)| user_nr.0))
            .text(signatures.keys().map(|(_, target, ..)| (*target).clone()))
            .bigint(signatures.keys().map(|(_, _, signer_nr, _)| signer_nr.0))
            .text(signatures.keys().map(|(.., key_id)| (*key_id).clone()))
            .text(signatures.values().map(|signature| (*signature).clone()));
        batch.add(&UPSERT_KEY_SIGNATURES, rows);
        let signed: HashMap<_, _> = self.signed.iter().map(|(signer, of, position)| ((signer, of), position)).collect();
        let rows = Rows::new()
            .bigint(signed.keys().map(|(signer, _)| signer.0))
            .bigint(signed.keys().map(|(_, of)| of.0))
            .bigint(signed.values().map(|position| position.0));
        batch.add(&UPSERT_SIGNED_USERS, rows);
    }
}

/// When an event was made, by the clock of its sender's server.
fn made_ms(event: &NewEvent) -> i64 {
    event.pdu.origin_server_ts.get().into()
}

fn flags_of(event: &NewEvent) -> i64 {
    let placement = match event.placement {
        Placement::Live | Placement::Backfilled { .. } => 0,
        Placement::Outlier | Placement::Outside => FLAG_OUTLIER,
        Placement::Rejected => FLAG_REJECTED,
        Placement::SoftFailed => FLAG_SOFT_FAILED,
        Placement::Held => FLAG_HELD,
    };
    if event.passed_on { placement | FLAG_PASSED_ON } else { placement }
}
