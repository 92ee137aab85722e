//! Our own keys, as other servers get them. Server-Server API, "Publishing Keys".

use model::LocalServer;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, api::federation::discovery::ServerSigningKeys, serde::Raw,
    signatures::sign_json,
};

use crate::Error;

/// How long an answer counts, in milliseconds: others ask again after half of it, and learn of a new key then.
const VALID_MS: i64 = 24 * 3_600_000;

/// The keys of one of our names, signed by itself at `now_ms`.
pub(crate) fn own_keys(server: &LocalServer, now_ms: i64) -> Result<Raw<ServerSigningKeys>, Error> {
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
    let time = |ms: i64| CanonicalJsonValue::Integer(Int::new_saturating(ms));
    let key = |parts: Vec<(&str, CanonicalJsonValue)>| {
        let parts = parts.into_iter().map(|(name, value)| (name.to_owned(), value));
        CanonicalJsonValue::Object(parts.collect())
    };
    let current = (server.key.id().to_string(), key(vec![("key", text(&server.key.public_key()))]));
    let old = server.old_keys.iter().map(|old| {
        (old.id.to_string(), key(vec![("key", text(&old.public_key)), ("expired_ts", time(old.expired_ms))]))
    });
    let object = CanonicalJsonObject::from([
        ("server_name".to_owned(), text(server.name.as_str())),
        ("verify_keys".to_owned(), CanonicalJsonObject::from([current]).into()),
        ("old_verify_keys".to_owned(), old.collect::<CanonicalJsonObject>().into()),
        ("valid_until_ts".to_owned(), time(now_ms + VALID_MS)),
    ]);
    signed(object, server)
}

/// An answer of another server with our signature beside its own: what we say as a notary.
pub(crate) fn countersigned(answer: &str, server: &LocalServer) -> Result<Raw<ServerSigningKeys>, Error> {
    let mut object: CanonicalJsonObject =
        serde_json::from_str(answer).map_err(|error| Error::BadRequest(error.to_string()))?;
    // It may have anything in the place of our signature.
    if let Some(CanonicalJsonValue::Object(signatures)) = object.get_mut("signatures") {
        signatures.remove(server.name.as_str());
    }
    signed(object, server)
}

fn signed(mut object: CanonicalJsonObject, server: &LocalServer) -> Result<Raw<ServerSigningKeys>, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::BadRequest(error.to_string());
    sign_json(server.name.as_str(), &server.key, &mut object).map_err(|error| bad(&error))?;
    Ok(Raw::new(&object).map_err(|error| bad(&error))?.cast_unchecked())
}
