//! The fields of events that a client wants. Client-Server API, "Filtering", `event_fields`.
//!
//! What makes an event one is always there, as the specification allows: clients read no answer without it.

use serde_json::{Map, Value, value::RawValue};

/// The fields that are always there, and `content`, if only as an empty object.
const ALWAYS: [&str; 5] = ["type", "event_id", "sender", "origin_server_ts", "state_key"];

/// Paths to the fields that are wanted.
#[derive(Clone, Debug)]
pub(super) struct EventFields(Vec<Vec<String>>);

impl EventFields {
    /// Reads the paths. Appendices, "Dot-separated property paths".
    pub(super) fn new(paths: &[String]) -> Self {
        Self(paths.iter().map(|path| parts_of(path)).collect())
    }

    /// What an event has at the paths; what is no object stays as it is.
    pub(super) fn pick(&self, event: Box<RawValue>) -> Box<RawValue> {
        let Ok(Value::Object(whole)) = serde_json::from_str(event.get()) else { return event };
        let mut picked = Map::from_iter([("content".to_owned(), Value::Object(Map::new()))]);
        for field in ALWAYS {
            picked.extend(whole.get(field).map(|value| (field.to_owned(), value.clone())));
        }
        for path in &self.0 {
            pick_path(&whole, path, &mut picked);
        }
        RawValue::from_string(Value::Object(picked).to_string()).unwrap_or(event)
    }
}

fn pick_path(from: &Map<String, Value>, path: &[String], to: &mut Map<String, Value>) {
    let Some((first, rest)) = path.split_first() else { return };
    match from.get(first) {
        Some(Value::Object(inner)) if !rest.is_empty() => {
            let before = to.remove(first);
            let mut picked = match before {
                Some(Value::Object(before)) => before,
                _ => Map::new(),
            };
            pick_path(inner, rest, &mut picked);
            if !picked.is_empty() || first == "content" {
                to.insert(first.clone(), Value::Object(picked));
            }
        }
        Some(value) if rest.is_empty() => drop(to.insert(first.clone(), value.clone())),
        _ => {}
    }
}

/// The parts of a path: dots part it, but for those after a backslash.
fn parts_of(path: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        let escaped = (c == '\\').then(|| chars.next_if(|next| matches!(next, '.' | '\\'))).flatten();
        match (c, escaped) {
            ('.', _) => parts.push(String::new()),
            (c, escaped) => parts.last_mut().expect("never empty").push(escaped.unwrap_or(c)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_picks_what_is_there() {
        let event = json!({
            "type": "m.room.message", "extra": { "z": 1 }, "unsigned": { "age": 1 }, "content": { "body": "hi", "a.b": 1, "deep": { "x": 1, "y": 2 }, "back\\": 3 },
        });
        for (paths, expected) in [
            (&["type"][..], json!({ "content": {} })),
            (&["content.body", "extra"], json!({ "extra": { "z": 1 }, "content": { "body": "hi" } })),
            (&["content.a\\.b"], json!({ "content": { "a.b": 1 } })),
            (&["content.back\\\\"], json!({ "content": { "back\\": 3 } })),
            (&["content.deep.x", "content.deep.y"], json!({ "content": { "deep": { "x": 1, "y": 2 } } })),
            (&["content.deep", "content.deep.x"], json!({ "content": { "deep": { "x": 1, "y": 2 } } })),
            (&["content"], json!({ "content": event["content"] })),
            (&["content.body.x", "nothing", "", "type.x", "unsigned.x"], json!({ "content": {} })),
            (&[], json!({ "content": {} })),
        ] {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            let mut expected = expected;
            expected["type"] = json!("m.room.message");
            let picked = EventFields::new(&paths).pick(serde_json::value::to_raw_value(&event).unwrap());
            assert_eq!(serde_json::from_str::<Value>(picked.get()).unwrap(), expected, "{paths:?}");
        }
    }
}
