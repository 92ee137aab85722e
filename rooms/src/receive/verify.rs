//! Checks 1 to 3 on receipt of a PDU: the format, the signatures, the content hash. Server-Server API, "Checks performed on receipt of a
//! PDU", "Validating hashes and signatures on received events".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use model::{Pdu, limits::is_name};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedServerName, OwnedServerSigningKeyId,
    ServerSigningKeyId,
    canonical_json::redact,
    room_version_rules::RoomVersionRules,
    signatures::{self, PublicKeyMap, Verified},
};
use serde_json::value::RawValue;
use storage::RoomRow;

use crate::{Error, Rooms, remote::EventSigners};

/// Events that one thread reads or verifies in one go: a transaction keeps all of them busy, and none for long.
const AT_ONCE: usize = 16;

/// An event of the right format; nobody has vouched for it yet.
pub(crate) struct Unverified {
    pub(crate) pdu: Pdu,
    object: CanonicalJsonObject,
    signers: EventSigners,
    rules: Arc<RoomVersionRules>,
}

/// An event that was read, or what is wrong with it; with its id, if that can be told.
pub(crate) type Read = (Option<OwnedEventId>, Result<Unverified, Error>);

impl Rooms {
    /// Check 1, for events of one room.
    pub(crate) async fn read_events(
        &self,
        room: &Arc<RoomRow>,
        rules: &Arc<RoomVersionRules>,
        objects: Vec<CanonicalJsonObject>,
    ) -> Result<Vec<Read>, Error> {
        let (room, rules) = (room.clone(), rules.clone());
        on_threads(objects, move |object| read(&room, &rules, object)).await
    }

    /// Check 1, for events that are texts still: what is none at all has no id.
    pub(crate) async fn read_texts(
        &self,
        room: &Arc<RoomRow>,
        rules: &Arc<RoomVersionRules>,
        texts: Vec<Box<RawValue>>,
    ) -> Result<Vec<Read>, Error> {
        let (room, rules) = (room.clone(), rules.clone());
        let read = move |text: Box<RawValue>| {
            let object = serde_json::from_str(text.get()).unwrap_or_default();
            drop(text);
            read(&room, &rules, object)
        };
        on_threads(texts, read).await
    }

    /// Checks 2 and 3: the keys are asked for together. What was altered is given in its redacted form.
    pub(crate) async fn verify_events(&self, events: Vec<Unverified>) -> Result<Vec<Result<Pdu, Error>>, Error> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let signers: Vec<EventSigners> = events.iter().map(|event| event.signers.clone()).collect();
        let keys = self.remote().find_public_keys(&signers).await?;
        on_threads(events.into_iter().zip(keys).collect(), |(event, keys)| verify(event, &keys)).await
    }
}

/// Does what takes long on threads that serve no requests; in order.
async fn on_threads<T: Send + 'static, R: Send + 'static>(
    work: Vec<T>,
    f: impl Fn(T) -> R + Clone + Send + 'static,
) -> Result<Vec<R>, Error> {
    let mut work = work.into_iter().peekable();
    let mut tasks = Vec::new();
    while work.peek().is_some() {
        let (part, f) = (work.by_ref().take(AT_ONCE).collect::<Vec<T>>(), f.clone());
        tasks.push(tokio::task::spawn_blocking(move || part.into_iter().map(f).collect::<Vec<R>>()));
    }
    let mut results = Vec::new();
    for task in tasks {
        results.extend(task.await.map_err(|_| Error::Busy)?);
    }
    Ok(results)
}

fn read(room: &RoomRow, rules: &Arc<RoomVersionRules>, mut object: CanonicalJsonObject) -> Read {
    // What other servers put there is not signed, and means nothing to us.
    object.remove("unsigned");
    let pdu = match Pdu::from_canonical(&object, rules) {
        Ok(pdu) => pdu,
        Err(error) => return (id_of(&object, rules), Err(Error::BadEvent(error.to_string()))),
    };
    let event_id = Some(pdu.event_id.clone());
    let bad = |what: &str| Err(Error::BadEvent(what.to_owned()));
    if pdu.room_id != room.id {
        return (event_id, bad("it is not an event of this room"));
    }
    let event_type = pdu.event_type.to_string();
    let names = [Some(pdu.event_id.as_str()), Some(&event_type), pdu.state_key.as_deref(), Some(pdu.sender.as_str())];
    if names.into_iter().flatten().any(|name| name.contains('\0')) {
        return (event_id, bad("event types and state keys have no zero byte"));
    }
    match signers_of(&pdu, &object, rules) {
        Ok(signers) => (event_id, Ok(Unverified { pdu, object, signers, rules: rules.clone() })),
        Err(error) => (event_id, Err(error)),
    }
}

/// The id of what need not be an event.
pub(crate) fn id_of(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Option<OwnedEventId> {
    if let Some(CanonicalJsonValue::String(id)) = object.get("event_id") {
        return EventId::parse(id).ok().filter(|id| is_name(id.as_str(), model::limits::ID_BYTES_MAX));
    }
    let hash = signatures::reference_hash(object, rules).ok()?;
    EventId::parse(format!("${hash}")).ok()
}

/// Which keys must have signed an event, and when. Room Version 5, "Signing key validity period".
fn signers_of(pdu: &Pdu, object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<EventSigners, Error> {
    let servers = signatures::required_server_signatures_to_verify_event(object, &rules.signatures)
        .map_err(|error| Error::BadEvent(error.to_string()))?;
    let key_ids = |server: &OwnedServerName| -> BTreeSet<OwnedServerSigningKeyId> {
        let Some(CanonicalJsonValue::Object(signatures)) = object.get("signatures") else { return BTreeSet::new() };
        let Some(CanonicalJsonValue::Object(keys)) = signatures.get(server.as_str()) else { return BTreeSet::new() };
        keys.keys().filter_map(|id| ServerSigningKeyId::parse(id).ok()).take(KEYS_OF_SERVER_MAX).collect()
    };
    let mut keys = BTreeMap::new();
    for server in servers {
        let ids = key_ids(&server);
        if ids.is_empty() {
            return Err(Error::BadEvent(format!("{server} has not signed it")));
        }
        keys.insert(server, ids);
    }
    let valid_at_ms = rules.enforce_key_validity.then(|| pdu.origin_server_ts.get().into());
    Ok(EventSigners { keys, valid_at_ms })
}

/// Most keys by which one server signs an event that are looked at.
const KEYS_OF_SERVER_MAX: usize = 5;

fn verify(event: Unverified, keys: &PublicKeyMap) -> Result<Pdu, Error> {
    let Unverified { pdu, object, rules, .. } = event;
    let bad = |error: &dyn std::fmt::Display| Error::BadEvent(error.to_string());
    match signatures::verify_event(keys, &object, &rules).map_err(|error| bad(&error))? {
        Verified::All => Ok(pdu),
        Verified::Signatures => {
            let redacted = redact(object, &rules.redaction, None).map_err(|error| bad(&error))?;
            Pdu::from_canonical(&redacted, &rules).map_err(|error| bad(&error))
        }
    }
}
