//! Invitations of our users by other servers. Server-Server API, "Inviting to a room".

use std::sync::Arc;

use model::{
    Membership, Pdu, RoomNr, canonical_object,
    limits::{EVENT_BYTES_MAX, ID_BYTES_MAX, is_name},
};
use ruma::{
    CanonicalJsonObject, EventId, OwnedUserId, RoomId, RoomVersionId, UserId, events::TimelineEventType,
    room_version_rules::RoomVersionRules, signatures,
};
use serde_json::value::RawValue;
use storage::RoomRow;

use crate::{Asker, Error, Rooms, head::membership_of};

/// Most events that show a room which are looked at.
const SHOWN_MAX: usize = 50;

impl Rooms {
    /// Takes in the invitation of one of our users; gives it with our signature.
    ///
    /// Where we are in the room, it becomes an event of it as the inviting server sends it to all. Where we are not, the user is told of it.
    /// `room_state` are events that show what the room is.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`]: it is no such invitation, or not signed. [`Error::IncompatibleVersion`]. [`Error::NotAllowed`] when there is
    /// no such user, or the room denies the server. [`Error::InviteBlocked`].
    pub async fn accept_invite(
        &self,
        asker: Asker<'_>,
        (room_id, event_id): (&RoomId, &EventId),
        version: &RoomVersionId,
        mut event: CanonicalJsonObject,
        room_state: Vec<Box<RawValue>>,
    ) -> Result<CanonicalJsonObject, Error> {
        let rules = version.rules().ok_or_else(|| Error::IncompatibleVersion(version.clone()))?;
        let rules = Arc::new(rules);
        let server = self.servers().get(asker.destination).ok_or(Error::NotLocal)?;
        let invalid = |error: &dyn std::fmt::Display| Error::InvalidParam(error.to_string());
        event.remove("unsigned");
        let pdu = Pdu::from_canonical(&event, &rules).map_err(|error| invalid(&error))?;
        let invited = invited_user(&pdu, asker, (room_id, event_id))?;
        self.check_server_allowed(room_id, asker.origin).await?;
        let user = self.storage().get_user(&invited).await?;
        if user.is_none_or(|user| user.deactivated_at_ms.is_some()) {
            return Err(Error::NotAllowed(format!("{invited} is not a user of this server")));
        }
        if !self.who_blocks_invites(&[&invited]).await?.is_empty() {
            return Err(Error::InviteBlocked(invited));
        }
        let here = self.find_here(room_id).await?;
        if here.as_ref().is_some_and(|room| room.version != *version) {
            return Err(Error::InvalidParam(format!("the room has not version {version}")));
        }
        // Of a room that is not known, only the id and the version are asked.
        let unknown =
            || Arc::new(RoomRow { nr: RoomNr(0), id: room_id.to_owned(), version: version.clone(), has_state: false });
        let room = here.clone().unwrap_or_else(unknown);
        self.verified_whole(&room, &rules, event.clone()).await?;
        signatures::sign_event(server.name.as_str(), &server.key, &mut event, &rules.redaction)
            .map_err(|error| invalid(&error))?;
        if here.is_none() {
            let shown = self.shown_state(&room, &rules, room_state).await?;
            let room = self.room_of_version(room_id, version).await?;
            let signed = Pdu::from_canonical(&event, &rules).map_err(|error| invalid(&error))?;
            self.commit_outside(&room, signed, Some(&shown)).await?;
        }
        Ok(event)
    }

    /// What counts of the events by which an inviting server shows a room. Server-Server API, "PUT /invite/{roomId}/{eventId}", `invite_room_state`.
    ///
    /// Since version 12 the create event proves by itself which room it is of: it must be there, and all must be events of the room. Those
    /// that are not signed are left out; a server whose keys cannot be had does not make the invitation another. Before, events may be
    /// without signatures, and the create event may be missing.
    async fn shown_state(
        &self,
        room: &Arc<RoomRow>,
        rules: &Arc<RoomVersionRules>,
        mut room_state: Vec<Box<RawValue>>,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        room_state.truncate(SHOWN_MAX);
        let is_event = |event: &RawValue| event.get().len() <= EVENT_BYTES_MAX;
        if !rules.authorization.room_create_event_id_as_room_id {
            room_state.retain(|event| is_event(event));
            return Ok(room_state);
        }
        let objects: Vec<CanonicalJsonObject> = room_state
            .iter()
            .filter(|event| is_event(event))
            .filter_map(|event| canonical_object(event).ok())
            .filter(|event| event.contains_key("state_key"))
            .collect();
        if objects.len() < room_state.len() {
            return Err(Error::InvalidParam("`invite_room_state` has what is no state event".to_owned()));
        }
        let mut read = Vec::new();
        for (_, event) in self.read_events(room, rules, objects).await? {
            read.push(event.map_err(|error| Error::InvalidParam(format!("`invite_room_state`: {error}")))?);
        }
        let verified: Vec<Pdu> = self.verify_events(read).await?.into_iter().filter_map(Result::ok).collect();
        if !verified.iter().any(|pdu| pdu.is_state(&TimelineEventType::RoomCreate, "")) {
            return Err(Error::InvalidParam("`invite_room_state` lacks the create event".to_owned()));
        }
        Ok(verified.iter().filter_map(|pdu| RawValue::from_string(pdu.json.to_string()).ok()).collect())
    }
}

/// Whom an event invites, if it is the invitation of a request. Server-Server API, "PUT /invite/{roomId}/{eventId}".
fn invited_user(pdu: &Pdu, asker: Asker<'_>, (room_id, event_id): (&RoomId, &EventId)) -> Result<OwnedUserId, Error> {
    let invited = pdu.state_key.as_deref().and_then(|key| UserId::parse(key).ok());
    let invited = invited.filter(|invited| invited.server_name() == asker.destination);
    let wrong = if pdu.event_type != TimelineEventType::RoomMember {
        "type"
    } else if membership_of(pdu) != Some(Membership::Invite) {
        "membership"
    } else if pdu.sender.server_name() != asker.origin || !is_name(pdu.sender.as_str(), ID_BYTES_MAX) {
        "sender"
    } else if pdu.room_id != room_id {
        "room"
    } else if pdu.event_id != event_id || !is_name(event_id.as_str(), ID_BYTES_MAX) {
        "id"
    } else if let Some(invited) = invited {
        return Ok(invited);
    } else {
        "state key"
    };
    Err(Error::InvalidParam(format!("the event is not the invitation of this request: its {wrong} is wrong")))
}
