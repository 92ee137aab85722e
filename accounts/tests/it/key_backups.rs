//! Server-side key backups.

use accounts::{BackedUpKey, Error, KeyBackupState, NewKeyBackup, Options, Requester};
use model::limits::CONTENT_DEPTH_MAX;
use ruma::{OwnedRoomId, api::client::backup::KeyBackupData, room_id, serde::Raw, user_id};
use serde_json::{Value, json, value::to_raw_value};
use storage::BackedUpKeys;

use crate::World;

const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";

fn new_backup(auth_data: &Value) -> NewKeyBackup {
    let auth_data = to_raw_value(auth_data).unwrap();
    NewKeyBackup { algorithm: ALGORITHM.to_owned(), auth_data, version: None }
}

/// What is said of a key, with a text to know it by.
fn data(is_verified: bool, first_message_index: u64, forwarded_count: u64, text: &str) -> Value {
    json!({
        "is_verified": is_verified, "first_message_index": first_message_index, "forwarded_count": forwarded_count,
        "session_data": { "ciphertext": text },
    })
}

fn key_of(room_id: OwnedRoomId, session_id: &str, data: &Value) -> BackedUpKey {
    let data: Raw<KeyBackupData> = Raw::from_json(to_raw_value(data).unwrap());
    BackedUpKey { room_id, session_id: session_id.to_owned(), data }
}

fn room() -> OwnedRoomId {
    room_id!("!room:one.test").to_owned()
}

/// A user with a backup, and its version.
async fn user_with_backup(world: &World) -> (Requester, String) {
    let alice = world.user(user_id!("@alice:one.test")).await;
    let version = world.accounts.create_key_backup(&alice, &new_backup(&json!({}))).await.unwrap();
    (alice, version)
}

async fn state(world: &World, who: &Requester, version: &str) -> (String, u64) {
    let KeyBackupState { etag, count } = world.accounts.key_backup(who, Some(version)).await.unwrap().state;
    (etag, count.into())
}

/// The text of the key of a session.
async fn stored(world: &World, who: &Requester, version: &str, session_id: &str) -> Option<String> {
    match world.accounts.backed_up_key(who, version, &room(), session_id).await {
        Ok(key) => {
            let key: Value = serde_json::from_str(key.json().get()).unwrap();
            Some(key["session_data"]["ciphertext"].as_str().unwrap().to_owned())
        }
        Err(Error::NotFound("key")) => None,
        Err(error) => panic!("{error}"),
    }
}

/// The specification's three rules, each with keys that differ in nothing else that a stronger rule sees.
#[tokio::test]
async fn the_better_key_of_a_session_stays() {
    let cases = [
        ("verified wins", data(false, 1, 1, "old"), data(true, 5, 5, "new"), true),
        ("unverified loses", data(true, 5, 5, "old"), data(false, 1, 1, "new"), false),
        ("earlier wins", data(true, 5, 1, "old"), data(true, 4, 9, "new"), true),
        ("later loses", data(false, 4, 9, "old"), data(false, 5, 1, "new"), false),
        ("forwarded less wins", data(true, 5, 2, "old"), data(true, 5, 1, "new"), true),
        ("forwarded more loses", data(true, 5, 1, "old"), data(true, 5, 2, "new"), false),
        ("the same stays", data(true, 5, 1, "old"), data(true, 5, 1, "new"), false),
    ];
    for world in World::each(Options::default()).await {
        let (alice, version) = user_with_backup(&world).await;
        for (number, (name, old, new, is_replaced)) in cases.iter().enumerate() {
            let session = format!("session{number}");
            let put = async |data| {
                world.accounts.back_up_keys(&alice, &version, vec![key_of(room(), &session, data)]).await.unwrap()
            };
            let before = put(old).await;
            let after = put(new).await;
            let expected = if *is_replaced { "new" } else { "old" };
            assert_eq!(stored(&world, &alice, &version, &session).await.as_deref(), Some(expected), "{name}");
            assert_eq!(before.etag != after.etag, *is_replaced, "{name}: the etag tells whether something changed");
            assert_eq!(u64::from(after.count), number as u64 + 1, "{name}: a replaced key is not counted twice");
            assert_eq!(state(&world, &alice, &version).await, (after.etag, after.count.into()));
        }
    }
}

#[tokio::test]
async fn keys_go_into_the_newest_backup_only() {
    for world in World::each(Options::default()).await {
        let (alice, old) = user_with_backup(&world).await;
        let put = async |version: &str| {
            let key = key_of(room(), "session", &data(true, 0, 0, "key"));
            world.accounts.back_up_keys(&alice, version, vec![key]).await
        };
        put(&old).await.unwrap();
        let new = world.accounts.create_key_backup(&alice, &new_backup(&json!({"a": 1}))).await.unwrap();
        assert!(matches!(put(&old).await, Err(Error::WrongBackupVersion { current }) if current == new));
        assert_eq!(state(&world, &alice, &new).await.1, 0, "the new one begins empty");
        assert_eq!(stored(&world, &alice, &old, "session").await.as_deref(), Some("key"), "the old one is still read");
        assert_eq!(world.accounts.key_backup(&alice, None).await.unwrap().version, new);
        for unknown in ["3", "0", "-1", "+1", "01", "", "x"] {
            assert!(matches!(put(unknown).await, Err(Error::NotFound(_))), "{unknown}");
        }
    }
}

/// Clients keep the version that they know: it must never come to mean another backup.
#[tokio::test]
async fn the_number_of_a_deleted_backup_is_not_given_again() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let (alice, first) = user_with_backup(&world).await;
        let key = key_of(room(), "session", &data(true, 0, 0, "key"));
        accounts.back_up_keys(&alice, &first, vec![key.clone()]).await.unwrap();
        assert!(matches!(accounts.delete_key_backup(&alice, "2").await, Err(Error::NotFound(_))), "never existed");
        accounts.delete_key_backup(&alice, &first).await.unwrap();
        accounts.delete_key_backup(&alice, &first).await.unwrap();
        let gone = |result: Result<_, Error>| matches!(result, Err(Error::NotFound("backup version")));
        assert!(gone(accounts.key_backup(&alice, Some(&first)).await.map(drop)));
        assert!(gone(accounts.key_backup(&alice, None).await.map(drop)));
        assert!(gone(accounts.backed_up_key(&alice, &first, &room(), "session").await.map(drop)));
        assert!(gone(accounts.backed_up_keys(&alice, &first, None, None).await.map(drop)));
        assert!(gone(accounts.back_up_keys(&alice, &first, vec![key.clone()]).await.map(drop)));
        assert!(gone(accounts.delete_backed_up_keys(&alice, &first, BackedUpKeys::All).await.map(drop)));
        assert!(gone(accounts.update_key_backup(&alice, &first, &new_backup(&json!({}))).await));
        let second = accounts.create_key_backup(&alice, &new_backup(&json!({}))).await.unwrap();
        assert_ne!(first, second);
        accounts.delete_key_backup(&alice, &first).await.unwrap();
        assert_eq!(state(&world, &alice, &second).await.1, 0);
        // Of two, the older one is in use again when the newer one is deleted.
        let third = accounts.create_key_backup(&alice, &new_backup(&json!({}))).await.unwrap();
        accounts.delete_key_backup(&alice, &third).await.unwrap();
        assert_eq!(accounts.key_backup(&alice, None).await.unwrap().version, second);
        accounts.back_up_keys(&alice, &second, vec![key]).await.unwrap();
    }
}

#[tokio::test]
async fn only_the_auth_data_of_a_backup_changes() {
    for world in World::each(Options::default()).await {
        let (alice, version) = user_with_backup(&world).await;
        let update = async |new: &NewKeyBackup| world.accounts.update_key_backup(&alice, &version, new).await;
        let good = new_backup(&json!({"public_key": "abc", "unknown to us": [1]}));
        update(&good).await.unwrap();
        update(&NewKeyBackup { version: Some(version.clone()), ..good.clone() }).await.unwrap();
        let other_version = NewKeyBackup { version: Some("2".to_owned()), ..new_backup(&json!({})) };
        assert!(matches!(update(&other_version).await, Err(Error::InvalidParam(_))));
        let other_algorithm = NewKeyBackup { algorithm: "org.example".to_owned(), ..new_backup(&json!({})) };
        assert!(matches!(update(&other_algorithm).await, Err(Error::InvalidParam(_))));
        assert!(matches!(update(&new_backup(&json!([]))).await, Err(Error::BadJson(_))));
        let shown = world.accounts.key_backup(&alice, Some(&version)).await.unwrap().algorithm;
        let shown: Value = serde_json::from_str(shown.get()).unwrap();
        assert_eq!(shown, json!({"algorithm": ALGORITHM, "auth_data": {"public_key": "abc", "unknown to us": [1]}}));
    }
}

#[tokio::test]
async fn nobody_reaches_the_backup_of_somebody_else() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let (alice, version) = user_with_backup(&world).await;
        let key = key_of(room(), "session", &data(true, 0, 0, "alice's"));
        accounts.back_up_keys(&alice, &version, vec![key]).await.unwrap();
        let bob = world.user(user_id!("@bob:one.test")).await;
        assert!(matches!(accounts.key_backup(&bob, Some(&version)).await, Err(Error::NotFound(_))));
        assert!(matches!(accounts.delete_key_backup(&bob, &version).await, Err(Error::NotFound(_))));
        // The same version, the same room and the same session of his own.
        assert_eq!(accounts.create_key_backup(&bob, &new_backup(&json!({}))).await.unwrap(), version);
        assert!(accounts.backed_up_keys(&bob, &version, None, None).await.unwrap().is_empty());
        let key = key_of(room(), "session", &data(true, 0, 0, "bob's"));
        accounts.back_up_keys(&bob, &version, vec![key]).await.unwrap();
        accounts.update_key_backup(&bob, &version, &new_backup(&json!({"is": "bob's"}))).await.unwrap();
        accounts.delete_backed_up_keys(&bob, &version, BackedUpKeys::All).await.unwrap();
        accounts.delete_key_backup(&bob, &version).await.unwrap();
        assert_eq!(stored(&world, &alice, &version, "session").await.as_deref(), Some("alice's"));
        let shown = accounts.key_backup(&alice, None).await.unwrap();
        assert!(!shown.algorithm.get().contains("bob"));
        assert_eq!(u64::from(shown.state.count), 1);
    }
}

/// More than one transaction's worth, and several pages: each key once, in order, and the count is right on the way.
#[tokio::test]
async fn many_keys_are_written_listed_and_deleted_in_pieces() {
    for world in World::each(Options::default()).await {
        let accounts = &world.accounts;
        let (alice, version) = user_with_backup(&world).await;
        let other = room_id!("!another:one.test").to_owned();
        let keys: Vec<_> = (0..1_300)
            .map(|number| {
                let room = if number < 1_200 { room() } else { other.clone() };
                key_of(room, &format!("session{number:04}"), &data(true, 0, 0, "key"))
            })
            .collect();
        let after = accounts.back_up_keys(&alice, &version, keys.clone()).await.unwrap();
        assert_eq!(u64::from(after.count), 1_300);
        let list = async |room: Option<&ruma::RoomId>| {
            let mut listed: Vec<BackedUpKey> = Vec::new();
            loop {
                let page = accounts.backed_up_keys(&alice, &version, room, listed.last()).await.unwrap();
                if page.is_empty() {
                    return listed;
                }
                listed.extend(page);
            }
        };
        let names = |keys: &[BackedUpKey]| -> Vec<_> {
            keys.iter().map(|key| (key.room_id.clone(), key.session_id.clone())).collect()
        };
        let mut expected = names(&keys);
        expected.sort();
        let mut listed = names(&list(None).await);
        listed.sort();
        assert_eq!(listed, expected);
        assert_eq!(list(Some(&room())).await.len(), 1_200);
        assert_eq!(list(Some(&other)).await.len(), 100);

        let one = BackedUpKeys::OfSession("!room:one.test", "session0007");
        let deleted = accounts.delete_backed_up_keys(&alice, &version, one).await.unwrap();
        assert_eq!(u64::from(deleted.count), 1_299);
        assert_ne!(deleted.etag, after.etag);
        assert_eq!(
            accounts.delete_backed_up_keys(&alice, &version, one).await.unwrap(),
            deleted,
            "nothing is left of it"
        );
        let deleted =
            accounts.delete_backed_up_keys(&alice, &version, BackedUpKeys::OfRoom(room().as_str())).await.unwrap();
        assert_eq!(u64::from(deleted.count), 100);
        assert_eq!(list(None).await.len(), 100);
        let deleted = accounts.delete_backed_up_keys(&alice, &version, BackedUpKeys::All).await.unwrap();
        assert_eq!(u64::from(deleted.count), 0);
        assert_eq!(state(&world, &alice, &version).await, (deleted.etag, 0));
    }
}

#[tokio::test]
async fn keys_of_the_wrong_shape_or_size_are_refused_and_nothing_is_written() {
    for world in World::each(Options::default()).await {
        let (alice, version) = user_with_backup(&world).await;
        let put = async |keys: Vec<BackedUpKey>| world.accounts.back_up_keys(&alice, &version, keys).await;
        let good = data(true, 0, 0, "key");
        let without = |field: &str, value: Value| {
            let mut data = good.clone();
            data[field] = value;
            key_of(room(), "bad", &data)
        };
        for bad in [
            without("is_verified", json!("true")),
            without("is_verified", json!(null)),
            without("first_message_index", json!(-1)),
            without("first_message_index", json!(1.5)),
            without("forwarded_count", json!(9_007_199_254_740_992_u64)),
            without("session_data", json!("text")),
            without("session_data", json!(null)),
            key_of(room(), "bad", &json!([])),
        ] {
            let text = bad.data.json().to_string();
            let result = put(vec![key_of(room(), "good", &good), bad]).await;
            assert!(matches!(result, Err(Error::BadJson(_))), "{text}");
        }
        let large = without("session_data", json!({"ciphertext": "x".repeat(16_384)}));
        assert!(matches!(put(vec![large]).await, Err(Error::TooLarge(_))));
        for session in ["", "a\0b", &"x".repeat(256)] {
            assert!(matches!(put(vec![key_of(room(), session, &good)]).await, Err(Error::InvalidParam(_))));
        }
        let many = (0..2_001).map(|number| key_of(room(), &number.to_string(), &good)).collect();
        assert!(matches!(put(many).await, Err(Error::InvalidParam(_))));
        assert_eq!(state(&world, &alice, &version).await, ("0".to_owned(), 0));
        let large = new_backup(&json!({"public_key": "x".repeat(65_536)}));
        assert!(matches!(world.accounts.create_key_backup(&alice, &large).await, Err(Error::TooLarge(_))));
        // Their owner's clients could not read the answers with these in them.
        let deep = (0..CONTENT_DEPTH_MAX).fold(json!(0), |inner, _| json!([inner]));
        let deep = json!({"deep": deep});
        assert!(matches!(put(vec![without("session_data", deep.clone())]).await, Err(Error::BadJson(_))));
        let result = world.accounts.create_key_backup(&alice, &new_backup(&deep)).await;
        assert!(matches!(result, Err(Error::BadJson(_))));
    }
}

#[tokio::test]
async fn a_user_has_a_bounded_number_of_backups() {
    for world in World::each(Options::default()).await {
        let (alice, first) = user_with_backup(&world).await;
        for _ in 1..100 {
            world.accounts.create_key_backup(&alice, &new_backup(&json!({}))).await.unwrap();
        }
        let more = async || world.accounts.create_key_backup(&alice, &new_backup(&json!({}))).await;
        assert!(matches!(more().await, Err(Error::InvalidParam(_))));
        world.accounts.delete_key_backup(&alice, &first).await.unwrap();
        assert_eq!(more().await.unwrap(), "101");
    }
}

/// All devices of a user learn of a session at the same time and upload it at the same time.
#[tokio::test]
async fn uploads_at_the_same_time_lose_no_key_and_count_none_twice() {
    for world in World::each(Options::default()).await {
        let (alice, version) = user_with_backup(&world).await;
        let tasks: Vec<_> = (0..10_u64)
            .map(|number| {
                let accounts = if number % 2 == 0 { world.accounts.clone() } else { world.other.clone() };
                let (alice, version) = (alice.clone(), version.clone());
                let keys = vec![
                    key_of(room(), "shared", &data(true, number, 0, &number.to_string())),
                    key_of(room(), &format!("own{number}"), &data(true, 0, 0, "key")),
                ];
                tokio::spawn(async move { accounts.back_up_keys(&alice, &version, keys).await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(state(&world, &alice, &version).await, ("10".to_owned(), 11));
        assert_eq!(stored(&world, &alice, &version, "shared").await.as_deref(), Some("0"));
    }
}

#[tokio::test]
async fn a_deactivated_account_leaves_no_backup() {
    for world in World::each(Options::default()).await {
        let (alice, version) = user_with_backup(&world).await;
        let keys = (0..600).map(|number| key_of(room(), &number.to_string(), &data(true, 0, 0, "key"))).collect();
        world.accounts.back_up_keys(&alice, &version, keys).await.unwrap();
        world.accounts.deactivate(&alice, false).await.unwrap();
        assert!(matches!(world.accounts.key_backup(&alice, None).await, Err(Error::NotFound(_))));
        let storage = world.accounts.storage();
        let left = storage.list_backed_up_keys(alice.user_nr, 1, BackedUpKeys::All, ("", ""), 1).await.unwrap();
        assert!(left.is_empty(), "not even where nobody can ask for it");
    }
}

/// The process may end in the middle of a deletion.
#[tokio::test]
async fn the_next_start_deletes_what_is_left_of_a_deleted_backup() {
    for world in World::each(Options::default()).await {
        let (alice, version) = user_with_backup(&world).await;
        let keys = vec![key_of(room(), "session", &data(true, 0, 0, "key"))];
        world.accounts.back_up_keys(&alice, &version, keys).await.unwrap();
        let storage = world.accounts.storage();
        let left = async || {
            let rows = storage.list_backed_up_keys(alice.user_nr, 1, BackedUpKeys::All, ("", ""), 1).await;
            rows.unwrap().len()
        };
        // The first half of a deactivation.
        storage.deactivate_user(alice.user_nr, false).await.unwrap();
        assert_eq!(left().await, 1);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let other = world.other.clone();
        let run = tokio::spawn(async move { other.run(async { stopped.await.unwrap_or(()) }).await });
        while left().await > 0 {
            tokio::task::yield_now().await;
        }
        drop(stop);
        run.await.unwrap();
    }
}
