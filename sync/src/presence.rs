//! Whose presence somebody is shown, and when they are woken for it. Client-Server API, "Presence".

use std::{collections::HashSet, time::Duration};

use accounts::Requester;
use event_bus::{Presence, UserPresence};
use model::{RoomNr, UserNr};
use rooms::{Flips, Presences};
use ruma::UserId;
use tokio::time::{MissedTickBehavior, interval};

use crate::{Error, Sync, UserRooms};

/// How often what has had its time ends, and what is to be kept is written.
const TICK: Duration = Duration::from_secs(1);
/// The pause between two looks at who came, went or moved: what happens meanwhile wakes its readers together.
const PAUSE: Duration = Duration::from_millis(200);
/// Of up to so many users whose rooms are not in memory, the rooms are read one by one.
const ONE_BY_ONE_MAX: usize = 200;

impl Sync {
    /// How users are.
    #[must_use]
    pub fn presences(&self) -> &Presences {
        &self.0.presences
    }

    /// Who is there, unless it is switched off.
    #[must_use]
    pub fn presence(&self) -> Option<&Presence> {
        self.0.presences.state()
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
        Ok(self.presences().get(user_nr).await?)
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
    let presences = sync.presences();
    let mut flips = Flips::default();
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
            match presences.restore().await {
                Ok(()) => life = presence.incarnation(),
                Err(error) => tracing::warn!(%error, "who was there could not be read; it is tried again in a second"),
            }
        }
        presence.tick();
        let now_ms = sync.0.storage.clock().now_ms();
        sync.0.presence_events.sweep(now_ms);
        sync.0.waiters.wake_for_late_presence(now_ms);
        if let Err(error) = presences.keep(&mut flips).await {
            tracing::warn!(%error, "who is there could not be kept; it is tried again in a second");
        }
    }
    // Those who come back after a restart find who was there.
    if let Err(error) = presences.keep(&mut flips).await {
        tracing::warn!(%error, "who is there could not be kept");
    }
}
