//! What a server says of its keys. Server-Server API, "Publishing Keys".

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, ServerName,
    api::federation::discovery::ServerSigningKeys,
    serde::{Base64, Raw},
    signatures::{PublicKeyMap, PublicKeySet, verify_json},
};

/// Most keys in one answer, old ones among them.
const KEYS_MAX: usize = 200;

/// A key as its server says it.
#[derive(Clone, Debug)]
pub(crate) struct SaidKey {
    pub(crate) id: String,
    pub(crate) public: Base64,
    /// Until when it signs, or when it ended, in milliseconds since 1970.
    pub(crate) until_ms: i64,
    pub(crate) is_old: bool,
}

/// A checked answer: of this server, and signed with one of the keys that it names.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) keys: Vec<SaidKey>,
    /// As it was signed.
    pub(crate) json: String,
}

impl Answer {
    /// Reads what should be the answer of `server`; or says what is wrong with it.
    pub(crate) fn read(server: &ServerName, raw: &Raw<ServerSigningKeys>) -> Result<Self, &'static str> {
        let said = raw.deserialize().map_err(|_| "its keys are not in the form of keys")?;
        if said.server_name != server {
            return Err("it sent the keys of another server");
        }
        if said.verify_keys.len() + said.old_verify_keys.len() > KEYS_MAX {
            return Err("it has more keys than anybody needs");
        }
        let valid_until_ms = i64::from(said.valid_until_ts.0);
        let current = said.verify_keys.iter().map(|(id, key)| SaidKey {
            id: id.to_string(),
            public: key.key.clone(),
            until_ms: valid_until_ms,
            is_old: false,
        });
        let old = said.old_verify_keys.iter().map(|(id, key)| SaidKey {
            id: id.to_string(),
            public: key.key.clone(),
            until_ms: i64::from(key.expired_ts.0),
            is_old: true,
        });
        let keys: Vec<SaidKey> = current.chain(old).collect();
        let current = keys.iter().filter(|key| !key.is_old).map(|key| (key.id.clone(), key.public.clone()));
        if !is_signed_by(raw, server, &current.collect()) {
            return Err("its keys are not signed by themselves");
        }
        Ok(Self { keys, json: raw.json().get().to_owned() })
    }
}

/// Whether an answer has a valid signature of `server` with one of these keys. Other signatures on it do not matter.
pub(crate) fn is_signed_by(raw: &Raw<ServerSigningKeys>, server: &ServerName, keys: &PublicKeySet) -> bool {
    let Ok(mut object) = serde_json::from_str::<CanonicalJsonObject>(raw.json().get()) else { return false };
    let Some(CanonicalJsonValue::Object(mut signatures)) = object.remove("signatures") else { return false };
    let Some(own) = signatures.remove(server.as_str()) else { return false };
    object.insert("signatures".to_owned(), CanonicalJsonObject::from([(server.to_string(), own)]).into());
    verify_json(&PublicKeyMap::from([(server.to_string(), keys.clone())]), &object).is_ok()
}
