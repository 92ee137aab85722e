//! Rooms that let in who is in another room. Client-Server API, "Restricted rooms".

use std::collections::{HashMap, HashSet};

use accounts::Requester;
use model::{Membership, Pdu, RoomNr, UserNr};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId, room::JoinRule};
use storage::{RoomRow, RoomSummary};

use crate::{Error, Rooms, power::rules_of};

/// Most members who are looked at to find one who may let somebody in, where every member may.
const VOUCHERS_MAX: u32 = 50;

/// Whether somebody who is let in by a condition has one of ours to vouch for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Vouching {
    /// Nobody needs to: the room is not restricted, or the user is in it, invited, or banned from it.
    NotNeeded,
    /// This user of ours vouches.
    By(OwnedUserId),
    /// No condition holds.
    NoneHolds,
    /// No condition holds of those that we can tell; whether others do is known to the members of rooms that none of us is in.
    CannotTell,
    /// A condition holds, but none of ours in the room may invite.
    Nobody,
}

impl Rooms {
    /// Who of ours vouches for a join, if the room lets the requester in by a condition and not by an invitation.
    ///
    /// Nobody, where no condition holds or none of ours in the room may invite: the authorization rules refuse the join then.
    pub(crate) async fn authoriser(&self, requester: &Requester, room: &RoomRow) -> Result<Option<OwnedUserId>, Error> {
        let own_server = requester.user_id.server_name();
        match self.vouching(Some(requester.user_nr), room, own_server).await? {
            Vouching::By(user_id) => Ok(Some(user_id)),
            _ => Ok(None),
        }
    }

    /// Whether somebody of ours vouches for a user, rather one of the server `preferred`. Server-Server API, "Restricted rooms".
    pub(crate) async fn vouching(
        &self,
        user_nr: Option<UserNr>,
        room: &RoomRow,
        preferred: &ServerName,
    ) -> Result<Vouching, Error> {
        let membership = match user_nr {
            Some(user_nr) => self.storage().get_membership(room.nr, user_nr).await?.map(|row| row.membership),
            None => None,
        };
        if matches!(membership, Some(Membership::Join | Membership::Invite | Membership::Ban)) {
            return Ok(Vouching::NotNeeded);
        }
        let Some(event) = self.find_state(room, "m.room.join_rules", "").await? else {
            return Ok(Vouching::NotNeeded);
        };
        let Some(allowed) = allowed_rooms(room, &event.pdu)? else { return Ok(Vouching::NotNeeded) };
        let known = self.rooms_with_ours(&allowed).await?;
        let holds = match user_nr {
            Some(user_nr) => !self.joined_of(user_nr, &known).await?.is_empty(),
            None => false,
        };
        if !holds {
            for room in self.find_rooms(&known.iter().map(|id| &**id).collect::<Vec<_>>()).await? {
                // Whose members are not all here.
                if self.storage().is_partial(room.nr).await? {
                    return Ok(Vouching::CannotTell);
                }
            }
            return Ok(if known.len() < allowed.len() { Vouching::CannotTell } else { Vouching::NoneHolds });
        }
        Ok(self.voucher(room, preferred).await?.map_or(Vouching::Nobody, Vouching::By))
    }

    /// Whether servers of others are in a room that lets in who is in another one.
    pub(crate) async fn may_be_let_in_elsewhere(&self, room: &RoomRow) -> Result<bool, Error> {
        let Some(event) = self.find_state(room, "m.room.join_rules", "").await? else { return Ok(false) };
        if allowed_rooms(room, &event.pdu)?.is_none_or(|allowed| allowed.is_empty()) {
            return Ok(false);
        }
        let servers = self.storage().list_servers(room.nr, 2 * VOUCHERS_MAX).await?;
        Ok(servers
            .iter()
            .any(|server| <&ServerName>::try_from(server.as_str()).is_ok_and(|name| !self.servers().is_local(name))))
    }

    /// One of ours in the room who may invite: the same for each join, and on the preferred server if there is one, which saves a
    /// signature when that is who joins.
    async fn voucher(&self, room: &RoomRow, preferred: &ServerName) -> Result<Option<OwnedUserId>, Error> {
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
        Ok(joined
            .into_iter()
            .max_by_key(|user_id| (user_id.server_name() == preferred, power.of_user(user_id), user_id.clone())))
    }

    /// Those of the rooms that some of ours are joined to: of the others we do not know who is in them now.
    async fn rooms_with_ours(&self, room_ids: &[OwnedRoomId]) -> Result<Vec<OwnedRoomId>, Error> {
        let rooms = self.find_rooms(&room_ids.iter().map(|id| &**id).collect::<Vec<_>>()).await?;
        let numbers: Vec<RoomNr> = rooms.iter().map(|room| room.nr).collect();
        let ours: Vec<&ServerName> = self.servers().iter().map(|server| &*server.name).collect();
        let with_ours = self.storage().list_rooms_of_servers(&numbers, &ours).await?;
        Ok(rooms.iter().filter(|room| with_ours.contains(&room.nr)).map(|room| room.id.clone()).collect())
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
            .map(|event| {
                Ok((event.room_nr, allowed_rooms(restricted[&event.room_nr], &event.pdu)?.unwrap_or_default()))
            })
            .collect()
    }
}

/// The rooms whose members may join by these join rules; nothing, unless the rules are of the kind and the room's version knows it.
fn allowed_rooms(room: &RoomRow, join_rules: &Pdu) -> Result<Option<Vec<OwnedRoomId>>, Error> {
    let rules = rules_of(&room.version)?.authorization;
    let allowed = match serde_json::from_str(join_rules.content.get()) {
        Ok(JoinRule::Restricted(restricted)) if rules.restricted_join_rule => restricted,
        Ok(JoinRule::KnockRestricted(restricted)) if rules.knock_restricted_join_rule => restricted,
        _ => return Ok(None),
    };
    let mut allowed = ruma::room::RestrictedSummary::from(allowed).allowed_room_ids;
    allowed.sort_unstable();
    allowed.dedup();
    Ok(Some(allowed))
}
