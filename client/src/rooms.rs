//! What the client keeps of a room: who is in it, whether it is encrypted, what it is called.

use std::collections::BTreeMap;

use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Kind, account::MEGOLM, signatures::Object};

/// [`Room`]s by id.
pub(crate) const ROOMS: Kind = Kind("rooms");

/// For how many messages a key is used unless the room says otherwise, and the most whatever it says. Client-Server API, "m.room.encryption".
const ROTATION_MESSAGES: u64 = 100;
const ROTATION_MESSAGES_MAX: u64 = 10_000;
/// How long a key is used at most, and unless the room says less, in milliseconds: a week.
const ROTATION_MS: u64 = 604_800_000;
/// Longest name, topic or other text that is kept, in characters.
const TEXT_MAX: usize = 255;
/// Most who left that are kept.
const LEFT_MAX: usize = 5;
/// Room keys are not made anew more often, whatever the room says: each costs a message to every device.
const ROTATION_MS_MIN: u64 = 60_000;

/// A room, as far as the client knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Room {
    /// Its id.
    pub room_id: OwnedRoomId,
    /// What the user is to it.
    pub membership: Membership,
    /// Who invited the user, while that is what they are.
    pub inviter: Option<OwnedUserId>,
    /// `m.room.name`.
    pub name: Option<String>,
    /// `m.room.topic`.
    pub topic: Option<String>,
    /// `m.room.canonical_alias`.
    pub alias: Option<String>,
    /// How it is encrypted, if it is. Once set it stays: a server that takes it away would read what follows.
    pub encryption: Option<Encryption>,
    /// `m.room.history_visibility`.
    pub history_visibility: String,
    /// Messages that the user should look at, as the server counts them by the user's push rules. Client-Server API, "Receiving notifications".
    #[serde(default)]
    pub unread: u64,
    /// Members of every kind, and a few of those who left, by whom a room may be called.
    pub members: BTreeMap<OwnedUserId, Member>,
}

/// What somebody is to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// A member.
    Join,
    /// May become one.
    Invite,
    /// Would like to become one.
    Knock,
    /// Is none, or not any more.
    Leave,
    /// Must not become one.
    Ban,
}

/// A member of a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What they are to the room.
    pub membership: Membership,
    /// What they are called in it.
    pub display_name: Option<String>,
}

/// `m.room.encryption`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// By what; this client knows `m.megolm.v1.aes-sha2`.
    pub algorithm: String,
    /// A room key is used for so long, in milliseconds.
    pub rotation_period_ms: u64,
    /// A room key is used for so many messages.
    pub rotation_period_msgs: u64,
}

/// What a piece of state did to a room, beside what is in it now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing that anybody else has to know.
    None,
    /// Who gets room keys may have changed.
    Members(OwnedUserId),
    /// All members may get room keys from now on, or not any more.
    Everybody,
}

impl Room {
    pub(crate) fn new(room_id: OwnedRoomId) -> Self {
        Self {
            room_id,
            membership: Membership::Leave,
            inviter: None,
            name: None,
            topic: None,
            alias: None,
            encryption: None,
            // Client-Server API, "m.room.history_visibility": this is what holds where there is none.
            history_visibility: "shared".to_owned(),
            unread: 0,
            members: BTreeMap::new(),
        }
    }

    /// What it is called: by its name, its alias, or its other members. Client-Server API, "Calculating the display name for a room".
    #[must_use]
    pub fn display_name(&self, own: &UserId) -> String {
        if let Some(name) = self.name.as_ref().or(self.alias.as_ref()) {
            return name.clone();
        }
        let name =
            |(id, member): (&OwnedUserId, &Member)| member.display_name.clone().unwrap_or_else(|| id.to_string());
        let others = |keep: fn(&Member) -> bool| -> Vec<String> {
            let others = self.members.iter().filter(|(id, member)| *id != own && keep(member));
            others.map(name).take(5).collect()
        };
        let present = others(|member| matches!(member.membership, Membership::Join | Membership::Invite));
        if !present.is_empty() {
            return present.join(", ");
        }
        match others(|_| true) {
            left if left.is_empty() => "Empty room".to_owned(),
            left => format!("Empty room (was {})", left.join(", ")),
        }
    }

    /// How messages are to be encrypted, if they are.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownAlgorithm`].
    pub(crate) fn encryption(&self) -> Result<Option<&Encryption>, Error> {
        match &self.encryption {
            Some(encryption) if encryption.algorithm != MEGOLM => {
                Err(Error::UnknownAlgorithm(encryption.algorithm.clone()))
            }
            encryption => Ok(encryption.as_ref()),
        }
    }

    /// Whether those who come later may be given the keys. Client-Server API, "Shareable encryption sessions".
    pub(crate) fn is_history_shared(&self) -> bool {
        matches!(self.history_visibility.as_str(), "shared" | "world_readable")
    }

    /// Whose devices get room keys: members, and those who are invited where they will see what is said before they join.
    /// Client-Server API, "Room history visibility".
    pub(crate) fn readers(&self) -> impl Iterator<Item = &OwnedUserId> {
        let with_invited = self.history_visibility != "joined";
        let is_reader = move |member: &Member| match member.membership {
            Membership::Join => true,
            Membership::Invite => with_invited,
            _ => false,
        };
        self.members.iter().filter(move |(_, member)| is_reader(member)).map(|(user_id, _)| user_id)
    }

    /// Takes over a piece of state. What cannot be read changes nothing.
    pub(crate) fn apply(&mut self, event_type: &str, state_key: &str, content: &Object) -> Change {
        let text = |key: &str| {
            let text = content.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
            text.map(|text| text.chars().take(TEXT_MAX).collect::<String>())
        };
        match (event_type, state_key) {
            ("m.room.name", "") => self.name = text("name"),
            ("m.room.topic", "") => self.topic = text("topic"),
            ("m.room.canonical_alias", "") => self.alias = text("alias"),
            ("m.room.history_visibility", "") => {
                self.history_visibility = text("history_visibility").unwrap_or_else(|| "shared".to_owned());
                return Change::Everybody;
            }
            ("m.room.encryption", "") => {
                let Some(algorithm) = text("algorithm") else { return Change::None };
                let number = |key: &str| content.get(key).and_then(Value::as_u64);
                self.encryption = Some(Encryption {
                    algorithm,
                    rotation_period_ms: number("rotation_period_ms")
                        .unwrap_or(ROTATION_MS)
                        .clamp(ROTATION_MS_MIN, ROTATION_MS),
                    rotation_period_msgs: number("rotation_period_msgs")
                        .unwrap_or(ROTATION_MESSAGES)
                        .clamp(1, ROTATION_MESSAGES_MAX),
                });
                return Change::Everybody;
            }
            ("m.room.member", user_id) => {
                let membership = content.get("membership").map(Membership::deserialize);
                let (Some(Ok(membership)), Ok(user_id)) = (membership, UserId::parse(user_id)) else {
                    return Change::None;
                };
                let member = Member { membership, display_name: text("displayname") };
                let before = self.members.insert(user_id.clone(), member);
                let has_left = |member: &Member| member.membership == Membership::Leave;
                // Anybody can come and go under any number of names.
                if membership == Membership::Leave
                    && self.members.values().filter(|member| has_left(member)).count() > LEFT_MAX
                {
                    self.members.remove(&user_id);
                }
                if before.is_none_or(|before| before.membership != membership) {
                    return Change::Members(user_id);
                }
            }
            _ => {}
        }
        Change::None
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};
    use serde_json::json;

    use super::*;

    fn room(state: &[(&str, &str, Value)]) -> Room {
        let mut room = Room::new(room_id!("!room:example.org").to_owned());
        for (event_type, state_key, content) in state {
            room.apply(event_type, state_key, content.as_object().unwrap());
        }
        room
    }

    /// A server that takes the encryption out of a room would read what follows.
    #[test]
    fn an_encrypted_room_stays_encrypted() {
        let room = room(&[
            ("m.room.encryption", "", json!({ "algorithm": MEGOLM })),
            ("m.room.encryption", "", json!({})),
            ("m.room.encryption", "other", json!({ "algorithm": "none" })),
        ]);
        let encryption = room.encryption().unwrap().unwrap();
        assert_eq!((encryption.rotation_period_ms, encryption.rotation_period_msgs), (ROTATION_MS, ROTATION_MESSAGES));
    }

    #[test]
    fn a_room_cannot_have_its_key_used_for_ever() {
        let forever =
            json!({ "algorithm": MEGOLM, "rotation_period_msgs": 1_u64 << 53, "rotation_period_ms": 1_u64 << 53 });
        let room = room(&[("m.room.encryption", "", forever)]);
        let encryption = room.encryption().unwrap().unwrap();
        assert_eq!(
            (encryption.rotation_period_ms, encryption.rotation_period_msgs),
            (ROTATION_MS, ROTATION_MESSAGES_MAX)
        );
    }

    /// All of a room is one value of the store, which is written whenever something happens in it.
    #[test]
    fn those_who_come_and_go_leave_little_behind() {
        let mut room = room(&[]);
        for index in 0..100 {
            let user = format!("@{index}:x");
            for membership in ["join", "leave"] {
                let content = json!({ "membership": membership, "displayname": "x".repeat(60_000) });
                let changed = Change::Members(UserId::parse(&user).unwrap());
                assert_eq!(room.apply("m.room.member", &user, content.as_object().unwrap()), changed);
            }
        }
        assert_eq!(room.members.len(), LEFT_MAX);
        assert!(serde_json::to_vec(&room).unwrap().len() < 10_000);
    }

    #[test]
    fn an_unknown_encryption_is_an_error_and_not_none() {
        let room = room(&[("m.room.encryption", "", json!({ "algorithm": "org.example.rot13" }))]);
        assert!(matches!(room.encryption(), Err(Error::UnknownAlgorithm(_))));
    }

    #[test]
    fn who_is_invited_gets_keys_unless_history_begins_with_joining() {
        let member = |membership: &str| json!({ "membership": membership });
        let state = |visibility: &str| {
            vec![
                ("m.room.member", "@a:x", member("join")),
                ("m.room.member", "@b:x", member("invite")),
                ("m.room.member", "@c:x", member("leave")),
                ("m.room.member", "@d:x", member("ban")),
                ("m.room.history_visibility", "", json!({ "history_visibility": visibility })),
            ]
        };
        let readers = |visibility| room(&state(visibility)).readers().map(ToString::to_string).collect::<Vec<_>>();
        for visibility in ["shared", "invited", "world_readable"] {
            assert_eq!(readers(visibility), ["@a:x", "@b:x"], "{visibility}");
        }
        assert_eq!(readers("joined"), ["@a:x"]);
    }

    #[test]
    fn a_change_of_membership_is_told_apart_from_a_change_of_name() {
        let mut room = room(&[]);
        let mut apply = |content: Value| room.apply("m.room.member", "@a:x", content.as_object().unwrap());
        let changed = Change::Members(user_id!("@a:x").to_owned());
        assert_eq!(apply(json!({ "membership": "join" })), changed);
        assert_eq!(apply(json!({ "membership": "join", "displayname": "A" })), Change::None);
        assert_eq!(apply(json!({ "membership": "leave" })), changed);
        assert_eq!(apply(json!({ "membership": "nonsense" })), Change::None);
    }

    #[test]
    fn a_room_is_called_by_its_name_its_alias_or_its_members() {
        let own = user_id!("@me:x");
        let member = |membership: &str, name: &str| json!({ "membership": membership, "displayname": name });
        let mut state = vec![("m.room.member", "@me:x", member("join", "Me"))];
        assert_eq!(room(&state).display_name(own), "Empty room");
        state.push(("m.room.member", "@a:x", member("leave", "Ann")));
        assert_eq!(room(&state).display_name(own), "Empty room (was Ann)");
        state.push(("m.room.member", "@b:x", member("join", "Ben")));
        assert_eq!(room(&state).display_name(own), "Ben");
        state.push(("m.room.canonical_alias", "", json!({ "alias": "#a:x" })));
        assert_eq!(room(&state).display_name(own), "#a:x");
        state.push(("m.room.name", "", json!({ "name": "Lunch" })));
        assert_eq!(room(&state).display_name(own), "Lunch");
    }
}
