//! Keys and messages of devices, with several processes on each database.

use std::collections::BTreeSet;

use model::{Position, UserNr};
use sqlx::{Executor as _, Row as _};

use crate::{
    Commit, DeviceKeyUpload, DeviceKeysOutcome, KeyClaim, KeyCounts, KeyRow, NewToDevice, Storage,
    db::{Db, Tx},
    testing::TestDatabase,
};

const ALICE: UserNr = UserNr(1);
const ALGORITHM: &str = "signed_curve25519";
const DEVICES: [&str; 3] = ["A", "B", "C"];

fn key(key_id: String) -> KeyRow {
    KeyRow { algorithm: ALGORITHM.to_owned(), key: format!("{{\"key\":\"{key_id}\"}}"), key_id }
}

/// One key of each device.
fn claims() -> Vec<KeyClaim> {
    DEVICES.map(|device| (ALICE, device.to_owned(), ALGORITHM.to_owned())).into()
}

/// Two sessions with the same one-time key would break forward secrecy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_time_key_is_given_once_whichever_process_is_asked() {
    const KEYS: usize = 60;
    for database in TestDatabase::each().await {
        let mut processes: Vec<Storage> = Vec::new();
        for _ in 0..4 {
            processes.push(database.open().await);
        }
        for device in DEVICES {
            processes[0].insert_device(ALICE, device, None, 10).await.unwrap();
            let upload = DeviceKeyUpload {
                one_time_keys: (0..KEYS).map(|n| key(format!("{device}{n}"))).collect(),
                fallback_keys: vec![key(format!("{device}-fallback"))],
                ..DeviceKeyUpload::default()
            };
            let done = processes[0].upload_device_keys(ALICE, device, &upload).await.unwrap();
            assert_eq!(done, DeviceKeysOutcome::Stored);
        }
        // As many claims as there are keys, all at once.
        let tasks: Vec<_> = (0..KEYS)
            .map(|n| {
                let process = processes[n % processes.len()].clone();
                tokio::spawn(async move { process.claim_one_time_keys(claims()).await.unwrap() })
            })
            .collect();
        let mut given = BTreeSet::new();
        for task in tasks {
            for ((_, device, _), key) in task.await.unwrap() {
                assert!(key.key_id.starts_with(&device) && !key.key_id.contains("fallback"), "{key:?} of {device}");
                assert!(given.insert(key.key_id.clone()), "{} was given twice", key.key_id);
            }
        }
        assert_eq!(given.len(), KEYS * DEVICES.len());
        // Then there is the fallback key, again and again.
        for process in &processes {
            let keys: Vec<String> =
                process.claim_one_time_keys(claims()).await.unwrap().into_iter().map(|(_, key)| key.key_id).collect();
            assert_eq!(keys, DEVICES.map(|device| format!("{device}-fallback")));
        }
    }
}

#[tokio::test]
async fn one_time_keys_are_given_in_the_order_of_their_uploads() {
    for database in TestDatabase::each().await {
        let clock = model::Clock::manual(1_000);
        let random = model::Random::system();
        let storage = Storage::open(database.options.clone(), clock.clone(), random).await.unwrap();
        storage.insert_device(ALICE, "A", None, 10).await.unwrap();
        for id in ["z", "m", "a"] {
            let upload = DeviceKeyUpload { one_time_keys: vec![key(id.to_owned())], ..DeviceKeyUpload::default() };
            storage.upload_device_keys(ALICE, "A", &upload).await.unwrap();
            clock.advance_ms(1);
        }
        for id in ["z", "m", "a"] {
            let claimed = storage.claim_one_time_keys(claims()).await.unwrap();
            assert_eq!(claimed, [(claims()[0].clone(), key(id.to_owned()))]);
        }
    }
}

/// A device that got no answer uploads again what was claimed meanwhile; one that is away for months is not waited for.
#[tokio::test]
async fn a_claimed_key_is_known_for_ninety_days() {
    for database in TestDatabase::each().await {
        let clock = model::Clock::manual(1_000);
        let storage = Storage::open(database.options.clone(), clock.clone(), model::Random::system()).await.unwrap();
        storage.insert_device(ALICE, "A", None, 10).await.unwrap();
        let upload = async |key: KeyRow| {
            let upload = DeviceKeyUpload { one_time_keys: vec![key], ..DeviceKeyUpload::default() };
            let done = storage.upload_device_keys(ALICE, "A", &upload).await.unwrap();
            (done, storage.count_one_time_keys(ALICE, "A").await.unwrap().first().map_or(0, |(_, count)| *count))
        };
        let other = KeyRow { key: "{}".to_owned(), ..key("a".to_owned()) };
        assert_eq!(upload(key("a".to_owned())).await, (DeviceKeysOutcome::Stored, 1));
        assert_eq!(storage.claim_one_time_keys(claims()).await.unwrap().len(), 1);
        for days in [0, 89] {
            clock.advance_ms(days * 24 * 3_600_000);
            storage.clean().await.unwrap();
            assert_eq!(upload(key("a".to_owned())).await, (DeviceKeysOutcome::Stored, 0));
            let taken = DeviceKeysOutcome::Taken { old: key("a".to_owned()), new: other.clone() };
            assert_eq!(upload(other.clone()).await, (taken, 0));
        }
        clock.advance_ms(24 * 3_600_000);
        storage.clean().await.unwrap();
        assert_eq!(upload(other).await, (DeviceKeysOutcome::Stored, 1));
    }
}

/// While a cluster is upgraded, programs of before run too: they give whatever is in the table that they know.
#[tokio::test]
async fn a_claimed_key_is_gone_from_where_older_programs_look() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        storage.insert_device(ALICE, "A", None, 10).await.unwrap();
        let one_time_keys = vec![key("a".to_owned()), key("b".to_owned())];
        let upload = DeviceKeyUpload { one_time_keys, ..DeviceKeyUpload::default() };
        storage.upload_device_keys(ALICE, "A", &upload).await.unwrap();
        storage.claim_one_time_keys(claims()).await.unwrap();
        let mut tx = storage.db().begin().await.unwrap();
        let rows = match &mut tx {
            Tx::Sqlite(tx) => tx.fetch_all("SELECT key_id FROM one_time_keys").await.unwrap().len(),
            Tx::Postgres(tx) => tx.fetch_all("SELECT key_id FROM one_time_keys").await.unwrap().len(),
        };
        assert_eq!(rows, 1);
    }
}

/// Whoever is away for weeks has only that one, and each claim of it would write.
#[tokio::test]
async fn a_fallback_key_is_written_once_however_often_it_is_given() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        for device in ["A", "B"] {
            storage.insert_device(ALICE, device, None, 10).await.unwrap();
        }
        let upload = async |device: &str, id: &str| {
            let upload = DeviceKeyUpload { fallback_keys: vec![key(id.to_owned())], ..DeviceKeyUpload::default() };
            storage.upload_device_keys(ALICE, device, &upload).await.unwrap();
        };
        // Where PostgreSQL has put the row: somewhere else with each write.
        let place = async || match storage.db() {
            Db::Postgres { pool } => {
                let row = pool.fetch_one("SELECT string_agg(ctid::text, ' ' ORDER BY device_id) FROM fallback_keys");
                row.await.unwrap().get::<String, _>(0)
            }
            Db::Sqlite { .. } => String::new(),
        };
        let given = async || {
            let mut given = storage.claim_one_time_keys(claims()).await.unwrap();
            given.sort_by(|(one, _), (other, _)| one.cmp(other));
            given.into_iter().map(|(_, key)| key.key_id).collect::<Vec<_>>()
        };
        upload("A", "a").await;
        assert_eq!(given().await, ["a"]);
        assert!(storage.get_key_counts(ALICE, "A").await.unwrap().unused_fallback.is_empty());
        upload("B", "b").await;
        assert_eq!(given().await, ["a", "b"]);
        assert!(storage.get_key_counts(ALICE, "B").await.unwrap().unused_fallback.is_empty());
        let before = place().await;
        assert_eq!(given().await, ["a", "b"]);
        assert_eq!(place().await, before);
        upload("A", "new").await;
        assert_eq!(given().await, ["new", "b"]);
        assert!(storage.get_key_counts(ALICE, "A").await.unwrap().unused_fallback.is_empty());
    }
}

/// Who is told the number of before uploads again, and libolm forgets the private halves of keys that the server still has.
#[tokio::test]
async fn a_device_that_uploads_with_one_process_is_told_what_it_has_by_another() {
    for database in TestDatabase::each().await {
        let (here, there) = (database.open().await, database.open().await);
        if !here.is_shared() {
            continue;
        }
        here.insert_device(ALICE, "A", None, 10).await.unwrap();
        let counts = async |of: &Storage| of.get_key_counts(ALICE, "A").await.unwrap();
        let upload = async |count: usize, fallback_keys| {
            let one_time_keys = (0..count).map(|n| key(format!("{n}"))).collect();
            let upload = DeviceKeyUpload { one_time_keys, fallback_keys, ..DeviceKeyUpload::default() };
            here.upload_device_keys(ALICE, "A", &upload).await.unwrap();
        };
        let told = |count, unused: &[&str]| KeyCounts {
            one_time: [(ALGORITHM.to_owned(), count)].into(),
            unused_fallback: unused.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(*counts(&there).await, KeyCounts::default());
        upload(49, Vec::new()).await;
        assert_eq!(*counts(&there).await, told(49, &[]));
        upload(50, Vec::new()).await;
        assert_eq!(*counts(&there).await, told(50, &[]));
        upload(50, vec![key("fallback".to_owned())]).await;
        assert_eq!(*counts(&there).await, told(50, &[ALGORITHM]));
        // Enough is kept for a moment: a claim elsewhere may be told later.
        here.claim_one_time_keys(claims()).await.unwrap();
        assert_eq!(*counts(&there).await, told(50, &[ALGORITHM]));
        assert_eq!(*counts(&here).await, told(49, &[ALGORITHM]));
    }
}

/// Whoever has many messages waiting reads more at once than others, and none is lost or out of order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_wait_together_each_have_their_own_messages() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let message = |device: usize, n: usize| NewToDevice {
            user_nr: UserNr(device as i64 + 1),
            device_id: format!("D{device}"),
            message: format!("{n}").into(),
        };
        // The first device has none, the next one has one, and so on.
        let to_device = (0..8).flat_map(|n| (n + 1..9).map(move |device| message(device, n))).collect();
        let end = storage.commit(Commit { to_device, ..Commit::default() }).await.unwrap().position;
        let read = async |after: Position, limit: u32| {
            let tasks: Vec<_> = (0..9)
                .map(|device| {
                    let storage = storage.clone();
                    tokio::spawn(async move {
                        let (user_nr, id) = (UserNr(device + 1), format!("D{device}"));
                        let found = storage.list_new_to_device(user_nr, &id, after, end, limit).await.unwrap();
                        found.into_iter().map(|(_, message)| message.parse().unwrap()).collect::<Vec<usize>>()
                    })
                })
                .collect();
            let mut all = Vec::new();
            for task in tasks {
                all.push(task.await.unwrap());
            }
            all
        };
        for limit in [1, 3, 4, 100] {
            let expected: Vec<Vec<usize>> = (0..9).map(|device| (0..device.min(limit)).collect()).collect();
            assert_eq!(read(Position(0), limit as u32).await, expected, "{limit}");
        }
        // Seen together: of each its own, up to where it says.
        let tasks: Vec<_> = (0..9)
            .map(|device| {
                let (storage, to) = (storage.clone(), if device == 8 { Position(0) } else { end });
                tokio::spawn(async move {
                    storage.delete_to_device(UserNr(device + 1), &format!("D{device}"), to).await.unwrap();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let left: Vec<usize> = read(Position(0), 100).await.iter().map(Vec::len).collect();
        assert_eq!(left, [0, 0, 0, 0, 0, 0, 0, 0, 8]);
    }
}
