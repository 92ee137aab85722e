//! Rooms of other servers, as those tell of them: for spaces, and for who looks at a room before coming in.
//!
//! An answer is kept for some minutes. What another server says is taken for what it is: it is about the room that was asked for and
//! the children that this names, and whether it is for the eyes of somebody is decided here.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use model::{Membership, UserNr, limits};
use moka::{Expiry, future::Cache};
use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, ServerName,
    room::{JoinRuleSummary, RoomSummary},
};
use serde_json::value::RawValue;
use tracing::debug;

use crate::{Error, Rooms, ServedSpace, space_children::NamedChild};

/// How long an answer is kept. Server-Server API, "GET /hierarchy/{roomId}": "should be cached for a period of time".
const FOUND_KEPT: Duration = Duration::from_secs(5 * 60);
/// How long it is remembered that nobody told of a room.
const ABSENT_KEPT: Duration = Duration::from_secs(60);
/// Most bytes of answers that are kept.
const KEPT_BYTES_MAX: u64 = 32 << 20;
/// Most servers that are asked about a room.
const SERVERS_ASKED_MAX: usize = 3;
/// Most children of a space of another server.
const CHILDREN_MAX: usize = 500;

/// A room of other servers.
#[derive(Clone, Debug)]
pub(crate) struct RemoteSpace {
    /// What it shows of itself.
    pub(crate) summary: RoomSummary,
    /// For a space, its children, in order.
    pub(crate) children: Vec<NamedChild>,
    /// What its server says of the children that are open to us.
    pub(crate) known: HashMap<OwnedRoomId, RoomSummary>,
    /// The children that are closed to us, so that nobody is asked about them.
    pub(crate) closed: HashSet<OwnedRoomId>,
    bytes: usize,
}

/// Answers of other servers, by whom they were given to and what they are about.
pub(crate) struct RemoteSpaces(Cache<(OwnedServerName, OwnedRoomId), Option<Arc<RemoteSpace>>>);

struct Kept;

impl<K> Expiry<K, Option<Arc<RemoteSpace>>> for Kept {
    fn expire_after_create(&self, _: &K, found: &Option<Arc<RemoteSpace>>, _: Instant) -> Option<Duration> {
        Some(if found.is_some() { FOUND_KEPT } else { ABSENT_KEPT })
    }
}

impl RemoteSpaces {
    pub(crate) fn new() -> Self {
        let weigh = |_: &_, found: &Option<Arc<RemoteSpace>>| {
            u32::try_from(200 + found.as_ref().map_or(0, |found| found.bytes)).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(KEPT_BYTES_MAX).weigher(weigh).expire_after(Kept).build())
    }
}

impl RemoteSpace {
    /// What of an answer about a room is about it; nothing when it is about another one.
    fn of_answer(room_id: &RoomId, answer: ServedSpace) -> Option<Self> {
        if answer.room.room_id != room_id {
            return None;
        }
        let events = answer.children_state.into_iter().filter(|event| event.get().len() <= limits::EVENT_BYTES_MAX);
        let mut children: Vec<NamedChild> = events.filter_map(NamedChild::of_stripped).take(CHILDREN_MAX).collect();
        children.sort_by(|a, b| (&a.order, &a.room_id).cmp(&(&b.order, &b.room_id)));
        let named: HashSet<&RoomId> = children.iter().map(|child| &*child.room_id).collect();
        let known: HashMap<_, _> = answer
            .children
            .into_iter()
            .filter(|child| named.contains(&*child.room_id))
            .map(|child| (child.room_id.clone(), child))
            .collect();
        let closed = answer.inaccessible.into_iter().filter(|child| named.contains(&**child)).collect();
        let bytes = bytes_of(&answer.room)
            + children.iter().map(|child| 300 + child.event.get().len()).sum::<usize>()
            + known.values().map(bytes_of).sum::<usize>();
        Some(Self { summary: answer.room, children, known, closed, bytes })
    }

    /// A room that a space's server told of, of which no children are known.
    pub(crate) fn without_children(summary: RoomSummary) -> Self {
        let bytes = bytes_of(&summary);
        Self { summary, children: Vec::new(), known: HashMap::new(), closed: HashSet::new(), bytes }
    }

    /// The children as they are shown.
    pub(crate) fn children_state(&self, suggested_only: bool) -> Vec<Box<RawValue>> {
        let children = self.children.iter().filter(|child| child.is_suggested || !suggested_only);
        children.map(|child| child.event.clone()).collect()
    }

    /// How much memory it takes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn bytes_of(summary: &RoomSummary) -> usize {
    let texts = [&summary.name, &summary.topic];
    600 + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

impl Rooms {
    /// A room as other servers tell of it: asks some of `via`, in their order, until one does. Nobody but them is asked, and none of ours.
    pub(crate) async fn remote_space(
        &self,
        as_server: &ServerName,
        room_id: &RoomId,
        via: &[OwnedServerName],
    ) -> Option<Arc<RemoteSpace>> {
        let asked: Vec<&OwnedServerName> =
            via.iter().filter(|server| !self.servers().is_local(server)).take(SERVERS_ASKED_MAX).collect();
        if asked.is_empty() {
            return None;
        }
        let ask = async {
            for server in asked {
                match self.remote().space(as_server, server, room_id).await {
                    Ok(Some(answer)) => match RemoteSpace::of_answer(room_id, answer) {
                        Some(found) => return Some(Arc::new(found)),
                        None => debug!(room.id = %room_id, %server, "a server told of another room than was asked for"),
                    },
                    Ok(None) => {}
                    Err(error) => debug!(room.id = %room_id, %server, %error, "a server did not tell of a room"),
                }
            }
            None
        };
        self.0.remote_spaces.0.get_with((as_server.to_owned(), room_id.to_owned()), ask).await
    }

    /// A room as other servers told of it in the last minutes.
    pub(crate) async fn known_remote_space(
        &self,
        as_server: &ServerName,
        room_id: &RoomId,
    ) -> Option<Arc<RemoteSpace>> {
        self.0.remote_spaces.0.get(&(as_server.to_owned(), room_id.to_owned())).await.flatten()
    }

    /// Those of the rooms of other servers that are for a viewer's eyes: open ones, those that they are invited to, and those that let in
    /// who is in a room that they are in. Three queries at most. Who is banned sees nothing, as far as we know of it.
    pub(crate) async fn open_to(
        &self,
        viewer: Option<UserNr>,
        rooms: impl Iterator<Item = &RoomSummary> + Clone,
    ) -> Result<HashMap<OwnedRoomId, Option<Membership>>, Error> {
        let ids: Vec<&RoomId> = rooms.clone().map(|room| &*room.room_id).collect();
        let mut memberships: HashMap<OwnedRoomId, Membership> = HashMap::new();
        let mut joined = HashSet::new();
        if let Some(user_nr) = viewer.filter(|_| !ids.is_empty()) {
            let here = self.find_rooms(&ids).await?;
            let rows = self
                .storage()
                .list_memberships_in(user_nr, &here.iter().map(|room| room.nr).collect::<Vec<_>>())
                .await?;
            memberships.extend(here.iter().filter_map(|room| Some((room.id.clone(), rows.get(&room.nr)?.membership))));
            joined = self.joined_of(user_nr, rooms.clone().flat_map(|room| allowed_rooms(&room.join_rule))).await?;
        }
        let open = rooms.filter_map(|room| {
            let membership = memberships.get(&room.room_id).copied();
            let is_open = match membership {
                Some(Membership::Ban) => false,
                Some(Membership::Join | Membership::Invite) => true,
                Some(Membership::Leave | Membership::Knock) | None => {
                    let is_allowed = allowed_rooms(&room.join_rule).iter().any(|room_id| joined.contains(room_id));
                    let lets_in = matches!(
                        room.join_rule,
                        JoinRuleSummary::Public | JoinRuleSummary::Knock | JoinRuleSummary::KnockRestricted(_)
                    );
                    lets_in || is_allowed || room.world_readable
                }
            };
            is_open.then(|| (room.room_id.clone(), membership))
        });
        Ok(open.collect())
    }
}

/// The rooms whose members may join.
fn allowed_rooms(join_rule: &JoinRuleSummary) -> &[OwnedRoomId] {
    match join_rule {
        JoinRuleSummary::Restricted(restricted) | JoinRuleSummary::KnockRestricted(restricted) => {
            &restricted.allowed_room_ids
        }
        _ => &[],
    }
}
