//! Whose presence somebody is shown, and when they are woken for it. Client-Server API, "Presence".

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use accounts::Requester;
use event_bus::{Availability, Presence, Remembered, Syncing, UserPresence};
use model::{RoomNr, UserNr};
use ruma::UserId;
use tokio::time::{MissedTickBehavior, interval};

use crate::{Error, Sync, UserRooms};

/// Longest status message, in bytes.
const STATUS_BYTES_MAX: usize = 1_024;
/// How often what has had its time ends, and what is to be kept is written.
const TICK: Duration = Duration::from_secs(1);
/// The pause between two looks at who came, went or moved: what happens meanwhile wakes its readers together.
const PAUSE: Duration = Duration::from_millis(200);
/// Of up to so many users whose rooms are not in memory, the rooms are read one by one.
const ONE_BY_ONE_MAX: usize = 200;
/// Most users that are brought back with one read after the state was lost.
const RESTORED_AT_ONCE: u32 = 500;

impl Sync {
    /// Who is there, unless it is switched off.
    #[must_use]
    pub fn presence(&self) -> Option<&Presence> {
        self.0.presence.as_ref()
    }

    /// Counts the requester's device as one that syncs, until the end of what is returned. Client-Server API, "GET /sync",
    /// `set_presence`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn syncs(&self, requester: &Requester, availability: Availability) -> Result<Option<Syncing>, Error> {
        let Some(presence) = self.presence().filter(|_| availability != Availability::Offline) else { return Ok(None) };
        let user_nr = requester.user_nr;
        let before = if presence.knows(user_nr) { None } else { Some(self.remembered(user_nr).await?) };
        let is_idle = availability == Availability::Unavailable;
        Ok(Some(presence.syncs(user_nr, requester.device(), is_idle, before)))
    }

    /// The requester did something: sent an event, typed, read. Client-Server API, "Last active ago".
    pub fn active(&self, requester: &Requester) {
        if let Some(presence) = self.presence() {
            presence.active(requester.user_nr, requester.device());
        }
    }

    /// Client-Server API, "PUT /presence/{userId}/status".
    ///
    /// # Errors
    ///
    /// [`Error::StatusTooLong`].
    pub async fn set_presence(
        &self,
        requester: &Requester,
        availability: Availability,
        status_msg: Option<String>,
    ) -> Result<(), Error> {
        // Clients say this with each change of focus: where nobody is shown it is no mistake of theirs.
        let Some(presence) = self.presence() else { return Ok(()) };
        let status_msg = status_msg.filter(|text| !text.is_empty());
        if status_msg.as_ref().is_some_and(|text| text.len() > STATUS_BYTES_MAX) {
            return Err(Error::StatusTooLong(STATUS_BYTES_MAX));
        }
        let user_nr = requester.user_nr;
        let before = if presence.knows(user_nr) { None } else { Some(self.remembered(user_nr).await?) };
        let said = match &before {
            Some(before) => before.says.status_msg.clone(),
            None => presence.get(user_nr).and_then(|known| known.shown.says.status_msg),
        };
        if status_msg != said {
            self.0.storage.upsert_status_msg(user_nr, status_msg.as_deref()).await?;
        }
        presence.set(user_nr, requester.device(), availability, status_msg, before);
        Ok(())
    }

    /// Client-Server API, "GET /presence/{userId}/status".
    ///
    /// # Errors
    ///
    /// [`Error::PresenceHidden`] when the requester shares no room with the user, whether there is such a user or not.
    pub async fn get_presence(&self, requester: &Requester, user_id: &UserId) -> Result<UserPresence, Error> {
        let user_nr = self.0.storage.find_user_nr(user_id).await?.ok_or(Error::PresenceHidden)?;
        let rooms = self.user_rooms(requester.user_nr).await?;
        if user_nr != requester.user_nr && !self.shares_room(&rooms, user_nr).await? {
            return Err(Error::PresenceHidden);
        }
        let Some(presence) = self.presence() else { return Ok(UserPresence::default()) };
        match presence.get(user_nr) {
            Some(known) => Ok(known),
            None => Ok(presence.remembered(self.remembered(user_nr).await?)),
        }
    }

    /// A user's name or picture changed. Client-Server API, "Events on Change of Profile Information".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn profile_changed(&self, user_nr: UserNr) -> Result<(), Error> {
        if let Some(presence) = self.presence().filter(|presence| presence.knows(user_nr)) {
            let says = self.remembered(user_nr).await?.says;
            presence.rename(user_nr, says.display_name, says.avatar_url);
        }
        Ok(())
    }

    /// Which of these users, each with the position of a change, somebody shares a room with, or is; by the positions.
    pub(crate) async fn who_is_seen(
        &self,
        user_nr: UserNr,
        rooms: &UserRooms,
        changes: Vec<(u64, UserNr)>,
    ) -> Result<Vec<(u64, UserNr)>, Error> {
        let (mut seen, mut unknown) = (Vec::with_capacity(changes.len()), Vec::new());
        for change @ (_, other) in changes {
            // Those whose presence changed were looked up when their readers were woken.
            match self.0.user_rooms.get(&other) {
                _ if other == user_nr => seen.push(change),
                Some(others) if rooms.share_any(&others) => seen.push(change),
                Some(_) => {}
                None => unknown.push(change),
            }
        }
        if unknown.len() > ONE_BY_ONE_MAX {
            let neighbors: HashSet<UserNr> = self.0.storage.list_neighbors(user_nr).await?.into_iter().collect();
            seen.extend(unknown.into_iter().filter(|(_, other)| neighbors.contains(other)));
        } else {
            for change in unknown {
                if self.shares_room(rooms, change.1).await? {
                    seen.push(change);
                }
            }
        }
        seen.sort_unstable();
        Ok(seen)
    }

    async fn shares_room(&self, rooms: &UserRooms, other: UserNr) -> Result<bool, Error> {
        if rooms.joined.is_empty() {
            return Ok(false);
        }
        Ok(rooms.share_any(&*self.user_rooms(other).await?))
    }

    /// What is kept of a user of whom the state knows nothing.
    async fn remembered(&self, user_nr: UserNr) -> Result<Remembered, Error> {
        let storage = &self.0.storage;
        let mut before = Remembered::default();
        if let Some(row) = storage.get_presence(user_nr).await? {
            (before.says.status_msg, before.last_active_ms) = (row.status_msg, row.last_active_ms);
        }
        for (field, value) in storage.list_profile(user_nr).await? {
            add_field(&mut before, &field, &value);
        }
        Ok(before)
    }

    /// Brings back those who were there when the state was lost.
    async fn restore(&self, presence: &Presence) -> Result<(), Error> {
        let mut after = UserNr(0);
        loop {
            let rows = self.0.storage.list_there(after, RESTORED_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.user_nr;
            let users: Vec<UserNr> = rows.iter().map(|row| row.user_nr).collect();
            let fields = self.0.storage.list_profiles(&users).await?;
            let users = rows.into_iter().map(|row| {
                let mut before = Remembered { last_active_ms: row.last_active_ms, ..Remembered::default() };
                before.says.status_msg = row.status_msg;
                for (_, field, value) in fields.iter().filter(|(user_nr, ..)| *user_nr == row.user_nr) {
                    add_field(&mut before, field, value);
                }
                (row.user_nr, before)
            });
            presence.restore(users.collect()).await;
        }
    }

    /// Writes who came or went; what cannot be written is kept for the next time.
    async fn keep_flips(&self, presence: &Presence, flips: &mut BTreeMap<UserNr, (bool, i64)>) {
        flips.extend(presence.take_flips().into_iter().map(|(user_nr, is_there, at_ms)| (user_nr, (is_there, at_ms))));
        if flips.is_empty() {
            return;
        }
        let rows: Vec<_> = flips.iter().map(|(user_nr, (is_there, at_ms))| (*user_nr, *is_there, *at_ms)).collect();
        match self.0.storage.upsert_there(&rows).await {
            Ok(()) => flips.clear(),
            Err(error) => tracing::warn!(%error, "who is there could not be kept; it is tried again in a second"),
        }
    }

    /// Wakes those who share a room with somebody whose presence changed.
    async fn wake_for_presence(&self, users: impl Iterator<Item = UserNr>) {
        let (mut rooms, mut own): (HashSet<RoomNr>, Vec<UserNr>) = Default::default();
        for user_nr in users {
            own.push(user_nr);
            match self.user_rooms(user_nr).await {
                Ok(their) => rooms.extend(their.joined.iter().copied()),
                Err(error) => {
                    tracing::warn!(%error, "who sees a change of presence is not known; they learn of it later")
                }
            }
        }
        self.0.waiters.presence_changed(own, rooms, self.0.storage.clock().now_ms());
    }
}

/// Keeps time for who is there, and wakes those who are to be told, until the server stops.
pub(crate) async fn follow(sync: Sync, presence: Presence) {
    let stopping = sync.0.stopping.clone();
    let mut changed = presence.watch();
    let mut seen = presence.position();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut life = None;
    let mut flips = BTreeMap::new();
    loop {
        let has_changed = tokio::select! {
            () = stopping.cancelled() => break,
            Ok(()) = changed.changed() => true,
            _ = tick.tick() => false,
        };
        if has_changed {
            let news = presence.news(seen);
            seen = news.position;
            sync.wake_for_presence(news.changes.into_iter().map(|(_, user_nr)| user_nr)).await;
            stopping.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            continue;
        }
        if presence.incarnation() != life {
            match sync.restore(&presence).await {
                Ok(()) => life = presence.incarnation(),
                Err(error) => tracing::warn!(%error, "who was there could not be read; it is tried again in a second"),
            }
        }
        presence.tick();
        let now_ms = sync.0.storage.clock().now_ms();
        sync.0.presence_events.sweep(now_ms);
        sync.0.waiters.wake_for_late_presence(now_ms);
        sync.keep_flips(&presence, &mut flips).await;
    }
    // Those who come back after a restart find who was there.
    sync.keep_flips(&presence, &mut flips).await;
}

fn add_field(before: &mut Remembered, field: &str, value: &str) {
    let value = || serde_json::from_str::<String>(value).ok().filter(|text| !text.is_empty());
    match field {
        "displayname" => before.says.display_name = value(),
        "avatar_url" => before.says.avatar_url = value(),
        _ => {}
    }
}
