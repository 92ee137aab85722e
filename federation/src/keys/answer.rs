//! What a server says of its keys. Server-Server API, "Publishing Keys".

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, ServerName,
    api::federation::discovery::ServerSigningKeys,
    serde::{Base64, Raw},
    signatures::{PublicKeyMap, PublicKeySet, verify_json},
};

/// Most keys in one answer, old ones among them. Servers that have got a new key each year since Matrix exists have a tenth of it.
pub(crate) const KEYS_MAX: usize = 100;

/// Longest answer, in bytes: one with as many keys as there may be has less than half.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Longest id of a key, in bytes.
pub(crate) const KEY_ID_BYTES_MAX: usize = 128;

/// A public ed25519 key, in bytes.
const KEY_BYTES: usize = 32;

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
    /// Those that can sign: ed25519 keys.
    pub(crate) keys: Vec<SaidKey>,
    /// As it was signed.
    pub(crate) json: String,
}

impl Answer {
    /// Reads what should be the answer of `server`; or says what is wrong with it.
    pub(crate) fn read(server: &ServerName, raw: &Raw<ServerSigningKeys>) -> Result<Self, &'static str> {
        if raw.json().get().len() > ANSWER_BYTES_MAX {
            return Err("what it says of its keys is too long");
        }
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
        let mut keys: Vec<SaidKey> = current.chain(old).collect();
        keys.retain(SaidKey::can_sign);
        let current = keys.iter().filter(|key| !key.is_old).map(|key| (key.id.clone(), key.public.clone()));
        if !is_signed_by(raw.json().get(), server, &current.collect()) {
            return Err("its keys are not signed by themselves");
        }
        Ok(Self { keys, json: raw.json().get().to_owned() })
    }
}

impl SaidKey {
    fn can_sign(&self) -> bool {
        self.id.starts_with("ed25519:")
            && self.id.len() <= KEY_ID_BYTES_MAX
            && self.public.as_bytes().len() == KEY_BYTES
    }
}

/// Whether an answer has a valid signature of `server` with one of these keys. Other signatures on it do not matter.
pub(crate) fn is_signed_by(answer: &str, server: &ServerName, keys: &PublicKeySet) -> bool {
    let Ok(mut object) = serde_json::from_str::<CanonicalJsonObject>(answer) else { return false };
    let Some(CanonicalJsonValue::Object(mut signatures)) = object.remove("signatures") else { return false };
    let Some(own) = signatures.remove(server.as_str()) else { return false };
    object.insert("signatures".to_owned(), CanonicalJsonObject::from([(server.to_string(), own)]).into());
    verify_json(&PublicKeyMap::from([(server.to_string(), keys.clone())]), &object).is_ok()
}
