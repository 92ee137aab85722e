//! The state of a room after an event: a persistent map from (type, state key) to event.
//!
//! A map is a tree of nodes with a fan-out of 16 over a hash of the key. An event that changes one key stores the 1 to 5
//! nodes on its path; all others are shared with the states before. The shape of a tree follows from its keys alone, and
//! each reference to a child carries a fingerprint of what lies below, so that equal states are seen to be equal and the
//! difference of two states costs what differs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use model::{EventNr, NodeNr, RoomNr, StateKeyNr, TypeNr};
use moka::{policy::EvictionPolicy, sync::Cache};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Storage,
    db::{Db, args},
    numbers::FreeNodes,
    packed::{push_number, take_number},
    rows::Rows,
    statement::statements,
};

/// What an event is the state of.
pub type StateKey = (TypeNr, StateKeyNr);

/// Most keys in a leaf; a subtree has one leaf exactly when it has no more keys.
const LEAF_KEYS_MAX: usize = 16;

/// Most new nodes of one change: a path of 16, and a full leaf that falls apart into one leaf for each of its keys.
const CHANGE_NODES_MAX: i64 = 64;

/// The level of the deepest leaves: fifteen levels above it use up the hash.
const MAX_LEVEL: u32 = 15;

/// Most bytes of nodes in memory.
const CACHE_BYTES: u64 = 64 << 20;

statements! {
    GET_NODES = ["SELECT node_nr, node FROM state_nodes WHERE room_nr = $1 AND node_nr", (in_list 2)];
    GET_NODES_OF_ROOMS = ["
        SELECT r.room_nr, r.node_nr, n.node FROM", (rows [1 room_nr bigint, 2 node_nr bigint]), "
          JOIN state_nodes n ON n.room_nr = r.room_nr AND n.node_nr = r.node_nr"];
}

type Fingerprint = [u8; 16];

/// Where a node is: in which room, and which it is there.
type Place = (RoomNr, NodeNr);

/// A node of a room's state map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateNode {
    /// The keys of a subtree that has few, sorted.
    Leaf(Vec<(StateKey, EventNr)>),
    /// The children by the next four bits of the hash.
    Inner(Box<[Option<Child>; 16]>),
}

/// A reference to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    nr: NodeNr,
    fingerprint: Fingerprint,
    /// How many keys lie below.
    keys: u32,
}

/// Spreads a key over the tree: the finalizer of SplitMix64, which mixes every bit into every other.
fn hash(key: StateKey) -> u64 {
    let mut h = (key.0.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (key.1.0 as u64);
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

fn slot(key: StateKey, level: u32) -> usize {
    ((hash(key) >> (60 - 4 * level)) & 15) as usize
}

impl StateNode {
    /// The node as stored: a tag, then packed numbers.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(200);
        match self {
            Self::Leaf(entries) => {
                bytes.push(b'l');
                for ((type_nr, key_nr), event) in entries {
                    push_number(&mut bytes, type_nr.0 as u64);
                    push_number(&mut bytes, key_nr.0 as u64);
                    push_number(&mut bytes, event.0 as u64);
                }
            }
            Self::Inner(children) => {
                bytes.push(b'i');
                for (slot, child) in children.iter().enumerate() {
                    if let Some(child) = child {
                        bytes.push(slot as u8);
                        push_number(&mut bytes, child.nr.0 as u64);
                        push_number(&mut bytes, u64::from(child.keys));
                        bytes.extend_from_slice(&child.fingerprint);
                    }
                }
            }
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tag, mut rest) = bytes.split_first()?;
        let number = |rest: &mut &[u8]| i64::try_from(take_number(rest)?).ok();
        match tag {
            b'l' => {
                let mut entries = Vec::new();
                while !rest.is_empty() {
                    let key = (TypeNr(number(&mut rest)?), StateKeyNr(number(&mut rest)?));
                    entries.push((key, EventNr(number(&mut rest)?)));
                }
                Some(Self::Leaf(entries))
            }
            b'i' => {
                let mut children = [None; 16];
                while let Some((slot, after)) = rest.split_first() {
                    rest = after;
                    let nr = NodeNr(number(&mut rest)?);
                    let keys = u32::try_from(take_number(&mut rest)?).ok()?;
                    let (fingerprint, after) = rest.split_first_chunk::<16>()?;
                    rest = after;
                    *children.get_mut(usize::from(*slot))? = Some(Child { nr, fingerprint: *fingerprint, keys });
                }
                Some(Self::Inner(Box::new(children)))
            }
            _ => None,
        }
    }

    fn keys(&self) -> u32 {
        match self {
            Self::Leaf(entries) => entries.len() as u32,
            Self::Inner(children) => children.iter().flatten().map(|child| child.keys).sum(),
        }
    }

    /// Of the content alone, not of the numbers of nodes: equal maps have equal fingerprints.
    fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        match self {
            Self::Leaf(_) => hash.update(self.to_bytes()),
            Self::Inner(children) => {
                hash.update(b"i");
                for (slot, child) in children.iter().enumerate() {
                    if let Some(child) = child {
                        hash.update([slot as u8]);
                        hash.update(child.fingerprint);
                    }
                }
            }
        }
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hash.finalize()[..16]);
        fingerprint
    }
}

/// Memory for nodes, so many bytes of them.
fn cache_of(bytes: u64) -> Cache<Place, Arc<StateNode>> {
    Cache::builder()
        .max_capacity(bytes)
        // Nodes that are not stored yet are here only: a new one must not be turned away for those that were asked for more often.
        .eviction_policy(EvictionPolicy::lru())
        .weigher(|_, node: &Arc<StateNode>| match &**node {
            StateNode::Leaf(entries) => 96 + 24 * entries.len() as u32,
            StateNode::Inner(_) => 700,
        })
        .build()
}

/// Reads nodes, through memory.
pub(crate) struct StateNodes {
    db: Db,
    cache: Cache<Place, Arc<StateNode>>,
}

impl StateNodes {
    pub(crate) fn new(db: Db) -> Self {
        Self { db, cache: cache_of(CACHE_BYTES) }
    }

    /// The nodes of those numbers, in one query at most.
    async fn get(&self, room_nr: RoomNr, nodes: &[NodeNr]) -> Result<HashMap<NodeNr, Arc<StateNode>>, Error> {
        let mut found = HashMap::with_capacity(nodes.len());
        let mut missing = Vec::new();
        for nr in nodes {
            match self.cache.get(&(room_nr, *nr)) {
                Some(node) => drop(found.insert(*nr, node)),
                None => missing.push(nr.0),
            }
        }
        if !missing.is_empty() {
            for row in self.db.read(&GET_NODES, args![room_nr, missing]).await? {
                let nr = row.nr(0)?;
                found.insert(nr, self.keep((room_nr, nr), &row.get::<Vec<u8>>(1)?)?);
            }
        }
        if let Some(nr) = nodes.iter().find(|nr| !found.contains_key(nr)) {
            return Err(Error::Damaged(format!("state node {nr} of room {room_nr} is missing")));
        }
        Ok(found)
    }

    /// Reads a stored node and keeps it in memory.
    fn keep(&self, place: Place, bytes: &[u8]) -> Result<Arc<StateNode>, Error> {
        let node = StateNode::from_bytes(bytes)
            .ok_or_else(|| Error::Damaged(format!("state node {} of room {}", place.1, place.0)))?;
        let node = Arc::new(node);
        self.cache.insert(place, node.clone());
        Ok(node)
    }

    /// Nodes of several rooms, in one query at most.
    async fn get_of_rooms(&self, nodes: &[Place]) -> Result<HashMap<Place, Arc<StateNode>>, Error> {
        let mut found = HashMap::with_capacity(nodes.len());
        let mut missing = Vec::new();
        for place in nodes {
            match self.cache.get(place) {
                Some(node) => drop(found.insert(*place, node)),
                None => missing.push(*place),
            }
        }
        if !missing.is_empty() {
            let rows = Rows::new()
                .bigint(missing.iter().map(|(room_nr, _)| room_nr.0))
                .bigint(missing.iter().map(|(_, node_nr)| node_nr.0));
            for row in self.db.read(&GET_NODES_OF_ROOMS, rows).await? {
                let place = (row.nr(0)?, row.nr(1)?);
                found.insert(place, self.keep(place, &row.get::<Vec<u8>>(2)?)?);
            }
        }
        if let Some((room_nr, nr)) = nodes.iter().find(|place| !found.contains_key(place)) {
            return Err(Error::Damaged(format!("state node {nr} of room {room_nr} is missing")));
        }
        Ok(found)
    }
}

/// What is going to be looked at of a room's state.
#[derive(Clone, Debug)]
pub struct StateLook {
    /// The room.
    pub room_nr: RoomNr,
    /// The state.
    pub state: NodeNr,
    /// These keys; without, all of it.
    pub keys: Option<Vec<StateKey>>,
}

/// New nodes that a change of a room's state needs, before they are stored.
#[derive(Clone, Debug, Default)]
pub struct NewNodes {
    /// The nodes, in the order of their numbers.
    pub nodes: Vec<(NodeNr, Arc<StateNode>)>,
}

impl Storage {
    /// The event that a room's state has for a key; reads at most five nodes, from memory if they are there.
    ///
    /// # Errors
    ///
    /// When the database fails or a node is missing.
    pub async fn get_state_event(
        &self,
        room_nr: RoomNr,
        state: NodeNr,
        key: StateKey,
    ) -> Result<Option<EventNr>, Error> {
        let mut nr = state;
        for level in 0.. {
            if nr == NodeNr(0) {
                return Ok(None);
            }
            let node = self.node(room_nr, nr).await?;
            match &*node {
                StateNode::Leaf(entries) => {
                    let found = entries.binary_search_by_key(&key, |entry| entry.0).ok();
                    return Ok(found.map(|index| entries[index].1));
                }
                StateNode::Inner(children) => match children[slot(key, level)] {
                    Some(child) => nr = child.nr,
                    None => return Ok(None),
                },
            }
        }
        Ok(None)
    }

    async fn node(&self, room_nr: RoomNr, nr: NodeNr) -> Result<Arc<StateNode>, Error> {
        if let Some(node) = self.0.state_nodes.cache.get(&(room_nr, nr)) {
            return Ok(node);
        }
        let mut found = self.0.state_nodes.get(room_nr, &[nr]).await?;
        found.remove(&nr).ok_or_else(|| Error::Damaged(format!("state node {nr} of room {room_nr}")))
    }

    /// The events that states of several rooms have for one key: one query a level for what is not in memory. Rooms whose state does
    /// not have the key are left out.
    ///
    /// # Errors
    ///
    /// When the database fails or a node is missing.
    pub async fn get_state_events(
        &self,
        states: &HashMap<RoomNr, NodeNr>,
        key: StateKey,
    ) -> Result<HashMap<RoomNr, EventNr>, Error> {
        let mut found = HashMap::with_capacity(states.len());
        let mut wanted: Vec<Place> = states.iter().map(|(room_nr, nr)| (*room_nr, *nr)).collect();
        for level in 0.. {
            wanted.retain(|(_, nr)| nr.0 != 0);
            if wanted.is_empty() {
                break;
            }
            let nodes = self.0.state_nodes.get_of_rooms(&wanted).await?;
            let mut next = Vec::with_capacity(wanted.len());
            for place in wanted {
                match &*nodes[&place] {
                    StateNode::Leaf(entries) => {
                        if let Ok(index) = entries.binary_search_by_key(&key, |entry| entry.0) {
                            found.insert(place.0, entries[index].1);
                        }
                    }
                    StateNode::Inner(children) => {
                        next.extend(children[slot(key, level)].map(|child| (place.0, child.nr)));
                    }
                }
            }
            wanted = next;
        }
        Ok(found)
    }

    /// Brings into memory what is going to be looked at of many states: one query a level for all of them, at most five for usual rooms.
    ///
    /// # Errors
    ///
    /// When the database fails or a node is damaged.
    pub async fn preload_states(&self, mut looks: Vec<StateLook>) -> Result<(), Error> {
        for level in 0..=MAX_LEVEL {
            looks.retain(|look| look.state != NodeNr(0));
            let mut places: Vec<Place> = looks.iter().map(|look| (look.room_nr, look.state)).collect();
            places.sort_unstable();
            places.dedup();
            let nodes = self.0.state_nodes.get_of_rooms(&places).await?;
            let mut next = Vec::new();
            for look in looks {
                let StateNode::Inner(children) = &*nodes[&(look.room_nr, look.state)] else { continue };
                for (slot_nr, child) in children.iter().enumerate() {
                    let Some(child) = child else { continue };
                    let keys = look.keys.as_ref().map(|keys| {
                        keys.iter().copied().filter(|key| slot(*key, level) == slot_nr).collect::<Vec<_>>()
                    });
                    if keys.as_ref().is_none_or(|keys| !keys.is_empty()) {
                        next.push(StateLook { room_nr: look.room_nr, state: child.nr, keys });
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            looks = next;
        }
        Ok(())
    }

    /// The whole state of a room, level by level: one query a level for what is not in memory.
    ///
    /// # Errors
    ///
    /// When the database fails or a node is missing.
    pub async fn list_state(&self, room_nr: RoomNr, state: NodeNr) -> Result<Vec<(StateKey, EventNr)>, Error> {
        let changes = self.diff_state(room_nr, NodeNr(0), state).await?;
        Ok(changes.into_iter().filter_map(|(key, _, event)| Some((key, event?))).collect())
    }

    /// What differs between two states of a room: for each key its event in `old` and in `new`, sorted by key.
    ///
    /// Costs what differs: equal subtrees are not read.
    ///
    /// # Errors
    ///
    /// When the database fails or a node is missing.
    pub async fn diff_state(
        &self,
        room_nr: RoomNr,
        old: NodeNr,
        new: NodeNr,
    ) -> Result<Vec<(StateKey, Option<EventNr>, Option<EventNr>)>, Error> {
        if old == new {
            return Ok(Vec::new());
        }
        let mut entries: BTreeMap<StateKey, (Option<EventNr>, Option<EventNr>)> = BTreeMap::new();
        // Pairs of subtrees that may differ, one level at a time.
        let mut pairs = vec![(Some(old).filter(|nr| nr.0 != 0), Some(new).filter(|nr| nr.0 != 0))];
        while !pairs.is_empty() {
            let mut wanted: Vec<NodeNr> = pairs.iter().flat_map(|(a, b)| [*a, *b]).flatten().collect();
            wanted.sort_unstable();
            wanted.dedup();
            let nodes = self.0.state_nodes.get(room_nr, &wanted).await?;
            let mut next = Vec::new();
            for (old, new) in pairs {
                let (old, new) = (old.map(|nr| &*nodes[&nr]), new.map(|nr| &*nodes[&nr]));
                for (node, is_new) in [(old, false), (new, true)] {
                    if let Some(StateNode::Leaf(leaf)) = node {
                        for (key, event) in leaf {
                            let entry = entries.entry(*key).or_default();
                            *(if is_new { &mut entry.1 } else { &mut entry.0 }) = Some(*event);
                        }
                    }
                }
                let children = |node: Option<&StateNode>| match node {
                    Some(StateNode::Inner(children)) => **children,
                    _ => [None; 16],
                };
                for (a, b) in children(old).into_iter().zip(children(new)) {
                    if a.map(|child| child.fingerprint) != b.map(|child| child.fingerprint) {
                        next.push((a.map(|child| child.nr), b.map(|child| child.nr)));
                    }
                }
            }
            pairs = next;
        }
        Ok(entries.into_iter().filter(|(_, (a, b))| a != b).map(|(key, (a, b))| (key, a, b)).collect())
    }

    /// The state with one key changed (or, with `None`, removed): its root, and the new nodes on the path to it.
    ///
    /// New nodes may be read at once in this process; they are stored with the commit that makes them count. Their numbers are
    /// nobody else's, whatever becomes of the commit.
    ///
    /// # Errors
    ///
    /// When the database fails or a node is missing.
    pub async fn change_state(
        &self,
        room_nr: RoomNr,
        state: NodeNr,
        key: StateKey,
        event: Option<EventNr>,
        new: &mut NewNodes,
    ) -> Result<NodeNr, Error> {
        // The path from the root to the leaf of the key.
        let mut path = Vec::new();
        let mut nr = state;
        let mut leaf = Vec::new();
        while nr != NodeNr(0) {
            match &*self.node(room_nr, nr).await? {
                StateNode::Leaf(entries) => {
                    leaf.clone_from(entries);
                    break;
                }
                StateNode::Inner(children) => {
                    let slot = slot(key, path.len() as u32);
                    nr = children[slot].map_or(NodeNr(0), |child| child.nr);
                    path.push((children.clone(), slot));
                }
            }
        }
        match (leaf.binary_search_by_key(&key, |entry| entry.0), event) {
            (Ok(index), Some(event)) if leaf[index].1 == event => return Ok(state),
            (Ok(index), Some(event)) => leaf[index].1 = event,
            (Ok(index), None) => drop(leaf.remove(index)),
            (Err(_), None) => return Ok(state),
            (Err(index), Some(event)) => leaf.insert(index, (key, event)),
        }
        let mut build = Builder { nodes: self, room_nr, free: self.take_node_nrs(CHANGE_NODES_MAX).await?, new };
        let mut child = build.subtree(leaf, path.len() as u32);
        while let Some((mut children, slot)) = path.pop() {
            children[slot] = child;
            let node = StateNode::Inner(children.clone());
            child = if node.keys() as usize > LEAF_KEYS_MAX {
                Some(build.add(node))
            } else {
                // Few keys are left: the shape follows from the keys, so the subtree becomes one leaf.
                let mut entries = Vec::new();
                for child in children.iter().flatten() {
                    match &*self.node(room_nr, child.nr).await? {
                        StateNode::Leaf(leaf) => entries.extend_from_slice(leaf),
                        StateNode::Inner(_) => {
                            return Err(Error::Damaged(format!(
                                "state node {} of room {room_nr} is too deep",
                                child.nr
                            )));
                        }
                    }
                }
                entries.sort_unstable();
                build.subtree(entries, path.len() as u32)
            };
        }
        Ok(child.map_or(NodeNr(0), |child| child.nr))
    }
}

struct Builder<'a> {
    nodes: &'a Storage,
    room_nr: RoomNr,
    free: FreeNodes<'a>,
    new: &'a mut NewNodes,
}

impl Builder<'_> {
    fn add(&mut self, node: StateNode) -> Child {
        let child = Child { nr: self.free.take(), fingerprint: node.fingerprint(), keys: node.keys() };
        let node = Arc::new(node);
        self.nodes.0.state_nodes.cache.insert((self.room_nr, child.nr), node.clone());
        self.new.nodes.push((child.nr, node));
        child
    }

    /// A subtree of sorted entries: nothing, one leaf, or an inner node over 16 subtrees.
    fn subtree(&mut self, entries: Vec<(StateKey, EventNr)>, level: u32) -> Option<Child> {
        if entries.is_empty() {
            return None;
        }
        // Fifteen levels use up the hash; keys that agree in all of it share a larger leaf.
        if entries.len() <= LEAF_KEYS_MAX || level == MAX_LEVEL {
            return Some(self.add(StateNode::Leaf(entries)));
        }
        let mut slots: [Vec<(StateKey, EventNr)>; 16] = std::array::from_fn(|_| Vec::new());
        for entry in entries {
            slots[slot(entry.0, level)].push(entry);
        }
        let children = slots.map(|entries| self.subtree(entries, level + 1));
        Some(self.add(StateNode::Inner(Box::new(children))))
    }
}

impl Storage {
    /// A state of many keys at once: sorted entries, each key once.
    pub(crate) async fn build_whole_state(
        &self,
        room_nr: RoomNr,
        entries: Vec<(StateKey, EventNr)>,
        new: &mut NewNodes,
    ) -> Result<NodeNr, Error> {
        // A leaf and a node above it for each key, and fifteen for each leaf of keys that agree in all of their hash.
        let free = self.take_node_nrs(CHANGE_NODES_MAX + 4 * entries.len() as i64).await?;
        let mut build = Builder { nodes: self, room_nr, free, new };
        Ok(build.subtree(entries, 0).map_or(NodeNr(0), |child| child.nr))
    }
}

#[cfg(test)]
impl Storage {
    /// The fingerprint of a state, which covers its content and its shape.
    pub(crate) async fn shape(&self, room_nr: RoomNr, state: NodeNr) -> Option<Fingerprint> {
        if state == NodeNr(0) { None } else { Some(self.node(room_nr, state).await.ok()?.fingerprint()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that is not stored yet is here only.
    #[test]
    fn full_memory_keeps_new_nodes_however_often_others_were_asked_for() {
        let (bytes, node) = (100_000, Arc::new(StateNode::Inner(Box::new([None; 16]))));
        let cache = cache_of(bytes);
        let place = |nr: i64| (RoomNr(1), NodeNr(nr));
        for nr in 0..1_000 {
            cache.insert(place(nr), node.clone());
            for _ in 0..20 {
                cache.get(&place(nr % 100));
            }
        }
        cache.run_pending_tasks();
        assert!(cache.weighted_size() <= bytes, "it is bounded");
        // As many as a change makes at most.
        let new: Vec<i64> = (1_000..1_000 + CHANGE_NODES_MAX).collect();
        for nr in &new {
            cache.insert(place(*nr), node.clone());
            cache.get(&place(950));
        }
        cache.run_pending_tasks();
        assert!(new.iter().all(|nr| cache.get(&place(*nr)).is_some()));
    }
}
