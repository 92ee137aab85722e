//! Shapes of JSON, as far as the table knows them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Types, requiredness and limits of a JSON value. An empty one allows anything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Schema {
    /// One type, or several.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What the string stands for, such as `mx-user-id`.
    pub format: Option<String>,
    /// The only values, if they are counted.
    #[serde(rename = "enum")]
    pub allowed: Vec<Value>,
    /// The fields of an object that have names.
    pub properties: BTreeMap<String, Schema>,
    /// Those it must have.
    pub required: Vec<String>,
    /// The other fields of an object.
    pub values: Option<Box<Schema>>,
    /// What the names of the other fields stand for.
    pub names: Option<Box<Schema>>,
    /// The elements of an array.
    pub items: Option<Box<Schema>>,
    /// One of these.
    pub one_of: Vec<Schema>,
}

/// The type of a JSON value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged)]
pub enum Kind {
    /// Not said.
    #[default]
    Any,
    /// This one.
    One(String),
    /// One of these.
    Several(Vec<String>),
}

impl Kind {
    /// The types it allows; none when anything is allowed.
    #[must_use]
    pub fn all(&self) -> &[String] {
        match self {
            Self::Any => &[],
            Self::One(kind) => std::slice::from_ref(kind),
            Self::Several(kinds) => kinds,
        }
    }
}

/// What is wrong with `value`: a required field that lacks, or a type that differs. Formats and limits are left alone.
#[must_use]
pub fn violation(schema: &Schema, value: &Value) -> Option<String> {
    check(schema, value, "", 0)
}

fn check(schema: &Schema, value: &Value, place: &str, depth: usize) -> Option<String> {
    if depth > 32 {
        return None;
    }
    let kinds = schema.kind.all();
    if !kinds.is_empty() && !kinds.iter().any(|kind| is_kind(kind, value)) {
        let start: String = value.to_string().chars().take(80).collect();
        return Some(format!("`{place}` is {start}, not {}", kinds.join(" or ")));
    }
    if !schema.one_of.is_empty() && schema.one_of.iter().all(|one| check(one, value, place, depth + 1).is_some()) {
        return Some(format!("`{place}` has none of its allowed shapes"));
    }
    if let Value::Object(object) = value {
        if let Some(name) = schema.required.iter().find(|name| !object.contains_key(*name)) {
            return Some(format!("`{place}` lacks `{name}`"));
        }
        // Servers and libraries, ruma among them, write null for optional fields that are not there, and clients read it so.
        let is_there = |(name, field): &(&String, &Value)| !field.is_null() || schema.required.contains(*name);
        for (name, field) in object.iter().filter(is_there) {
            let shape = schema.properties.get(name).or(schema.values.as_deref());
            if let Some(shape) = shape
                && let Some(wrong) = check(shape, field, &format!("{place}.{name}"), depth + 1)
            {
                return Some(wrong);
            }
        }
    }
    if let (Value::Array(elements), Some(items)) = (value, &schema.items) {
        return elements.iter().find_map(|element| check(items, element, &format!("{place}[]"), depth + 1));
    }
    None
}

fn is_kind(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        serde_json::from_value(json!({
            "type": "object",
            "properties": {
                "name": { "type": "string" },
                "sizes": { "type": "array", "items": { "type": ["integer", "null"] } },
            },
            "values": { "oneOf": [{ "type": "boolean" }, { "type": "object", "required": ["on"] }] },
            "required": ["name"],
        }))
        .unwrap()
    }

    #[test]
    fn a_value_of_the_right_shape_has_no_violation() {
        assert_eq!(
            violation(&schema(), &json!({ "name": "x", "sizes": [1, null], "a": true, "b": { "on": 1 } })),
            None
        );
    }

    #[test]
    fn null_is_no_field() {
        let schema: Schema = serde_json::from_value(json!({
            "properties": { "a": { "type": "string" }, "b": { "type": "string" } }, "required": ["a"],
        }))
        .unwrap();
        assert_eq!(violation(&schema, &json!({ "a": "", "b": null })), None);
        assert_eq!(violation(&schema, &json!({ "a": null })).unwrap(), "`.a` is null, not string");
    }

    #[test]
    fn a_missing_field_and_a_wrong_type_are_named_with_their_place() {
        let wrong = |value: Value| violation(&schema(), &value).unwrap();
        assert_eq!(wrong(json!({})), "`` lacks `name`");
        assert_eq!(wrong(json!([])), "`` is [], not object");
        assert_eq!(wrong(json!({ "name": "x", "sizes": [1.5] })), "`.sizes[]` is 1.5, not integer or null");
        assert_eq!(wrong(json!({ "name": "x", "other": {} })), "`.other` has none of its allowed shapes");
    }
}
