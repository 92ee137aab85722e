//! Random histories read through random filters: what each answer shows must be what a naive filter makes of all that is there.
//! Client-Server API, "Filtering", "Lazy-loading room members", and "GET /sync".
//!
//! Three devices of alice read, each through a filter of its own, now what is in memory and now what is in the database, and now and then
//! again from a token that they had before, as if the answer had been lost.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use accounts::Requester;
use event_bus::{Bus, Typing};
use model::{Clock, KeyPair, LocalServer, LocalServers, Position, Random, RoomNr, StreamToken};
use rooms::{NewRoomRequest, Options, PageRequest, Preset, Rooms};
use ruma::{
    OwnedRoomId, RoomVersionId, UserId,
    api::client::{
        filter::FilterDefinition,
        sync::sync_events::v3::{JoinedRoom, LeftRoom, State, Timeline},
    },
    server_name,
};
use serde_json::{Value, json, value::to_raw_value};
use storage::{Storage, TimelineDirection, testing::TestDatabase};
use sync::{Sync, v3::Request};
use tokio_util::sync::CancellationToken;

const STEPS: usize = 120;
const ROOMS: usize = 3;
/// Who reads, who made the rooms and is always there, and the others.
const NAMES: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];
const READER: usize = 0;
const FOUNDER: usize = 1;

/// What an event has, if it is asked for; each as a filter writes it, and as it is found.
const FIELDS: [(&str, &[&str]); 6] = [
    ("content.body", &["content", "body"]),
    ("content.url", &["content", "url"]),
    ("content.membership", &["content", "membership"]),
    ("content.topic", &["content", "topic"]),
    ("content.m\\.relates_to", &["content", "m.relates_to"]),
    ("unsigned.age", &["unsigned", "age"]),
];

/// An event, as the naive filter sees it.
#[derive(Debug)]
struct Event {
    id: String,
    event_type: String,
    sender: String,
    state_key: Option<String>,
    content: Value,
    position: Position,
}

impl Event {
    fn is_member(&self) -> bool {
        self.event_type == "m.room.member"
    }
}

/// A device of alice.
struct Device {
    requester: Requester,
    filter: Value,
    use_state_after: bool,
    /// The answers that it had, the newest last.
    answers: Vec<Answer>,
}

/// An answer, and the member events that the device was told then, by room and user; with each, whether the process must remember it.
#[derive(Clone)]
struct Answer {
    token: StreamToken,
    told: HashMap<(usize, String), (String, bool)>,
}

/// What an answer is to show of a room.
#[derive(Debug)]
struct Expected {
    timeline: Vec<String>,
    limited: bool,
    state: BTreeSet<String>,
    /// State that may be there, too: members who need not be told again.
    redundant: BTreeSet<String>,
    /// Whether the device gets all of the room, and what it was told of its members before may be forgotten.
    begins_anew: bool,
}

struct World {
    storage: Storage,
    rooms: Rooms,
    sync: Sync,
    random: Random,
    people: Vec<Requester>,
    ids: Vec<OwnedRoomId>,
    numbers: Vec<RoomNr>,
    transactions: usize,
}

/// Whether a word is what a pattern says, letter by letter.
fn is_like(pattern: &[u8], word: &[u8]) -> bool {
    match pattern.split_first() {
        None => word.is_empty(),
        Some((b'*', rest)) => (0..=word.len()).any(|skipped| is_like(rest, &word[skipped..])),
        Some((letter, rest)) => word.split_first().is_some_and(|(first, word)| first == letter && is_like(rest, word)),
    }
}

/// Whether a filter, as the client wrote it, lets an event of a room through.
fn lets_through(filter: &Value, room: &str, event: &Event) -> bool {
    let list = |name: &str| filter[name].as_array();
    let has = |name: &str, word: &str| list(name).map(|words| words.iter().any(|listed| listed == word));
    let like = |name: &str| {
        let is_one = |pattern: &Value| is_like(pattern.as_str().unwrap().as_bytes(), event.event_type.as_bytes());
        list(name).map(|patterns| patterns.iter().any(is_one))
    };
    like("types").unwrap_or(true)
        && !like("not_types").unwrap_or(false)
        && has("senders", &event.sender).unwrap_or(true)
        && !has("not_senders", &event.sender).unwrap_or(false)
        && has("rooms", room).unwrap_or(true)
        && !has("not_rooms", room).unwrap_or(false)
        && filter["contains_url"].as_bool().is_none_or(|wanted| wanted == event.content.get("url").is_some())
}

#[test]
fn the_naive_filter_knows_what_it_lets_through() {
    assert!(is_like(b"m.*.m*e", b"m.room.message") && is_like(b"*", b"") && !is_like(b"m.*.x", b"m.room.message"));
    let event = Event {
        id: "$a".to_owned(),
        event_type: "m.room.message".to_owned(),
        sender: "@a:hs".to_owned(),
        state_key: None,
        content: json!({ "url": "mxc://a/b" }),
        position: Position(1),
    };
    assert!(lets_through(&json!({ "types": ["m.*"], "senders": ["@a:hs"], "contains_url": true }), "!r", &event));
    for refused in [
        json!({ "types": [] }),
        json!({ "types": ["*"], "not_types": ["*message"] }),
        json!({ "senders": ["@b:hs"] }),
        json!({ "not_senders": ["@a:hs"] }),
        json!({ "rooms": ["!s"] }),
        json!({ "not_rooms": ["!r"] }),
        json!({ "contains_url": false }),
    ] {
        assert!(!lets_through(&refused, "!r", &event), "{refused}");
    }
}

/// The state at a position, by type and key.
fn state_at(events: &[Event], position: Position) -> BTreeMap<(&str, &str), &Event> {
    let state = events.iter().filter(|event| event.position <= position);
    state.filter_map(|event| Some(((&*event.event_type, event.state_key.as_deref()?), event))).collect()
}

impl Device {
    /// What an answer to this device is to show of a room, from one position to another; nothing when the room is not to be there.
    fn expected(
        &self,
        (room_nr, room, events): (usize, &str, &[Event]),
        (since, upto): (Option<&Answer>, Position),
        full_state: bool,
    ) -> Option<Expected> {
        let alice = self.requester.user_id.as_str();
        let of_rooms = &self.filter["room"];
        let has = |name: &str| of_rooms[name].as_array().map(|rooms| rooms.iter().any(|listed| listed == room));
        if !has("rooms").unwrap_or(true) || has("not_rooms").unwrap_or(false) {
            return None;
        }
        let own = |at: Position| state_at(events, at).get(&("m.room.member", alice)).copied();
        let is_join = |event: &&Event| event.content["membership"] == "join";
        let own_now = own(upto)?;
        let came_from = since.map(|answer| answer.token.position);
        // From where the device has the room.
        let since_position = came_from.filter(|since| own(*since).as_ref().is_some_and(is_join));
        let is_joined = is_join(&own_now);
        let end = if is_joined { upto } else { own_now.position };
        if !is_joined
            && (came_from.is_some_and(|came| came >= end) || (came_from.is_none() && of_rooms["include_leave"] != true))
        {
            return None;
        }
        let base = since_position.filter(|_| !(full_state && is_joined));

        let after = since_position.unwrap_or(Position(i64::MIN));
        let new = events.iter().filter(|event| event.position > after && event.position <= end);
        let matching: Vec<&Event> = new.filter(|event| lets_through(&of_rooms["timeline"], room, event)).collect();
        let limit = of_rooms["timeline"]["limit"].as_u64().unwrap_or(10) as usize;
        let limited = matching.len() > limit;
        let timeline = &matching[matching.len().saturating_sub(limit)..];
        let in_timeline = |event: &Event| timeline.iter().any(|shown| shown.id == event.id);

        let at_end = state_at(events, end);
        let start = timeline.first().map_or(end, |first| Position(first.position.0 - 1));
        let at_start = if self.use_state_after { at_end.clone() } else { state_at(events, start) };
        let known = base.map(|base| state_at(events, base)).unwrap_or_default();
        let same = |one: Option<&&Event>, other: &Event| one.is_some_and(|one| one.id == other.id);
        // What the device does not have, and what changed in the time of the timeline without being in it.
        let mut state: BTreeMap<(&str, &str), &Event> = BTreeMap::new();
        state.extend(at_start.iter().filter(|(key, event)| !same(known.get(*key), event)));
        state.extend(at_end.iter().filter(|(key, event)| !same(at_start.get(*key), event) && !in_timeline(event)));
        let mut redundant = BTreeSet::new();
        let of_state = &of_rooms["state"];
        if of_state["lazy_load_members"] == true {
            let mut needed: BTreeSet<&str> = timeline.iter().map(|event| &*event.sender).collect();
            if base.is_none() {
                state.retain(|(event_type, _), _| *event_type != "m.room.member");
                needed.insert(alice);
            }
            let is_named = at_end.contains_key(&("m.room.name", ""));
            let heroes = at_end.values().filter(|event| event.is_member() && is_join(event));
            // Of a room that the user has left there is no summary.
            let heroes = heroes.filter(|_| is_joined && !is_named).filter_map(|event| event.state_key.as_deref());
            let heroes: BTreeSet<&str> = heroes.filter(|user| *user != alice).collect();
            if base.is_none() {
                needed.extend(&heroes);
            } else {
                redundant.extend(heroes);
            }
            for user in needed {
                let Some(member) = at_start.get(&("m.room.member", user)) else { continue };
                let told = since.and_then(|answer| answer.told.get(&(room_nr, user.to_owned())));
                match told.filter(|(told, _)| base.is_some() && *told == member.id) {
                    Some((_, true)) => {}
                    Some((_, false)) => drop(redundant.insert(user)),
                    None => drop(state.entry(("m.room.member", user)).or_insert(member)),
                }
            }
        }
        let is_shown =
            |event: &&Event| (self.use_state_after || !in_timeline(event)) && lets_through(of_state, room, event);
        let redundant = redundant.into_iter().filter_map(|user| at_start.get(&("m.room.member", user)).copied());
        Some(Expected {
            timeline: timeline.iter().map(|event| event.id.clone()).collect(),
            limited,
            state: state.into_values().filter(is_shown).map(|event| event.id.clone()).collect(),
            redundant: redundant.filter(is_shown).map(|event| event.id.clone()).collect(),
            begins_anew: base.is_none(),
        })
    }

    /// Whether members that were told are not told again.
    fn remembers(&self) -> bool {
        let state = &self.filter["room"]["state"];
        state["lazy_load_members"] == true && state["include_redundant_members"] != true
    }
}

/// What an answer shows of a room.
struct Shown<'a> {
    timeline: &'a Timeline,
    state: &'a State,
}

impl<'a> Shown<'a> {
    fn joined(room: &'a JoinedRoom) -> Self {
        Self { timeline: &room.timeline, state: &room.state }
    }

    fn left(room: &'a LeftRoom) -> Self {
        Self { timeline: &room.timeline, state: &room.state }
    }

    fn timeline(&self) -> Vec<Value> {
        self.timeline.events.iter().map(|event| serde_json::from_str(event.json().get()).unwrap()).collect()
    }

    fn state(&self) -> Vec<Value> {
        let (State::Before(state) | State::After(state)) = self.state else { panic!("another place of the state") };
        state.events.iter().map(|event| serde_json::from_str(event.json().get()).unwrap()).collect()
    }
}

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

fn process(storage: &Storage) -> (Rooms, Sync) {
    let key = KeyPair::generate(&Random::seeded(1));
    let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), key)]);
    let rooms =
        Rooms::new(storage.clone(), servers, Options { default_version: RoomVersionId::V11, ..Options::default() });
    let typing = Typing::new(Clock::system(), &Random::system());
    let sync = Sync::start(storage.clone(), rooms.clone(), typing, Bus::memory(), CancellationToken::new());
    (rooms, sync)
}

fn new_room(name: Option<&str>) -> NewRoomRequest {
    NewRoomRequest {
        version: None,
        preset: Preset::PublicChat,
        listed: false,
        alias: None,
        name: name.map(str::to_owned),
        topic: None,
        invite: Vec::new(),
        is_direct: false,
        creation_content: None,
        initial_state: Vec::new(),
        // Everybody may set state.
        power_level_content_override: Some(to_raw_value(&json!({ "users_default": 50 })).unwrap()),
    }
}

impl World {
    async fn start(database: &TestDatabase, seed: u64) -> Self {
        let storage = Storage::open(database.options.clone(), Clock::system(), Random::system()).await.unwrap();
        let (rooms, sync) = process(&storage);
        let mut people = Vec::new();
        for name in NAMES {
            let user_id = UserId::parse(format!("@{name}:hs")).unwrap();
            let user_nr = storage.user_nr(&user_id).await.unwrap();
            let device_id = Some("D".into());
            people.push(Requester { user_nr, user_id, device_id, is_guest: false, is_admin: false, app_service: None });
        }
        let (mut ids, mut numbers) = (Vec::new(), Vec::new());
        for name in [Some("named"), None, None] {
            let id = rooms.create_room(&people[FOUNDER], new_room(name)).await.unwrap();
            numbers.push(rooms.room(&id).await.unwrap().nr);
            ids.push(id);
        }
        let random = Random::seeded(seed);
        Self { storage, rooms, sync, random, people, ids, numbers, transactions: 0 }
    }

    fn pick(&self, of: usize) -> usize {
        (self.random.number() % of as u64) as usize
    }

    fn choose<'a>(&self, from: &[&'a str]) -> Vec<&'a str> {
        from.iter().copied().filter(|_| self.pick(2) == 0).collect()
    }

    /// All events of a room, oldest first.
    async fn events(&self, room: usize) -> Vec<Event> {
        let asked = PageRequest { direction: TimelineDirection::Forward, from: None, to: None, limit: 10_000 };
        let page = self.rooms.messages(&self.people[FOUNDER], &self.ids[room], asked, |_| true).await.unwrap();
        let events = page.events.iter().map(|event| Event {
            id: event.pdu.event_id.to_string(),
            event_type: event.pdu.event_type.to_string(),
            sender: event.pdu.sender.to_string(),
            state_key: event.pdu.state_key.clone(),
            content: serde_json::from_str(event.pdu.content.get()).unwrap(),
            position: event.position.unwrap(),
        });
        events.collect()
    }

    /// A filter of one part of rooms.
    fn some_filter(&self) -> Value {
        let types = ["m.room.message", "m.room.*", "*", "m.*", "org.*", "*.member", "m.room.topic", "*e*a*", ""];
        let users = NAMES.map(|name| format!("@{name}:hs"));
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        let rooms: Vec<&str> = self.ids.iter().map(|id| id.as_str()).collect();
        let mut filter = json!({});
        for (name, one_in, words) in [
            ("types", 3, &types[..]),
            ("not_types", 4, &types[5..]),
            ("senders", 5, &users),
            ("not_senders", 5, &users),
            ("rooms", 6, &rooms),
            ("not_rooms", 6, &rooms),
        ] {
            if self.pick(one_in) == 0 {
                filter[name] = json!(self.choose(words));
            }
        }
        if self.pick(5) == 0 {
            filter["contains_url"] = json!(self.pick(2) == 0);
        }
        filter
    }

    fn device(&self, nr: usize) -> Device {
        let (mut timeline, mut state) = (self.some_filter(), self.some_filter());
        if self.pick(5) > 0 {
            timeline["limit"] = json!(self.pick(9));
        }
        timeline["unread_thread_notifications"] = json!(self.pick(2) == 0);
        // It would be lost to the client.
        state["limit"] = json!(1);
        state["lazy_load_members"] = json!(self.pick(3) > 0);
        state["include_redundant_members"] = json!(self.pick(3) == 0);
        let mut room = json!({ "timeline": timeline, "state": state, "include_leave": self.pick(2) == 0 });
        let rooms: Vec<&str> = self.ids.iter().map(|id| id.as_str()).collect();
        for name in ["rooms", "not_rooms"] {
            if self.pick(6) == 0 {
                room[name] = json!(self.choose(&rooms));
            }
        }
        let mut filter = json!({ "room": room });
        if self.pick(3) == 0 {
            filter["event_fields"] = json!(self.choose(&FIELDS.map(|(field, _)| field)));
        }
        let requester = Requester { device_id: Some(format!("D{nr}").into()), ..self.people[READER].clone() };
        Device { requester, filter, use_state_after: self.pick(3) == 0, answers: Vec::new() }
    }

    /// Somebody does something. What the rules forbid, such as speaking in a room that one is not in, is not done.
    async fn act(&mut self) {
        let (who, room) = (self.pick(NAMES.len()), self.pick(ROOMS));
        let (person, id) = (&self.people[who], &self.ids[room]);
        self.transactions += 1;
        let (n, transaction) = (self.transactions, format!("t{}", self.transactions));
        let state = async |event_type: &str, key: &str, content: Value| {
            let content = to_raw_value(&content).unwrap();
            let _ = self.rooms.send_state(person, id, event_type.into(), key, &content, None).await;
        };
        match self.pick(12) {
            0 => state("m.room.topic", "", json!({ "topic": n, "url": "mxc://a/b" })).await,
            1 => state("org.example.state", ["", "a", "b"][self.pick(3)], json!({ "n": n })).await,
            2 if who != FOUNDER => drop(self.rooms.leave(person, id, None).await),
            3 if who != FOUNDER => {
                let _ = self.rooms.kick(&self.people[FOUNDER], id, &person.user_id, None).await;
            }
            // Who is there speaks under another name.
            4 => {
                let row = self.storage.get_membership(self.numbers[room], person.user_nr).await.unwrap();
                if row.is_some_and(|row| row.membership == model::Membership::Join) {
                    let member = json!({ "membership": "join", "displayname": n.to_string() });
                    state("m.room.member", person.user_id.as_str(), member).await;
                }
            }
            5..=7 => drop(self.rooms.join(person, id, None).await),
            _ => {
                let event_type = ["m.room.message", "m.room.message", "org.example.message", "m.sticker"][self.pick(4)];
                let mut content = json!({ "msgtype": "m.text", "body": n.to_string() });
                if self.pick(3) == 0 {
                    content["url"] = json!("mxc://a/b");
                }
                if self.pick(3) == 0 {
                    let events = self.events(room).await;
                    let has = |event: &Event, field: &str| event.content.get(field).is_some();
                    if let Some(root) = events.iter().rfind(|event| has(event, "body") && !has(event, "m.relates_to")) {
                        content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": root.id });
                    }
                }
                let content = to_raw_value(&content).unwrap();
                let kind = event_type.into();
                let _ = self.rooms.send_message(person, id, kind, transaction.as_str().into(), &content, None).await;
            }
        }
    }

    /// A device asks, and is told what it is to be told.
    async fn ask(&self, device: &mut Device) {
        // Once in a while it had lost the answer.
        let lost = usize::from(self.pick(4) == 0 && device.answers.len() > 1);
        device.answers.truncate(device.answers.len() - lost);
        if let Some(answer) = device.answers.last_mut().filter(|_| lost > 0) {
            // What it was told again in that answer is forgotten with it.
            answer.told.values_mut().for_each(|(_, is_remembered)| *is_remembered = false);
        }
        let since = if self.pick(20) == 0 { None } else { device.answers.last() };
        let full_state = self.pick(10) == 0;
        // Another process has nothing in memory: neither what happened, nor what members it was told.
        let elsewhere = (self.pick(3) == 0).then(|| process(&self.storage).1);
        let filter: FilterDefinition = serde_json::from_value(device.filter.clone()).unwrap();
        let request = Request {
            since: since.map(|answer| answer.token),
            filter: Arc::new(filter),
            full_state,
            timeout: Duration::ZERO,
            use_state_after: device.use_state_after,
        };
        let sync = elsewhere.as_ref().unwrap_or(&self.sync);
        let response = sync.sync_events(&device.requester, &request).await.unwrap();
        let token: StreamToken = response.next_batch.parse().unwrap();
        let context = format!(
            "since {since:?} to {token:?}, full state {full_state}, elsewhere {}, lost {lost}, after {}: {}",
            elsewhere.is_some(),
            device.use_state_after,
            device.filter,
            since = since.map(|answer| answer.token),
        );
        let mut told = since.map(|answer| answer.told.clone()).unwrap_or_default();
        let remembers = elsewhere.is_none();
        if !remembers {
            // The number of an answer of another process says nothing to this one.
            told.values_mut().for_each(|(_, is_remembered)| *is_remembered = false);
        }
        for (room_nr, id) in self.ids.iter().enumerate() {
            let events = self.events(room_nr).await;
            let by_id: HashMap<&str, &Event> = events.iter().map(|event| (&*event.id, event)).collect();
            let room = (room_nr, id.as_str(), &events[..]);
            let expected = device.expected(room, (since, token.position), full_state);
            let joined = response.rooms.join.get(id);
            let shown = joined.map(Shown::joined).or(response.rooms.leave.get(id).map(Shown::left));
            let Some(expected) = expected else {
                assert!(shown.is_none(), "{id} is not to be there: {context}");
                continue;
            };
            let (timeline, state) = shown.as_ref().map(|shown| (shown.timeline(), shown.state())).unwrap_or_default();
            assert_eq!(ids(&timeline), expected.timeline, "timeline of {id}: {context}");
            let limited = shown.as_ref().is_some_and(|shown| shown.timeline.limited);
            assert_eq!(limited, expected.limited, "limited, of {id}: {context}");
            let state_ids: BTreeSet<String> = ids(&state).into_iter().collect();
            assert_eq!(state_ids.len(), state.len(), "a piece of state comes twice in {id}: {context}");
            let missing: Vec<&Event> = expected.state.difference(&state_ids).map(|id| by_id[&**id]).collect();
            assert!(missing.is_empty(), "{missing:?} is missing in the state of {id}: {context}");
            let too_much = state_ids.difference(&expected.state).filter(|id| !expected.redundant.contains(*id));
            // Who does not know what was told tells it again.
            let too_much = too_much.filter(|id| remembers || !by_id[&***id].is_member());
            let too_much: Vec<&Event> = too_much.map(|id| by_id[&**id]).collect();
            assert!(too_much.is_empty(), "{too_much:?} is too much in the state of {id}: {context}");
            if expected.begins_anew {
                let of_room = told.iter_mut().filter(|((room, _), _)| *room == room_nr);
                of_room.for_each(|(_, (_, is_remembered))| *is_remembered = false);
            }
            // The state lies before the timeline.
            for event in state.iter().chain(&timeline) {
                let whole = by_id[event["event_id"].as_str().unwrap()];
                check_fields(&device.filter["event_fields"], whole, event);
                if whole.is_member() && device.remembers() {
                    told.insert((room_nr, whole.state_key.clone().unwrap()), (whole.id.clone(), remembers));
                }
            }
            if let Some(joined) = joined {
                self.check_counts(device, joined, room_nr, token.position, &context).await;
            }
        }
        device.answers.push(Answer { token, told });
    }

    /// A filter changes nothing of what is unread, but whether threads are counted apart.
    async fn check_counts(&self, device: &Device, room: &JoinedRoom, room_nr: usize, upto: Position, context: &str) {
        let number = self.numbers[room_nr];
        let unread =
            self.rooms.unread(&device.requester, &[number], upto).await.unwrap().remove(&number).unwrap_or_default();
        let splits = device.filter["room"]["timeline"]["unread_thread_notifications"] == true;
        let expected = if splits { unread.main } else { unread.total() };
        let shown = |count: Option<ruma::UInt>| count.map(u64::from);
        let count = shown(room.unread_notifications.notification_count);
        assert_eq!(count, Some(expected.notifications), "unread, {context}");
        let threads: BTreeMap<String, u64> = room
            .unread_thread_notifications
            .iter()
            .map(|(root, counts)| (root.to_string(), shown(counts.notification_count).unwrap()))
            .collect();
        let expected = unread.threads.iter().filter(|_| splits);
        let expected: BTreeMap<String, u64> =
            expected.map(|(root, counts)| (root.to_string(), counts.notifications)).collect();
        assert_eq!(threads, expected, "unread threads, {context}");
    }
}

/// Checks that an event has what was asked for, as far as there is something to have.
fn check_fields(fields: &Value, whole: &Event, shown: &Value) {
    let whole = json!({ "content": whole.content, "unsigned": { "age": 1 } });
    for (field, path) in FIELDS {
        let is_wanted = fields.as_array().is_none_or(|fields| fields.iter().any(|wanted| wanted == field));
        let find = |event: &Value| path.iter().try_fold(event.clone(), |at, name| at.get(name).cloned());
        assert_eq!(find(shown).is_some(), is_wanted && find(&whole).is_some(), "{field} of {fields}: {shown}");
    }
}

async fn live_through(database: &TestDatabase, seed: u64) {
    eprintln!("seed {seed}");
    let mut world = World::start(database, seed).await;
    let mut devices: Vec<Device> = (0..3).map(|nr| world.device(nr)).collect();
    let mut shown = 0;
    for _ in 0..STEPS {
        world.act().await;
        for device in &mut devices {
            if world.pick(4) == 0 {
                world.ask(device).await;
                shown += 1;
            }
        }
    }
    assert!(shown > STEPS / 3, "hardly anybody asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filtered_answers_are_what_a_naive_filter_makes_of_the_history() {
    for seed in 1..=8 {
        for database in TestDatabase::each().await {
            live_through(&database, seed).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_filtered_answers_are_what_a_naive_filter_makes_of_many_histories() {
    for seed in 100..200 {
        for database in TestDatabase::each().await {
            live_through(&database, seed).await;
        }
    }
}
