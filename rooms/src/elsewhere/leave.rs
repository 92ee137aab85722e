//! Leaving, and knocking on, a room that none of our servers is in.

use std::sync::Arc;

use accounts::Requester;
use model::{Membership, Pdu};
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, RoomId, ServerName};
use serde_json::value::RawValue;
use storage::{RoomMembership, RoomRow};
use tracing::info;

use super::Failure;
use crate::{Error, Rooms, power::rules_of, to_the_end};

impl Rooms {
    /// Turns an invitation down, or takes a knock back.
    ///
    /// The user is rid of it in any case: when no resident brings it about, the room's servers do not learn of it. Server-Server API,
    /// "Leaving Rooms (Rejecting Invites)".
    pub(crate) async fn leave_elsewhere(
        &self,
        requester: &Requester,
        room: &Arc<RoomRow>,
        row: RoomMembership,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        let (rooms, requester, room) = (self.clone(), requester.clone(), room.clone());
        let reason = reason.map(ToOwned::to_owned);
        to_the_end(async move {
            let content = rooms.own_member_content(&requester, Membership::Leave, reason.as_deref()).await?;
            let mut failure = Failure::new();
            for server in rooms.residents(&requester.user_id, &room.id, &[]).await? {
                match rooms.leave_through(&requester, &room.id, &server, &content).await {
                    Ok(pdu) => return rooms.commit_outside(&room, pdu, None).await,
                    Err(error) => failure.note(server, error)?,
                }
            }
            info!(room.id = %room.id, error = %failure.0, "no server of the room learns that a user of ours does not come");
            let pdu = rooms.own_leave(&requester, &room, row, content).await?;
            rooms.commit_outside(&room, pdu, None).await
        })
        .await
    }

    async fn leave_through(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        server: &ServerName,
        content: &CanonicalJsonObject,
    ) -> Result<Pdu, Error> {
        let (user_id, remote) = (&requester.user_id, self.remote());
        let as_server = user_id.server_name();
        let template = remote.make_membership(as_server, server, room_id, user_id, Membership::Leave).await?;
        let pdu = self.member_event_of_template(&template, (room_id, user_id), content.clone())?;
        remote.send_leave(as_server, server, &pdu).await?;
        Ok(pdu)
    }

    /// A leave event that only this server knows: it follows what the user was before.
    async fn own_leave(
        &self,
        requester: &Requester,
        room: &RoomRow,
        row: RoomMembership,
        content: CanonicalJsonObject,
    ) -> Result<Pdu, Error> {
        let rules = rules_of(&room.version)?;
        let before = self.storage().get_event(row.event_nr).await?.ok_or(Error::EventUnknown)?;
        // References to events are written in the way of the room's version; the event before has some, or is the first of the room.
        let given: CanonicalJsonObject =
            serde_json::from_str(&before.pdu.json).map_err(|error| Error::BadEvent(error.to_string()))?;
        let mut event = CanonicalJsonObject::new();
        for field in ["prev_events", "auth_events"] {
            event.extend(given.get(field).map(|value| (field.to_owned(), value.clone())));
        }
        let depth = before.pdu.depth.saturating_add(1).min(model::limits::DEPTH_MAX);
        let depth = depth.try_into().unwrap_or(ruma::Int::MAX);
        event.insert("depth".to_owned(), CanonicalJsonValue::Integer(depth));
        let user_id = &requester.user_id;
        self.sign_member_event(event, &rules, (&room.id, user_id, user_id), content)
    }

    /// Asks the servers of a room to be let in. Server-Server API, "Knocking upon a room".
    pub(crate) async fn knock_elsewhere(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        via: &[OwnedServerName],
        reason: Option<&str>,
    ) -> Result<(), Error> {
        let (rooms, requester, room_id) = (self.clone(), requester.clone(), room_id.to_owned());
        let (via, reason) = (via.to_vec(), reason.map(ToOwned::to_owned));
        to_the_end(async move {
            let content = rooms.own_member_content(&requester, Membership::Knock, reason.as_deref()).await?;
            let mut failure = Failure::new();
            for server in rooms.residents(&requester.user_id, &room_id, &via).await? {
                match rooms.knock_through(&requester, &room_id, &server, &content).await {
                    Ok((room, pdu, shown)) => return rooms.commit_outside(&room, pdu, Some(&shown)).await,
                    Err(error) => failure.note(server, error)?,
                }
            }
            Err(failure.0)
        })
        .await
    }

    async fn knock_through(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        server: &ServerName,
        content: &CanonicalJsonObject,
    ) -> Result<(Arc<RoomRow>, Pdu, Vec<Box<RawValue>>), Error> {
        let (user_id, remote) = (&requester.user_id, self.remote());
        let as_server = user_id.server_name();
        let template = remote.make_membership(as_server, server, room_id, user_id, Membership::Knock).await?;
        let room = self.room_of_version(room_id, &template.version).await?;
        let pdu = self.member_event_of_template(&template, (room_id, user_id), content.clone())?;
        let shown = remote.send_knock(as_server, server, &pdu).await?;
        Ok((room, pdu, shown))
    }
}
