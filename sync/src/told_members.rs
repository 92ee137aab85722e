//! Which members a client has been told of as it needed them, so that it is not told again with each message. Client-Server API,
//! "Lazy-loading room members"; MSC4186, "Lazy loaded memberships".
//!
//! An answer that tells of members has a number, which comes back with the client's token: then the client has what that answer told.
//! What was told in an answer whose number never came back counts for nothing. In memory only: what is forgotten, and what another process
//! told, is told once more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use model::{EventNr, RoomNr, StateKeyNr};

/// Most members that are remembered of one client.
const MEMBERS_MAX: usize = 4_000;

/// What one client was told.
#[derive(Debug, Default)]
pub(crate) struct ToldMembers(
    /// Guards what was told. Held for moments only; no other lock is taken inside.
    Mutex<Told>,
);

/// The members that a client has, by the events that it was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownMembers(HashMap<RoomNr, HashMap<StateKeyNr, EventNr>>);

/// The members that an answer tells of a room.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewMembers {
    /// Whether the client forgets those that it had.
    pub(crate) starts_anew: bool,
    pub(crate) members: HashMap<StateKeyNr, EventNr>,
}

#[derive(Debug, Default)]
struct Told {
    /// The answer that the client came from last, and what it had then.
    taken: Option<u32>,
    known: Arc<KnownMembers>,
    /// The answer that it may not have yet, and what that one told.
    answer: Option<u32>,
    new: HashMap<RoomNr, NewMembers>,
}

impl ToldMembers {
    /// What a client has that comes from an answer, or from one that had no number.
    pub(crate) fn take(&self, answer: Option<u32>) -> Arc<KnownMembers> {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = &mut *guard;
        let new = std::mem::take(&mut told.new);
        if answer.is_some() && answer == told.answer {
            Arc::make_mut(&mut told.known).add(new);
        } else if answer.is_none() || answer != told.taken {
            // Another process has answered meanwhile, or the client has begun anew.
            told.known = Arc::default();
        }
        (told.taken, told.answer) = (answer, answer);
        told.known.clone()
    }

    /// Notes what an answer tells.
    pub(crate) fn note(&self, answer: u32, new: HashMap<RoomNr, NewMembers>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (told.answer, told.new) = (Some(answer), new);
    }
}

impl KnownMembers {
    /// The event by which the client knows a member of a room.
    pub(crate) fn get(&self, room_nr: RoomNr, member: StateKeyNr) -> Option<EventNr> {
        self.0.get(&room_nr)?.get(&member).copied()
    }

    fn add(&mut self, new: HashMap<RoomNr, NewMembers>) {
        for (room_nr, new) in new {
            let members = self.0.entry(room_nr).or_default();
            if new.starts_anew {
                members.clear();
            }
            members.extend(new.members);
        }
        if self.0.values().map(HashMap::len).sum::<usize>() > MEMBERS_MAX {
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: RoomNr = RoomNr(1);
    const ALICE: StateKeyNr = StateKeyNr(5);

    fn new(starts_anew: bool, event: Option<i64>) -> HashMap<RoomNr, NewMembers> {
        let members = event.map(|event| (ALICE, EventNr(event))).into_iter().collect();
        HashMap::from([(ROOM, NewMembers { starts_anew, members })])
    }

    #[test]
    fn a_member_is_known_once_the_client_comes_from_the_answer_that_told_them() {
        let told = ToldMembers::default();
        let knows = |answer: Option<u32>| told.take(answer).get(ROOM, ALICE).map(|event| event.0);
        assert_eq!(knows(None), None);
        told.note(2, new(false, Some(7)));
        // The answer was lost, and the request came again.
        assert_eq!(knows(None), None);
        told.note(3, new(false, Some(7)));
        assert_eq!(knows(Some(3)), Some(7));
        told.note(4, new(false, Some(8)));
        assert_eq!(knows(Some(3)), Some(7));
        told.note(5, new(false, Some(8)));
        assert_eq!(knows(Some(5)), Some(8));
        // A gap: the client has forgotten its members.
        told.note(6, new(true, None));
        assert_eq!(knows(Some(6)), None);
        told.note(7, new(false, Some(8)));
        assert_eq!(knows(Some(7)), Some(8));
        // Another process has answered.
        assert_eq!(knows(Some(77)), None);
        told.note(8, new(false, Some(8)));
        assert_eq!(knows(Some(8)), Some(8));
        // The client has begun anew.
        assert_eq!(knows(None), None);
    }

    /// A client that is in the midst of a request is not disturbed by another one with the same name.
    #[test]
    fn what_a_request_started_from_stays() {
        let told = ToldMembers::default();
        let first = told.take(Some(1));
        told.note(2, new(false, Some(7)));
        let second = told.take(Some(2));
        assert_eq!((first.get(ROOM, ALICE), second.get(ROOM, ALICE)), (None, Some(EventNr(7))));
    }

    #[test]
    fn what_is_remembered_of_a_client_has_a_bound() {
        let told = ToldMembers::default();
        let members = (0..=MEMBERS_MAX as i64).map(|nr| (StateKeyNr(nr), EventNr(nr))).collect();
        told.note(1, HashMap::from([(ROOM, NewMembers { starts_anew: false, members })]));
        assert_eq!(told.take(Some(1)).get(ROOM, StateKeyNr(0)), None);
    }
}
