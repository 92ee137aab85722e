//! Keys for end-to-end encryption.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use accounts::{CrossSigningKeys, Error, KeyUpload, Options, Requester};
use ruma::{OwnedUserId, canonical_json::CanonicalJsonValue, user_id};
use serde_json::{Value, json};
use vodozemac::Ed25519SecretKey;

use crate::World;

/// Adds a signature to an object.
fn sign(object: &mut Value, user_id: &str, key_id: &str, key: &Ed25519SecretKey) {
    let mut signed = object.clone();
    signed.as_object_mut().unwrap().remove("signatures");
    let text = CanonicalJsonValue::try_from(signed).unwrap().to_string();
    object["signatures"][user_id][key_id] = json!(key.sign(text.as_bytes()).to_base64());
}

fn device_keys(requester: &Requester, key: &Ed25519SecretKey) -> Value {
    let (user_id, device_id) = (requester.user_id.as_str(), requester.device());
    let mut keys = json!({
        "user_id": user_id, "device_id": device_id, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {
            format!("ed25519:{device_id}"): key.public_key().to_base64(),
            format!("curve25519:{device_id}"): "3C5BFWi2Y8MaVvjM8M22DBmh24PmgR0nPvJOIArzgyI",
        },
    });
    sign(&mut keys, user_id, &format!("ed25519:{device_id}"), key);
    keys
}

fn one_time_keys(requester: &Requester, key: &Ed25519SecretKey, count: usize) -> BTreeMap<String, Value> {
    let signer = format!("ed25519:{}", requester.device());
    (0..count)
        .map(|number| {
            let mut object = json!({"key": format!("key{number}")});
            sign(&mut object, requester.user_id.as_str(), &signer, key);
            (format!("signed_curve25519:AAA{number}"), object)
        })
        .collect()
}

fn cross_signing_key(user_id: &str, usage: &str, key: &Ed25519SecretKey) -> Value {
    let public = key.public_key().to_base64();
    json!({"user_id": user_id, "usage": [usage], "keys": {format!("ed25519:{public}"): public}})
}

async fn query(world: &World, who: &Requester, whom: &OwnedUserId) -> accounts::QueriedKeys {
    world.accounts.query_keys(who, &BTreeMap::from([(whom.clone(), Vec::new())]), Duration::from_secs(1)).await.unwrap()
}

#[tokio::test]
async fn a_device_uploads_its_own_signed_keys_only() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let bob = world.user(user_id!("@bob:one.test")).await;
        let key = Ed25519SecretKey::new();
        let upload = async |keys: Value| {
            world.accounts.upload_keys(&alice, KeyUpload { device_keys: Some(keys), ..KeyUpload::default() }).await
        };
        let good = device_keys(&alice, &key);
        let mut forged = good.clone();
        forged["algorithms"] = json!(["m.other"]);
        assert!(matches!(upload(forged).await, Err(Error::InvalidSignature(_))));
        assert!(matches!(upload(device_keys(&bob, &key)).await, Err(Error::InvalidParam(_))));
        assert!(matches!(upload(json!([])).await, Err(Error::InvalidParam(_))));
        assert!(
            query(&world, &bob, &alice.user_id).await.device_keys[&alice.user_id].is_empty(),
            "nothing was written"
        );

        let before = world.accounts.storage().published();
        assert_eq!(upload(good.clone()).await.unwrap(), BTreeMap::from([("signed_curve25519".to_owned(), 0)]));
        let after = world.accounts.storage().published();
        assert!(after > before, "who shares a room must learn of it");
        upload(good.clone()).await.unwrap();
        assert_eq!(world.accounts.storage().published(), after, "the same keys again change nothing");

        world.accounts.name_device(&alice, alice.device(), Some("desk".to_owned())).await.unwrap();
        let mut shown =
            query(&world, &bob, &alice.user_id).await.device_keys[&alice.user_id].values().next().cloned().unwrap();
        assert_eq!(shown["unsigned"]["device_display_name"], "desk");
        shown.as_object_mut().unwrap().remove("unsigned");
        assert_eq!(shown, good);
    }
}

/// Two sessions with the same one-time key would break forward secrecy.
#[tokio::test]
async fn a_one_time_key_is_claimed_exactly_once_then_the_fallback_key_serves() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let key = Ed25519SecretKey::new();
        let mut fallback = one_time_keys(&alice, &key, 1);
        let fallback = BTreeMap::from([("signed_curve25519:FALL".to_owned(), fallback.pop_first().unwrap().1)]);
        let upload = KeyUpload {
            device_keys: Some(device_keys(&alice, &key)),
            one_time_keys: one_time_keys(&alice, &key, 20),
            fallback_keys: fallback,
        };
        let counts = world.accounts.upload_keys(&alice, upload).await.unwrap();
        assert_eq!(counts["signed_curve25519"], 20);
        let storage = world.accounts.storage();
        let unused = async || storage.list_unused_fallback_keys(alice.user_nr, alice.device()).await.unwrap();
        assert_eq!(unused().await, ["signed_curve25519"]);

        let wanted = BTreeMap::from([(
            alice.user_id.clone(),
            BTreeMap::from([(alice.device_id.clone().unwrap(), "signed_curve25519".to_owned())]),
        )]);
        let tasks: Vec<_> = (0..20)
            .map(|number| {
                let accounts = if number % 2 == 0 { world.accounts.clone() } else { world.other.clone() };
                let (alice, wanted) = (alice.clone(), wanted.clone());
                tokio::spawn(async move { accounts.claim_keys(&alice, wanted).await.unwrap() })
            })
            .collect();
        let mut claimed = BTreeSet::new();
        for task in tasks {
            for device in task.await.unwrap().one_time_keys.into_values().flat_map(BTreeMap::into_values) {
                for name in device.into_keys() {
                    // Several claims at the same moment may pass each other by and take the fallback key.
                    assert!(claimed.insert(name.clone()) || name.ends_with("FALL"), "{name} was claimed twice");
                }
            }
        }
        loop {
            let answer = world.accounts.claim_keys(&alice, wanted.clone()).await.unwrap();
            let name = answer.one_time_keys[&alice.user_id].values().next().unwrap().keys().next().unwrap().clone();
            if name.ends_with("FALL") {
                break;
            }
            assert!(claimed.insert(name.clone()), "{name} was claimed twice");
        }
        claimed.retain(|name| !name.ends_with("FALL"));
        assert_eq!(claimed.len(), 20);
        assert!(unused().await.is_empty(), "the device must learn that its fallback key was used");
        assert_eq!(world.accounts.one_time_key_counts(&alice).await.unwrap()["signed_curve25519"], 0);
    }
}

#[tokio::test]
async fn another_key_under_a_taken_name_is_refused_and_nothing_is_written() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let (key, other) = (Ed25519SecretKey::new(), Ed25519SecretKey::new());
        let upload = async |keys: BTreeMap<String, Value>, identity: Option<&Ed25519SecretKey>| {
            let device_keys = identity.map(|key| device_keys(&alice, key));
            world
                .accounts
                .upload_keys(&alice, KeyUpload { device_keys, one_time_keys: keys, ..KeyUpload::default() })
                .await
        };
        upload(one_time_keys(&alice, &key, 1), Some(&key)).await.unwrap();
        upload(one_time_keys(&alice, &key, 1), None).await.unwrap();
        let unsigned = upload(one_time_keys(&alice, &other, 2), None).await;
        assert!(matches!(unsigned, Err(Error::InvalidSignature(_))), "{unsigned:?}");
        let mut taken = one_time_keys(&alice, &key, 3);
        let last = taken.remove("signed_curve25519:AAA2").unwrap();
        taken.insert("signed_curve25519:AAA0".to_owned(), last);
        assert!(matches!(upload(taken, None).await, Err(Error::InvalidParam(_))));
        assert_eq!(world.accounts.one_time_key_counts(&alice).await.unwrap()["signed_curve25519"], 1);
        let malformed = BTreeMap::from([("noalgorithm".to_owned(), json!({"key": "x"}))]);
        assert!(matches!(upload(malformed, None).await, Err(Error::InvalidParam(_))));
    }
}

#[tokio::test]
async fn cross_signing_keys_hang_together_and_signatures_are_seen_by_whom_they_concern() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let alice = world.user(user_id!("@alice:one.test")).await;
        let bob = world.user(user_id!("@bob:one.test")).await;
        let carol = world.user(user_id!("@carol:one.test")).await;
        let make = |user: &Requester, master: &Ed25519SecretKey, own: &Ed25519SecretKey, others: &Ed25519SecretKey| {
            let id = user.user_id.as_str();
            let signer = format!("ed25519:{}", master.public_key().to_base64());
            let mut keys = [cross_signing_key(id, "self_signing", own), cross_signing_key(id, "user_signing", others)];
            keys.iter_mut().for_each(|key| sign(key, id, &signer, master));
            let [self_signing_key, user_signing_key] = keys.map(Some);
            let master_key = Some(cross_signing_key(id, "master", master));
            CrossSigningKeys { master_key, self_signing_key, user_signing_key }
        };
        let (master, own, others) = (Ed25519SecretKey::new(), Ed25519SecretKey::new(), Ed25519SecretKey::new());
        let keys = make(&alice, &master, &own, &others);

        // 1. The first upload needs no password; changed keys do, the same ones do not.
        assert!(!accounts.needs_confirmation(&alice, &keys).await.unwrap());
        let mut unsigned = keys.clone();
        unsigned.self_signing_key = Some(cross_signing_key(alice.user_id.as_str(), "self_signing", &own));
        let refused = accounts.upload_cross_signing_keys(&alice, &unsigned).await;
        assert!(matches!(refused, Err(Error::InvalidSignature(_))), "{refused:?}");
        accounts.upload_cross_signing_keys(&alice, &keys).await.unwrap();
        assert!(!accounts.needs_confirmation(&alice, &keys).await.unwrap());
        let changed = make(&alice, &Ed25519SecretKey::new(), &own, &others);
        assert!(accounts.needs_confirmation(&alice, &changed).await.unwrap());

        // 2. The user-signing key is nobody else's business.
        let seen = query(&world, &bob, &alice.user_id).await;
        assert!(seen.master_keys.contains_key(&alice.user_id) && seen.self_signing_keys.contains_key(&alice.user_id));
        assert!(seen.user_signing_keys.is_empty());
        assert!(query(&world, &alice, &alice.user_id).await.user_signing_keys.contains_key(&alice.user_id));

        // 3. Alice signs her own device: all see it.
        let device_key = Ed25519SecretKey::new();
        let mut device = device_keys(&alice, &device_key);
        let upload = KeyUpload { device_keys: Some(device.clone()), ..KeyUpload::default() };
        accounts.upload_keys(&alice, upload).await.unwrap();
        let own_id = format!("ed25519:{}", own.public_key().to_base64());
        sign(&mut device, alice.user_id.as_str(), &own_id, &own);
        let signed = |user: &Requester, target: &str, object: &Value| {
            BTreeMap::from([(user.user_id.clone(), BTreeMap::from([(target.to_owned(), object.clone())]))])
        };
        let failures = accounts.upload_signatures(&alice, &signed(&alice, alice.device(), &device)).await.unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        let seen = query(&world, &bob, &alice.user_id).await;
        let shown = seen.device_keys[&alice.user_id].values().next().unwrap();
        assert!(shown["signatures"]["@alice:one.test"][&own_id].is_string());

        // 4. Alice signs Bob's master key: she sees it, Carol does not.
        let bobs = make(&bob, &Ed25519SecretKey::new(), &Ed25519SecretKey::new(), &Ed25519SecretKey::new());
        accounts.upload_cross_signing_keys(&bob, &bobs).await.unwrap();
        let mut bobs_master = bobs.master_key.unwrap();
        let target = bobs_master["keys"].as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        let mut wrong = bobs_master.clone();
        sign(&mut wrong, alice.user_id.as_str(), &own_id, &own);
        let failures = accounts.upload_signatures(&alice, &signed(&bob, &target, &wrong)).await.unwrap();
        assert_eq!(failures[&bob.user_id][&target]["errcode"], "M_INVALID_SIGNATURE");
        let others_id = format!("ed25519:{}", others.public_key().to_base64());
        sign(&mut bobs_master, alice.user_id.as_str(), &others_id, &others);
        let failures = accounts.upload_signatures(&alice, &signed(&bob, &target, &bobs_master)).await.unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        let master = |seen: accounts::QueriedKeys| seen.master_keys[&bob.user_id].clone();
        let to_alice = master(query(&world, &alice, &bob.user_id).await);
        assert!(to_alice["signatures"]["@alice:one.test"][&others_id].is_string());
        let to_carol = master(query(&world, &carol, &bob.user_id).await);
        assert!(to_carol["signatures"]["@alice:one.test"][&others_id].is_null());
    }
}
