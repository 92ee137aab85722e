//! The state events of one type: the members of a room, the children of a space.

use std::{collections::BTreeMap, sync::Arc};

use model::{EventNr, NodeNr, RoomNr, StateKeyNr};
use moka::sync::Cache;

use crate::{Error, Rooms};

/// Most state events that are in memory by their type.
const EVENTS_CACHED: u64 = 500_000;

/// The state events of a room of one type.
pub(crate) struct TypedState {
    state: NodeNr,
    events: BTreeMap<StateKeyNr, EventNr>,
}

impl TypedState {
    pub(crate) fn events(&self) -> impl Iterator<Item = EventNr> {
        self.events.values().copied()
    }
}

/// Those that were asked for last.
pub(crate) struct TypedStates(Cache<(RoomNr, &'static str), Arc<TypedState>>);

impl TypedStates {
    pub(crate) fn new() -> Self {
        let weigh = |_: &_, known: &Arc<TypedState>| u32::try_from(known.events.len() + 4).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(EVENTS_CACHED).weigher(weigh).build())
    }
}

impl Rooms {
    /// The events of a type in a state of a room. Costs what differs from the state that was asked for before, however large both are.
    pub(crate) async fn state_of_type(
        &self,
        room_nr: RoomNr,
        state: NodeNr,
        event_type: &'static str,
    ) -> Result<Arc<TypedState>, Error> {
        let cache = &self.0.typed_state.0;
        let known = cache.get(&(room_nr, event_type));
        if let Some(known) = known.as_ref().filter(|known| known.state == state) {
            return Ok(known.clone());
        }
        let wanted = self.storage().type_nr(event_type).await?;
        let (old, mut events) = known.map_or((NodeNr(0), BTreeMap::new()), |known| (known.state, known.events.clone()));
        for ((type_nr, state_key_nr), _, event) in self.storage().diff_state(room_nr, old, state).await? {
            match event {
                _ if type_nr != wanted => {}
                Some(event) => drop(events.insert(state_key_nr, event)),
                None => drop(events.remove(&state_key_nr)),
            }
        }
        let found = Arc::new(TypedState { state, events });
        cache.insert((room_nr, event_type), found.clone());
        Ok(found)
    }
}
