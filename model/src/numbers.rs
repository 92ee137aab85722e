//! The numbers that stand for identifiers inside: short keys for the database and for memory.
//!
//! They are handed out in blocks, are never reused and never leave the server.

use serde::{Deserialize, Serialize};

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl $name {
            /// The bare number, as the database has it.
            #[must_use]
            pub const fn get(self) -> i64 {
                self.0
            }
        }

        impl From<i64> for $name {
            fn from(number: i64) -> Self {
                Self(number)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

numbers! {
    /// Stands for an event id.
    EventNr;
    /// Stands for a room id.
    RoomNr;
    /// Stands for a user id, local or remote.
    UserNr;
    /// Stands for an event type.
    TypeNr;
    /// Stands for a state key.
    StateKeyNr;
    /// A node of a room's state map; counts up within its room. Zero is the empty map.
    NodeNr;
    /// A place in the one ordered stream of all that clients learn. Zero is before everything.
    Position;
}
