//! Invitations between servers. Server-Server API, "Inviting to a room".

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt as _, stream};
use model::{Membership, Pdu};
use ruma::{CanonicalJsonObject, OwnedEventId, RoomVersionId, UserId, events::TimelineEventType};
use serde_json::value::RawValue;
use storage::RoomRow;

use crate::{Draft, Error, Received, Rooms, head::Head, stripped_state::as_stored, to_the_end};

/// How many users of other servers are invited at the same time.
const INVITED_AT_ONCE: usize = 8;

/// An invitation that the server of who is invited is asked to sign.
#[derive(Clone, Debug)]
pub struct OutgoingInvite {
    /// The version of the room.
    pub version: RoomVersionId,
    /// The invitation, signed by us.
    pub event: Pdu,
    /// Events that show which room it is.
    pub room_state: Vec<Box<RawValue>>,
}

impl Rooms {
    /// Invites a user of another server: that one signs the invitation before it is an event of the room.
    ///
    /// The room's turn is not held meanwhile, so that the room goes on; the invitation is a fork then. Goes on when the caller does not.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] when the sender may not, before or after the other server was asked; [`Error::Remote`].
    pub(crate) async fn invite_elsewhere(&self, room: &Arc<RoomRow>, draft: Draft) -> Result<OwnedEventId, Error> {
        let (rooms, room) = (self.clone(), room.clone());
        to_the_end(Box::pin(async move { rooms.ask_and_commit_invite(&room, &draft).await })).await
    }

    /// Invites many, a few at a time; one result each, in no order.
    pub(crate) async fn invite_many_elsewhere(
        &self,
        room: &Arc<RoomRow>,
        drafts: Vec<Draft>,
    ) -> Vec<Result<OwnedEventId, Error>> {
        stream::iter(drafts)
            .map(|draft| self.invite_elsewhere(room, draft))
            .buffer_unordered(INVITED_AT_ONCE)
            .collect()
            .await
    }

    async fn ask_and_commit_invite(&self, room: &Arc<RoomRow>, draft: &Draft) -> Result<OwnedEventId, Error> {
        let storage = self.storage();
        let invited = draft.state_key.as_deref().and_then(|key| <&UserId>::try_from(key).ok());
        let invited = invited.ok_or_else(|| Error::BadEvent("an invitation names a user".to_owned()))?;
        let head = Head::load(storage, room.clone()).await?;
        let event = head.proposal(storage, self.servers(), draft).await?;
        if let Some((_, old)) = head.state_event(storage, "m.room.member", invited.as_str()).await?
            && old.sender == event.sender
            && old.content.get() == event.content.get()
        {
            return Ok(old.event_id.clone());
        }
        let shown = self.stripped_state_events(room.nr, head.state, &[&event.sender]).await?;
        let invite = OutgoingInvite {
            version: room.version.clone(),
            room_state: shown.iter().filter_map(|event| as_stored(event)).collect(),
            event,
        };
        let (as_server, destination) = (draft.sender.server_name(), invited.server_name());
        let signed: CanonicalJsonObject = self.remote().sign_invite(as_server, destination, &invite).await?;
        let pdu = Pdu::from_canonical(&signed, &head.rules).map_err(|error| Error::BadEvent(error.to_string()))?;
        assert_eq!(pdu.event_id, invite.event.event_id, "a signature does not make another event");
        match self.receive_verified(room, pdu, false).await? {
            Received::Accepted | Received::Known => Ok(invite.event.event_id),
            Received::SoftFailed(rule) | Received::Rejected(rule) => Err(Error::NotAllowed(rule)),
            Received::Missing(_) => Err(Error::Busy),
        }
    }

    /// The user whom an event invites, if it is an invitation.
    pub(crate) fn invited_by(draft: &Draft) -> Option<&UserId> {
        let membership = draft.content.get("membership").and_then(|membership| membership.as_str());
        if draft.event_type != TimelineEventType::RoomMember || membership != Some(Membership::Invite.as_str()) {
            return None;
        }
        <&UserId>::try_from(draft.state_key.as_deref()?).ok()
    }

    /// Those of some users of ours who let nobody invite them.
    pub(crate) async fn who_blocks_invites<'a>(&self, users: &[&'a UserId]) -> Result<HashSet<&'a UserId>, Error> {
        let numbers = self.storage().find_user_nrs(users).await?;
        let blocking = self.0.settings.who_blocks_invites(&numbers.values().copied().collect::<Vec<_>>()).await?;
        Ok(numbers.into_iter().filter(|(_, user_nr)| blocking.contains(user_nr)).map(|(user_id, _)| user_id).collect())
    }

    /// Sends an event; an invitation to whom it is for, if they are of another server, and not to who takes none.
    pub(crate) async fn submit_or_invite(&self, room: &Arc<RoomRow>, draft: Draft) -> Result<OwnedEventId, Error> {
        if draft.event_type == TimelineEventType::RoomMember
            && let Some(target) = draft.state_key.as_deref().and_then(|key| <&UserId>::try_from(key).ok())
        {
            // What they may become depends on what they are.
            self.wait_for_member(room, self.storage().find_user_nr(target).await?).await?;
        }
        match Self::invited_by(&draft) {
            Some(user_id) if !self.servers().has_user(user_id) => self.invite_elsewhere(room, draft).await,
            Some(user_id) if !self.who_blocks_invites(&[user_id]).await?.is_empty() => {
                Err(Error::InviteBlocked(user_id.to_owned()))
            }
            _ => self.submit(room, draft).await,
        }
    }
}
