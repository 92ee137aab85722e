//! Canonical JSON at the door.

use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use serde_json::{Value, value::RawValue};

use crate::limits;

/// Why a text is not an object of canonical JSON.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// Not JSON, or not an object.
    #[error("not a JSON object")]
    NotAnObject,
    /// JSON that has no canonical form: a float, or an integer beyond 2^53 - 1. Appendices, "Canonical JSON".
    #[error("a number is not an integer between -(2^53)+1 and (2^53)-1")]
    BadNumber,
    /// Nested deeper than [`limits::CONTENT_DEPTH_MAX`].
    #[error("nested more than {} levels deep", limits::CONTENT_DEPTH_MAX)]
    TooDeep,
}

/// Reads an object whose numbers all are integers in range, and that is not too deep. Appendices, "Canonical JSON".
///
/// # Errors
///
/// [`CanonicalError`]: the sender's fault, `M_BAD_JSON`.
pub fn canonical_object(json: &RawValue) -> Result<CanonicalJsonObject, CanonicalError> {
    let value: Value = serde_json::from_str(json.get()).map_err(|_| CanonicalError::NotAnObject)?;
    if !is_within(&value, limits::CONTENT_DEPTH_MAX) {
        return Err(CanonicalError::TooDeep);
    }
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        Ok(_) => Err(CanonicalError::NotAnObject),
        Err(_) => Err(CanonicalError::BadNumber),
    }
}

/// Whether a value has no more than so many levels of objects and arrays.
pub(crate) fn is_within(value: &Value, levels: usize) -> bool {
    match value {
        Value::Object(object) => levels > 0 && object.values().all(|value| is_within(value, levels - 1)),
        Value::Array(array) => levels > 0 && array.iter().all(|value| is_within(value, levels - 1)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<CanonicalJsonObject, CanonicalError> {
        canonical_object(&RawValue::from_string(json.to_owned()).unwrap())
    }

    #[test]
    fn numbers_outside_of_canonical_json_are_refused() {
        for json in ["{\"a\":1.5}", "{\"a\":9007199254740992}", "{\"a\":[{\"b\":1e300}]}", "{\"a\":-9007199254740992}"]
        {
            assert!(matches!(read(json), Err(CanonicalError::BadNumber)), "{json}");
        }
        assert!(read("{\"a\":9007199254740991}").is_ok());
        assert!(matches!(read("[1]"), Err(CanonicalError::NotAnObject)));
    }

    /// What is nested as deep as can be read at all cannot be shown: an answer wraps it.
    #[test]
    fn what_is_nested_too_deep_is_refused() {
        let nested = |levels: usize| {
            let inner = levels - 1;
            format!("{{\"a\":{}{}}}", "[".repeat(inner), "]".repeat(inner))
        };
        assert!(read(&nested(limits::CONTENT_DEPTH_MAX)).is_ok());
        for levels in [limits::CONTENT_DEPTH_MAX + 1, 127] {
            assert!(matches!(read(&nested(levels)), Err(CanonicalError::TooDeep)), "{levels}");
        }
    }

    #[test]
    fn keys_are_sorted_and_white_space_goes() {
        let object = read("{ \"b\": 1, \"a\": {\"d\": \"\\u00e9\", \"c\": null} }").unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), "{\"a\":{\"c\":null,\"d\":\"é\"},\"b\":1}");
    }
}
