//! Sending what a member sends.

use std::sync::Arc;

use accounts::Requester;
use model::limits::{self, is_name};
use ruma::{EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, TransactionId, events::TimelineEventType};
use serde_json::value::RawValue;
use storage::{RoomRow, TransactionKey};

use crate::{Draft, Error, Rooms, to_the_end};

/// Most types of relation that a redaction goes on to.
const RELATED_TYPES_MAX: usize = 20;

impl Rooms {
    /// Sends a message event; durable when it returns. The same transaction id gives the same event again.
    ///
    /// Client-Server API, "PUT /rooms/{roomId}/send/{eventType}/{txnId}".
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`], [`Error::BadEvent`], [`Error::TooLarge`]: the sender's fault, nothing was sent.
    pub async fn send_message(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_type: TimelineEventType,
        transaction_id: &TransactionId,
        content: &RawValue,
        timestamp: Option<MilliSecondsSinceUnixEpoch>,
    ) -> Result<OwnedEventId, Error> {
        let room = self.room_of_writer(room_id).await?;
        let sent = async {
            check_type(&event_type)?;
            let key = transaction(requester, &room, &format!("send/{event_type}"), transaction_id)?;
            let draft =
                Draft::of_client(requester, event_type, content)?.with_transaction(key).with_timestamp(timestamp);
            if draft.event_type == TimelineEventType::RoomRedaction {
                return self.send_redaction(&room, draft.redacting_by_content()?).await;
            }
            self.submit(&room, draft).await
        };
        match sent.await {
            Ok(event_id) => Ok(event_id),
            // The rules let members only send messages, so that who is nothing to the room is looked up when it failed only.
            Err(error) => {
                self.check_writer(requester, &room).await?;
                Err(error)
            }
        }
    }

    /// Sends a state event. Client-Server API, "PUT /rooms/{roomId}/state/{eventType}/{stateKey}".
    ///
    /// # Errors
    ///
    /// As [`Rooms::send_message`].
    pub async fn send_state(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_type: TimelineEventType,
        state_key: &str,
        content: &RawValue,
        timestamp: Option<MilliSecondsSinceUnixEpoch>,
    ) -> Result<OwnedEventId, Error> {
        let room = self.room_for(requester, room_id).await?;
        check_type(&event_type)?;
        if state_key.len() > limits::ID_BYTES_MAX {
            return Err(Error::InvalidParam("a state key has at most 255 bytes".to_owned()));
        }
        if event_type == TimelineEventType::RoomCanonicalAlias {
            self.check_canonical_aliases(&room, content).await?;
        }
        let authoriser = match event_type {
            TimelineEventType::RoomMember => self.check_member_state(requester, &room, state_key, content).await?,
            _ => None,
        };
        let ends_guests = event_type == TimelineEventType::RoomGuestAccess && state_key.is_empty();
        let draft = Draft::of_client(requester, event_type, content)?
            .with_state_key(state_key)
            .with_timestamp(timestamp)
            .authorised_via(authoriser);
        if ends_guests {
            let rooms = self.clone();
            return to_the_end(async move {
                let event_id = rooms.submit(&room, draft).await?;
                rooms.remove_guests(&room).await?;
                Ok(event_id)
            })
            .await;
        }
        self.submit_or_invite(&room, draft).await
    }

    /// Redacts an event. Client-Server API, "Redactions".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`], [`Error::NotAllowed`]: nothing was redacted.
    pub async fn redact(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_id: &EventId,
        transaction_id: &TransactionId,
        reason: Option<&str>,
    ) -> Result<OwnedEventId, Error> {
        self.redact_with_related(requester, room_id, event_id, transaction_id, reason, Vec::new()).await
    }

    /// The same, and in the background redacts what relates to the event in one of some ways; `*` stands for all. MSC3912.
    ///
    /// # Errors
    ///
    /// As [`Rooms::redact`]; [`Error::InvalidParam`] for too many types of relation, or what is none.
    pub async fn redact_with_related(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        event_id: &EventId,
        transaction_id: &TransactionId,
        reason: Option<&str>,
        related: Vec<String>,
    ) -> Result<OwnedEventId, Error> {
        let room = self.room_for(requester, room_id).await?;
        if related.len() > RELATED_TYPES_MAX || related.iter().any(|word| !is_name(word, limits::ID_BYTES_MAX)) {
            return Err(Error::InvalidParam(format!(
                "at most {RELATED_TYPES_MAX} types of relation, of 1 to 255 bytes"
            )));
        }
        let key = transaction(requester, &room, &format!("redact/{event_id}"), transaction_id)?;
        let mut content = ruma::CanonicalJsonObject::new();
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), ruma::CanonicalJsonValue::String(reason.to_owned()));
        }
        let draft = Draft::new(requester.user_id.clone(), requester.user_nr, TimelineEventType::RoomRedaction, content)
            .redacting(event_id.to_owned())
            .with_related(related)
            .with_transaction(key);
        self.send_redaction(&room, draft).await
    }

    /// Sends a redaction. A room that says nothing of guests any more lets none in.
    async fn send_redaction(&self, room: &Arc<RoomRow>, draft: Draft) -> Result<OwnedEventId, Error> {
        let (rooms, room, target) = (self.clone(), room.clone(), draft.redacts.clone());
        let goes_on = !draft.related.is_empty();
        to_the_end(async move {
            let event_id = rooms.submit(&room, draft).await?;
            if goes_on {
                rooms.go_on_to_related();
            }
            let target = match target {
                Some(target) => rooms.storage().find_event(&target).await?,
                None => None,
            };
            if target.is_some_and(|event| event.pdu.is_state(&TimelineEventType::RoomGuestAccess, "")) {
                rooms.remove_guests(&room).await?;
            }
            Ok(event_id)
        })
        .await
    }

    /// The room, for somebody who wants to write into it: whoever is nothing to it learns nothing of it.
    pub(crate) async fn room_for(&self, requester: &Requester, room_id: &RoomId) -> Result<Arc<RoomRow>, Error> {
        let room = self.room_of_writer(room_id).await?;
        self.check_writer(requester, &room).await?;
        Ok(room)
    }

    /// The room, for somebody who may turn out to be nothing to it.
    async fn room_of_writer(&self, room_id: &RoomId) -> Result<Arc<RoomRow>, Error> {
        self.room(room_id).await.map_err(|error| match error {
            // As for a room that exists: strangers cannot tell the two apart.
            Error::RoomUnknown => Error::NotMember,
            other => other,
        })
    }

    async fn check_writer(&self, requester: &Requester, room: &RoomRow) -> Result<(), Error> {
        match self.storage().get_membership(room.nr, requester.user_nr).await? {
            Some(_) => Ok(()),
            None => Err(Error::NotMember),
        }
    }
}

fn check_type(event_type: &TimelineEventType) -> Result<(), Error> {
    let bytes = event_type.to_string().len();
    if bytes > limits::ID_BYTES_MAX {
        return Err(Error::InvalidParam("an event type has at most 255 bytes".to_owned()));
    }
    if *event_type == TimelineEventType::RoomCreate {
        return Err(Error::NotAllowed("a room is made once".to_owned()));
    }
    Ok(())
}

fn transaction(
    requester: &Requester,
    room: &RoomRow,
    endpoint: &str,
    transaction_id: &TransactionId,
) -> Result<TransactionKey, Error> {
    if transaction_id.as_str().len() > limits::TRANSACTION_ID_BYTES_MAX {
        return Err(Error::InvalidParam("a transaction id has at most 255 bytes".to_owned()));
    }
    if transaction_id.as_str().contains('\0') {
        return Err(Error::InvalidParam("a transaction id has no zero byte".to_owned()));
    }
    Ok(TransactionKey {
        user_nr: requester.user_nr,
        device_id: requester.device().to_owned(),
        scope: format!("{}/{endpoint}", room.nr),
        transaction_id: transaction_id.to_string(),
    })
}
