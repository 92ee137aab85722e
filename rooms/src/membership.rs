//! Coming and going. Client-Server API, "Room membership".

use std::sync::Arc;

use accounts::Requester;
use model::{Membership, RoomNr, UserNr};
use ruma::{CanonicalJsonValue, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId, events::TimelineEventType};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{Draft, Error, Rooms, create::object};

impl Rooms {
    /// Joins a room; joining it twice changes nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Rooms::join_via`].
    pub async fn join(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        reason: Option<&str>,
    ) -> Result<OwnedRoomId, Error> {
        self.join_via(requester, room_id, &[], reason).await
    }

    /// The same, through one of the servers `via` if none of ours is in the room, or none of ours may let the requester in.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] when the join rules forbid it; [`Error::RoomUnknown`]; [`Error::Remote`] when no server of the room answers.
    pub async fn join_via(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        via: &[OwnedServerName],
        reason: Option<&str>,
    ) -> Result<OwnedRoomId, Error> {
        let Some(room) = self.find_here(room_id).await? else {
            if requester.is_guest {
                return Err(Error::GuestsForbidden);
            }
            self.join_elsewhere(requester, room_id, via, reason).await?;
            return Ok(room_id.to_owned());
        };
        self.wait_for_member(&room, Some(requester.user_nr)).await?;
        let current = self.storage().get_membership(room.nr, requester.user_nr).await?;
        if current.is_some_and(|row| row.membership == Membership::Join) {
            return Ok(room.id.clone());
        }
        self.check_guest(requester, &room).await?;
        match self.set_membership(requester, room_id, &requester.user_id, Membership::Join, reason).await {
            // Others may know that a condition holds, or have somebody who may invite.
            Err(Error::NotAllowed(rule)) if self.may_be_let_in_elsewhere(&room).await? => {
                let joined = self.join_elsewhere(requester, room_id, via, reason).await;
                joined.map_err(
                    |error| if matches!(error, Error::Storage(_)) { error } else { Error::NotAllowed(rule) },
                )?;
            }
            result => result?,
        }
        Ok(room.id.clone())
    }

    /// Asks to be let into a room; asking twice changes nothing. Client-Server API, "Knocking on rooms".
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] when the join rules forbid it, or for who is in the room, invited or banned; [`Error::RoomUnknown`].
    pub async fn knock(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        reason: Option<&str>,
    ) -> Result<OwnedRoomId, Error> {
        self.knock_via(requester, room_id, &[], reason).await
    }

    /// The same, through one of the servers `via` if none of ours is in the room.
    ///
    /// # Errors
    ///
    /// Those of [`Rooms::knock`]; [`Error::Remote`] when no server of the room answers.
    pub async fn knock_via(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        via: &[OwnedServerName],
        reason: Option<&str>,
    ) -> Result<OwnedRoomId, Error> {
        let Some(room) = self.find_here(room_id).await? else {
            self.knock_elsewhere(requester, room_id, via, reason).await?;
            return Ok(room_id.to_owned());
        };
        self.wait_for_member(&room, Some(requester.user_nr)).await?;
        let current = self.storage().get_membership(room.nr, requester.user_nr).await?;
        if current.is_none_or(|row| row.membership != Membership::Knock) {
            self.set_membership(requester, room_id, &requester.user_id, Membership::Knock, reason).await?;
        }
        Ok(room.id.clone())
    }

    /// Invites a user.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] when the requester may not, or the user is in the room or banned; [`Error::Remote`] when the user's server
    /// did not take the invitation.
    pub async fn invite(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        user_id: &UserId,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        self.room_for(requester, room_id).await?;
        self.set_membership(requester, room_id, user_id, Membership::Invite, reason).await
    }

    /// Leaves a room, or refuses an invitation; leaving it twice changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] when there is nothing to leave.
    pub async fn leave(&self, requester: &Requester, room_id: &RoomId, reason: Option<&str>) -> Result<(), Error> {
        let room = self.room_for(requester, room_id).await?;
        let current = self.storage().get_membership(room.nr, requester.user_nr).await?;
        match current.map(|row| row.membership) {
            Some(Membership::Leave) => Ok(()),
            None => Err(Error::NotMember),
            Some(Membership::Invite | Membership::Knock) if !self.is_here(&room).await? => {
                let row = current.ok_or(Error::NotMember)?;
                self.leave_elsewhere(requester, &room, row, reason).await
            }
            Some(_) => self.set_membership(requester, room_id, &requester.user_id, Membership::Leave, reason).await,
        }
    }

    /// Removes a user from a room, or takes an invitation back.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] when the requester may not, or the user is not in the room.
    pub async fn kick(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        user_id: &UserId,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        self.expect_target(requester, room_id, user_id, &[Membership::Join, Membership::Invite, Membership::Knock])
            .await?;
        self.set_membership(requester, room_id, user_id, Membership::Leave, reason).await
    }

    /// Bans a user, whether in the room or not.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] when the requester may not.
    pub async fn ban(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        user_id: &UserId,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        self.room_for(requester, room_id).await?;
        self.set_membership(requester, room_id, user_id, Membership::Ban, reason).await
    }

    /// Lifts a ban.
    ///
    /// # Errors
    ///
    /// [`Error::NotAllowed`] when the requester may not, or the user is not banned.
    pub async fn unban(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        user_id: &UserId,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        self.expect_target(requester, room_id, user_id, &[Membership::Ban]).await?;
        self.set_membership(requester, room_id, user_id, Membership::Leave, reason).await
    }

    /// Forgets a room that the requester has left. Client-Server API, "Leaving rooms".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] while the requester is in the room; [`Error::NotMember`] if they never were.
    pub async fn forget(&self, requester: &Requester, room_id: &RoomId) -> Result<(), Error> {
        let room = self.room_for(requester, room_id).await?;
        if self.storage().forget_room(room.nr, requester.user_nr).await? {
            Ok(())
        } else {
            Err(Error::InvalidParam("leave the room before forgetting it".to_owned()))
        }
    }

    /// The numbers of a room and of a user who was something to it and is not joined now.
    ///
    /// # Errors
    ///
    /// [`Error::RoomUnknown`].
    pub async fn numbers_of_former_member(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
    ) -> Result<Option<(RoomNr, UserNr)>, Error> {
        let room = self.room(room_id).await?;
        let Some(user_nr) = self.storage().find_user_nr(user_id).await? else { return Ok(None) };
        let row = self.storage().get_membership(room.nr, user_nr).await?;
        Ok(row.filter(|row| row.membership != Membership::Join).map(|row| (row.room_nr, row.user_nr)))
    }

    async fn expect_target(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        user_id: &UserId,
        allowed: &[Membership],
    ) -> Result<(), Error> {
        let room = self.room_for(requester, room_id).await?;
        let user_nr = self.storage().find_user_nr(user_id).await?;
        self.wait_for_member(&room, user_nr).await?;
        // A user who came to be known meanwhile has a number now.
        let row = match self.storage().find_user_nr(user_id).await? {
            Some(user_nr) => self.storage().get_membership(room.nr, user_nr).await?,
            None => None,
        };
        if row.is_some_and(|row| allowed.contains(&row.membership)) {
            Ok(())
        } else {
            let words: Vec<&str> = allowed.iter().map(|membership| membership.as_str()).collect();
            Err(Error::NotAllowed(format!("{user_id} has none of these memberships in the room: {}", words.join(", "))))
        }
    }

    /// What holds for coming in and inviting holds too for who sends the member event as state. Gives who vouches for a join.
    pub(crate) async fn check_member_state(
        &self,
        requester: &Requester,
        room: &storage::RoomRow,
        user_id: &str,
        content: &RawValue,
    ) -> Result<Option<OwnedUserId>, Error> {
        #[derive(Deserialize)]
        struct Content {
            membership: String,
        }
        // What is no member event at all is refused by the authorization rules.
        let Ok(content) = serde_json::from_str::<Content>(content.get()) else { return Ok(None) };
        match Membership::from_word(&content.membership) {
            Some(Membership::Join) => {
                self.check_guest(requester, room).await?;
                if requester.user_id == user_id { self.authoriser(requester, room).await } else { Ok(None) }
            }
            _ => Ok(None),
        }
    }

    /// Guests come in only where the room says so. Client-Server API, "Guest Access".
    async fn check_guest(&self, requester: &Requester, room: &storage::RoomRow) -> Result<(), Error> {
        if requester.is_guest && !self.lets_guests_in(room).await? {
            return Err(Error::GuestsForbidden);
        }
        Ok(())
    }

    async fn lets_guests_in(&self, room: &storage::RoomRow) -> Result<bool, Error> {
        let summary = self.storage().get_summaries(&[room.nr]).await?.remove(&room.nr);
        Ok(summary.is_some_and(|(summary, ..)| summary.guest_access == "can_join"))
    }

    /// Makes guests leave a room that lets none in any more. Client-Server API, "Guest Access".
    pub(crate) async fn remove_guests(&self, room: &Arc<storage::RoomRow>) -> Result<(), Error> {
        if self.lets_guests_in(room).await? {
            return Ok(());
        }
        let guests = self.storage().list_joined_guests(room.nr).await?;
        let names = self.storage().user_ids(&guests).await?;
        let content = object(json!({"membership": Membership::Leave.as_str()}))?;
        let leaving = names.into_iter().map(|(user_nr, user_id)| {
            Draft::new(user_id.clone(), user_nr, TimelineEventType::RoomMember, content.clone())
                .with_state_key(user_id.as_str())
                .while_joined()
        });
        for result in self.submit_all(room, leaving.collect()).await {
            match result {
                // They have left by themselves meanwhile.
                Ok(_) | Err(Error::NotMember) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) async fn set_membership(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        user_id: &UserId,
        membership: Membership,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        let room = self.room(room_id).await?;
        let mut content = object(json!({"membership": membership.as_str()}))?;
        let shows = match membership {
            Membership::Join | Membership::Knock => Some(requester.user_nr),
            Membership::Invite => self.storage().find_user_nr(user_id).await?,
            Membership::Leave | Membership::Ban => None,
        };
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), CanonicalJsonValue::String(reason.to_owned()));
        }
        let authoriser = match membership {
            Membership::Join => self.authoriser(requester, &room).await?,
            _ => None,
        };
        let draft = Draft::new(requester.user_id.clone(), requester.user_nr, TimelineEventType::RoomMember, content)
            .with_state_key(user_id.as_str())
            .showing(shows)
            .authorised_via(authoriser);
        self.submit_or_invite(&room, draft).await.map(|_| ())
    }
}
