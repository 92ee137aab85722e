//! Changes of devices and keys as other servers are told of them. Server-Server API, "Device Management".

use std::collections::{BTreeMap, HashMap};

use model::{Position, UserNr};
use ruma::{ServerName, UserId};
use serde_json::{Map, Value, json};
use storage::{ChangedKeys, DeviceListChangeRow};

use super::{Sender, destination::DeviceChange, lossy::edu};

/// Who may see signatures of others on a key: nobody but them.
const NOBODY: UserNr = UserNr(0);

/// By user and by what is signed (a device, or a public key): who signed, with which key, the signature.
type Signatures = HashMap<(UserNr, String), Vec<[String; 3]>>;

/// What is told of a change.
enum Told<'a> {
    /// One device, as the change after another one: who has that need not ask for anything.
    Device { device_id: &'a str, follows: Position },
    /// The keys by which the user signs.
    CrossSigning,
    /// That there is something new. It follows on nothing, so that who gets it asks for all devices of the user, unless they have them.
    Anything,
}

impl Told<'_> {
    /// Something between what the destination was told and the change may be missing, or is too old to be known piece by piece.
    fn of<'a>(change: &DeviceChange, row: Option<&'a DeviceListChangeRow>) -> Told<'a> {
        let is_missing = |row: &DeviceListChangeRow| change.missing_after.is_some_and(|after| row.follows > after);
        match row.filter(|row| !is_missing(row)) {
            None => Told::Anything,
            Some(DeviceListChangeRow { change, follows }) => match &change.what {
                ChangedKeys::Device(device_id) => Told::Device { device_id, follows: *follows },
                ChangedKeys::CrossSigning => Told::CrossSigning,
                ChangedKeys::Anything => Told::Anything,
            },
        }
    }
}

impl Sender {
    /// The EDUs that tell of changes of devices, in canonical JSON: of each change at most two.
    ///
    /// A change of a device is known by its position, and names the change of the same user before it: that is the same for all servers, so
    /// nothing is kept for each of them. What a device has is told as it is now.
    pub(super) async fn device_edus(
        &self,
        origin: &ServerName,
        changes: &[DeviceChange],
    ) -> Result<Vec<String>, storage::Error> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let storage = &self.0.storage;
        let positions: Vec<Position> = changes.iter().map(|change| change.position).collect();
        let rows = storage.list_device_list_changes_at(&positions).await?;
        let users: Vec<UserNr> = changes.iter().map(|change| change.user_nr).collect();
        let names = storage.user_ids(&users).await?;
        // First: what changes while the rest is read gets a later one.
        let newest = storage.list_device_list_positions(&users, storage.published()).await?;
        let keys = self.keys_of(&users).await?;
        let mut edus = Vec::new();
        for change in changes {
            let Some(user_id) = names.get(&change.user_nr).filter(|user_id| user_id.server_name() == origin) else {
                continue;
            };
            let of_user = keys.get(&change.user_nr);
            let told = Told::of(change, rows.get(&change.position));
            match &told {
                Told::Device { device_id, follows } => {
                    let device = of_user.and_then(|keys| keys.devices.get(*device_id));
                    let mut content = device_update(user_id, change.position, device_id, device);
                    if *follows > Position(0) {
                        content["prev_id"] = json!([follows.0]);
                    }
                    edus.push(edu("m.device_list_update", &content));
                }
                Told::CrossSigning => {}
                Told::Anything => {
                    // An id is asked for, and says nothing.
                    let first = of_user.and_then(|keys| keys.devices.iter().next());
                    let (device_id, device) = first.map_or(("", None), |(id, device)| (id.as_str(), Some(device)));
                    let position = newest.get(&change.user_nr).copied().unwrap_or_default();
                    edus.push(edu("m.device_list_update", &device_update(user_id, position, device_id, device)));
                }
            }
            let tells_keys = !matches!(told, Told::Device { .. }) || change.missing_after.is_some();
            if let Some(signing) = of_user.map(|keys| &keys.signing).filter(|keys| tells_keys && !keys.is_empty()) {
                let mut content = signing.clone();
                content.insert("user_id".to_owned(), json!(user_id));
                edus.push(edu("m.signing_key_update", &Value::Object(content)));
            }
        }
        Ok(edus)
    }

    /// The keys of users and their devices, as other servers see them.
    async fn keys_of(&self, users: &[UserNr]) -> Result<HashMap<UserNr, Keys>, storage::Error> {
        let storage = &self.0.storage;
        let mut signatures = Signatures::new();
        for row in storage.list_key_signatures(users, NOBODY).await? {
            signatures.entry((row.user_nr, row.target)).or_default().push([row.signer, row.key_id, row.signature]);
        }
        let mut keys: HashMap<UserNr, Keys> = HashMap::new();
        for row in storage.list_device_keys(users).await? {
            let target = (row.user_nr, row.device_id);
            let device = signed(&row.keys, signatures.get(&target));
            keys.entry(row.user_nr).or_default().devices.insert(target.1, device);
        }
        for (user_nr, usage, key) in storage.list_cross_signing_keys(users).await? {
            let field = match &*usage {
                "master" => "master_key",
                "self_signing" => "self_signing_key",
                _ => continue,
            };
            let target = public_key(&key).and_then(|public| signatures.get(&(user_nr, public)));
            keys.entry(user_nr).or_default().signing.insert(field.to_owned(), signed(&key, target));
        }
        Ok(keys)
    }
}

/// The keys of a user.
#[derive(Default)]
struct Keys {
    /// Of devices, by id.
    devices: BTreeMap<String, Value>,
    /// By which the user signs, by their names in EDUs.
    signing: Map<String, Value>,
}

/// What devices are called is not for other servers. A device without keys, or that is gone, is deleted.
fn device_update(user_id: &UserId, position: Position, device_id: &str, keys: Option<&Value>) -> Value {
    let mut content = json!({"user_id": user_id, "stream_id": position.0, "device_id": device_id});
    match keys {
        Some(keys) => content["keys"] = keys.clone(),
        None => content["deleted"] = json!(true),
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
