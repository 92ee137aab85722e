//! What holds for all of the storage, on both databases.

use std::collections::BTreeSet;

use model::{Clock, NodeNr, Random, RoomNr, StateKeyNr, Thread, TypeNr, UserNr};
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use sqlx::{Executor as _, Row as _, SqlSafeStr as _, Statement as _};

use crate::{
    Commit, CommitError, NewNodes, NewReceipt, StateKey, Storage, account_data, committer, consumers, db, db::Db,
    dehydrated_devices, deployment, destinations, device_lists, devices, directory, erased_users, event_graph, events,
    filters, group, key_backups, key_claims, listed_events, maintenance, many_rooms, media, numbers, openid_tokens,
    outgoing, presence, profiles, redactions, relations, relations_fill, remote_devices, reports, room_leases,
    room_reads, rooms, sender_shares, server_keys, server_outages, state_map, statement::Statement, stream,
    sync_connections, testing::TestDatabase, thread_subscriptions, to_device, tokens, uia_sessions, unread, user_work,
    users,
};

mod descendants;
mod devices_elsewhere;
mod files;
mod keys;
mod older_program;
mod outliers;
mod people;
mod received_transactions;
mod sending;

fn all_statements() -> impl Iterator<Item = &'static Statement> {
    let files: &[&'static [Statement]] = &[
        account_data::ALL,
        committer::ALL,
        db::ALL,
        dehydrated_devices::ALL,
        consumers::ALL,
        deployment::ALL,
        destinations::ALL,
        device_lists::ALL,
        devices::ALL,
        directory::ALL,
        erased_users::ALL,
        event_graph::ALL,
        events::ALL,
        filters::ALL,
        group::ALL,
        group::countable::ALL,
        group::keys::ALL,
        group::members::ALL,
        group::redactions::ALL,
        group::relations::ALL,
        group::rooms::ALL,
        group::streams::ALL,
        key_backups::ALL,
        key_claims::ALL,
        crate::keys::ALL,
        listed_events::ALL,
        maintenance::ALL,
        many_rooms::ALL,
        media::ALL,
        numbers::ALL,
        crate::outliers::ALL,
        openid_tokens::ALL,
        outgoing::ALL,
        crate::partial_rooms::ALL,
        crate::testing::ALL,
        presence::ALL,
        profiles::ALL,
        crate::received_transactions::ALL,
        redactions::ALL,
        relations::ALL,
        relations_fill::ALL,
        remote_devices::ALL,
        reports::ALL,
        room_leases::ALL,
        room_reads::ALL,
        rooms::ALL,
        sender_shares::ALL,
        server_keys::ALL,
        server_outages::ALL,
        state_map::ALL,
        stream::ALL,
        sync_connections::ALL,
        thread_subscriptions::ALL,
        to_device::ALL,
        tokens::ALL,
        uia_sessions::ALL,
        unread::ALL,
        user_work::ALL,
        users::ALL,
    ];
    files.iter().copied().flatten()
}

/// A statement that one of the databases does not understand is found here, by name, and not in production.
#[tokio::test]
async fn every_statement_is_understood_by_both_databases() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        for statement in all_statements() {
            let prepared = match storage.db() {
                Db::Sqlite { writer, .. } => {
                    writer.prepare(statement.sqlite.into_sql_str()).await.map(|s| s.sql().as_str().len())
                }
                Db::Postgres { pool } => {
                    pool.prepare(statement.postgres.into_sql_str()).await.map(|s| s.sql().as_str().len())
                }
            };
            assert!(prepared.is_ok(), "{}: {prepared:?}", statement.name);
        }
    }
}

/// One schema: the same tables with the same columns, whatever the database calls their types.
#[tokio::test]
async fn the_two_migrated_schemas_are_the_same() {
    let mut schemas: Vec<BTreeSet<String>> = Vec::new();
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let columns = match storage.db() {
            Db::Sqlite { writer, .. } => sqlx::query(
                "SELECT m.name || '.' || c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
                  WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'",
            )
            .fetch_all(writer)
            .await
            .unwrap()
            .iter()
            .map(|row| row.get::<String, _>(0))
            .collect(),
            Db::Postgres { pool } => sqlx::query(
                "SELECT table_name || '.' || column_name FROM information_schema.columns
                  WHERE table_schema = 'public' AND table_name NOT LIKE 'event_bodies_%'",
            )
            .fetch_all(pool)
            .await
            .unwrap()
            .iter()
            .map(|row| row.get::<String, _>(0))
            .collect(),
        };
        schemas.push(columns);
    }
    assert!(schemas[0].contains("events.event_id"));
    for other in &schemas[1..] {
        assert_eq!(&schemas[0], other);
    }
}

/// Acknowledged means durable: the settings that make it so, as the databases themselves report them.
#[tokio::test]
async fn commits_wait_for_the_disk() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        match storage.db() {
            Db::Sqlite { writer, .. } => {
                let get = async |pragma: &'static str| sqlx::query(pragma).fetch_one(writer).await.unwrap();
                assert_eq!(get("PRAGMA journal_mode").await.get::<String, _>(0), "wal");
                assert_eq!(get("PRAGMA synchronous").await.get::<i64, _>(0), 2, "FULL");
            }
            Db::Postgres { pool } => {
                let row = sqlx::query("SHOW synchronous_commit").fetch_one(pool).await.unwrap();
                assert_eq!(row.get::<String, _>(0), "on");
            }
        }
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let database = TestDatabase::sqlite();
    let storage = database.open().await;
    let Db::Sqlite { writer, .. } = storage.db() else { unreachable!("an SQLite database") };
    sqlx::query("INSERT INTO schema_versions VALUES (9999, 'from the future', 0)").execute(writer).await.unwrap();
    storage.close().await;
    let opened = Storage::open(database.options.clone(), Clock::system(), Random::system()).await;
    assert!(matches!(opened, Err(crate::Error::SchemaTooNew { found: 9999, .. })));
}

/// A room that is new to a client shows who read it lately, and the reader's own receipts however old they are.
#[tokio::test]
async fn the_newest_receipts_are_listed_and_all_of_the_reader() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let insert = "INSERT INTO rooms (room_nr, room_id, version) VALUES (1, '!a:hs', '11'), (2, '!b:hs', '11')";
        match storage.db() {
            Db::Sqlite { writer, .. } => drop(sqlx::query(insert).execute(writer).await.unwrap()),
            Db::Postgres { pool } => drop(sqlx::query(insert).execute(pool).await.unwrap()),
        }
        let receipt = |room: i64, user: i64, thread: &str| NewReceipt {
            room_nr: RoomNr(room),
            user_nr: UserNr(user),
            receipt_type: "m.read".to_owned(),
            thread: Thread::parse(thread),
            event_id: ruma::event_id!("$event").to_owned(),
            at_ms: 0,
            read_upto: None,
        };
        let receipts = vec![
            receipt(1, 7, ""),
            receipt(1, 7, "main"),
            receipt(1, 2, ""),
            receipt(1, 3, ""),
            receipt(1, 4, ""),
            receipt(2, 2, ""),
            receipt(1, 7, "$thread"),
        ];
        let upto = storage.commit(Commit { receipts, ..Commit::default() }).await.unwrap().position;
        let listed = async |user: i64, upto| {
            let (user, rooms) = (UserNr(user), [RoomNr(1), RoomNr(2)]);
            let found = storage.list_newest_receipts(user, &rooms, upto, 3).await.unwrap();
            let mut users: Vec<(i64, i64, String)> = found
                .into_values()
                .flatten()
                .map(|receipt| {
                    (
                        receipt.room_nr.0,
                        receipt.user_nr.0,
                        receipt.thread.map_or_else(String::new, |thread| thread.as_str().to_owned()),
                    )
                })
                .collect();
            users.sort();
            users
        };
        let row = |room, user, thread: &str| (room, user, thread.to_owned());
        let newest = [row(1, 3, ""), row(1, 4, ""), row(1, 7, "$thread"), row(2, 2, "")];
        assert_eq!(listed(9, upto).await, newest);
        let own = [row(1, 3, ""), row(1, 4, ""), row(1, 7, ""), row(1, 7, "$thread"), row(1, 7, "main"), row(2, 2, "")];
        assert_eq!(listed(7, upto).await, own);
        let before = model::Position(upto.0 - 1);
        assert_eq!(listed(9, before).await, [row(1, 2, ""), row(1, 3, ""), row(1, 4, ""), row(2, 2, "")]);
        storage.close().await;
    }
}

#[derive(Clone, Debug)]
struct Change {
    key: StateKey,
    event: Option<i64>,
}

fn change() -> impl Strategy<Value = Change> {
    (0..3_i64, 0..60_i64, proptest::option::weighted(0.8, 1..1_000_i64))
        .prop_map(|(type_nr, key, event)| Change { key: (TypeNr(type_nr), StateKeyNr(key)), event })
}

/// The persistent map against an ordinary one: the same content, the same differences, and a shape that depends on the
/// content alone (equal states are found to be equal without reading them).
fn compare_state_map(seed: u64, cases: u32, changes_max: usize) {
    println!("seed {seed}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_database, storage) = runtime.block_on(async {
        let database = TestDatabase::sqlite();
        let storage = database.open().await;
        (database, storage)
    });
    let room = std::cell::Cell::new(0_i64);
    let config = Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() };
    let run = TestRunner::new(config).run(&proptest::collection::vec(change(), 0..changes_max), |changes| {
        room.set(room.get() + 1);
        let room_nr = RoomNr(room.get());
        runtime.block_on(async {
            let mut expected = std::collections::BTreeMap::new();
            let (mut state, mut new) = (NodeNr(0), NewNodes::default());
            let mut middle = (NodeNr(0), expected.clone());
            for (index, Change { key, event }) in changes.iter().enumerate() {
                let event = event.map(model::EventNr);
                state = storage.change_state(room_nr, state, *key, event, &mut new).await.unwrap();
                match event {
                    Some(event) => drop(expected.insert(*key, event)),
                    None => drop(expected.remove(key)),
                }
                assert_eq!(storage.get_state_event(room_nr, state, *key).await.unwrap(), event);
                if index == changes.len() / 2 {
                    middle = (state, expected.clone());
                }
            }
            for Change { key, .. } in &changes {
                let found = storage.get_state_events(&[(room_nr, state)].into(), *key).await.unwrap();
                assert_eq!(found.get(&room_nr), expected.get(key));
            }
            let listed = storage.list_state(room_nr, state).await.unwrap();
            assert_eq!(listed, expected.clone().into_iter().collect::<Vec<_>>());
            let mut differences = Vec::new();
            let keys: BTreeSet<_> = middle.1.keys().chain(expected.keys()).copied().collect();
            for key in keys {
                let (old, new) = (middle.1.get(&key).copied(), expected.get(&key).copied());
                if old != new {
                    differences.push((key, old, new));
                }
            }
            assert_eq!(storage.diff_state(room_nr, middle.0, state).await.unwrap(), differences);
            // The same content put in from scratch, in another order.
            let mut again = NodeNr(0);
            for (key, event) in expected.iter().rev() {
                again = storage.change_state(room_nr, again, *key, Some(*event), &mut new).await.unwrap();
            }
            assert_eq!(storage.diff_state(room_nr, again, state).await.unwrap(), []);
            assert_eq!(storage.shape(room_nr, again).await, storage.shape(room_nr, state).await);
        });
        Ok(())
    });
    run.unwrap();
}

#[test]
fn the_state_map_behaves_like_a_map() {
    compare_state_map(1, 60, 200);
}

/// The same with many seeds and more changes.
#[test]
fn long_the_state_map_behaves_like_a_map() {
    for seed in 100..120 {
        compare_state_map(seed, 200, 500);
    }
}

/// 50,000 keys: at most five nodes on a path, and under 2 KB for one change.
#[tokio::test]
async fn a_change_in_a_large_state_is_small() {
    let database = TestDatabase::sqlite();
    let storage = database.open().await;
    let room_nr = RoomNr(1);
    let mut new = NewNodes::default();
    let entries = (0..50_000).map(|key| ((TypeNr(7), StateKeyNr(key)), model::EventNr(1_000_000 + key))).collect();
    let state = storage.build_whole_state(room_nr, entries, &mut NewNodes::default()).await.unwrap();
    let key = (TypeNr(7), StateKeyNr(31_337));
    storage.change_state(room_nr, state, key, Some(model::EventNr(5_000_000)), &mut new).await.unwrap();
    assert!(new.nodes.len() <= 5, "{} nodes", new.nodes.len());
    let bytes: usize = new.nodes.iter().map(|(_, node)| node.to_bytes().len()).sum();
    assert!(bytes < 2_000, "{bytes} bytes");
}

/// The log of SQLite does not grow without end: a large one starts over.
#[tokio::test]
async fn a_large_write_ahead_log_starts_over() {
    let database = TestDatabase::sqlite();
    let storage = database.open().await;
    let crate::Options::Sqlite { path, .. } = &database.options else { unreachable!("an SQLite database") };
    let log_bytes = || std::fs::metadata(path.with_extension("db-wal")).unwrap().len();
    let write = async |first: i64, pieces: i64| {
        for user in first..first + pieces {
            let data = crate::NewAccountData {
                user_nr: model::UserNr(user),
                room_nr: RoomNr(0),
                event_type: "large".to_owned(),
                content: format!("{{\"text\":\"{}\"}}", "x".repeat(1 << 20)),
            };
            storage.commit(crate::Commit { account_data: vec![data], ..crate::Commit::default() }).await.unwrap();
        }
    };
    write(1, 24).await;
    let grown = log_bytes();
    assert!(grown > 20 << 20, "{grown} bytes");
    storage.checkpoint().await.unwrap();
    write(100, 10).await;
    assert_eq!(log_bytes(), grown, "the log was written over from its start");
}

/// One commit that the database cannot store does not take down those that happen to be written beside it.
#[tokio::test]
async fn a_commit_that_is_refused_fails_alone() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let mut random = 1_u64;
        let mut letters = || -> String {
            let mut letter = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(b'a' + (random >> 33) as u8 % 26)
            };
            // More than a row of an index of PostgreSQL takes, and random, so that it cannot be compressed.
            (0..9_000).map(|_| letter()).collect()
        };
        let data = |user, event_type: String| crate::Commit {
            account_data: vec![crate::NewAccountData {
                user_nr: model::UserNr(user),
                room_nr: RoomNr(0),
                event_type,
                content: "{}".to_owned(),
            }],
            ..crate::Commit::default()
        };
        let commits: Vec<_> = (0..40)
            .map(|user| storage.commit(data(user, if user == 20 { letters() } else { "short".to_owned() })))
            .collect();
        let results = futures_util::future::join_all(commits).await;
        let failed: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_err()).map(|(i, _)| i).collect();
        let is_postgres = matches!(storage.db(), Db::Postgres { .. });
        assert_eq!(failed, if is_postgres { vec![20] } else { vec![] });
        let stored =
            storage.list_account_data(model::UserNr(39), model::Position(0), storage.published()).await.unwrap();
        assert_eq!(stored.len(), 1);
    }
}

/// Some clients lose an event whose echo they see before the answer to the request.
#[tokio::test]
async fn who_commits_has_the_answer_before_those_who_listen_are_woken() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (woken, mut order) = tokio::sync::mpsc::unbounded_channel();
        let (mut stream, listener) = (storage.subscribe(), woken.clone());
        tokio::spawn(async move {
            stream.recv().await.unwrap();
            listener.send("listener").unwrap();
        });
        tokio::task::yield_now().await;
        let sender = storage.clone();
        tokio::spawn(async move {
            let commit = crate::Commit { device_lists: vec![UserNr(1).into()], ..crate::Commit::default() };
            let committed = sender.commit(commit).await.unwrap();
            assert!(sender.published() >= committed.position, "who has the answer reads what they wrote");
            woken.send("sender").unwrap();
        });
        assert_eq!([order.recv().await, order.recv().await], [Some("sender"), Some("listener")]);
    }
}

/// Processes that start at the same time agree on it, and another database has another.
#[tokio::test]
async fn a_deployment_has_one_name() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (one, two) = tokio::join!(storage.deployment_id(), storage.deployment_id());
        let name = one.unwrap();
        assert_eq!(two.unwrap(), name);
        assert_eq!(storage.deployment_id().await.unwrap(), name);
        assert_ne!(TestDatabase::sqlite().open().await.deployment_id().await.unwrap(), name);
    }
}

/// Who lost often has the room for itself until it has written, or for a second; messages of others pass all the while.
#[tokio::test]
async fn a_leased_room_waits_for_its_process_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let clock = Clock::manual(1_000_000);
    let open = || Storage::open(database.options.clone(), clock.clone(), Random::system());
    let (ours, others) = (open().await.unwrap(), open().await.unwrap());
    let room = |expected_state, state, lease| {
        let room = crate::RoomCommit {
            room_nr: RoomNr(1),
            expected_state: NodeNr(expected_state),
            lease,
            state: NodeNr(state),
            depth: 1,
            ..crate::RoomCommit::default()
        };
        crate::Commit { room: Some(room), ..crate::Commit::default() }
    };
    let mut create = room(0, 1, false);
    if let Some(room) = &mut create.room {
        let room_id = ruma::RoomId::parse("!a:hs").unwrap();
        room.new_room = Some(crate::NewRoom { room_id, version: ruma::RoomVersionId::V11 });
    }
    ours.commit(create).await.unwrap();
    let is_leased = |result: Result<_, _>| matches!(result, Err(CommitError::Leased { for_ms: 1..=1_000 }));
    let has_changed = |result: Result<_, _>| matches!(result, Err(CommitError::StateChanged));

    others.commit(room(1, 2, false)).await.unwrap();
    assert!(has_changed(ours.commit(room(1, 3, false)).await));
    others.commit(room(2, 3, false)).await.unwrap();
    assert!(has_changed(ours.commit(room(1, 4, true)).await), "with this one it has the room");
    assert!(is_leased(others.commit(room(3, 4, false)).await));
    assert!(is_leased(others.commit(room(2, 4, true)).await), "it cannot be taken away");
    others.commit(room(3, 3, false)).await.unwrap();
    ours.commit(room(3, 5, false)).await.unwrap();
    others.commit(room(5, 6, false)).await.unwrap();
    // One that does not come back has it for a second.
    assert!(has_changed(ours.commit(room(1, 7, true)).await));
    assert!(is_leased(others.commit(room(6, 7, false)).await));
    clock.advance_ms(1_000);
    others.commit(room(6, 7, false)).await.unwrap();
}

/// Another process has written, and died before it flushed: what is shown of it must not be gone after a power loss.
#[tokio::test]
async fn what_another_process_has_not_flushed_is_flushed_before_it_is_shown_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let storage = database.open().await;
    let Db::Postgres { pool } = storage.db() else { unreachable!("a PostgreSQL database") };
    let mut other = pool.acquire().await.unwrap();
    // What waits to be flushed is flushed in the background soon: one of several tries is early enough to see it.
    let (mut waiting, tries) = (0, 50);
    for position in 1..=tries {
        let write = format!(
            "BEGIN; SET LOCAL synchronous_commit = off;
             INSERT INTO room_heads (room_nr, state_node, depth, position, extremities) VALUES ({position}, 0, 1, {position}, '');
             COMMIT"
        );
        other.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(write))).await.unwrap();
        let text = "SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()";
        let row = other.fetch_one(text).await.unwrap();
        let (written, waits): (String, bool) = (row.get(0), row.get(1));
        waiting += i64::from(waits);
        assert_eq!(storage.get_head(RoomNr(position)).await.unwrap().unwrap().position, model::Position(position));
        let text = format!("SELECT pg_current_wal_flush_lsn() >= '{written}'::pg_lsn");
        let is_flushed: bool = other.fetch_one(sqlx::AssertSqlSafe(text)).await.unwrap().get(0);
        assert!(is_flushed, "position {position} was shown before it was durable");
    }
    assert!(waiting > 0, "nothing ever waited to be flushed");
}
