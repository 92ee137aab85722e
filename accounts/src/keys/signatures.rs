//! Signatures that are added to keys. Client-Server API, "Cross-signing", "POST /keys/signatures/upload".

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use model::UserNr;
use ruma::OwnedUserId;
use serde_json::{Map, Value, json};
use storage::{ChangedKeys, Commit, DeviceListChange, KeySignatureRow};

use super::verify::{is_signed, only_key, signature, signed_text, stored};
use crate::{Accounts, Error, Requester};

/// Most keys of one upload.
const KEYS_MAX: usize = 1_000;

/// How long other servers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was wrong with which key, as JSON errors.
pub type SignatureFailures = BTreeMap<OwnedUserId, BTreeMap<String, Value>>;

/// The requester's own keys that can sign.
struct OwnKeys {
    master: Option<Map<String, Value>>,
    self_signing: Option<(String, String)>,
    user_signing: Option<(String, String)>,
}

type Rows = Vec<KeySignatureRow>;

impl Accounts {
    /// Adds the requester's signatures to keys: by the self-signing key to own devices, by devices to the own master key, by the
    /// user-signing key to other users' master keys. Gives back what was refused.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many keys.
    pub async fn upload_signatures(
        &self,
        requester: &Requester,
        signed: &BTreeMap<OwnedUserId, BTreeMap<String, Value>>,
    ) -> Result<SignatureFailures, Error> {
        if signed.values().map(BTreeMap::len).sum::<usize>() > KEYS_MAX {
            return Err(Error::InvalidParam(format!("at most {KEYS_MAX} keys at once")));
        }
        let own = self.own_keys(requester.user_nr).await?;
        let elsewhere = self.master_keys_elsewhere(requester, signed).await?;
        let mut failures = SignatureFailures::new();
        let mut rows = Rows::new();
        for (user_id, keys) in signed {
            for (target, object) in keys {
                let checked = match object {
                    Value::Object(object) if *user_id == requester.user_id => {
                        self.sign_own(requester, &own, target, object).await?
                    }
                    Value::Object(object) => {
                        let master = elsewhere.get(user_id);
                        self.sign_other(requester, &own, (user_id, master), target, object).await?
                    }
                    _ => Err(json!({"errcode": "M_BAD_JSON", "error": "not an object"})),
                };
                match checked {
                    Ok(new) => rows.extend(new),
                    Err(failure) => drop(failures.entry(user_id.clone()).or_default().insert(target.clone(), failure)),
                }
            }
        }
        if !rows.is_empty() {
            let device_lists = changes_by(requester.user_nr, &own, &rows);
            self.0.storage.commit(Commit { key_signatures: rows, device_lists, ..Commit::default() }).await?;
        }
        Ok(failures)
    }

    /// The master keys of users of other servers, asked for where they are not kept.
    async fn master_keys_elsewhere(
        &self,
        requester: &Requester,
        signed: &BTreeMap<OwnedUserId, BTreeMap<String, Value>>,
    ) -> Result<BTreeMap<OwnedUserId, Value>, Error> {
        let elsewhere = signed.keys().filter(|user_id| !self.0.servers.has_user(user_id));
        let wanted: BTreeMap<_, _> = elsewhere.map(|user_id| (user_id.clone(), Vec::new())).collect();
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        Ok(self.query_keys(requester, &wanted, PATIENCE).await?.master_keys)
    }

    async fn own_keys(&self, user_nr: UserNr) -> Result<OwnKeys, Error> {
        let mut own = OwnKeys { master: None, self_signing: None, user_signing: None };
        for (_, usage, key) in self.0.storage.list_cross_signing_keys(&[user_nr]).await? {
            let key = stored(&key);
            match &*usage {
                "master" => own.master = Some(key),
                "self_signing" => own.self_signing = only_key(&key),
                "user_signing" => own.user_signing = only_key(&key),
                _ => {}
            }
        }
        Ok(own)
    }

    async fn sign_own(
        &self,
        requester: &Requester,
        own: &OwnKeys,
        target: &str,
        object: &Map<String, Value>,
    ) -> Result<Result<Rows, Value>, Error> {
        let (user_id, user_nr) = (requester.user_id.as_str(), requester.user_nr);
        if let Some(master) =
            own.master.as_ref().filter(|key| only_key(key).is_some_and(|(_, public)| public == target))
        {
            if signed_text(master) != signed_text(object) {
                return Ok(Err(other_key()));
            }
            // Devices sign the master key; however many are named, those that there are are looked at.
            let mut rows = Rows::new();
            for device in self.0.storage.list_device_keys(&[user_nr]).await? {
                let key_id = format!("ed25519:{}", device.device_id);
                let keys = stored(&device.keys);
                let public = keys.get("keys").and_then(|keys| keys.get(&key_id)).and_then(Value::as_str);
                if public.is_some_and(|public| is_signed(object, user_id, &key_id, public)) {
                    rows.push(row(requester, user_nr, target, &key_id, object));
                }
            }
            return Ok(if rows.is_empty() { Err(bad_signature()) } else { Ok(rows) });
        }
        let Some(keys) = self.0.storage.get_device_keys(user_nr, target).await? else { return Ok(Err(no_key())) };
        if signed_text(&stored(&keys)) != signed_text(object) {
            return Ok(Err(other_key()));
        }
        Ok(match &own.self_signing {
            Some((key_id, public)) if is_signed(object, user_id, key_id, public) => {
                Ok(vec![row(requester, user_nr, target, key_id, object)])
            }
            _ => Err(bad_signature()),
        })
    }

    async fn sign_other(
        &self,
        requester: &Requester,
        own: &OwnKeys,
        (user_id, master): (&OwnedUserId, Option<&Value>),
        target: &str,
        object: &Map<String, Value>,
    ) -> Result<Result<Rows, Value>, Error> {
        let (user_nr, master) = match master.and_then(Value::as_object) {
            Some(master) => (self.0.storage.user_nr(user_id).await?, Some(master.clone())),
            None => {
                let Some(user_nr) = self.0.storage.find_user_nr(user_id).await? else { return Ok(Err(no_key())) };
                (user_nr, self.own_keys(user_nr).await?.master)
            }
        };
        let Some(master) = master.filter(|key| only_key(key).is_some_and(|(_, public)| public == target)) else {
            return Ok(Err(no_key()));
        };
        if signed_text(&master) != signed_text(object) {
            return Ok(Err(other_key()));
        }
        Ok(match &own.user_signing {
            Some((key_id, public)) if is_signed(object, requester.user_id.as_str(), key_id, public) => {
                Ok(vec![row(requester, user_nr, target, key_id, object)])
            }
            _ => Err(bad_signature()),
        })
    }
}

fn row(
    signer: &Requester,
    user_nr: UserNr,
    target: &str,
    key_id: &str,
    object: &Map<String, Value>,
) -> KeySignatureRow {
    KeySignatureRow {
        user_nr,
        target: target.to_owned(),
        signer_nr: signer.user_nr,
        signer: signer.user_id.to_string(),
        key_id: key_id.to_owned(),
        signature: signature(object, signer.user_id.as_str(), key_id).unwrap_or_default().to_owned(),
    }
}

/// What signatures change of the signer's own devices and keys; those on others' keys are seen by the signer alone.
fn changes_by(user_nr: UserNr, own: &OwnKeys, signatures: &[KeySignatureRow]) -> Vec<DeviceListChange> {
    let master = own.master.as_ref().and_then(only_key).map(|(_, public)| public);
    let signed = signatures.iter().filter(|row| row.user_nr == user_nr).map(|row| &row.target);
    let what = |target: &String| match master.as_ref() == Some(target) {
        true => ChangedKeys::CrossSigning,
        false => ChangedKeys::Device(target.clone()),
    };
    let signed: BTreeSet<&String> = signed.collect();
    signed.into_iter().map(|target| DeviceListChange { user_nr, what: what(target) }).collect()
}

fn bad_signature() -> Value {
    json!({"errcode": "M_INVALID_SIGNATURE", "error": "the signature is missing or wrong"})
}

fn other_key() -> Value {
    json!({"errcode": "M_INVALID_SIGNATURE", "error": "the signed key is not the one that is stored"})
}

fn no_key() -> Value {
    json!({"errcode": "M_NOT_FOUND", "error": "there is no such key"})
}
