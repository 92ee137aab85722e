//! The rooms of a space, and of the spaces in it. Client-Server API, "Discovering rooms within spaces".
//!
//! A walk goes through the tree twice: level by level to ask the database about many rooms at once, then depth-first, in memory, for the
//! order. Who pages gets what it came by for a while without walking again, in the same process; a page asks the database about its own rooms
//! only. Any process can go on: the token names the last room that the page before looked at, and its place. Rooms that none of us is in are
//! asked for at servers that know them, some at once and in all a bounded number for a bounded time: what they do not tell is not there.

mod token;

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use accounts::Requester;
use futures_util::{StreamExt as _, stream};
use model::{ClientEvent, EventNr, RoomNr};
use moka::sync::Cache;
use ruma::{
    OwnedRoomId, OwnedServerName, RoomId, ServerName,
    room::{RoomSummary, RoomType},
};
use serde_json::value::RawValue;
use storage::RoomRow;
use tokio::time::{Sleep, sleep};

use self::token::{Token, Walk, mark_of};
use crate::{
    Error, Preview, Rooms,
    remote_spaces::RemoteSpace,
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
/// Most rooms of a tree that other servers are asked for.
const REMOTE_ROOMS_MAX: usize = 50;
/// Most bytes that other servers tell on one walk: beyond it nobody is asked any more.
const REMOTE_BYTES_MAX: usize = 16 << 20;
/// How many rooms are asked for at once.
const REMOTE_AT_ONCE: usize = 10;
/// How long other servers are waited for on a walk, in all: a client waits for it.
const REMOTE_WAIT_MAX: Duration = Duration::from_secs(20);
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
enum Walked {
    /// One that we know by ourselves.
    Here {
        room: Arc<RoomRow>,
        /// For a space, the events that name its children, in order.
        children: Vec<EventNr>,
        /// The bytes of these events.
        bytes: usize,
    },
    /// One that other servers told of.
    Elsewhere(Arc<RemoteSpace>),
}

impl Walked {
    fn room_id(&self) -> &RoomId {
        match self {
            Self::Here { room, .. } => &room.id,
            Self::Elsewhere(found) => &found.summary.room_id,
        }
    }

    /// How much of a page its children take.
    fn page_bytes(&self) -> usize {
        match self {
            Self::Here { bytes, .. } => *bytes,
            Self::Elsewhere(found) => found.bytes(),
        }
    }

    /// How much memory it takes.
    fn kept_bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Here { children, .. } => size_of_val(&**children),
                Self::Elsewhere(found) => found.bytes(),
            }
    }
}

/// A room to look for, and servers that know it.
struct Wanted {
    room_id: OwnedRoomId,
    via: Vec<OwnedServerName>,
}

/// What a walk may still cost other servers, and who walks.
struct Remote<'a> {
    as_server: &'a ServerName,
    /// How many rooms may still be asked for.
    left: usize,
    /// How many bytes may still be told of them.
    bytes_left: usize,
    /// Ends when nobody is waited for any more.
    end: Pin<Box<Sleep>>,
    /// What servers said of the children of their spaces.
    known: HashMap<OwnedRoomId, RoomSummary>,
    /// The children that they said are closed to us.
    closed: HashSet<OwnedRoomId>,
}

/// The rooms of walks that have pages left.
pub(crate) struct Walks(Cache<Walk, Arc<[Walked]>>);

impl Walks {
    pub(crate) fn new() -> Self {
        let weigh = |_: &Walk, rooms: &Arc<[Walked]>| {
            u32::try_from(rooms.iter().map(Walked::kept_bytes).sum::<usize>()).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(WALKS_BYTES_MAX).weigher(weigh).time_to_live(WALK_KEPT).build())
    }
}

impl Rooms {
    /// A page of the rooms of a space that the requester may see. Client-Server API, "GET /rooms/{roomId}/hierarchy".
    ///
    /// Of rooms that none of us is in other servers are asked, those that the space names. A room comes once, however many spaces it is in.
    /// Whether it may be seen is asked with each page, whenever the walk was.
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
                let as_server = requester.user_id.server_name();
                let (walked, previews) = self.walk(as_server, space.clone(), &walk).await?;
                (walked.into(), Some(previews))
            }
        };
        let start =
            place.map_or(0, |place| match walked.iter().position(|walked| mark_of(walked.room_id()) == place.after) {
                Some(index) => index + 1,
                None => place.index.min(walked.len()),
            });
        let end = start + page_length(&walked[start..], request.limit.clamp(1, PAGE_ROOMS_MAX) as usize);
        let last = walked[start..end].last().filter(|_| end < walked.len());
        let next = last.map(|last| Token { walk, after: mark_of(last.room_id()), index: end - 1 }.to_string());
        if previews.is_some() && next.is_some() {
            self.0.walks.0.insert(walk, walked.clone());
        }
        let page = &walked[start..end];
        let mut previews = match previews {
            Some(previews) => previews,
            None => {
                let here = page.iter().filter_map(|walked| match walked {
                    Walked::Here { room, .. } => Some(room.clone()),
                    Walked::Elsewhere(_) => None,
                });
                self.previews(Some(requester.user_nr), &here.chain([space.clone()]).collect::<Vec<_>>()).await?
            }
        };
        if !previews.contains_key(&space.nr) {
            return Err(Error::NotMember);
        }
        let elsewhere = page.iter().filter_map(|walked| match walked {
            Walked::Elsewhere(found) => Some(&found.summary),
            Walked::Here { .. } => None,
        });
        let open = self.open_to(Some(requester.user_nr), elsewhere).await?;
        let mut rooms = Vec::with_capacity(page.len());
        for walked in page {
            let (summary, children) = match walked {
                Walked::Here { room, children, .. } => {
                    let Some(Preview { summary, .. }) = previews.remove(&room.nr) else { continue };
                    (summary, self.children_state(children, walk.suggested_only).await?)
                }
                Walked::Elsewhere(found) if open.contains_key(&found.summary.room_id) => {
                    (found.summary.clone(), found.children_state(walk.suggested_only))
                }
                Walked::Elsewhere(_) => continue,
            };
            rooms.push(HierarchyRoom { summary, children });
        }
        Ok(Hierarchy { rooms, next })
    }

    /// The events that make rooms children of a space, as `children_state` shows them.
    async fn children_state(&self, events: &[EventNr], suggested_only: bool) -> Result<Vec<Box<RawValue>>, Error> {
        let (mut children, mut bytes) = (Vec::with_capacity(events.len()), 0);
        for piece in events.chunks(EVENTS_AT_ONCE) {
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
    async fn walk(
        &self,
        as_server: &ServerName,
        space: Arc<RoomRow>,
        walk: &Walk,
    ) -> Result<(Vec<Walked>, HashMap<RoomNr, Preview>), Error> {
        let space_id = space.id.clone();
        let mut seen: HashSet<OwnedRoomId> = HashSet::from([space.id.clone()]);
        let (mut spaces_left, mut children_left) = (TREE_SPACES_MAX, TREE_CHILDREN_MAX);
        let mut tree: HashMap<OwnedRoomId, (Walked, Vec<OwnedRoomId>)> = HashMap::new();
        let mut remote = Remote {
            as_server,
            left: REMOTE_ROOMS_MAX,
            bytes_left: REMOTE_BYTES_MAX,
            end: Box::pin(sleep(REMOTE_WAIT_MAX)),
            known: HashMap::new(),
            closed: HashSet::new(),
        };
        let mut shown = HashMap::new();
        let (mut here, mut elsewhere) = (vec![space], Vec::new());
        for depth in 0..=walk.max_depth {
            let previews = self.previews(Some(walk.user_nr), &here).await?;
            let is_space = |preview: &Preview| preview.summary.room_type == Some(RoomType::Space);
            let mut found: Vec<&Arc<RoomRow>> =
                here.iter().filter(|room| previews.get(&room.nr).is_some_and(is_space)).collect();
            found.truncate(spaces_left);
            spaces_left -= found.len();
            let mut children = self.children(&found, walk.suggested_only, &mut children_left).await?;
            let mut below: Vec<Wanted> = Vec::new();
            let mut look_below = |room_id: &OwnedRoomId, via: &[OwnedServerName]| {
                if seen.len() < TREE_ROOMS_MAX && seen.insert(room_id.clone()) {
                    below.push(Wanted { room_id: room_id.clone(), via: via.to_vec() });
                }
            };
            for room in here.iter().filter(|room| previews.contains_key(&room.nr)) {
                let children = children.remove(&room.nr).unwrap_or_default();
                children.iter().for_each(|child| look_below(&child.room_id, &child.via));
                let ids = children.iter().map(|child| child.room_id.clone()).collect();
                let bytes = children.iter().map(|child| child.bytes).sum();
                let children = children.into_iter().map(|child| child.nr).collect();
                tree.insert(room.id.clone(), (Walked::Here { room: room.clone(), children, bytes }, ids));
            }
            let found: Vec<Arc<RemoteSpace>> = std::mem::take(&mut elsewhere);
            let open = self.open_to(Some(walk.user_nr), found.iter().map(|found| &found.summary)).await?;
            for found in found.into_iter().filter(|found| open.contains_key(&found.summary.room_id)) {
                let children = || found.children.iter().filter(|child| child.is_suggested || !walk.suggested_only);
                for child in children().take(children_left) {
                    look_below(&child.room_id, &child.via);
                    children_left -= 1;
                }
                remote.known.extend(found.known.iter().map(|(room_id, summary)| (room_id.clone(), summary.clone())));
                remote.closed.extend(found.closed.iter().cloned());
                let ids = children().map(|child| child.room_id.clone()).collect();
                tree.insert(found.summary.room_id.clone(), (Walked::Elsewhere(found.clone()), ids));
            }
            shown.extend(previews);
            if below.is_empty() || depth == walk.max_depth {
                break;
            }
            (here, elsewhere) = self.look_for(below, &mut remote).await?;
        }
        let order = depth_first(&tree, &space_id, walk.max_depth, |found| found.1.iter().map(|child| &**child));
        let order: Vec<OwnedRoomId> = order.into_iter().cloned().collect();
        let walked = order.iter().filter_map(|room_id| Some(tree.remove(room_id)?.0));
        Ok((walked.collect(), shown))
    }

    /// The rooms of a level: those that one of us is in, and those that other servers told of. Several are asked for at once.
    async fn look_for(
        &self,
        wanted: Vec<Wanted>,
        remote: &mut Remote<'_>,
    ) -> Result<(Vec<Arc<RoomRow>>, Vec<Arc<RemoteSpace>>), Error> {
        let rows = self.find_rooms(&wanted.iter().map(|wanted| &*wanted.room_id).collect::<Vec<_>>()).await?;
        let mut here = self.with_us_in(&rows).await?;
        let is_here: HashSet<OwnedRoomId> = here.iter().map(|room| room.id.clone()).collect();
        let (mut elsewhere, mut asked) = (Vec::new(), Vec::new());
        for wanted in wanted.into_iter().filter(|wanted| !is_here.contains(&wanted.room_id)) {
            match remote.known.remove(&wanted.room_id) {
                _ if remote.closed.contains(&wanted.room_id) => {}
                // Of a space its children are wanted, too.
                Some(summary) if summary.room_type != Some(RoomType::Space) => {
                    elsewhere.push(Arc::new(RemoteSpace::without_children(summary)));
                }
                _ if remote.left > 0
                    && remote.bytes_left > 0
                    && wanted.via.iter().any(|server| !self.servers().is_local(server)) =>
                {
                    remote.left -= 1;
                    asked.push(wanted);
                }
                _ => {}
            }
        }
        let as_server = remote.as_server;
        let questions = stream::iter(asked)
            .map(|wanted| async move { self.remote_space(as_server, &wanted.room_id, &wanted.via).await });
        let mut answers = std::pin::pin!(questions.buffer_unordered(REMOTE_AT_ONCE));
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = remote.end.as_mut() => None,
            };
            let Some(answer) = answer else { break };
            remote.bytes_left = remote.bytes_left.saturating_sub(answer.as_ref().map_or(0, |found| found.bytes()));
            elsewhere.extend(answer);
        }
        // What nobody told of is shown as we still know it.
        let told: HashSet<&RoomId> = elsewhere.iter().map(|found| &*found.summary.room_id).collect();
        here.extend(rows.into_iter().filter(|room| !is_here.contains(&room.id) && !told.contains(&*room.id)));
        Ok((here, elsewhere))
    }

    /// The children of spaces, in order; reads at most `left` events.
    pub(crate) async fn children(
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
        bytes += walked.page_bytes();
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
