//! Signatures of JSON by ed25519 keys. Appendices, "Checking for a Signature".

use ruma::{
    canonical_json::CanonicalJsonValue,
    serde::{Base64, base64::Standard},
};
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
        let key = ed25519_key(public_key)?;
        key.verify(signed_text(object)?.as_bytes(), &signature).ok()
    };
    verify().is_some()
}

/// A public key in unpadded Base64: nothing else, because clients compare keys as texts.
///
/// Not by `Ed25519PublicKey::from_base64`: that panics at texts of the right length which stand for another number of bytes.
pub(crate) fn ed25519_key(text: &str) -> Option<Ed25519PublicKey> {
    let bytes: Base64<Standard, [u8; 32]> = Base64::parse(text).ok()?;
    Ed25519PublicKey::from_slice(bytes.as_inner()).ok().filter(|key| key.to_base64() == text)
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

#[cfg(test)]
mod tests {
    use vodozemac::Ed25519SecretKey;

    use super::*;

    /// They come from other servers: at some of them `Ed25519PublicKey::from_base64` panics.
    #[test]
    fn only_a_key_in_unpadded_base64_is_one() {
        let good = Ed25519SecretKey::new().public_key().to_base64();
        assert_eq!(ed25519_key(&good).map(|key| key.to_base64()), Some(good.clone()));
        let (padded, short) = (format!("{good}="), format!("{}=", "A".repeat(42)));
        let of_44 = format!("{}==", "A".repeat(42));
        for bad in
            ["", "A", &"A".repeat(42), &"A".repeat(44), &"A".repeat(45), &padded, &short, &of_44, &"*".repeat(43)]
        {
            assert!(ed25519_key(bad).is_none(), "{bad}");
        }
    }
}
