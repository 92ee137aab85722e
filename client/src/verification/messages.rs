//! The messages of a verification. Client-Server API, "Key verification framework" and "Verification messages specific to SAS".
//!
//! They are the same to devices and in rooms, but for how they name the verification that they belong to: by `transaction_id`, or by a
//! relation to the event that asked for it. [`Flow`] knows which.

use std::collections::BTreeMap;

use ruma::{
    DeviceId, OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, UserId,
    events::key::verification::{VerificationMethod, accept, cancel::CancelCode, start},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vodozemac::Curve25519PublicKey;

use crate::signatures::Object;

/// Most keys that one message may vouch for.
const MACS_MAX: usize = 100;
/// Longest id that names a verification or a device, in bytes.
const ID_BYTES_MAX: usize = 255;

/// Where a verification takes place, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Flow {
    /// Between devices, by messages that nobody else sees.
    ToDevice {
        /// What all messages of the verification carry.
        transaction_id: String,
    },
    /// In a room that both users are in.
    InRoom {
        /// The room.
        room_id: OwnedRoomId,
        /// The event that asked for the verification.
        event_id: OwnedEventId,
    },
}

impl Flow {
    /// What the verification is called in all calculations.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::ToDevice { transaction_id } => transaction_id,
            Self::InRoom { event_id, .. } => event_id.as_str(),
        }
    }

    /// The transaction that the content of a to-device message belongs to.
    #[must_use]
    pub fn of_to_device(content: &Object) -> Option<Self> {
        let id = content.get("transaction_id")?.as_str()?;
        (1..=ID_BYTES_MAX).contains(&id.len()).then(|| Self::ToDevice { transaction_id: id.to_owned() })
    }

    /// The verification that an event of a room belongs to, other than the one that asked for it.
    #[must_use]
    pub fn of_room_event(room_id: OwnedRoomId, content: &Object) -> Option<Self> {
        let relation = content.get("m.relates_to")?;
        if relation.get("rel_type")?.as_str()? != "m.reference" {
            return None;
        }
        let event_id = OwnedEventId::try_from(relation.get("event_id")?.as_str()?).ok()?;
        Some(Self::InRoom { room_id, event_id })
    }

    fn write_into(&self, content: &mut Object) {
        let (name, value) = match self {
            Self::ToDevice { transaction_id } => ("transaction_id", json!(transaction_id)),
            Self::InRoom { event_id, .. } => {
                ("m.relates_to", json!({ "rel_type": "m.reference", "event_id": event_id }))
            }
        };
        content.insert(name.to_owned(), value);
    }
}

/// A message of a verification.
#[derive(Debug, Clone)]
pub enum Message {
    /// Asks for a verification.
    Request {
        /// The device that asks.
        from_device: OwnedDeviceId,
        /// The ways of verifying that it knows.
        methods: Vec<VerificationMethod>,
        /// When it asked, in milliseconds since 1970; to devices only, in rooms the event has a time.
        timestamp: Option<u64>,
        /// The user who is asked; in rooms only.
        to: Option<OwnedUserId>,
    },
    /// Agrees to it.
    Ready {
        /// The device that agrees.
        from_device: OwnedDeviceId,
        /// The ways of verifying that it knows, too.
        methods: Vec<VerificationMethod>,
    },
    /// Begins with one way of verifying.
    Start(Start),
    /// Chooses from what SAS offers, and commits to a key.
    Accept(accept::SasV1Content),
    /// The public key of a SAS.
    Key(Curve25519PublicKey),
    /// The keys that the sender wants to be believed.
    Mac(Macs),
    /// The sender is content.
    Done,
    /// The sender ends it.
    Cancel {
        /// Why, for machines.
        code: CancelCode,
        /// Why, for people.
        reason: String,
    },
}

/// The beginning of one way of verifying.
#[derive(Debug, Clone)]
pub struct Start {
    /// The device that begins.
    pub from_device: OwnedDeviceId,
    /// What SAS offers; other methods are `None`.
    pub sas: Option<start::SasV1Content>,
    /// All of it as it was sent, which the commitment of SAS is made of.
    pub content: Object,
}

/// What vouches for keys.
#[derive(Debug, Clone)]
pub struct Macs {
    /// By key id.
    pub of_keys: BTreeMap<String, String>,
    /// Of the list of their ids.
    pub of_key_ids: String,
}

impl Message {
    /// Reads a message; `None` when an event of this type is no message of a verification.
    ///
    /// # Errors
    ///
    /// [`CancelCode::InvalidMessage`] when it has not the form of its type.
    #[must_use]
    pub fn parse(event_type: &str, content: &Object) -> Option<Result<Self, CancelCode>> {
        let message = match event_type {
            "m.key.verification.request" => Self::request(content),
            "m.room.message" if content.get("msgtype").is_some_and(|kind| kind == "m.key.verification.request") => {
                Self::request(content)
            }
            "m.key.verification.ready" => device(content)
                .and_then(|from_device| Some(Self::Ready { from_device, methods: field(content, "methods")? })),
            "m.key.verification.start" => Start::parse(content).map(Self::Start),
            "m.key.verification.accept" => whole(content).map(Self::Accept),
            "m.key.verification.key" => content
                .get("key")
                .and_then(|key| Some(Self::Key(Curve25519PublicKey::from_base64(key.as_str()?).ok()?))),
            "m.key.verification.mac" => Macs::parse(content).map(Self::Mac),
            "m.key.verification.done" => Some(Self::Done),
            "m.key.verification.cancel" => field(content, "code")
                .map(|code| Self::Cancel { code, reason: field(content, "reason").unwrap_or_default() }),
            _ => return None,
        };
        Some(message.ok_or(CancelCode::InvalidMessage))
    }

    fn request(content: &Object) -> Option<Self> {
        let timestamp = content.get("timestamp").and_then(Value::as_u64);
        Some(Self::Request {
            from_device: device(content)?,
            methods: field(content, "methods")?,
            timestamp,
            to: field(content, "to"),
        })
    }

    /// The type of the event; a request in a room is an `m.room.message` instead.
    #[must_use]
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::Request { .. } => "m.key.verification.request",
            Self::Ready { .. } => "m.key.verification.ready",
            Self::Start(_) => "m.key.verification.start",
            Self::Accept(_) => "m.key.verification.accept",
            Self::Key(_) => "m.key.verification.key",
            Self::Mac(_) => "m.key.verification.mac",
            Self::Done => "m.key.verification.done",
            Self::Cancel { .. } => "m.key.verification.cancel",
        }
    }

    /// The device that the message says it comes from, where it says so.
    #[must_use]
    pub fn from_device(&self) -> Option<&OwnedDeviceId> {
        match self {
            Self::Request { from_device, .. } | Self::Ready { from_device, .. } => Some(from_device),
            Self::Start(start) => Some(&start.from_device),
            _ => None,
        }
    }

    /// The content of the event.
    #[must_use]
    pub fn content(&self, flow: &Flow) -> Object {
        let content = match self {
            Self::Request { from_device, methods, timestamp, .. } => {
                json!({ "from_device": from_device, "methods": methods, "timestamp": timestamp.unwrap_or_default() })
            }
            Self::Ready { from_device, methods } => json!({ "from_device": from_device, "methods": methods }),
            // Written when it was made: what the other side hashes must be what we hash.
            Self::Start(start) => return start.content.clone(),
            Self::Accept(accept) => {
                // Some clients want to be told the method again.
                let mut content = serde_json::to_value(accept).expect("it can be written");
                content["method"] = "m.sas.v1".into();
                content
            }
            Self::Key(key) => json!({ "key": key.to_base64() }),
            Self::Mac(macs) => json!({ "mac": macs.of_keys, "keys": macs.of_key_ids }),
            Self::Done => json!({}),
            Self::Cancel { code, reason } => json!({ "code": code, "reason": reason }),
        };
        let Value::Object(mut content) = content else { unreachable!("all of them are written as objects") };
        flow.write_into(&mut content);
        content
    }
}

/// The content of the `m.room.message` that asks `to` for a verification in a room.
#[must_use]
pub fn room_request(from_device: &DeviceId, to: &UserId) -> Object {
    let content = json!({
        "msgtype": "m.key.verification.request",
        "body": "I want to verify that this is you. Your client cannot do that: please use another one.",
        "from_device": from_device,
        "methods": [VerificationMethod::SasV1],
        "to": to,
    });
    let Value::Object(content) = content else { unreachable!("it is written as an object") };
    content
}

impl Start {
    /// Begins a SAS.
    pub(super) fn sas(from_device: OwnedDeviceId, offer: start::SasV1Content, flow: &Flow) -> Self {
        let Ok(Value::Object(mut content)) = serde_json::to_value(&offer) else {
            unreachable!("it is written as an object")
        };
        content.insert("from_device".to_owned(), from_device.as_str().into());
        flow.write_into(&mut content);
        Self { from_device, sas: Some(offer), content }
    }

    fn parse(content: &Object) -> Option<Self> {
        let sas = match content.get("method")?.as_str()? {
            "m.sas.v1" => Some(whole(content)?),
            _ => None,
        };
        Some(Self { from_device: device(content)?, sas, content: content.clone() })
    }
}

impl Macs {
    fn parse(content: &Object) -> Option<Self> {
        let of_keys: BTreeMap<String, String> = field(content, "mac")?;
        (of_keys.len() <= MACS_MAX).then_some(Self { of_keys, of_key_ids: field(content, "keys")? })
    }
}

fn device(content: &Object) -> Option<OwnedDeviceId> {
    let id = content.get("from_device")?.as_str()?;
    (1..=ID_BYTES_MAX).contains(&id.len()).then(|| id.into())
}

fn field<T: DeserializeOwned>(content: &Object, name: &str) -> Option<T> {
    serde_json::from_value(content.get(name)?.clone()).ok()
}

fn whole<T: DeserializeOwned>(content: &Object) -> Option<T> {
    serde_json::from_value(Value::Object(content.clone())).ok()
}
