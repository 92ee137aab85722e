//! Spaces as servers tell each other of them. Server-Server API, "Spaces".

use std::{collections::HashSet, sync::Arc};

use model::{ClientEvent, RoomNr};
use ruma::{
    OwnedRoomId, RoomId, ServerName,
    room::{RoomSummary, RoomType},
};
use serde_json::value::RawValue;
use storage::RoomRow;

use crate::{
    Error, Rooms,
    power::rules_of,
    preview::{may_come_in, shown},
    space_children::EVENTS_AT_ONCE,
};

/// Most children of a space that another server is told of.
const CHILDREN_MAX: usize = 500;

/// A space, or another room, with its children as far as a server may come in there.
#[derive(Clone, Debug)]
pub struct ServedSpace {
    /// What the room shows of itself.
    pub room: RoomSummary,
    /// For a space, its children, in order: stripped `m.space.child` events with their time.
    pub children_state: Vec<Box<RawValue>>,
    /// What the children show of themselves.
    pub children: Vec<RoomSummary>,
    /// Children that are not for the server.
    pub inaccessible: Vec<OwnedRoomId>,
}

impl Rooms {
    /// A space and its children as another server may see them: the rooms that are open, those that it is in or invited to, and those that
    /// let in who is in a room that it is in. A few queries for all. Server-Server API, "GET /hierarchy/{roomId}".
    ///
    /// # Errors
    ///
    /// [`Error::RoomUnknown`], also for a room that is not for the server's eyes, or that none of us is in.
    pub async fn space_for_server(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<ServedSpace, Error> {
        let space = self.room(room_id).await?;
        let here = self.with_us_in(std::slice::from_ref(&space)).await?;
        let Some(room) = self.shown_to(server, &here).await?.pop() else { return Err(Error::RoomUnknown) };
        let mut children_left = if room.room_type == Some(RoomType::Space) { CHILDREN_MAX } else { 0 };
        let mut children = self.children(&[&space], suggested_only, &mut children_left).await?;
        let children = children.remove(&space.nr).unwrap_or_default();
        let mut children_state = Vec::with_capacity(children.len());
        for piece in children.chunks(EVENTS_AT_ONCE) {
            let numbers: Vec<_> = piece.iter().map(|child| child.nr).collect();
            let events = self.storage().get_events(&numbers).await?;
            for event in numbers.iter().filter_map(|nr| events.get(nr)) {
                let event = ClientEvent::of(&event.pdu.json).map_err(|error| Error::BadEvent(error.to_string()))?;
                children_state.push(event.to_stripped_with_time());
            }
        }
        let named: Vec<&RoomId> = children.iter().map(|child| &*child.room_id).collect();
        let here = self.with_us_in(&self.find_rooms(&named).await?).await?;
        let children = self.shown_to(server, &here).await?;
        let seen: HashSet<&RoomId> = children.iter().map(|child| &*child.room_id).collect();
        let inaccessible =
            here.iter().map(|room| &room.id).filter(|room_id| !seen.contains(&***room_id)).cloned().collect();
        Ok(ServedSpace { room, children_state, children, inaccessible })
    }

    /// Those of the rooms that one of us is in: of the others we do not know what they are like now.
    pub(crate) async fn with_us_in(&self, rooms: &[Arc<RoomRow>]) -> Result<Vec<Arc<RoomRow>>, Error> {
        let numbers: Vec<RoomNr> = rooms.iter().map(|room| room.nr).collect();
        let ours: Vec<&ServerName> = self.servers().iter().map(|server| &*server.name).collect();
        let with_us = self.storage().list_rooms_of_servers(&numbers, &ours).await?;
        Ok(rooms.iter().filter(|room| with_us.contains(&room.nr)).cloned().collect())
    }

    /// What those of the rooms show of themselves that a user of a server may come in to, or look in.
    async fn shown_to(&self, server: &ServerName, rooms: &[Arc<RoomRow>]) -> Result<Vec<RoomSummary>, Error> {
        let storage = self.storage();
        let numbers: Vec<RoomNr> = rooms.iter().map(|room| room.nr).collect();
        let mut summaries = storage.get_summaries(&numbers).await?;
        let restricted = rooms.iter().filter_map(|room| Some((&**room, &summaries.get(&room.nr)?.0)));
        let mut allowed = self.allowed_of(restricted).await?;
        let named: Vec<&RoomId> = allowed.values().flatten().map(|room_id| &**room_id).collect();
        let named = if named.is_empty() { Vec::new() } else { self.find_rooms(&named).await? };
        let looked_at: Vec<RoomNr> = numbers.iter().copied().chain(named.iter().map(|room| room.nr)).collect();
        let is_in = storage.list_rooms_of_servers(&looked_at, &[server]).await?;
        let joined: HashSet<&RoomId> =
            named.iter().filter(|room| is_in.contains(&room.nr)).map(|room| &*room.id).collect();
        let (mut open, mut closed) = (HashSet::new(), Vec::new());
        for room in rooms {
            let Some((summary, _, invited)) = summaries.get(&room.nr) else { continue };
            let is_allowed = allowed.get(&room.nr).into_iter().flatten().any(|room_id| joined.contains(&**room_id));
            let rules = rules_of(&room.version)?;
            if is_in.contains(&room.nr) || may_come_in(&rules.authorization, summary, is_allowed) {
                open.insert(room.nr);
            } else if *invited > 0 {
                closed.push(room.nr);
            }
        }
        if !closed.is_empty() {
            open.extend(storage.list_rooms_inviting_server(&closed, server).await?);
        }
        let mut shown_rooms = Vec::with_capacity(open.len());
        for room in rooms.iter().filter(|room| open.contains(&room.nr)) {
            let Some((summary, members, _)) = summaries.remove(&room.nr) else { continue };
            shown_rooms.push(shown(room, summary, members, allowed.remove(&room.nr).unwrap_or_default()));
        }
        Ok(shown_rooms)
    }
}
