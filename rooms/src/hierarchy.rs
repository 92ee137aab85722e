//! The rooms of a space, and of the spaces in it. Client-Server API, "Discovering rooms within spaces".
//!
//! A page walks the tree twice: level by level to ask the database about many rooms at once, then depth-first, in memory, for the order.
//! No page remembers anything for the next: its token names the last room that the page before looked at.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use accounts::Requester;
use model::{ClientEvent, EventNr, NodeNr, RoomNr, UserNr};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, RoomId, SpaceChildOrder,
    room::{RoomSummary, RoomType},
    serde::default_on_error,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::{RoomRow, StoredEvent};

use crate::{Error, Preview, Rooms};

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
/// What makes a room a child of a space.
const CHILD: &str = "m.space.child";

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

/// The page after a room, of one user's walk with the same parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    space_nr: RoomNr,
    user_nr: UserNr,
    max_depth: u32,
    suggested_only: bool,
    after: RoomNr,
}

/// A room of the tree that the viewer may see.
struct Found {
    nr: RoomNr,
    summary: RoomSummary,
    children: Vec<Child>,
}

/// A room that a space names as its child.
struct Child {
    room_id: OwnedRoomId,
    event: Arc<StoredEvent>,
    /// Client-Server API, "Ordering of children within a space".
    order: (bool, Option<String>, MilliSecondsSinceUnixEpoch),
}

impl Rooms {
    /// A page of the rooms of a space that the requester may see. Client-Server API, "GET /rooms/{roomId}/hierarchy".
    ///
    /// Rooms that none of us is in are left out: their servers are not asked. A room comes once, however many spaces it is in.
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
        let mut place = Token {
            space_nr: space.nr,
            user_nr: requester.user_nr,
            max_depth: request.max_depth.map_or(DEPTH_MAX, |depth| depth.min(DEPTH_MAX)),
            suggested_only: request.suggested_only,
            after: RoomNr(0),
        };
        if let Some(from) = request.from {
            place.after = from.parse::<Token>()?.after_in(&place)?;
        }
        let mut tree = self.tree(requester.user_nr, space.clone(), &place).await?;
        if !tree.contains_key(&space.id) {
            return Err(Error::NotMember);
        }
        let order =
            depth_first(&tree, &space.id, place.max_depth, |found| found.children.iter().map(|child| &*child.room_id));
        let start = match order.iter().position(|room_id| tree[*room_id].nr == place.after) {
            Some(index) => index + 1,
            None if request.from.is_none() => 0,
            None => return Err(bad_token()),
        };
        let limit = request.limit.clamp(1, PAGE_ROOMS_MAX) as usize;
        let more = order.len() > start + limit;
        let page: Vec<OwnedRoomId> = order.into_iter().skip(start).take(limit).cloned().collect();
        let next = page.last().filter(|_| more).map(|last| Token { after: tree[last].nr, ..place }.to_string());
        let rooms =
            page.iter().filter_map(|room_id| tree.remove(room_id)).map(Found::shown).collect::<Result<_, _>>()?;
        Ok(Hierarchy { rooms, next })
    }

    /// The rooms of a tree that a user may see: a few queries a level.
    async fn tree(
        &self,
        user_nr: UserNr,
        space: Arc<RoomRow>,
        place: &Token,
    ) -> Result<HashMap<OwnedRoomId, Found>, Error> {
        let mut seen: HashSet<OwnedRoomId> = HashSet::from([space.id.clone()]);
        let (mut tree, mut spaces_left, mut children_left) = (HashMap::new(), TREE_SPACES_MAX, TREE_CHILDREN_MAX);
        let mut level = vec![space];
        for depth in 0..=place.max_depth {
            let mut previews = self.previews(Some(user_nr), &level).await?;
            let is_space = |preview: &Preview| preview.summary.room_type == Some(RoomType::Space);
            let mut found: Vec<&Arc<RoomRow>> =
                level.iter().filter(|room| previews.get(&room.nr).is_some_and(is_space)).collect();
            found.truncate(spaces_left);
            spaces_left -= found.len();
            let mut children = self.children(&found, place.suggested_only, &mut children_left).await?;
            let mut below: Vec<OwnedRoomId> = Vec::new();
            for room in &level {
                let Some(Preview { summary, .. }) = previews.remove(&room.nr) else { continue };
                let children = children.remove(&room.nr).unwrap_or_default();
                for child in &children {
                    if seen.len() < TREE_ROOMS_MAX && seen.insert(child.room_id.clone()) {
                        below.push(child.room_id.clone());
                    }
                }
                tree.insert(room.id.clone(), Found { nr: room.nr, summary, children });
            }
            if below.is_empty() || depth == place.max_depth {
                break;
            }
            level = self.find_rooms(&below.iter().map(|id| &**id).collect::<Vec<_>>()).await?;
        }
        Ok(tree)
    }

    /// The `m.space.child` events in a state of a space, with those that name no child.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn space_children(&self, space: RoomNr, state: NodeNr) -> Result<Vec<EventNr>, Error> {
        Ok(self.state_of_type(space, state, CHILD).await?.events().collect())
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
        for event in storage.get_events(&named).await?.into_values() {
            let room_nr = event.room_nr;
            children.entry(room_nr).or_default().extend(Child::of(event, suggested_only));
        }
        for list in children.values_mut() {
            list.sort_by(|a, b| (&a.order, &a.room_id).cmp(&(&b.order, &b.room_id)));
        }
        Ok(children)
    }
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

impl Found {
    fn shown(self) -> Result<HierarchyRoom, Error> {
        let show = |child: &Child| {
            let event = ClientEvent::of(&child.event.pdu.json).map_err(|error| Error::BadEvent(error.to_string()))?;
            Ok(event.to_stripped_with_time())
        };
        let children = self.children.iter().map(show).collect::<Result<_, Error>>()?;
        Ok(HierarchyRoom { summary: self.summary, children })
    }
}

impl Child {
    /// Reads an `m.space.child` event; nothing if it makes no room a child. Client-Server API, "m.space.child".
    fn of(event: Arc<StoredEvent>, suggested_only: bool) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            via: Vec<OwnedServerName>,
            #[serde(default, deserialize_with = "default_on_error")]
            order: Option<String>,
            #[serde(default, deserialize_with = "default_on_error")]
            suggested: bool,
        }
        let room_id = RoomId::parse(event.pdu.state_key.as_deref()?).ok()?;
        let content: Content = serde_json::from_str(event.pdu.content.get()).ok()?;
        if content.via.is_empty() || (suggested_only && !content.suggested) {
            return None;
        }
        let order = content.order.filter(|order| <&SpaceChildOrder>::try_from(order.as_str()).is_ok());
        Some(Self { room_id, order: (order.is_none(), order, event.pdu.origin_server_ts), event })
    }
}

impl Token {
    /// The room that the page comes after, if the token was made for the same walk.
    fn after_in(self, walk: &Self) -> Result<RoomNr, Error> {
        if (Self { after: walk.after, ..self }) == *walk {
            return Ok(self.after);
        }
        let message = "the token comes with the `max_depth`, `suggested_only`, space and user that it was made for";
        Err(Error::InvalidParam(message.to_owned()))
    }
}

fn bad_token() -> Error {
    Error::InvalidParam("this is not a token that this server gave out, or the space has changed since".to_owned())
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suggested = if self.suggested_only { 's' } else { 'a' };
        write!(f, "h1_{}_{}_{}_{suggested}_{}", self.space_nr, self.user_nr, self.max_depth, self.after)
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let read = || {
            let mut parts = text.strip_prefix("h1_")?.split('_');
            let token = Self {
                space_nr: RoomNr(parts.next()?.parse().ok()?),
                user_nr: UserNr(parts.next()?.parse().ok()?),
                max_depth: parts.next()?.parse().ok()?,
                suggested_only: match parts.next()? {
                    "s" => true,
                    "a" => false,
                    _ => return None,
                },
                after: RoomNr(parts.next()?.parse().ok()?),
            };
            parts.next().is_none().then_some(token)
        };
        // What would be read, but is never written, is none.
        read().filter(|token| token.to_string() == text).ok_or_else(bad_token)
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

    #[test]
    fn a_token_reads_as_it_was_written() {
        for suggested_only in [true, false] {
            let (space_nr, user_nr, after) = (RoomNr(1), UserNr(2), RoomNr(3));
            let token = Token { space_nr, user_nr, max_depth: 4, suggested_only, after };
            assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        }
        for bad in [
            "",
            "h1_",
            "h1_1_2_4_s",
            "h1_1_2_4_x_3",
            "h1_1_2_-4_s_3",
            "h1_1_2_4_s_3_5",
            "d1_1_2_4_s_3",
            "h1_+1_2_4_s_3",
            "h1_01_2_4_s_3",
        ] {
            assert!(matches!(bad.parse::<Token>(), Err(Error::InvalidParam(_))), "{bad}");
        }
    }
}
