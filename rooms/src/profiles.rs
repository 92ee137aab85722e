//! Names and pictures in member events. Client-Server API, "Profiles": "Events on Change of Profile Information".

use std::{collections::HashMap, future::Future, pin::pin, sync::Arc};

use model::{Membership, UserNr};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, UserId, events::TimelineEventType};
use serde_json::json;
use storage::{Item, Published};
use tokio::{
    sync::{Semaphore, broadcast::error::RecvError},
    task::JoinSet,
};
use tracing::{debug, warn};

use crate::{Draft, Error, Rooms, create::object};

/// Rooms whose member event is written before a change of profile is answered.
const ROOMS_AT_ONCE: usize = 20;
/// Most users whose other rooms are written at the same time.
const USERS_AT_ONCE: usize = 16;

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

    /// Follows the changes of profiles into all rooms, until `stop` ends. Run it as one task of the process.
    pub async fn follow_profiles(&self, stop: impl Future<Output = ()>) {
        let mut stream = self.storage().subscribe();
        let mut stop = pin!(stop);
        let turns = Arc::new(Semaphore::new(USERS_AT_ONCE));
        let mut tasks = JoinSet::new();
        loop {
            let published = tokio::select! {
                () = &mut stop => break,
                Some(_) = tasks.join_next() => continue,
                published = stream.recv() => published,
            };
            match published {
                Ok(published) => {
                    for user_nr in changed_profiles(&published) {
                        let Ok(turn) = turns.clone().acquire_owned().await else { return };
                        let rooms = self.clone();
                        tasks.spawn(async move {
                            rooms.update_all(user_nr).await;
                            drop(turn);
                        });
                    }
                }
                Err(RecvError::Lagged(groups)) => warn!(groups, "changes of profiles were missed in rooms"),
                Err(RecvError::Closed) => break,
            }
        }
        tasks.shutdown().await;
    }

    async fn update_all(&self, user_nr: UserNr) {
        let result = async {
            match self.storage().user_ids(&[user_nr]).await?.remove(&user_nr) {
                Some(user_id) => self.update_member_events(user_nr, &user_id, usize::MAX).await,
                None => Ok(()),
            }
        };
        if let Err(error) = result.await {
            warn!(%error, "a profile did not reach all rooms");
        }
    }

    async fn update_member_events(&self, user_nr: UserNr, user_id: &UserId, rooms_max: usize) -> Result<(), Error> {
        if !self.servers().has_user(user_id) {
            return Ok(());
        }
        let mut content = object(json!({"membership": Membership::Join.as_str()}))?;
        self.member_profiles(&[user_nr]).await?.remove(&user_nr).unwrap_or_default().add_to(&mut content);
        let memberships = self.storage().list_rooms_of_user(user_nr).await?;
        let joined = memberships.into_iter().filter(|row| row.membership == Membership::Join);
        let joined: Vec<_> = joined.take(rooms_max).map(|row| row.room_nr).collect();
        let rooms = self.storage().get_rooms(&joined).await?;
        for room_nr in joined {
            let Some(room) = rooms.get(&room_nr) else { continue };
            // Built only if it says something new, and if the user has not left meanwhile.
            let draft = Draft::new(user_id.to_owned(), user_nr, TimelineEventType::RoomMember, content.clone())
                .with_state_key(user_id.as_str())
                .while_joined();
            match self.submit(&Arc::new(room.clone()), draft).await {
                Err(error @ (Error::Storage(_) | Error::Busy)) => return Err(error),
                Err(error) => debug!(room.id = %room.id, %error, "a room refused a change of profile"),
                Ok(_) => {}
            }
        }
        Ok(())
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

fn changed_profiles(published: &Published) -> Vec<UserNr> {
    let mut users: Vec<UserNr> = published
        .items
        .iter()
        .filter_map(|(_, item)| match item {
            Item::Profile(user_nr) => Some(*user_nr),
            _ => None,
        })
        .collect();
    users.sort_unstable();
    users.dedup();
    users
}
