//! A real Synapse as the other server. These run in the profile `synapse` only: `./tests/run synapse`.

use serde_json::json;
use test_kit::{ServerOptions, Synapse, TestDatabase, TestFederation, encode, eventually};

use super::scenario::{SHORT, Scene, Side, WHOLE, agree, join};

/// One of ours and a Synapse, that find each other by their addresses.
struct World {
    federation: TestFederation,
    ours: String,
    synapse: Synapse,
}

impl World {
    /// Ours is on SQLite, or on PostgreSQL if there is one for tests.
    async fn on(postgres: bool) -> Self {
        let mut federation = TestFederation::empty();
        let synapse = Synapse::start(federation.authority()).await;
        let database = if postgres { TestDatabase::postgres().await } else { None };
        let database = database.unwrap_or_else(TestDatabase::sqlite);
        let ours = federation.add_by_address(database, ServerOptions::default()).await;
        Self { federation, ours, synapse }
    }

    /// Rooms that are made on Synapse.
    fn scene(&self, version: u8) -> Scene {
        let http = self.federation.server(&self.ours).http().clone();
        Scene {
            version,
            maker: Side { name: self.synapse.name().to_string(), http: self.synapse.http().clone() },
            guest: Side { name: self.ours.clone(), http },
        }
    }
}

/// Each fetches the other one's keys, and finds what was asked signed by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_answer_what_the_other_asks() {
    let world = World::on(false).await;
    let scene = world.scene(12);
    let turned = Scene { version: 12, maker: scene.guest.clone(), guest: scene.maker.clone() };
    for scene in [&scene, &turned] {
        let (asked, asker) = (scene.maker.user("asked").await, scene.guest.user("asker").await);
        let body = json!({"room_alias_name": "hall", "preset": "public_chat", "room_version": "12"});
        let room = asked.create_room_with(&body).await;
        let path = format!("/directory/room/{}", encode(&format!("#hall:{}", scene.maker.name)));
        let found = asker.get(&path).await.ok();
        assert_eq!((&found["room_id"], &found["servers"]), (&json!(room), &json!([scene.maker.name])));
        let path = format!("/directory/room/{}", encode(&format!("#none:{}", scene.maker.name)));
        asker.get(&path).await.is_error(404, "M_NOT_FOUND");
    }
    // A server's version needs no signature; a profile does.
    let alice = scene.guest.user("alice").await;
    let path = format!("/profile/{}/displayname", encode(alice.id()));
    alice.put(&path, &json!({"displayname": "Alice"})).await.ok();
    let profile = scene.maker.user("asker").await.get(&format!("/profile/{}", encode(alice.id()))).await.ok();
    assert_eq!(profile, json!({"displayname": "Alice"}));
    let nobody = format!("/profile/{}", encode(&format!("@nobody:{}", scene.guest.name)));
    scene.maker.user("asker").await.get(&nobody).await.is_error(404, "M_NOT_FOUND");
}

/// The whole scenario with rooms of this version.
async fn whole(version: u8, postgres: bool) {
    let world = World::on(postgres).await;
    world.scene(version).play_both_ways(WHOLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_share_rooms_of_version_12() {
    whole(12, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_share_rooms_of_version_11() {
    whole(11, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_share_rooms_of_version_10() {
    whole(10, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_share_rooms_of_version_1() {
    whole(1, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_talk_in_rooms_of_versions_2_to_9() {
    let world = World::on(false).await;
    for version in 2..=9 {
        world.scene(version).play_both_ways(SHORT).await;
    }
}

/// Two names of ours are two servers to Synapse, also in one room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_of_two_names_of_ours_share_rooms() {
    let mut federation = TestFederation::empty();
    let synapse = Synapse::start(federation.authority()).await;
    let names = federation.add_by_addresses(2, TestDatabase::sqlite(), ServerOptions::default()).await;
    let maker = Side { name: synapse.name().to_string(), http: synapse.http().clone() };
    let [first, second] = [0, 1].map(|index| Side::of(&names[index], federation.server(&names[0]).http()));
    for (guest, steps) in [(&first, SHORT), (&second, WHOLE)] {
        Scene { version: 12, maker: maker.clone(), guest: guest.clone() }.play_both_ways(steps).await;
    }
    let users = [maker.user("maker").await, first.user("first").await, second.user("second").await];
    let room = users[0].create_room_with(&json!({"room_alias_name": "of_all", "preset": "public_chat"})).await;
    let mut said = Vec::new();
    for user in &users {
        assert_eq!(join(user, &format!("#of_all:{}", maker.name)).await, room);
        said.push(format!("from {}", user.id()));
    }
    for (user, text) in users.iter().zip(&said) {
        user.send_text(&room, text).await;
    }
    for user in &users {
        eventually!({
            let mut texts = user.texts(&room).await;
            texts.sort();
            let mut said = said.clone();
            said.sort();
            texts == said
        });
    }
    agree(&room, &users[0], &users[1]).await;
}

/// What is said while one of them is away comes when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_survives_a_restart_of_either_side() {
    let mut world = World::on(false).await;
    let (alice, bob) = (world.scene(12).maker.user("alice").await, world.scene(12).guest.user("bob").await);
    let body = json!({"room_alias_name": "hall", "preset": "public_chat"});
    let room = alice.create_room_with(&body).await;
    bob.post(&format!("/join/{}", encode(&format!("#hall:{}", world.synapse.name()))), &json!({})).await.ok();
    let mut expected: Vec<String> = Vec::new();
    let mut bob = bob;
    for round in 0..3 {
        for text in [format!("alice before {round}"), format!("bob before {round}")] {
            if text.starts_with("alice") { &alice } else { &bob }.send_text(&room, &text).await;
            expected.push(text);
        }
        world.synapse.stop();
        for number in 0..5 {
            expected.push(format!("bob while Synapse is away {round} {number}"));
            bob.send_text(&room, expected.last().unwrap()).await;
        }
        world.synapse.go_on().await;
        let ours = world.ours.clone();
        world.federation.server_mut(&ours).stop().await;
        for number in 0..5 {
            expected.push(format!("alice while we are away {round} {number}"));
            alice.send_text(&room, expected.last().unwrap()).await;
        }
        world.federation.server_mut(&ours).go_on().await;
        bob = bob.at(world.federation.server(&ours).http());
        expected.push(format!("bob is back {round}"));
        bob.send_text(&room, expected.last().unwrap()).await;
        for user in [&alice, &bob] {
            for tries in 0.. {
                let texts = user.texts(&room).await;
                let missing: Vec<&String> = expected.iter().filter(|text| !texts.contains(text)).collect();
                if missing.is_empty() {
                    break;
                }
                assert!(tries < 60, "{} does not see {missing:?} in round {round}", user.id());
                // Synapse asks again who was away when there is something new for them; else a minute later.
                alice.send_text(&room, "are you there?").await;
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        }
    }
    agree(&room, &alice, &bob).await;
}

/// It asks for all devices of a user when it lacks a change, and must not lack one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synapse_follows_the_devices_of_our_users_without_asking() {
    let world = World::on(true).await;
    let (bob, alice) = (world.scene(11).maker.user("bob").await, world.scene(11).guest.user("alice").await);
    let body = json!({"room_alias_name": "hall", "preset": "public_chat"});
    let room = bob.create_room_with(&body).await;
    alice.post(&format!("/join/{}", encode(&format!("#hall:{}", world.synapse.name()))), &json!({})).await.ok();
    let mut since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
    // Bob's server has taken in the next change.
    let mut told = async || {
        for _ in 0..30 {
            let sync = bob.sync_waiting(Some(&since), 1_000).await;
            sync["next_batch"].as_str().unwrap().clone_into(&mut since);
            let changed = sync["device_lists"]["changed"].as_array().cloned().unwrap_or_default();
            if changed.contains(&json!(alice.id())) {
                return;
            }
        }
        panic!("bob is not told that alice's devices changed");
    };
    let devices = async || -> usize {
        let answer = bob.post("/keys/query", &json!({"device_keys": {alice.id(): []}})).await.ok();
        answer["device_keys"][alice.id()].as_object().map_or(0, serde_json::Map::len)
    };
    let upload = async |user: &test_kit::TestUser| {
        let body = json!({"device_keys": crate::keys::Device::of(user).keys()});
        user.post("/keys/upload", &body).await.ok();
    };
    alice.send_text(&room, "here").await;
    eventually!(bob.texts(&room).await.contains(&"here".to_owned()));
    upload(&alice).await;
    told().await;
    assert_eq!(devices().await, 1);
    let path = "/user/devices/";
    let asked = world.synapse.times_asked(path);
    assert!(asked > 0, "it asks for what it does not know");
    let second = alice.log_in_again().await;
    upload(&second).await;
    told().await;
    assert_eq!(devices().await, 2);
    second.post("/logout", &json!({})).await.ok();
    told().await;
    assert_eq!(devices().await, 1);
    upload(&alice.log_in_again().await).await;
    told().await;
    assert_eq!(devices().await, 2);
    assert_eq!(world.synapse.times_asked(path), asked);
}

/// Synapse leaves members out, and tells them when it is asked for the state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_of_a_large_room_of_synapse_come_after_the_join() {
    for postgres in [false, true] {
        let world = World::on(postgres).await;
        let scene = world.scene(11);
        let (alice, bob) = (scene.maker.user("alice").await, scene.guest.user("bob").await);
        let body = json!({"room_alias_name": "hall", "preset": "public_chat", "room_version": "11", "name": "Hall"});
        let room = alice.create_room_with(&body).await;
        for number in 0..150 {
            scene.maker.user(&format!("u{number}")).await.join(&room).await;
        }
        bob.post(&format!("/join/{}", encode(&format!("#hall:{}", world.synapse.name()))), &json!({})).await.ok();
        bob.send_text(&room, "bob is here").await;
        alice.send_text(&room, "alice was here").await;
        for user in [&alice, &bob] {
            test_kit::eventually!({
                let texts = user.texts(&room).await;
                ["bob is here", "alice was here"].iter().all(|text| texts.iter().any(|told| told == text))
            });
        }
        let members = bob.get(&format!("/rooms/{}/joined_members", encode(&room))).await.ok();
        assert_eq!(members["joined"].as_object().unwrap().len(), 152);
        agree(&room, &alice, &bob).await;
        let storage = world.federation.server(&world.ours).storage().await;
        let nr = storage.find_room(&ruma::RoomId::parse(&*room).unwrap()).await.unwrap().unwrap().nr;
        assert_eq!(storage.wrong_projections(nr).await.unwrap(), Vec::<String>::new());
        let all = (model::Position(0), model::Position(i64::MAX));
        assert!(storage.has_become_whole(nr, all.0, all.1).await.unwrap(), "Synapse told all members at once");
        storage.close().await;
    }
}
