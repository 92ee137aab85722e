//! Profiles of users of other servers, which are asked for and kept for some minutes. Server-Server API, "GET /query/profile".

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moka::{Expiry, future::Cache};
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use serde_json::{Map, Value};

use crate::{Accounts, Error, RemoteError, profiles::PROFILE_BYTES_MAX};

/// How long a profile is kept.
const KEPT: Duration = Duration::from_secs(5 * 60);
/// How long a server that gave no answer is not asked again.
const FAILURE_KEPT: Duration = Duration::from_secs(60);
/// Most bytes of profiles that are kept.
const KEPT_BYTES_MAX: u64 = 16 << 20;

type Answer = Result<Option<Arc<Map<String, Value>>>, RemoteError>;

/// What servers answered, by whom they were asked and about whom.
pub(crate) struct RemoteProfiles(Cache<(OwnedServerName, OwnedUserId), Answer>);

struct Kept;

impl<K> Expiry<K, Answer> for Kept {
    fn expire_after_create(&self, _: &K, answer: &Answer, _: Instant) -> Option<Duration> {
        Some(if answer.is_ok() { KEPT } else { FAILURE_KEPT })
    }
}

impl RemoteProfiles {
    pub(crate) fn new() -> Self {
        let weigh = |_: &_, answer: &Answer| {
            let bytes = match answer {
                Ok(Some(profile)) => bytes_of(profile),
                Ok(None) | Err(_) => 0,
            };
            u32::try_from(300 + bytes).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(KEPT_BYTES_MAX).weigher(weigh).expire_after(Kept).build())
    }
}

impl Accounts {
    /// All fields of any user: of ours as they are, of users of other servers as those said within the last minutes.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such user, or no longer; [`Error::Remote`] when another server gives no answer.
    pub async fn profile_of_anyone(
        &self,
        as_server: &ServerName,
        user_id: &UserId,
    ) -> Result<Map<String, Value>, Error> {
        if self.0.servers.has_user(user_id) {
            return self.profile(user_id).await;
        }
        let profile = self.remote_profile(as_server, user_id).await?;
        Ok(profile.as_ref().clone())
    }

    /// One field of any user.
    ///
    /// # Errors
    ///
    /// As [`Accounts::profile_of_anyone`]; [`Error::NotFound`] also when there is no such field.
    pub async fn profile_field_of_anyone(
        &self,
        as_server: &ServerName,
        user_id: &UserId,
        field: &str,
    ) -> Result<Value, Error> {
        if self.0.servers.has_user(user_id) {
            return self.profile_field(user_id, field).await;
        }
        let profile = self.remote_profile(as_server, user_id).await?;
        profile.get(field).cloned().ok_or(Error::NotFound("profile field"))
    }

    /// The whole profile, whatever field of it is wanted: who looks at one looks at the others next.
    async fn remote_profile(&self, as_server: &ServerName, user_id: &UserId) -> Result<Arc<Map<String, Value>>, Error> {
        let ask = async {
            let profile = self.0.remote.profile(as_server, user_id).await?;
            Ok(profile.map(|profile| Arc::new(bounded(profile))))
        };
        let answer = self.0.remote_profiles.0.get_with((as_server.to_owned(), user_id.to_owned()), ask).await;
        answer?.ok_or(Error::NotFound("user"))
    }
}

/// What of a profile is one; where it is larger than profiles are, what everybody shows of it.
fn bounded(mut profile: Map<String, Value>) -> Map<String, Value> {
    if bytes_of(&profile) > PROFILE_BYTES_MAX {
        profile
            .retain(|field, value| matches!(&**field, "displayname" | "avatar_url") && bytes_of_value(value) <= 1_100);
    }
    // Clients rely on what these are.
    profile.retain(|field, value| !matches!(&**field, "displayname" | "avatar_url") || value.is_string());
    profile
}

fn bytes_of(profile: &Map<String, Value>) -> usize {
    profile.iter().map(|(field, value)| field.len() + bytes_of_value(value) + 10).sum()
}

fn bytes_of_value(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(values) => values.iter().map(|value| bytes_of_value(value) + 1).sum(),
        Value::Object(fields) => bytes_of(fields),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_profile_that_is_too_large_name_and_picture_are_left() {
        let of = |profile: Value| {
            let Value::Object(profile) = profile else { unreachable!("an object") };
            Value::Object(bounded(profile))
        };
        let fine = json!({"displayname": "A", "m.tz": "Europe/Berlin", "org.example": {"a": [1]}});
        assert_eq!(of(fine.clone()), fine);
        assert_eq!(of(json!({"displayname": 1, "avatar_url": null, "x": null})), json!({"x": null}));
        let large = json!({"displayname": "A", "avatar_url": "mxc://a.test/b", "x": "x".repeat(70_000)});
        assert_eq!(of(large), json!({"displayname": "A", "avatar_url": "mxc://a.test/b"}));
        let long = json!({"displayname": "A".repeat(70_000), "avatar_url": "mxc://a.test/b"});
        assert_eq!(of(long), json!({"avatar_url": "mxc://a.test/b"}));
    }
}
