//! The rows of one group of commits, gathered from all of them, then written with one statement a table.

pub(crate) mod countable;
pub(crate) mod keys;
pub(crate) mod members;
pub(crate) mod redactions;
pub(crate) mod relations;
pub(crate) mod rooms;
pub(crate) mod streams;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use model::{EventNr, NodeNr, Position, RoomNr, Thread, UserNr, is_bump};

use crate::{
    Commit, RoomCommit, StateNode, StoredEvent,
    batch::Batch,
    commit::{MembershipChange, NewEvent, Placement},
    committer::StoredHead,
    events::body_month,
    packed::pack_events,
    rows::Rows,
    statement::statements,
    stream::{Item, Published, pack_items, pack_uncounted},
};

statements! {
    INSERT_COMMITS = ["
        INSERT INTO commits (position, at_ms, items, redacted, uncounted)
        SELECT position, at_ms, items, redacted, uncounted
          FROM", (rows [1 position bigint, 2 at_ms bigint, 3 items bytea, 4 redacted bytea, 5 uncounted bytea])];
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
        // Who looks for what became of members looks at rooms whose state has changed.
        let is_partial = head.is_some_and(|head| head.is_partial);
        if is_partial && (room.completion.is_some() || (!room.members.is_empty() && room.events.is_empty())) {
            self.take(Item::State(room.room_nr));
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
        let merged = StoredHead { state: room.state, depth, extremities, ..StoredHead::default() };
        self.heads.push((room.room_nr, merged, self.newest(), bump));
        self.rooms.push(room);
    }

    /// The events that are others than they were: those that the group redacts, those that it gives a place, and those whose state is whole
    /// now.
    fn redacted(&self) -> Vec<EventNr> {
        let redacted = self.rooms.iter().flat_map(|room| &room.redactions).map(|redaction| redaction.event_nr);
        let placed = self.rooms.iter().flat_map(|room| &room.events).filter(|event| event.was_outlier);
        let completed = self.rooms.iter().filter_map(|room| room.completion.as_ref());
        let completed = completed.flat_map(|completion| completion.events.iter().map(|event| event.nr));
        let released = self.released.iter().map(|(nr, _)| *nr);
        redacted.chain(released).chain(placed.map(|event| event.nr)).chain(completed).collect()
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
}

/// When an event was made, by the clock of its sender's server.
fn made_ms(event: &NewEvent) -> i64 {
    event.pdu.origin_server_ts.get().into()
}
