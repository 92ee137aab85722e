//! What a server is told of a room that a user of it has just joined: the state before, and all that allows it. Server-Server API,
//! "PUT /send_join/{roomId}/{eventId}".
//!
//! A room may have tens of thousands of state events: they are given as numbers, and their JSON in pieces, each while the one before is on
//! its way.

use std::{collections::HashSet, sync::Arc};

use model::{EventNr, Membership};
use ruma::{CanonicalJsonObject, EventId, RoomId};
use storage::{StateKey, StoredEvent};

use crate::{Asker, Error, Handshake, Rooms, resolution::Chains};

/// Most servers of a room that are named.
const SERVERS_MAX: u32 = 50_000;
/// Most members after whom a room is called. Client-Server API, "RoomSummary", `m.heroes`.
const HEROES_MAX: u32 = 5;

/// A room as a server sees it that has just joined.
#[derive(Clone, Debug)]
pub struct JoinedState {
    /// The join, with all signatures.
    pub join: Arc<StoredEvent>,
    /// The state before it, oldest first.
    pub state: Vec<EventNr>,
    /// The auth chains of the state and of the join; when members were left out, without the state.
    pub auth_chain: Vec<EventNr>,
    /// When members were left out, the servers that were in the room.
    pub servers: Option<Vec<String>>,
}

impl Rooms {
    /// Takes in the join of a user of another server, and gives the state before it.
    ///
    /// With `omit_members` the members are left out whom nobody needs to know for now: the joining server asks for them later.
    ///
    /// # Errors
    ///
    /// As [`Rooms::accept_handshake`].
    pub async fn accept_join(
        &self,
        asker: Asker<'_>,
        ids: (&RoomId, &EventId),
        event: CanonicalJsonObject,
        omit_members: bool,
    ) -> Result<JoinedState, Error> {
        let servers = match omit_members {
            true => Some(self.storage().list_servers(self.room(ids.0).await?.nr, SERVERS_MAX).await?),
            false => None,
        };
        let join = self.accept_handshake(asker, ids, Handshake::Join, event).await?;
        let before = self.state_before(&join).await?;
        let mut state: Vec<EventNr> = match omit_members {
            true => self.without_members(&join, before).await?,
            false => before.into_iter().map(|(_, nr)| nr).collect(),
        };
        state.sort_unstable();
        let mut chains = Chains::default();
        chains.load(self.storage(), state.iter().copied().chain([join.nr]), None).await?;
        let mut chain = chains.all();
        if omit_members {
            chain.retain(|nr| state.binary_search(nr).is_err());
        }
        let mut auth_chain: Vec<EventNr> = chain.into_iter().collect();
        auth_chain.sort_unstable();
        Ok(JoinedState { join, state, auth_chain, servers })
    }

    /// The state before a state event: that after it, with what the event replaced.
    pub(crate) async fn state_before(&self, event: &StoredEvent) -> Result<Vec<(StateKey, EventNr)>, Error> {
        let after = self.storage().list_state(event.room_nr, event.state).await?;
        let before = after.into_iter().filter_map(|(key, nr)| match nr == event.nr {
            true => event.replaces.map(|replaced| (key, replaced)),
            false => Some((key, nr)),
        });
        Ok(before.collect())
    }

    /// The state without members, but for those whom the join refers to, and those after whom a room without a name is called.
    async fn without_members(
        &self,
        join: &StoredEvent,
        state: Vec<(StateKey, EventNr)>,
    ) -> Result<Vec<EventNr>, Error> {
        let storage = self.storage();
        let mut kept: HashSet<EventNr> = storage.list_auth_events(&[join.nr]).await?.into_values().flatten().collect();
        let summary = storage.get_summaries(&[join.room_nr]).await?.remove(&join.room_nr).map(|(summary, ..)| summary);
        if summary.is_some_and(|summary| summary.name.is_none() && summary.canonical_alias.is_none()) {
            let kinds = [Membership::Join, Membership::Invite];
            // One more: the joining user may be among them.
            let heroes = storage.list_oldest_members(&[join.room_nr], &kinds, HEROES_MAX + 1).await?;
            kept.extend(heroes.into_values().flatten().map(|(_, nr)| nr));
        }
        let state = state.into_iter().filter(|((type_nr, _), nr)| *type_nr != join.type_nr || kept.contains(nr));
        Ok(state.map(|(_, nr)| nr).collect())
    }
}
