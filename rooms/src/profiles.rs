//! Names and pictures in member events. Client-Server API, "Profiles": "Events on Change of Profile Information".

use std::collections::HashMap;

use model::UserNr;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, UserId};
use storage::Storage;

use crate::{Draft, Error, Rooms};

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

/// What member events show of users of ours, in one query. Others are left out.
async fn member_profiles(storage: &Storage, users: &[UserNr]) -> Result<HashMap<UserNr, MemberProfile>, Error> {
    let mut profiles: HashMap<UserNr, MemberProfile> = HashMap::new();
    for (user_nr, field, value) in storage.list_profiles(users).await? {
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

/// A member event with name and picture of a user of ours as they are now.
pub(crate) async fn with_profile_of(storage: &Storage, user_nr: UserNr, draft: &Draft) -> Result<Draft, Error> {
    let mut draft = draft.clone();
    if let Some(profile) = member_profiles(storage, &[user_nr]).await?.get(&user_nr) {
        profile.add_to(&mut draft.content);
    }
    Ok(draft)
}

impl Rooms {
    /// What member events show of users of ours, in one query. Others are left out.
    pub(crate) async fn member_profiles(&self, users: &[UserNr]) -> Result<HashMap<UserNr, MemberProfile>, Error> {
        member_profiles(self.storage(), users).await
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
