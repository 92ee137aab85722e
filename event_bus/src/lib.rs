//! Wake-ups and ephemeral state, in memory or in Redis.
//!
//! Carries *that* something happened, never *what*: that is in the database. A message that is lost costs a second.

mod bus;
mod following;
mod presence;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod typing;

pub use bus::{Bus, BusError, RedisBus};
pub use presence::{
    Availability, Presence, PresenceNews, Remembered, Reported, SelfDescription, Shown, Syncing, UserPresence,
};
pub use typing::{TYPING_MS_MAX, Typing, TypingChange, TypingNews};
