//! Events whose key may come. They are in memory only: the rooms' history has them.

use std::collections::{BTreeSet, VecDeque};

use ruma::{OwnedRoomId, OwnedUserId};

use crate::signatures::Object;

/// Most bytes of events that wait, and of one sender in one room; about as much again goes for looking after them.
const BYTES_MAX: usize = 16 * 1024 * 1024;
const BYTES_OF_SENDER_MAX: usize = 1024 * 1024;
/// What an event counts for besides what it says.
const BYTES_MIN: usize = 1024;

/// An event that waits.
#[derive(Debug)]
pub(super) struct Pending {
    /// The key of its session, [`session_key`](crate::megolm::session_key).
    pub key: String,
    pub room_id: OwnedRoomId,
    pub sender: OwnedUserId,
    pub session_id: String,
    /// The sending device's Olm key, as the event says.
    pub sender_key: Option<String>,
    pub event: Object,
}

impl Pending {
    fn bytes(&self) -> usize {
        BYTES_MIN + serde_json::to_vec(&self.event).map_or(0, |json| json.len())
    }
}

/// The events that wait, the oldest in front, each with its size.
#[derive(Debug, Default)]
pub(super) struct PendingEvents {
    events: VecDeque<(usize, Pending)>,
    bytes: usize,
}

impl PendingEvents {
    /// Keeps an event until its key comes; of too many the oldest go, of a sender who has too many theirs.
    pub(super) fn add(&mut self, event: Pending) {
        let is_known = |(_, known): &(usize, Pending)| {
            known.key == event.key && known.event.get("event_id") == event.event.get("event_id")
        };
        if self.events.iter().any(is_known) {
            return;
        }
        let bytes = event.bytes();
        let (room_id, sender) = (event.room_id.clone(), event.sender.clone());
        let is_theirs = |known: &Pending| known.room_id == room_id && known.sender == sender;
        self.bytes += bytes;
        self.events.push_back((bytes, event));
        let theirs = |events: &VecDeque<(usize, Pending)>| -> usize {
            events.iter().filter(|(_, known)| is_theirs(known)).map(|(bytes, _)| bytes).sum()
        };
        while theirs(&self.events) > BYTES_OF_SENDER_MAX {
            let oldest = self.events.iter().position(|(_, known)| is_theirs(known));
            self.remove(oldest.expect("there is one at least"));
        }
        while self.bytes > BYTES_MAX {
            self.remove(0);
        }
    }

    fn remove(&mut self, index: usize) {
        if let Some((bytes, _)) = self.events.remove(index) {
            self.bytes -= bytes;
        }
    }

    /// The events that wait for this key, which do not any more.
    pub(super) fn take(&mut self, key: &str) -> Vec<Pending> {
        let (taken, left): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.events).into_iter().partition(|(_, event)| event.key == key);
        self.events = left;
        self.bytes -= taken.iter().map(|(bytes, _)| bytes).sum::<usize>();
        taken.into_iter().map(|(_, event)| event).collect()
    }

    /// The keys that are waited for: their rooms and sessions, and the sending devices' Olm keys.
    pub(super) fn keys(&self) -> Vec<(OwnedRoomId, String, Option<String>)> {
        let mut seen = BTreeSet::new();
        let first = self.events.iter().filter(|(_, event)| seen.insert(&event.key));
        first.map(|(_, event)| (event.room_id.clone(), event.session_id.clone(), event.sender_key.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use ruma::{UserId, room_id, user_id};
    use serde_json::json;

    use super::*;

    fn event(sender: &UserId, key: &str, id: usize, bytes: usize) -> Pending {
        let event = json!({ "event_id": format!("${id}"), "x": "x".repeat(bytes) });
        Pending {
            key: key.to_owned(),
            room_id: room_id!("!r:x").to_owned(),
            sender: sender.to_owned(),
            session_id: key.to_owned(),
            sender_key: None,
            event: event.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn who_floods_a_room_pushes_out_only_their_own_events() {
        let (honest, flood) = (user_id!("@a:x"), user_id!("@b:x"));
        let mut pending = PendingEvents::default();
        pending.add(event(honest, "honest", 0, 10));
        pending.add(event(honest, "honest", 0, 10));
        for index in 0..100 {
            pending.add(event(flood, &format!("made up {index}"), index, 60_000));
        }
        assert_eq!(pending.take("honest").len(), 1);
        assert!(pending.take("made up 0").is_empty());
        assert_eq!(pending.take("made up 99").len(), 1);
        assert!(pending.bytes <= BYTES_OF_SENDER_MAX);
        assert!(pending.take("made up 99").is_empty());
    }

    #[test]
    fn all_that_waits_is_bounded() {
        let mut pending = PendingEvents::default();
        for index in 0..400 {
            let sender = UserId::parse(format!("@{index}:x")).unwrap();
            pending.add(event(&sender, &index.to_string(), index, 60_000));
        }
        assert!(pending.bytes <= BYTES_MAX);
        assert_eq!(pending.take("399").len(), 1);
        assert_eq!(pending.events.iter().map(|(bytes, _)| bytes).sum::<usize>(), pending.bytes);
    }
}
