//! Rooms whose members are not all here yet (`omit_members`; see [`crate::elsewhere`] for how they come).
//!
//! That a member is absent from the state of such a room says nothing of them: neither that they are in it nor that they are not. Whoever
//! judges events of others takes the absent ones from the events' own `auth_events`; whoever has to know all of them waits.

use std::{sync::Arc, time::Duration};

use model::{EventNr, NodeNr, Pdu, UserNr};
use ruma::events::{StateEventType, TimelineEventType};
use storage::{NewNodes, RoomRow, StoredEvent};
use tokio::time::sleep;

use crate::{Error, Reader, Rooms, head::Head, power::rules_of};

/// How often who waits for the members of a room looks whether all are here: mostly it is another task of this process that brings them,
/// but not always.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How many times: twenty seconds.
const LOOKS_MAX: usize = 200;

impl Rooms {
    /// Waits until all members of a room are here.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when that takes too long.
    pub(crate) async fn wait_for_members(&self, room: &RoomRow) -> Result<(), Error> {
        for _ in 0..LOOKS_MAX {
            if !self.storage().is_partial(room.nr).await? {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
        Err(Error::Busy)
    }

    /// The same for who is in the room; of what others see nothing comes any more.
    pub(crate) async fn wait_for_members_of(&self, reader: &Reader) -> Result<(), Error> {
        if reader.is_joined() { self.wait_for_members(&reader.room).await } else { Ok(()) }
    }

    /// Waits until it is known what a user is to a room.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when that takes too long.
    pub(crate) async fn wait_for_member(&self, room: &RoomRow, user_nr: Option<UserNr>) -> Result<(), Error> {
        if !self.storage().is_partial(room.nr).await? {
            return Ok(());
        }
        if let Some(user_nr) = user_nr {
            let row = self.storage().get_membership(room.nr, user_nr).await?;
            // What somebody of ours was to the room before it came here need not be what they are.
            if let Some(row) = row
                && self.storage().get_event(row.event_nr).await?.is_some_and(|event| !event.outlier)
            {
                return Ok(());
            }
        }
        self.wait_for_members(room).await
    }

    /// A state of a room that lacks members, with those that an event needs and lists itself: the state, and the member events that came
    /// to it. Server-Server API, "Auth events selection".
    pub(crate) async fn with_members_of(
        &self,
        room: &Arc<RoomRow>,
        state: NodeNr,
        pdu: &Pdu,
        auth: &[(EventNr, Arc<Pdu>)],
        nodes: &mut NewNodes,
    ) -> Result<(NodeNr, Vec<(EventNr, Arc<Pdu>)>), Error> {
        let storage = self.storage();
        let (mut state, mut added) = (state, Vec::new());
        let is_member = |pdu: &Pdu| pdu.event_type == TimelineEventType::RoomMember && !pdu.rejected;
        if !auth.iter().any(|(_, pdu)| is_member(pdu)) {
            return Ok((state, added));
        }
        let keys = ruma::state_res::auth_types_for_event(
            &pdu.event_type,
            &pdu.sender,
            pdu.state_key.as_deref(),
            &pdu.content,
            &rules_of(&room.version)?.authorization,
        );
        for (event_type, user_id) in keys.unwrap_or_default() {
            let of_user = |pdu: &Pdu| is_member(pdu) && pdu.state_key.as_deref() == Some(&*user_id);
            let Some((nr, member)) =
                auth.iter().find(|(_, pdu)| event_type == StateEventType::RoomMember && of_user(pdu))
            else {
                continue;
            };
            let key = (storage.type_nr("m.room.member").await?, storage.state_key_nr(&user_id).await?);
            if storage.get_state_event(room.nr, state, key).await?.is_none() {
                state = storage.change_state(room.nr, state, key, Some(*nr), nodes).await?;
                added.push((*nr, member.clone()));
            }
        }
        Ok((state, added))
    }

    /// A state of a room that lacks members, with those whom the current one knows and it does not: they have not left.
    pub(crate) async fn keep_members(
        &self,
        head: &Head,
        mut state: NodeNr,
        nodes: &mut NewNodes,
    ) -> Result<NodeNr, Error> {
        let storage = self.storage();
        let member = storage.type_nr("m.room.member").await?;
        for (key, known, here) in storage.diff_state(head.row.nr, head.state, state).await? {
            if key.0 == member && here.is_none() {
                state = storage.change_state(head.row.nr, state, key, known, nodes).await?;
            }
        }
        Ok(state)
    }

    /// The state before an event of a room whose members are not all here; nothing when they are. What lies before the event had this
    /// state for now, without what came later.
    pub(crate) async fn state_before_in_partial(
        &self,
        room: &RoomRow,
        event: &StoredEvent,
    ) -> Result<Option<NodeNr>, Error> {
        let storage = self.storage();
        if !event.lacks_members || !storage.is_partial(room.nr).await? {
            return Ok(None);
        }
        let Some(state_key_nr) = event.state_key_nr else { return Ok(Some(event.state)) };
        let mut nodes = NewNodes::default();
        let key = (event.type_nr, state_key_nr);
        let state = storage.change_state(room.nr, event.state, key, event.replaces, &mut nodes).await?;
        storage.insert_state_nodes(room.nr, nodes).await?;
        Ok(Some(state))
    }
}
