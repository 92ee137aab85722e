//! Changes of devices and keys as other servers are told of them. Server-Server API, "Device Management".

use std::collections::HashMap;

use model::{Position, UserNr};
use ruma::{ServerName, UserId};
use serde_json::{Map, Value, json};

use super::{Sender, lossy::edu};

/// Who may see signatures of others on a key: nobody but them.
const NOBODY: UserNr = UserNr(0);

/// By user and by what is signed (a device, or a public key): who signed, with which key, the signature.
type Signatures = HashMap<(UserNr, String), Vec<[String; 3]>>;

impl Sender {
    /// The EDUs that tell of changes of devices, each with the position of the change, in canonical JSON.
    ///
    /// What changed is not told piece by piece: several changes of a user become one. So no EDU follows on another one, and who gets it
    /// asks for all devices of the user.
    pub(super) async fn device_edus(
        &self,
        origin: &ServerName,
        changes: &[(UserNr, Position)],
    ) -> Result<Vec<String>, storage::Error> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let storage = &self.0.storage;
        let users: Vec<UserNr> = changes.iter().map(|(user_nr, _)| *user_nr).collect();
        let names = storage.user_ids(&users).await?;
        let mut signatures = Signatures::new();
        for row in storage.list_key_signatures(&users, NOBODY).await? {
            signatures.entry((row.user_nr, row.target)).or_default().push([row.signer, row.key_id, row.signature]);
        }
        let mut devices = HashMap::new();
        for row in storage.list_device_keys(&users).await? {
            let keys = signed(&row.keys, signatures.get(&(row.user_nr, row.device_id.clone())));
            devices.entry(row.user_nr).or_insert((row.device_id, row.display_name, keys));
        }
        let mut cross_signing: HashMap<UserNr, Map<String, Value>> = HashMap::new();
        for (user_nr, usage, key) in storage.list_cross_signing_keys(&users).await? {
            let field = match &*usage {
                "master" => "master_key",
                "self_signing" => "self_signing_key",
                _ => continue,
            };
            let target = public_key(&key).and_then(|public| signatures.get(&(user_nr, public)));
            cross_signing.entry(user_nr).or_default().insert(field.to_owned(), signed(&key, target));
        }
        let mut edus = Vec::new();
        for (user_nr, position) in changes {
            let Some(user_id) = names.get(user_nr).filter(|user_id| user_id.server_name() == origin) else { continue };
            edus.push(edu("m.device_list_update", &device_update(user_id, *position, devices.remove(user_nr))));
            if let Some(mut keys) = cross_signing.remove(user_nr) {
                keys.insert("user_id".to_owned(), json!(user_id));
                edus.push(edu("m.signing_key_update", &Value::Object(keys)));
            }
        }
        Ok(edus)
    }
}

fn device_update(user_id: &UserId, position: Position, device: Option<(String, Option<String>, Value)>) -> Value {
    let mut content = json!({"user_id": user_id, "stream_id": position.0});
    match device {
        Some((device_id, name, keys)) => {
            content["device_id"] = json!(device_id);
            content["keys"] = keys;
            if let Some(name) = name {
                content["device_display_name"] = json!(name);
            }
        }
        None => {
            // The user has no device with keys any more: an id is asked for, and says nothing.
            content["device_id"] = json!("");
            content["deleted"] = json!(true);
        }
    }
    content
}

/// The key of a cross-signing key itself, which is what others sign.
fn public_key(key: &str) -> Option<String> {
    let key: Value = serde_json::from_str(key).ok()?;
    let keys = key.get("keys")?.as_object()?;
    keys.values().next()?.as_str().map(str::to_owned)
}

/// A key with the signatures that came later.
fn signed(key: &str, signatures: Option<&Vec<[String; 3]>>) -> Value {
    let mut key: Value = serde_json::from_str(key).unwrap_or_default();
    for [signer, key_id, signature] in signatures.into_iter().flatten() {
        key["signatures"][signer][key_id] = json!(signature);
    }
    key
}
