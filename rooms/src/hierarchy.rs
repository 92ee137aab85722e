//! The rooms of a space, and of the spaces in it. Client-Server API, "Discovering rooms within spaces".
//!
//! A walk goes through the tree twice: level by level to ask the database about many rooms at once, then depth-first, in memory, for the
//! order. Who pages gets what it came by for a while without walking again, in the same process; a page asks the database about its own rooms
//! only. Any process can go on: the token names the last room that the page before looked at, and its place.

mod token;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use accounts::Requester;
use model::{ClientEvent, EventNr, RoomNr};
use moka::sync::Cache;
use ruma::{
    OwnedRoomId, RoomId,
    room::{RoomSummary, RoomType},
};
use serde_json::value::RawValue;
use storage::RoomRow;

use self::token::{Token, Walk};
use crate::{
    Error, Preview, Rooms,
    space_children::{CHILD, Child, EVENTS_AT_ONCE},
};

/// Rooms of a page when the client does not say how many.
pub const HIERARCHY_ROOMS_DEFAULT: u32 = 50;
/// Most rooms of one page.
const PAGE_ROOMS_MAX: u32 = 100;
/// How far below the first space a page goes.
const DEPTH_MAX: u32 = 20;
/// Most rooms of a tree that are looked at; the others of a larger one are not found.
const TREE_ROOMS_MAX: usize = 2_000;
/// Most spaces of a tree whose children are looked for.
const TREE_SPACES_MAX: usize = 200;
/// Most `m.space.child` events of a tree that are read.
const TREE_CHILDREN_MAX: usize = 10_000;
/// Most bytes of the `m.space.child` events of one page: it ends before the room with which it would have more, and of a space that has
/// more by itself the last children are left out.
const PAGE_CHILDREN_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a walk is remembered: what is put into a space, or taken out of it, shows after that, or on a new walk.
const WALK_KEPT: Duration = Duration::from_secs(60);
/// Most bytes of walks that are remembered.
const WALKS_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// What a client asks of a space.
#[derive(Clone, Debug)]
pub struct HierarchyRequest<'a> {
    /// The token of the page before.
    pub from: Option<&'a str>,
    /// Most rooms to give.
    pub limit: u32,
    /// How far to go below the space; as far as we go if nothing is said.
    pub max_depth: Option<u32>,
    /// Whether only suggested children count.
    pub suggested_only: bool,
}

/// A room of a space.
#[derive(Clone, Debug)]
pub struct HierarchyRoom {
    /// What it shows of itself.
    pub summary: RoomSummary,
    /// For a space, its children, in order: stripped `m.space.child` events with their time.
    pub children: Vec<Box<RawValue>>,
}

/// A page of the rooms of a space.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// The rooms, depth-first.
    pub rooms: Vec<HierarchyRoom>,
    /// Where the next page starts, if there is one.
    pub next: Option<String>,
}

/// A room that a walk came by.
struct Walked {
    room: Arc<RoomRow>,
    /// For a space, the events that name its children, in order.
    children: Vec<EventNr>,
    /// The bytes of these events.
    bytes: usize,
}

/// The rooms of walks that have pages left.
pub(crate) struct Walks(Cache<Walk, Arc<[Walked]>>);

impl Walks {
    pub(crate) fn new() -> Self {
        let weigh = |_: &Walk, rooms: &Arc<[Walked]>| {
            let bytes = |walked: &Walked| size_of::<Walked>() + size_of_val(&*walked.children);
            u32::try_from(rooms.iter().map(bytes).sum::<usize>()).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(WALKS_BYTES_MAX).weigher(weigh).time_to_live(WALK_KEPT).build())
    }
}

impl Rooms {
    /// A page of the rooms of a space that the requester may see. Client-Server API, "GET /rooms/{roomId}/hierarchy".
    ///
    /// Rooms that none of us is in are left out: their servers are not asked. A room comes once, however many spaces it is in. Whether it
    /// may be seen is asked with each page, whenever the walk was.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] for a space that is not for the requester's eyes, or does not exist; [`Error::InvalidParam`] for a token that
    /// is none, or comes with other parameters than it was made with.
    pub async fn hierarchy(
        &self,
        requester: &Requester,
        space_id: &RoomId,
        request: &HierarchyRequest<'_>,
    ) -> Result<Hierarchy, Error> {
        let space = self.room(space_id).await.map_err(|error| match error {
            Error::RoomUnknown => Error::NotMember,
            other => other,
        })?;
        let walk = Walk {
            space_nr: space.nr,
            user_nr: requester.user_nr,
            max_depth: request.max_depth.map_or(DEPTH_MAX, |depth| depth.min(DEPTH_MAX)),
            suggested_only: request.suggested_only,
        };
        let place = request.from.map(|from| Token::of(&walk, from)).transpose()?;
        let remembered = place.and_then(|_| self.0.walks.0.get(&walk));
        let (walked, previews) = match remembered {
            Some(walked) => (walked, None),
            None => {
                let (walked, previews) = self.walk(space.clone(), &walk).await?;
                (walked.into(), Some(previews))
            }
        };
        let start = place.map_or(0, |place| match walked.iter().position(|walked| walked.room.nr == place.after) {
            Some(index) => index + 1,
            None => place.index.min(walked.len()),
        });
        let end = start + page_length(&walked[start..], request.limit.clamp(1, PAGE_ROOMS_MAX) as usize);
        let last = walked[start..end].last().filter(|_| end < walked.len());
        let next = last.map(|last| Token { walk, after: last.room.nr, index: end - 1 }.to_string());
        if previews.is_some() && next.is_some() {
            self.0.walks.0.insert(walk, walked.clone());
        }
        let page = &walked[start..end];
        let mut previews = match previews {
            Some(previews) => previews,
            None => {
                let looked_at = page.iter().map(|walked| walked.room.clone()).chain([space.clone()]);
                self.previews(Some(requester.user_nr), &looked_at.collect::<Vec<_>>()).await?
            }
        };
        if !previews.contains_key(&space.nr) {
            return Err(Error::NotMember);
        }
        let mut rooms = Vec::with_capacity(page.len());
        for walked in page {
            let Some(Preview { summary, .. }) = previews.remove(&walked.room.nr) else { continue };
            rooms.push(HierarchyRoom { summary, children: self.children_state(walked, walk.suggested_only).await? });
        }
        Ok(Hierarchy { rooms, next })
    }

    /// The events that make rooms children of a space, as `children_state` shows them.
    async fn children_state(&self, space: &Walked, suggested_only: bool) -> Result<Vec<Box<RawValue>>, Error> {
        let (mut children, mut bytes) = (Vec::with_capacity(space.children.len()), 0);
        for piece in space.children.chunks(EVENTS_AT_ONCE) {
            let events = self.storage().get_events(piece).await?;
            for event in piece.iter().filter_map(|nr| events.get(nr)) {
                // It may have been redacted since the walk.
                let Some(child) = Child::of(event, suggested_only) else { continue };
                bytes += child.bytes;
                if bytes > PAGE_CHILDREN_BYTES_MAX {
                    return Ok(children);
                }
                let event = ClientEvent::of(&event.pdu.json).map_err(|error| Error::BadEvent(error.to_string()))?;
                children.push(event.to_stripped_with_time());
            }
        }
        Ok(children)
    }

    /// The rooms that somebody comes by on a walk, and what these show: a few queries a level. None, where they may not see the space.
    async fn walk(&self, space: Arc<RoomRow>, walk: &Walk) -> Result<(Vec<Walked>, HashMap<RoomNr, Preview>), Error> {
        let space_id = space.id.clone();
        let mut seen: HashSet<OwnedRoomId> = HashSet::from([space.id.clone()]);
        let (mut tree, mut spaces_left, mut children_left) = (HashMap::new(), TREE_SPACES_MAX, TREE_CHILDREN_MAX);
        let (mut level, mut shown) = (vec![space], HashMap::new());
        for depth in 0..=walk.max_depth {
            let previews = self.previews(Some(walk.user_nr), &level).await?;
            let is_space = |preview: &Preview| preview.summary.room_type == Some(RoomType::Space);
            let mut found: Vec<&Arc<RoomRow>> =
                level.iter().filter(|room| previews.get(&room.nr).is_some_and(is_space)).collect();
            found.truncate(spaces_left);
            spaces_left -= found.len();
            let mut children = self.children(&found, walk.suggested_only, &mut children_left).await?;
            let mut below: Vec<OwnedRoomId> = Vec::new();
            for room in &level {
                if !previews.contains_key(&room.nr) {
                    continue;
                }
                let children = children.remove(&room.nr).unwrap_or_default();
                for child in &children {
                    if seen.len() < TREE_ROOMS_MAX && seen.insert(child.room_id.clone()) {
                        below.push(child.room_id.clone());
                    }
                }
                tree.insert(room.id.clone(), (room.clone(), children));
            }
            shown.extend(previews);
            if below.is_empty() || depth == walk.max_depth {
                break;
            }
            level = self.find_rooms(&below.iter().map(|id| &**id).collect::<Vec<_>>()).await?;
        }
        let order = depth_first(&tree, &space_id, walk.max_depth, |found| found.1.iter().map(|child| &*child.room_id));
        let order: Vec<OwnedRoomId> = order.into_iter().cloned().collect();
        Ok((order.iter().filter_map(|room_id| tree.remove(room_id)).map(Walked::from).collect(), shown))
    }

    /// The children of spaces, in order; reads at most `left` events.
    async fn children(
        &self,
        spaces: &[&Arc<RoomRow>],
        suggested_only: bool,
        left: &mut usize,
    ) -> Result<HashMap<RoomNr, Vec<Child>>, Error> {
        let storage = self.storage();
        let numbers: Vec<RoomNr> = spaces.iter().map(|space| space.nr).collect();
        if numbers.is_empty() {
            return Ok(HashMap::new());
        }
        let states = storage.get_states_at(&numbers, storage.published()).await?;
        let mut named = Vec::new();
        for space in numbers {
            let Some(state) = states.get(&space) else { continue };
            named.extend(self.state_of_type(space, *state, CHILD).await?.events().take(*left - named.len()));
        }
        *left -= named.len();
        let mut children: HashMap<RoomNr, Vec<Child>> = HashMap::new();
        for piece in named.chunks(EVENTS_AT_ONCE) {
            for event in storage.get_events(piece).await?.values() {
                children.entry(event.room_nr).or_default().extend(Child::of(event, suggested_only));
            }
        }
        for list in children.values_mut() {
            list.sort_by(|a, b| (&a.order, &a.room_id).cmp(&(&b.order, &b.room_id)));
        }
        Ok(children)
    }
}

/// How many of the rooms make a page: at most `limit`, and one at least.
fn page_length(walked: &[Walked], limit: usize) -> usize {
    let mut bytes = 0;
    let fits = |(index, walked): &(usize, &Walked)| {
        bytes += walked.bytes;
        *index == 0 || bytes <= PAGE_CHILDREN_BYTES_MAX
    };
    walked.iter().take(limit).enumerate().take_while(fits).count()
}

/// The rooms of a tree as a walk comes by them: each space before its children, each room once, cycles or not.
fn depth_first<'a, T, C: DoubleEndedIterator<Item = &'a RoomId>>(
    tree: &'a HashMap<OwnedRoomId, T>,
    space: &'a RoomId,
    max_depth: u32,
    children: impl Fn(&'a T) -> C,
) -> Vec<&'a OwnedRoomId> {
    let (mut order, mut seen) = (Vec::new(), HashSet::new());
    let mut stack = vec![(space, 0)];
    while let Some((room_id, depth)) = stack.pop() {
        let Some((room_id, found)) = tree.get_key_value(room_id).filter(|(room_id, _)| seen.insert(*room_id)) else {
            continue;
        };
        order.push(room_id);
        if depth < max_depth {
            stack.extend(children(found).rev().map(|child| (child, depth + 1)));
        }
    }
    order
}

impl From<(Arc<RoomRow>, Vec<Child>)> for Walked {
    fn from((room, children): (Arc<RoomRow>, Vec<Child>)) -> Self {
        let bytes = children.iter().map(|child| child.bytes).sum();
        Self { room, children: children.into_iter().map(|child| child.nr).collect(), bytes }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The walk as the specification tells it.
    fn walk(graph: &Graph, room: &OwnedRoomId, depth: u32, order: &mut Vec<OwnedRoomId>) {
        let Some(children) = graph.get(room).filter(|_| !order.contains(room)) else { return };
        order.push(room.clone());
        for child in children.iter().filter(|_| depth > 0) {
            walk(graph, child, depth - 1, order);
        }
    }

    type Graph = HashMap<OwnedRoomId, Vec<OwnedRoomId>>;

    fn graph() -> impl Strategy<Value = Graph> {
        let room = || (0..12_u8).prop_map(|room| RoomId::parse(format!("!{room}:hs")).unwrap());
        proptest::collection::hash_map(room(), proptest::collection::vec(room(), 0..5), 1..12)
    }

    proptest! {
        #[test]
        fn every_walk_ends_and_goes_the_way_of_the_specification(graph in graph(), max_depth in 0..6_u32) {
            for space in graph.keys() {
                let mut expected = Vec::new();
                walk(&graph, space, max_depth, &mut expected);
                let order = depth_first(&graph, space, max_depth, |children| children.iter().map(|child| &**child));
                prop_assert_eq!(order, expected.iter().collect::<Vec<_>>());
            }
        }
    }
}
