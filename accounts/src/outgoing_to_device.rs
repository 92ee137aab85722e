//! Messages to devices of other servers' users. Server-Server API, "Send-to-device messaging".

use std::{collections::BTreeMap, sync::Arc};

use model::{canonical_object, limits::EVENT_BYTES_MAX};
use ruma::{CanonicalJsonValue, OwnedServerName, canonical_json::CanonicalJsonObject};
use storage::NewOutgoingEdu;

use crate::{Accounts, Error, Requester, to_device::Messages};

/// Most servers of one request.
const SERVERS_MAX: usize = 1_000;
/// Most bytes of all messages of one request.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Where an EDU ends, in bytes: another one takes the rest of the users.
const EDU_BYTES: usize = 48 << 10;
/// Most EDUs that wait for a server: one that is away for so many gets no more, and no device waits for what was said so long ago.
const WAITING_MAX: u64 = 20_000;

impl Accounts {
    /// The EDUs that bring messages to devices of other servers' users.
    ///
    /// Servers for which very many wait get nothing, and nobody is told.
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
        if !self.0.options.federates {
            return Ok(Vec::new());
        }
        let mut servers: BTreeMap<OwnedServerName, Vec<(String, CanonicalJsonObject, usize)>> = BTreeMap::new();
        let mut bytes = 0;
        for (user_id, devices) in messages.iter().filter(|(user_id, _)| !self.0.servers.has_user(user_id)) {
            let mut of_user = CanonicalJsonObject::new();
            let mut user_bytes = 0;
            for (device, content) in devices {
                let content = content.json();
                if content.get().len() > EVENT_BYTES_MAX {
                    return Err(Error::TooLarge(EVENT_BYTES_MAX));
                }
                user_bytes += content.get().len();
                let object = canonical_object(content).map_err(|error| Error::BadJson(error.to_string()))?;
                of_user.insert(device.to_string(), CanonicalJsonValue::Object(object));
            }
            bytes += user_bytes;
            if bytes > REQUEST_BYTES_MAX {
                return Err(Error::TooLarge(REQUEST_BYTES_MAX));
            }
            let of_server = servers.entry(user_id.server_name().to_owned()).or_default();
            of_server.push((user_id.to_string(), of_user, user_bytes));
        }
        if servers.len() > SERVERS_MAX {
            return Err(Error::InvalidParam(format!("at most {SERVERS_MAX} servers at once")));
        }
        let origin = requester.user_id.server_name();
        let mut edus = Vec::new();
        for (destination, users) in servers {
            if self.0.storage.count_outgoing_edus(origin, &destination).await? >= WAITING_MAX {
                continue;
            }
            let (mut part, mut part_bytes) = (CanonicalJsonObject::new(), 0);
            let mut push = |part: CanonicalJsonObject| {
                edus.push(NewOutgoingEdu {
                    origin: origin.to_owned(),
                    destination: destination.clone(),
                    edu: self.edu(requester, event_type, part),
                });
            };
            for (user_id, devices, user_bytes) in users {
                if part_bytes > 0 && part_bytes + user_bytes > EDU_BYTES {
                    push(std::mem::take(&mut part));
                    part_bytes = 0;
                }
                part_bytes += user_bytes;
                part.insert(user_id, CanonicalJsonValue::Object(devices));
            }
            push(part);
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
