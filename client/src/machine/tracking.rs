//! Whose devices are followed. Client-Server API, "Tracking the device list for a user".

use std::collections::BTreeMap;

use ruma::{OwnedUserId, UserId, api::client::keys::get_keys};
use serde_json::Value;

use super::{Machine, Work, now_ms};
use crate::{
    Error,
    devices::{DEVICES, DeviceList},
    events::Event,
};

/// Users in one question.
const USERS_MAX: usize = 250;
/// How long a user is left in peace whose server did not answer.
const IN_VAIN_MS: u64 = 5 * 60 * 1000;

/// A question for the devices of some users, and which changes its answer will include.
#[derive(Debug)]
pub(crate) struct Question {
    asked: BTreeMap<OwnedUserId, u64>,
    pub request: get_keys::v3::Request,
}

impl Machine {
    /// Follows the devices of `users` from now on; part of `work`.
    pub(super) async fn track<'a>(
        &mut self,
        work: &mut Work,
        users: impl IntoIterator<Item = &'a OwnedUserId>,
    ) -> Result<(), Error> {
        for user_id in users {
            let mut list = self.devices(work, user_id).await?;
            if !list.is_tracked {
                list.track();
                work.batch.put(DEVICES, user_id.as_str(), &list);
                self.outdated.insert(user_id.clone());
            }
        }
        Ok(())
    }

    /// The server says that devices of these users changed, and that others share no encrypted room with us any more.
    pub(super) async fn devices_changed(
        &mut self,
        work: &mut Work,
        changed: &[OwnedUserId],
        left: &[OwnedUserId],
    ) -> Result<(), Error> {
        for (user_id, has_left) in changed.iter().map(|user| (user, false)).chain(left.iter().map(|user| (user, true)))
        {
            // Nobody else's devices tell us whether this one still is who it was.
            let has_left = has_left && *user_id != self.user_id;
            let list: Option<DeviceList> = self.store.get_with(&work.batch, DEVICES, user_id.as_str()).await?;
            let Some(mut list) = list.filter(|list| list.is_tracked) else { continue };
            list.is_tracked = !has_left;
            list.mark_outdated();
            work.batch.put(DEVICES, user_id.as_str(), &list);
            if has_left {
                self.outdated.remove(user_id);
            } else {
                self.outdated.insert(user_id.clone());
            }
        }
        Ok(())
    }

    /// Follows the devices of `users` from now on.
    pub(crate) async fn follow(&mut self, users: &[OwnedUserId]) -> Result<(), Error> {
        let mut work = Work::default();
        self.track(&mut work, users).await?;
        self.commit(work).await.map(drop)
    }

    /// Nobody tells us of changes of somebody whom we do not follow, so what we know is not enough.
    pub(crate) async fn doubt_untracked(&mut self, user_id: &UserId) -> Result<(), Error> {
        let mut work = Work::default();
        let mut list = self.devices(&work, user_id).await?;
        if !list.is_tracked {
            list.mark_outdated();
            work.batch.put(DEVICES, user_id.as_str(), &list);
        }
        self.commit(work).await.map(drop)
    }

    /// A question for the users whose devices changed, as many as fit into one; `of` limits them to some.
    pub(crate) async fn question(&mut self, of: Option<Vec<OwnedUserId>>) -> Result<Option<Question>, Error> {
        let users = match of {
            Some(users) => users,
            None => self.outdated.iter().cloned().collect(),
        };
        let now_ms = now_ms();
        self.in_vain_until_ms.retain(|_, until_ms| *until_ms > now_ms);
        let mut asked = BTreeMap::new();
        for user_id in users {
            if asked.len() == USERS_MAX {
                break;
            }
            if self.in_vain_until_ms.contains_key(&(user_id.clone(), None)) {
                continue;
            }
            let list = self.devices(&Work::default(), &user_id).await?;
            if list.is_outdated() {
                asked.insert(user_id, list.wanted());
            } else {
                self.outdated.remove(&user_id);
            }
        }
        if asked.is_empty() {
            return Ok(None);
        }
        let mut request = get_keys::v3::Request::new();
        request.device_keys = asked.keys().map(|user_id| (user_id.clone(), Vec::new())).collect();
        Ok(Some(Question { asked, request }))
    }

    /// Takes over the answer.
    pub(crate) async fn answered(
        &mut self,
        question: Question,
        mut answer: get_keys::v3::Response,
    ) -> Result<Vec<Event>, Error> {
        let mut work = Work::default();
        for (user_id, wanted) in question.asked {
            self.learn_identity(&mut work, &user_id, &answer).await?;
            // Who has no devices is answered with none; no answer at all says nothing.
            let Some(answered) = answer.device_keys.remove(&user_id) else {
                self.in_vain(&user_id, None);
                continue;
            };
            let keys = answered.into_iter().filter_map(|(device_id, keys)| {
                let keys: Option<Value> = serde_json::from_str(keys.json().get()).ok();
                keys.map(|keys| (device_id, keys))
            });
            let mut list = self.devices(&work, &user_id).await?;
            for (device_id, error) in list.update(&user_id, keys.collect(), wanted) {
                tracing::warn!(user.id = %user_id, device.id = %device_id, %error, "a device is not believed");
            }
            if !list.is_outdated() {
                self.outdated.remove(&user_id);
            }
            work.batch.put(DEVICES, user_id.as_str(), &list);
        }
        self.commit(work).await
    }

    /// Whether it is no use to ask for a user's devices, or a device's keys, for now.
    pub(super) fn is_in_vain(&self, user_id: &UserId, device_id: Option<&ruma::DeviceId>) -> bool {
        let until_ms = self.in_vain_until_ms.get(&(user_id.to_owned(), device_id.map(ToOwned::to_owned)));
        until_ms.is_some_and(|until_ms| *until_ms > now_ms())
    }

    /// Does not ask for these devices, or this device's one-time keys, for a while.
    pub(super) fn in_vain(&mut self, user_id: &UserId, device_id: Option<&ruma::DeviceId>) {
        let until_ms = now_ms() + IN_VAIN_MS;
        self.in_vain_until_ms.insert((user_id.to_owned(), device_id.map(ToOwned::to_owned)), until_ms);
    }
}
