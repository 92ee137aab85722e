//! Who may see which event. Client-Server API, "Room history visibility".

use std::{collections::HashMap, sync::Arc};

use accounts::Requester;
use model::{Membership, NodeNr, RoomNr, UserNr};
use serde::Deserialize;
use storage::{RoomMembership, RoomRow, StateKey, StoredEvent};

use crate::{Error, Rooms, head::membership_of};

/// Somebody who reads a room: what they are to it.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The room.
    pub room: Arc<RoomRow>,
    /// Who reads.
    pub user_nr: UserNr,
    /// The device, for the transaction ids of its own events.
    pub device: String,
    /// What they are to the room; nothing for a stranger who peeks.
    pub membership: Option<RoomMembership>,
}

impl Reader {
    /// Whether the reader is joined.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.is(Membership::Join)
    }

    fn is(&self, membership: Membership) -> bool {
        self.membership.is_some_and(|row| row.membership == membership)
    }

    /// The state that the reader sees: the current one, or that of the moment when they left or were banned.
    #[must_use]
    pub fn left_at(&self) -> Option<RoomMembership> {
        self.membership.filter(|row| matches!(row.membership, Membership::Leave | Membership::Ban))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visibility {
    WorldReadable,
    Shared,
    Invited,
    Joined,
}

/// The state keys that decide.
struct Keys {
    visibility: Option<StateKey>,
    member: Option<StateKey>,
}

impl Rooms {
    /// A reader of a room: a member, somebody who was one, or anyone if the room is readable for the world.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] for everybody else, and for a room that does not exist: they learn nothing of it.
    pub async fn reader(&self, requester: &Requester, room_id: &ruma::RoomId) -> Result<Reader, Error> {
        let room = self.room(room_id).await.map_err(|error| match error {
            Error::RoomUnknown => Error::NotMember,
            other => other,
        })?;
        let membership = self.storage().get_membership(room.nr, requester.user_nr).await?;
        let membership = membership.filter(|row| !row.forgotten);
        let reader = Reader { user_nr: requester.user_nr, device: requester.device().to_owned(), membership, room };
        let was_in = match reader.membership.map(|row| row.membership) {
            Some(Membership::Join) => true,
            Some(Membership::Leave | Membership::Ban) => self.was_joined(reader.room.nr, reader.user_nr).await?,
            _ => false,
        };
        if was_in || self.is_world_readable(reader.room.nr).await? { Ok(reader) } else { Err(Error::NotMember) }
    }

    async fn was_joined(&self, room_nr: RoomNr, user_nr: UserNr) -> Result<bool, Error> {
        let log = self.storage().list_membership_log(room_nr, user_nr).await?;
        Ok(log.iter().any(|(_, membership)| *membership == Membership::Join))
    }

    pub(crate) async fn is_world_readable(&self, room_nr: RoomNr) -> Result<bool, Error> {
        let summary = self.storage().get_summaries(&[room_nr]).await?.remove(&room_nr);
        Ok(summary.is_some_and(|(summary, ..)| summary.history_visibility == "world_readable"))
    }

    /// Which of the events of one room the reader may see, in their order.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn visible(
        &self,
        reader: &Reader,
        events: Vec<Arc<StoredEvent>>,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let user_id = self.storage().user_ids(&[reader.user_nr]).await?.remove(&reader.user_nr);
        let user_id = user_id.map(|id| id.to_string()).unwrap_or_default();
        let storage = self.storage();
        let keys = Keys {
            visibility: storage.find_state_key("m.room.history_visibility", "").await?,
            member: storage.find_state_key("m.room.member", &user_id).await?,
        };
        // Most events of a page have the same state: each state is looked at once.
        let mut known: HashMap<NodeNr, (Visibility, Option<Membership>)> = HashMap::new();
        let mut visible = Vec::with_capacity(events.len());
        for event in events {
            if event.outlier || event.soft_failed || event.pdu.rejected {
                continue;
            }
            let at_event = match known.get(&event.state) {
                Some(at_event) => *at_event,
                None => {
                    let at_event = self.at_event(reader.room.nr, event.state, &keys).await?;
                    known.insert(event.state, at_event);
                    at_event
                }
            };
            // A change of what decides is seen by who sees the room before it or after it.
            let before = match event.replaces {
                Some(old) if is_deciding(&event, &user_id) => self.before(old, at_event).await?,
                _ => at_event,
            };
            if self.may_see(reader, &event, at_event) || self.may_see(reader, &event, before) {
                visible.push(event);
            }
        }
        Ok(visible)
    }

    fn may_see(&self, reader: &Reader, event: &StoredEvent, at_event: (Visibility, Option<Membership>)) -> bool {
        match at_event {
            (Visibility::WorldReadable, _) | (_, Some(Membership::Join)) => true,
            // Shared: also by who joined later, up to when they left.
            (Visibility::Shared, _) => {
                reader.is_joined()
                    || reader
                        .left_at()
                        .is_some_and(|left| event.position.is_some_and(|position| position <= left.position))
            }
            (Visibility::Invited, membership) => membership == Some(Membership::Invite),
            (Visibility::Joined, _) => false,
        }
    }

    async fn at_event(
        &self,
        room_nr: RoomNr,
        state: NodeNr,
        keys: &Keys,
    ) -> Result<(Visibility, Option<Membership>), Error> {
        let visibility = match self.deciding_event(room_nr, state, keys.visibility).await? {
            Some(event) => visibility_of(&event),
            None => Visibility::Shared,
        };
        let member = self.deciding_event(room_nr, state, keys.member).await?;
        Ok((visibility, member.and_then(|event| membership_of(&event.pdu))))
    }

    async fn deciding_event(
        &self,
        room_nr: RoomNr,
        state: NodeNr,
        key: Option<StateKey>,
    ) -> Result<Option<Arc<StoredEvent>>, Error> {
        let Some(key) = key else { return Ok(None) };
        match self.storage().get_state_event(room_nr, state, key).await? {
            Some(nr) => Ok(self.storage().get_event(nr).await?),
            None => Ok(None),
        }
    }

    async fn before(
        &self,
        replaced: model::EventNr,
        after: (Visibility, Option<Membership>),
    ) -> Result<(Visibility, Option<Membership>), Error> {
        let Some(old) = self.storage().get_event(replaced).await? else { return Ok(after) };
        Ok(match membership_of(&old.pdu) {
            Some(membership) => (after.0, Some(membership)),
            None => (visibility_of(&old), after.1),
        })
    }
}

fn is_deciding(event: &StoredEvent, user_id: &str) -> bool {
    event.pdu.is_state(&"m.room.history_visibility".into(), "") || event.pdu.is_state(&"m.room.member".into(), user_id)
}

fn visibility_of(event: &StoredEvent) -> Visibility {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: String,
    }
    let content = serde_json::from_str::<Content>(event.pdu.content.get());
    match content.as_ref().map(|content| content.history_visibility.as_str()) {
        Ok("world_readable") => Visibility::WorldReadable,
        Ok("invited") => Visibility::Invited,
        Ok("joined") => Visibility::Joined,
        // A value that nobody knows counts as shared.
        _ => Visibility::Shared,
    }
}
