//! The members that an answer tells as they are needed. Client-Server API, "Lazy-loading room members".

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use accounts::Requester;
use model::{EventNr, Random, RoomNr, StateKeyNr};
use ruma::api::client::filter::LazyLoadOptions;

use super::Request;
use crate::{
    Sync,
    told_members::{KnownMembers, NewMembers, ToldMembers},
};

/// What a client has of members, and what the answer in the making adds.
pub(super) struct LazyMembers {
    told: Arc<ToldMembers>,
    known: Arc<KnownMembers>,
    /// Guards what the rooms of the answer add, which are put together at once. Held for moments only.
    new: Mutex<HashMap<RoomNr, NewMembers>>,
}

impl Sync {
    /// What a client has of members, if it loads them lazily and does not want to be told again.
    pub(super) fn lazy_members(&self, requester: &Requester, request: &Request) -> Option<LazyMembers> {
        let lazy = &request.filter.room.state.lazy_load_options;
        matches!(lazy, LazyLoadOptions::Enabled { include_redundant_members: false }).then(|| {
            let key = (requester.user_nr, requester.device().to_owned());
            let told = self.0.told_members.get_with(key, Arc::default);
            let known = told.take(request.since.and_then(|since| since.answer));
            LazyMembers { told, known, new: Mutex::default() }
        })
    }
}

impl LazyMembers {
    /// Whether the client knows a member by that event.
    pub(super) fn knows(&self, room_nr: RoomNr, member: StateKeyNr, event_nr: EventNr) -> bool {
        self.known.get(room_nr, member) == Some(event_nr)
    }

    /// Adds what the answer tells of the members of a room.
    pub(super) fn add(&self, room_nr: RoomNr, new: NewMembers) {
        if new.starts_anew || !new.members.is_empty() {
            self.new.lock().unwrap_or_else(PoisonError::into_inner).insert(room_nr, new);
        }
    }

    /// Notes what the answer tells, if it tells anything, and gives its number.
    pub(super) fn finish(&self, random: &Random) -> Option<u32> {
        let new = std::mem::take(&mut *self.new.lock().unwrap_or_else(PoisonError::into_inner));
        (!new.is_empty()).then(|| {
            let answer = random.number() as u32;
            self.told.note(answer, new);
            answer
        })
    }
}
