//! What relates to an event over others, of which there are more than are looked at together.

use model::{EventNr, Position, RoomNr};
use ruma::event_id;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::{ChildrenQuery, TimelineDirection, db::Db, testing::TestDatabase};

/// Events that relate to the first one, each with one that relates to it in turn.
const CHILDREN: i64 = 12_000;

/// Client-Server API, "Relationships API": the pages lead through all of it, both ways, whatever relates to the event and how much of it.
#[tokio::test]
async fn pages_lead_through_more_descendants_than_are_looked_at_together() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (numbers, no_bytes) = match storage.db() {
            Db::Sqlite { .. } => (
                format!(
                    "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {CHILDREN}) SELECT n FROM s"
                ),
                "X''",
            ),
            Db::Postgres { .. } => (format!("SELECT generate_series(1, {CHILDREN}) AS n"), "''::bytea"),
        };
        // A child of the root is at ten times its number, and what relates to it follows at five more.
        let texts = [
            format!(
                "INSERT INTO events (event_nr, event_id, room_nr, position, anchor, step, sender_nr, type_nr, depth, state_node,
                                     body_month, flags, prev, auth, origin_server_ts)
                 SELECT n, '$c' || n, 1, n * 10, n * 10, 0, 1, 1, 1, 0, 0, 0, {no_bytes}, {no_bytes}, 1 FROM ({numbers}) AS s"
            ),
            format!(
                "INSERT INTO relations (event_nr, room_nr, parent_id, rel_type_nr, type_nr, sender_nr, origin_server_ts, anchor,
                                        step, is_whole)
                 SELECT n, 1, '$root', 1, 1, 1, 1, n * 10, 0, TRUE FROM ({numbers}) AS s UNION ALL
                 SELECT n + 100000, 1, '$c' || n, 1, 1, 1, 1, n * 10 + 5, 0, TRUE FROM ({numbers}) AS s"
            ),
        ];
        for text in texts {
            match storage.db() {
                Db::Sqlite { writer, .. } => drop(writer.execute(AssertSqlSafe(text)).await.unwrap()),
                Db::Postgres { pool } => drop(pool.execute(AssertSqlSafe(text)).await.unwrap()),
            }
        }
        let query = ChildrenQuery {
            room_nr: RoomNr(1),
            parent: event_id!("$root"),
            rel_type_nr: None,
            type_nr: None,
            levels: 3,
        };
        let mut expected: Vec<EventNr> = (1..=CHILDREN).flat_map(|n| [EventNr(n), EventNr(n + 100_000)]).collect();
        for direction in [TimelineDirection::Forward, TimelineDirection::Backward] {
            let (first, last) = ((Position(i64::MIN), 0), (Position(i64::MAX), 0));
            let (mut from, to) = if direction == TimelineDirection::Forward { (first, last) } else { (last, first) };
            let mut found = Vec::new();
            loop {
                let page = storage.list_children(query, direction, from, to, 3_000).await.unwrap();
                let Some((_, place)) = page.last() else { break };
                from = *place;
                found.extend(page.into_iter().map(|(nr, _)| nr));
            }
            assert!(found == expected, "{direction:?}: {} of {}", found.len(), expected.len());
            expected.reverse();
        }
        storage.close().await;
    }
}
