//! What people on two servers do with each other, as requests of their clients: whatever the two servers are.

mod encryption;
mod files;
mod membership;
mod rooms;
mod talk;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use test_kit::{Http, TestUser, encode, register};
use tokio::task::JoinSet;

/// Longest wait for something to reach the other server.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Names and aliases are never used twice in a test.
static NAMES: AtomicU64 = AtomicU64::new(0);

/// Two servers, the room version of what happens, and who makes the rooms.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) version: u8,
    /// Its users make the rooms.
    pub(crate) maker: Side,
    /// Its users come to them.
    pub(crate) guest: Side,
}

/// One of the two servers.
#[derive(Clone)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) http: Http,
}

/// Something that people do, and what is to be seen of it on both sides.
pub(crate) struct Step {
    name: &'static str,
    /// The first room version that can do this.
    since: u8,
    play: fn(Scene) -> Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Steps by the names of their functions.
macro_rules! steps {
    ($($module:ident::$name:ident since $since:literal),+ $(,)?) => {
        &[$(Step { name: stringify!($name), since: $since, play: |scene| Box::pin($module::$name(scene)) }),+]
    };
}

/// What belongs to every room version.
pub(crate) const SHORT: &[Step] = steps![talk::an_alias_leads_into_a_room_where_both_talk since 1];

/// The whole scenario.
pub(crate) const WHOLE: &[Step] = steps![
    encryption::devices_are_found_and_sent_messages since 1,
    files::files_are_exchanged since 1,
    membership::an_invitation_is_accepted_and_passed_on since 1,
    membership::an_invitation_is_declined since 1,
    membership::an_invitation_is_taken_back since 1,
    membership::who_left_comes_back since 1,
    membership::who_was_kicked_comes_back_and_who_was_banned_does_not since 1,
    membership::who_knocks_is_let_in since 7,
    membership::who_is_in_one_room_may_join_the_other since 8,
    rooms::both_change_the_same_at_once since 1,
    rooms::power_that_was_given_is_used since 1,
    rooms::the_directory_and_a_space_are_read since 1,
    rooms::what_was_before_is_read since 1,
    talk::an_alias_leads_into_a_room_where_both_talk since 1,
    talk::names_are_seen_and_followed since 1,
    talk::what_was_said_is_edited_answered_and_redacted since 1,
    talk::who_reads_types_and_is_there_is_seen since 1,
];

impl Scene {
    /// The same with the roles exchanged.
    fn turned(&self) -> Self {
        Self { version: self.version, maker: self.guest.clone(), guest: self.maker.clone() }
    }

    /// Plays all steps that the room version can do, at once, with the rooms on one side and then on the other.
    ///
    /// # Panics
    ///
    /// When one fails, naming all that did.
    pub(crate) async fn play_both_ways(&self, steps: &'static [Step]) {
        let failed = [self.play(steps).await, self.turned().play(steps).await].concat();
        assert!(
            failed.is_empty(),
            "{} steps failed in rooms of version {}:\n{}",
            failed.len(),
            self.version,
            failed.join("\n")
        );
    }

    /// Plays all steps at once; gives what went wrong.
    async fn play(&self, steps: &'static [Step]) -> Vec<String> {
        let mut under_way = JoinSet::new();
        for Step { name, since, play } in steps {
            if self.version >= *since {
                let scene = self.clone();
                under_way.spawn(async move { (*name, tokio::spawn(play(scene)).await) });
            }
        }
        let mut failed = Vec::new();
        while let Some(done) = under_way.join_next().await {
            let (name, result) = done.expect("this task does not panic");
            if let Err(error) = result {
                let payload = error.into_panic();
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or_default();
                failed.push(format!(
                    "with rooms on {} and guests of {}: {name}: {text}",
                    self.maker.name, self.guest.name
                ));
            }
        }
        failed
    }

    /// A room of this version with an alias that anyone may join, and with what else `more` says; gives its id and its alias.
    async fn room(&self, maker: &TestUser, more: Value) -> (String, String) {
        let localpart = format!("hall{}", NAMES.fetch_add(1, Ordering::Relaxed));
        let mut body =
            json!({"preset": "public_chat", "room_version": self.version.to_string(), "room_alias_name": localpart});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let room = maker.create_room_with(&body).await;
        (room, format!("#{localpart}:{}", self.maker.name))
    }

    /// A maker and a guest who are both in a room: it, and the two.
    async fn shared_room(&self) -> (String, Watcher, Watcher) {
        let (maker, guest) = (self.maker.user("maker").await, self.guest.user("guest").await);
        let (room, alias) = self.room(&maker, json!({})).await;
        join(&guest, &alias).await;
        let (mut maker, guest) = (Watcher::of(maker).await, Watcher::of(guest).await);
        maker.sees_member(&room, &guest.user, "join").await;
        (room, maker, guest)
    }
}

impl Side {
    /// A name of a server.
    pub(crate) fn of(name: &str, http: &Http) -> Self {
        Self { name: name.to_owned(), http: http.for_host(name) }
    }

    /// A user whose name nobody has yet.
    pub(crate) async fn user(&self, name: &str) -> TestUser {
        register(&self.http, &format!("{name}{}", NAMES.fetch_add(1, Ordering::Relaxed))).await
    }
}

/// Joins a room by its alias; gives its id.
pub(crate) async fn join(user: &TestUser, alias: &str) -> String {
    let joined = user.post(&format!("/join/{}", encode(alias)), &json!({})).await;
    assert!(joined.status.is_success(), "{} joins {alias}: {joined}", user.id());
    joined.json()["room_id"].as_str().unwrap().to_owned()
}

/// Joins a room by its id, through a server.
async fn try_join_via(user: &TestUser, room: &str, server: &str) -> test_kit::Answer {
    let (room, server) = (encode(room), encode(server));
    user.post(&format!("/join/{room}?via={server}&server_name={server}"), &json!({})).await
}

/// Waits until the servers of two users say the same of the state of a room.
pub(crate) async fn agree(room: &str, one: &TestUser, other: &TestUser) {
    let began = Instant::now();
    loop {
        let states = [state(one, room).await, state(other, room).await];
        if states[0] == states[1] && !states[0].is_empty() {
            return;
        }
        let differ = |from: usize, to: usize| -> Vec<String> {
            states[from].iter().filter(|entry| !states[to].contains(entry)).cloned().collect()
        };
        assert!(
            began.elapsed() < WAIT_MAX,
            "the state of {room} differs: only {} has {:#?}, only {} has {:#?}",
            one.id(),
            differ(0, 1),
            other.id(),
            differ(1, 0),
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The state of a room in words, in order.
async fn state(user: &TestUser, room: &str) -> Vec<String> {
    let answer = user.get(&format!("/rooms/{}/state", encode(room))).await.ok();
    let events = answer.as_array().expect("a list of events");
    let word =
        |event: &Value| format!("{} {} {} {}", event["type"], event["state_key"], event["event_id"], event["content"]);
    let mut words: Vec<String> = events.iter().map(word).collect();
    words.sort();
    words
}

/// A user who syncs, and remembers all that they were told.
struct Watcher {
    user: TestUser,
    since: String,
    answers: Vec<Arc<Value>>,
}

impl Watcher {
    async fn of(user: TestUser) -> Self {
        let first = sync(&user, None).await;
        let since = next_batch(&first);
        Self { user, since, answers: vec![Arc::new(first)] }
    }

    /// Waits until `find` finds something in an answer to a sync, of before or to come.
    async fn until<T>(&mut self, what: &str, mut find: impl FnMut(&Value) -> Option<T>) -> T {
        if let Some(found) = self.answers.iter().find_map(|answer| find(answer)) {
            return found;
        }
        let began = Instant::now();
        while began.elapsed() < WAIT_MAX {
            let answer = sync(&self.user, Some(&self.since)).await;
            self.since = next_batch(&answer);
            let found = find(&answer);
            self.answers.push(Arc::new(answer));
            if let Some(found) = found {
                return found;
            }
        }
        let last = self.answers.iter().rev().take(3).map(|answer| answer.to_string().chars().take(2_000).collect());
        let last: Vec<String> = last.collect();
        panic!("{} does not see {what}; the last answers: {last:#?}", self.user.id());
    }

    /// Forgets what was told so far.
    fn look_ahead(&mut self) {
        self.answers.clear();
    }

    /// Waits for an event in the timeline or the state of a room.
    async fn event(&mut self, room: &str, what: &str, mut is_it: impl FnMut(&Value) -> bool) -> Value {
        self.until(what, |answer| {
            let lists = ["join", "leave"].into_iter().flat_map(|kind| {
                let room = &answer["rooms"][kind][room];
                [&room["timeline"]["events"], &room["state"]["events"]]
            });
            lists.filter_map(Value::as_array).flatten().find(|event| is_it(event)).cloned()
        })
        .await
    }

    /// Waits for an event by its id.
    async fn sees(&mut self, room: &str, event_id: &str) -> Value {
        self.event(room, &format!("event {event_id}"), |event| event["event_id"] == event_id).await
    }

    /// Waits for a membership of somebody.
    async fn sees_member(&mut self, room: &str, who: &TestUser, membership: &str) -> Value {
        let what = format!("that {} has the membership {membership}", who.id());
        let is_it = |event: &Value| {
            event["type"] == "m.room.member"
                && event["state_key"] == who.id()
                && event["content"]["membership"] == membership
        };
        self.event(room, &what, is_it).await
    }

    /// Waits for an invitation; gives the state of the room that comes with it.
    async fn is_invited(&mut self, room: &str) -> Vec<Value> {
        let find = |answer: &Value| answer["rooms"]["invite"][room]["invite_state"]["events"].as_array().cloned();
        self.until(&format!("an invitation to {room}"), find).await
    }

    /// Waits for an event about a room that is not in it: `m.typing`, `m.receipt`.
    async fn ephemeral(&mut self, room: &str, event_type: &str, mut is_it: impl FnMut(&Value) -> bool) -> Value {
        self.until(event_type, |answer| {
            let events = answer["rooms"]["join"][room]["ephemeral"]["events"].as_array()?;
            events.iter().find(|event| event["type"] == event_type && is_it(&event["content"])).cloned()
        })
        .await
    }
}

/// Syncs, waiting for a second; no event is left out because there are many.
async fn sync(user: &TestUser, since: Option<&str>) -> Value {
    let filter = encode(r#"{"room":{"timeline":{"limit":500}}}"#);
    let since = since.map(|since| format!("&timeout=1000&since={}", encode(since))).unwrap_or_default();
    user.get(&format!("/sync?set_presence=offline&filter={filter}{since}")).await.ok()
}

/// Each of the two says something, and the other one sees it.
async fn talk_both_ways(room: &str, one: &mut Watcher, other: &mut Watcher) {
    let said = one.user.send_text(room, &format!("from {}", one.user.id())).await;
    let heard = other.sees(room, &said).await;
    assert_eq!((&heard["sender"], &heard["content"]["msgtype"]), (&json!(one.user.id()), &json!("m.text")));
    let said = other.user.send_text(room, &format!("from {}", other.user.id())).await;
    let heard = one.sees(room, &said).await;
    assert_eq!(heard["content"]["body"], format!("from {}", other.user.id()));
}

fn next_batch(answer: &Value) -> String {
    answer["next_batch"].as_str().expect("a token").to_owned()
}
