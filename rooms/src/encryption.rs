//! Rooms that are encrypted from their first event on. Client-Server API, "m.room.encryption".

use serde_json::{json, value::to_raw_value};

use crate::{Error, NewRoomRequest, Rooms, create::object_of};

const ENCRYPTION: &str = "m.room.encryption";
/// Client-Server API, "m.megolm.v1.aes-sha2".
const ALGORITHM: &str = "m.megolm.v1.aes-sha2";

/// Which new rooms the server makes encrypted that whoever makes them does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncryptionPolicy {
    /// None: clients decide for themselves.
    #[default]
    Off,
    /// Direct chats: those whose invitations say so.
    DirectChats,
    /// All but spaces, in which nobody writes.
    All,
}

impl EncryptionPolicy {
    fn applies_to(self, request: &NewRoomRequest) -> Result<bool, Error> {
        Ok(match self {
            Self::Off => false,
            Self::DirectChats => request.is_direct,
            Self::All => !request.is_space()?,
        })
    }
}

impl NewRoomRequest {
    /// The same, encrypted from the start: with `m.room.encryption` in its initial state, unless that has one of its own.
    #[must_use]
    pub fn encrypted(mut self) -> Self {
        let has_own = self.initial_state.iter().any(|(event_type, key, _)| event_type == ENCRYPTION && key.is_empty());
        if !has_own {
            let content = to_raw_value(&json!({"algorithm": ALGORITHM})).expect("an object with a text serializes");
            self.initial_state.push((ENCRYPTION.to_owned(), String::new(), content));
        }
        self
    }

    fn is_space(&self) -> Result<bool, Error> {
        let Some(content) = self.creation_content.as_deref() else { return Ok(false) };
        Ok(object_of(content)?.get("type").and_then(|kind| kind.as_str()) == Some("m.space"))
    }
}

impl Rooms {
    /// What a client asks for, encrypted where the policy of this server says so.
    ///
    /// # Errors
    ///
    /// [`Error::BadEvent`] when the creation content cannot be read.
    pub fn with_encryption_policy(&self, request: NewRoomRequest) -> Result<NewRoomRequest, Error> {
        let applies = self.0.options.encryption.applies_to(&request)?;
        Ok(if applies { request.encrypted() } else { request })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::Preset;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn a_policy_says_which_rooms_are_encrypted() {
        let room = NewRoomRequest::new(Preset::PrivateChat);
        let direct = NewRoomRequest { is_direct: true, ..room.clone() };
        let space = NewRoomRequest { creation_content: Some(raw(r#"{"type":"m.space"}"#)), ..room.clone() };
        for (policy, expected) in [
            (EncryptionPolicy::Off, [false, false, false]),
            (EncryptionPolicy::DirectChats, [false, true, false]),
            (EncryptionPolicy::All, [true, true, false]),
        ] {
            assert_eq!([&room, &direct, &space].map(|room| policy.applies_to(room).unwrap()), expected, "{policy:?}");
        }
    }

    #[test]
    fn a_room_that_says_how_it_is_encrypted_keeps_that() {
        let own = raw(r#"{"algorithm":"m.megolm.v1.aes-sha2","rotation_period_msgs":5}"#);
        let mut room = NewRoomRequest::new(Preset::PrivateChat);
        room.initial_state.push((ENCRYPTION.to_owned(), String::new(), own.clone()));
        let room = room.encrypted();
        assert_eq!(room.initial_state.len(), 1);
        assert_eq!(room.initial_state[0].2.get(), own.get());
        assert_eq!(NewRoomRequest::new(Preset::PrivateChat).encrypted().initial_state.len(), 1);
    }
}
