//! Names and pictures in member events. Client-Server API, "Profiles": "Events on Change of Profile Information".

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use model::{Membership, Position, UserNr};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, UserId, events::TimelineEventType};
use serde_json::json;
use storage::{Item, Published};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, warn};

use crate::{Draft, Error, Rooms, create::object};

/// Rooms whose member event is written before a change of profile is answered.
const ROOMS_AT_ONCE: usize = 20;
/// Most users whose other rooms are written at the same time.
const USERS_AT_ONCE: usize = 16;
/// Most changes of profiles that are taken up at once.
const CHANGES_AT_ONCE: u32 = 100;
/// The name under which the position of what rooms have followed is stored.
const CONSUMER: &str = "profiles";
/// How long a process that does not answer keeps the work from the others, in milliseconds.
const LEASE_MS: i64 = 10_000;
/// How often the lease is renewed in the midst of the work.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How often each process looks for work that others left behind.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a change that fails is tried before those behind it go on.
const TRIES_MAX: u32 = 30;

/// Where a follower stands.
#[derive(Default)]
struct Following {
    /// The stored position, while the work is ours.
    leased: Option<Position>,
    /// How often the first of the changes failed.
    tries: u32,
}

/// How often a member event is written anew because the profile changed meanwhile.
const CHANGES_FOLLOWED_MAX: usize = 10;

/// What member events show of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberProfile {
    display_name: Option<String>,
    avatar_url: Option<String>,
}

impl MemberProfile {
    /// Puts name and picture into the content of a member event.
    pub(crate) fn add_to(&self, content: &mut CanonicalJsonObject) {
        for (key, value) in [("displayname", &self.display_name), ("avatar_url", &self.avatar_url)] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                content.insert(key.to_owned(), CanonicalJsonValue::String(value.clone()));
            }
        }
    }
}

impl Rooms {
    /// What member events show of users of ours, in one query. Others are left out.
    pub(crate) async fn member_profiles(&self, users: &[UserNr]) -> Result<HashMap<UserNr, MemberProfile>, Error> {
        let mut profiles: HashMap<UserNr, MemberProfile> = HashMap::new();
        for (user_nr, field, value) in self.storage().list_profiles(users).await? {
            let profile = profiles.entry(user_nr).or_default();
            let value = serde_json::from_str(&value).ok();
            match field.as_str() {
                "displayname" => profile.display_name = value,
                "avatar_url" => profile.avatar_url = value,
                _ => {}
            }
        }
        Ok(profiles)
    }

    /// Writes a user's name and picture into the member events of the first 20 rooms that they are joined to.
    ///
    /// For whoever changes a profile, before the answer. The other rooms follow by [`Rooms::follow_profiles`].
    ///
    /// # Errors
    ///
    /// When the database fails. A room that refuses the event is passed over.
    pub async fn profile_changed(&self, user_nr: UserNr, user_id: &UserId) -> Result<(), Error> {
        self.update_member_events(user_nr, user_id, ROOMS_AT_ONCE).await
    }

    /// Follows the changes of profiles into all rooms, until `stop` ends. Run it as one task of each process.
    ///
    /// Changes wait in the database until all rooms have followed; one process works at a time, the others look after it.
    /// When it dies in the midst of the work, another begins again at the stored position: a room that has followed already
    /// gets no second event.
    pub async fn follow_profiles(&self, stop: impl Future<Output = ()>) {
        let mut stream = self.storage().subscribe();
        let mut stop = pin!(stop);
        // What other processes left behind, and what failed.
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut following = Following::default();
        loop {
            let followed = tokio::select! {
                () = &mut stop => break,
                followed = self.follow_changes(&mut following) => followed,
            };
            match followed {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => warn!(%error, "changes of profiles did not reach the rooms; it is tried again"),
            }
            tokio::select! {
                () = &mut stop => break,
                has_more = next_change(&mut stream) => if !has_more { break },
                _ = look.tick() => {}
            }
        }
        if let Some(position) = following.leased {
            // Not done to the end: the next one need not wait until our time is over.
            let _ = self.storage().advance_consumer(CONSUMER, position).await;
        }
    }

    /// Brings some of the waiting changes into the rooms; tells whether there may be more to do at once.
    async fn follow_changes(&self, following: &mut Following) -> Result<bool, Error> {
        let storage = self.storage();
        if storage.list_profile_changes(Position(0), Position(i64::MAX), 1).await?.is_empty() {
            return Ok(false);
        }
        let Some(after) = storage.lease_consumer(CONSUMER, LEASE_MS).await? else { return Ok(false) };
        following.leased = Some(after);
        let upto = storage.newest_durable().await?;
        let changes = storage.list_profile_changes(after, upto, CHANGES_AT_ONCE).await?;
        let users: BTreeSet<UserNr> = changes.iter().map(|(_, user_nr)| *user_nr).collect();
        let failed = self.update_all(users).await?;
        let done = changes.iter().take_while(|(_, user_nr)| !failed.contains(user_nr)).last();
        let mut done = done.map_or(after, |(position, _)| *position);
        following.tries = if failed.is_empty() || done > after { 0 } else { following.tries + 1 };
        if following.tries >= TRIES_MAX {
            // Others must not wait for ever behind one whose rooms cannot be written.
            done = changes.first().map_or(after, |(position, _)| *position);
            following.tries = 0;
            warn!("a profile did not reach all rooms, and is given up");
        }
        if storage.advance_consumer(CONSUMER, done).await? {
            storage.delete_profile_changes(done).await?;
        }
        following.leased = None;
        Ok(failed.is_empty() && changes.len() == CHANGES_AT_ONCE as usize)
    }

    /// Brings the profiles of users into all their rooms, some at the same time, and keeps the lease meanwhile. Gives those who failed.
    async fn update_all(&self, users: BTreeSet<UserNr>) -> Result<BTreeSet<UserNr>, Error> {
        let mut failed = BTreeSet::new();
        let mut waiting = users.into_iter();
        let mut tasks = JoinSet::new();
        let mut renew = interval(RENEW_EVERY);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        renew.reset();
        loop {
            while tasks.len() < USERS_AT_ONCE
                && let Some(user_nr) = waiting.next()
            {
                let rooms = self.clone();
                tasks.spawn(async move { (user_nr, rooms.update_all_rooms(user_nr).await) });
            }
            tokio::select! {
                done = tasks.join_next() => match done {
                    Some(Ok((_, Ok(())))) => {}
                    Some(Ok((user_nr, Err(error)))) => {
                        warn!(%error, "a profile did not reach all rooms; it is tried again");
                        failed.insert(user_nr);
                    }
                    Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                    None => return Ok(failed),
                },
                // When another has it by now, both do the same, which does no harm.
                _ = renew.tick() => drop(self.storage().lease_consumer(CONSUMER, LEASE_MS).await?),
            }
        }
    }

    async fn update_all_rooms(&self, user_nr: UserNr) -> Result<(), Error> {
        match self.storage().user_ids(&[user_nr]).await?.remove(&user_nr) {
            Some(user_id) => self.update_member_events(user_nr, &user_id, usize::MAX).await,
            None => Ok(()),
        }
    }

    async fn update_member_events(&self, user_nr: UserNr, user_id: &UserId, rooms_max: usize) -> Result<(), Error> {
        if !self.servers().has_user(user_id) {
            return Ok(());
        }
        let mut content = self.joined_content(user_nr).await?;
        let memberships = self.storage().list_rooms_of_user(user_nr).await?;
        let joined = memberships.into_iter().filter(|row| row.membership == Membership::Join);
        let joined: Vec<_> = joined.take(rooms_max).map(|row| row.room_nr).collect();
        let rooms = self.storage().get_rooms(&joined).await?;
        for room_nr in joined {
            let Some(room) = rooms.get(&room_nr) else { continue };
            for _ in 0..CHANGES_FOLLOWED_MAX {
                // Built only if it says something new, and if the user has not left meanwhile.
                let draft = Draft::new(user_id.to_owned(), user_nr, TimelineEventType::RoomMember, content.clone())
                    .with_state_key(user_id.as_str())
                    .while_joined();
                match self.submit(room, draft).await {
                    Err(error @ (Error::Storage(_) | Error::Busy)) => return Err(error),
                    Err(error) => debug!(room.id = %room.id, %error, "a room refused a change of profile"),
                    Ok(_) => {}
                }
                // The profile may have changed while this was written, and whoever follows that change may have been here before.
                let now = self.joined_content(user_nr).await?;
                if now == content {
                    break;
                }
                content = now;
            }
        }
        Ok(())
    }

    /// The content of the member event of a joined user, with the profile of now.
    async fn joined_content(&self, user_nr: UserNr) -> Result<CanonicalJsonObject, Error> {
        let mut content = object(json!({"membership": Membership::Join.as_str()}))?;
        self.member_profiles(&[user_nr]).await?.remove(&user_nr).unwrap_or_default().add_to(&mut content);
        Ok(content)
    }

    /// The numbers of users, for one look at their profiles.
    pub(crate) async fn user_nrs(&self, users: &[&UserId]) -> Result<HashMap<OwnedUserId, UserNr>, Error> {
        let mut numbers = HashMap::with_capacity(users.len());
        for user_id in users {
            if let Some(user_nr) = self.storage().find_user_nr(user_id).await? {
                numbers.insert((*user_id).to_owned(), user_nr);
            }
        }
        Ok(numbers)
    }
}

/// Waits until this process commits a change of a profile, or may have; `false` when it will never again.
async fn next_change(stream: &mut Receiver<Arc<Published>>) -> bool {
    loop {
        match stream.recv().await {
            Ok(published) if published.items.iter().any(|(_, item)| matches!(item, Item::Profile(_))) => return true,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return true,
            Err(RecvError::Closed) => return false,
        }
    }
}
