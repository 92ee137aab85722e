//! Canonical JSON at the door.

use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use serde_json::value::RawValue;

/// Why a text is not an object of canonical JSON.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// Not JSON, or not an object.
    #[error("not a JSON object")]
    NotAnObject,
    /// JSON that has no canonical form: a float, or an integer beyond 2^53 - 1. Appendices, "Canonical JSON".
    #[error("a number is not an integer between -(2^53)+1 and (2^53)-1")]
    BadNumber,
}

/// Reads an object whose numbers all are integers in range. Appendices, "Canonical JSON".
///
/// # Errors
///
/// [`CanonicalError`]: the sender's fault, `M_BAD_JSON`.
pub fn canonical_object(json: &RawValue) -> Result<CanonicalJsonObject, CanonicalError> {
    let value: serde_json::Value = serde_json::from_str(json.get()).map_err(|_| CanonicalError::NotAnObject)?;
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        Ok(_) => Err(CanonicalError::NotAnObject),
        Err(_) => Err(CanonicalError::BadNumber),
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

    #[test]
    fn keys_are_sorted_and_white_space_goes() {
        let object = read("{ \"b\": 1, \"a\": {\"d\": \"\\u00e9\", \"c\": null} }").unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), "{\"a\":{\"c\":null,\"d\":\"é\"},\"b\":1}");
    }
}
