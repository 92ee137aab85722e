//! Messages to devices of other servers' users. Server-Server API, "Send-to-device messaging".

use std::{collections::BTreeMap, sync::Arc};

use model::canonical_object;
use ruma::{CanonicalJsonValue, OwnedServerName, UserId, canonical_json::CanonicalJsonObject};
use storage::NewOutgoingEdu;

use crate::{
    Accounts, Error, Requester,
    to_device::{Messages, event_text},
};

/// Most servers of one request.
const SERVERS_MAX: usize = 1_000;
/// Most bytes of all messages of one request.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Where an EDU ends, in bytes: another one takes the rest of the devices.
const EDU_BYTES: usize = 48 << 10;
/// Most EDUs that wait for a server: one that is away for so many gets no more, and no device waits for what was said so long ago.
const WAITING_MAX: u32 = 20_000;

impl Accounts {
    /// The EDUs that bring messages to devices of other servers' users.
    ///
    /// Servers for which very many wait, and those with which this one does not federate, get nothing, and nobody is told.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when there are too many servers, [`Error::TooLarge`] when one or all together are too large,
    /// [`Error::BadJson`] when a content cannot be signed, as all that goes to other servers must be.
    pub(crate) async fn to_other_servers(
        &self,
        requester: &Requester,
        event_type: &str,
        messages: &Messages,
    ) -> Result<Vec<NewOutgoingEdu>, Error> {
        let is_told =
            |user_id: &UserId| !self.0.servers.has_user(user_id) && self.0.remote.federates_with(user_id.server_name());
        let mut servers: BTreeMap<OwnedServerName, Parts> = BTreeMap::new();
        let mut bytes = 0;
        for (user_id, devices) in messages.iter().filter(|(user_id, _)| is_told(user_id)) {
            for (device, content) in devices {
                let content = content.json();
                // The other server bounds what its device gets.
                bytes += event_text(&requester.user_id, event_type, content.get())?.len();
                if bytes > REQUEST_BYTES_MAX {
                    return Err(Error::TooLarge(REQUEST_BYTES_MAX));
                }
                let object = canonical_object(content).map_err(|error| Error::BadJson(error.to_string()))?;
                let parts = servers.entry(user_id.server_name().to_owned()).or_default();
                parts.push(user_id, device.to_string(), object, content.get().len());
            }
        }
        if servers.len() > SERVERS_MAX {
            return Err(Error::InvalidParam(format!("at most {SERVERS_MAX} servers at once")));
        }
        if servers.is_empty() {
            return Ok(Vec::new());
        }
        let origin = requester.user_id.server_name();
        let full = self.0.storage.list_full_destinations(origin, servers.keys(), WAITING_MAX).await?;
        let mut edus = Vec::new();
        for (destination, parts) in servers.into_iter().filter(|(destination, _)| !full.contains(destination)) {
            edus.extend(parts.0.into_iter().map(|(messages, _)| NewOutgoingEdu {
                origin: origin.to_owned(),
                destination: destination.clone(),
                edu: self.edu(requester, event_type, messages),
            }));
        }
        Ok(edus)
    }

    /// `m.direct_to_device`, with an id by which the other server knows it when it comes again.
    fn edu(&self, requester: &Requester, event_type: &str, messages: CanonicalJsonObject) -> Arc<str> {
        let content = CanonicalJsonObject::from([
            ("message_id".to_owned(), self.0.storage.random().alphanumeric(20).into()),
            ("messages".to_owned(), CanonicalJsonValue::Object(messages)),
            ("sender".to_owned(), requester.user_id.as_str().into()),
            ("type".to_owned(), event_type.into()),
        ]);
        let edu = CanonicalJsonObject::from([
            ("content".to_owned(), CanonicalJsonValue::Object(content)),
            ("edu_type".to_owned(), "m.direct_to_device".into()),
        ]);
        serde_json::to_string(&edu).expect("canonical JSON serializes").into()
    }
}

/// Messages for one server, an EDU each, with their bytes.
#[derive(Default)]
struct Parts(Vec<(CanonicalJsonObject, usize)>);

impl Parts {
    fn push(&mut self, user_id: &UserId, device: String, content: CanonicalJsonObject, bytes: usize) {
        let has_room = self.0.last().is_some_and(|(_, so_far)| so_far + bytes <= EDU_BYTES);
        if !has_room {
            self.0.push((CanonicalJsonObject::new(), 0));
        }
        let Some((messages, so_far)) = self.0.last_mut() else { return };
        *so_far += bytes;
        let of_user = messages.entry(user_id.to_string()).or_insert_with(|| CanonicalJsonObject::new().into());
        if let CanonicalJsonValue::Object(of_user) = of_user {
            of_user.insert(device, CanonicalJsonValue::Object(content));
        }
    }
}
