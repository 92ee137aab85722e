//! Keys for end-to-end encryption.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use accounts::{CrossSigningKeys, Error, KeyUpload, NewDehydratedDevice, Options, Requester, SessionRequest};
use ruma::{OwnedUserId, canonical_json::CanonicalJsonValue, user_id};
use serde_json::{Value, json, value::RawValue};
use storage::{DeviceKeyUpload, DeviceKeysOutcome, KeyRow};
use vodozemac::{Curve25519PublicKey, Ed25519SecretKey};

use crate::World;

/// No other server is asked.
const PATIENCE: Duration = Duration::from_secs(1);

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
            let public = Curve25519PublicKey::from_bytes([number as u8; 32]);
            let mut object = json!({"key": public.to_base64()});
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
    world.accounts.query_keys(who, &BTreeMap::from([(whom.clone(), Vec::new())]), PATIENCE).await.unwrap()
}

/// The keys of the one device of a user.
fn only_device(keys: &accounts::QueriedKeys, user_id: &OwnedUserId) -> Value {
    serde_json::from_str(keys.device_keys[user_id].values().next().unwrap().get()).unwrap()
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
        forged["algorithms"] = json!(["m.megolm.v1.aes-sha2"]);
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
        let mut shown = only_device(&query(&world, &bob, &alice.user_id).await, &alice.user_id);
        assert_eq!(shown["unsigned"]["device_display_name"], "desk");
        shown.as_object_mut().unwrap().remove("unsigned");
        assert_eq!(shown, good);
    }
}

/// The names of the keys that are claimed of the user's device.
async fn claim(world: &World, whom: &Requester) -> Vec<String> {
    let devices = BTreeMap::from([(whom.device_id.clone().unwrap(), "signed_curve25519".to_owned())]);
    let wanted = BTreeMap::from([(whom.user_id.clone(), devices)]);
    let claimed = world.accounts.claim_keys(whom, wanted, PATIENCE).await.unwrap().one_time_keys;
    claimed.into_values().flat_map(BTreeMap::into_values).flat_map(BTreeMap::into_keys).collect()
}

/// A device that got no answer uploads the same keys again, and meanwhile somebody may have one.
#[tokio::test]
async fn a_key_that_was_claimed_is_not_given_again_though_it_is_uploaded_again() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let key = Ed25519SecretKey::new();
        let upload = async || {
            let upload = KeyUpload {
                device_keys: Some(device_keys(&alice, &key)),
                one_time_keys: one_time_keys(&alice, &key, 2),
                ..KeyUpload::default()
            };
            world.accounts.upload_keys(&alice, upload).await.unwrap()["signed_curve25519"]
        };
        assert_eq!(upload().await, 2);
        assert_eq!(claim(&world, &alice).await, ["signed_curve25519:AAA0"]);
        assert_eq!(upload().await, 1);
        assert_eq!(claim(&world, &alice).await, ["signed_curve25519:AAA1"]);
        assert_eq!(upload().await, 0);
        assert!(claim(&world, &alice).await.is_empty());
    }
}

/// What the old identity signed is refused by whoever claims it.
#[tokio::test]
async fn with_another_identity_a_device_begins_with_no_keys() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let upload = async |key: &Ed25519SecretKey| {
            let (device_keys, one_time_keys) = (Some(device_keys(&alice, key)), one_time_keys(&alice, key, 3));
            let upload = KeyUpload { device_keys, one_time_keys, ..KeyUpload::default() };
            world.accounts.upload_keys(&alice, upload).await.unwrap()["signed_curve25519"]
        };
        let (first, second) = (Ed25519SecretKey::new(), Ed25519SecretKey::new());
        assert_eq!(upload(&first).await, 3);
        assert_eq!(upload(&second).await, 3, "other keys under the names of before");
        let claimed = world.accounts.storage().get_device_keys(alice.user_nr, alice.device()).await.unwrap().unwrap();
        assert!(claimed.contains(&second.public_key().to_base64()));
    }
}

/// It would be shown to others, and be written to, with nobody there.
#[tokio::test]
async fn a_device_that_was_deleted_gets_no_keys() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        world.accounts.log_out(&alice).await.unwrap();
        let keys = device_keys(&alice, &Ed25519SecretKey::new());
        let upload = KeyUpload { device_keys: Some(keys), ..KeyUpload::default() };
        let refused = world.accounts.upload_keys(&alice, upload).await;
        assert!(matches!(refused, Err(Error::UnknownToken { .. })), "{refused:?}");
        assert!(query(&world, &alice, &alice.user_id).await.device_keys[&alice.user_id].is_empty());
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
        let counts = async || storage.get_key_counts(alice.user_nr, alice.device()).await.unwrap();
        let unused = async || counts().await.unused_fallback.clone();
        assert_eq!(unused().await, ["signed_curve25519"]);

        let wanted = BTreeMap::from([(
            alice.user_id.clone(),
            BTreeMap::from([(alice.device_id.clone().unwrap(), "signed_curve25519".to_owned())]),
        )]);
        let tasks: Vec<_> = (0..20)
            .map(|number| {
                let accounts = if number % 2 == 0 { world.accounts.clone() } else { world.other.clone() };
                let (alice, wanted) = (alice.clone(), wanted.clone());
                tokio::spawn(async move { accounts.claim_keys(&alice, wanted, PATIENCE).await.unwrap() })
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
            let answer = world.accounts.claim_keys(&alice, wanted.clone(), PATIENCE).await.unwrap();
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
        for claimed in [0, 1] {
            // matrix-rust-sdk tells its users by these words.
            let refused = upload(taken.clone(), None).await;
            let Err(Error::InvalidParam(message)) = &refused else { panic!("{refused:?}") };
            let start = "One time key signed_curve25519:AAA0 already exists. Old key: {\"key\":";
            assert!(message.starts_with(start) && message.contains("; new key: {\"key\":"), "{message}");
            assert_eq!(world.accounts.one_time_key_counts(&alice).await.unwrap()["signed_curve25519"], 1 - claimed);
            // The same when somebody has it.
            assert_eq!(claim(&world, &alice).await, if claimed == 0 { vec!["signed_curve25519:AAA0"] } else { vec![] });
        }
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
        let mut unsigned = keys.clone();
        unsigned.self_signing_key = Some(cross_signing_key(alice.user_id.as_str(), "self_signing", &own));
        let refused = accounts.upload_exempt_cross_signing_keys(&alice, &unsigned).await;
        assert!(matches!(refused, Err(Error::InvalidSignature(_))), "{refused:?}");
        for _ in 0..2 {
            assert!(accounts.upload_exempt_cross_signing_keys(&alice, &keys).await.unwrap());
        }
        let changed = make(&alice, &Ed25519SecretKey::new(), &own, &others);
        assert!(!accounts.upload_exempt_cross_signing_keys(&alice, &changed).await.unwrap());
        let shown = query(&world, &alice, &alice.user_id).await.master_keys[&alice.user_id].clone();
        assert_eq!(Some(shown), keys.master_key);

        let mut without_signatures = keys.clone();
        without_signatures.master_key.as_mut().unwrap()["signatures"] = json!({"@eve:one.test": {"ed25519:X": "x"}});
        assert!(accounts.upload_exempt_cross_signing_keys(&alice, &without_signatures).await.unwrap());
        let shown = query(&world, &alice, &alice.user_id).await.master_keys[&alice.user_id].clone();
        assert_eq!(Some(shown), keys.master_key, "without a password nothing is changed");

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
        let shown = only_device(&seen, &alice.user_id);
        assert!(shown["signatures"]["@alice:one.test"][&own_id].is_string());
        // What is signed stays so when the device says the same with another signature, and not when it says something else.
        let mut again = device_keys(&alice, &device_key);
        again["signatures"]["@alice:one.test"]["ed25519:OTHER"] = json!("A".repeat(86));
        let mut other = again.clone();
        other["algorithms"] = json!(["m.megolm.v1.aes-sha2"]);
        sign(&mut other, alice.user_id.as_str(), &format!("ed25519:{}", alice.device()), &device_key);
        for (keys, is_signed) in [(again, true), (other, false)] {
            let upload = KeyUpload { device_keys: Some(keys), ..KeyUpload::default() };
            accounts.upload_keys(&alice, upload).await.unwrap();
            let shown = only_device(&query(&world, &bob, &alice.user_id).await, &alice.user_id);
            assert_eq!(shown["signatures"]["@alice:one.test"][&own_id].is_string(), is_signed, "{shown}");
        }

        // Her device signs her master key, as a device that is not there cannot.
        let master_id = master.public_key().to_base64();
        let device_id = format!("ed25519:{}", alice.device());
        let mut by_device = keys.master_key.clone().unwrap();
        sign(&mut by_device, alice.user_id.as_str(), "ed25519:GONE", &device_key);
        let failures = accounts.upload_signatures(&alice, &signed(&alice, &master_id, &by_device)).await.unwrap();
        assert_eq!(failures[&alice.user_id][&master_id]["errcode"], "M_INVALID_SIGNATURE");
        sign(&mut by_device, alice.user_id.as_str(), &device_id, &device_key);
        let failures = accounts.upload_signatures(&alice, &signed(&alice, &master_id, &by_device)).await.unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        let seen = query(&world, &bob, &alice.user_id).await.master_keys[&alice.user_id]["signatures"].clone();
        let signature = &by_device["signatures"]["@alice:one.test"][&device_id];
        assert_eq!(seen, json!({"@alice:one.test": {&device_id: signature}}));

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

/// A key that hangs on a master key of before is one that clients take for an attack.
#[tokio::test]
async fn with_another_master_key_the_keys_of_before_are_gone() {
    for world in World::each(Options::default()).await {
        let (accounts, alice) = (&world.accounts, world.user(user_id!("@alice:one.test")).await);
        let id = alice.user_id.as_str();
        let (master, own) = (Ed25519SecretKey::new(), Ed25519SecretKey::new());
        let signed_by = |master: &Ed25519SecretKey| {
            let mut key = cross_signing_key(id, "self_signing", &own);
            sign(&mut key, id, &format!("ed25519:{}", master.public_key().to_base64()), master);
            Some(key)
        };
        let master_key = Some(cross_signing_key(id, "master", &master));
        let keys = CrossSigningKeys { master_key, self_signing_key: signed_by(&master), user_signing_key: None };
        accounts.upload_cross_signing_keys(&alice, &keys).await.unwrap();
        let other = Ed25519SecretKey::new();
        let master_key = Some(cross_signing_key(id, "master", &other));
        let master_alone = CrossSigningKeys { master_key: master_key.clone(), ..CrossSigningKeys::default() };
        accounts.upload_cross_signing_keys(&alice, &master_alone).await.unwrap();
        let seen = query(&world, &alice, &alice.user_id).await;
        assert_eq!(seen.master_keys.get(&alice.user_id), master_key.as_ref());
        assert!(seen.self_signing_keys.is_empty());
        // The same key may come back if the new master key signs it.
        let again = CrossSigningKeys { self_signing_key: signed_by(&master), ..CrossSigningKeys::default() };
        let refused = accounts.upload_cross_signing_keys(&alice, &again).await;
        assert!(matches!(refused, Err(Error::InvalidSignature(_))), "{refused:?}");
        let again = CrossSigningKeys { self_signing_key: signed_by(&other), ..CrossSigningKeys::default() };
        accounts.upload_cross_signing_keys(&alice, &again).await.unwrap();
        assert_eq!(query(&world, &alice, &alice.user_id).await.self_signing_keys.len(), 1);
    }
}

/// Client-Server API, "POST /keys/device_signing/upload", 403: signatures name what they sign by one or the other.
#[tokio::test]
async fn a_cross_signing_key_has_no_name_of_a_device() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let master = Ed25519SecretKey::new();
        let user = world.accounts.check_password(Some(&alice.user_id), "secret").await.unwrap();
        let device_id = Some(master.public_key().to_base64().into());
        world.accounts.log_in(&user, SessionRequest { device_id, ..SessionRequest::default() }).await.unwrap();
        let master_key = Some(cross_signing_key(alice.user_id.as_str(), "master", &master));
        let keys = CrossSigningKeys { master_key, ..CrossSigningKeys::default() };
        let refused = world.accounts.upload_cross_signing_keys(&alice, &keys).await;
        assert!(matches!(refused, Err(Error::Forbidden(_))), "{refused:?}");
        assert!(query(&world, &alice, &alice.user_id).await.master_keys.is_empty());
    }
}

/// Somebody with a stolen token must not replace the keys that the user uploads at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_first_cross_signing_keys_at_once_one_needs_no_password() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let uploads: Vec<_> = (0..10)
            .map(|number| {
                let accounts = if number % 2 == 0 { world.accounts.clone() } else { world.other.clone() };
                let master_key = Some(cross_signing_key(alice.user_id.as_str(), "master", &Ed25519SecretKey::new()));
                let (alice, keys) = (alice.clone(), CrossSigningKeys { master_key, ..CrossSigningKeys::default() });
                tokio::spawn(async move {
                    let is_kept = accounts.upload_exempt_cross_signing_keys(&alice, &keys).await.unwrap();
                    is_kept.then_some(keys.master_key).flatten()
                })
            })
            .collect();
        let mut kept = Vec::new();
        for upload in uploads {
            kept.extend(upload.await.unwrap());
        }
        assert_eq!(kept.len(), 1, "{kept:?}");
        let shown = query(&world, &alice, &alice.user_id).await.master_keys[&alice.user_id].clone();
        assert_eq!(shown, kept[0]);
    }
}

/// Keys that are signed by an identity of before do not verify.
#[tokio::test]
async fn an_upload_is_written_only_beside_the_identity_that_it_was_checked_with() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let (first, second) = (Ed25519SecretKey::new(), Ed25519SecretKey::new());
        for key in [&first, &second] {
            let upload = KeyUpload { device_keys: Some(device_keys(&alice, key)), ..KeyUpload::default() };
            world.accounts.upload_keys(&alice, upload).await.unwrap();
        }
        let row = KeyRow { algorithm: "signed_curve25519".to_owned(), key_id: "A".to_owned(), key: "{}".to_owned() };
        let late = DeviceKeyUpload {
            known: Some(device_keys(&alice, &first).to_string()),
            one_time_keys: vec![row],
            ..DeviceKeyUpload::default()
        };
        let storage = world.accounts.storage();
        let outcome = storage.upload_device_keys(alice.user_nr, alice.device(), &late).await.unwrap();
        assert_eq!(outcome, DeviceKeysOutcome::Changed);
        assert!(claim(&world, &alice).await.is_empty());
        let keys = device_keys(&alice, &first).to_string();
        let late = [("master", keys)];
        let before = [(alice.user_nr, "master".to_owned(), "{}".to_owned())];
        assert!(!storage.upsert_cross_signing_keys(alice.user_nr, &before, &late, false).await.unwrap());
        assert!(query(&world, &alice, &alice.user_id).await.master_keys.is_empty());
    }
}

/// A device that got no answer uploads the same keys again.
#[tokio::test]
async fn a_device_has_a_bounded_number_of_keys_but_each_counts_once() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let key = Ed25519SecretKey::new();
        let upload = async |keys: BTreeMap<String, Value>, more: &str| {
            let keys = keys.into_iter().map(|(name, key)| (name + more, key)).collect();
            let device_keys = Some(device_keys(&alice, &key));
            let upload = KeyUpload { device_keys, one_time_keys: keys, ..KeyUpload::default() };
            world.accounts.upload_keys(&alice, upload).await.map(|counts| counts["signed_curve25519"])
        };
        let full = one_time_keys(&alice, &key, 2_000);
        let few = one_time_keys(&alice, &key, 50);
        assert_eq!(upload(full, "").await.unwrap(), 2_000);
        assert_eq!(upload(few.clone(), "").await.unwrap(), 2_000);
        // With another signature it is the same key.
        let mut resigned = few.clone();
        let signer = format!("ed25519:{}", alice.device());
        for object in resigned.values_mut() {
            object["signatures"]["@eve:one.test"] = json!({ &signer: "A".repeat(86) });
        }
        assert_eq!(upload(resigned, "").await.unwrap(), 2_000);
        let refused = upload(few, "more").await;
        assert!(matches!(refused, Err(Error::InvalidParam(_))), "{refused:?}");
        assert_eq!(world.accounts.one_time_key_counts(&alice).await.unwrap()["signed_curve25519"], 2_000);
    }
}

/// Each session of a user signs the master key: with those that are gone it would grow for ever.
#[tokio::test]
async fn with_a_device_its_signature_of_the_master_key_goes() {
    for world in World::each(Options::default()).await {
        let (accounts, alice) = (&world.accounts, world.user(user_id!("@alice:one.test")).await);
        let (id, device_key) = (alice.user_id.as_str(), Ed25519SecretKey::new());
        let upload = KeyUpload { device_keys: Some(device_keys(&alice, &device_key)), ..KeyUpload::default() };
        accounts.upload_keys(&alice, upload).await.unwrap();
        let master = Ed25519SecretKey::new();
        let mut master_key = cross_signing_key(id, "master", &master);
        let keys = CrossSigningKeys { master_key: Some(master_key.clone()), ..CrossSigningKeys::default() };
        accounts.upload_cross_signing_keys(&alice, &keys).await.unwrap();
        let signer = format!("ed25519:{}", alice.device());
        sign(&mut master_key, id, &signer, &device_key);
        let of_master = BTreeMap::from([(master.public_key().to_base64(), master_key)]);
        let signed = BTreeMap::from([(alice.user_id.clone(), of_master)]);
        assert!(accounts.upload_signatures(&alice, &signed).await.unwrap().is_empty());
        let is_signed = async || {
            let shown = query(&world, &alice, &alice.user_id).await.master_keys[&alice.user_id].clone();
            shown["signatures"][id][&signer].is_string()
        };
        assert!(is_signed().await);
        accounts.log_out(&alice).await.unwrap();
        assert!(!is_signed().await);
    }
}

/// It is never heard of, and would be the first to go, with all the keys of rooms that wait for it.
#[tokio::test]
async fn a_dehydrated_device_stays_until_somebody_logs_in_with_it() {
    for world in World::each(Options::default()).await {
        let (accounts, alice) = (&world.accounts, world.user(user_id!("@alice:one.test")).await);
        let put = async |device_id: &str| {
            let mut device = alice.clone();
            device.device_id = Some(device_id.into());
            let device_keys = Some(device_keys(&device, &Ed25519SecretKey::new()));
            let new = NewDehydratedDevice {
                device_id: device_id.into(),
                display_name: None,
                device_data: RawValue::from_string(r#"{"algorithm":"org.example"}"#.to_owned()).unwrap(),
                keys: KeyUpload { device_keys, ..KeyUpload::default() },
            };
            accounts.put_dehydrated_device(&alice, new).await.unwrap();
        };
        let storage = accounts.storage();
        let ids = async || {
            let ids = storage.list_device_ids(&[alice.user_nr]).await.unwrap();
            ids.into_iter().map(|(_, device_id)| device_id).collect::<Vec<_>>()
        };
        put("ASLEEP").await;
        for (device_id, count_max) in [("B", 10), ("C", 2)] {
            world.clock.advance_ms(1_000);
            storage.insert_device(alice.user_nr, device_id, None, count_max).await.unwrap();
        }
        assert_eq!(ids().await, ["ASLEEP", "C"]);
        // Who logs in with it has it for good.
        let user = accounts.check_password(Some(&alice.user_id), "secret").await.unwrap();
        let device_id = Some("ASLEEP".into());
        accounts.log_in(&user, SessionRequest { device_id, ..SessionRequest::default() }).await.unwrap();
        assert!(matches!(accounts.dehydrated_device(&alice).await, Err(Error::NotFound(_))));
        put("NEW").await;
        assert_eq!(ids().await, ["ASLEEP", "C", "NEW"]);
    }
}
