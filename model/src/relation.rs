//! How an event relates to another one.

use ruma::{EventId, OwnedEventId};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::limits::{ID_BYTES_MAX, is_name};

/// What an event says of the event that it relates to. Client-Server API, "Forming relationships between events".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// How it relates to it.
    pub rel_type: String,
    /// The event that it relates to, its parent.
    pub parent: OwnedEventId,
    /// For an annotation, what it says. Client-Server API, "Event annotations and reactions".
    pub key: Option<String>,
    /// Whether the content has what another content is replaced by. Client-Server API, "Event replacements".
    pub has_new_content: bool,
}

impl Relation {
    /// The type of annotations, reactions above all.
    pub const ANNOTATION: &str = "m.annotation";
    /// The type of references.
    pub const REFERENCE: &str = "m.reference";
    /// The type of replacements, that is edits.
    pub const REPLACE: &str = "m.replace";
    /// The type of the events of a thread, which relate to its root.
    pub const THREAD: &str = "m.thread";

    /// Reads the relation in the content of an event; nothing when there is none, or one that does not match the schema, which is
    /// ignored.
    #[must_use]
    pub fn of_content(content: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            #[serde(rename = "m.relates_to")]
            relates_to: RelatesTo,
            #[serde(rename = "m.new_content")]
            new_content: Option<Box<RawValue>>,
        }
        #[derive(Deserialize)]
        struct RelatesTo {
            rel_type: String,
            event_id: String,
            key: Option<Value>,
        }
        // Most events relate to none, and all content is canonical: the name stands in it as it is.
        if !content.get().contains("\"m.relates_to\"") {
            return None;
        }
        let Content { relates_to, new_content } = serde_json::from_str(content.get()).ok()?;
        let RelatesTo { rel_type, event_id, key } = relates_to;
        let parent = EventId::parse(event_id).ok()?;
        let key = key.and_then(|key| if let Value::String(key) = key { Some(key) } else { None });
        let has_new_content = new_content.is_some_and(|content| content.get().starts_with('{'));
        let is_whole = is_name(&rel_type, ID_BYTES_MAX) && is_name(parent.as_str(), ID_BYTES_MAX);
        is_whole.then_some(Self { rel_type, parent, key, has_new_content })
    }

    /// Whether an event of that type, with or without a state key, has all that a relation of its type asks of it, as far as its
    /// parent has no say in it. Client-Server API, "Validity of replacement events" (what is encrypted counts by its outside) and
    /// "Event annotations and reactions".
    #[must_use]
    pub fn is_whole(&self, event_type: &str, is_state: bool) -> bool {
        match self.rel_type.as_str() {
            Self::REPLACE => !is_state && (self.has_new_content || event_type == "m.room.encrypted"),
            Self::ANNOTATION => self.key.is_some(),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};

    use super::*;

    fn of(content: Value) -> Option<Relation> {
        Relation::of_content(&to_raw_value(&content).unwrap())
    }

    #[test]
    fn what_does_not_match_the_schema_is_no_relation() {
        let relation = |relates_to: Value| of(json!({"body": "m.relates_to", "m.relates_to": relates_to}));
        assert!(relation(json!({"rel_type": "m.thread", "event_id": "$a"})).is_some());
        for relates_to in [
            json!(null),
            json!("$a"),
            json!([]),
            json!({}),
            json!({"rel_type": "m.thread"}),
            json!({"event_id": "$a"}),
            json!({"rel_type": 1, "event_id": "$a"}),
            json!({"rel_type": "", "event_id": "$a"}),
            json!({"rel_type": "m.\0", "event_id": "$a"}),
            json!({"rel_type": "m".repeat(256), "event_id": "$a"}),
            json!({"rel_type": "m.thread", "event_id": "a"}),
            json!({"rel_type": "m.thread", "event_id": "$a\0"}),
            json!({"rel_type": "m.thread", "event_id": format!("${}", "a".repeat(255))}),
            json!({"m.in_reply_to": {"event_id": "$a"}}),
        ] {
            assert_eq!(relation(relates_to.clone()), None, "{relates_to}");
        }
        assert_eq!(of(json!({"body": "\"m.relates_to\""})), None);
    }

    #[test]
    fn a_key_and_a_new_content_count_when_they_are_of_the_right_type() {
        let relation = |key: Value, new_content: Value| {
            let relates_to = json!({"rel_type": "x", "event_id": "$a", "key": key});
            of(json!({"m.relates_to": relates_to, "m.new_content": new_content})).unwrap()
        };
        let whole = relation(json!("👍"), json!({"body": "b"}));
        assert_eq!((whole.key.as_deref(), whole.has_new_content), (Some("👍"), true));
        let neither = relation(json!(1), json!("b"));
        assert_eq!((neither.key, neither.has_new_content), (None, false));
        assert!(!relation(json!(null), json!(null)).has_new_content);
    }
}
