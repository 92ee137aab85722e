//! Looks that find no room to tell of. MSC4186, "Long-polling".
//!
//! A look walks through all rooms of the user, and most of them would find nothing: a poll begins with one, to see whether it has to wait.
//! When the look before it has told all that there was, and since then nothing has happened and nothing else is asked for, it is left out.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use accounts::UserSettings;
use model::Position;

use super::{Look, SentState};
use crate::{room_facts::UserList, room_marks::RoomMarks};

/// The last look of a connection after which there was nothing left to tell.
#[derive(Debug, Default)]
pub(super) struct LastLook(
    /// Held for moments only; no other lock is taken inside.
    Mutex<Option<Settled>>,
);

/// Up to where was looked, all that decides which rooms are looked at, and how many were in each list.
#[derive(Debug)]
struct Settled {
    upto: Position,
    state: Weak<SentState>,
    list: Weak<UserList>,
    marks: Weak<RoomMarks>,
    settings: Weak<UserSettings>,
    asked: u64,
    counts: BTreeMap<String, usize>,
}

impl LastLook {
    /// How many rooms are in each list, if a look has no room to tell of.
    pub(super) fn counts(&self, look: &Look<'_>) -> Option<BTreeMap<String, usize>> {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = guard.as_ref()?;
        let is_same = look.since == Some(settled.upto)
            && !look.news.any()
            && settled.state.as_ptr() == Arc::as_ptr(&look.start.state)
            && settled.list.as_ptr() == Arc::as_ptr(&look.list)
            && settled.marks.as_ptr() == Arc::as_ptr(&look.marks)
            && settled.settings.as_ptr() == Arc::as_ptr(&look.settings)
            && settled.asked == asked(look);
        is_same.then(|| settled.counts.clone())
    }

    /// Notes a look that has told all that there was, and left the state of the connection as it was.
    pub(super) fn note(&self, look: &Look<'_>, counts: &BTreeMap<String, usize>) {
        // What these ask for may change in rooms that the user is only invited to, of which no news is heard.
        let is_heard = |filters: &super::Filters| filters.is_encrypted.is_none() && filters.room_name_like.is_none();
        let settled = look.request.lists.values().all(|list| is_heard(&list.filters)).then(|| Settled {
            upto: look.upto,
            state: Arc::downgrade(&look.start.state),
            list: Arc::downgrade(&look.list),
            marks: Arc::downgrade(&look.marks),
            settings: Arc::downgrade(&look.settings),
            asked: asked(look),
            counts: counts.clone(),
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = settled;
    }
}

/// A fingerprint of what is asked for, but for what each look answers anyway.
fn asked(look: &Look<'_>) -> u64 {
    let request = look.request;
    let extensions = &request.extensions;
    let mut hasher = DefaultHasher::new();
    (&request.lists, &request.subscriptions, request.counts_unread).hash(&mut hasher);
    (&extensions.account_data, &extensions.receipts, &extensions.typing, extensions.thread_subscriptions)
        .hash(&mut hasher);
    hasher.finish()
}
