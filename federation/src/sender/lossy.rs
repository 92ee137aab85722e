//! EDUs that may be lost: typing, receipts, presence. Of each kind, room and user the newest waits; when too many wait, presence goes first.
//! Server-Server API, "EDUs".

use std::collections::BTreeMap;

use model::{RoomNr, UserNr};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId};
use serde_json::{Map, Value, json};

/// Most that wait for a destination.
const WAITING_MAX: usize = 1_000;
/// Most users of one EDU about presence.
const PRESENCES_AT_ONCE: usize = 100;

/// What an EDU is about. What is dropped first comes last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// How far a user has read a room, or a thread of it.
    Receipt(RoomNr, UserNr, String),
    /// Whether a user types in a room.
    Typing(RoomNr, UserNr),
    /// How a user is.
    Presence(UserNr),
}

/// What is said about it.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// `m.receipt`.
    Receipt { room_id: OwnedRoomId, user_id: OwnedUserId, event_id: OwnedEventId, data: Value },
    /// `m.typing`.
    Typing { room_id: OwnedRoomId, user_id: OwnedUserId, typing: bool },
    /// A part of `m.presence`.
    Presence(Value),
}

/// Those that wait for a destination.
#[derive(Debug, Default)]
pub(crate) struct Lossy(BTreeMap<Subject, Said>);

impl Lossy {
    /// Adds what is newer than all before.
    pub(crate) fn push(&mut self, subject: Subject, said: Said) {
        self.0.insert(subject, said);
        if self.0.len() > WAITING_MAX {
            self.0.pop_last();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes what fits into at most so many EDUs, as canonical JSON.
    pub(crate) fn take(&mut self, edus_max: usize) -> Vec<String> {
        let mut edus = Vec::new();
        if edus_max == 0 {
            return edus;
        }
        // A receipt EDU has one receipt of a user in a room: those in threads go one by one.
        let mut receipts: BTreeMap<OwnedRoomId, Map<String, Value>> = BTreeMap::new();
        let mut presences = Vec::new();
        // One place each is for all receipts and for all presences.
        while edus.len() + 2 < edus_max.max(3) {
            let Some((subject, said)) = self.0.pop_first() else { break };
            match said {
                Said::Receipt { room_id, user_id, event_id, data } => {
                    let receipt = json!({"data": data, "event_ids": [event_id]});
                    let in_room = receipts.entry(room_id.clone()).or_default();
                    if in_room.contains_key(user_id.as_str()) {
                        edus.push(receipts_edu(json!({user_id.as_str(): receipt}), &room_id));
                    } else {
                        in_room.insert(user_id.to_string(), receipt);
                    }
                }
                Said::Typing { room_id, user_id, typing } => {
                    let content = json!({"room_id": room_id, "typing": typing, "user_id": user_id});
                    edus.push(edu("m.typing", &content));
                }
                Said::Presence(_) if presences.len() == PRESENCES_AT_ONCE => {
                    self.0.insert(subject, said);
                    break;
                }
                Said::Presence(presence) => presences.push(presence),
            }
        }
        if !receipts.is_empty() {
            let content: Map<String, Value> =
                receipts.into_iter().map(|(room_id, users)| (room_id.to_string(), json!({"m.read": users}))).collect();
            edus.push(edu("m.receipt", &Value::Object(content)));
        }
        if !presences.is_empty() {
            edus.push(edu("m.presence", &json!({"push": presences})));
        }
        edus
    }
}

fn receipts_edu(users: Value, room_id: &RoomId) -> String {
    edu("m.receipt", &json!({room_id.as_str(): {"m.read": users}}))
}

/// An EDU in canonical JSON: `serde_json` sorts keys and writes nothing between.
pub(crate) fn edu(edu_type: &str, content: &Value) -> String {
    json!({"content": content, "edu_type": edu_type}).to_string()
}

#[cfg(test)]
mod tests {
    use ruma::{owned_event_id, owned_room_id, owned_user_id};

    use super::*;

    fn receipt(user: i64, thread: &str) -> (Subject, Said) {
        let said = Said::Receipt {
            room_id: owned_room_id!("!room:hs1"),
            user_id: format!("@user{user}:hs1").try_into().unwrap(),
            event_id: owned_event_id!("$event"),
            data: json!({"ts": 1}),
        };
        (Subject::Receipt(RoomNr(1), UserNr(user), thread.to_owned()), said)
    }

    fn typing(typing: bool) -> (Subject, Said) {
        let (room_id, user_id) = (owned_room_id!("!room:hs1"), owned_user_id!("@user1:hs1"));
        (Subject::Typing(RoomNr(1), UserNr(1)), Said::Typing { room_id, user_id, typing })
    }

    fn taken(lossy: &mut Lossy, edus_max: usize) -> Vec<Value> {
        lossy.take(edus_max).iter().map(|edu| serde_json::from_str(edu).unwrap()).collect()
    }

    #[test]
    fn of_each_subject_the_newest_is_sent_once() {
        let mut lossy = Lossy::default();
        for (subject, said) in [typing(true), typing(false), receipt(1, ""), receipt(1, ""), receipt(2, "")] {
            lossy.push(subject, said);
        }
        let edus = taken(&mut lossy, 100);
        assert_eq!(edus.len(), 2, "{edus:?}");
        assert_eq!(edus[0]["content"]["typing"], false);
        assert_eq!(edus[1]["content"]["!room:hs1"]["m.read"].as_object().unwrap().len(), 2);
        assert!(taken(&mut lossy, 100).is_empty());
    }

    /// An EDU has one receipt of a user in a room, whatever threads there are.
    #[test]
    fn receipts_in_threads_go_apart() {
        let mut lossy = Lossy::default();
        for thread in ["", "main", "$root"] {
            let (subject, said) = receipt(1, thread);
            lossy.push(subject, said);
        }
        assert_eq!(taken(&mut lossy, 100).len(), 3);
    }

    #[test]
    fn presence_is_dropped_first_and_no_transaction_has_more_than_it_may() {
        let mut lossy = Lossy::default();
        for user in 0..WAITING_MAX as i64 {
            lossy.push(Subject::Presence(UserNr(user)), Said::Presence(json!({"user_id": user})));
        }
        for user in 0..500 {
            let (subject, said) = receipt(user, "$root");
            lossy.push(subject, said);
            lossy.push(Subject::Typing(RoomNr(user), UserNr(1)), typing(true).1);
        }
        assert_eq!(lossy.0.len(), WAITING_MAX);
        assert!(!lossy.0.keys().any(|subject| matches!(subject, Subject::Presence(_))));
        let (mut rounds, mut typings) = (0, 0);
        while !lossy.is_empty() {
            let edus = taken(&mut lossy, 100);
            assert!(!edus.is_empty() && edus.len() <= 100);
            typings += edus.iter().filter(|edu| edu["edu_type"] == "m.typing").count();
            rounds += 1;
        }
        assert_eq!((typings, rounds), (500, 6));
    }
}
