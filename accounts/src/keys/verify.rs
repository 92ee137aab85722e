//! Signatures of JSON by ed25519 keys. Appendices, "Checking for a Signature".

use ruma::canonical_json::CanonicalJsonValue;
use serde_json::{Map, Value};
use vodozemac::{Ed25519PublicKey, Ed25519Signature};

/// What is signed: canonical JSON without signatures and what servers add.
pub(crate) fn signed_text(object: &Map<String, Value>) -> Option<String> {
    let mut object = object.clone();
    object.remove("signatures");
    object.remove("unsigned");
    let canonical = CanonicalJsonValue::try_from(Value::Object(object)).ok()?;
    Some(canonical.to_string())
}

/// The signature of an object by a user's key `key_id`, such as `ed25519:JLAFKJWSCS`.
pub(crate) fn signature<'a>(object: &'a Map<String, Value>, user_id: &str, key_id: &str) -> Option<&'a str> {
    object.get("signatures")?.get(user_id)?.get(key_id)?.as_str()
}

/// Whether an object is signed by a user's key.
pub(crate) fn is_signed(object: &Map<String, Value>, user_id: &str, key_id: &str, public_key: &str) -> bool {
    let verify = || {
        let signature = Ed25519Signature::from_base64(signature(object, user_id, key_id)?).ok()?;
        let key = Ed25519PublicKey::from_base64(public_key).ok()?;
        key.verify(signed_text(object)?.as_bytes(), &signature).ok()
    };
    verify().is_some()
}

/// The one key of a cross-signing key object, as `(ed25519:<public part>, public part)`.
pub(crate) fn only_key(object: &Map<String, Value>) -> Option<(String, String)> {
    let keys = object.get("keys")?.as_object()?;
    let (key_id, key) = keys.iter().next().filter(|_| keys.len() == 1)?;
    let key = key.as_str()?;
    (key_id.strip_prefix("ed25519:") == Some(key)).then(|| (key_id.clone(), key.to_owned()))
}

/// An object of JSON text that we stored.
pub(crate) fn stored(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}
