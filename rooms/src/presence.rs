//! How users are: what they say and do, and what is kept of it. Client-Server API, "Presence".
//!
//! The state is in memory or in Redis ([`event_bus::Presence`]). Here is what becomes of it by requests and restarts. Who sees whom, and who
//! is woken for it, is with what is new for readers.

use std::collections::BTreeMap;

use accounts::Requester;
use event_bus::{Availability, Presence, Remembered, Reported, Syncing, UserPresence};
use model::{LocalServers, UserNr};
use ruma::{OwnedUserId, UserId};
use storage::Storage;

use crate::Error;

/// Longest status message, in bytes.
const STATUS_BYTES_MAX: usize = 1_024;
/// Most users that are brought back with one read after the state was lost.
const RESTORED_AT_ONCE: u32 = 500;

/// How users are, unless that is switched off. Cheap to clone.
#[derive(Clone)]
pub struct Presences {
    storage: Storage,
    servers: LocalServers,
    state: Option<Presence>,
}

/// Who came or went and is not kept yet: whether they are there, and when they last did something.
#[derive(Debug, Default)]
pub struct Flips(BTreeMap<UserNr, (bool, i64)>);

impl Presences {
    /// With the state of who is there, or without when nobody is to be shown.
    #[must_use]
    pub fn new(storage: Storage, servers: LocalServers, state: Option<Presence>) -> Self {
        Self { storage, servers, state }
    }

    /// Who is there, unless it is switched off.
    #[must_use]
    pub fn state(&self) -> Option<&Presence> {
        self.state.as_ref()
    }

    /// Counts the requester's device as one that syncs, until the end of what is returned. Client-Server API, "GET /sync",
    /// `set_presence`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn syncs(&self, requester: &Requester, availability: Availability) -> Result<Option<Syncing>, Error> {
        let Some(state) = self.state().filter(|_| availability != Availability::Offline) else { return Ok(None) };
        let user_nr = requester.user_nr;
        let before = if state.knows(user_nr) { None } else { Some(self.remembered(user_nr).await?) };
        let is_idle = availability == Availability::Unavailable;
        Ok(Some(state.syncs(user_nr, requester.device(), is_idle, before)))
    }

    /// The requester did something: sent an event, typed, read. Client-Server API, "Last active ago".
    pub fn active(&self, requester: &Requester) {
        if let Some(state) = self.state() {
            state.active(requester.user_nr, requester.device());
        }
    }

    /// Client-Server API, "PUT /presence/{userId}/status".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for a status message that is too long.
    pub async fn set(
        &self,
        requester: &Requester,
        availability: Availability,
        status_msg: Option<String>,
    ) -> Result<(), Error> {
        // Clients say this with each change of focus: where nobody is shown it is no mistake of theirs.
        let Some(state) = self.state() else { return Ok(()) };
        let status_msg = status_msg.filter(|text| !text.is_empty());
        if status_msg.as_ref().is_some_and(|text| text.len() > STATUS_BYTES_MAX) {
            return Err(Error::InvalidParam(format!("a status message has at most {STATUS_BYTES_MAX} bytes")));
        }
        let user_nr = requester.user_nr;
        let before = if state.knows(user_nr) { None } else { Some(self.remembered(user_nr).await?) };
        let said = match &before {
            Some(before) => before.says.status_msg.clone(),
            None => state.get(user_nr).and_then(|known| known.shown.says.status_msg),
        };
        if status_msg != said {
            self.storage.upsert_status_msg(user_nr, status_msg.as_deref()).await?;
        }
        state.set(user_nr, requester.device(), availability, status_msg, before).await;
        Ok(())
    }

    /// The servers of users say how they are. Who shares no room with a user of ours is passed over. Server-Server API, "Presence".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn report(&self, said: Vec<(OwnedUserId, Reported)>) -> Result<(), Error> {
        let Some(state) = self.state().filter(|_| !said.is_empty()) else { return Ok(()) };
        let users: Vec<&UserId> = said.iter().map(|(user_id, _)| &**user_id).collect();
        let numbers = self.storage.find_user_nrs(&users).await?;
        let all: Vec<UserNr> = numbers.values().copied().collect();
        let sharing = self.storage.list_sharing(&all, self.servers.iter().map(|server| &*server.name)).await?;
        for (user_id, reported) in &said {
            let Some(user_nr) = numbers.get(&**user_id).filter(|user_nr| sharing.contains_key(user_nr)) else {
                continue;
            };
            let mut reported = reported.clone();
            reported.status_msg = reported.status_msg.filter(|text| (1..=STATUS_BYTES_MAX).contains(&text.len()));
            state.report(*user_nr, reported).await;
        }
        Ok(())
    }

    /// How a user is, for whoever may see it. Where presence is switched off nothing is known of anybody.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get(&self, user_nr: UserNr) -> Result<UserPresence, Error> {
        let Some(state) = self.state() else { return Ok(UserPresence::default()) };
        match state.get(user_nr) {
            Some(known) => Ok(known),
            None => Ok(state.remembered(self.remembered(user_nr).await?)),
        }
    }

    /// A user's name or picture changed. Client-Server API, "Events on Change of Profile Information".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn profile_changed(&self, user_nr: UserNr) -> Result<(), Error> {
        if let Some(state) = self.state().filter(|state| state.knows(user_nr)) {
            let says = self.remembered(user_nr).await?.says;
            state.rename(user_nr, says.display_name, says.avatar_url).await;
        }
        Ok(())
    }

    /// Brings back those who were there when the state was lost.
    ///
    /// # Errors
    ///
    /// When the database fails; it may be done again.
    pub async fn restore(&self) -> Result<(), Error> {
        let Some(state) = self.state() else { return Ok(()) };
        let mut after = UserNr(0);
        loop {
            let rows = self.storage.list_there(after, RESTORED_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.user_nr;
            let users: Vec<UserNr> = rows.iter().map(|row| row.user_nr).collect();
            let fields = self.storage.list_profiles(&users).await?;
            let names = self.storage.user_ids(&users).await?;
            let is_ours = |user_nr| names.get(&user_nr).is_some_and(|user_id| self.servers.has_user(user_id));
            let (rows, elsewhere): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| is_ours(row.user_nr));
            for row in elsewhere.into_iter().filter(|row| !state.knows(row.user_nr)) {
                // Until their servers say otherwise.
                let last_active_ago_ms = Some(self.storage.clock().now_ms() - row.last_active_ms);
                let availability = Availability::Online;
                state.report(row.user_nr, Reported { availability, last_active_ago_ms, ..Reported::default() }).await;
            }
            let users = rows.into_iter().map(|row| {
                let mut before = Remembered { last_active_ms: row.last_active_ms, ..Remembered::default() };
                before.says.status_msg = row.status_msg;
                for (_, field, value) in fields.iter().filter(|(user_nr, ..)| *user_nr == row.user_nr) {
                    add_field(&mut before, field, value);
                }
                (row.user_nr, before)
            });
            state.restore(users.collect()).await;
        }
    }

    /// Writes who came or went; what cannot be written is kept for the next time.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn keep(&self, flips: &mut Flips) -> Result<(), Error> {
        let Some(state) = self.state() else { return Ok(()) };
        let new = state.take_flips().into_iter().map(|(user_nr, is_there, at_ms)| (user_nr, (is_there, at_ms)));
        flips.0.extend(new);
        if flips.0.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = flips.0.iter().map(|(user_nr, (is_there, at_ms))| (*user_nr, *is_there, *at_ms)).collect();
        self.storage.upsert_there(&rows).await?;
        flips.0.clear();
        Ok(())
    }

    /// What is kept of a user of whom the state knows nothing.
    async fn remembered(&self, user_nr: UserNr) -> Result<Remembered, Error> {
        let mut before = Remembered::default();
        if let Some(row) = self.storage.get_presence(user_nr).await? {
            (before.says.status_msg, before.last_active_ms) = (row.status_msg, row.last_active_ms);
        }
        for (_, field, value) in self.storage.list_profiles(&[user_nr]).await? {
            add_field(&mut before, &field, &value);
        }
        Ok(before)
    }
}

impl std::fmt::Debug for Presences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presences").field("state", &self.state).finish_non_exhaustive()
    }
}

fn add_field(before: &mut Remembered, field: &str, value: &str) {
    let value = || serde_json::from_str::<String>(value).ok().filter(|text| !text.is_empty());
    match field {
        "displayname" => before.says.display_name = value(),
        "avatar_url" => before.says.avatar_url = value(),
        _ => {}
    }
}
