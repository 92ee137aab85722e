//! Devices, tokens and messages to devices, on both databases.

use std::collections::{BTreeSet, HashMap};

use model::{Clock, Position, Random, UserNr};
use ruma::user_id;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use crate::{
    ChangedKeys, Commit, DeviceListChange, DeviceSeen, NewSession, NewToDevice, NewUser, SecretHash, Storage, UserWork,
    db::{Db, Tx},
    testing::TestDatabase,
};

fn message(device: &str, bytes: usize) -> NewToDevice {
    NewToDevice { user_nr: UserNr(1), device_id: device.to_owned(), message: "x".repeat(bytes).into() }
}

async fn send(storage: &Storage, to_device: Vec<NewToDevice>) -> Position {
    storage.commit(Commit { to_device, ..Commit::default() }).await.unwrap().position
}

/// A device that is switched off for months must not fill the disk, neither with many messages nor with large ones.
#[tokio::test]
async fn a_device_is_full_by_the_number_of_its_messages_or_by_their_bytes() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        for device in ["MANY", "LARGE", "FREE", "NONE"] {
            storage.insert_device(UserNr(1), device, None, 10).await.unwrap();
        }
        let full = async || {
            let full = storage.list_full_devices(&[UserNr(1), UserNr(2)], 2, 100).await.unwrap();
            full.into_iter().map(|(_, device)| device).collect::<Vec<_>>()
        };
        let together = [message("MANY", 1), message("MANY", 1), message("LARGE", 100), message("FREE", 99)];
        send(&storage, together.into()).await;
        assert_eq!(full().await, ["LARGE", "MANY"]);
        // What was seen does not count, whether some is left or nothing.
        let first = send(&storage, vec![message("MANY", 49), message("LARGE", 51)]).await;
        storage.delete_to_device(UserNr(1), "MANY", Position(first.0 - 2)).await.unwrap();
        storage.delete_to_device(UserNr(1), "LARGE", first).await.unwrap();
        assert_eq!(full().await, [""; 0]);
        send(&storage, vec![message("LARGE", 99), message("FREE", 1)]).await;
        assert_eq!(full().await, ["FREE"]);
        send(&storage, vec![message("MANY", 50)]).await;
        assert_eq!(full().await, ["FREE", "MANY"]);
        assert_eq!(storage.list_full_devices(&[UserNr(1)], 3, 99).await.unwrap().len(), 3, "by bytes alone");
    }
}

/// They were for the keys of before: whoever gets them can read none.
#[tokio::test]
async fn a_device_that_is_made_again_gets_nothing_of_what_waited_for_the_one_of_before() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let waiting = async |device| storage.count_to_device(UserNr(1), device).await.unwrap();
        storage.insert_device(UserNr(1), "PHONE", None, 10).await.unwrap();
        storage.insert_device(UserNr(1), "TABLET", None, 10).await.unwrap();
        storage.delete_devices(UserNr(1), &["PHONE".to_owned()]).await.unwrap();
        // Sent by somebody who found the device before it was deleted.
        send(&storage, vec![message("PHONE", 1), message("TABLET", 1)]).await;
        storage.insert_device(UserNr(1), "PHONE", None, 10).await.unwrap();
        assert_eq!((waiting("PHONE").await, waiting("TABLET").await), (0, 1));
        send(&storage, vec![message("PHONE", 1)]).await;
        storage.insert_device(UserNr(1), "PHONE", None, 10).await.unwrap();
        assert_eq!(waiting("PHONE").await, 1, "a device that is there keeps what waits for it");
    }
}

/// A dehydrated device may have very many, and who deletes them all at once keeps all others from writing.
#[tokio::test]
async fn what_waits_for_deleted_devices_is_work_that_is_done_in_pieces() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let waiting = async |device| storage.count_to_device(UserNr(1), device).await.unwrap();
        for device in ["A", "B", "C", "D"] {
            storage.insert_device(UserNr(1), device, None, 10).await.unwrap();
            send(&storage, vec![message(device, 1); 1_001]).await;
        }
        storage.delete_devices(UserNr(1), &["B".to_owned(), "D".to_owned()]).await.unwrap();
        assert_eq!(waiting("B").await, 1_001);
        let work = storage.list_user_work(UserNr(1)).await.unwrap();
        assert!(work.iter().any(|row| row.work == UserWork::DeleteToDevice));
        storage.delete_to_gone_devices(UserNr(1)).await.unwrap();
        assert_eq!(
            [waiting("A").await, waiting("B").await, waiting("C").await, waiting("D").await],
            [1_001, 0, 1_001, 0]
        );
    }
}

/// Whoever only changes their name or picture is no newcomer: in a busy room each would have the devices of all members asked for again.
#[tokio::test]
async fn newcomers_are_those_who_joined_and_all_members_of_rooms_that_the_user_joined() {
    /// Who, the room, and from when they were what in it: 3 is joined, 2 invited, 1 left.
    type Log = (i64, i64, &'static [(i64, i64)]);
    const LOG: [Log; 9] = [
        (1, 1, &[(1, 3), (10, 3)]),
        (1, 2, &[(9, 3)]),
        (2, 1, &[(5, 3)]),
        (3, 1, &[(6, 2)]),
        (4, 1, &[(2, 3), (7, 3)]),
        (5, 1, &[(3, 3), (8, 1)]),
        (6, 2, &[(4, 3)]),
        (7, 2, &[(2, 3), (5, 1)]),
        (8, 1, &[(1, 3), (2, 1), (9, 3)]),
    ];
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let mut text = String::new();
        for (user, room, log) in LOG {
            let (last, membership) = log.last().unwrap();
            text += &format!("INSERT INTO memberships VALUES ({room}, {user}, {membership}, 1, {last}, TRUE, FALSE);");
            for (position, membership) in log {
                text += &format!("INSERT INTO membership_log VALUES ({user}, {room}, {position}, {membership});");
            }
        }
        match storage.db() {
            Db::Sqlite { writer, .. } => drop(writer.execute(AssertSqlSafe(text)).await.unwrap()),
            Db::Postgres { pool } => drop(pool.execute(AssertSqlSafe(text)).await.unwrap()),
        }
        for (after, upto, newcomers) in
            [(4, 10, &[2, 6, 8][..]), (4, 8, &[2]), (5, 8, &[]), (8, 9, &[6, 8]), (9, 10, &[]), (0, 1, &[2, 4, 8])]
        {
            let found = storage.list_newcomers(UserNr(1), Position(after), Position(upto)).await.unwrap();
            let found: Vec<i64> = found.into_iter().map(|user| user.0).collect();
            assert_eq!(found, newcomers, "after {after} up to {upto}");
        }
    }
}

/// Renaming a device again and again must not grow the table for ever, and nobody may miss that the user changed.
#[tokio::test]
async fn of_the_changes_of_a_device_list_the_newest_stays() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let mut newest = HashMap::new();
        for user_nr in [1, 2, 1, 1, 3, 2, 1].map(UserNr) {
            let change = Commit { device_lists: vec![user_nr.into()], ..Commit::default() };
            newest.insert(user_nr, storage.commit(change).await.unwrap().position);
        }
        storage.clean_device_lists().await.unwrap();
        let left = storage.list_all_device_list_changes(Position(0), 100).await.unwrap();
        assert_eq!(left.len(), newest.len());
        assert_eq!(left.into_iter().map(|(position, user_nr)| (user_nr, position)).collect::<HashMap<_, _>>(), newest);
    }
}

/// Other servers know a list by the newest change of a device: keys by which a user signs are told without a number.
#[tokio::test]
async fn each_change_of_a_device_knows_the_one_before_it() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (alice, bob) = (UserNr(1), UserNr(2));
        let device = |user_nr, id: &str| DeviceListChange { user_nr, what: ChangedKeys::Device(id.to_owned()) };
        let signing = |user_nr| DeviceListChange { user_nr, what: ChangedKeys::CrossSigning };
        let commit = async |device_lists: Vec<DeviceListChange>| {
            let count = device_lists.len() as i64;
            let last = storage.commit(Commit { device_lists, ..Commit::default() }).await.unwrap().position;
            (1..=count).map(|n| Position(last.0 - count + n)).collect::<Vec<_>>()
        };
        let at = async |position: Position| {
            let row = storage.list_device_list_changes_at(&[position]).await.unwrap().remove(&position);
            row.map(|row| (row.change.what, row.follows))
        };
        let first = commit(vec![signing(alice), device(alice, "A"), device(bob, "X"), device(alice, "B")]).await;
        assert_eq!(at(first[0]).await, Some((ChangedKeys::CrossSigning, Position(0))));
        assert_eq!(at(first[1]).await, Some((ChangedKeys::Device("A".to_owned()), Position(0))));
        assert_eq!(at(first[3]).await, Some((ChangedKeys::Device("B".to_owned()), first[1])), "in the same group");
        let second = commit(vec![signing(alice), bob.into(), device(alice, "A")]).await;
        assert_eq!(at(second[0]).await, Some((ChangedKeys::CrossSigning, first[3])));
        assert_eq!(at(second[1]).await, Some((ChangedKeys::Anything, first[2])));
        assert_eq!(at(second[2]).await, Some((ChangedKeys::Device("A".to_owned()), first[3])));
        let third = commit(vec![signing(alice)]).await;
        // What is old goes, and the newest one knows the number all the same.
        storage.clean_device_lists().await.unwrap();
        assert_eq!(at(second[2]).await, None);
        assert_eq!(at(third[0]).await, Some((ChangedKeys::CrossSigning, second[2])));
        let fourth = commit(vec![device(alice, "A")]).await;
        assert_eq!(at(fourth[0]).await, Some((ChangedKeys::Device("A".to_owned()), second[2])));
    }
}

/// A session with one device, with the hashes of its tokens.
async fn session(storage: &Storage) -> (UserNr, SecretHash, SecretHash) {
    let user_id = user_id!("@alice:one.test");
    storage.insert_user(user_id, NewUser::default()).await.unwrap();
    let user_nr = storage.user_nr(user_id).await.unwrap();
    let (access, refresh) = ([1; 32], [2; 32]);
    let session = NewSession {
        user_nr,
        device_id: "A".to_owned(),
        display_name: None,
        ip: None,
        access,
        expires_at_ms: None,
        refresh: Some(refresh),
    };
    storage.insert_session(session, 10).await.unwrap();
    (user_nr, access, refresh)
}

/// Logged out is logged out, whatever the device asked for in the same moment. PostgreSQL lets both go on at once.
#[tokio::test]
async fn a_refresh_beside_a_log_out_leaves_no_token() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (user_nr, _, refresh) = session(&storage).await;
        // 1. A log-out that has come half way: the device and its access tokens are gone.
        let mut tx = storage.db().begin().await.unwrap();
        for statement in ["DELETE FROM devices", "DELETE FROM access_tokens"] {
            match &mut tx {
                Tx::Sqlite(tx) => drop(tx.execute(statement).await.unwrap()),
                Tx::Postgres(tx) => drop(tx.execute(statement).await.unwrap()),
            }
        }
        // 2. A refresh, until it is done or waits for the log-out.
        let refreshing = tokio::spawn({
            let storage = storage.clone();
            async move { storage.refresh_tokens(refresh, [3; 32], None, [4; 32]).await.unwrap() }
        });
        if let Db::Postgres { pool } = storage.db() {
            let waits =
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            while !refreshing.is_finished() && sqlx::query(waits).fetch_one(pool).await.unwrap().get::<i64, _>(0) == 0 {
                tokio::task::yield_now().await;
            }
        }
        // 3. The log-out goes on.
        match &mut tx {
            Tx::Sqlite(tx) => drop(tx.execute("DELETE FROM refresh_tokens").await.unwrap()),
            Tx::Postgres(tx) => drop(tx.execute("DELETE FROM refresh_tokens").await.unwrap()),
        }
        tx.commit().await.unwrap();
        assert!(refreshing.await.unwrap().is_none(), "there is nothing left to refresh");
        assert!(storage.find_access_token([3; 32]).await.unwrap().is_none());
        // 4. And the same device can come back.
        let (_, access, _) = session(&storage).await;
        assert_eq!(storage.find_access_token(access).await.unwrap().unwrap().user_nr, user_nr);
    }
}

/// Messages to all devices of a user are kept once for each.
#[tokio::test]
async fn a_new_device_takes_the_place_of_the_one_that_was_heard_of_the_longest_ago() {
    for database in TestDatabase::each().await {
        let clock = Clock::manual(1_000);
        let storage = Storage::open(database.options.clone(), clock.clone(), Random::system()).await.unwrap();
        let log_in = async |user: i64, device: &str| {
            clock.advance_ms(1_000);
            let session = NewSession {
                user_nr: UserNr(user),
                device_id: device.to_owned(),
                display_name: None,
                ip: None,
                access: storage.random().bytes(),
                expires_at_ms: None,
                refresh: None,
            };
            storage.insert_session(session, 3).await.unwrap().others_deleted
        };
        log_in(2, "OTHER").await;
        for device in ["A", "B", "C", "A"] {
            assert!(!log_in(1, device).await, "{device}");
        }
        let to_device = ["A", "B"].map(|device| NewToDevice {
            user_nr: UserNr(1),
            device_id: device.to_owned(),
            message: "{}".into(),
        });
        storage.commit(Commit { to_device: to_device.into(), ..Commit::default() }).await.unwrap();
        assert!(log_in(1, "D").await);
        let devices: Vec<_> = storage.list_device_ids(&[UserNr(1), UserNr(2)]).await.unwrap();
        let devices: BTreeSet<_> = devices.into_iter().map(|(_, device)| device).collect();
        assert_eq!(devices, ["A", "C", "D", "OTHER"].map(str::to_owned).into());
        let work = storage.list_user_work(UserNr(1)).await.unwrap();
        assert_eq!(
            work.iter().map(|row| row.work).collect::<Vec<_>>(),
            [UserWork::TellDevices, UserWork::DeleteToDevice]
        );
        storage.delete_to_gone_devices(UserNr(1)).await.unwrap();
        assert_eq!(storage.count_to_device(UserNr(1), "B").await.unwrap(), 0);
        assert_eq!(storage.count_to_device(UserNr(1), "A").await.unwrap(), 1);
        let seen = DeviceSeen { user_nr: UserNr(1), device_id: "C".to_owned(), at_ms: clock.now_ms(), ip: None };
        storage.update_devices_seen(&[seen]).await.unwrap();
        log_in(1, "E").await;
        assert!(storage.get_device(UserNr(1), "C").await.unwrap().is_some());
        assert!(storage.get_device(UserNr(1), "A").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_token_without_its_device_is_none() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (_, access, _) = session(&storage).await;
        assert!(storage.find_access_token(access).await.unwrap().is_some());
        match storage.db() {
            Db::Sqlite { writer, .. } => drop(writer.execute("DELETE FROM devices").await.unwrap()),
            Db::Postgres { pool } => drop(pool.execute("DELETE FROM devices").await.unwrap()),
        }
        assert!(storage.find_access_token(access).await.unwrap().is_none());
    }
}
