//! Profiles, with fields of any name. Client-Server API, "Profiles".

use model::{UserNr, check_depth};
use ruma::UserId;
use serde_json::{Map, Value};

use crate::{Accounts, Error};

/// Largest profile, in bytes of canonical JSON: "under 64 KiB". Client-Server API, "PUT /profile/{userId}/{keyName}".
pub(crate) const PROFILE_BYTES_MAX: usize = 65_535;
/// Longest name of a field, in bytes.
const FIELD_BYTES_MAX: usize = 255;
/// Longest text and emoji of a status, in bytes. MSC4426, "`text` and `emoji` field grammar".
const STATUS_TEXT_BYTES_MAX: usize = 256;
const STATUS_EMOJI_BYTES_MAX: usize = 32;

impl Accounts {
    /// All fields of a user of ours.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such user, or no longer.
    pub async fn profile(&self, user_id: &UserId) -> Result<Map<String, Value>, Error> {
        let user_nr = self.active_user(user_id).await?;
        let fields = self.0.storage.list_profile(user_nr).await?;
        Ok(fields.into_iter().filter_map(|(field, value)| Some((field, serde_json::from_str(&value).ok()?))).collect())
    }

    /// One field of a user of ours.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such user or no such field.
    pub async fn profile_field(&self, user_id: &UserId, field: &str) -> Result<Value, Error> {
        let user_nr = self.active_user(user_id).await?;
        let value = self.0.storage.get_profile_field(user_nr, field).await?.ok_or(Error::NotFound("profile field"))?;
        serde_json::from_str(&value).map_err(|_| Error::NotFound("profile field"))
    }

    /// Sets a field, and tells who follows profiles; durable when it returns. An empty name or picture is none: clients take them away
    /// like this.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`], [`Error::KeyTooLarge`], [`Error::ProfileTooLarge`], [`Error::StatusTooLarge`].
    pub async fn set_profile_field(&self, user_nr: UserNr, field: &str, value: &Value) -> Result<(), Error> {
        check_name(field)?;
        check_value(field, value)?;
        if matches!(field, "displayname" | "avatar_url") && value == "" {
            return self.delete_profile_field(user_nr, field).await;
        }
        check_depth(value)?;
        let text = value.to_string();
        if !self.0.storage.upsert_profile_field(user_nr, field, &text, PROFILE_BYTES_MAX).await? {
            return Err(Error::ProfileTooLarge(PROFILE_BYTES_MAX));
        }
        self.follow_up(user_nr).await;
        Ok(())
    }

    /// Deletes a field, if it is there, and tells who follows profiles.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`], [`Error::KeyTooLarge`].
    pub async fn delete_profile_field(&self, user_nr: UserNr, field: &str) -> Result<(), Error> {
        check_name(field)?;
        self.0.storage.delete_profile_field(user_nr, field).await?;
        self.follow_up(user_nr).await;
        Ok(())
    }

    /// The number of a user of ours who has not left for good.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn active_user(&self, user_id: &UserId) -> Result<UserNr, Error> {
        let user = self.0.storage.get_user(user_id).await?.filter(|user| user.deactivated_at_ms.is_none());
        Ok(user.ok_or(Error::NotFound("user"))?.user_nr)
    }
}

/// Names follow the common namespaced identifier grammar. Appendices, "Common Namespaced Identifier Grammar".
fn check_name(field: &str) -> Result<(), Error> {
    if field.len() > FIELD_BYTES_MAX {
        return Err(Error::KeyTooLarge(FIELD_BYTES_MAX));
    }
    let starts = field.bytes().next().is_some_and(|first| first.is_ascii_lowercase());
    let is_legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if !starts || !field.bytes().all(is_legal) {
        let rule = "the name of a profile field starts with a-z and has a-z, 0-9, and . _ -";
        return Err(Error::InvalidParam(rule.to_owned()));
    }
    Ok(())
}

fn check_value(field: &str, value: &Value) -> Result<(), Error> {
    let wrong = |rule: &str| Err(Error::InvalidParam(format!("`{field}` {rule}")));
    match (field, value) {
        ("displayname", Value::String(name)) if name.len() <= 1_024 => Ok(()),
        ("displayname", _) => wrong("is a text of at most 1024 bytes"),
        ("avatar_url", Value::String(url)) if url.is_empty() => Ok(()),
        ("avatar_url", Value::String(url)) if url.len() <= 1_000 && <&ruma::MxcUri>::from(url.as_str()).is_valid() => {
            Ok(())
        }
        ("avatar_url", _) => wrong("is an mxc:// URI"),
        ("m.tz", Value::String(zone)) if !zone.is_empty() && zone.len() <= 255 => Ok(()),
        ("m.tz", _) => wrong("is the name of a time zone"),
        ("m.status" | "org.matrix.msc4426.status", status) => {
            let is_longer = |key: &str, bytes: usize| status[key].as_str().is_some_and(|text| text.len() > bytes);
            let (text, emoji) = (STATUS_TEXT_BYTES_MAX, STATUS_EMOJI_BYTES_MAX);
            let is_too_large = is_longer("text", text) || is_longer("emoji", emoji);
            if is_too_large { Err(Error::StatusTooLarge { text, emoji }) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn field_names_follow_the_grammar() {
        for name in ["displayname", "m.tz", "org.example.language", "a"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "M.tz", ".a", "a b", "1a", "ä"] {
            assert!(matches!(check_name(name), Err(Error::InvalidParam(_))), "{name}");
        }
        assert!(matches!(check_name(&"a".repeat(256)), Err(Error::KeyTooLarge(_))));
    }

    #[test]
    fn the_specified_fields_have_their_types() {
        assert!(check_value("displayname", &json!("Alice")).is_ok());
        assert!(check_value("displayname", &json!(1)).is_err());
        assert!(check_value("avatar_url", &json!("mxc://a.test/abc")).is_ok());
        assert!(check_value("avatar_url", &json!("https://a.test/abc")).is_err());
        assert!(check_value("m.tz", &json!("Europe/Berlin")).is_ok());
        assert!(check_value("m.tz", &json!(null)).is_err());
        assert!(check_value("org.example.x", &json!({"a": [1]})).is_ok());
        assert!(check_value("m.status", &json!("of any kind")).is_ok());
    }
}
