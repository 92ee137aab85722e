//! Rooms that let in who is in another room. Client-Server API, "Restricted rooms".

use std::collections::{HashMap, HashSet};

use accounts::Requester;
use model::{Membership, Pdu, RoomNr, UserNr};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId, room::JoinRule};
use storage::{RoomRow, RoomSummary};

use crate::{Error, Rooms, power::rules_of};

/// Most members who are looked at to find one who may let somebody in, where every member may.
const VOUCHERS_MAX: u32 = 50;

impl Rooms {
    /// Who of ours vouches for a join, if the room lets the requester in by a condition and not by an invitation.
    ///
    /// Nobody, where no condition holds or none of ours in the room may invite: the authorization rules refuse the join then.
    pub(crate) async fn authoriser(&self, requester: &Requester, room: &RoomRow) -> Result<Option<OwnedUserId>, Error> {
        let membership = self.storage().get_membership(room.nr, requester.user_nr).await?.map(|row| row.membership);
        if matches!(membership, Some(Membership::Join | Membership::Invite)) {
            return Ok(None);
        }
        let Some(event) = self.find_state(room, "m.room.join_rules", "").await? else { return Ok(None) };
        let allowed = allowed_rooms(room, &event.pdu)?;
        if self.joined_of(requester.user_nr, &allowed).await?.is_empty() {
            return Ok(None);
        }
        self.voucher(room, &requester.user_id).await
    }

    /// Whether servers of others are in a room that lets in who is in another one.
    pub(crate) async fn may_be_let_in_elsewhere(&self, room: &RoomRow) -> Result<bool, Error> {
        let Some(event) = self.find_state(room, "m.room.join_rules", "").await? else { return Ok(false) };
        if allowed_rooms(room, &event.pdu)?.is_empty() {
            return Ok(false);
        }
        let servers = self.storage().list_servers(room.nr, 2 * VOUCHERS_MAX).await?;
        Ok(servers
            .iter()
            .any(|server| <&ServerName>::try_from(server.as_str()).is_ok_and(|name| !self.servers().is_local(name))))
    }

    /// One of ours in the room who may invite: the same for each join, and on the server of who joins if there is one, which saves a
    /// signature.
    async fn voucher(&self, room: &RoomRow, joining: &UserId) -> Result<Option<OwnedUserId>, Error> {
        let power = self.power_of_room(room).await?;
        let needed = power.needed("invite", 0);
        let named: Vec<&UserId> = power.named_users().filter(|user_id| self.servers().has_user(user_id)).collect();
        let mut joined = self.storage().list_joined_of(room.nr, &named).await?;
        joined.retain(|user_id| power.of_user(user_id) >= needed);
        if joined.is_empty() && power.of_others() >= needed {
            let members = self.storage().list_local_joined(room.nr, VOUCHERS_MAX).await?;
            joined.extend(self.storage().user_ids(&members).await?.into_values());
            joined.retain(|user_id| power.of_user(user_id) >= needed);
        }
        let own_server = joining.server_name();
        Ok(joined
            .into_iter()
            .max_by_key(|user_id| (user_id.server_name() == own_server, power.of_user(user_id), user_id.clone())))
    }

    /// The rooms of a list that a user is joined to. Rooms that none of us is in cannot be looked into.
    pub(crate) async fn joined_of<'a>(
        &self,
        user_nr: UserNr,
        room_ids: impl IntoIterator<Item = &'a OwnedRoomId>,
    ) -> Result<HashSet<OwnedRoomId>, Error> {
        let room_ids: Vec<&RoomId> = room_ids.into_iter().map(|id| &**id).collect();
        if room_ids.is_empty() {
            return Ok(HashSet::new());
        }
        let rooms = self.find_rooms(&room_ids).await?;
        let numbers: Vec<RoomNr> = rooms.iter().map(|room| room.nr).collect();
        let memberships = self.storage().list_memberships_in(user_nr, &numbers).await?;
        let is_joined = |nr: &RoomNr| memberships.get(nr).is_some_and(|row| row.membership == Membership::Join);
        Ok(rooms.iter().filter(|room| is_joined(&room.nr)).map(|room| room.id.clone()).collect())
    }

    /// The rooms whose members may join, for those of the rooms that are restricted: a few queries for all.
    pub(crate) async fn allowed_of(
        &self,
        rooms: impl Iterator<Item = (&RoomRow, &RoomSummary)>,
    ) -> Result<HashMap<RoomNr, Vec<OwnedRoomId>>, Error> {
        let storage = self.storage();
        let restricted: HashMap<RoomNr, &RoomRow> = rooms
            .filter(|(_, summary)| matches!(&*summary.join_rule, "restricted" | "knock_restricted"))
            .map(|(room, _)| (room.nr, room))
            .collect();
        if restricted.is_empty() {
            return Ok(HashMap::new());
        }
        let Some(key) = storage.find_state_key("m.room.join_rules", "").await? else { return Ok(HashMap::new()) };
        let numbers: Vec<RoomNr> = restricted.keys().copied().collect();
        let states = storage.get_states_at(&numbers, storage.published()).await?;
        let rules = storage.get_state_events(&states, key).await?;
        let events = storage.get_events(&rules.values().copied().collect::<Vec<_>>()).await?;
        events
            .values()
            .map(|event| Ok((event.room_nr, allowed_rooms(restricted[&event.room_nr], &event.pdu)?)))
            .collect()
    }
}

/// The rooms whose members may join by these join rules. None, unless the room's version knows rules of the kind.
fn allowed_rooms(room: &RoomRow, join_rules: &Pdu) -> Result<Vec<OwnedRoomId>, Error> {
    let rules = rules_of(&room.version)?.authorization;
    let allowed = match serde_json::from_str(join_rules.content.get()) {
        Ok(JoinRule::Restricted(restricted)) if rules.restricted_join_rule => restricted,
        Ok(JoinRule::KnockRestricted(restricted)) if rules.knock_restricted_join_rule => restricted,
        _ => return Ok(Vec::new()),
    };
    Ok(ruma::room::RestrictedSummary::from(allowed).allowed_room_ids)
}
