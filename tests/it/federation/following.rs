//! Server-Server API, "Device Management": other servers follow the devices of our users change by change.

use serde_json::{Value, json};
use test_kit::{TestDatabase, TestFederation, TestUser, encode, eventually};

use super::{
    devices::CrossSigning,
    sending::{BOB, World},
};
use crate::keys::Device;

impl World {
    /// What the peer was told of a user's devices.
    fn updates(&self, user: &TestUser) -> Vec<Value> {
        let edus = self.inbox.edus("m.device_list_update");
        edus.into_iter().filter(|edu| edu["user_id"] == user.id()).collect()
    }

    /// By which number the peer knows the list if it asks for it.
    async fn number_of_list(&self, user: &TestUser) -> Value {
        let path = format!("/_matrix/federation/v1/user/devices/{}", encode(user.id()));
        self.peer.ask(self.http(), "hs1", "GET", &path, &Value::Null).await.ok()["stream_id"].clone()
    }
}

/// Who has the state before a change needs nothing but the change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_of_a_device_follows_on_the_one_before() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        let alice = &world.alice;
        world.shared_room().await;
        let first = Device::of(alice);
        alice.post("/keys/upload", &json!({"device_keys": first.keys()})).await.ok();
        eventually!(world.updates(alice).len() == 1);
        // It may know the list as it is before it is told the next change.
        assert_eq!(world.number_of_list(alice).await, world.updates(alice)[0]["stream_id"]);
        let again = alice.log_in_again().await;
        let second = Device::of(&again);
        again.post("/keys/upload", &json!({"device_keys": second.keys()})).await.ok();
        eventually!(world.updates(alice).len() == 2);
        let path = format!("/devices/{}", encode(alice.device_id()));
        alice.put(&path, &json!({"display_name": "of no concern to others"})).await.ok();
        eventually!(world.updates(alice).len() == 3);
        // Keys by which alice signs are no device.
        let own = CrossSigning::upload(alice).await;
        eventually!(world.inbox.edus("m.signing_key_update").len() == 1);
        let signed = own.sign_own(alice, second.keys());
        let body = json!({alice.id(): {again.device_id(): signed}});
        assert_eq!(alice.post("/keys/signatures/upload", &body).await.ok()["failures"], json!({}));
        eventually!(world.updates(alice).len() == 4);
        again.post("/logout", &json!({})).await.ok();
        eventually!(world.updates(alice).len() == 5);
        let updates = world.updates(alice);
        assert!(updates[0].get("prev_id").is_none(), "nothing is before it");
        for pair in updates.windows(2) {
            assert_eq!(pair[1]["prev_id"], json!([pair[0]["stream_id"]]), "{updates:?}");
        }
        let devices: Vec<&Value> = updates.iter().map(|update| &update["device_id"]).collect();
        let [one, two] = [alice.device_id(), again.device_id()];
        assert_eq!(devices, [one, two, one, two, two]);
        assert_eq!(updates[3]["keys"]["signatures"], signed["signatures"]);
        assert_eq!(updates[4]["deleted"], true);
        assert!(!updates.iter().any(|update| update.to_string().contains("of no concern")));
        assert_eq!(world.number_of_list(alice).await, updates[4]["stream_id"]);
        assert_eq!(world.inbox.edus("m.signing_key_update").len(), 1, "they changed once");
    }
}

/// It would ask for all devices of each of them, and has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_into_a_room_is_no_news_to_servers_that_follow_them() {
    let world = World::new().await;
    let rooms = [world.shared_room().await, world.shared_room().await];
    let carol = world.federation.user("hs1", "carol").await;
    carol.post("/keys/upload", &json!({"device_keys": Device::of(&carol).keys()})).await.ok();
    for room in &rooms {
        carol.join(room).await;
        carol.send_text(room, "here I am").await;
        eventually!(world.inbox.texts(room) == ["here I am"]);
    }
    assert_eq!(world.updates(&carol).len(), 1);
}

/// A server that cannot ask has nothing but what it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_ours_that_follows_asks_for_nothing() {
    let federation = TestFederation::of(2).await;
    let (alice, bob) = (federation.user("hs1", "alice").await, federation.user("hs2", "bob").await);
    let room = alice.create_public_room().await;
    bob.post(&format!("/_matrix/client/v3/join/{}?via=hs1", encode(&room)), &json!({})).await.ok();
    eventually!(alice.sync(None).await["rooms"]["join"][&room]["summary"]["m.joined_member_count"] == 2);
    // Answers when all members are known there: devices of others are not followed.
    bob.get(&format!("/rooms/{}/joined_members", encode(&room))).await.ok();
    alice.post("/keys/upload", &json!({"device_keys": Device::of(&alice).keys()})).await.ok();
    let devices = async || {
        let answer = bob.post("/keys/query", &json!({"device_keys": {alice.id(): []}})).await.ok();
        let devices = answer["device_keys"][alice.id()].as_object().cloned().unwrap_or_default();
        (devices.len(), answer["master_keys"][alice.id()].is_object())
    };
    eventually!(devices().await == (1, false));
    federation.cut_way("hs2", "hs1");
    let again = alice.log_in_again().await;
    again.post("/keys/upload", &json!({"device_keys": Device::of(&again).keys()})).await.ok();
    eventually!(devices().await == (2, false));
    CrossSigning::upload(&alice).await;
    eventually!(devices().await == (2, true));
    alice.post("/logout", &json!({})).await.ok();
    eventually!(devices().await == (1, true));
}

/// Client-Server API, "Cross-signing": what somebody signed of others is for their own devices to know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_the_key_of_another_one_learns_of_it_on_their_other_devices() {
    for database in TestDatabase::each().await {
        let world = World::on(database).await;
        let (alice, carol) = (&world.alice, world.federation.user("hs1", "carol").await);
        let dave = world.federation.user("hs1", "dave").await;
        let room = world.shared_room().await;
        for user in [&carol, &dave] {
            user.join(&room).await;
        }
        let (own, hers) = (CrossSigning::upload(alice).await, CrossSigning::upload(&carol).await);
        let other_device = alice.log_in_again().await;
        let token = async |user: &TestUser| user.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let since = [token(&other_device).await, token(&carol).await, token(&dave).await];
        let told = world.inbox.edus("m.signing_key_update").len();
        let body = json!({carol.id(): {hers.master_key(): own.sign(alice, hers.master(&carol))}});
        assert_eq!(alice.post("/keys/signatures/upload", &body).await.ok()["failures"], json!({}));
        let changed = other_device.sync_waiting(Some(&since[0]), 10_000).await["device_lists"]["changed"].clone();
        assert_eq!(changed, json!([carol.id()]));
        let path = format!("/keys/changes?from={}&to={}", since[0], token(&other_device).await);
        assert_eq!(other_device.get(&path).await.ok()["changed"], json!([carol.id()]));
        for (user, since) in [(&carol, &since[1]), (&dave, &since[2])] {
            assert_eq!(user.sync(Some(since)).await["device_lists"], Value::Null, "nobody else's business");
        }
        alice.send_text(&room, "told").await;
        eventually!(world.inbox.texts(&room) == ["told"]);
        assert_eq!(world.inbox.edus("m.signing_key_update").len(), told, "nobody else's business");
        assert!(world.inbox.edus("m.signing_key_update").iter().all(|edu| edu["user_id"] != BOB));
    }
}
