//! What the server says in `/sync`. Client-Server API, "Syncing".

use std::collections::BTreeMap;

use ruma::{
    OneTimeKeyAlgorithm, OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::sync::sync_events::v3::{InvitedRoom, JoinedRoom, LeftRoom, Response, State, Timeline},
    serde::Raw,
};
use serde_json::Value;

use super::{Machine, Work, text, timeline::Seen};
use crate::{
    Error, Kind,
    account::KeyCounts,
    events::Event,
    megolm::OUTBOUND,
    rooms::{Change, Membership, ROOMS, Room},
    signatures::Object,
};

/// The token of the next `/sync`.
const SYNC: Kind = Kind("sync");
const TOKEN: &str = "token";

/// What happened in a room before its limited timeline.
#[derive(Debug, Default)]
pub(crate) struct Gap {
    /// Oldest first.
    pub events: Vec<Value>,
    /// Whether that is all.
    pub is_complete: bool,
}

impl Machine {
    /// Where the `/sync` begins that is asked for now; nothing at the first.
    pub(crate) async fn begin_sync(&mut self) -> Result<Option<String>, Error> {
        self.uploads.1 = self.uploads.0;
        self.store.get(SYNC, TOKEN).await
    }

    /// Takes over what the server says. All of it becomes durable at once, together with the token from which it goes on, so that nothing of
    /// it is lost or counts twice. `gaps` is what happened before its timelines, where they are limited. Returns what there is to tell: nothing of the first time, which is history.
    ///
    /// # Errors
    ///
    /// Those of the store. Then nothing was taken over, and the same answer may be asked for again.
    pub(crate) async fn receive(
        &mut self,
        answer: Response,
        mut gaps: BTreeMap<OwnedRoomId, Gap>,
    ) -> Result<Vec<Event>, Error> {
        let is_first = self.store.get::<String>(SYNC, TOKEN).await?.is_none();
        let mut work = Work::default();
        self.devices_changed(&mut work, &answer.device_lists.changed, &answer.device_lists.left).await?;
        for message in &answer.to_device.events {
            if let Some(message) = object(message) {
                self.receive_to_device(&mut work, &message).await?;
            }
        }
        for (room_id, invited) in answer.rooms.invite {
            self.receive_invite(&mut work, room_id, &invited).await?;
        }
        for (room_id, joined) in answer.rooms.join {
            let gap = gaps.remove(&room_id).unwrap_or_default();
            // Whoever may have come and left in what was not seen may have been given the key.
            if joined.timeline.limited && !gap.is_complete {
                work.batch.delete(OUTBOUND, room_id.as_str());
            }
            self.receive_gap(&mut work, &room_id, gap.events).await?;
            self.receive_joined(&mut work, room_id, joined).await?;
        }
        for (room_id, left) in answer.rooms.leave {
            self.receive_left(&mut work, room_id, left).await?;
        }
        self.read_late_events(&mut work).await?;
        work.batch.put(SYNC, TOKEN, &answer.next_batch);
        work.events.retain(|event| !is_first || !matches!(event, Event::Room(_)));
        let events = self.commit(work).await?;
        // What was uploaded meanwhile is not in the counts of an answer that was asked for before.
        if self.uploads.0 != self.uploads.1 {
            return Ok(events);
        }
        let one_time = answer.device_one_time_keys_count.get(&OneTimeKeyAlgorithm::SignedCurve25519);
        let unused = answer.device_unused_fallback_key_types;
        self.key_counts = Some(KeyCounts {
            // A server may leave out what is zero.
            one_time: one_time.copied().map(u64::from).unwrap_or_default(),
            is_fallback_unused: unused.map(|types| types.contains(&OneTimeKeyAlgorithm::SignedCurve25519)),
            has_messages: !answer.to_device.events.is_empty(),
        });
        Ok(events)
    }

    async fn receive_joined(&mut self, work: &mut Work, room_id: OwnedRoomId, joined: JoinedRoom) -> Result<(), Error> {
        let mut room = self.stored_room(work, &room_id).await?;
        let was_joined = room.membership == Membership::Join;
        room.membership = Membership::Join;
        room.inviter = None;
        if let Some(count) = joined.unread_notifications.notification_count {
            room.unread = count.into();
        }
        let everybody = self.receive_events(work, &mut room, &joined.state, joined.timeline).await?;
        if room.encryption.is_some() && (everybody || !was_joined) {
            let readers: Vec<OwnedUserId> = room.readers().cloned().collect();
            self.track(work, &readers).await?;
        }
        work.batch.put(ROOMS, room_id.as_str(), &room);
        Ok(())
    }

    /// Reads what happened before a limited timeline. The state at its beginning comes with that, so here only counts who was seen to leave.
    async fn receive_gap(&mut self, work: &mut Work, room_id: &RoomId, events: Vec<Value>) -> Result<(), Error> {
        let mut seen = Seen::news();
        for event in events.iter().filter_map(Value::as_object) {
            let Some(event) = self.read_event(work, &mut seen, room_id, event).await? else { continue };
            let membership = event.content.get("membership").and_then(Value::as_str);
            if event.event_type == "m.room.member" && event.state_key.is_some() && membership != Some("join") {
                work.batch.delete(OUTBOUND, room_id.as_str());
            }
            work.events.push(Event::Room(event));
        }
        Ok(())
    }

    async fn receive_left(&mut self, work: &mut Work, room_id: OwnedRoomId, left: LeftRoom) -> Result<(), Error> {
        let mut room = self.stored_room(work, &room_id).await?;
        room.membership = Membership::Leave;
        room.inviter = None;
        self.receive_events(work, &mut room, &left.state, left.timeline).await?;
        work.batch.delete(OUTBOUND, room_id.as_str());
        work.batch.put(ROOMS, room_id.as_str(), &room);
        Ok(())
    }

    async fn receive_invite(
        &mut self,
        work: &mut Work,
        room_id: OwnedRoomId,
        invited: &InvitedRoom,
    ) -> Result<(), Error> {
        let mut room = self.stored_room(work, &room_id).await?;
        let was_invited = room.membership == Membership::Invite;
        room.membership = Membership::Invite;
        for event in invited.invite_state.events.iter().filter_map(object) {
            let is_own = text(&event, "state_key") == Some(self.user_id.as_str());
            if is_own && text(&event, "type") == Some("m.room.member") {
                room.inviter = text(&event, "sender").and_then(|sender| UserId::parse(sender).ok());
            }
            apply(&mut room, &event);
        }
        if !was_invited {
            work.events.push(Event::Invite { room_id: room_id.clone(), inviter: room.inviter.clone() });
        }
        work.batch.put(ROOMS, room_id.as_str(), &room);
        Ok(())
    }

    /// Applies the state and reads the timeline. Returns whether who gets room keys has to be looked at anew.
    async fn receive_events(
        &mut self,
        work: &mut Work,
        room: &mut Room,
        state: &State,
        timeline: Timeline,
    ) -> Result<bool, Error> {
        let state = match state {
            State::Before(state) | State::After(state) => &state.events,
            _ => return Err(Error::ServerMisbehaved("the state of a room in /sync")),
        };
        let mut everybody = false;
        for event in state.iter().filter_map(object) {
            note_who_left(work, room, &event, timeline.limited);
            let change = apply(room, &event);
            everybody |= self.receive_change(work, room, change, timeline.limited).await?;
        }
        let mut seen = Seen::news();
        for event in timeline.events.iter().filter_map(object) {
            note_who_left(work, room, &event, timeline.limited);
            let change = apply(room, &event);
            everybody |= self.receive_change(work, room, change, timeline.limited).await?;
            if let Some(event) = self.read_event(work, &mut seen, &room.room_id, &event).await? {
                work.events.push(Event::Room(event));
            }
        }
        Ok(everybody)
    }

    async fn receive_change(
        &mut self,
        work: &mut Work,
        room: &mut Room,
        change: Change,
        limited: bool,
    ) -> Result<bool, Error> {
        let user_id = match change {
            Change::None => return Ok(false),
            Change::Everybody => return Ok(true),
            Change::Members(user_id) => user_id,
        };
        let membership = room.members.get(&user_id).map_or(Membership::Leave, |member| member.membership);
        if user_id == self.user_id && matches!(membership, Membership::Join | Membership::Leave | Membership::Ban) {
            room.membership = membership;
        }
        if room.encryption.is_none() {
            return Ok(false);
        }
        // Who left must not read what follows. In a gap an invitation may hide that somebody came and left again.
        let may_have_left = match membership {
            Membership::Join => false,
            Membership::Invite => limited,
            Membership::Knock | Membership::Leave | Membership::Ban => true,
        };
        if may_have_left {
            work.batch.delete(OUTBOUND, room.room_id.as_str());
        }
        if matches!(membership, Membership::Join | Membership::Invite) {
            self.track(work, [&user_id]).await?;
        }
        Ok(false)
    }

    async fn stored_room(&self, work: &Work, room_id: &RoomId) -> Result<Room, Error> {
        let room = self.store.get_with(&work.batch, ROOMS, room_id.as_str()).await?;
        Ok(room.unwrap_or_else(|| Room::new(room_id.to_owned())))
    }
}

/// In a gap a membership that is the same as before may hide that somebody came, was given the key, and left again.
/// Client-Server API, "m.megolm.v1.aes-sha2", on `limited` timelines.
fn note_who_left(work: &mut Work, room: &Room, event: &Object, limited: bool) {
    let membership = event.get("content").and_then(|content| content.get("membership")).and_then(Value::as_str);
    if limited && text(event, "type") == Some("m.room.member") && membership != Some("join") {
        work.batch.delete(OUTBOUND, room.room_id.as_str());
    }
}

fn apply(room: &mut Room, event: &Object) -> Change {
    match (text(event, "type"), text(event, "state_key"), event.get("content")) {
        (Some(event_type), Some(state_key), Some(Value::Object(content))) => room.apply(event_type, state_key, content),
        _ => Change::None,
    }
}

fn object<T>(raw: &Raw<T>) -> Option<Object> {
    serde_json::from_str(raw.json().get()).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ruma::{room_id, user_id};
    use serde_json::json;

    use super::*;
    use crate::{Batch, Store, StoreKey, account::Account, outbox::Outbox};

    async fn machine(folder: &tempfile::TempDir) -> Machine {
        let store = Store::open(&folder.path().join("store"), &StoreKey::raw([1; 32])).await.unwrap();
        let mut batch = Batch::new();
        Account::new(user_id!("@bob:example.org").to_owned(), "PHONE".into()).save(&mut batch);
        store.commit(batch).await.unwrap();
        let outbox = Arc::new(Outbox::load(&store).await.unwrap());
        Machine::load(store, outbox).await.unwrap()
    }

    /// A `/sync` that began before an upload says how many keys there were before it.
    #[tokio::test]
    async fn counts_that_are_older_than_an_upload_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = machine(&folder).await;
        let answer = || {
            let mut answer = Response::new("token".to_owned());
            answer.device_unused_fallback_key_types = Some(Vec::new());
            answer
        };
        machine.begin_sync().await.unwrap();
        machine.keys_uploaded(50).await.unwrap();
        machine.receive(answer(), BTreeMap::new()).await.unwrap();
        assert_eq!(machine.key_counts.map(|counts| (counts.one_time, counts.is_fallback_unused)), Some((50, None)));
        machine.begin_sync().await.unwrap();
        machine.receive(answer(), BTreeMap::new()).await.unwrap();
        let counts = machine.key_counts.map(|counts| (counts.one_time, counts.is_fallback_unused));
        assert_eq!(counts, Some((0, Some(false))));
    }

    /// Client-Server API, "m.megolm.v1.aes-sha2": in a gap somebody may have come, been given the key, and left again.
    #[tokio::test]
    async fn after_a_gap_in_which_somebody_may_have_left_the_room_key_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = machine(&folder).await;
        let room_id = room_id!("!room:example.org");
        let left = json!({ "type": "m.room.member", "state_key": "@carol:example.org", "sender": "@carol:example.org",
            "event_id": "$left", "content": { "membership": "leave" } });
        let mut room = Room::new(room_id.to_owned());
        apply(&mut room, left.as_object().unwrap());
        for (is_complete, with_leave, kept) in [(true, false, 1), (false, false, 0), (true, true, 0)] {
            let mut batch = Batch::new();
            batch.put(ROOMS, room_id.as_str(), &room);
            batch.put(OUTBOUND, room_id.as_str(), "a session");
            machine.store.commit(batch).await.unwrap();
            let mut joined = JoinedRoom::new();
            joined.timeline.limited = true;
            if with_leave {
                joined.timeline.events.push(Raw::new(&left).unwrap().cast_unchecked());
            }
            let mut answer = Response::new("token".to_owned());
            answer.rooms.join.insert(room_id.to_owned(), joined);
            let gap = Gap { events: Vec::new(), is_complete };
            machine.receive(answer, BTreeMap::from([(room_id.to_owned(), gap)])).await.unwrap();
            assert_eq!(machine.store.count(OUTBOUND).await.unwrap(), kept, "{is_complete} {with_leave}");
        }
    }
}
