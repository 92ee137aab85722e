//! Who may do what in a room. Client-Server API, "m.room.power_levels"; Room Versions, "Authorization rules".

use std::{collections::HashMap, sync::Arc};

use accounts::Requester;
use model::{EventNr, Membership, NodeNr, Pdu};
use ruma::{
    OwnedUserId, RoomVersionId, UserId, events::StateEventType, room_version_rules::RoomVersionRules, state_res,
};
use serde_json::Value;
use storage::RoomRow;

use crate::{Error, Rooms};

impl Rooms {
    /// Whether a joined member has the power to send a kind of state.
    pub(crate) async fn may_send_state(
        &self,
        requester: &Requester,
        room: &RoomRow,
        event_type: &str,
    ) -> Result<bool, Error> {
        let membership = self.storage().get_membership(room.nr, requester.user_nr).await?;
        if membership.is_none_or(|row| row.membership != Membership::Join) {
            return Ok(false);
        }
        let power = self.power_of_room(room).await?;
        Ok(power.of_user(&requester.user_id) >= power.needed_for_state(event_type))
    }

    /// The power levels of a room of now.
    pub(crate) async fn power_of_room(&self, room: &RoomRow) -> Result<Power, Error> {
        let head = self.storage().get_head(room.nr).await?.ok_or(Error::RoomUnknown)?;
        self.power_at(room, head.state).await
    }

    /// The power levels in a state of a room.
    pub(crate) async fn power_at(&self, room: &RoomRow, state: NodeNr) -> Result<Power, Error> {
        let rules = rules_of(&room.version)?;
        let mut found = HashMap::new();
        for event_type in ["m.room.create", "m.room.power_levels"] {
            if let Some(event) = self.find_state_at(room, state, event_type, "").await? {
                found.insert((event_type.into(), String::new()), (event.nr, event.pdu.clone()));
            }
        }
        power_levels(&rules, &found)
    }
}

/// The rules of a room version.
///
/// # Errors
///
/// [`Error::UnsupportedVersion`] for one that we do not know.
pub(crate) fn rules_of(version: &RoomVersionId) -> Result<RoomVersionRules, Error> {
    version.rules().ok_or_else(|| Error::UnsupportedVersion(version.to_string()))
}

/// Answers questions about power in a room, creators included.
pub(crate) struct Power {
    levels: Option<Value>,
    creators: Vec<OwnedUserId>,
    privileged: bool,
}

impl Power {
    pub(crate) fn of_user(&self, user_id: &UserId) -> i64 {
        if self.privileged && self.creators.iter().any(|creator| creator == user_id) {
            return i64::MAX;
        }
        match &self.levels {
            None => {
                if self.creators.iter().any(|creator| creator == user_id) {
                    100
                } else {
                    0
                }
            }
            Some(levels) => read_level(&levels["users"][user_id.as_str()]).unwrap_or_else(|| self.of_others()),
        }
    }

    /// The power of those whom nobody names.
    pub(crate) fn of_others(&self) -> i64 {
        self.levels.as_ref().and_then(|levels| read_level(&levels["users_default"])).unwrap_or(0)
    }

    /// The users who may have another power than all others: those whom the levels name, and the creators.
    pub(crate) fn named_users(&self) -> impl Iterator<Item = &UserId> {
        let users = self.levels.as_ref().and_then(|levels| levels["users"].as_object());
        let named = users.into_iter().flat_map(|users| users.keys());
        named
            .filter_map(|user_id| <&UserId>::try_from(user_id.as_str()).ok())
            .chain(self.creators.iter().map(|id| &**id))
    }

    /// The level that an action such as `redact`, `invite`, `kick`, `ban` needs.
    pub(crate) fn needed(&self, action: &str, default: i64) -> i64 {
        self.levels.as_ref().and_then(|levels| read_level(&levels[action])).unwrap_or(default)
    }

    /// The creators, where they are above all levels.
    pub(crate) fn privileged_creators(&self) -> impl Iterator<Item = &UserId> {
        self.creators.iter().filter(|_| self.privileged).map(|creator| &**creator)
    }

    /// The level that sending a type of state needs. Client-Server API, "m.room.power_levels".
    pub(crate) fn needed_for_state(&self, event_type: &str) -> i64 {
        // Without the event, anybody may send state.
        let Some(levels) = &self.levels else { return 0 };
        read_level(&levels["events"][event_type]).unwrap_or_else(|| read_level(&levels["state_default"]).unwrap_or(50))
    }

    /// Whether a user may notify everybody in a way, as `room`. Client-Server API, "m.room.power_levels".
    pub(crate) fn may_notify(&self, user_id: &UserId, way: &str) -> bool {
        let needed = self.levels.as_ref().and_then(|levels| read_level(&levels["notifications"][way]));
        self.of_user(user_id) >= needed.unwrap_or(50)
    }

    pub(crate) fn may_notify_room(&self, user_id: &UserId) -> bool {
        self.may_notify(user_id, "room")
    }

    pub(crate) fn user_can_redact(&self, user_id: &UserId) -> bool {
        self.of_user(user_id) >= self.needed("redact", 50)
    }
}

// Before version 10 a level may be a string of digits.
fn read_level(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

pub(crate) fn power_levels(
    rules: &RoomVersionRules,
    state: &HashMap<(StateEventType, String), (EventNr, Arc<Pdu>)>,
) -> Result<Power, Error> {
    let get = |event_type| state.get(&(event_type, String::new())).map(|(_, pdu)| pdu);
    let create = get(StateEventType::RoomCreate).ok_or(Error::RoomUnknown)?;
    let creators = state_res::events::RoomCreateEvent::new(&**create)
        .creators(&rules.authorization)
        .map_err(Error::InvalidRoomState)?;
    let levels = get(StateEventType::RoomPowerLevels)
        .map(|pdu| serde_json::from_str(pdu.content.get()).map_err(|error| Error::InvalidRoomState(error.to_string())))
        .transpose()?;
    Ok(Power {
        levels,
        creators: creators.into_iter().collect(),
        privileged: rules.authorization.explicitly_privilege_room_creators,
    })
}
