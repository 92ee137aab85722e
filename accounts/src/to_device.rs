//! Messages from device to device. Client-Server API and Server-Server API, "Send-to-Device messaging".

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use model::{
    UserNr, content_object,
    limits::{EVENT_BYTES_MAX, ID_BYTES_MAX, TRANSACTION_ID_BYTES_MAX, is_name},
};
use ruma::{
    OwnedUserId, ServerName, TransactionId, UserId, api::federation::transactions::edu::DirectDeviceContent,
    events::AnyToDeviceEventContent, serde::Raw, to_device::DeviceIdOrAllDevices,
};
use serde::Serialize;
use serde_json::{Map, Value};
use storage::{Commit, CommitError, Committed, NewToDevice, NewTransaction, TransactionKey};
use tracing::debug;

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

/// Messages of other servers are written together up to so many bytes.
const TOGETHER_BYTES: usize = 1_048_576;

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
        let local = messages.keys().filter(|user_id| self.0.servers.has_user(user_id));
        let recipients = self.recipients(local).await?;
        let to_device = recipients.messages(&requester.user_id, event_type, &messages, Err)?;
        let key = TransactionKey {
            user_nr: requester.user_nr,
            device_id: requester.device().to_owned(),
            scope: format!("sendToDevice/{event_type}"),
            transaction_id: transaction_id.to_string(),
        };
        let outgoing_edus = self.to_other_servers(requester, event_type, &messages).await?;
        let transactions = vec![NewTransaction { key, event_nr: None }];
        let commit = Commit { to_device, outgoing_edus, transactions, ..Commit::default() };
        match self.commit_once(commit).await {
            Ok(_) | Err(CommitError::Replayed(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in messages of users of the server `origin` to devices of the name that it speaks to. A message that came before, by its id, is
    /// not delivered again. What is broken, too large or from somebody else's user is passed over; users and devices that do not exist,
    /// or that have not come back for very many messages, get nothing. Server-Server API, "Send-to-device messaging".
    ///
    /// # Errors
    ///
    /// When the database fails; all of it may be sent again then.
    pub async fn receive_to_device(
        &self,
        origin: &ServerName,
        asked: &ServerName,
        sent: Vec<DirectDeviceContent>,
    ) -> Result<(), Error> {
        let is_good = |content: &DirectDeviceContent| {
            content.sender.server_name() == origin
                && is_name(&content.ev_type.to_string(), ID_BYTES_MAX)
                && is_name(content.message_id.as_str(), TRANSACTION_ID_BYTES_MAX)
        };
        let sent: Vec<_> = sent.into_iter().filter(is_good).collect();
        if sent.is_empty() {
            return Ok(());
        }
        let users = sent.iter().flat_map(|content| content.messages.keys());
        let recipients = self.recipients(users.filter(|user_id| user_id.server_name() == asked)).await?;
        let mut seen = HashSet::new();
        let (mut together, mut bytes) = (Vec::new(), 0);
        for content in &sent {
            if !seen.insert(&content.message_id) {
                continue;
            }
            let event_type = content.ev_type.to_string();
            let messages = recipients.messages(&content.sender, &event_type, &content.messages, |error| {
                debug!(%error, message.id = %content.message_id, "a message of {origin} to a device is passed over");
                Ok(())
            })?;
            if messages.is_empty() {
                continue;
            }
            bytes += messages.iter().map(|message| message.message.len()).sum::<usize>();
            together.push((came_before(origin, asked, &content.message_id), messages));
            if bytes >= TOGETHER_BYTES {
                self.deliver(std::mem::take(&mut together)).await?;
                bytes = 0;
            }
        }
        self.deliver(together).await
    }

    /// Commits messages with the keys by which it is known that they came, but for those that came before.
    async fn deliver(&self, mut messages: Vec<(TransactionKey, Vec<NewToDevice>)>) -> Result<(), Error> {
        while !messages.is_empty() {
            let commit = Commit {
                to_device: messages.iter().flat_map(|(_, messages)| messages).cloned().collect(),
                transactions: messages
                    .iter()
                    .map(|(key, _)| NewTransaction { key: key.clone(), event_nr: None })
                    .collect(),
                ..Commit::default()
            };
            match self.commit_once(commit).await {
                Ok(_) => break,
                Err(CommitError::Replayed(done)) => {
                    let count = messages.len();
                    messages.retain(|(key, _)| !done.iter().any(|(done, _)| done == key));
                    assert!(messages.len() < count, "what was done before is one of those");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn commit_once(&self, commit: Commit) -> Result<Committed, CommitError> {
        let outcome = self.0.storage.commit(commit.clone()).await;
        if matches!(outcome, Err(CommitError::StateChanged)) {
            // The same request is in the same group: that one goes first, and asked again this one is found as done.
            return self.0.storage.commit(commit).await;
        }
        outcome
    }

    /// The devices of users that take messages.
    async fn recipients(&self, users: impl Iterator<Item = &OwnedUserId>) -> Result<Recipients, Error> {
        let users: BTreeSet<&UserId> = users.map(|user_id| &**user_id).collect();
        let users: Vec<&UserId> = users.into_iter().collect();
        let found = self.0.storage.find_user_nrs(&users).await?;
        let numbers: Vec<UserNr> = found.values().copied().collect();
        let full: HashSet<_> =
            self.0.storage.list_full_devices(&numbers, WAITING_MAX, WAITING_BYTES_MAX).await?.into_iter().collect();
        let mut devices: HashMap<UserNr, Vec<String>> = HashMap::new();
        for device in self.0.storage.list_device_ids(&numbers).await? {
            if !full.contains(&device) {
                devices.entry(device.0).or_default().push(device.1);
            }
        }
        let of_user =
            found.into_iter().filter_map(|(user_id, nr)| Some((user_id.to_owned(), (nr, devices.remove(&nr)?))));
        Ok(Recipients(of_user.collect()))
    }
}

/// Users with their devices that take messages.
struct Recipients(BTreeMap<OwnedUserId, (UserNr, Vec<String>)>);

impl Recipients {
    /// What each of the devices gets of a request. Of a message that cannot be sent `refused` is told: with `Ok` the others are sent.
    fn messages(
        &self,
        sender: &UserId,
        event_type: &str,
        messages: &Messages,
        refused: impl Fn(Error) -> Result<(), Error>,
    ) -> Result<Vec<NewToDevice>, Error> {
        let mut to_device = Vec::new();
        let mut bytes = 0;
        for (user_id, messages) in messages {
            let Some((user_nr, devices)) = self.0.get(user_id) else { continue };
            // One text for all devices that get the same, or none that could be sent.
            let mut texts: BTreeMap<&DeviceIdOrAllDevices, Option<Arc<str>>> = BTreeMap::new();
            for device_id in devices {
                let own = DeviceIdOrAllDevices::DeviceId(device_id.as_str().into());
                for wanted in [&own, &DeviceIdOrAllDevices::AllDevices] {
                    let Some((wanted, content)) = messages.get_key_value(wanted) else { continue };
                    if to_device.len() == MESSAGES_MAX {
                        refused(Error::InvalidParam(format!("at most {MESSAGES_MAX} messages at once")))?;
                        return Ok(to_device);
                    }
                    let text = match texts.get(wanted) {
                        Some(text) => text.clone(),
                        None => {
                            let text = event_text(sender, event_type, content.json().get());
                            let text = text.map(Some).or_else(|error| refused(error).map(|()| None))?;
                            texts.insert(wanted, text.clone());
                            text
                        }
                    };
                    let Some(message) = text else { continue };
                    if bytes + message.len() > REQUEST_BYTES_MAX {
                        refused(Error::TooLarge(REQUEST_BYTES_MAX))?;
                        continue;
                    }
                    bytes += message.len();
                    to_device.push(NewToDevice { user_nr: *user_nr, device_id: device_id.clone(), message });
                }
            }
        }
        Ok(to_device)
    }
}

/// By what it is known that a message of another server came before: to each of our names it sends what is for its users, under one id.
fn came_before(origin: &ServerName, asked: &ServerName, message_id: &TransactionId) -> TransactionKey {
    TransactionKey {
        user_nr: UserNr(0),
        device_id: format!("{origin} {asked}"),
        scope: "m.direct_to_device".to_owned(),
        transaction_id: message_id.to_string(),
    }
}

/// A message as its device gets it, JSON.
pub(crate) fn event_text(sender: &UserId, event_type: &str, content: &str) -> Result<Arc<str>, Error> {
    let content = content_object(content)?;
    let event = Event { content, sender: sender.as_str(), r#type: event_type };
    let text = serde_json::to_string(&event).map_err(|error| Error::BadJson(error.to_string()))?;
    if text.len() > EVENT_BYTES_MAX {
        return Err(Error::TooLarge(EVENT_BYTES_MAX));
    }
    Ok(text.into())
}
