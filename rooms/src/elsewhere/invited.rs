//! Invitations of other servers' users. Server-Server API, "Inviting to a room".

use std::sync::Arc;

use model::{Membership, Pdu};
use ruma::{CanonicalJsonObject, RoomId, RoomVersionId, ServerName, UserId, events::TimelineEventType, signatures};
use serde_json::value::RawValue;

use crate::{Error, Rooms, head::membership_of, power::rules_of};

impl Rooms {
    /// Takes in that a user of `as_server`, one of our names, is invited to a room that none of our servers is in; `room_state` shows
    /// them what it is. Gives the event with the signature of `as_server`.
    ///
    /// What comes twice changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedVersion`], [`Error::BadEvent`]: it is no such invitation, or not signed. [`Error::NotAllowed`] when the user is
    /// unknown. Whether the user wants it is for the caller to ask.
    pub async fn receive_invite(
        &self,
        as_server: &ServerName,
        room_id: &RoomId,
        version: &RoomVersionId,
        event: CanonicalJsonObject,
        room_state: Vec<Box<RawValue>>,
    ) -> Result<CanonicalJsonObject, Error> {
        let rules = Arc::new(rules_of(version)?);
        let server = self.servers().get(as_server).ok_or(Error::NotLocal)?;
        let bad = |what: &str| Error::BadEvent(what.to_owned());
        let pdu = Pdu::from_canonical(&event, &rules).map_err(|error| bad(&error.to_string()))?;
        let invited = pdu.state_key.as_deref().and_then(|key| UserId::parse(key).ok());
        let invited = invited.ok_or_else(|| bad("it invites nobody"))?;
        if pdu.event_type != TimelineEventType::RoomMember || membership_of(&pdu) != Some(Membership::Invite) {
            return Err(bad("it is no invitation"));
        }
        if pdu.room_id != room_id || invited.server_name() != as_server {
            return Err(bad("it invites to another room, or somebody of another server"));
        }
        if self.storage().get_user(&invited).await?.is_none() {
            return Err(Error::NotAllowed(format!("{invited} is not a user of this server")));
        }
        let room = self.room_of_version(room_id, version).await?;
        let (_, read) = self.read_events(&room, &rules, vec![event.clone()]).await?.remove(0);
        self.verify_events(vec![read?]).await?.remove(0)?;
        let mut signed = event;
        signatures::sign_event(as_server.as_str(), &server.key, &mut signed, &rules.redaction)
            .map_err(|error| bad(&error.to_string()))?;
        let pdu = Pdu::from_canonical(&signed, &rules).map_err(|error| bad(&error.to_string()))?;
        self.commit_outside(&room, pdu, Some(&room_state)).await?;
        Ok(signed)
    }
}
