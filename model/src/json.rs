//! JSON of one client that others are sent.

use serde_json::{Map, Value};

use crate::{canonical::is_within, limits::CONTENT_DEPTH_MAX};

/// Why JSON is not passed on.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Not an object that every reader understands: half of a surrogate pair, a number out of range.
    #[error("not a JSON object that all clients can read")]
    Unreadable(#[from] serde_json::Error),
    /// Too many objects and lists within each other.
    #[error("nested deeper than {CONTENT_DEPTH_MAX} levels")]
    TooDeep,
}

/// Reads an object that others will be sent: whoever could not read it would stay at it for ever.
///
/// What is sent is the object written anew, not the text that came.
///
/// # Errors
///
/// [`ContentError`]: the sender's fault, `M_BAD_JSON`.
pub fn content_object(json: &str) -> Result<Map<String, Value>, ContentError> {
    let object: Map<String, Value> = serde_json::from_str(json)?;
    // The object itself is the first level.
    if object.values().all(|value| is_within(value, CONTENT_DEPTH_MAX - 1)) {
        Ok(object)
    } else {
        Err(ContentError::TooDeep)
    }
}

/// Checks the nesting of a value that others will be sent.
///
/// # Errors
///
/// [`ContentError::TooDeep`]: the sender's fault, `M_BAD_JSON`.
pub fn check_depth(value: &Value) -> Result<(), ContentError> {
    if is_within(value, CONTENT_DEPTH_MAX) { Ok(()) } else { Err(ContentError::TooDeep) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_some_client_could_not_read_is_not_passed_on() {
        for json in [r#"{"x":"\ud800"}"#, r#"{"x":1e999}"#, r#"{"x":"#, "[]", "1", "", "{\"x\":\"\u{1}\"}"] {
            assert!(matches!(content_object(json), Err(ContentError::Unreadable(_))), "{json}");
        }
        let object = content_object(r#"{ "x": "\ud83d\ude00", "y": [1.5, {}] }"#).unwrap();
        assert_eq!(Value::Object(object).to_string(), r#"{"x":"😀","y":[1.5,{}]}"#);
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |levels: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(content_object(&nested(CONTENT_DEPTH_MAX)).is_ok());
        assert!(matches!(content_object(&nested(CONTENT_DEPTH_MAX + 1)), Err(ContentError::TooDeep)));
        assert!(content_object(&nested(5_000)).is_err());
        let value = |levels: usize| serde_json::from_str::<Value>(&nested(levels)).unwrap();
        assert!(check_depth(&value(CONTENT_DEPTH_MAX)).is_ok());
        assert!(check_depth(&value(CONTENT_DEPTH_MAX + 1)).is_err());
    }
}
