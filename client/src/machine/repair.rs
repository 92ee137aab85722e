//! Sessions with other devices that seem broken. Client-Server API, "Recovering from undecryptable messages".
//!
//! A row stands for each until there is a new session, so that neither a restart nor a server that is away leaves one broken.

use std::collections::BTreeSet;

use ruma::{OwnedUserId, UserId};
use serde_json::json;
use vodozemac::Curve25519PublicKey;

use super::{Machine, Work, now_ms};
use crate::{
    Error, Kind, Store,
    devices::{DEVICES, Device},
    olm::{OLM_SESSIONS, RENEWALS, Sessions, peer},
};

/// Whose device it is and its Olm key, by [`peer`].
const BROKEN: Kind = Kind("broken olm sessions");
/// Most of one user, and of all.
const BROKEN_OF_USER_MAX: usize = 20;
const BROKEN_MAX: usize = 1_000;

pub(super) async fn load(store: &Store) -> Result<BTreeSet<(OwnedUserId, String)>, Error> {
    Ok(store.list(BROKEN).await?.into_values().collect())
}

impl Machine {
    /// Notes that a session is to be replaced, if it is with a device that we know or may come to know.
    pub(super) async fn mark_broken(
        &mut self,
        work: &mut Work,
        sender: &UserId,
        key: &Curve25519PublicKey,
    ) -> Result<(), Error> {
        if self.broken.len() >= BROKEN_MAX
            || self.broken.iter().filter(|(user_id, _)| user_id == sender).count() >= BROKEN_OF_USER_MAX
        {
            return Ok(());
        }
        let mut list = self.devices(work, sender).await?;
        match list.with_key(key) {
            Some(device) if self.is_own(device) => return Ok(()),
            Some(_) => {}
            // It may be newer than what we know.
            None if list.is_tracked => {
                list.mark_outdated();
                work.batch.put(DEVICES, sender.as_str(), &list);
                self.outdated.insert(sender.to_owned());
            }
            None => return Ok(()),
        }
        let broken = (sender.to_owned(), key.to_base64());
        work.batch.put(BROKEN, peer(sender, key), &broken);
        self.broken.insert(broken);
        Ok(())
    }

    /// Devices whose session seems broken and may be replaced.
    pub(crate) async fn broken_devices(&mut self) -> Result<Vec<Device>, Error> {
        let mut work = Work::default();
        let (mut devices, mut given_up) = (Vec::new(), Vec::new());
        for broken in &self.broken {
            let list = self.devices(&work, &broken.0).await?;
            let device = list.devices.values().find(|device| device.curve25519.to_base64() == broken.1);
            match device {
                None if list.is_tracked && list.is_outdated() => {}
                None => given_up.push(broken.clone()),
                Some(device) if self.is_in_vain(&device.user_id, Some(&device.device_id)) => {}
                Some(device) => {
                    let sessions: Sessions = self.store.get(OLM_SESSIONS, &device.peer()).await?.unwrap_or_default();
                    if sessions.may_replace(now_ms()) {
                        devices.push(device.clone());
                    } else {
                        given_up.push(broken.clone());
                    }
                }
            }
        }
        for broken in given_up {
            work.batch.delete(BROKEN, format!("{} {}", broken.0, broken.1));
            self.broken.remove(&broken);
        }
        self.commit(work).await?;
        Ok(devices)
    }

    /// There is a new session with a device: if it is in place of a broken one, the device is told, and gets again what it may have lost.
    pub(super) async fn repaired(&self, work: &mut Work, device: &Device) -> Result<(), Error> {
        let broken = (device.user_id.clone(), device.curve25519.to_base64());
        if !self.broken.contains(&broken) {
            return Ok(());
        }
        self.post_encrypted(work, device, "m.dummy", &json!({})).await?;
        let mut sessions: Sessions =
            self.store.get_with(&work.batch, OLM_SESSIONS, &device.peer()).await?.unwrap_or_default();
        sessions.mark_replaced(now_ms());
        work.batch.put(OLM_SESSIONS, device.peer(), &sessions);
        self.mark_renewed(work, &device.peer()).await?;
        work.batch.delete(BROKEN, device.peer());
        work.repaired.push(broken);
        Ok(())
    }

    /// Counts that a session took the place of another: room keys that were sent in that one may be lost, and are sent again.
    pub(super) async fn mark_renewed(&self, work: &mut Work, peer: &str) -> Result<(), Error> {
        let renewals: u32 = self.store.get_with(&work.batch, RENEWALS, peer).await?.unwrap_or_default();
        work.batch.put(RENEWALS, peer, &renewals.saturating_add(1));
        Ok(())
    }
}
