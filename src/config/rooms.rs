//! `[rooms]`: rooms made here.

use ruma::RoomVersionId;
use serde::{Deserialize, Deserializer, de::Error as _};

/// Rooms made here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoomsConfig {
    /// The version of rooms whose maker asks for none, `"1"` to `"12"`. Default: `"12"`.
    #[serde(deserialize_with = "known_version")]
    pub default_version: RoomVersionId,
    /// Whether threads notify only those who subscribed to them, beside mentions and keywords (MSC4306). Clients that do not subscribe are
    /// told of nothing else in threads then. Default: false.
    pub thread_subscriptions: bool,
    /// Which new rooms are encrypted that clients do not make so; clients cannot undo it. Default: `"off"`.
    pub encryption: Encryption,
}

/// Which new rooms are encrypted that clients do not make so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// None: clients decide for themselves.
    #[default]
    Off,
    /// Direct chats.
    DirectChats,
    /// All but spaces.
    All,
}

impl Default for RoomsConfig {
    fn default() -> Self {
        Self { default_version: RoomVersionId::V12, thread_subscriptions: false, encryption: Encryption::Off }
    }
}

fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RoomVersionId, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.parse::<u32>() {
        Ok(1..=12) => RoomVersionId::try_from(text.as_str()).map_err(D::Error::custom),
        _ => Err(D::Error::custom(format!("`{text}` is not a room version: expected \"1\" to \"12\""))),
    }
}
