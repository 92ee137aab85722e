//! What other servers say of their users' devices and keys. Server-Server API, "Device Management".
//!
//! The list of a user who shares a room with one of ours is kept from the first question on, and updated by what the user's server
//! sends. What cannot be added to it, because something between is missing, makes it incomplete: [`super::asking`] asks for all of it.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use model::{UserNr, content_object, limits::is_name};
use ruma::{
    OwnedUserId, ServerName, UserId,
    api::federation::{
        device::get_devices,
        transactions::edu::{DeviceListUpdateContent, SigningKeyUpdateContent},
    },
    serde::Raw,
};
use serde_json::Value;
use storage::{Commit, RemoteDevice, RemoteDeviceList, RemoteDevices};
use tracing::{debug, warn};

use super::{
    cross_signing,
    verify::{only_key, stored},
};
use crate::{
    Accounts, Error,
    sessions::{DEVICE_NAME_BYTES_MAX, DEVICES_MAX},
};

/// Most devices that are kept of a user of another server. Of more, as of a program that logs in anew each time it runs, it is some of
/// them: the user's server is no less to be trusted, and its other users need their keys.
pub(super) const REMOTE_DEVICES_MAX: usize = DEVICES_MAX as usize;
/// The shortest time between two questions for the same list, whatever comes meanwhile.
pub(super) const PAUSE: Duration = Duration::from_secs(5);
/// Largest keys of a device, in bytes of JSON.
const KEYS_BYTES_MAX: usize = 8_192;
/// Longest id of a device, in bytes.
const DEVICE_ID_BYTES_MAX: usize = 255;

/// What an update, or several in a row, do to a list.
#[derive(Debug, PartialEq, Eq)]
enum Effect {
    /// All of it was known.
    Nothing,
    /// The list is as these devices say then, and its state has this name.
    Changes(i64, RemoteDevices),
    /// Something between is missing.
    Gap,
}

impl Accounts {
    /// Takes in what the server `origin` says of its users' devices and keys. What speaks of others, or of users who share no room with
    /// ours, is passed over.
    ///
    /// # Errors
    ///
    /// When the database fails; it may be said again then.
    pub async fn take_device_updates(
        &self,
        origin: &ServerName,
        devices: Vec<DeviceListUpdateContent>,
        signing: Vec<SigningKeyUpdateContent>,
    ) -> Result<(), Error> {
        let mut by_user: BTreeMap<OwnedUserId, (Vec<DeviceListUpdateContent>, Vec<SigningKeyUpdateContent>)> =
            BTreeMap::new();
        for update in devices {
            by_user.entry(update.user_id.clone()).or_default().0.push(update);
        }
        for update in signing {
            by_user.entry(update.user_id.clone()).or_default().1.push(update);
        }
        by_user.retain(|user_id, _| user_id.server_name() == origin);
        if by_user.is_empty() {
            return Ok(());
        }
        let storage = &self.0.storage;
        let users: Vec<&UserId> = by_user.keys().map(|user_id| &**user_id).collect();
        let numbers = storage.find_user_nrs(&users).await?;
        let sharing = self.sharing(&numbers.values().copied().collect::<Vec<_>>()).await?;
        let lists = storage.list_remote_device_lists(&sharing.keys().copied().collect::<Vec<_>>()).await?;
        let (mut gaps, mut device_lists) = (Vec::new(), Vec::new());
        for (user_id, (devices, signing)) in &by_user {
            let Some(user_nr) = numbers.get(&**user_id).filter(|user_nr| sharing.contains_key(user_nr)) else {
                continue;
            };
            let Some(list) = lists.get(user_nr) else {
                // Clients may know keys that are not kept here.
                device_lists.push((*user_nr).into());
                continue;
            };
            if !self.take_updates(user_id, list, devices, signing).await? {
                debug!(user.id = %user_id, "an update of {user_id}'s devices does not follow on what is known");
                gaps.push(list.user_nr);
            }
        }
        if !device_lists.is_empty() {
            storage.commit(Commit { device_lists, ..Commit::default() }).await?;
        }
        storage.note_gaps_in_remote_devices(&gaps, PAUSE.as_millis() as i64).await?;
        if !gaps.is_empty() {
            self.0.device_lists.wake();
        }
        Ok(())
    }

    /// Adds updates to a user's list; `false` when something is missing.
    async fn take_updates(
        &self,
        user_id: &UserId,
        list: &RemoteDeviceList,
        devices: &[DeviceListUpdateContent],
        signing: &[SigningKeyUpdateContent],
    ) -> Result<bool, Error> {
        let (None, Some(newest)) = (list.ask_at_ms, list.stream_id) else {
            // An answer that is under way may be older than this.
            return Ok(false);
        };
        let (stream_id, mut updates) = match effect_of(newest, devices) {
            Effect::Nothing => (newest, RemoteDevices::default()),
            Effect::Changes(stream_id, updates) => (stream_id, updates),
            Effect::Gap => return Ok(false),
        };
        // Of several the last counts.
        let keys: BTreeMap<_, _> = signing.iter().flat_map(|update| signing_keys(user_id, update)).collect();
        updates.cross_signing_keys = keys.into_iter().collect();
        if stream_id == newest && updates == RemoteDevices::default() {
            return Ok(true);
        }
        self.log_replaced_keys(user_id, list.user_nr, &updates.cross_signing_keys).await?;
        let is_written = self.0.storage.update_remote_devices(list, stream_id, &updates, REMOTE_DEVICES_MAX).await?;
        self.follow_up(list.user_nr).await;
        Ok(is_written)
    }

    /// Logs which signing keys of a user their server replaces. They are passed on as they are told: whether to believe them is for the
    /// clients, which know by their own verifications.
    pub(super) async fn log_replaced_keys(
        &self,
        user_id: &UserId,
        user_nr: UserNr,
        keys: &[(&'static str, String)],
    ) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        for (_, usage, old) in self.0.storage.list_cross_signing_keys(&[user_nr]).await? {
            let new = keys.iter().find(|(name, _)| *name == usage).and_then(|(_, new)| only_key(&stored(new)));
            let old = only_key(&stored(&old));
            if let (Some((old, _)), Some((new, _))) = (old, new)
                && old != new
            {
                warn!(user.id = %user_id, key.usage = usage, key.old = old, key.new = new,
                    "the server of {user_id} replaced their {usage} key");
            }
        }
        Ok(())
    }
}

/// What updates do to a list whose newest is named. Server-Server API, "Device Management": an update follows on those that it names.
fn effect_of(mut newest: i64, updates: &[DeviceListUpdateContent]) -> Effect {
    let mut known = HashSet::from([newest]);
    let mut changes: BTreeMap<&str, Option<RemoteDevice>> = BTreeMap::new();
    for update in updates {
        let stream_id = i64::from(update.stream_id);
        if known.contains(&stream_id) {
            continue;
        }
        let follows = !update.prev_id.is_empty() && update.prev_id.iter().all(|prev| known.contains(&i64::from(*prev)));
        if !follows {
            return Effect::Gap;
        }
        known.insert(stream_id);
        newest = stream_id;
        let keys = update.keys.as_ref().filter(|_| update.deleted != Some(true));
        let device_id = update.device_id.as_str();
        let device = keys.and_then(|keys| {
            device_of(&update.user_id, device_id, keys.json().get(), update.device_display_name.clone())
        });
        if is_name(device_id, DEVICE_ID_BYTES_MAX) {
            changes.insert(device_id, device);
        }
    }
    if known.len() == 1 {
        return Effect::Nothing;
    }
    let mut effect = RemoteDevices::default();
    for (device_id, device) in changes {
        match device {
            Some(device) => effect.devices.push(device),
            None => effect.gone.push(device_id.to_owned()),
        }
    }
    Effect::Changes(newest, effect)
}

/// What a server says of all devices of a user, with the name of that state; nothing when it speaks of somebody else. Devices whose keys
/// are not theirs are left out, and those beyond [`REMOTE_DEVICES_MAX`].
pub(super) fn devices_of(user_id: &UserId, answer: get_devices::v1::Response) -> Option<(i64, RemoteDevices)> {
    if answer.user_id != user_id {
        return None;
    }
    let devices = answer.devices.into_iter().filter_map(|device| {
        let device_id = device.device_id.as_str();
        let of_device = device_of(user_id, device_id, device.keys.json().get(), device.device_display_name)?;
        Some((of_device.device_id.clone(), of_device))
    });
    // A device that is named twice is one.
    let devices: BTreeMap<String, RemoteDevice> = devices.collect();
    if devices.len() > REMOTE_DEVICES_MAX {
        debug!(user.id = %user_id, "{user_id} has {} devices, of which {REMOTE_DEVICES_MAX} are kept", devices.len());
    }
    let keys = [("master", answer.master_key.as_ref()), ("self_signing", answer.self_signing_key.as_ref())];
    let keys = keys.into_iter().filter_map(|(usage, key)| Some((usage, signing_key(user_id, usage, key?)?)));
    let all = RemoteDevices {
        devices: devices.into_values().take(REMOTE_DEVICES_MAX).collect(),
        gone: Vec::new(),
        cross_signing_keys: keys.collect(),
    };
    Some((i64::from(answer.stream_id), all))
}

/// A device with its keys, if they are its own and within bounds.
fn device_of(user_id: &UserId, device_id: &str, keys: &str, display_name: Option<String>) -> Option<RemoteDevice> {
    let keys = checked_device_keys(user_id, device_id, keys)?;
    let display_name = display_name.filter(|name| name.len() <= DEVICE_NAME_BYTES_MAX);
    Some(RemoteDevice { device_id: device_id.to_owned(), keys, display_name })
}

/// The keys of a device as they are shown to clients, without what servers add, if they are the device's own and within bounds. Their
/// signatures are the clients' to check.
pub(super) fn checked_device_keys(user_id: &UserId, device_id: &str, keys: &str) -> Option<String> {
    if keys.len() > 2 * KEYS_BYTES_MAX || !is_name(device_id, DEVICE_ID_BYTES_MAX) {
        return None;
    }
    let mut object = content_object(keys).ok()?;
    object.remove("unsigned");
    let is = |field: &str, text: &str| object.get(field).and_then(Value::as_str) == Some(text);
    let is_own = is("user_id", user_id.as_str()) && is("device_id", device_id) && object.get("keys")?.is_object();
    let text = Value::Object(object).to_string();
    (is_own && text.len() <= KEYS_BYTES_MAX).then_some(text)
}

fn signing_keys<'a>(
    user_id: &'a UserId,
    update: &'a SigningKeyUpdateContent,
) -> impl Iterator<Item = (&'static str, String)> + 'a {
    let keys = [("master", &update.master_key), ("self_signing", &update.self_signing_key)];
    keys.into_iter().filter_map(move |(usage, key)| Some((usage, signing_key(user_id, usage, key.as_ref()?)?)))
}

/// A cross-signing key as it is kept, if it is the user's and one of that usage.
pub(super) fn signing_key<T>(user_id: &UserId, usage: &str, key: &Raw<T>) -> Option<String> {
    let key = Value::Object(content_object(key.json().get()).ok()?);
    let key = cross_signing::check(user_id.as_str(), usage, &key).ok()?;
    Some(Value::Object(key).to_string())
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, user_id};
    use serde_json::json;

    use super::*;

    fn update(stream_id: u32, prev_id: &[u32], device: &str) -> DeviceListUpdateContent {
        let user_id = user_id!("@a:peer.test").to_owned();
        let keys = json!({"user_id": user_id, "device_id": device, "keys": {}, "of": stream_id});
        let mut update = DeviceListUpdateContent::new(user_id, device.into(), UInt::from(stream_id));
        update.prev_id = prev_id.iter().copied().map(UInt::from).collect();
        update.keys = Some(Raw::from_json(serde_json::value::to_raw_value(&keys).unwrap()));
        update
    }

    /// The new name of the list with the ids of devices that are there and gone; nothing for a gap.
    fn effect(stream_id: i64, updates: &[DeviceListUpdateContent]) -> Option<(i64, Vec<String>, Vec<String>)> {
        match effect_of(stream_id, updates) {
            Effect::Nothing => Some((stream_id, Vec::new(), Vec::new())),
            Effect::Changes(newest, all) => {
                Some((newest, all.devices.into_iter().map(|device| device.device_id).collect(), all.gone))
            }
            Effect::Gap => None,
        }
    }

    #[test]
    fn an_update_is_taken_if_it_follows_on_what_is_known() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let taken = |newest, devices: &[&str]| Some((newest, ids(devices), Vec::new()));
        assert_eq!(effect(5, &[update(6, &[5], "A")]), taken(6, &["A"]));
        assert_eq!(effect(5, &[update(6, &[5], "A"), update(9, &[6], "B")]), taken(9, &["A", "B"]));
        assert_eq!(
            effect(5, &[update(6, &[5], "A"), update(7, &[5], "B"), update(9, &[6, 7], "A")]),
            taken(9, &["A", "B"])
        );
        assert_eq!(effect(5, &[update(5, &[4], "A")]), taken(5, &[]), "what is in it already");
        assert_eq!(effect(5, &[update(6, &[5], "A"), update(6, &[5], "A")]), taken(6, &["A"]), "the same twice");
        assert_eq!(effect(5, &[update(4, &[5], "A")]), taken(4, &["A"]), "names of states have no order");
        assert_eq!(effect(5, &[]), taken(5, &[]));
    }

    #[test]
    fn a_list_that_lacks_something_has_a_gap() {
        assert_eq!(effect(5, &[update(7, &[6], "A")]), None);
        assert_eq!(effect(5, &[update(7, &[5, 6], "A")]), None);
        assert_eq!(effect(5, &[update(7, &[], "A")]), None, "it does not say on what it follows");
        assert_eq!(effect(5, &[update(7, &[8], "A"), update(8, &[7], "B")]), None, "a cycle");
        assert_eq!(effect(5, &[update(7, &[7], "A")]), None, "itself");
    }

    #[test]
    fn a_device_that_is_deleted_or_has_no_keys_of_its_own_is_gone() {
        let mut deleted = update(6, &[5], "A");
        deleted.deleted = Some(true);
        let mut without_keys = update(6, &[5], "A");
        without_keys.keys = None;
        let mut of_another = update(6, &[5], "B");
        of_another.device_id = "A".into();
        for gone in [deleted, without_keys, of_another] {
            assert_eq!(effect(5, &[gone]), Some((6, Vec::new(), vec!["A".to_owned()])));
        }
    }

    #[test]
    fn keys_are_kept_if_they_are_the_devices_own_and_within_bounds() {
        let user_id = user_id!("@a:peer.test");
        let keys = |more: &str| {
            format!(r#"{{"user_id":"@a:peer.test","device_id":"A","keys":{{}},"unsigned":{{"x":1}}{more}}}"#)
        };
        let kept = checked_device_keys(user_id, "A", &keys("")).unwrap();
        assert_eq!(kept, r#"{"device_id":"A","keys":{},"user_id":"@a:peer.test"}"#);
        assert_eq!(checked_device_keys(user_id, "B", &keys("")), None);
        assert_eq!(checked_device_keys(user_id!("@b:peer.test"), "A", &keys("")), None);
        let large = keys(&format!(r#","x":"{}""#, "x".repeat(KEYS_BYTES_MAX)));
        assert_eq!(checked_device_keys(user_id, "A", &large), None);
        let deep = keys(&format!(r#","x":{}{}"#, "[".repeat(110), "]".repeat(110)));
        assert_eq!(checked_device_keys(user_id, "A", &deep), None);
        for odd in ["[]", "{", "{}", r#"{"user_id":"@a:peer.test","device_id":"A","keys":[]}"#] {
            assert_eq!(checked_device_keys(user_id, "A", odd), None, "{odd}");
        }
    }

    #[test]
    fn an_answer_counts_up_to_a_bound_if_it_speaks_of_the_user() {
        let user_id = user_id!("@a:peer.test");
        let answer = |count: usize| {
            let mut answer = get_devices::v1::Response::new(user_id.to_owned(), UInt::from(3_u32));
            answer.devices = (0..count)
                .map(|n| {
                    let keys = update(1, &[], &format!("D{n}")).keys.unwrap();
                    get_devices::v1::UserDevice::new(format!("D{n}").as_str().into(), keys)
                })
                .collect();
            answer
        };
        let (stream_id, all) = devices_of(user_id, answer(REMOTE_DEVICES_MAX)).unwrap();
        assert_eq!((stream_id, all.devices.len()), (3, REMOTE_DEVICES_MAX));
        let (_, all) = devices_of(user_id, answer(REMOTE_DEVICES_MAX + 1)).unwrap();
        assert_eq!(all.devices.len(), REMOTE_DEVICES_MAX);
        assert_eq!(devices_of(user_id!("@b:peer.test"), answer(1)), None);
    }
}
