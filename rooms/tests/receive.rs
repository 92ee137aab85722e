//! Events that another server made, forks included, in the versions whose state resolution differs.

use std::{collections::BTreeMap, sync::Arc};

use accounts::Requester;
use model::{KeyPair, LocalServer, LocalServers, Pdu, Random};
use rooms::{
    Error, NewRoomRequest, Options, PageRequest, Preset, Received, RelationsRequest, Rooms, testing, testing::KnownKeys,
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, RoomVersionId, UserId,
    serde::{Base64, base64::Standard},
    server_name,
    signatures::{PublicKeyMap, hash_and_sign_event},
};
use serde_json::{Value, json, value::to_raw_value};
use storage::{Storage, TimelineDirection, testing::TestDatabase};

/// A room on our server `hs`, and somebody with the key of another one.
struct Scene {
    storage: Storage,
    rooms: Rooms,
    room: OwnedRoomId,
    version: RoomVersionId,
    key: KeyPair,
    _database: TestDatabase,
}

impl Scene {
    /// `@rem:other` is in the room and may set the topic.
    async fn new(version: u8, database: TestDatabase) -> Self {
        let storage = database.open().await;
        let ours = KeyPair::generate(&Random::seeded(1));
        let key = KeyPair::generate(&Random::seeded(2));
        let mut keys = PublicKeyMap::new();
        for (server, key) in [("hs", &ours), ("other", &key)] {
            let public = Base64::<Standard>::parse(key.public_key()).unwrap();
            keys.entry(server.to_owned()).or_default().insert(key.id().to_string(), public);
        }
        let servers = LocalServers::new(vec![LocalServer::new(server_name!("hs").to_owned(), ours)]);
        let version = RoomVersionId::try_from(version.to_string()).unwrap();
        let options = Options { default_version: version.clone(), ..Options::default() };
        let rooms = Rooms::federating(storage.clone(), servers, options, Arc::new(KnownKeys(keys)));
        let room = ruma::room_id!("!none:hs").to_owned();
        let mut scene = Self { storage, rooms, room, version, key, _database: database };
        let alice = scene.user("@alice:hs").await;
        let levels = json!({"users": {"@rem:other": 50}, "events": {"m.room.topic": 50}});
        let mut levels = to_raw_value(&levels).unwrap();
        if !scene.version.rules().unwrap().authorization.explicitly_privilege_room_creators {
            levels =
                to_raw_value(&json!({"users": {"@alice:hs": 100, "@rem:other": 50}, "events": {"m.room.topic": 50}}))
                    .unwrap();
        }
        let request =
            NewRoomRequest { power_level_content_override: Some(levels), ..NewRoomRequest::new(Preset::PublicChat) };
        scene.room = scene.rooms.create_room(&alice, request).await.unwrap();
        let join = scene.craft("m.room.member", Some("@rem:other"), json!({"membership": "join"}), &[], 0).await;
        assert_eq!(scene.receive(join).await.unwrap(), Received::Accepted);
        scene
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

    /// The newest event.
    async fn tip(&self) -> OwnedEventId {
        let alice = self.user("@alice:hs").await;
        let page = self.rooms.messages(&alice, &self.room, page(TimelineDirection::Backward, 1), |_| true).await;
        page.unwrap().events[0].pdu.event_id.clone()
    }

    /// An event of `@rem:other` after `prev` (by default after the newest event), made so many milliseconds from now.
    async fn craft(
        &self,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
        prev: &[OwnedEventId],
        later_ms: i64,
    ) -> CanonicalJsonObject {
        let rules = self.version.rules().unwrap();
        let alice = self.user("@alice:hs").await;
        let prev = if prev.is_empty() { vec![self.tip().await] } else { prev.to_vec() };
        let mut auth = Vec::new();
        let member = ("m.room.member", "@rem:other");
        for (kind, key) in [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", ""), member] {
            let is_wanted = match kind {
                "m.room.create" => !rules.authorization.room_create_event_id_as_room_id,
                "m.room.join_rules" => event_type == "m.room.member",
                _ => true,
            };
            if is_wanted && let Ok((_, event)) = self.rooms.state_event(&alice, &self.room, kind, key).await {
                auth.push(event.pdu.event_id.clone());
            }
        }
        let with_hashes = rules.events_reference_format == ruma::room_version_rules::EventsReferenceFormatVersion::V1;
        let references = |ids: &[OwnedEventId]| -> Value {
            ids.iter().map(|id| if with_hashes { json!([id, {}]) } else { json!(id) }).collect()
        };
        let mut event = json!({
            "type": event_type, "content": content, "sender": "@rem:other", "room_id": self.room, "depth": 50,
            "origin_server_ts": self.storage.clock().now_ms() + later_ms,
            "prev_events": references(&prev), "auth_events": references(&auth),
        });
        if let Some(state_key) = state_key {
            event["state_key"] = json!(state_key);
        }
        if event_type == "m.room.redaction" && !rules.redaction.content_field_redacts {
            event["redacts"] = event["content"].as_object_mut().unwrap().remove("redacts").unwrap();
        }
        if with_hashes {
            event["event_id"] = json!(format!("${}:other", self.storage.random().alphanumeric(12)));
        }
        let CanonicalJsonValue::Object(mut object) = CanonicalJsonValue::try_from(event).unwrap() else {
            unreachable!()
        };
        hash_and_sign_event("other", &self.key, &mut object, &rules.redaction).unwrap();
        object
    }

    async fn receive(&self, object: CanonicalJsonObject) -> Result<Received, Error> {
        testing::receive(&self.rooms, object).await
    }

    /// Takes in what comes in one transaction.
    async fn receive_all(
        &self,
        objects: Vec<CanonicalJsonObject>,
    ) -> Result<BTreeMap<OwnedEventId, Result<Received, Error>>, Error> {
        let source = rooms::Source { as_server: server_name!("hs"), server: server_name!("other") };
        self.rooms.receive(source, objects.iter().map(testing::raw).collect()).await
    }

    /// The id of an event that was crafted.
    fn id_of(&self, object: &CanonicalJsonObject) -> OwnedEventId {
        Pdu::from_canonical(object, &self.version.rules().unwrap()).unwrap().event_id
    }

    async fn message(&self, body: &str) -> (CanonicalJsonObject, OwnedEventId) {
        let event = self.craft("m.room.message", None, json!({"body": body}), &[], 0).await;
        let event_id = self.id_of(&event);
        (event, event_id)
    }

    async fn redaction(&self, target: &OwnedEventId) -> (CanonicalJsonObject, OwnedEventId) {
        let event = self.craft("m.room.redaction", None, json!({"redacts": target}), &[], 0).await;
        let event_id = self.id_of(&event);
        (event, event_id)
    }

    /// Alice's message.
    async fn say(&self, body: &str) -> OwnedEventId {
        let (alice, content) = (self.user("@alice:hs").await, to_raw_value(&json!({"body": body})).unwrap());
        let sent = self.rooms.send_message(&alice, &self.room, "m.room.message".into(), body.into(), &content, None);
        sent.await.unwrap()
    }

    async fn is_redacted(&self, event: &OwnedEventId) -> bool {
        let alice = self.user("@alice:hs").await;
        let (_, event) = self.rooms.event(&alice, &self.room, event).await.unwrap();
        assert_eq!(event.redacted_by.is_some(), event.pdu.content.get() == "{}", "{event:?}");
        event.redacted_by.is_some()
    }

    /// The ids of the events that alice sees, oldest first.
    async fn timeline(&self) -> Vec<OwnedEventId> {
        let alice = self.user("@alice:hs").await;
        let page = self.rooms.messages(&alice, &self.room, page(TimelineDirection::Forward, 500), |_| true).await;
        page.unwrap().events.iter().map(|event| event.pdu.event_id.clone()).collect()
    }

    /// What relates to an event, oldest first.
    async fn related(&self, event: &OwnedEventId) -> Vec<OwnedEventId> {
        let alice = self.user("@alice:hs").await;
        let page = page(TimelineDirection::Forward, 100);
        let asked = RelationsRequest { page, rel_type: None, event_type: None, recurse: false };
        let page = self.rooms.relations(&alice, &self.room, event, asked).await.unwrap();
        page.events.iter().map(|event| event.pdu.event_id.clone()).collect()
    }

    async fn topic(&self) -> String {
        let alice = self.user("@alice:hs").await;
        let (_, event) = self.rooms.state_event(&alice, &self.room, "m.room.topic", "").await.unwrap();
        serde_json::from_str::<Value>(event.pdu.content.get()).unwrap()["topic"].as_str().unwrap().to_owned()
    }

    async fn set_topic(&self, topic: &str) {
        let (alice, content) = (self.user("@alice:hs").await, to_raw_value(&json!({"topic": topic})).unwrap());
        self.rooms.send_state(&alice, &self.room, "m.room.topic".into(), "", &content, None).await.unwrap();
    }

    async fn bodies(&self) -> Vec<String> {
        let alice = self.user("@alice:hs").await;
        let page = self.rooms.messages(&alice, &self.room, page(TimelineDirection::Forward, 500), |_| true).await;
        let events = page.unwrap().events;
        let content = |json: &str| serde_json::from_str::<Value>(json).unwrap();
        events.iter().filter_map(|event| Some(content(event.pdu.content.get())["body"].as_str()?.to_owned())).collect()
    }
}

const VERSIONS: [u8; 6] = [1, 2, 3, 6, 11, 12];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_message_is_taken_in_once() {
    for database in TestDatabase::each().await {
        let scene = Scene::new(12, database).await;
        let event = scene.craft("m.room.message", None, json!({"body": "hello"}), &[], 0).await;
        assert_eq!(scene.receive(event.clone()).await.unwrap(), Received::Accepted);
        assert_eq!(scene.receive(event).await.unwrap(), Received::Known);
        assert_eq!(scene.bodies().await, ["hello"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_signed_or_altered_is_not_taken_as_it_is() {
    let scene = Scene::new(11, TestDatabase::sqlite()).await;
    let event = scene.craft("m.room.message", None, json!({"body": "signed"}), &[], 0).await;
    let mut unsigned = event.clone();
    unsigned.insert("depth".to_owned(), CanonicalJsonValue::Integer(51.into()));
    assert!(matches!(scene.receive(unsigned).await, Err(Error::BadEvent(_))), "a signed field was changed");
    let mut altered = event.clone();
    altered.insert("content".to_owned(), CanonicalJsonValue::try_from(json!({"body": "forged"})).unwrap());
    assert_eq!(scene.receive(altered).await.unwrap(), Received::Accepted, "in its redacted form");
    assert_eq!(scene.bodies().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_event_refers_to_must_be_here() {
    let scene = Scene::new(12, TestDatabase::sqlite()).await;
    let unknown = ruma::event_id!("$kFyyBvwbGM-TYsEqPvXHVGH_WDRJQWQMNjMsRWKhkhY").to_owned();
    let event = scene.craft("m.room.message", None, json!({"body": "x"}), std::slice::from_ref(&unknown), 0).await;
    assert_eq!(scene.receive(event).await.unwrap(), Received::Missing(vec![unknown]));
}

/// Server-Server API, "Rejection": kept, shown to nobody, and nothing in the room changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_own_past_forbids_is_rejected() {
    for version in VERSIONS {
        let scene = Scene::new(version, TestDatabase::sqlite()).await;
        let event = scene.craft("m.room.join_rules", Some(""), json!({"join_rule": "invite"}), &[], 0).await;
        let event_with_power =
            scene.craft("m.room.power_levels", Some(""), json!({"users": {"@rem:other": 100}}), &[], 0);
        let event_with_power = event_with_power.await;
        let received = scene.receive(event_with_power).await.unwrap();
        assert!(matches!(received, Received::Rejected(_)), "version {version}: {received:?}");
        let received = scene.receive(event).await.unwrap();
        assert_eq!(received, Received::Accepted, "version {version}: 50 is enough for other state");
    }
}

/// Server-Server API, "Soft failure": a banned user's server may send from before the ban; nobody sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banned_user_is_not_heard_through_an_old_branch() {
    for version in VERSIONS {
        let scene = Scene::new(version, TestDatabase::sqlite()).await;
        let alice = scene.user("@alice:hs").await;
        let before = scene.tip().await;
        let event = scene.craft("m.room.message", None, json!({"body": "still here"}), &[before], 0).await;
        scene.rooms.ban(&alice, &scene.room, ruma::user_id!("@rem:other"), None).await.unwrap();
        let received = scene.receive(event).await.unwrap();
        assert!(matches!(received, Received::SoftFailed(_)), "version {version}: {received:?}");
        assert_eq!(scene.bodies().await, Vec::<String>::new());
    }
}

/// Two topics on two branches: the later one wins from version 2 on (mainline ordering, then time).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_is_resolved_and_the_next_event_joins_it() {
    for version in VERSIONS {
        for (later_ms, expected) in [(-60_000, "ours"), (60_000, "theirs")] {
            let scene = Scene::new(version, TestDatabase::sqlite()).await;
            scene.set_topic("first").await;
            let fork = scene.tip().await;
            scene.set_topic("ours").await;
            let theirs = scene.craft("m.room.topic", Some(""), json!({"topic": "theirs"}), &[fork], later_ms).await;
            assert_eq!(scene.receive(theirs).await.unwrap(), Received::Accepted);
            // Version 1 takes the highest depth instead, which is ours.
            let expected = if version == 1 { "ours" } else { expected };
            assert_eq!(scene.topic().await, expected, "version {version}, {later_ms} ms");
            let (alice, content) = (scene.user("@alice:hs").await, to_raw_value(&json!({"body": "joined"})).unwrap());
            let sent =
                scene.rooms.send_message(&alice, &scene.room, "m.room.message".into(), "1".into(), &content, None);
            let sent = sent.await.unwrap();
            let (_, event) = scene.rooms.event(&alice, &scene.room, &sent).await.unwrap();
            assert_eq!(event.pdu.prev_events.len(), 2, "the next event has both branches behind it");
            assert_eq!(scene.topic().await, expected);
        }
    }
}

/// A ban on one branch holds against what the banned did on another, whichever is later. (Version 1 has the reset that
/// version 2 was made for.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_of_a_banned_user_does_not_come_back_through_a_fork() {
    for version in [2, 3, 6, 11, 12] {
        let scene = Scene::new(version, TestDatabase::sqlite()).await;
        let alice = scene.user("@alice:hs").await;
        scene.set_topic("first").await;
        let fork = scene.tip().await;
        let theirs = scene
            .craft("m.room.topic", Some(""), json!({"topic": "theirs"}), std::slice::from_ref(&fork), 60_000)
            .await;
        let rejoin =
            scene.craft("m.room.member", Some("@rem:other"), json!({"membership": "join"}), &[fork], 90_000).await;
        scene.rooms.ban(&alice, &scene.room, ruma::user_id!("@rem:other"), None).await.unwrap();
        assert!(matches!(scene.receive(theirs).await.unwrap(), Received::SoftFailed(_)));
        assert!(matches!(scene.receive(rejoin).await.unwrap(), Received::SoftFailed(_)));
        assert_eq!(scene.topic().await, "first");
        let rem = scene.storage.user_nr(ruma::user_id!("@rem:other")).await.unwrap();
        let room = scene.rooms.room(&scene.room).await.unwrap();
        let membership = scene.storage.get_membership(room.nr, rem).await.unwrap().unwrap().membership;
        assert_eq!(membership, model::Membership::Ban);
    }
}

/// Room Version 3, "Handling redactions"; Room Version 11, "Redactions"; before version 3 by the authorization rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redaction_from_elsewhere_redacts_what_its_sender_may_redact() {
    for (index, version) in VERSIONS.into_iter().enumerate() {
        let database = if index % 2 == 0 { TestDatabase::postgres().await } else { None };
        let scene = Scene::new(version, database.unwrap_or_else(TestDatabase::sqlite)).await;
        let (message, theirs) = scene.message("theirs").await;
        assert_eq!(scene.receive(message).await.unwrap(), Received::Accepted);
        let ours = scene.say("ours").await;
        // 50 is enough for the messages of others.
        for target in [&theirs, &ours] {
            let (redaction, redaction_id) = scene.redaction(target).await;
            assert_eq!(scene.receive(redaction).await.unwrap(), Received::Accepted, "version {version}");
            assert!(scene.is_redacted(target).await, "version {version}");
            assert_eq!(scene.timeline().await.last(), Some(&redaction_id));
        }
        scene.set_topic("secret").await;
        let alice = scene.user("@alice:hs").await;
        let (_, topic) = scene.rooms.state_event(&alice, &scene.room, "m.room.topic", "").await.unwrap();
        let (redaction, _) = scene.redaction(&topic.pdu.event_id).await;
        assert_eq!(scene.receive(redaction).await.unwrap(), Received::Accepted);
        let room = scene.rooms.room(&scene.room).await.unwrap();
        let (summary, ..) = scene.storage.get_summaries(&[room.nr]).await.unwrap().remove(&room.nr).unwrap();
        assert_eq!(summary.topic, None, "version {version}: what the room shows of itself is redacted too");
        let (redaction, _) = scene.redaction(&scene.timeline().await[0]).await;
        let received = scene.receive(redaction).await.unwrap();
        assert!(matches!(received, Received::Accepted | Received::Rejected(_)), "version {version}: {received:?}");
        assert!(!scene.is_redacted(&scene.timeline().await[0]).await, "version {version}: the room stays made");
    }
}

/// It is in the graph, and nobody is shown it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redaction_that_its_sender_may_not_make_is_held_back() {
    for version in VERSIONS {
        let scene = Scene::new(version, TestDatabase::sqlite()).await;
        let alice = scene.user("@alice:hs").await;
        let (_, levels) = scene.rooms.state_event(&alice, &scene.room, "m.room.power_levels", "").await.unwrap();
        let mut levels: Value = serde_json::from_str(levels.pdu.content.get()).unwrap();
        levels["redact"] = json!(75);
        let levels = to_raw_value(&levels).unwrap();
        scene.rooms.send_state(&alice, &scene.room, "m.room.power_levels".into(), "", &levels, None).await.unwrap();
        let ours = scene.say("ours").await;
        let (message, theirs) = scene.message("theirs").await;
        assert_eq!(scene.receive(message).await.unwrap(), Received::Accepted);
        let (redaction, redaction_id) = scene.redaction(&ours).await;
        let received = scene.receive(redaction).await.unwrap();
        if version < 3 {
            assert!(matches!(received, Received::Rejected(_)), "version {version}: {received:?}");
        } else {
            assert_eq!(received, Received::Accepted);
            let next = scene.say("next").await;
            let (_, next) = scene.rooms.event(&alice, &scene.room, &next).await.unwrap();
            assert_eq!(next.pdu.prev_events.iter().collect::<Vec<_>>(), [&redaction_id], "version {version}");
        }
        assert!(!scene.is_redacted(&ours).await, "version {version}");
        assert!(!scene.timeline().await.contains(&redaction_id), "version {version}");
        let shown = scene.rooms.event(&alice, &scene.room, &redaction_id).await;
        assert!(matches!(shown, Err(Error::EventUnknown)), "version {version}");
        // One's own server may redact one's own message, whatever the level.
        let (redaction, _) = scene.redaction(&theirs).await;
        assert_eq!(scene.receive(redaction).await.unwrap(), Received::Accepted);
        assert!(scene.is_redacted(&theirs).await, "version {version}");
    }
}

/// Both are shown once both are here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redaction_that_comes_before_its_target_waits_for_it() {
    for version in VERSIONS {
        for database in TestDatabase::each().await {
            let scene = Scene::new(version, database).await;
            let (message, message_id) = scene.message("theirs").await;
            let (redaction, redaction_id) = scene.redaction(&message_id).await;
            assert_eq!(scene.receive(redaction).await.unwrap(), Received::Accepted);
            assert!(!scene.timeline().await.contains(&redaction_id), "version {version}");
            let ours = scene.say("ours").await;
            assert_eq!(scene.receive(message).await.unwrap(), Received::Accepted);
            assert!(scene.is_redacted(&message_id).await, "version {version}");
            let timeline = scene.timeline().await;
            assert_eq!(timeline[timeline.len() - 3..], [ours, message_id, redaction_id], "version {version}");
            assert_eq!(scene.bodies().await, ["ours"]);
        }
    }
}

/// Events of other servers relate to others as ours do, whichever comes first; that there are two equal ones is for clients to see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_from_elsewhere_relate_to_others() {
    for database in TestDatabase::each().await {
        let scene = Scene::new(11, database).await;
        let (parent, parent_id) = scene.message("parent").await;
        let relates_to = json!({"rel_type": "m.annotation", "event_id": parent_id, "key": "a"});
        let reaction = || scene.craft("m.reaction", None, json!({"m.relates_to": relates_to}), &[], 0);
        let early = reaction().await;
        assert_eq!(scene.receive(early.clone()).await.unwrap(), Received::Accepted);
        assert_eq!(scene.receive(parent).await.unwrap(), Received::Accepted);
        let late = reaction().await;
        assert_eq!(scene.receive(late.clone()).await.unwrap(), Received::Accepted);
        let (early, late) = (scene.id_of(&early), scene.id_of(&late));
        assert_eq!(scene.related(&parent_id).await, [early.clone(), late.clone()]);
        let (redaction, _) = scene.redaction(&early).await;
        assert_eq!(scene.receive(redaction).await.unwrap(), Received::Accepted);
        assert_eq!(scene.related(&parent_id).await, [late]);
        // What its own past or the present forbids does not relate to anything.
        let alice = scene.user("@alice:hs").await;
        let before = scene.tip().await;
        let thread = json!({"body": "x", "m.relates_to": {"rel_type": "m.thread", "event_id": parent_id}});
        let thread = scene.craft("m.room.message", None, thread, &[before], 0).await;
        scene.rooms.ban(&alice, &scene.room, ruma::user_id!("@rem:other"), None).await.unwrap();
        assert!(matches!(scene.receive(thread).await.unwrap(), Received::SoftFailed(_)));
        assert_eq!(scene.related(&parent_id).await.len(), 1);
        assert!(scene.rooms.threads(&alice, &scene.room, None, false, 10).await.unwrap().roots.is_empty());
    }
}

/// MSC3912: also what comes later from other servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_relates_to_a_redacted_event_and_comes_later_is_redacted_as_was_asked() {
    for database in TestDatabase::each().await {
        let scene = Scene::new(11, database).await;
        let alice = scene.user("@alice:hs").await;
        let root = scene.say("root").await;
        let relates_to =
            |rel_type: &str| json!({"body": "x", "m.relates_to": {"rel_type": rel_type, "event_id": root}});
        let late = scene.craft("m.room.message", None, relates_to("m.thread"), &[], 0).await;
        let other = scene.craft("m.room.message", None, relates_to("m.reference"), &[], 0).await;
        let (late_id, other_id) = (scene.id_of(&late), scene.id_of(&other));
        let related = vec!["m.thread".to_owned()];
        scene.rooms.redact_with_related(&alice, &scene.room, &root, "r".into(), Some("why"), related).await.unwrap();
        let follower = tokio::spawn(scene.rooms.clone().follow_redactions(std::future::pending()));
        let mut stream = scene.storage.subscribe();
        assert_eq!(scene.receive(other).await.unwrap(), Received::Accepted);
        assert_eq!(scene.receive(late).await.unwrap(), Received::Accepted);
        let redacted = async {
            loop {
                let published = stream.recv().await.unwrap();
                if let Some(nr) = published.redacted.first() {
                    return *nr;
                }
            }
        };
        let redacted = tokio::time::timeout(std::time::Duration::from_secs(30), redacted).await.unwrap();
        assert_eq!(scene.storage.find_event_nr(&late_id).await.unwrap(), Some(redacted));
        assert!(scene.is_redacted(&late_id).await && !scene.is_redacted(&other_id).await);
        let (_, late) = scene.rooms.event(&alice, &scene.room, &late_id).await.unwrap();
        let by = scene.storage.get_event(late.redacted_by.unwrap()).await.unwrap().unwrap();
        let content: Value = serde_json::from_str(by.pdu.content.get()).unwrap();
        assert_eq!((&by.pdu.sender, content), (&alice.user_id, json!({"reason": "why", "redacts": late_id})));
        follower.abort();
    }
}

/// Several processes look for what redactions have still to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_relates_to_a_redacted_event_is_redacted_once_by_two_that_do_it() {
    for database in TestDatabase::each().await {
        let scene = Scene::new(11, database).await;
        let alice = scene.user("@alice:hs").await;
        let root = scene.say("root").await;
        for n in 0..5 {
            let content = json!({"body": n.to_string(), "m.relates_to": {"rel_type": "m.reference", "event_id": root}});
            let child = scene.craft("m.room.message", None, content, &[], 0).await;
            assert_eq!(scene.receive(child).await.unwrap(), Received::Accepted);
        }
        let related = vec!["*".to_owned()];
        scene.rooms.redact_with_related(&alice, &scene.room, &root, "r".into(), None, related).await.unwrap();
        let looks = tokio::join!(scene.rooms.take_up_redactions(), scene.rooms.take_up_redactions());
        looks.0.unwrap();
        looks.1.unwrap();
        assert!(scene.related(&root).await.is_empty());
        let all = scene.rooms.messages(&alice, &scene.room, page(TimelineDirection::Backward, 100), |_| true);
        let events = all.await.unwrap().events;
        let redactions = events.iter().filter(|event| event.pdu.event_type.to_string() == "m.room.redaction");
        assert_eq!(redactions.count(), 6);
    }
}

fn page(direction: TimelineDirection, limit: u32) -> PageRequest<'static> {
    PageRequest { direction, from: None, to: None, limit }
}

/// Events that come one after the other are written together, in order, with what is wrong among them; what is sent here goes on after them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_is_taken_in_together_and_the_room_goes_on_after_it() {
    for version in [1, 11, 12] {
        for database in TestDatabase::each().await {
            let scene = Scene::new(version, database).await;
            scene.set_topic("first").await;
            let (one, one_id) = scene.message("one").await;
            let prev = [one_id];
            let topic = scene.craft("m.room.topic", Some(""), json!({"topic": "theirs"}), &prev, 0).await;
            let topic_id = scene.id_of(&topic);
            let levels = json!({"users": {"@rem:other": 100}});
            let taken = scene.craft("m.room.power_levels", Some(""), levels, std::slice::from_ref(&topic_id), 0).await;
            let taken_id = scene.id_of(&taken);
            let two =
                scene.craft("m.room.message", None, json!({"body": "two"}), std::slice::from_ref(&topic_id), 0).await;
            let two_id = scene.id_of(&two);
            let three = scene.craft("m.room.message", None, json!({"body": "three"}), &[two_id], 0).await;
            let three_id = scene.id_of(&three);
            let before = scene.storage.published();
            let outcomes = scene.receive_all(vec![one, topic, taken, two, three]).await.unwrap();
            assert_eq!(outcomes.len(), 5);
            for (event_id, outcome) in outcomes {
                let outcome = outcome.unwrap();
                assert_eq!(matches!(outcome, Received::Rejected(_)), event_id == taken_id, "{event_id}: {outcome:?}");
            }
            assert_eq!(scene.storage.published().0 - before.0, 4, "four events have a place");
            assert_eq!(
                (scene.bodies().await, scene.topic().await),
                (vec!["one".into(), "two".into(), "three".into()], "theirs".into())
            );
            // Our next event comes after the last of them alone.
            let ours = scene.say("ours").await;
            let alice = scene.user("@alice:hs").await;
            let (_, event) = scene.rooms.event(&alice, &scene.room, &ours).await.unwrap();
            assert_eq!(event.pdu.prev_events, [three_id]);
        }
    }
}

/// Server-Server API, "Rejection", "Soft failure": what was kept out of the room has nothing after it, and neither has what lies before it,
/// until an event comes that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_after_one_that_was_kept_out_comes_after_what_lies_before_that() {
    for version in VERSIONS {
        let scene = Scene::new(version, TestDatabase::sqlite()).await;
        let levels = json!({"users": {"@rem:other": 100}});
        let taken = scene.craft("m.room.power_levels", Some(""), levels, &[], 0).await;
        let taken_id = scene.id_of(&taken);
        assert!(matches!(scene.receive(taken).await.unwrap(), Received::Rejected(_)));
        let after = scene.craft("m.room.message", None, json!({"body": "after"}), &[taken_id], 0).await;
        let after_id = scene.id_of(&after);
        assert_eq!(scene.receive(after).await.unwrap(), Received::Accepted, "version {version}");
        let ours = scene.say("ours").await;
        let alice = scene.user("@alice:hs").await;
        let (_, event) = scene.rooms.event(&alice, &scene.room, &ours).await.unwrap();
        assert_eq!(event.pdu.prev_events, [after_id], "version {version}");
    }
}

/// Messages that several servers send at the same time, and state after all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_of_messages_need_no_resolution_and_end_in_one_event() {
    let scene = Scene::new(11, TestDatabase::sqlite()).await;
    let fork = scene.tip().await;
    let ours = scene.say("ours").await;
    let mut tips = vec![ours];
    let mut events = Vec::new();
    for body in ["a", "b", "c"] {
        let event = scene.craft("m.room.message", None, json!({"body": body}), std::slice::from_ref(&fork), 0).await;
        tips.push(scene.id_of(&event));
        events.push(event);
    }
    events.push(scene.craft("m.room.topic", Some(""), json!({"topic": "together"}), &tips, 0).await);
    let outcomes = scene.receive_all(events).await.unwrap();
    assert!(outcomes.values().all(|outcome| matches!(outcome, Ok(Received::Accepted))), "{outcomes:?}");
    assert_eq!(scene.topic().await, "together");
    assert_eq!(scene.bodies().await, ["ours", "a", "b", "c"]);
}
