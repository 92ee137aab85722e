//! Several processes on one database.

use rooms::{Error, PageRequest, Preset};
use ruma::events::TimelineEventType;
use serde_json::{json, value::to_raw_value};
use storage::{TimelineDirection, testing::TestDatabase};

use crate::house::{House, page, room};

/// Two processes on one database must not make each other lose, and the stream stays in one order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_send_into_one_room_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let one = House::open(&database).await;
    let two = House::open(&database).await;
    let alice = one.user("alice").await;
    let id = one.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
    for n in 0..20 {
        let (first, second) = (format!("one {n}"), format!("two {n}"));
        let (a, b) = tokio::join!(one.say(&alice, &id, &first, &first), two.say(&alice, &id, &second, &second));
        a.unwrap();
        b.unwrap();
        if n % 5 == 0 {
            let topic = to_raw_value(&json!({"topic": n.to_string()})).unwrap();
            let house = if n % 2 == 0 { &one } else { &two };
            house.rooms.send_state(&alice, &id, TimelineEventType::RoomTopic, "", &topic, None).await.unwrap();
        }
    }
    let third = House::open(&database).await;
    assert_eq!(third.bodies(&alice, &id).await.len(), 40);
}

/// A client that was told of an event by one process and asks another, which has not heard of it, gets the page that it asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_process_that_is_ahead_is_good_at_another_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let (ahead, behind) = (House::open(&database).await, House::open(&database).await);
    let alice = ahead.user("alice").await;
    let id = ahead.rooms.create_room(&alice, room(Preset::PrivateChat)).await.unwrap();
    for n in 0..3 {
        ahead.say(&alice, &id, &n.to_string(), &n.to_string()).await.unwrap();
    }
    assert!(behind.storage.published() < ahead.storage.published());
    let token = model::StreamToken::at(ahead.storage.published()).to_string();
    let asked = PageRequest { from: Some(&token), ..page(TimelineDirection::Backward, 2) };
    let found = behind.rooms.messages(&alice, &id, asked, |_| true).await.unwrap().events;
    let bodies: Vec<&str> = found.iter().map(|event| event.pdu.content.get()).collect();
    assert_eq!(bodies, [r#"{"body":"2","msgtype":"m.text"}"#, r#"{"body":"1","msgtype":"m.text"}"#]);
}

/// Client-Server API, "Avoiding duplicate annotations": the processes of a cluster do not know of each other what they are about to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_equal_reactions_in_two_processes_one_passes_on_postgres() {
    let Some(database) = TestDatabase::postgres().await else { return };
    let (one, two) = (House::open(&database).await, House::open(&database).await);
    let alice = one.user("alice").await;
    let id = one.rooms.create_room(&alice, room(Preset::PrivateChat)).await.unwrap();
    for round in 0..10 {
        let parent = one.say(&alice, &id, &format!("p{round}"), "parent").await.unwrap();
        let relates_to = json!({"rel_type": "m.annotation", "event_id": parent, "key": "a"});
        let content = to_raw_value(&json!({"m.relates_to": relates_to})).unwrap();
        let (first, second) = (format!("a{round}"), format!("b{round}"));
        let react = async |house: &House, txn: &str| {
            house.rooms.send_message(&alice, &id, "m.reaction".into(), txn.into(), &content, None).await
        };
        let results = <[_; 2]>::from(tokio::join!(react(&one, &first), react(&two, &second)));
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "round {round}: {results:?}");
        assert!(results.iter().any(|result| matches!(result, Err(Error::DuplicateAnnotation))), "{results:?}");
        let sent = results.into_iter().find_map(Result::ok).unwrap();
        two.rooms.redact(&alice, &id, &sent, first.as_str().into(), None).await.unwrap();
        react(&two, &format!("c{round}")).await.unwrap();
    }
}
