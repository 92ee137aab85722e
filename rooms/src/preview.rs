//! What a room shows of itself to those who may come in, or look in, without being in it. Client-Server API, "Room Summary",
//! "Room Previews".

use std::{collections::HashMap, sync::Arc};

use accounts::Requester;
use model::{Membership, RoomNr, UserNr};
use ruma::{
    EventEncryptionAlgorithm, OwnedRoomId, OwnedServerName, RoomId, UInt,
    room::{JoinRuleSummary, RestrictedSummary, RoomSummary},
    room_version_rules::AuthorizationRules,
};
use storage::RoomRow;

use crate::{Error, Rooms, power::rules_of};

/// A room as somebody outside of it sees it.
#[derive(Clone, Debug)]
pub struct Preview {
    /// What the room shows of itself.
    pub summary: RoomSummary,
    /// What the viewer is to the room, if they are or were anything.
    pub membership: Option<Membership>,
}

impl Rooms {
    /// What a room shows of itself; also to somebody without an account. Client-Server API, "GET /room_summary/{roomIdOrAlias}".
    ///
    /// Of a room that none of us is in some of the servers `via` are asked, for our users; if they say nothing, what we still know of it
    /// is shown.
    ///
    /// # Errors
    ///
    /// [`Error::RoomUnknown`], also for a room that is not for the viewer's eyes: they learn nothing of it.
    pub async fn room_summary(
        &self,
        viewer: Option<&Requester>,
        room_id: &RoomId,
        via: &[OwnedServerName],
    ) -> Result<Preview, Error> {
        let user_nr = viewer.map(|requester| requester.user_nr);
        let as_server = viewer.map_or(self.servers().primary(), |requester| requester.user_id.server_name());
        let rooms = self.find_rooms(&[room_id]).await?;
        let is_elsewhere = self.with_us_in(&rooms).await?.is_empty();
        let found = match viewer {
            Some(_) if is_elsewhere => self.remote_space(as_server, room_id, via).await,
            // Nobody is asked for strangers.
            None if is_elsewhere => self.known_remote_space(as_server, room_id).await,
            _ => None,
        };
        if let Some(found) = found {
            let mut open = self.open_to(user_nr, std::iter::once(&found.summary)).await?;
            let membership = open.remove(room_id).ok_or(Error::RoomUnknown)?;
            return Ok(Preview { summary: found.summary.clone(), membership });
        }
        self.previews(user_nr, &rooms).await?.into_values().next().ok_or(Error::RoomUnknown)
    }

    /// What those of the rooms show of themselves that a viewer may preview: a few queries for all.
    pub(crate) async fn previews(
        &self,
        viewer: Option<UserNr>,
        rooms: &[Arc<RoomRow>],
    ) -> Result<HashMap<RoomNr, Preview>, Error> {
        let numbers: Vec<RoomNr> = rooms.iter().map(|room| room.nr).collect();
        let mut summaries = self.storage().get_summaries(&numbers).await?;
        let restricted = rooms.iter().filter_map(|room| Some((&**room, &summaries.get(&room.nr)?.0)));
        let mut allowed = self.allowed_of(restricted).await?;
        let (memberships, joined) = match viewer {
            Some(user_nr) => (
                self.storage().list_memberships_in(user_nr, &numbers).await?,
                self.joined_of(user_nr, allowed.values().flatten()).await?,
            ),
            None => Default::default(),
        };
        let mut previews = HashMap::with_capacity(rooms.len());
        for room in rooms {
            let Some((summary, members, _)) = summaries.remove(&room.nr) else { continue };
            let rules = rules_of(&room.version)?;
            let membership = memberships.get(&room.nr).map(|row| row.membership);
            let allowed = allowed.remove(&room.nr).unwrap_or_default();
            let is_allowed = allowed.iter().any(|id| joined.contains(id));
            if may_preview(&rules.authorization, &summary, membership, is_allowed) {
                previews.insert(room.nr, Preview { summary: shown(room, summary, members, allowed), membership });
            }
        }
        Ok(previews)
    }
}

/// Whether a room shows itself to somebody who is this to it. Client-Server API, "GET /rooms/{roomId}/hierarchy".
///
/// Who is banned sees nothing: whatever is open to others is not for them.
fn may_preview(
    rules: &AuthorizationRules,
    summary: &storage::RoomSummary,
    membership: Option<Membership>,
    is_allowed: bool,
) -> bool {
    match membership {
        Some(Membership::Ban) => return false,
        Some(Membership::Join | Membership::Invite) => return true,
        Some(Membership::Leave | Membership::Knock) | None => {}
    }
    may_come_in(rules, summary, is_allowed)
}

/// Whether a room lets somebody in, or look in, who is nothing to it; `is_allowed` where they are in a room whose members may.
pub(crate) fn may_come_in(rules: &AuthorizationRules, summary: &storage::RoomSummary, is_allowed: bool) -> bool {
    let lets_in = match &*summary.join_rule {
        "public" => true,
        "knock" => rules.knocking,
        "knock_restricted" => rules.knock_restricted_join_rule,
        // `is_allowed` holds only where the version knows the rule.
        "restricted" => is_allowed,
        _ => false,
    };
    lets_in || summary.history_visibility == "world_readable"
}

/// A room in the words of the specification.
pub(crate) fn shown(
    room: &RoomRow,
    summary: storage::RoomSummary,
    members: u64,
    allowed: Vec<OwnedRoomId>,
) -> RoomSummary {
    let join_rule = match &*summary.join_rule {
        "public" => JoinRuleSummary::Public,
        "knock" => JoinRuleSummary::Knock,
        "private" => JoinRuleSummary::Private,
        "restricted" => JoinRuleSummary::Restricted(RestrictedSummary::new(allowed)),
        "knock_restricted" => JoinRuleSummary::KnockRestricted(RestrictedSummary::new(allowed)),
        // A rule that nobody knows lets in by invitation only.
        _ => JoinRuleSummary::Invite,
    };
    let mut shown = RoomSummary::new(
        room.id.clone(),
        join_rule,
        summary.guest_access == "can_join",
        UInt::new_saturating(members),
        summary.history_visibility == "world_readable",
    );
    shown.canonical_alias = summary.canonical_alias.and_then(|alias| alias.try_into().ok());
    shown.name = summary.name;
    shown.topic = summary.topic;
    shown.avatar_url = summary.avatar_url.map(Into::into);
    shown.room_type = summary.room_type.map(Into::into);
    shown.encryption = summary.encryption.map(EventEncryptionAlgorithm::from);
    shown.room_version = Some(room.version.clone());
    shown
}

#[cfg(test)]
mod tests {
    use ruma::RoomVersionId;

    use super::*;

    #[test]
    fn a_room_shows_itself_to_who_may_come_in_or_look_in() {
        use Membership::{Ban, Invite, Join, Knock, Leave};
        let may = |version: RoomVersionId, join_rule: &str, membership: Option<Membership>, is_allowed: bool| {
            let summary = storage::RoomSummary { join_rule: join_rule.to_owned(), ..Default::default() };
            may_preview(&version.rules().unwrap().authorization, &summary, membership, is_allowed)
        };
        for version in [RoomVersionId::V1, RoomVersionId::V7, RoomVersionId::V10, RoomVersionId::V12] {
            for (membership, expected) in [(Join, true), (Invite, true), (Leave, false), (Knock, false), (Ban, false)] {
                assert_eq!(may(version.clone(), "invite", Some(membership), false), expected, "{membership:?}");
            }
            assert!(may(version.clone(), "public", None, false));
            assert!(!may(version.clone(), "public", Some(Ban), false));
            assert!(!may(version.clone(), "org.example.rule", None, true));
        }
        assert!(!may(RoomVersionId::V6, "knock", None, false), "nobody knocks there");
        assert!(may(RoomVersionId::V7, "knock", None, false));
        assert!(!may(RoomVersionId::V9, "knock_restricted", None, false), "nobody knocks there");
        assert!(may(RoomVersionId::V10, "knock_restricted", None, false));
        assert!(!may(RoomVersionId::V10, "restricted", None, false));
        assert!(may(RoomVersionId::V10, "restricted", Some(Leave), true));
        assert!(!may(RoomVersionId::V10, "restricted", Some(Ban), true));
    }

    #[test]
    fn a_readable_room_shows_itself_to_all_but_the_banned() {
        let rules = RoomVersionId::V11.rules().unwrap().authorization;
        let summary = storage::RoomSummary {
            join_rule: "invite".to_owned(),
            history_visibility: "world_readable".to_owned(),
            ..Default::default()
        };
        assert!(may_preview(&rules, &summary, None, false));
        assert!(!may_preview(&rules, &summary, Some(Membership::Ban), false));
    }
}
