//! What an older program stored is found again.

use std::sync::Arc;

use model::{EventNr, NodeNr, Pdu, Position, Relation, RoomNr, Thread, UserNr};
use ruma::{EventId, RoomId, RoomVersionId};
use serde_json::{Value, json};
use sqlx::{Executor as _, Row as _};

use crate::{
    Commit, NewEvent, NewRelation, NewRoom, Placement, RoomCommit, RoomSummary, Storage, UnreadRange, annotation_key,
    db::Db, testing::TestDatabase,
};

/// All of what is filled, as text.
const FILLED: [&str; 3] = [
    "SELECT event_nr || ' ' || origin_server_ts FROM events ORDER BY event_nr",
    "SELECT event_nr || ' ' || room_nr || ' ' || parent_id || ' ' || rel_type_nr || ' ' || type_nr || ' ' || sender_nr || ' ' ||
            origin_server_ts || ' ' || anchor || ' ' || step || ' ' || CASE WHEN is_whole THEN 1 ELSE 0 END || ' ' ||
            coalesce(annotation_key, 0)
       FROM relations ORDER BY event_nr",
    "SELECT room_nr || ' ' || root_id || ' ' || events || ' ' || anchor || ' ' || step FROM threads ORDER BY root_id",
];

async fn filled(storage: &Storage) -> Vec<Vec<String>> {
    let mut tables = Vec::new();
    for text in FILLED {
        tables.push(match storage.db() {
            Db::Sqlite { writer, .. } => {
                writer.fetch_all(text).await.unwrap().iter().map(|row| row.get(0)).collect::<Vec<String>>()
            }
            Db::Postgres { pool } => pool.fetch_all(text).await.unwrap().iter().map(|row| row.get(0)).collect(),
        });
    }
    tables
}

async fn execute(storage: &Storage, text: &'static str) {
    match storage.db() {
        Db::Sqlite { writer, .. } => drop(writer.execute(sqlx::raw_sql(text)).await.unwrap()),
        Db::Postgres { pool } => drop(pool.execute(sqlx::raw_sql(text)).await.unwrap()),
    }
}

/// An event of a type, in a placement.
async fn event(storage: &Storage, nr: i64, event_type: &str, content: Value, placement: Placement) -> NewEvent {
    let body = json!({
        "type": event_type, "content": content, "sender": "@a:hs", "room_id": "!a:hs", "depth": nr,
        "origin_server_ts": 1_000 + nr, "prev_events": [], "auth_events": [],
    });
    let event_id = EventId::parse(format!("$e{nr}")).unwrap();
    let rules = RoomVersionId::V11.rules().unwrap();
    let room_id = RoomId::parse("!a:hs").unwrap();
    let pdu = Pdu::from_stored(body.to_string().into(), event_id, room_id, &rules).unwrap();
    let relation = match Relation::of_content(&pdu.content) {
        Some(relation) => Some(NewRelation {
            rel_type_nr: storage.type_nr(&relation.rel_type).await.unwrap(),
            is_thread: relation.rel_type == Relation::THREAD,
            is_whole: relation.is_whole(event_type, false),
            // The first of equal ones has it.
            annotation_key: relation.key.as_deref().map(annotation_key).filter(|_| nr != 7),
            parent: relation.parent,
        }),
        None => None,
    };
    NewEvent {
        nr: EventNr(nr),
        sender_nr: storage.user_nr(&pdu.sender).await.unwrap(),
        type_nr: storage.type_nr(event_type).await.unwrap(),
        pdu: Arc::new(pdu),
        state_key_nr: None,
        state: NodeNr(0),
        replaces: None,
        prev: vec![EventNr(1)],
        auth: vec![EventNr(1)],
        placement,
        passed_on: false,
        was_outlier: false,
        lacks_members: false,
        transaction: None,
        relation,
        countable: None,
    }
}

#[tokio::test]
async fn a_database_of_an_older_program_gets_its_relations_and_times() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let relates = |rel_type: &str, more: Value| {
            let mut content = json!({"body": "\u{0}", "m.relates_to": {"rel_type": rel_type, "event_id": "$e1"}});
            content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            content
        };
        let reaction = || json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": "$e1", "key": "a"}});
        let events = [
            ("m.room.message", json!({"body": "root"}), Placement::Live),
            ("m.room.message", relates("m.thread", json!({})), Placement::Live),
            ("m.room.message", relates("m.thread", json!({})), Placement::Live),
            ("m.room.message", relates("m.replace", json!({"m.new_content": {}})), Placement::Live),
            ("m.room.message", relates("m.replace", json!({})), Placement::Live),
            ("m.reaction", reaction(), Placement::Live),
            ("m.reaction", reaction(), Placement::Live),
            ("m.room.message", relates("m.thread", json!({})), Placement::SoftFailed),
        ];
        let mut new = Vec::new();
        for (nr, (event_type, content, placement)) in (1..).zip(events) {
            new.push(event(&storage, nr, event_type, content, placement).await);
        }
        let room = RoomCommit {
            room_nr: RoomNr(1),
            new_room: Some(NewRoom { room_id: RoomId::parse("!a:hs").unwrap(), version: RoomVersionId::V11 }),
            expected_state: NodeNr(0),
            state: NodeNr(0),
            depth: 8,
            events: new,
            extremities_added: vec![EventNr(7)],
            summary: Some(RoomSummary::default()),
            ..RoomCommit::default()
        };
        storage.commit(Commit { room: Some(room), ..Commit::default() }).await.unwrap();
        let expected = filled(&storage).await;
        assert_eq!(expected.iter().map(Vec::len).collect::<Vec<_>>(), [8, 6, 1]);
        // From the start, and from where another process came to an end.
        for (come_to, text) in [
            (
                0,
                "DELETE FROM relations; DELETE FROM threads; UPDATE events SET origin_server_ts = 0;
                 INSERT INTO consumers (name, position, process, lease_until_ms) VALUES ('relations', 0, '', 0)",
            ),
            (
                5,
                "DELETE FROM relations WHERE event_nr > 5; UPDATE events SET origin_server_ts = 0 WHERE event_nr > 5;
                 INSERT INTO consumers (name, position, process, lease_until_ms) VALUES ('relations', 5, '', 0)",
            ),
            (2, "INSERT INTO consumers (name, position, process, lease_until_ms) VALUES ('relations', 2, '', 0)"),
        ] {
            execute(&storage, text).await;
            let again = database.open().await;
            assert_eq!(filled(&again).await, expected, "from {come_to}");
            assert_eq!(again.get_consumer("relations").await.unwrap().0, 0, "it is done once");
        }
        // A process of the older program goes on meanwhile, behind what was looked through.
        let text = "DELETE FROM relations WHERE event_nr IN (2, 4); UPDATE threads SET events = events - 1;
                    UPDATE events SET origin_server_ts = 0 WHERE event_nr IN (2, 4)";
        execute(&storage, text).await;
        assert!(storage.fill_relations_again().await.unwrap());
        assert_eq!(filled(&storage).await, expected, "of an older process");
        assert!(storage.fill_relations_again().await.unwrap(), "it may have written more");
        assert!(!storage.fill_relations_again().await.unwrap(), "it has not");
    }
}

/// The main timeline had no name, and classes said nothing of texts.
#[tokio::test]
async fn events_of_an_older_program_are_counted_in_the_main_timeline() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let older = "
            DROP INDEX countable_events_threads; DROP INDEX thread_subscriptions_room;
            CREATE INDEX countable_events_threads ON countable_events (room_nr, position) WHERE thread <> '';
            ALTER TABLE commits DROP COLUMN uncounted;
            INSERT INTO countable_events (room_nr, position, user_nr, sender_nr, class, thread)
            VALUES (1, 5, 0, 9, 1, ''), (1, 6, 0, 9, 4, ''), (1, 7, 0, 9, 0, '$root'), (1, 8, 0, 9, 1, '$root')";
        execute(&storage, older).await;
        execute(&storage, include_str!("../../../migrations/0019_threads.sql")).await;
        let range = UnreadRange { room_nr: RoomNr(1), main: Position(0), all_threads: Position(0), by_sender: false };
        let rows = storage.count_unread(UserNr(7), &[range], Position(9)).await.unwrap();
        let mut counted: Vec<_> = rows.into_iter().map(|row| (row.thread, row.class, row.count)).collect();
        counted.sort_unstable();
        let (main, root) = (Thread::Main, Thread::parse("$root").unwrap());
        assert_eq!(counted, [(main.clone(), 4, 1), (main, 1_025, 1), (root.clone(), 0, 1), (root, 1_025, 1)]);
        storage.close().await;
    }
}
