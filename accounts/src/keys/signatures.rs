//! Signatures that are added to keys. Client-Server API, "Cross-signing", "POST /keys/signatures/upload".

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use model::UserNr;
use ruma::{OwnedUserId, UserId};
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

/// The keys that signatures are checked against, read once for all of an upload.
#[derive(Default)]
struct Known {
    /// The requester's own.
    master: Option<Map<String, Value>>,
    self_signing: Option<(String, String)>,
    user_signing: Option<(String, String)>,
    /// Of the requester's devices.
    devices: HashMap<String, Map<String, Value>>,
    /// The master keys of others.
    others: HashMap<OwnedUserId, (UserNr, Map<String, Value>)>,
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
        let known = self.known_keys(requester, signed).await?;
        let mut failures = SignatureFailures::new();
        let mut rows = Rows::new();
        for (user_id, keys) in signed {
            for (target, object) in keys {
                let checked = match object {
                    Value::Object(object) if *user_id == requester.user_id => known.sign_own(requester, target, object),
                    Value::Object(object) => known.sign_other(requester, user_id, target, object),
                    _ => Err(json!({"errcode": "M_BAD_JSON", "error": "not an object"})),
                };
                match checked {
                    Ok(new) => rows.extend(new),
                    Err(failure) => drop(failures.entry(user_id.clone()).or_default().insert(target.clone(), failure)),
                }
            }
        }
        if !rows.is_empty() {
            let device_lists = changes_by(requester.user_nr, &known, &rows);
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

    async fn known_keys(
        &self,
        requester: &Requester,
        signed: &BTreeMap<OwnedUserId, BTreeMap<String, Value>>,
    ) -> Result<Known, Error> {
        let storage = &self.0.storage;
        let mut known = Known::default();
        for (user_id, master) in self.master_keys_elsewhere(requester, signed).await? {
            if let Value::Object(master) = master {
                let user_nr = storage.user_nr(&user_id).await?;
                known.others.insert(user_id, (user_nr, master));
            }
        }
        let local = signed.keys().filter(|user_id| self.0.servers.has_user(user_id));
        let local: Vec<&UserId> = local.map(|user_id| &**user_id).filter(|id| *id != requester.user_id).collect();
        let found = storage.find_user_nrs(&local).await?;
        let found: HashMap<UserNr, &UserId> = found.into_iter().map(|(user_id, user_nr)| (user_nr, user_id)).collect();
        let users: Vec<UserNr> = found.keys().copied().chain([requester.user_nr]).collect();
        for (user_nr, usage, key) in storage.list_cross_signing_keys(&users).await? {
            match (&*usage, found.get(&user_nr)) {
                ("master", None) => known.master = Some(stored(&key)),
                ("self_signing", None) => known.self_signing = only_key(&stored(&key)),
                ("user_signing", None) => known.user_signing = only_key(&stored(&key)),
                ("master", Some(user_id)) => {
                    known.others.insert((*user_id).to_owned(), (user_nr, stored(&key)));
                }
                _ => {}
            }
        }
        if signed.contains_key(&requester.user_id) {
            let devices = storage.list_device_keys(&[requester.user_nr]).await?;
            known.devices = devices.into_iter().map(|row| (row.device_id, stored(&row.keys))).collect();
        }
        Ok(known)
    }
}

impl Known {
    fn sign_own(&self, requester: &Requester, target: &str, object: &Map<String, Value>) -> Result<Rows, Value> {
        let (user_id, user_nr) = (requester.user_id.as_str(), requester.user_nr);
        let is_target = |key: &&Map<String, Value>| only_key(key).is_some_and(|(_, public)| public == target);
        if let Some(master) = self.master.as_ref().filter(is_target) {
            if signed_text(master) != signed_text(object) {
                return Err(other_key());
            }
            // Devices sign the master key; however many are named, those that there are are looked at.
            let mut rows = Rows::new();
            for (device_id, keys) in &self.devices {
                let key_id = format!("ed25519:{device_id}");
                let public = keys.get("keys").and_then(|keys| keys.get(&key_id)).and_then(Value::as_str);
                if public.is_some_and(|public| is_signed(object, user_id, &key_id, public)) {
                    rows.push(row(requester, user_nr, target, &key_id, object));
                }
            }
            return if rows.is_empty() { Err(bad_signature()) } else { Ok(rows) };
        }
        let Some(keys) = self.devices.get(target) else { return Err(no_key()) };
        if signed_text(keys) != signed_text(object) {
            return Err(other_key());
        }
        match &self.self_signing {
            Some((key_id, public)) if is_signed(object, user_id, key_id, public) => {
                Ok(vec![row(requester, user_nr, target, key_id, object)])
            }
            _ => Err(bad_signature()),
        }
    }

    fn sign_other(
        &self,
        requester: &Requester,
        user_id: &UserId,
        target: &str,
        object: &Map<String, Value>,
    ) -> Result<Rows, Value> {
        let is_target = |key: &Map<String, Value>| only_key(key).is_some_and(|(_, public)| public == target);
        let Some((user_nr, master)) = self.others.get(user_id).filter(|(_, master)| is_target(master)) else {
            return Err(no_key());
        };
        if signed_text(master) != signed_text(object) {
            return Err(other_key());
        }
        match &self.user_signing {
            Some((key_id, public)) if is_signed(object, requester.user_id.as_str(), key_id, public) => {
                Ok(vec![row(requester, *user_nr, target, key_id, object)])
            }
            _ => Err(bad_signature()),
        }
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
fn changes_by(user_nr: UserNr, known: &Known, signatures: &[KeySignatureRow]) -> Vec<DeviceListChange> {
    let master = known.master.as_ref().and_then(only_key).map(|(_, public)| public);
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
