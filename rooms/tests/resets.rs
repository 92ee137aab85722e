//! A server that lies about what a room was like, to let in whom the room banned, or to get power: the state stays what it is. Room Version
//! 2, "State resolution"; Server-Server API, "Soft failure".

#[expect(dead_code, reason = "some of it is for other tests")]
mod crafted;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use accounts::Requester;
use crafted::{Crafted, Keys, versions};
use rooms::{
    Asking, Error, EventSigners, NewRoomRequest, Options, Preset, Received, RemoteEvents, RemoteServers, Rooms, Source,
    StateIds, testing,
};
use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, OwnedRoomId, RoomId, UserId, room_version_rules::RoomVersionRules,
    server_name, signatures::PublicKeyMap,
};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use storage::{Storage, testing::TestDatabase};

const ALICE: &str = "@alice:hs";
const CAROL: &str = "@carol:hs";
/// May ban and set most of the state.
const REM: &str = "@rem:other";
/// May nothing.
const KIM: &str = "@kim:other";

/// What the lying server says.
#[derive(Default)]
struct Lies {
    keys: PublicKeyMap,
    events: Mutex<HashMap<OwnedEventId, CanonicalJsonObject>>,
    states: Mutex<HashMap<OwnedEventId, Vec<OwnedEventId>>>,
}

impl RemoteEvents for Lies {
    fn get_missing_events<'a>(
        &'a self,
        _: Source<'a>,
        _: &'a RoomId,
        _: Vec<OwnedEventId>,
        _: Vec<OwnedEventId>,
        _: u32,
    ) -> Asking<'a, Vec<Box<RawValue>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn get_event<'a>(&'a self, _: Source<'a>, event_id: &'a EventId) -> Asking<'a, Box<RawValue>> {
        Box::pin(async move {
            let events = self.events.lock().unwrap();
            Ok(events.get(event_id).map_or_else(|| to_raw_value(&json!({})).unwrap(), testing::raw))
        })
    }

    fn get_state_ids<'a>(&'a self, _: Source<'a>, _: &'a RoomId, event_id: &'a EventId) -> Asking<'a, StateIds> {
        Box::pin(async move {
            let state = self.states.lock().unwrap().get(event_id).cloned().unwrap_or_default();
            Ok(StateIds { state, auth_chain: Vec::new() })
        })
    }
}

impl RemoteServers for Lies {
    fn find_public_keys<'a>(&'a self, signers: &'a [EventSigners]) -> Asking<'a, Vec<PublicKeyMap>> {
        Box::pin(async move { Ok(signers.iter().map(|_| self.keys.clone()).collect()) })
    }
}

type State = BTreeMap<(String, String), OwnedEventId>;

struct Scene {
    version: u8,
    storage: Storage,
    rooms: Rooms,
    room: OwnedRoomId,
    rules: RoomVersionRules,
    keys: Keys,
    lies: Arc<Lies>,
    _database: TestDatabase,
}

impl Scene {
    /// A public room of alice's, with carol, rem and kim.
    async fn new(version: u8, database: TestDatabase) -> Self {
        let storage = database.open().await;
        let keys = Keys::new();
        let lies = Arc::new(Lies { keys: keys.public.clone(), ..Lies::default() });
        let (_, room_version) = versions().find(|(number, _)| *number == version).unwrap();
        let options = Options { default_version: room_version.clone(), ..Options::default() };
        let rooms = Rooms::federating(storage.clone(), Keys::local_servers(), options, lies.clone());
        let rules = room_version.rules().unwrap();
        let room = ruma::room_id!("!none:hs").to_owned();
        let mut scene = Self { version, storage, rooms, room, rules, keys, lies, _database: database };
        let alice = scene.user(ALICE).await;
        let levels = to_raw_value(&scene.levels(50)).unwrap();
        let request =
            NewRoomRequest { power_level_content_override: Some(levels), ..NewRoomRequest::new(Preset::PublicChat) };
        scene.room = scene.rooms.create_room(&alice, request).await.unwrap();
        scene.rooms.join(&scene.user(CAROL).await, &scene.room, None).await.unwrap();
        for user in [REM, KIM] {
            let (join, _) = scene.craft(user, ("m.room.member", Some(user)), json!({"membership": "join"}), None).await;
            scene.accept(join).await;
        }
        scene
    }

    fn levels(&self, rem: i64) -> Value {
        let mut users = json!({REM: rem});
        if !self.rules.authorization.explicitly_privilege_room_creators {
            users[ALICE] = json!(100);
        }
        json!({"users": users, "events": {"m.room.power_levels": 50}, "ban": 50, "state_default": 50})
    }

    async fn user(&self, id: &str) -> Requester {
        let user_id = UserId::parse(id).unwrap();
        Requester {
            user_nr: self.storage.user_nr(&user_id).await.unwrap(),
            user_id,
            device_id: Some("D".into()),
            is_guest: false,
            is_admin: false,
            app_service: None,
        }
    }

    async fn set(&self, event_type: &str, state_key: &str, content: Value) {
        let (alice, content) = (self.user(ALICE).await, to_raw_value(&content).unwrap());
        self.rooms.send_state(&alice, &self.room, event_type.into(), state_key, &content, None).await.unwrap();
    }

    /// The current state.
    async fn state(&self) -> State {
        let row = self.rooms.room(&self.room).await.unwrap();
        let head = self.storage.get_head(row.nr).await.unwrap().unwrap();
        let numbers: Vec<_> = self.storage.list_state(row.nr, head.state).await.unwrap();
        let events = self.storage.get_events(&numbers.iter().map(|(_, nr)| *nr).collect::<Vec<_>>()).await.unwrap();
        let key = |pdu: &model::Pdu| (pdu.event_type.to_string(), pdu.state_key.clone().unwrap());
        events.values().map(|event| (key(&event.pdu), event.pdu.event_id.clone())).collect()
    }

    /// The newest events.
    async fn tips(&self) -> Vec<OwnedEventId> {
        let row = self.rooms.room(&self.room).await.unwrap();
        let head = self.storage.get_head(row.nr).await.unwrap().unwrap();
        let events = self.storage.get_events(&head.extremities).await.unwrap();
        events.values().map(|event| event.pdu.event_id.clone()).collect()
    }

    /// An event as it follows from a state and some events; from the current ones without.
    async fn craft(
        &self,
        sender: &str,
        (event_type, state_key): (&str, Option<&str>),
        content: Value,
        from: Option<(&State, &[OwnedEventId])>,
    ) -> (CanonicalJsonObject, OwnedEventId) {
        self.craft_later(0, sender, (event_type, state_key), content, from).await
    }

    /// The same, made so many milliseconds from now.
    async fn craft_later(
        &self,
        later_ms: i64,
        sender: &str,
        (event_type, state_key): (&str, Option<&str>),
        content: Value,
        from: Option<(&State, &[OwnedEventId])>,
    ) -> (CanonicalJsonObject, OwnedEventId) {
        let (state, tips) = match from {
            Some((state, prev)) => (state.clone(), prev.to_vec()),
            None => (self.state().await, self.tips().await),
        };
        let sender_id = UserId::parse(sender).unwrap();
        let types = ruma::state_res::auth_types_for_event(
            &event_type.into(),
            &sender_id,
            state_key,
            &to_raw_value(&content).unwrap(),
            &self.rules.authorization,
        );
        let auth: Vec<OwnedEventId> =
            types.unwrap().into_iter().filter_map(|(kind, key)| state.get(&(kind.to_string(), key)).cloned()).collect();
        let crafted = Crafted {
            room_id: Some(self.room.as_str()),
            sender,
            event_type,
            state_key,
            content,
            redacts: None,
            prev: &tips,
            auth: &auth,
            depth: 1_000,
            origin_server_ts: self.storage.clock().now_ms() + later_ms,
        };
        let (object, pdu) = crafted.sign(&self.keys, &self.rules, self.storage.random());
        (object, pdu.event_id)
    }

    /// A message of rem's that the server does not give; before it the room had this state.
    async fn lost(&self, told: &State) -> OwnedEventId {
        let (event, id) =
            self.craft(REM, ("m.room.message", None), json!({"body": "lost"}), Some((told, &self.tips().await))).await;
        // It comes after what nobody has.
        self.lies.events.lock().unwrap().insert(id.clone(), event);
        self.lies.states.lock().unwrap().insert(id.clone(), told.values().cloned().collect());
        id
    }

    async fn send(&self, object: CanonicalJsonObject) -> Result<Received, Error> {
        let source = Source { as_server: server_name!("hs"), server: server_name!("other") };
        let outcomes = self.rooms.receive(source, vec![testing::raw(&object)]).await.unwrap();
        outcomes.into_values().next().unwrap()
    }

    async fn accept(&self, object: CanonicalJsonObject) {
        assert_eq!(self.send(object).await.unwrap(), Received::Accepted, "version {}", self.version);
    }

    async fn keep_out(&self, object: CanonicalJsonObject) {
        let received = self.send(object).await.unwrap();
        assert!(matches!(received, Received::SoftFailed(_) | Received::Rejected(_)), "{}: {received:?}", self.version);
    }

    /// Lets rem, who may, say something after these events, and alice after that: the state is what it was.
    async fn check(&self, before: &State, told: &State, tips: &[&[OwnedEventId]], what: &str) {
        let describe = format!("version {}, {what}", self.version);
        for prev in tips {
            let (message, _) =
                self.craft(REM, ("m.room.message", None), json!({"body": what}), Some((told, prev))).await;
            let received = self.send(message).await.unwrap();
            assert_eq!(received, Received::Accepted, "{describe}");
            assert_eq!(self.state().await, *before, "{describe}");
        }
        let (alice, content) = (self.user(ALICE).await, to_raw_value(&json!({"body": "x"})).unwrap());
        let id = self.storage.random().alphanumeric(12);
        let sent = self.rooms.send_message(&alice, &self.room, "m.room.message".into(), (&*id).into(), &content, None);
        sent.await.unwrap();
        assert_eq!(self.tips().await.len(), 1, "{describe}: all is brought together");
        assert_eq!(self.state().await, *before, "{describe}");
    }
}

async fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for version in [2, 5, 11, 12] {
        let database = if version == 12 { TestDatabase::postgres().await } else { None };
        scenes.push(Scene::new(version, database.unwrap_or_else(TestDatabase::sqlite)).await);
    }
    scenes
}

fn without(state: &State, event_type: &str, state_key: &str) -> State {
    let mut state = state.clone();
    state.remove(&(event_type.to_owned(), state_key.to_owned()));
    state
}

/// Their server tells of the room as it was before, at an event that nobody else has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_banned_does_not_come_back_by_a_state_of_before() {
    for scene in scenes().await {
        let old = scene.state().await;
        scene.rooms.ban(&scene.user(ALICE).await, &scene.room, <&UserId>::try_from(KIM).unwrap(), None).await.unwrap();
        let now = scene.state().await;
        let lost = scene.lost(&old).await;
        for (told, what) in [(old.clone(), "before the ban"), (without(&old, "m.room.member", KIM), "no member")] {
            let again = json!({"membership": "join", "displayname": what});
            let (join, join_id) =
                scene.craft(KIM, ("m.room.member", Some(KIM)), again, Some((&told, std::slice::from_ref(&lost)))).await;
            let said = json!({"body": what});
            let (said, said_id) =
                scene.craft(KIM, ("m.room.message", None), said, Some((&old, std::slice::from_ref(&lost)))).await;
            scene.keep_out(join).await;
            scene.keep_out(said).await;
            assert_eq!(scene.state().await, now);
            let mut both = scene.tips().await;
            both.push(join_id.clone());
            scene.check(&now, &old, &[std::slice::from_ref(&lost), &[join_id], &[said_id], &both], what).await;
        }
    }
}

/// Where there are no power levels, all are equal: a state without them is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_power_by_a_state_without_power_levels() {
    for scene in scenes().await {
        let now = scene.state().await;
        let told = without(&without(&now, "m.room.power_levels", ""), "m.room.join_rules", "");
        let lost = scene.lost(&told).await;
        for (kind, key, content) in [
            ("m.room.power_levels", "", scene.levels(100)),
            ("m.room.power_levels", "", json!({"users": {REM: 100, KIM: 100}})),
            ("m.room.topic", "", json!({"topic": "taken"})),
            ("m.room.member", CAROL, json!({"membership": "ban"})),
            ("m.room.server_acl", "", json!({"allow": ["other"]})),
        ] {
            // Kim may nothing; without power levels only who made the room has some.
            let (event, id) =
                scene.craft(KIM, (kind, Some(key)), content, Some((&told, std::slice::from_ref(&lost)))).await;
            scene.keep_out(event).await;
            assert_eq!(scene.state().await, now);
            let mut both = scene.tips().await;
            both.push(id.clone());
            scene.check(&now, &told, &[&[id], &both], kind).await;
        }
    }
}

/// What rem may no longer do is done on a branch of before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lost_power_does_not_use_it_on_a_branch_of_before() {
    for scene in scenes().await {
        let (old, fork) = (scene.state().await, scene.tips().await);
        let alice = scene.user(ALICE).await;
        let (_, levels) = scene.rooms.state_event(&alice, &scene.room, "m.room.power_levels", "").await.unwrap();
        let mut levels: Value = serde_json::from_str(levels.pdu.content.get()).unwrap();
        levels["users"][KIM] = json!(50);
        scene.set("m.room.power_levels", "", scene.levels(0)).await;
        let now = scene.state().await;
        let mut prev = fork.clone();
        let mut state = old.clone();
        for (kind, key, content) in [
            ("m.room.member", CAROL, json!({"membership": "ban"})),
            ("m.room.join_rules", "", json!({"join_rule": "invite"})),
            ("m.room.power_levels", "", levels),
            ("m.room.topic", "", json!({"topic": "taken"})),
        ] {
            let (event, id) = scene.craft(REM, (kind, Some(key)), content, Some((&state, &prev))).await;
            scene.keep_out(event).await;
            state.insert((kind.to_owned(), key.to_owned()), id.clone());
            prev = vec![id];
            assert_eq!(scene.state().await, now, "version {}, {kind}", scene.version);
        }
        let mut both = scene.tips().await;
        both.extend(prev.clone());
        scene.check(&now, &state, &[&prev, &both], "power of before").await;
    }
}

/// What was missing when something after it came says nothing of the room as it is now, even if it says to have been made later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_from_a_gap_changes_nothing() {
    for scene in scenes().await {
        let (before, fork) = (scene.state().await, scene.tips().await);
        let mut made = Vec::new();
        let (mut state, mut prev) = (before.clone(), fork);
        for (topic, later_ms) in [("first", 80_000), ("second", 60_000), ("third", 40_000), ("now", 0)] {
            let (kind, content) = (("m.room.topic", Some("")), json!({"topic": topic}));
            let (event, id) = scene.craft_later(later_ms, REM, kind, content, Some((&state, &prev))).await;
            scene.lies.events.lock().unwrap().insert(id.clone(), event.clone());
            scene.lies.states.lock().unwrap().insert(id.clone(), state.values().cloned().collect());
            state.insert(("m.room.topic".to_owned(), String::new()), id.clone());
            prev = vec![id];
            made.push(event);
        }
        let now = state;
        scene.accept(made.pop().unwrap()).await;
        assert_eq!(scene.state().await, now, "version {}", scene.version);
        // The last one was asked for already, for the state; the others are new.
        while let Some(late) = made.pop() {
            scene.accept(late).await;
            assert_eq!(scene.state().await, now, "version {}, {} to come", scene.version, made.len());
            assert!(scene.tips().await.len() <= 2, "version {}, {} to come", scene.version, made.len());
        }
        assert_eq!(scene.tips().await, prev, "version {}: nothing is left open", scene.version);
        scene.set("m.room.name", "", json!({"name": "goes on"})).await;
        let name = ("m.room.name".to_owned(), String::new());
        let mut after = scene.state().await;
        assert!(after.remove(&name).is_some());
        assert_eq!(after, now);
    }
}

/// What its server told of a gap is not believed when it turns out to be wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lie_about_a_gap_ends_when_what_was_missing_comes() {
    for scene in scenes().await {
        let (old, fork) = (scene.state().await, scene.tips().await);
        // Rem bans kim, and says something. Before we hear of it, kim's server tells of a state in which she is still there.
        let (ban, ban_id) =
            scene.craft(REM, ("m.room.member", Some(KIM)), json!({"membership": "ban"}), Some((&old, &fork))).await;
        let mut banned = old.clone();
        banned.insert(("m.room.member".to_owned(), KIM.to_owned()), ban_id.clone());
        let (said, said_id) =
            scene.craft(REM, ("m.room.message", None), json!({"body": "x"}), Some((&banned, &[ban_id]))).await;
        scene.lies.events.lock().unwrap().insert(said_id.clone(), said.clone());
        scene.lies.states.lock().unwrap().insert(said_id.clone(), old.values().cloned().collect());
        let (lie, _) =
            scene.craft(KIM, ("m.room.message", None), json!({"body": "I am here"}), Some((&old, &[said_id]))).await;
        scene.accept(lie).await;
        assert_eq!(scene.state().await, old, "version {}", scene.version);
        scene.accept(ban).await;
        assert_eq!(scene.state().await, banned, "version {}", scene.version);
        scene.accept(said).await;
        assert_eq!(scene.state().await, banned, "version {}", scene.version);
    }
}
