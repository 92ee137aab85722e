//! EDUs that may be lost: who types and who is there. Of each kind, room and user the newest waits; when too many wait, presence goes first.
//! Server-Server API, "EDUs".

use std::collections::BTreeMap;

use model::{RoomNr, UserNr};
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::{Value, json};

/// Most that wait for a destination.
const WAITING_MAX: usize = 1_000;
/// Most users of one EDU about presence.
const PRESENCES_AT_ONCE: usize = 100;

/// What an EDU is about. What is dropped first comes last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// Whether a user types in a room.
    Typing(RoomNr, UserNr),
    /// How a user is.
    Presence(UserNr),
}

/// What is said about it.
#[derive(Clone, Debug)]
pub(crate) enum Said {
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
        let (mut edus, mut presences) = (Vec::new(), Vec::new());
        // One place is for all presences.
        while edus.len() + 1 < edus_max {
            let Some((subject, said)) = self.0.pop_first() else { break };
            match said {
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
        if !presences.is_empty() {
            edus.push(edu("m.presence", &json!({"push": presences})));
        }
        edus
    }
}

/// An EDU in canonical JSON: `serde_json` sorts keys and writes nothing between.
pub(crate) fn edu(edu_type: &str, content: &Value) -> String {
    json!({"content": content, "edu_type": edu_type}).to_string()
}

#[cfg(test)]
mod tests {
    use ruma::{owned_room_id, owned_user_id};

    use super::*;

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
        for (subject, said) in [typing(true), typing(false)] {
            lossy.push(subject, said);
        }
        let edus = taken(&mut lossy, 100);
        assert_eq!(edus.len(), 1, "{edus:?}");
        assert_eq!(edus[0]["content"]["typing"], false);
        assert!(taken(&mut lossy, 100).is_empty());
    }

    #[test]
    fn presence_is_dropped_first_and_no_transaction_has_more_than_it_may() {
        let mut lossy = Lossy::default();
        for user in 0..WAITING_MAX as i64 {
            lossy.push(Subject::Presence(UserNr(user)), Said::Presence(json!({"user_id": user})));
        }
        for room in 0..500 {
            lossy.push(Subject::Typing(RoomNr(room), UserNr(1)), typing(true).1);
        }
        assert_eq!(lossy.0.len(), WAITING_MAX);
        let presences = lossy.0.keys().filter(|subject| matches!(subject, Subject::Presence(_))).count();
        assert_eq!(presences, WAITING_MAX - 500);
        let (mut typings, mut presences) = (0, 0);
        while !lossy.is_empty() {
            let edus = taken(&mut lossy, 20);
            assert!(!edus.is_empty() && edus.len() <= 20);
            typings += edus.iter().filter(|edu| edu["edu_type"] == "m.typing").count();
            presences += edus
                .iter()
                .filter_map(|edu| edu["content"]["push"].as_array())
                .map(Vec::len)
                .inspect(|n| assert!(*n <= 100))
                .sum::<usize>();
        }
        assert_eq!((typings, presences), (500, WAITING_MAX - 500));
    }
}
