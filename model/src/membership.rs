//! What a user is to a room.

use serde::{Deserialize, Serialize};

/// A user's membership of a room, as `m.room.member` has it. Client-Server API, "Room membership".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Membership {
    /// Not in the room: has left, was kicked, or refused an invitation.
    Leave,
    /// Asked to be let in.
    Knock,
    /// Was asked to come in.
    Invite,
    /// In the room.
    Join,
    /// May not come back.
    Ban,
}

impl Membership {
    /// Its number in the database; never changes.
    #[must_use]
    pub const fn code(self) -> i64 {
        match self {
            Self::Leave => 0,
            Self::Knock => 1,
            Self::Invite => 2,
            Self::Join => 3,
            Self::Ban => 4,
        }
    }

    /// The membership of a number in the database; an unknown number is `leave`, which gives the least.
    #[must_use]
    pub const fn from_code(code: i64) -> Self {
        match code {
            1 => Self::Knock,
            2 => Self::Invite,
            3 => Self::Join,
            4 => Self::Ban,
            _ => Self::Leave,
        }
    }

    /// The word of the specification.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Knock => "knock",
            Self::Invite => "invite",
            Self::Join => "join",
            Self::Ban => "ban",
        }
    }

    /// The membership that a word of the specification names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Leave, Self::Knock, Self::Invite, Self::Join, Self::Ban].into_iter().find(|m| m.as_str() == word)
    }
}
