//! What the client tells whoever uses it.

use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId};
use serde_json::Value;
use tokio::sync::broadcast;

use crate::{megolm::Undecryptable, signatures::Object, verification::Stage};

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// An event of a room's timeline, decrypted if it could be.
    Room(RoomEvent),
    /// The key has come of an event that could not be decrypted before; this is the event now.
    Late(RoomEvent),
    /// The user was invited to a room.
    Invite {
        /// Where.
        room_id: OwnedRoomId,
        /// By whom, as far as the server says so.
        inviter: Option<OwnedUserId>,
    },
    /// A device sent something that is not about room keys, such as a verification.
    ToDevice(ToDeviceEvent),
    /// The server shows another identity of a user than before: somebody should verify or accept it. What it signs does not count till then.
    IdentityChanged {
        /// Whose.
        user_id: OwnedUserId,
    },
    /// A verification has come to another stage.
    Verification(VerificationChange),
    /// Another device or somebody else replaced the backup of room keys, and nobody of ours signed it: nothing is backed up any more.
    BackupReplaced,
    /// So many events were dropped, because nobody took them in time. Their rooms' history has them.
    Missed(u64),
}

/// Where a verification stands.
#[derive(Clone, Debug)]
pub struct VerificationChange {
    /// With whom.
    pub user_id: OwnedUserId,
    /// What it is called.
    pub flow_id: String,
    /// The device on the other side, once it has shown itself.
    pub device_id: Option<OwnedDeviceId>,
    /// Where it stands now.
    pub stage: Stage,
}

/// An event of a room.
#[derive(Clone, Debug)]
pub struct RoomEvent {
    /// Where.
    pub room_id: OwnedRoomId,
    /// Its id.
    pub event_id: OwnedEventId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// When, says the sender's server, in milliseconds.
    pub timestamp_ms: u64,
    /// Its type; that of what was encrypted if that could be decrypted, else `m.room.encrypted`.
    pub event_type: String,
    /// Which piece of state, if it is one.
    pub state_key: Option<String>,
    /// Its content; of what was encrypted if that could be decrypted.
    pub content: Object,
    /// How it was encrypted, and what that proves.
    pub secrecy: Secrecy,
}

impl RoomEvent {
    /// What a message says, or nothing if it is no message that can be read.
    #[must_use]
    pub fn body(&self) -> Option<&str> {
        if self.event_type != "m.room.message" {
            return None;
        }
        self.content.get("body").and_then(Value::as_str)
    }
}

/// Whether servers could read an event, and what is known of its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// It was not encrypted: all servers of the room can read it, and could have written it.
    Clear,
    /// It was encrypted.
    Encrypted(Trust),
    /// It was encrypted and cannot be decrypted, at least not yet.
    Undecryptable(Undecryptable),
}

impl Secrecy {
    /// Whether it was encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        *self != Self::Clear
    }

    /// Whether it is by a device of its sender's that the user of this client made sure of.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        matches!(self, Self::Encrypted(Trust::Verified { .. }))
    }

    /// Why it is not to be trusted or cannot be read, for people.
    #[must_use]
    pub fn doubt(&self) -> Option<String> {
        Some(match self {
            Self::Encrypted(Trust::Verified { .. }) => return None,
            Self::Encrypted(Trust::Unverified { device_id }) => format!("nobody has verified the device {device_id}"),
            Self::Encrypted(Trust::UnknownDevice) => "it comes from none of the sender's devices".to_owned(),
            Self::Encrypted(Trust::Imported) => {
                "its key came from a backup or another device: who wrote it is only the server's word".to_owned()
            }
            Self::Clear => "it was not encrypted: servers can read it, and could have written it".to_owned(),
            Self::Undecryptable(reason) => reason.to_string(),
        })
    }
}

/// What is known of the device that wrote an encrypted event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is the sender's: the user of this client made sure of that.
    Verified {
        /// Which one.
        device_id: OwnedDeviceId,
    },
    /// It is among the sender's devices; nobody made sure that it is theirs.
    Unverified {
        /// Which one.
        device_id: OwnedDeviceId,
    },
    /// It is none of the sender's devices, or is gone.
    UnknownDevice,
    /// The key came from a backup or another device of ours: the server's word for who wrote it is all there is.
    Imported,
}

/// A message from another device.
#[derive(Clone, Debug)]
pub struct ToDeviceEvent {
    /// Whose device sent it.
    pub sender: OwnedUserId,
    /// The device, if the message was encrypted and the device is known; who wrote in clear is only the server's word.
    pub device_id: Option<OwnedDeviceId>,
    /// Whether that device was verified.
    pub is_verified: bool,
    /// Its type; that of what was encrypted.
    pub event_type: String,
    /// Its content.
    pub content: Object,
}

/// Everything that happens, from when it was asked for: [`Client::events`](crate::Client::events).
#[derive(Debug)]
pub struct Events(pub(crate) broadcast::Receiver<Event>);

impl Events {
    /// Waits for the next event; nothing once the client is gone.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Event::Missed(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
