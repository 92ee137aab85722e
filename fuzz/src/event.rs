//! Reads bytes as an event in every room version, and checks what must hold of those that are one.

use model::{ClientEvent, Pdu, ROOM_VERSIONS, Unsigned, canonical_object, limits::EVENT_BYTES_MAX};
use ruma::{canonical_json::redact, room_version_rules::RoomVersionRules};
use serde_json::value::RawValue;

/// Reads `data`; returns in how many room versions it is an event.
pub(crate) fn read(data: &[u8]) -> usize {
    let Ok(raw) = serde_json::from_slice::<&RawValue>(data) else { return 0 };
    let Ok(object) = canonical_object(raw) else { return 0 };
    // Canonical JSON is the same when it is read again. Appendices, "Canonical JSON".
    let text = serde_json::to_string(&object).expect("an object");
    let again: &RawValue = serde_json::from_str(&text).expect("canonical JSON is JSON");
    assert_eq!(canonical_object(again).expect("canonical JSON is canonical"), object);
    let rules = ROOM_VERSIONS.iter().map(|version| version.rules().expect("the rules of a room version"));
    rules.filter(|rules| read_in(&object, rules)).count()
}

fn read_in(object: &ruma::CanonicalJsonObject, rules: &RoomVersionRules) -> bool {
    let Ok(pdu) = Pdu::from_canonical(object, rules) else { return false };
    assert!(pdu.json.len() <= EVENT_BYTES_MAX, "an event of {} bytes", pdu.json.len());
    // It comes out of the database as it went in.
    let stored = Pdu::from_stored(pdu.json.clone(), pdu.event_id.clone(), pdu.room_id.clone(), rules);
    let stored = stored.expect("what was read once is read again");
    assert_eq!((&stored.event_type, &stored.state_key), (&pdu.event_type, &pdu.state_key));
    assert_eq!((stored.prev_events, stored.auth_events), (pdu.prev_events.clone(), pdu.auth_events.clone()));
    assert_eq!((stored.depth, stored.names_room), (pdu.depth, pdu.names_room));
    // A redaction leaves the id. Server-Server API, "Calculating the reference hash for an event".
    if let Ok(redacted) = redact(object.clone(), &rules.redaction, None)
        && let Ok(redacted) = Pdu::from_canonical(&redacted, rules)
    {
        assert_eq!(redacted.event_id, pdu.event_id);
        assert_eq!(redacted.room_id, pdu.room_id);
    }
    // Clients get JSON, whatever is in it.
    let shown = ClientEvent::of(&pdu.json).expect("an event has the fields of one");
    for json in [
        shown.to_ready(&pdu.event_id, pdu.redacts.as_deref()).to_json(Some(&pdu.room_id), &Unsigned::default()),
        shown.to_stripped(),
    ] {
        serde_json::from_str::<serde_json::Value>(json.get()).expect("clients get JSON");
    }
    true
}
