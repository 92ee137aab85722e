//! Keys of devices and people, which the server hands on without understanding them.

use ruma::{
    CanonicalJsonObject,
    serde::Base64,
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::{Value, json};
use test_kit::{TestUser, encode, on_each_database};

use crate::sliding_sync::FORMS;

/// The identity keys of a device.
pub(crate) struct Device {
    user: String,
    id: String,
    pair: Ed25519KeyPair,
}

impl Device {
    pub(crate) fn of(user: &TestUser) -> Self {
        Self::named(user, user.device_id())
    }

    pub(crate) fn named(user: &TestUser, id: &str) -> Self {
        let pair = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), id.to_owned()).unwrap();
        Self { user: user.id().to_owned(), id: id.to_owned(), pair }
    }

    pub(crate) fn sign(&self, value: Value) -> Value {
        let mut object: CanonicalJsonObject = serde_json::from_value(value).unwrap();
        sign_json(&self.user, &self.pair, &mut object).unwrap();
        serde_json::to_value(object).unwrap()
    }

    pub(crate) fn keys(&self) -> Value {
        let public: Base64 = Base64::new(self.pair.public_key().to_vec());
        self.sign(json!({
            "user_id": self.user, "device_id": self.id, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": { format!("curve25519:{}", self.id): public.encode(), format!("ed25519:{}", self.id): public.encode() },
        }))
    }
}

on_each_database! {
    // shows: uploadKeys, queryKeys, claimKeys, sync
    async fn a_one_time_key_is_given_once(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let device = Device::of(&alice);
        let one_time = device.sign(json!({ "key": "A".repeat(43) }));
        let fallback = device.sign(json!({ "key": "E".repeat(43), "fallback": true }));
        let body = json!({
            "device_keys": device.keys(), "one_time_keys": { "signed_curve25519:1": &one_time },
            "fallback_keys": { "signed_curve25519:f": &fallback },
        });
        let counts = alice.post("/keys/upload", &body).await.ok();
        assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 1);
        let told = async || {
            let sync = alice.sync(None).await;
            let told = |keys: &Value| {
                (keys["device_one_time_keys_count"]["signed_curve25519"].clone(), keys["device_unused_fallback_key_types"].clone())
            };
            for form in FORMS {
                let answer = form.sync(&alice, None, 0, &json!({ "extensions": { "e2ee": { "enabled": true } } })).await;
                assert_eq!(told(&answer["extensions"]["e2ee"]), told(&sync), "{answer}");
            }
            told(&sync)
        };
        assert_eq!(told().await, (json!(1), json!(["signed_curve25519"])));
        let query = bob.post("/keys/query", &json!({ "device_keys": { alice.id(): [] } })).await.ok();
        let key = &query["device_keys"][alice.id()][alice.device_id()];
        assert_eq!(key["keys"], device.keys()["keys"], "{query}");
        let claim = json!({ "one_time_keys": { alice.id(): { alice.device_id(): "signed_curve25519" } } });
        let first = bob.post("/keys/claim", &claim).await.ok();
        let given = &first["one_time_keys"][alice.id()][alice.device_id()]["signed_curve25519:1"];
        assert_eq!(given, &one_time, "{first}");
        assert_eq!(told().await, (json!(0), json!(["signed_curve25519"])));
        // Then there is the fallback, which is given again and again.
        for _ in 0..2 {
            let later = bob.post("/keys/claim", &claim).await.ok();
            let given = &later["one_time_keys"][alice.id()][alice.device_id()];
            assert_eq!(given, &json!({ "signed_curve25519:f": &fallback }), "{later}");
            assert_eq!(told().await, (json!(0), json!([])));
        }
    }

    /// Whoever forges keys is told what is wrong, and nobody's keys change.
    // shows: uploadKeys, uploadCrossSigningSignatures
    async fn forged_keys_are_refused_with_a_clear_error(server: TestServer) {
        let (alice, eve) = (server.user("alice").await, server.user("eve").await);
        let (device, forger) = (Device::of(&alice), Device::of(&eve));
        let key = device.sign(json!({ "key": "A".repeat(43) }));
        let keys = json!({ "device_keys": device.keys(), "one_time_keys": { "signed_curve25519:1": key } });
        alice.post("/keys/upload", &keys).await.ok();
        eve.post("/keys/upload", &json!({ "device_keys": forger.keys() })).await.ok();
        let query = json!({ "device_keys": { alice.id(): [], eve.id(): [] } });
        let before = eve.post("/keys/query", &query).await.ok();
        let mut as_alice = forger.keys();
        as_alice["user_id"] = json!(alice.id());
        let mut unknown = forger.keys();
        unknown["algorithms"] = json!(["m.rot13"]);
        let mut altered = forger.keys();
        altered["dehydrated"] = json!(true);
        let own = |key: Value| json!({ "one_time_keys": { "signed_curve25519:1": key } });
        let nested = (0..120).fold(json!(1), |inner, _| json!([inner]));
        for (upload, code) in [
            (json!({ "device_keys": device.keys() }), "M_INVALID_PARAM"),
            (json!({ "device_keys": forger.sign(as_alice) }), "M_INVALID_PARAM"),
            (json!({ "device_keys": forger.sign(unknown) }), "M_INVALID_PARAM"),
            (json!({ "device_keys": altered }), "M_INVALID_SIGNATURE"),
            (json!({ "device_keys": nested }), "M_BAD_JSON"),
            (own(device.sign(json!({ "key": "A".repeat(43) }))), "M_INVALID_SIGNATURE"),
            (own(forger.sign(json!({ "key": "no key" }))), "M_INVALID_PARAM"),
            (json!({ "one_time_keys": { "rot13:1": "A".repeat(43) } }), "M_INVALID_PARAM"),
            (json!({ "fallback_keys": { "rot13:1": "A".repeat(43) } }), "M_INVALID_PARAM"),
        ] {
            eve.post("/keys/upload", &upload).await.is_error(400, code);
        }
        // Another key under the name of one that is there.
        let other = own(device.sign(json!({ "key": "E".repeat(43) })));
        alice.post("/keys/upload", &other).await.is_error(400, "M_INVALID_PARAM");
        alice.post("/keys/upload", &keys).await.ok();
        // Signatures on keys that are not the requester's to sign.
        let signed = json!({ alice.id(): { alice.device_id(): forger.sign(device.keys()) } });
        let answer = eve.post("/keys/signatures/upload", &signed).await.ok();
        assert_eq!(answer["failures"][alice.id()][alice.device_id()]["errcode"], "M_NOT_FOUND", "{answer}");
        assert_eq!(eve.post("/keys/query", &query).await.ok(), before);
    }

    // shows: getKeysChanges, sync
    async fn who_shares_a_room_is_told_of_new_devices(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = bob.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        alice.post("/keys/upload", &json!({ "device_keys": Device::of(&alice).keys() })).await.ok();
        let sync = bob.sync_waiting(Some(&since), 30_000).await;
        assert_eq!(sync["device_lists"]["changed"], json!([alice.id()]), "{sync}");
        let to = sync["next_batch"].as_str().unwrap();
        let path = format!("/keys/changes?from={}&to={}", encode(&since), encode(to));
        assert_eq!(bob.get(&path).await.ok()["changed"], json!([alice.id()]));
    }

    /// Who is not there any more must not be sent keys to, and their devices need not be followed.
    // shows: getKeysChanges
    async fn who_shares_no_encrypted_room_any_more_has_left(server: TestServer) {
        let alice = server.user("alice").await;
        let (bob, carol, dave, erin) =
            (server.user("bob").await, server.user("carol").await, server.user("dave").await, server.user("erin").await);
        let encryption = json!([{
            "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" },
        }]);
        let encrypted = json!({ "preset": "public_chat", "initial_state": encryption });
        let (one, two) = (alice.create_room_with(&encrypted).await, alice.create_room_with(&encrypted).await);
        let plain = alice.create_public_room().await;
        for (user, rooms) in
            [(&bob, vec![&one]), (&carol, vec![&one, &two]), (&dave, vec![&one, &plain]), (&erin, vec![&plain])]
        {
            for room in rooms {
                user.join(room).await;
            }
        }
        let left = async |from: &str, to: &str| {
            let path = format!("/keys/changes?from={}&to={}", encode(from), encode(to));
            alice.get(&path).await.ok()["left"].clone()
        };
        let now = async || alice.sync(None).await["next_batch"].as_str().unwrap().to_owned();
        let start = now().await;
        // 1. They leave: bob for good, carol one of two rooms, dave the encrypted one, erin one that never was.
        bob.leave(&one).await;
        carol.leave(&one).await;
        dave.leave(&one).await;
        erin.leave(&plain).await;
        let after_leaving = now().await;
        assert_eq!(left(&start, &after_leaving).await, json!([bob.id(), dave.id()]));
        assert_eq!(left(&after_leaving, &now().await).await, json!([]), "it is told once");
        // 2. Coming and going between two answers is nothing that anybody has seen.
        erin.join(&two).await;
        erin.leave(&two).await;
        assert_eq!(left(&after_leaving, &now().await).await, json!([]));
        // 3. Who is back has not left.
        let before_return = now().await;
        bob.join(&two).await;
        bob.leave(&two).await;
        bob.join(&two).await;
        assert_eq!(left(&start, &now().await).await, json!([dave.id()]));
        let before_alice = now().await;
        // 4. The user leaves: all who were there then, and not who had gone before.
        alice.leave(&two).await;
        let mut gone = vec![bob.id(), carol.id()];
        gone.sort_unstable();
        assert_eq!(left(&before_alice, &now().await).await, json!(gone));
        assert_eq!(left(&before_return, &now().await).await, json!([carol.id()]), "bob was not there at the first token");
    }

    // shows: uploadCrossSigningKeys, uploadCrossSigningSignatures, queryKeys
    async fn a_person_vouches_for_a_device(server: TestServer) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        alice.post("/keys/upload", &json!({ "device_keys": Device::of(&alice).keys() })).await.ok();
        let generated = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "x".to_owned()).unwrap();
        let public: Base64 = Base64::new(generated.public_key().to_vec());
        let public = public.encode();
        let key = json!({
            "user_id": alice.id(), "usage": ["master"], "keys": { format!("ed25519:{public}"): public },
        });
        let upload = json!({ "master_key": key });
        // The first keys need no further proof, nor do the same again (Client-Server API, "POST /keys/device_signing/upload").
        for _ in 0..2 {
            alice.post("/keys/device_signing/upload", &upload).await.ok();
        }
        let query = bob.post("/keys/query", &json!({ "device_keys": { alice.id(): [] } })).await.ok();
        assert_eq!(query["master_keys"][alice.id()]["keys"], key["keys"], "{query}");
        // Others do.
        let generated = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "x".to_owned()).unwrap();
        let other: Base64 = Base64::new(generated.public_key().to_vec());
        let other = json!({
            "user_id": alice.id(), "usage": ["master"], "keys": { format!("ed25519:{}", other.encode()): other.encode() },
        });
        let mut replacing = json!({ "master_key": other });
        let asked = alice.post("/keys/device_signing/upload", &replacing).await;
        assert_eq!(asked.status, 401, "{asked}");
        let session = asked.json()["session"].clone();
        let auth = |password: &str| {
            let identifier = json!({ "type": "m.id.user", "user": alice.localpart() });
            json!({ "type": "m.login.password", "identifier": identifier, "password": password, "session": session })
        };
        replacing["auth"] = auth("guessed");
        assert_eq!(alice.post("/keys/device_signing/upload", &replacing).await.status, 401);
        let query = async || bob.post("/keys/query", &json!({ "device_keys": { alice.id(): [] } })).await.ok();
        assert_eq!(query().await["master_keys"][alice.id()]["keys"], key["keys"], "nothing was replaced");
        replacing["auth"] = auth(&format!("{}'s password", alice.localpart()));
        alice.post("/keys/device_signing/upload", &replacing).await.ok();
        assert_eq!(query().await["master_keys"][alice.id()]["keys"], other["keys"]);
        let wrong = json!({ alice.id(): { "NOBODY": key } });
        let answer = alice.post("/keys/signatures/upload", &wrong).await.ok();
        assert!(answer["failures"][alice.id()]["NOBODY"]["errcode"].is_string(), "{answer}");
    }
}
