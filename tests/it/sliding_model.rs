//! A client of sliding sync that asks at random, while people do things at random, ends with what `/sync` says.

use std::collections::{BTreeMap, BTreeSet};

use model::Random;
use serde_json::{Value, json};
use test_kit::{TestServer, TestUser, encode, on_each_database};

use crate::sliding_sync::{FORMS, Form, pos};

/// How many things are done and asked in one history.
const STEPS: usize = 70;
/// Most answers until the client must have everything.
const ANSWERS_MAX: usize = 50;

/// What a client knows of a room.
#[derive(Debug, Default)]
struct KnownRoom {
    /// The newest events, without a hole.
    timeline: Vec<String>,
    /// The ids of the state events.
    state: BTreeMap<(String, String), String>,
    /// The members it has; with lazy loading it forgets them at a gap.
    members: BTreeSet<String>,
    name: Option<String>,
    joined_count: Option<u64>,
}

/// A client.
struct Client {
    is_lazy: bool,
    pos: Option<String>,
    rooms: BTreeMap<String, KnownRoom>,
}

fn text<'a>(event: &'a Value, key: &str) -> &'a str {
    event[key].as_str().unwrap_or_else(|| panic!("{event} lacks {key}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

impl Client {
    /// Takes an answer in, as clients do.
    fn take(&mut self, answer: &Value) {
        self.pos = Some(pos(answer).to_owned());
        for (room_id, shown) in answer["rooms"].as_object().unwrap() {
            if shown["initial"] == true {
                self.rooms.insert(room_id.clone(), KnownRoom::default());
            }
            let room = self.rooms.get_mut(room_id).unwrap_or_else(|| panic!("{room_id} is told bit by bit and is new"));
            let events = list(shown, "timeline");
            let ids: Vec<String> = events.iter().map(|event| text(event, "event_id").to_owned()).collect();
            let is_expanded = shown["expanded_timeline"] == true || shown["unstable_expanded_timeline"] == true;
            let has_gap = shown["limited"] == true && !is_expanded;
            if has_gap || shown["initial"] == true {
                room.timeline.clear();
            }
            if shown["limited"] == true {
                room.members.clear();
            }
            if is_expanded {
                let known: BTreeSet<_> = room.timeline.iter().collect();
                let first = ids.iter().position(|id| known.contains(id));
                let overlap = first.map_or(0, |first| ids.len() - first);
                assert!(
                    overlap > 0 || shown["limited"] == true || room.timeline.is_empty(),
                    "{room_id} has a hole: {shown}"
                );
                room.timeline = ids;
            } else {
                room.timeline.extend(ids);
            }
            let distinct: BTreeSet<_> = room.timeline.iter().collect();
            assert_eq!(distinct.len(), room.timeline.len(), "an event came twice in {room_id}: {shown}");
            for event in list(shown, "required_state") {
                let key = (text(event, "type").to_owned(), text(event, "state_key").to_owned());
                if event["content"].is_null() {
                    room.state.remove(&key);
                    continue;
                }
                if key.0 == "m.room.member" {
                    room.members.insert(key.1.clone());
                }
                room.state.insert(key, text(event, "event_id").to_owned());
            }
            for event in events {
                let sender = text(event, "sender");
                assert!(
                    !self.is_lazy || room.members.contains(sender),
                    "{sender} speaks in {room_id} and is not known: {shown}"
                );
            }
            let fields = shown.as_object().unwrap();
            if fields.contains_key("name") || fields.contains_key("heroes") {
                room.name = shown["name"].as_str().map(str::to_owned);
            }
            room.joined_count = shown["joined_count"].as_u64().or(room.joined_count);
        }
    }
}

/// A history.
struct History {
    random: Random,
    people: Vec<TestUser>,
    rooms: Vec<String>,
}

impl History {
    fn below(&self, count: usize) -> usize {
        self.random.number() as usize % count
    }

    fn chance(&self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Somebody does something; whether they may is the server's affair.
    async fn act(&mut self, step: usize) {
        let alice = &self.people[0];
        if self.rooms.is_empty() || self.chance(8) {
            let room = self.people[self.below(2)].create_public_room().await;
            alice.join(&room).await;
            self.rooms.push(room);
            return;
        }
        let room = &self.rooms[self.below(self.rooms.len())];
        let person = &self.people[self.below(self.people.len())];
        let other = &self.people[self.below(self.people.len())];
        match self.below(10) {
            0..=4 => drop(
                person
                    .try_send(room, "m.room.message", &json!({ "msgtype": "m.text", "body": step.to_string() }))
                    .await,
            ),
            5 => drop(person.try_set_state(room, "m.room.name", "", &json!({ "name": format!("name {step}") })).await),
            6 => drop(
                person.try_set_state(room, "org.example.x", &self.below(3).to_string(), &json!({ "v": step })).await,
            ),
            7 => drop(person.in_room(room, "join", &json!({})).await),
            8 => drop(person.in_room(room, "leave", &json!({})).await),
            _ => drop(person.in_room(room, "kick", &json!({ "user_id": other.id() })).await),
        }
    }

    /// Something to ask, at random.
    fn ask(&self, form: Form, is_lazy: bool) -> Value {
        let states: [&[[&str; 2]]; 3] =
            [&[["m.room.name", ""]], &[["org.example.x", "*"], ["m.room.name", ""]], &[["*", "*"]]];
        let state = |history: &Self| {
            let mut state = states[history.below(3)].to_vec();
            if is_lazy {
                state.push(["m.room.member", "$LAZY"]);
            }
            state
        };
        let mut body = json!({ "conn_id": "c", "lists": {}, "room_subscriptions": {} });
        for name in ["a", "b"] {
            if self.chance(70) {
                let first = self.below(3) as u64;
                let range = [first, first + self.below(5) as u64];
                body["lists"][name] = form.list(range, 1 + self.below(4) as u64, &state(self));
            }
        }
        if !self.rooms.is_empty() && self.chance(40) {
            let room = &self.rooms[self.below(self.rooms.len())];
            body["room_subscriptions"][room] = form.config(1 + self.below(6) as u64, &state(self));
        }
        body
    }
}

/// The state of a room at the end of an answer of `/sync`.
fn state_of(room: &Value) -> BTreeMap<(String, String), String> {
    let mut state = BTreeMap::new();
    let before = list(&room["state"], "events").iter();
    for event in before.chain(list(&room["timeline"], "events")).filter(|event| event["state_key"].is_string()) {
        let key = (text(event, "type").to_owned(), text(event, "state_key").to_owned());
        state.insert(key, text(event, "event_id").to_owned());
    }
    state
}

async fn run(server: &mut TestServer, form: Form, seed: u64) {
    println!("form {form:?}, seed {seed}");
    let is_lazy = seed % 2 == 1;
    let mut people = Vec::new();
    for name in ["alice", "bob", "carol"] {
        people.push(server.user(&format!("{name}{seed}{}", form == Form::V4)).await);
    }
    let mut history = History { random: Random::seeded(seed), people, rooms: Vec::new() };
    let mut client = Client { is_lazy, pos: None, rooms: BTreeMap::new() };
    for step in 0..STEPS {
        if history.chance(60) {
            history.act(step).await;
            continue;
        }
        if history.chance(6) {
            server.restart().await;
            history.people = history.people.iter().map(|person| person.at(server.http())).collect();
        }
        let body = history.ask(form, is_lazy);
        let alice = &history.people[0];
        let answer = form.sync(alice, client.pos.as_deref(), 0, &body).await;
        if history.chance(25) {
            // It is lost, and asked for again, perhaps for something else.
            if history.chance(50) {
                history.act(step).await;
            }
            let body = if history.chance(50) { body } else { history.ask(form, is_lazy) };
            if client.pos.is_some() {
                let answer = form.sync(&history.people[0], client.pos.as_deref(), 0, &body).await;
                client.take(&answer);
                continue;
            }
        }
        client.take(&answer);
    }
    // Everything there is, until there is no more.
    let mut state = vec![["*", "*"]];
    if is_lazy {
        state.push(["m.room.member", "$LAZY"]);
    }
    let body = json!({ "conn_id": "c", "lists": { "all": form.list([0, 1_000], 3, &state) } });
    let alice = &history.people[0];
    for count in 0.. {
        assert!(count < ANSWERS_MAX, "the answers do not come to an end");
        let answer = form.sync(alice, client.pos.as_deref(), 0, &body).await;
        client.take(&answer);
        if answer["rooms"] == json!({}) {
            break;
        }
    }
    let sync = alice.sync(None).await;
    let joined = sync["rooms"]["join"].as_object().cloned().unwrap_or_default();
    assert!(!joined.is_empty(), "a history in which alice is nowhere says little");
    for (room_id, shown) in &joined {
        let known = client.rooms.get(room_id).unwrap_or_else(|| panic!("{room_id} was never told"));
        let mut expected = state_of(shown);
        let mut found = known.state.clone();
        if is_lazy {
            // Of members the client has those that it needs.
            expected.retain(|key, _| key.0 != "m.room.member");
            found.retain(|key, _| key.0 != "m.room.member");
        }
        assert_eq!(found, expected, "the state of {room_id}");
        assert_eq!(known.joined_count, shown["summary"]["m.joined_member_count"].as_u64(), "{room_id}");
        let name = alice.get(&format!("/rooms/{}/state/m.room.name/", encode(room_id))).await.json();
        assert_eq!(known.name.as_deref(), name["name"].as_str(), "the name of {room_id}");
        let page = alice.get(&format!("/rooms/{}/messages?dir=b&limit=500", encode(room_id))).await.ok();
        let mut all: Vec<&str> = list(&page, "chunk").iter().map(|event| text(event, "event_id")).collect();
        all.reverse();
        assert!(
            all.ends_with(&known.timeline.iter().map(String::as_str).collect::<Vec<_>>()),
            "{room_id}: {:?} {all:?}",
            known.timeline
        );
        assert!(!known.timeline.is_empty(), "{room_id}");
    }
    // And nobody is in a room who is not.
    for (room_id, known) in client.rooms.iter().filter(|(room_id, _)| !joined.contains_key(*room_id)) {
        let key = ("m.room.member".to_owned(), alice.id().to_owned());
        let own = known.state.get(&key).unwrap_or_else(|| panic!("{room_id} does not say how alice left it"));
        let event = alice.get(&format!("/rooms/{}/event/{}", encode(room_id), encode(own))).await.ok();
        assert_eq!(event["content"]["membership"], "leave", "{event}");
    }
}

on_each_database! {
    async fn a_client_that_asks_at_random_ends_with_what_sync_says(server: TestServer) {
        let mut server = server;
        for seed in 1..=8 {
            for form in FORMS {
                run(&mut server, form, seed).await;
            }
        }
    }
}
