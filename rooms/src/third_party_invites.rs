//! Invitations of people whose Matrix id was not known yet. Server-Server API, "Third-party invites".

use std::sync::Arc;

use model::Pdu;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomId, UserId, events::TimelineEventType};
use serde::Deserialize;
use storage::RoomRow;

use crate::{Asker, Draft, Error, Rooms};

impl Rooms {
    /// Makes the invitation of who has turned out to be the one that a user of ours invited by mail address: the server of who is invited
    /// asks for it. Their server signs it like any other invitation; the rules of the room verify what the identity server signed.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`], [`Error::RoomUnknown`], [`Error::BadEvent`]: the asking server's fault. [`Error::Remote`].
    pub async fn exchange_third_party_invite(
        &self,
        asker: Asker<'_>,
        room_id: &RoomId,
        sender: &UserId,
        invited: &UserId,
        mut content: CanonicalJsonObject,
    ) -> Result<OwnedEventId, Error> {
        let room = self.room_of_resident(asker, room_id).await?;
        if invited.server_name() != asker.origin {
            return Err(Error::NotAllowed(format!("{invited} is not a user of {}", asker.origin)));
        }
        if sender.server_name() != asker.destination {
            return Err(Error::NotAllowed(format!("{sender} is not a user of {}", asker.destination)));
        }
        let Some(sender_nr) = self.storage().find_user_nr(sender).await? else {
            return Err(Error::NotAllowed(format!("{sender} has invited nobody")));
        };
        self.name_as_invited(&room, &mut content).await?;
        let draft = Draft::new(sender.to_owned(), sender_nr, TimelineEventType::RoomMember, content)
            .with_state_key(invited.as_str());
        match Self::invited_by(&draft) {
            Some(_) => self.invite_elsewhere(&room, draft).await,
            None => Err(Error::BadEvent("it is no invitation".to_owned())),
        }
    }

    /// Calls the invited person as the one who invited them did, whatever their server says.
    async fn name_as_invited(&self, room: &Arc<RoomRow>, content: &mut CanonicalJsonObject) -> Result<(), Error> {
        let no_invite = || Error::BadEvent("it has no `third_party_invite` with a signed token".to_owned());
        let Some(CanonicalJsonValue::Object(invite)) = content.get_mut("third_party_invite") else {
            return Err(no_invite());
        };
        let signed = invite.get("signed").and_then(CanonicalJsonValue::as_object);
        let token = signed.and_then(|signed| signed.get("token")?.as_str()).ok_or_else(no_invite)?;
        let event = self.find_state(room, "m.room.third_party_invite", token).await?;
        let event = event.ok_or_else(|| Error::NotAllowed("nobody was invited by this token".to_owned()))?;
        if let Some(name) = display_name(&event.pdu) {
            invite.insert("display_name".to_owned(), CanonicalJsonValue::String(name));
        }
        Ok(())
    }
}

fn display_name(pdu: &Pdu) -> Option<String> {
    #[derive(Deserialize)]
    struct Content {
        display_name: String,
    }
    serde_json::from_str::<Content>(pdu.content.get()).ok().map(|content| content.display_name)
}
