//! Messages from device to device.

use std::collections::BTreeMap;

use accounts::{Accounts, Error, Options, Requester, SessionRequest, to_device::Messages};
use model::Position;
use ruma::{serde::Raw, to_device::DeviceIdOrAllDevices, user_id};
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
