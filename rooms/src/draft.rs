//! An event that somebody wants to send, before it has a place in the room.

use model::{UserNr, canonical_object};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId,
    events::TimelineEventType,
};
use serde_json::value::RawValue;
use storage::TransactionKey;

use crate::Error;

/// An event to be sent: what its sender decides. The rest follows from the room.
#[derive(Clone, Debug)]
pub struct Draft {
    pub(crate) sender: OwnedUserId,
    pub(crate) sender_nr: UserNr,
    pub(crate) event_type: TimelineEventType,
    pub(crate) state_key: Option<String>,
    pub(crate) content: CanonicalJsonObject,
    pub(crate) redacts: Option<OwnedEventId>,
    pub(crate) transaction: Option<TransactionKey>,
    pub(crate) timestamp: Option<MilliSecondsSinceUnixEpoch>,
    pub(crate) while_joined: bool,
    pub(crate) shows: Option<UserNr>,
    pub(crate) authorised_via: Option<OwnedUserId>,
    pub(crate) related: Vec<String>,
    pub(crate) redacts_once: bool,
}

/// What a member event says of who let its user in. Only we say so: our signature vouches for it.
const AUTHORISED_VIA: &str = "join_authorised_via_users_server";

impl Draft {
    /// An event of a sender. A member event does not say by whom its user was let in: see [`Draft::authorised_via`].
    #[must_use]
    pub fn new(
        sender: OwnedUserId,
        sender_nr: UserNr,
        event_type: TimelineEventType,
        mut content: CanonicalJsonObject,
    ) -> Self {
        if event_type == TimelineEventType::RoomMember {
            content.remove(AUTHORISED_VIA);
        }
        Self {
            sender,
            sender_nr,
            event_type,
            content,
            state_key: None,
            redacts: None,
            transaction: None,
            timestamp: None,
            while_joined: false,
            shows: None,
            authorised_via: None,
            related: Vec::new(),
            redacts_once: false,
        }
    }

    /// An event of a requester, with content as the client sent it.
    ///
    /// # Errors
    ///
    /// [`Error::BadEvent`] when the content is no object of canonical JSON.
    pub fn of_client(
        requester: &accounts::Requester,
        event_type: TimelineEventType,
        content: &RawValue,
    ) -> Result<Self, Error> {
        let content = canonical_object(content).map_err(|error| Error::BadEvent(format!("the content is {error}")))?;
        Ok(Self::new(requester.user_id.clone(), requester.user_nr, event_type, content))
    }

    /// Makes it a state event.
    #[must_use]
    pub fn with_state_key(mut self, state_key: impl Into<String>) -> Self {
        self.state_key = Some(state_key.into());
        self
    }

    /// Makes it the redaction of an event.
    #[must_use]
    pub fn redacting(mut self, event_id: OwnedEventId) -> Self {
        self.redacts = Some(event_id);
        self
    }

    /// Makes it the redaction of the event that its content names. Client-Server API, "PUT /rooms/{roomId}/send/{eventType}/{txnId}".
    ///
    /// # Errors
    ///
    /// [`Error::BadEvent`] when it names none.
    pub(crate) fn redacting_by_content(mut self) -> Result<Self, Error> {
        let redacts = self.content.remove("redacts");
        let redacts = redacts.as_ref().and_then(CanonicalJsonValue::as_str).and_then(|id| EventId::parse(id).ok());
        let redacts = redacts.ok_or_else(|| {
            Error::BadEvent("the content of a redaction has the id of an event as `redacts`".to_owned())
        })?;
        Ok(self.redacting(redacts))
    }

    /// Makes it the redaction of an event, refused when that is redacted already: for what several processes may do at once.
    #[must_use]
    pub(crate) fn redacting_once(mut self, event_id: OwnedEventId) -> Self {
        self.redacts_once = true;
        self.redacting(event_id)
    }

    /// Makes a redaction go on to what relates to its target in one of these ways. MSC3912.
    #[must_use]
    pub(crate) fn with_related(mut self, rel_types: Vec<String>) -> Self {
        self.related = rel_types;
        self
    }

    /// Names the request, so that it is done once. Client-Server API, "Transaction identifiers".
    #[must_use]
    pub fn with_transaction(mut self, transaction: TransactionKey) -> Self {
        self.transaction = Some(transaction);
        self
    }

    /// Gives it a time of the sender's choice; application services may. Application Service API, "Timestamp massaging".
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: Option<MilliSecondsSinceUnixEpoch>) -> Self {
        self.timestamp = timestamp;
        self
    }

    /// Makes it the join of somebody who is let in by the room's `allow` conditions, for which a member of ours vouches.
    /// Client-Server API, "Restricted rooms".
    #[must_use]
    pub(crate) fn authorised_via(mut self, user_id: Option<OwnedUserId>) -> Self {
        if let Some(user_id) = &user_id {
            let value = CanonicalJsonValue::String(user_id.to_string());
            self.content.insert(AUTHORISED_VIA.to_owned(), value);
        }
        self.authorised_via = user_id;
        self
    }

    /// Makes it show name and picture of a user of ours, as they are when the event is built in the room's turn: the last of those who
    /// change a profile and write it at the same time writes the last profile.
    #[must_use]
    pub(crate) fn showing(mut self, user_nr: Option<UserNr>) -> Self {
        self.shows = user_nr;
        self
    }

    /// Makes it count only if it replaces a member event that says `join`: a change of profile must not bring anybody back in.
    #[must_use]
    pub(crate) fn while_joined(mut self) -> Self {
        self.while_joined = true;
        self
    }
}
