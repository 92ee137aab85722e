//! State resolution against the algorithm fed with everything.
//!
//! The server feeds the algorithm only what differs. Here random rooms grow forks that merge again; after each event the state
//! that the server has stored must be the one that comes out when the algorithm gets whole states and whole auth chains.

mod crafted;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
};

use accounts::Requester;
use crafted::{Crafted, Keys, versions};
use model::{Clock, NodeNr, Pdu, Random};
use rooms::{NewRoomRequest, Options, PageRequest, Preset, Received, Rooms, testing};
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, OwnedRoomId, RoomVersionId, UserId,
    events::StateEventType,
    room_version_rules::{RoomVersionRules, StateResolutionVersion},
    state_res::{self, StateMap, utils::event_id_set::EventIdSet},
};
use serde_json::{Value, json, value::to_raw_value};
use sha1::{Digest as _, Sha1};
use storage::{RoomRow, Storage, TimelineDirection, testing::TestDatabase};

const USERS: [&str; 4] = ["@alice:hs", "@bob:hs", "@carol:other", "@dave:other"];
const START_MS: i64 = 1_700_000_000_000;

/// A state: its events by type and state key.
type State = BTreeMap<(String, String), OwnedEventId>;

/// An event, and the state after it as the whole algorithm has it.
struct Known {
    pdu: Pdu,
    after: State,
}

/// The graph of a room.
struct Graph {
    rules: RoomVersionRules,
    events: HashMap<OwnedEventId, Known>,
}

impl Graph {
    fn pdu(&self, id: &EventId) -> Option<&Pdu> {
        Some(&self.events.get(id)?.pdu)
    }

    fn content(&self, state: &State, event_type: &str, state_key: &str) -> Option<Value> {
        let id = state.get(&(event_type.to_owned(), state_key.to_owned()))?;
        Some(serde_json::from_str(self.events[id].pdu.content.get()).unwrap())
    }

    fn membership(&self, state: &State, user: &str) -> String {
        let content = self.content(state, "m.room.member", user);
        content.map_or("leave".to_owned(), |content| content["membership"].as_str().unwrap().to_owned())
    }

    /// These events and all that can be reached over their auth events.
    fn with_auth_chains<'a>(&'a self, from: impl IntoIterator<Item = &'a OwnedEventId>) -> HashSet<OwnedEventId> {
        let mut reached = HashSet::new();
        let mut open: Vec<&OwnedEventId> = from.into_iter().collect();
        while let Some(id) = open.pop() {
            if reached.insert(id.clone()) {
                open.extend(&self.events[id].pdu.auth_events);
            }
        }
        reached
    }

    /// One state from several.
    fn resolve(&self, states: &[&State]) -> State {
        let distinct: BTreeSet<&State> = states.iter().copied().collect();
        let states: Vec<&State> = distinct.into_iter().collect();
        if let [only] = states[..] {
            return only.clone();
        }
        match &self.rules.state_res {
            StateResolutionVersion::V2(rules) => {
                let typed = |state: &State| -> StateMap<OwnedEventId> {
                    let entries = state.iter();
                    entries
                        .map(|((kind, key), id)| ((StateEventType::from(&**kind), key.clone()), id.clone()))
                        .collect()
                };
                let maps: Vec<StateMap<OwnedEventId>> = states.iter().map(|state| typed(state)).collect();
                // The events of a state belong to its chains, as other servers have it too: the words of the specification
                // would count an event that all states share as different when only one of their chains leads to it.
                let chains: Vec<EventIdSet<OwnedEventId>> =
                    states.iter().map(|state| self.with_auth_chains(state.values()).into_iter().collect()).collect();
                let subgraph = |conflicted: &StateMap<Vec<OwnedEventId>>| Some(self.subgraph(conflicted));
                let authorization = &self.rules.authorization;
                let resolved =
                    state_res::resolve(authorization, rules, &maps, chains, |id| self.pdu(id), subgraph).unwrap();
                resolved.into_iter().map(|((kind, key), id)| ((kind.to_string(), key), id)).collect()
            }
            _ => self.resolve_v1(&states),
        }
    }

    /// Room Version 12, "Conflicted state subgraph": what lies on a path between two conflicted events.
    fn subgraph(&self, conflicted: &StateMap<Vec<OwnedEventId>>) -> EventIdSet<OwnedEventId> {
        let conflicted: HashSet<OwnedEventId> = conflicted.values().flatten().cloned().collect();
        let below = self.with_auth_chains(&conflicted);
        below.into_iter().filter(|id| !self.with_auth_chains([id]).is_disjoint(&conflicted)).collect()
    }

    /// Room Version 1, "State resolution". Keys of one pass do not see each other's results.
    fn resolve_v1(&self, states: &[&State]) -> State {
        let mut candidates: BTreeMap<(String, String), BTreeSet<OwnedEventId>> = BTreeMap::new();
        for (key, id) in states.iter().copied().flatten() {
            candidates.entry(key.clone()).or_default().insert(id.clone());
        }
        let mut result = State::new();
        let mut conflicts = Vec::new();
        for (key, ids) in candidates {
            if let (1, Some(id)) = (ids.len(), ids.first()) {
                result.insert(key, id.clone());
            } else {
                let mut ids: Vec<OwnedEventId> = ids.into_iter().collect();
                ids.sort_by_key(|id| (self.events[id].pdu.depth, Reverse(Sha1::digest(id.as_bytes()).to_vec())));
                conflicts.push((key, ids));
            }
        }
        let is_allowed = |id: &EventId, state: &State| {
            let fetch = |kind: &StateEventType, key: &str| self.pdu(state.get(&(kind.to_string(), key.to_owned()))?);
            let event = self.pdu(id).unwrap();
            state_res::check_state_dependent_auth_rules(&self.rules.authorization, event, fetch).is_ok()
        };
        let passes = ["m.room.power_levels", "m.room.join_rules", "m.room.member"];
        for kind in passes {
            let before = result.clone();
            for (key, ids) in conflicts.iter().filter(|(key, _)| key.0 == kind) {
                let mut chosen = &ids[0];
                for id in &ids[1..] {
                    let mut state = before.clone();
                    state.insert(key.clone(), chosen.clone());
                    if !is_allowed(id, &state) {
                        break;
                    }
                    chosen = id;
                }
                result.insert(key.clone(), chosen.clone());
            }
        }
        for (key, ids) in conflicts.into_iter().filter(|(key, _)| !passes.contains(&&*key.0)) {
            let chosen = ids.iter().rev().find(|id| is_allowed(id, &result)).unwrap_or(&ids[0]).clone();
            result.insert(key, chosen);
        }
        result
    }
}

/// A room in a database, and its graph beside it.
struct World {
    storage: Storage,
    rooms: Rooms,
    row: RoomRow,
    keys: Keys,
    random: Random,
    graph: Graph,
    /// The events in the order of their making.
    order: Vec<OwnedEventId>,
    _database: TestDatabase,
}

/// How often something happened, so that a test that tries nothing is found out.
#[derive(Debug, Default)]
struct Counts {
    accepted: usize,
    soft_failed: usize,
    rejected: usize,
    merges: usize,
    /// Merges of states that differ.
    resolved: usize,
    /// Merges whose result is none of the states that went in.
    mixed: usize,
}

impl World {
    async fn new(version: &RoomVersionId, seed: u64, database: TestDatabase) -> Self {
        let random = Random::seeded(seed);
        let clock = Clock::manual(START_MS);
        let storage = Storage::open(database.options.clone(), clock, Random::seeded(seed ^ 1 << 40)).await.unwrap();
        let options = Options { default_version: version.clone(), ..Options::default() };
        let rooms = Keys::new().rooms(storage.clone(), options);
        let user_id = UserId::parse(USERS[0]).unwrap();
        let alice = Requester {
            user_nr: storage.user_nr(&user_id).await.unwrap(),
            user_id,
            device_id: Some("D".into()),
            is_guest: false,
            is_admin: false,
            app_service: None,
        };
        let request = NewRoomRequest::new(Preset::PublicChat);
        let room: OwnedRoomId = rooms.create_room(&alice, request).await.unwrap();
        let page = PageRequest { direction: TimelineDirection::Forward, from: None, to: None, limit: 500 };
        let first = rooms.messages(&alice, &room, page, |_| true).await.unwrap().events;
        let row = (*rooms.room(&room).await.unwrap()).clone();
        let graph = Graph { rules: version.rules().unwrap(), events: HashMap::new() };
        let mut world =
            Self { storage, rooms, row, keys: Keys::new(), random, graph, order: Vec::new(), _database: database };
        for event in first {
            world.learn((*event.pdu).clone());
        }
        world
    }

    fn below(&self, end: usize) -> usize {
        usize::try_from(self.random.number() % end as u64).unwrap()
    }

    fn one_of<'a, T: ?Sized>(&self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    fn is_chance(&self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// The state before an event, from the states after those that it follows.
    fn before(&self, prev: &[OwnedEventId]) -> State {
        let states: Vec<&State> = prev.iter().map(|id| &self.graph.events[id].after).collect();
        if states.is_empty() { State::new() } else { self.graph.resolve(&states) }
    }

    fn learn(&mut self, pdu: Pdu) {
        let mut after = self.before(&pdu.prev_events);
        if let (Some(state_key), false) = (&pdu.state_key, pdu.rejected) {
            after.insert((pdu.event_type.to_string(), state_key.clone()), pdu.event_id.clone());
        }
        self.order.push(pdu.event_id.clone());
        self.graph.events.insert(pdu.event_id.clone(), Known { pdu, after });
    }

    /// Something that somebody does: sender, type, state key, content.
    fn act(&self, state: &State) -> (&'static str, &'static str, Option<String>, Value) {
        let joined: Vec<&str> = USERS.into_iter().filter(|user| self.graph.membership(state, user) == "join").collect();
        let sender = if joined.is_empty() || self.is_chance(10) { self.one_of(&USERS) } else { self.one_of(&joined) };
        let target = self.one_of(&USERS);
        let member = |whom: &str, membership: &str| (Some(whom.to_owned()), json!({"membership": membership}));
        match self.below(100) {
            0..25 => {
                let (event_type, field) = self.one_of(&[&("m.room.topic", "topic"), &("m.room.name", "name")]);
                (sender, event_type, Some(String::new()), json!({*field: self.random.alphanumeric(4)}))
            }
            25..45 => {
                let content = self.graph.content(state, "m.room.power_levels", "");
                let mut content = content.unwrap_or_else(|| json!({"users": {}}));
                let level = [0, 25, 50, 75, 100][self.below(5)];
                match self.below(10) {
                    0..7 => content["users"][target] = json!(level),
                    7 => content["events"][*self.one_of(&[&"m.room.topic", &"m.room.name"])] = json!(level),
                    8 => content[*self.one_of(&[&"ban", &"kick", &"invite", &"state_default"])] = json!(level),
                    _ => drop(content["users"].as_object_mut().map(|users| users.remove(target))),
                }
                if self.graph.rules.authorization.explicitly_privilege_room_creators {
                    content["users"].as_object_mut().map(|users| users.remove(USERS[0]));
                }
                (sender, "m.room.power_levels", Some(String::new()), content)
            }
            45..55 => {
                let rule = *self.one_of(&[&"public", &"public", &"invite", &"knock"]);
                (sender, "m.room.join_rules", Some(String::new()), json!({"join_rule": rule}))
            }
            55..70 => {
                let others: Vec<&str> = USERS.into_iter().filter(|user| !joined.contains(user)).collect();
                let joiner = if others.is_empty() { target } else { self.one_of(&others) };
                let (state_key, content) = member(joiner, "join");
                (joiner, "m.room.member", state_key, content)
            }
            70..90 => {
                let membership = *self.one_of(&[&"ban", &"ban", &"leave", &"leave", &"invite"]);
                let (state_key, content) = member(target, membership);
                (sender, "m.room.member", state_key, content)
            }
            _ => (sender, "m.room.message", None, json!({"body": "x"})),
        }
    }

    /// Lets somebody do something after `prev`.
    async fn grow(&mut self, prev: &[OwnedEventId], counts: &mut Counts) {
        let state = self.before(prev);
        let (sender, event_type, state_key, content) = self.act(&state);
        let deepest = prev.iter().map(|id| self.graph.events[id].pdu.depth).max().unwrap();
        let depth = if self.is_chance(20) { i64::try_from(self.below(60)).unwrap() } else { deepest + 1 };
        // Out of order, and sometimes the same.
        let later_ms = i64::try_from(self.below(20)).unwrap();
        let made = self.make(prev, sender, (event_type, state_key.as_deref()), content, (depth, later_ms));
        match self.give(made).await {
            Received::Accepted => counts.accepted += 1,
            Received::SoftFailed(_) => counts.soft_failed += 1,
            Received::Rejected(_) => counts.rejected += 1,
            // Event ids are hashes: the same event may be made twice.
            Received::Known => return,
            Received::Missing(ids) => panic!("{ids:?} are missing"),
        }
        if prev.len() > 1 {
            counts.merges += 1;
            let after: Vec<&State> = prev.iter().map(|id| &self.graph.events[id].after).collect();
            counts.resolved += usize::from(after.iter().any(|other| *other != after[0]));
            counts.mixed += usize::from(!after.contains(&&state));
        }
    }

    /// Makes an event after `prev`, of a depth and so many milliseconds after the start.
    fn make(
        &self,
        prev: &[OwnedEventId],
        sender: &str,
        (event_type, state_key): (&str, Option<&str>),
        content: Value,
        (depth, later_ms): (i64, i64),
    ) -> (CanonicalJsonObject, Pdu) {
        let state = self.before(prev);
        let wanted = state_res::auth_types_for_event(
            &event_type.into(),
            &UserId::parse(sender).unwrap(),
            state_key,
            &to_raw_value(&content).unwrap(),
            &self.graph.rules.authorization,
        );
        let keys = wanted.unwrap().into_iter().map(|(kind, key)| (kind.to_string(), key));
        let auth: Vec<OwnedEventId> = keys.filter_map(|key| state.get(&key).cloned()).collect();
        let event = Crafted {
            room_id: Some(self.row.id.as_str()),
            sender,
            event_type,
            state_key,
            content,
            redacts: None,
            prev,
            auth: &auth,
            depth,
            origin_server_ts: START_MS + later_ms,
        };
        event.sign(&self.keys, &self.graph.rules, &self.random)
    }

    /// Gives an event to the server, and compares the states.
    async fn give(&mut self, (object, mut pdu): (CanonicalJsonObject, Pdu)) -> Received {
        let received = testing::receive(&self.rooms, object).await.unwrap();
        if matches!(received, Received::Known | Received::Missing(_)) {
            return received;
        }
        pdu.rejected = matches!(received, Received::Rejected(_));
        let event_id = pdu.event_id.clone();
        self.learn(pdu);
        let stored = self.storage.find_event(&event_id).await.unwrap().unwrap();
        let expected = &self.graph.events[&event_id].after;
        self.compare(&self.stored(stored.state).await, expected, &format!("after {event_id}"));
        let head = self.storage.get_head(self.row.nr).await.unwrap().unwrap();
        let extremities = self.storage.get_events(&head.extremities).await.unwrap();
        let ids: Vec<OwnedEventId> = extremities.values().map(|event| event.pdu.event_id.clone()).collect();
        let expected = self.before(&ids);
        self.compare(&self.stored(head.state).await, &expected, &format!("of the room after {event_id}"));
        received
    }

    /// Makes an event that the rules allow after `prev`, one level deeper and so many milliseconds after the start.
    async fn add(
        &mut self,
        prev: &[&OwnedEventId],
        sender: &str,
        key: (&str, Option<&str>),
        content: Value,
        later_ms: i64,
    ) -> OwnedEventId {
        let prev: Vec<OwnedEventId> = prev.iter().copied().cloned().collect();
        let depth = prev.iter().map(|id| self.graph.events[id].pdu.depth).max().unwrap() + 1;
        let made = self.make(&prev, sender, key, content, (depth, later_ms));
        let event_id = made.1.event_id.clone();
        let received = self.give(made).await;
        assert!(matches!(received, Received::Accepted | Received::SoftFailed(_)), "{received:?}");
        event_id
    }

    /// A state as the server has stored it.
    async fn stored(&self, root: NodeNr) -> State {
        let entries = self.storage.list_state(self.row.nr, root).await.unwrap();
        let numbers: Vec<_> = entries.iter().map(|(_, nr)| *nr).collect();
        let events = self.storage.get_events(&numbers).await.unwrap();
        let key = |pdu: &Pdu| (pdu.event_type.to_string(), pdu.state_key.clone().unwrap());
        entries.iter().map(|(_, nr)| (key(&events[nr].pdu), events[nr].pdu.event_id.clone())).collect()
    }

    fn compare(&self, stored: &State, expected: &State, which: &str) {
        let keys: BTreeSet<_> = stored.keys().chain(expected.keys()).collect();
        for key in keys {
            let show = |state: &State| {
                let pdu = self.graph.pdu(state.get(key)?)?;
                Some(format!("{} of {}: {}", pdu.event_id, pdu.sender, pdu.content))
            };
            let (stored, expected) = (show(stored), show(expected));
            assert_eq!(stored, expected, "the state {which} has another {key:?} (left) than it should have (right)");
        }
    }
}

/// Lets a room grow by `count` events and compares after each.
async fn grow_room(version: &RoomVersionId, seed: u64, count: usize, database: TestDatabase, counts: &mut Counts) {
    println!("version {version}, seed {seed}");
    let mut world = World::new(version, seed, database).await;
    for _ in 0..count {
        let tips = if world.is_chance(60) { 1 } else { 2 + world.below(2) };
        let recent = world.order.len().min(9);
        let mut prev = BTreeSet::new();
        for _ in 0..tips {
            let id = &world.order[world.order.len() - 1 - world.below(recent)];
            // Only a server that errs builds upon what it rejected.
            if !world.graph.events[id].pdu.rejected || world.is_chance(10) {
                prev.insert(id.clone());
            }
        }
        if !prev.is_empty() {
            world.grow(&prev.into_iter().collect::<Vec<_>>(), counts).await;
        }
    }
}

/// Lets rooms of every version grow, so many for each algorithm.
async fn grow_rooms(first_seed: u64, rooms: u64, events: usize) {
    for (number, version) in versions() {
        let mut counts = Counts::default();
        // Ten versions share one algorithm.
        let rooms = if (2..12).contains(&number) { rooms.div_ceil(5) } else { rooms };
        for index in 0..rooms {
            // The two databases differ in how they store a state, not in what it is: one room a version on both.
            let databases = if index == 0 { TestDatabase::each().await } else { vec![TestDatabase::sqlite()] };
            for database in databases {
                let seed = first_seed + index + 1_000 * u64::from(number);
                grow_room(&version, seed, events, database, &mut counts).await;
            }
        }
        println!("version {version}: {counts:?}");
        assert!(counts.resolved > 0 && counts.mixed > 0 && counts.rejected > 0, "nothing was tried: {counts:?}");
    }
}

const TOPIC: (&str, Option<&str>) = ("m.room.topic", Some(""));
const JOIN_RULES: (&str, Option<&str>) = ("m.room.join_rules", Some(""));
const POWER_LEVELS: (&str, Option<&str>) = ("m.room.power_levels", Some(""));
const MESSAGE: (&str, Option<&str>) = ("m.room.message", None);
const BOB_MEMBER: (&str, Option<&str>) = ("m.room.member", Some("@bob:hs"));

/// An event of the auth chains that passes is in the result, also when none of the states has its key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_auth_chains_bring_back_is_in_the_state() {
    for (number, version) in versions().filter(|(number, _)| *number > 1) {
        let mut world = World::new(&version, 1, TestDatabase::sqlite()).await;
        let (alice, bob) = ("@alice:hs", "@bob:hs");
        let start = world.order.last().unwrap().clone();
        let levels = json!({"users": {alice: 100}, "state_default": 0});
        let levels = if number < 12 { levels } else { json!({"state_default": 0}) };
        let start = world.add(&[&start], alice, POWER_LEVELS, levels, 1).await;
        // Bob joins and sets the topic, while the room is closed: of both only the topic stays.
        let join = world.add(&[&start], bob, BOB_MEMBER, json!({"membership": "join"}), 2).await;
        let topic = world.add(&[&join], bob, TOPIC, json!({"topic": "bob's"}), 3).await;
        let close = world.add(&[&start], alice, JOIN_RULES, json!({"join_rule": "invite"}), 4).await;
        let open = world.add(&[&topic, &close], alice, JOIN_RULES, json!({"join_rule": "public"}), 5).await;
        let after = &world.graph.events[&open].after;
        assert_eq!(after.get(&("m.room.topic".to_owned(), String::new())), Some(&topic), "version {number}");
        let member = ("m.room.member".to_owned(), bob.to_owned());
        assert_eq!(after.get(&member), None, "version {number}");
        // Only one of these states has the topic with the join in its auth chain, and now the join is allowed.
        let ours = world.add(&[&open], alice, TOPIC, json!({"topic": "alice's"}), 6).await;
        let other = world.add(&[&open], alice, MESSAGE, json!({"body": "x"}), 7).await;
        let merge = world.add(&[&ours, &other], alice, MESSAGE, json!({"body": "y"}), 8).await;
        assert_eq!(world.graph.events[&merge].after.get(&member), Some(&join), "version {number}");
    }
}

/// Room Version 1: what only one of the states has does not conflict, and counts from the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_version_1_what_one_state_alone_has_counts_from_the_start() {
    let mut world = World::new(&RoomVersionId::V1, 1, TestDatabase::sqlite()).await;
    let (alice, bob) = ("@alice:hs", "@bob:hs");
    let start = world.order.last().unwrap().clone();
    let levels = json!({"users": {alice: 100, bob: 100}});
    let start = world.add(&[&start], alice, POWER_LEVELS, levels.clone(), 1).await;
    let theirs = world.add(&[&start], alice, POWER_LEVELS, json!({"users": levels["users"], "kick": 60}), 2).await;
    let join = world.add(&[&start], bob, BOB_MEMBER, json!({"membership": "join"}), 3).await;
    let deeper = world.add(&[&join], bob, POWER_LEVELS, json!({"users": levels["users"], "kick": 70}), 4).await;
    let merge = world.add(&[&theirs, &deeper], alice, MESSAGE, json!({"body": "x"}), 5).await;
    let levels = world.graph.events[&merge].after.get(&("m.room.power_levels".to_owned(), String::new()));
    assert_eq!(levels, Some(&deeper));
}

/// What the server feeds the algorithm leads to the same as the whole input, in every room version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_is_resolved_as_from_the_whole_input() {
    grow_rooms(1, 10, 50).await;
}

/// Rooms that told a wrong resolution from a right one: without the keys that only the auth chains bring back, without what
/// authorization reads of the shared state, without the conflicted state subgraph.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_that_once_showed_a_fault_are_resolved() {
    for (version, seed) in [(RoomVersionId::V3, 3_110), (RoomVersionId::V3, 37), (RoomVersionId::V12, 7)] {
        grow_room(&version, seed, 60, TestDatabase::sqlite(), &mut Counts::default()).await;
    }
}

/// The same with many seeds and in larger rooms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_a_state_is_resolved_as_from_the_whole_input() {
    grow_rooms(100, 300, 60).await;
}
