//! Messages from device to device. Client-Server API, "Send-to-Device messaging".

use std::{collections::BTreeMap, sync::Arc};

use model::{
    UserNr, content_object,
    limits::{EVENT_BYTES_MAX, ID_BYTES_MAX, TRANSACTION_ID_BYTES_MAX, is_name},
};
use ruma::{OwnedUserId, TransactionId, events::AnyToDeviceEventContent, serde::Raw, to_device::DeviceIdOrAllDevices};
use serde::Serialize;
use serde_json::{Map, Value};
use storage::{Commit, CommitError, NewToDevice, NewTransaction, TransactionKey};

use crate::{Accounts, Error, Requester};

/// Most messages of one request.
const MESSAGES_MAX: usize = 10_000;
/// Most bytes of the messages of one request, each counted for each device that gets it: they are written at once, and whoever else
/// writes waits for them. Room for 2,000 devices with 2,000 bytes each.
const REQUEST_BYTES_MAX: usize = 4_194_304;

/// Most messages that wait for a device: one that has not come back for so many gets no more.
const WAITING_MAX: u32 = 20_000;
/// Most bytes of messages that wait for a device; the request that goes beyond is still taken.
const WAITING_BYTES_MAX: u64 = 67_108_864;

/// What is for whom: for a device, or for all devices of a user.
pub type Messages = BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, Raw<AnyToDeviceEventContent>>>;

/// A message as its device gets it.
#[derive(Serialize)]
struct Event<'a> {
    content: Map<String, Value>,
    sender: &'a str,
    r#type: &'a str,
}

impl Accounts {
    /// Sends messages to devices. The same transaction again does nothing.
    ///
    /// Users and devices that do not exist, or that have not come back for very many messages, get nothing, and nobody is told.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many, [`Error::TooLarge`] when one or all together are too large,
    /// [`Error::BadJson`] when a content is no object that clients can read, [`Error::Busy`].
    pub async fn send_to_device(
        &self,
        requester: &Requester,
        event_type: &str,
        transaction_id: &TransactionId,
        messages: Messages,
    ) -> Result<(), Error> {
        if !is_name(event_type, ID_BYTES_MAX) {
            return Err(Error::InvalidParam(format!("an event type has 1 to {ID_BYTES_MAX} bytes, none of them zero")));
        }
        if !is_name(transaction_id.as_str(), TRANSACTION_ID_BYTES_MAX) {
            let rule = format!("a transaction id has 1 to {TRANSACTION_ID_BYTES_MAX} bytes, none of them zero");
            return Err(Error::InvalidParam(rule));
        }
        let local: Vec<_> = messages.iter().filter(|(user_id, _)| self.0.servers.has_user(user_id)).collect();
        let mut users: BTreeMap<UserNr, _> = BTreeMap::new();
        for (user_id, messages) in local {
            if let Some(user_nr) = self.0.storage.find_user_nr(user_id).await? {
                users.insert(user_nr, messages);
            }
        }
        let numbers: Vec<UserNr> = users.keys().copied().collect();
        let mut devices = self.0.storage.list_device_ids(&numbers).await?;
        let full = self.0.storage.list_full_devices(&numbers, WAITING_MAX, WAITING_BYTES_MAX).await?;
        devices.retain(|device| !full.contains(device));
        // One text for all devices that get the same.
        let mut texts: BTreeMap<(UserNr, &DeviceIdOrAllDevices), Arc<str>> = BTreeMap::new();
        let mut to_device = Vec::new();
        let mut bytes = 0;
        for (user_nr, device_id) in devices {
            let Some(messages) = users.get(&user_nr) else { continue };
            let own = DeviceIdOrAllDevices::DeviceId(device_id.as_str().into());
            for wanted in [&own, &DeviceIdOrAllDevices::AllDevices] {
                let Some((wanted, content)) = messages.get_key_value(wanted) else { continue };
                if to_device.len() == MESSAGES_MAX {
                    return Err(Error::InvalidParam(format!("at most {MESSAGES_MAX} messages at once")));
                }
                let message = match texts.get(&(user_nr, wanted)) {
                    Some(text) => text.clone(),
                    None => {
                        let text = event_text(requester, event_type, content.json().get())?;
                        texts.insert((user_nr, wanted), text.clone());
                        text
                    }
                };
                bytes += message.len();
                if bytes > REQUEST_BYTES_MAX {
                    return Err(Error::TooLarge(REQUEST_BYTES_MAX));
                }
                to_device.push(NewToDevice { user_nr, device_id: device_id.clone(), message });
            }
        }
        let key = TransactionKey {
            user_nr: requester.user_nr,
            device_id: requester.device().to_owned(),
            scope: format!("sendToDevice/{event_type}"),
            transaction_id: transaction_id.to_string(),
        };
        let outgoing_edus = self.to_other_servers(requester, event_type, &messages).await?;
        let transactions = vec![NewTransaction { key, event_nr: None }];
        let commit = Commit { to_device, outgoing_edus, transactions, ..Commit::default() };
        let mut outcome = self.0.storage.commit(commit.clone()).await;
        if matches!(outcome, Err(CommitError::StateChanged)) {
            // The same request is in the same group: that one goes first, and asked again this one is found as done.
            outcome = self.0.storage.commit(commit).await;
        }
        match outcome {
            Ok(_) | Err(CommitError::Replayed(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn event_text(requester: &Requester, event_type: &str, content: &str) -> Result<Arc<str>, Error> {
    let content = content_object(content)?;
    let event = Event { content, sender: requester.user_id.as_str(), r#type: event_type };
    let text = serde_json::to_string(&event).map_err(|error| Error::BadJson(error.to_string()))?;
    if text.len() > EVENT_BYTES_MAX {
        return Err(Error::TooLarge(EVENT_BYTES_MAX));
    }
    Ok(text.into())
}
