//! Signed JSON with Ed25519. Appendices, "Signing JSON".
//!
//! Everything that another device or user says about keys is a JSON object with signatures. Objects are kept and signed as they came, with
//! all properties, since a signature covers those that we do not know, too.

use ruma::{CanonicalJsonObject, serde::Base64};
use serde_json::{Map, Value};
use vodozemac::{Ed25519PublicKey, Ed25519Signature};

use crate::Error;

/// A JSON object as it was sent.
pub type Object = Map<String, Value>;

/// The bytes of an object that are signed: canonical JSON without `signatures` and `unsigned`.
///
/// # Errors
///
/// [`Error::Malformed`] when it has numbers that canonical JSON does not know.
pub fn signed_bytes(object: &Object) -> Result<Vec<u8>, Error> {
    let mut object = object.clone();
    object.remove("signatures");
    object.remove("unsigned");
    canonical_json(object)
}

/// An object as canonical JSON. Appendices, "Canonical JSON".
///
/// # Errors
///
/// [`Error::Malformed`] when it has numbers that canonical JSON does not know.
pub fn canonical_json(object: Object) -> Result<Vec<u8>, Error> {
    let object: CanonicalJsonObject =
        ruma::canonical_json::try_from_json_map(object).map_err(|_| Error::Malformed("JSON that cannot be signed"))?;
    Ok(serde_json::to_vec(&object).expect("canonical JSON can be written"))
}

/// Adds the signature of `user_id`'s key `ed25519:key_name`, which `sign` makes.
///
/// # Errors
///
/// [`Error::Malformed`] when the object cannot be signed.
pub fn add_signature(
    object: &mut Object,
    user_id: &str,
    key_name: &str,
    sign: impl FnOnce(&[u8]) -> Ed25519Signature,
) -> Result<(), Error> {
    let signature = sign(&signed_bytes(object)?).to_base64();
    let signatures = object.entry("signatures").or_insert_with(|| Value::Object(Map::new()));
    let malformed = || Error::Malformed("signatures");
    let of_user = signatures.as_object_mut().ok_or_else(malformed)?.entry(user_id);
    let of_user = of_user.or_insert_with(|| Value::Object(Map::new())).as_object_mut().ok_or_else(malformed)?;
    of_user.insert(format!("ed25519:{key_name}"), signature.into());
    Ok(())
}

/// Whether `user_id`'s key `ed25519:key_name`, whose public part is `key`, signed the object.
#[must_use]
pub fn is_signed_by(object: &Object, user_id: &str, key_name: &str, key: &Ed25519PublicKey) -> bool {
    let signature = object
        .get("signatures")
        .and_then(|signatures| signatures.get(user_id)?.get(format!("ed25519:{key_name}"))?.as_str())
        .and_then(|signature| Ed25519Signature::from_base64(signature).ok());
    match (signature, signed_bytes(object)) {
        (Some(signature), Ok(bytes)) => key.verify(&bytes, &signature).is_ok(),
        _ => false,
    }
}

/// Largest object of somebody else that is kept, as JSON, and the most levels in it.
const BYTES_MAX: usize = 16 * 1024;
const DEPTH_MAX: usize = 32;

/// Checks that an object of somebody else is small enough to be kept: JSON can be written deeper than it can be read again.
///
/// # Errors
///
/// [`Error::Malformed`] when it is not.
pub fn check_bounds(object: &Object) -> Result<(), Error> {
    fn is_flat(value: &Value, levels: usize) -> bool {
        match value {
            Value::Array(values) => levels > 0 && values.iter().all(|value| is_flat(value, levels - 1)),
            Value::Object(values) => levels > 0 && values.values().all(|value| is_flat(value, levels - 1)),
            _ => true,
        }
    }
    let is_small = || serde_json::to_vec(object).is_ok_and(|json| json.len() <= BYTES_MAX);
    if object.values().all(|value| is_flat(value, DEPTH_MAX)) && is_small() {
        Ok(())
    } else {
        Err(Error::Malformed("keys: they are too large"))
    }
}

/// Reads a public Ed25519 key of somebody else.
///
/// Not with `Ed25519PublicKey::from_base64`: that one panics at 44 characters which stand for 33 bytes.
///
/// # Errors
///
/// [`Error::Malformed`] when it is none.
pub fn ed25519_key(text: &str) -> Result<Ed25519PublicKey, Error> {
    let malformed = || Error::Malformed("Ed25519 key");
    let bytes: Base64<ruma::serde::base64::Standard, [u8; 32]> = Base64::parse(text).map_err(|_| malformed())?;
    Ed25519PublicKey::from_slice(bytes.as_inner()).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vodozemac::Ed25519SecretKey;

    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().expect("an object").clone()
    }

    /// Appendices, "Cryptographic Test Vectors": the key is made of the published seed.
    #[test]
    fn the_specifications_objects_get_the_specifications_signatures() {
        // Its last character has bits too many, which vodozemac does not read.
        let seed: Base64<ruma::serde::base64::Standard, [u8; 32]> =
            Base64::parse("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").expect("a seed");
        let key = Ed25519SecretKey::from_slice(seed.as_inner());
        for (mut signed, signature) in [
            (
                object(json!({})),
                "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ",
            ),
            (
                object(json!({ "one": 1, "two": "Two" })),
                "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
            ),
        ] {
            add_signature(&mut signed, "domain", "1", |bytes| key.sign(bytes)).expect("it is signed");
            assert_eq!(signed["signatures"]["domain"]["ed25519:1"], signature);
            assert!(is_signed_by(&signed, "domain", "1", &key.public_key()));
            signed.insert("unsigned".to_owned(), json!({ "age": 1 }));
            assert!(is_signed_by(&signed, "domain", "1", &key.public_key()), "what is unsigned is not covered");
            signed.insert("more".to_owned(), json!(1));
            assert!(!is_signed_by(&signed, "domain", "1", &key.public_key()), "an addition breaks the signature");
        }
    }

    #[test]
    fn a_signature_counts_only_under_its_user_and_key() {
        let (key, other) = (Ed25519SecretKey::new(), Ed25519SecretKey::new());
        let mut signed = object(json!({ "a": 1 }));
        add_signature(&mut signed, "@a:x", "K", |bytes| key.sign(bytes)).expect("it is signed");
        assert!(is_signed_by(&signed, "@a:x", "K", &key.public_key()));
        assert!(!is_signed_by(&signed, "@b:x", "K", &key.public_key()));
        assert!(!is_signed_by(&signed, "@a:x", "L", &key.public_key()));
        assert!(!is_signed_by(&signed, "@a:x", "K", &other.public_key()));
    }

    #[test]
    fn keys_and_signatures_of_any_form_are_refused_without_a_panic() {
        for text in ["", "A", &"A".repeat(42), &"A".repeat(44), &"A".repeat(45), "ü", &"=".repeat(44)] {
            assert!(ed25519_key(text).is_err(), "{text}");
        }
        let key = Ed25519SecretKey::new().public_key();
        for signatures in [json!(null), json!([]), json!({ "@a:x": 1 }), json!({ "@a:x": { "ed25519:K": "A" } })] {
            assert!(!is_signed_by(&object(json!({ "signatures": signatures })), "@a:x", "K", &key));
        }
        assert!(!is_signed_by(
            &object(json!({ "float": 1.5, "signatures": { "@a:x": { "ed25519:K": "" } } })),
            "@a:x",
            "K",
            &key
        ));
    }
}
