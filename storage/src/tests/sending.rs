//! Who sends to other servers, and what is kept for them, on both databases.

use model::Position;
use ruma::{OwnedServerName, owned_server_name};

use crate::{ArrearsRow, Commit, Item, NewOutgoingEdu, OutageRow, SENDER_SHARES, SenderShare, testing::TestDatabase};

fn arrears(destination: OwnedServerName, sent_upto: i64) -> ArrearsRow {
    ArrearsRow { origin: owned_server_name!("hs1"), destination, sent_upto: Position(sent_upto) }
}

/// A process that was away for a while must not write over what the next one knows better.
#[tokio::test]
async fn a_share_has_one_process_and_its_fence_keeps_out_the_one_before() {
    for database in TestDatabase::each().await {
        let first = database.open().await;
        first.upsert_sender(60_000).await.unwrap();
        let all: Vec<u32> = (0..SENDER_SHARES).collect();
        let shares = first.take_sender_shares(&all).await.unwrap();
        assert_eq!(shares.len(), SENDER_SHARES as usize);
        let old = *shares.iter().find(|share| share.share == 3).unwrap();
        if first.is_shared() {
            let second = database.open().await;
            second.upsert_sender(60_000).await.unwrap();
            assert_eq!(second.take_sender_shares(&[3]).await.unwrap(), [], "the first one is alive");
            // It says nothing for too long.
            first.upsert_sender(-1).await.unwrap();
            let new = second.take_sender_shares(&[3]).await.unwrap()[0];
            assert_eq!(new.fence, old.fence + 1);
            assert!(!first.list_own_sender_shares().await.unwrap().contains(&(3, old.fence)));
        } else {
            first.take_sender_shares(&[3]).await.unwrap();
        }
        let row = arrears(owned_server_name!("behind.test"), 7);
        first.upsert_arrears(&[(row, old)]).await.unwrap();
        assert_eq!(first.list_arrears(3).await.unwrap(), [], "an old fence");
        first.advance_sender_shares(&[SenderShare { position: Position(50), ..old }]).await.unwrap();
        let third = database.open().await;
        third.upsert_sender(60_000).await.unwrap();
        if first.is_shared() {
            assert_eq!(third.take_sender_shares(&[3]).await.unwrap(), [], "the second one is alive");
        } else {
            assert_eq!(third.take_sender_shares(&[3]).await.unwrap()[0].position, Position(0), "an old fence");
        }
    }
}

#[tokio::test]
async fn shares_go_forward_only_and_arrears_are_kept_until_they_are_made_good() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        storage.upsert_sender(60_000).await.unwrap();
        let first = storage.take_sender_shares(&[5]).await.unwrap()[0];
        for position in [20, 10] {
            let reached = SenderShare { position: Position(position), ..first };
            storage.advance_sender_shares(&[reached]).await.unwrap();
        }
        let share = storage.take_sender_shares(&[5]).await.unwrap()[0];
        assert_eq!(share.position, Position(20));
        let row = arrears(owned_server_name!("behind.test"), 3);
        storage.upsert_arrears(&[(row.clone(), share)]).await.unwrap();
        let row = arrears(owned_server_name!("behind.test"), 9);
        storage.upsert_arrears(&[(row.clone(), share)]).await.unwrap();
        storage.delete_arrears(&row.origin, &row.destination, first).await.unwrap();
        assert_eq!(storage.list_arrears(5).await.unwrap(), std::slice::from_ref(&row), "an old fence");
        storage.delete_arrears(&row.origin, &row.destination, share).await.unwrap();
        assert_eq!(storage.list_arrears(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn edus_that_must_arrive_are_told_by_the_stream_and_wait_until_they_have() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (hs1, there) = (owned_server_name!("hs1"), owned_server_name!("there.test:8448"));
        let edu = |destination: &OwnedServerName, text: &str| NewOutgoingEdu {
            origin: hs1.clone(),
            destination: destination.clone(),
            edu: text.into(),
        };
        let outgoing_edus =
            vec![edu(&there, "{\"n\":1}"), edu(&owned_server_name!("other.test"), "{}"), edu(&there, "{\"n\":2}")];
        let before = storage.published();
        let after = storage.commit(Commit { outgoing_edus, ..Commit::default() }).await.unwrap().position;
        let published = storage.read_stream(before, after).await.unwrap().unwrap();
        let told = published.items.iter().filter(
            |(_, item)| matches!(item, Item::Outgoing(origin, destination) if *origin == hs1 && *destination == there),
        );
        assert_eq!(told.count(), 2);
        let list = async |upto| storage.list_outgoing_edus(&hs1, &there, upto, 10).await.unwrap();
        let waiting = list(after).await;
        assert_eq!(waiting.iter().map(|(_, edu)| edu.as_str()).collect::<Vec<_>>(), ["{\"n\":1}", "{\"n\":2}"]);
        let full = async |count| storage.list_full_destinations(&hs1, [&there].into_iter(), count).await.unwrap();
        assert_eq!((full(2).await.len(), full(3).await.len()), (1, 0));
        assert_eq!(list(waiting[0].0).await.len(), 1);
        storage.delete_outgoing_edus(&hs1, &there, waiting[0].0).await.unwrap();
        assert_eq!(list(after).await, waiting[1..]);
    }
}

#[tokio::test]
async fn an_administrator_sees_who_gives_no_answer_and_ends_it() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let now_ms = storage.clock().now_ms();
        let outage = |server: OwnedServerName, tries: i64| OutageRow {
            server,
            since_ms: now_ms - 10,
            tries,
            next_try_ms: now_ms + 5,
            is_unreachable: true,
            last_error: "no\0thing".to_owned(),
            changed_ms: now_ms - 1,
        };
        let rows = [outage(owned_server_name!("dead.test"), 3), outage(owned_server_name!("well.test"), 0)];
        storage.upsert_outages(&rows).await.unwrap();
        storage.upsert_sender(60_000).await.unwrap();
        let share = storage.take_sender_shares(&[0]).await.unwrap()[0];
        storage.upsert_arrears(&[(arrears(owned_server_name!("slow.test"), 9), share)]).await.unwrap();
        let listed = storage.list_destinations("", 10).await.unwrap();
        let names: Vec<_> = listed.iter().map(|row| row.server.as_str()).collect();
        assert_eq!(names, ["dead.test", "slow.test"]);
        assert_eq!(listed[0].outage.as_ref().map(|outage| outage.tries), Some(3));
        assert_eq!(listed[1].behind, Some((Position(9), 0)));
        assert_eq!(storage.list_destinations("dead.test", 10).await.unwrap().len(), 1);
        assert_eq!(storage.list_changed_outages(now_ms - 1, 10).await.unwrap().len(), 2);
        assert!(storage.reset_outage("dead.test").await.unwrap());
        assert!(!storage.reset_outage("dead.test").await.unwrap());
        let changed = storage.list_changed_outages(now_ms, 10).await.unwrap();
        assert_eq!((changed[0].server.as_str(), changed[0].tries), ("dead.test", 0));
        storage.delete_ended_outages(i64::MAX).await.unwrap();
        assert_eq!(storage.list_changed_outages(0, 10).await.unwrap(), []);
    }
}
