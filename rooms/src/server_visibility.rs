//! Which events another server may see. Server-Server API, "Retrieving events"; Client-Server API, "Room history visibility".

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use model::{EventNr, Membership, NodeNr};
use ruma::{OwnedUserId, ServerName};
use storage::{RoomRow, StateKey, StateLook, StoredEvent};

use crate::{
    Error, Rooms,
    head::membership_of,
    served::MEMBERS_UNKNOWN,
    visibility::{HISTORY_VISIBILITY, Visibility, visibility_of},
};

/// Most users of the server that are looked for in old states: those who have been what they are to the room for longest.
const USERS_MAX: u32 = 500;

impl Rooms {
    /// Those of the events of a room, which the server is in, that it may not see but as having been there.
    ///
    /// It sees what its users saw: all, where the history is shared; where it is for members only, what happened while one of its users was
    /// in the room, or invited where that is enough. A few queries for all. As in Synapse, which servers rely on.
    pub(crate) async fn hidden_from_server(
        &self,
        room: &RoomRow,
        server: &ServerName,
        events: &[Arc<StoredEvent>],
    ) -> Result<HashSet<EventNr>, Error> {
        let storage = self.storage();
        // Nobody knows what the room was like at an outlier: only what makes up the room's state is shown.
        let mut hidden: HashSet<EventNr> =
            events.iter().filter(|event| event.outlier && !event.is_state()).map(|event| event.nr).collect();
        let Some(key) = storage.find_state_key(HISTORY_VISIBILITY, "").await? else { return Ok(hidden) };
        let mut states: Vec<NodeNr> = events.iter().filter(|event| !event.outlier).map(|event| event.state).collect();
        states.sort_unstable();
        states.dedup();
        let rules = self.events_in_states(room, &states, &[key]).await?;
        let closed: HashMap<NodeNr, Visibility> = rules
            .into_iter()
            .filter_map(|(state, event)| Some((state, visibility_of(event.first()?))))
            .filter(|(_, visibility)| matches!(visibility, Visibility::Invited | Visibility::Joined))
            .collect();
        if closed.is_empty() {
            return Ok(hidden);
        }
        // It is not known which of its users were there; and what it gets redacted stays so.
        if self.storage().is_partial(room.nr).await? {
            return Err(Error::NotAllowed(MEMBERS_UNKNOWN.to_owned()));
        }
        let seen = self.states_with_users(room, server, &closed).await?;
        let is_hidden = |event: &&Arc<StoredEvent>| closed.contains_key(&event.state) && !seen.contains(&event.state);
        hidden.extend(events.iter().filter(|event| !event.outlier).filter(is_hidden).map(|event| event.nr));
        Ok(hidden)
    }

    /// The events of a room that the server sees whole.
    pub(crate) async fn visible_to_server(
        &self,
        room: &RoomRow,
        server: &ServerName,
        mut events: Vec<Arc<StoredEvent>>,
    ) -> Result<Vec<Arc<StoredEvent>>, Error> {
        let hidden = self.hidden_from_server(room, server, &events).await?;
        events.retain(|event| !hidden.contains(&event.nr));
        Ok(events)
    }

    /// Those of the states in which a user of the server was what their history visibility asks for.
    async fn states_with_users(
        &self,
        room: &RoomRow,
        server: &ServerName,
        closed: &HashMap<NodeNr, Visibility>,
    ) -> Result<HashSet<NodeNr>, Error> {
        let kinds = [Membership::Join, Membership::Leave, Membership::Ban, Membership::Invite, Membership::Knock];
        let users: Vec<OwnedUserId> = self.storage().list_users_of_server(room.nr, server, &kinds, USERS_MAX).await?;
        let mut keys: Vec<StateKey> = Vec::with_capacity(users.len());
        for user_id in &users {
            keys.extend(self.storage().find_state_key("m.room.member", user_id.as_str()).await?);
        }
        let states: Vec<NodeNr> = closed.keys().copied().collect();
        let members = self.events_in_states(room, &states, &keys).await?;
        let sees = |state: &NodeNr, event: &Arc<StoredEvent>| match membership_of(&event.pdu) {
            Some(Membership::Join) => true,
            Some(Membership::Invite) => closed.get(state) == Some(&Visibility::Invited),
            _ => false,
        };
        Ok(members
            .into_iter()
            .filter(|(state, events)| events.iter().any(|event| sees(state, event)))
            .map(|(state, _)| state)
            .collect())
    }

    /// The events that states of a room have for some keys: one query a level of the states, and one for the events.
    async fn events_in_states(
        &self,
        room: &RoomRow,
        states: &[NodeNr],
        keys: &[StateKey],
    ) -> Result<HashMap<NodeNr, Vec<Arc<StoredEvent>>>, Error> {
        let storage = self.storage();
        let look = |state: &NodeNr| StateLook { room_nr: room.nr, state: *state, keys: Some(keys.to_vec()) };
        storage.preload_states(states.iter().map(look).collect()).await?;
        let mut numbers: Vec<(NodeNr, EventNr)> = Vec::new();
        for state in states {
            for key in keys {
                numbers.extend(storage.get_state_event(room.nr, *state, *key).await?.map(|nr| (*state, nr)));
            }
        }
        let events = storage.get_events(&numbers.iter().map(|(_, nr)| *nr).collect::<Vec<_>>()).await?;
        let mut found: HashMap<NodeNr, Vec<Arc<StoredEvent>>> = HashMap::new();
        for (state, nr) in numbers {
            found.entry(state).or_default().extend(events.get(&nr).cloned());
        }
        Ok(found)
    }
}
