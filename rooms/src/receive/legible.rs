//! Events in canonical JSON, of what need not have such a form. Appendices, "Canonical JSON".

use std::collections::BTreeMap;

use model::limits::{CONTENT_DEPTH_MAX, EVENT_BYTES_MAX, TOLD_EVENT_BYTES_MAX};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, room_version_rules::RoomVersionRules};
use serde_json::{Value, value::RawValue};

/// The event as far as it can be read; nothing when it is none.
///
/// Fields with numbers that canonical JSON does not have, which room versions before 6 allow, and such that are nested deeper than anybody
/// could be shown, are left out. The content is then not that of the hash, so that the event counts in its redacted form, as any event with
/// another content does: were it dropped, all that comes after it in the room would be out of reach. Room Version 6, "Canonical JSON".
pub(crate) fn legible(event: &RawValue, rules: &RoomVersionRules) -> Option<CanonicalJsonObject> {
    if event.get().len() > TOLD_EVENT_BYTES_MAX {
        return None;
    }
    if let Ok(object) = serde_json::from_str::<CanonicalJsonObject>(event.get())
        && object.get("content").is_none_or(|content| is_within(content, CONTENT_DEPTH_MAX))
    {
        return Some(object);
    }
    if event.get().len() > EVENT_BYTES_MAX {
        return None;
    }
    let is_strict = rules.authorization.strict_canonical_json;
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(event.get()).ok()?;
    // What is said in passing is not signed, and of no interest.
    fields.remove("unsigned");
    let content: BTreeMap<String, &RawValue> = serde_json::from_str(fields.remove("content")?.get()).ok()?;
    let mut object = legible_fields(fields, is_strict)?;
    object.insert("content".to_owned(), CanonicalJsonValue::Object(legible_fields(content, is_strict)?));
    Some(object)
}

/// Those fields that can be read; nothing when a number makes all of it invalid.
fn legible_fields(fields: BTreeMap<String, &RawValue>, is_strict: bool) -> Option<CanonicalJsonObject> {
    let mut object = CanonicalJsonObject::new();
    for (name, value) in fields {
        let Ok(value) = serde_json::from_str::<Value>(value.get()) else { continue };
        match CanonicalJsonValue::try_from(value) {
            Ok(value) if is_within(&value, CONTENT_DEPTH_MAX - 1) => drop(object.insert(name, value)),
            Ok(_) => {}
            Err(_) if is_strict => return None,
            Err(_) => {}
        }
    }
    Some(object)
}

/// Whether a value has no more than so many levels of objects and arrays.
fn is_within(value: &CanonicalJsonValue, levels: usize) -> bool {
    match value {
        CanonicalJsonValue::Object(object) => levels > 0 && object.values().all(|value| is_within(value, levels - 1)),
        CanonicalJsonValue::Array(array) => levels > 0 && array.iter().all(|value| is_within(value, levels - 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, rules: &RoomVersionRules) -> Option<String> {
        let json = RawValue::from_string(json.to_owned()).unwrap();
        legible(&json, rules).map(|object| serde_json::to_string(&object).unwrap())
    }

    #[test]
    fn what_has_no_canonical_form_is_left_out_where_the_version_allows_it() {
        let (old, new) = (&RoomVersionRules::V5, &RoomVersionRules::V6);
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for (json, in_old, in_new) in [
            (r#"{"b":1,"content":{}}"#.to_owned(), Some(r#"{"b":1,"content":{}}"#), Some(r#"{"b":1,"content":{}}"#)),
            (r#"{"content":{"a":1.5,"b":2},"d":3}"#.to_owned(), Some(r#"{"content":{"b":2},"d":3}"#), None),
            (r#"{"content":{"b":2},"d":9007199254740992}"#.to_owned(), Some(r#"{"content":{"b":2}}"#), None),
            // Nobody has signed that.
            (
                r#"{"content":{"b":2},"unsigned":{"a":0.5}}"#.to_owned(),
                Some(r#"{"content":{"b":2}}"#),
                Some(r#"{"content":{"b":2}}"#),
            ),
            (
                format!(r#"{{"content":{{"a":{},"b":2}}}}"#, deep(100)),
                Some(r#"{"content":{"b":2}}"#),
                Some(r#"{"content":{"b":2}}"#),
            ),
            (
                format!(r#"{{"content":{{"a":{},"b":2}}}}"#, deep(30_000)),
                Some(r#"{"content":{"b":2}}"#),
                Some(r#"{"content":{"b":2}}"#),
            ),
            (format!(r#"{{"content":{}}}"#, deep(300)), None, None),
            (format!(r#"{{"content":{{"a":{}}}}}"#, deep(33_000)), None, None),
            ("[]".to_owned(), None, None),
            (r#"{"a":1.5}"#.to_owned(), None, None),
        ] {
            let start = &json[..json.len().min(100)];
            assert_eq!(read(&json, old).as_deref(), in_old, "{start}");
            assert_eq!(read(&json, new).as_deref(), in_new, "{start}");
        }
        let shown = format!(r#"{{"content":{{"a":{}}}}}"#, deep(99));
        assert_eq!(read(&shown, new), Some(shown));
    }
}
