//! Messages from device to device.

use std::collections::BTreeMap;

use accounts::{Accounts, Error, Options, Requester, SessionRequest, to_device::Messages};
use model::Position;
use ruma::{
    UserId, api::federation::transactions::edu::DirectDeviceContent, serde::Raw, server_name,
    to_device::DeviceIdOrAllDevices, user_id,
};
use serde_json::{json, value::RawValue};

use crate::World;

fn to_all_devices_of(whom: &Requester, content: &str) -> Messages {
    let content = Raw::from_json(RawValue::from_string(content.to_owned()).unwrap());
    BTreeMap::from([(whom.user_id.clone(), BTreeMap::from([(DeviceIdOrAllDevices::AllDevices, content)]))])
}

/// What waits for the requester's device.
async fn waiting(accounts: &Accounts, requester: &Requester) -> Vec<String> {
    let storage = accounts.storage();
    let (from, to) = (Position(0), Position(i64::MAX));
    let rows = storage.list_to_device(requester.user_nr, requester.device(), from, to, 10_000).await.unwrap();
    rows.into_iter().map(|(_, message)| message).collect()
}

/// A client that cannot parse an answer asks again with the same token, and gets the same answer, for ever.
#[tokio::test]
async fn content_that_no_client_can_read_is_refused() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let bob = world.user(user_id!("@bob:one.test")).await;
        let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(5_000), "]".repeat(5_000));
        for content in [r#"{"x":"\ud800"}"#, deep.as_str(), "[]", r#"{"x":1e999}"#] {
            let messages = to_all_devices_of(&bob, content);
            let refused = world.accounts.send_to_device(&alice, "m.test", "t".into(), messages).await;
            assert!(matches!(refused, Err(Error::BadJson(_))), "{content}: {refused:?}");
        }
        assert!(waiting(&world.accounts, &bob).await.is_empty());
        let messages = to_all_devices_of(&bob, r#"{ "x": "\ud83d\ude00" }"#);
        world.accounts.send_to_device(&alice, "m.test", "t".into(), messages).await.unwrap();
        let event: serde_json::Value = serde_json::from_str(&waiting(&world.accounts, &bob).await[0]).unwrap();
        assert_eq!(event["content"], json!({"x": "😀"}));
    }
}

/// The names are in an index, and one that does not fit makes the commits of others fail that are in the same group.
#[tokio::test]
async fn names_that_cannot_be_looked_up_are_refused() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let long = "x".repeat(256);
        for (event_type, transaction_id) in
            [(long.as_str(), "t"), ("m\0", "t"), ("", "t"), ("m.test", long.as_str()), ("m.test", "t\0")]
        {
            let messages = to_all_devices_of(&alice, "{}");
            let refused = world.accounts.send_to_device(&alice, event_type, transaction_id.into(), messages).await;
            assert!(matches!(refused, Err(Error::InvalidParam(_))), "{event_type:?} {transaction_id:?}: {refused:?}");
        }
        let user = world.accounts.check_password(Some(&alice.user_id), "secret").await.unwrap();
        for device_id in [long.as_str(), "D\0", ""] {
            let request = SessionRequest { device_id: Some(device_id.into()), ..SessionRequest::default() };
            let refused = world.accounts.log_in(&user, request).await;
            assert!(matches!(refused, Err(Error::InvalidParam(_))), "{device_id:?}: {refused:?}");
        }
        let refused = world.accounts.set_account_data(alice.user_nr, None, "m\0", "{}").await;
        assert!(matches!(refused, Err(Error::InvalidParam(_))), "{refused:?}");
    }
}

/// All devices of a request are written at once, and everybody else waits meanwhile.
#[tokio::test]
async fn a_request_has_a_bound_over_all_devices_that_get_it() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let user = world.accounts.check_password(Some(&alice.user_id), "secret").await.unwrap();
        for _ in 1..70 {
            world.accounts.log_in(&user, SessionRequest::default()).await.unwrap();
        }
        let messages = to_all_devices_of(&alice, &json!({"x": "x".repeat(65_000)}).to_string());
        let refused = world.accounts.send_to_device(&alice, "m.test", "t".into(), messages).await;
        assert!(matches!(refused, Err(Error::TooLarge(_))), "{refused:?}");
        assert!(waiting(&world.accounts, &alice).await.is_empty(), "nothing was sent");
        let messages = to_all_devices_of(&alice, &json!({"x": "x".repeat(40_000)}).to_string());
        world.accounts.send_to_device(&alice, "m.test", "t".into(), messages).await.unwrap();
        assert_eq!(waiting(&world.accounts, &alice).await.len(), 1);
    }
}

/// A client that got no answer sends the request again, perhaps while the first one is still being written.
#[tokio::test]
async fn the_same_transaction_several_times_at_once_is_done_once() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        for round in 0..20 {
            let tasks: Vec<_> = (0..10)
                .map(|number| {
                    let accounts = if number % 3 == 0 { world.other.clone() } else { world.accounts.clone() };
                    let (alice, messages) = (alice.clone(), to_all_devices_of(&alice, "{}"));
                    let transaction_id = format!("t{round}");
                    tokio::spawn(async move {
                        accounts.send_to_device(&alice, "m.test", transaction_id.as_str().into(), messages).await
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap().unwrap();
            }
        }
        assert_eq!(waiting(&world.accounts, &alice).await.len(), 20);
    }
}

/// What a server says that `sender` sends.
fn from_elsewhere(sender: &UserId, message_id: &str, messages: Messages) -> DirectDeviceContent {
    let mut content = DirectDeviceContent::new(sender.to_owned(), "m.test".into(), message_id.into());
    content.messages = messages;
    content
}

/// Servers send a transaction again when they did not get the answer, and with other transaction ids after a restart.
#[tokio::test]
async fn a_message_of_another_server_is_delivered_once() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let (peer, one) = (server_name!("peer.test"), server_name!("one.test"));
        let sender = user_id!("@bob:peer.test");
        let message = |id: &str| from_elsewhere(sender, id, to_all_devices_of(&alice, &json!({"id": id}).to_string()));
        let first = vec![message("1"), message("1"), message("2")];
        world.accounts.receive_to_device(peer, one, first).await.unwrap();
        let tasks: Vec<_> = (0..10)
            .map(|number| {
                let accounts = if number % 3 == 0 { world.other.clone() } else { world.accounts.clone() };
                let again = vec![message("1"), message("3"), message("2"), message("4")];
                tokio::spawn(async move { accounts.receive_to_device(peer, one, again).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        // Another server may choose the same id.
        let elsewhere = from_elsewhere(user_id!("@c:other.test"), "1", to_all_devices_of(&alice, r#"{"id":"other"}"#));
        world.accounts.receive_to_device(server_name!("other.test"), one, vec![elsewhere]).await.unwrap();
        let ids: Vec<String> = waiting(&world.accounts, &alice)
            .await
            .iter()
            .map(|message| {
                let message: serde_json::Value = serde_json::from_str(message).unwrap();
                assert_eq!(message["type"], "m.test");
                message["content"]["id"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(ids, ["1", "2", "3", "4", "other"]);
    }
}

/// One that is broken must not keep the others of its transaction away.
#[tokio::test]
async fn of_another_server_only_good_messages_of_its_own_users_come() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let second = world.accounts.check_password(Some(&alice.user_id), "secret").await.unwrap();
        world.accounts.log_in(&second, SessionRequest::default()).await.unwrap();
        let elsewhere = world.user(user_id!("@alice:two.test")).await;
        let (peer, one) = (server_name!("peer.test"), server_name!("one.test"));
        let sender = user_id!("@bob:peer.test");
        let to = |device: &str, content: &str| {
            let content = Raw::from_json(RawValue::from_string(content.to_owned()).unwrap());
            let device = DeviceIdOrAllDevices::try_from(device).unwrap();
            BTreeMap::from([(alice.user_id.clone(), BTreeMap::from([(device, content)]))])
        };
        // A message for one device that cannot be taken costs the other its own no less.
        let mut half_good = from_elsewhere(sender, "half good", to(alice.device(), r#"{"good":3}"#));
        let other_device = |ids: Vec<(_, String)>| ids.into_iter().find(|(_, id)| id != alice.device()).unwrap().1;
        let other_device = other_device(world.accounts.storage().list_device_ids(&[alice.user_nr]).await.unwrap());
        let large = json!({"x": "x".repeat(66_000)}).to_string();
        for messages in to(&other_device, &large).into_values() {
            half_good.messages.get_mut(&alice.user_id).unwrap().extend(messages);
        }
        let mut odd_type = from_elsewhere(sender, "type", to("*", "{}"));
        odd_type.ev_type = "m\0".into();
        let sent = vec![
            from_elsewhere(user_id!("@eve:other.test"), "forged", to("*", r#"{"bad":1}"#)),
            from_elsewhere(user_id!("@alice:one.test"), "ours", to("*", r#"{"bad":2}"#)),
            from_elsewhere(sender, "list", to("*", "[]")),
            from_elsewhere(sender, "half", to("*", r#"{"x":"\ud800"}"#)),
            from_elsewhere(sender, "large", to("*", &json!({"x": "x".repeat(66_000)}).to_string())),
            from_elsewhere(sender, "nobody", to("NOBODY", r#"{"bad":3}"#)),
            from_elsewhere(sender, &"x".repeat(256), to("*", r#"{"bad":4}"#)),
            from_elsewhere(sender, "", to("*", r#"{"bad":5}"#)),
            odd_type,
            from_elsewhere(sender, "other name", to_all_devices_of(&elsewhere, r#"{"bad":6}"#)),
            from_elsewhere(sender, "all", to("*", r#"{"good":1}"#)),
            from_elsewhere(sender, "one", to(alice.device(), r#"{"good":2}"#)),
            half_good,
        ];
        world.accounts.receive_to_device(peer, one, sent).await.unwrap();
        let contents: Vec<String> = waiting(&world.accounts, &alice).await;
        let good = |n: u8| format!(r#"{{"content":{{"good":{n}}},"sender":"@bob:peer.test","type":"m.test"}}"#);
        assert_eq!(contents, [good(1), good(2), good(3)]);
        let storage = world.accounts.storage();
        assert!(waiting(&world.accounts, &elsewhere).await.is_empty());
        let ids = storage.list_device_ids(&[alice.user_nr]).await.unwrap();
        for (_, device) in ids.iter().filter(|(_, device)| device != alice.device()) {
            assert_eq!(storage.count_to_device(alice.user_nr, device).await.unwrap(), 1, "all devices, and none twice");
        }
        assert_eq!(ids.len(), 2);
    }
}
