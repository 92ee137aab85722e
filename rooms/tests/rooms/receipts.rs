//! How far somebody has read.

use std::sync::Arc;

use rooms::{Preset, ReceiptKind, ReceiptRequest};
use storage::{Commit, NewReceipt, testing::TestDatabase};

use crate::house::{House, room};

/// Receipts never go back, whichever of those that are sent at once comes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_that_are_sent_at_once_do_not_go_back() {
    for database in TestDatabase::each().await {
        let house = Arc::new(House::open(&database).await);
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        let room_nr = house.storage.find_room(&id).await.unwrap().unwrap().nr;
        house.rooms.join(&bob, &id, None).await.unwrap();
        for round in 0..10 {
            let mut events = Vec::new();
            for n in 0..10 {
                events.push(house.say(&alice, &id, &format!("{round} {n}"), "text").await.unwrap());
            }
            let (first, last) = (events[0].clone(), events.last().unwrap().to_string());
            let marks: Vec<_> = events
                .into_iter()
                .rev()
                .map(|event_id| {
                    let (house, bob, id) = (house.clone(), bob.clone(), id.clone());
                    tokio::spawn(async move {
                        let kinds = [ReceiptKind::Read, ReceiptKind::FullyRead];
                        let request = |kind| ReceiptRequest { kind, event_id: event_id.clone(), thread: None };
                        house.rooms.mark_read(&bob, &id, kinds.map(request).into()).await.unwrap();
                    })
                })
                .collect();
            for mark in marks {
                mark.await.unwrap();
            }
            let receipt = house.storage.get_receipt(room_nr, bob.user_nr, "m.read", None).await.unwrap().unwrap();
            assert_eq!(receipt.event_id, last, "in round {round}");
            let marker = house.storage.get_account_data(bob.user_nr, room_nr, "m.fully_read").await.unwrap().unwrap();
            assert!(marker.contains(&last), "in round {round}: {marker}");
            // Another process may have compared before this one wrote.
            let late = NewReceipt {
                room_nr,
                user_nr: bob.user_nr,
                receipt_type: "m.read".to_owned(),
                thread: None,
                event_id: first,
                at_ms: 1,
                read_upto: None,
            };
            house.storage.commit(Commit { receipts: vec![late], ..Commit::default() }).await.unwrap();
            let receipt = house.storage.get_receipt(room_nr, bob.user_nr, "m.read", None).await.unwrap().unwrap();
            assert_eq!(receipt.event_id, last, "in round {round}");
        }
        house.storage.close().await;
    }
}
