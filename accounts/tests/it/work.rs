//! What changes of users cause.

use accounts::Options;
use model::Position;
use ruma::user_id;
use serde_json::json;
use storage::{ChangedKeys, Commit, DeviceKeyUpload, Item, NewToDevice, UserWork};

use crate::World;

/// Who follows a user's devices or profile would never hear of a change whose process ended between the change and telling of it.
#[tokio::test]
async fn a_change_is_told_though_its_process_ended_before_that() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let (user_nr, device) = (alice.user_nr, alice.device());
        let storage = world.accounts.storage();
        let mut stream = storage.subscribe();
        let keys = DeviceKeyUpload { device_keys: Some("{}".to_owned()), ..DeviceKeyUpload::default() };
        for change in ["keys", "cross-signing", "name", "field", "no field", "log-out", "end"] {
            // 1. All that such a process has done.
            match change {
                "keys" => storage.upload_device_keys(user_nr, device, &keys).await.map(drop),
                "cross-signing" => storage
                    .upsert_cross_signing_keys(user_nr, &[], &[("master", "{}".to_owned())], false)
                    .await
                    .map(drop),
                "name" => storage.update_device_name(user_nr, device, Some("desk".to_owned())).await,
                "field" => storage.upsert_profile_field(user_nr, "m.tz", "\"UTC\"", 1_000).await.map(drop),
                "no field" => storage.delete_profile_field(user_nr, "m.tz").await,
                "log-out" => storage.delete_devices(user_nr, &[device.to_owned()]).await,
                _ => storage.deactivate_user(user_nr, false).await,
            }
            .unwrap();
            assert!(stream.try_recv().is_err());
            // 2. The next one starts.
            let mut told = async || {
                world.accounts.run(std::future::ready(())).await;
                let mut told = (false, false);
                while let Ok(published) = stream.try_recv() {
                    for (_, item) in &published.items {
                        match item {
                            Item::DeviceList(who) => told.0 |= *who == user_nr,
                            Item::Profile(who) => told.1 |= *who == user_nr,
                            other => panic!("{change}: {other:?}"),
                        }
                    }
                }
                told
            };
            let is_profile = change.contains("field");
            assert_eq!(told().await, (!is_profile, is_profile || change == "end"), "{change}");
            assert_eq!(told().await, (false, false), "{change} is told once");
        }
    }
}

/// Other servers would take the next change to follow on the last that they were told, and never learn of the one between.
#[tokio::test]
async fn a_change_of_a_device_that_is_noted_while_other_work_is_done_stays_to_be_told() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let (user_nr, device) = (alice.user_nr, alice.device());
        let storage = world.accounts.storage();
        // As it is for a process that has read what is to be done just before the device was named.
        storage.update_device_name(user_nr, device, Some("desk".to_owned())).await.unwrap();
        for work in storage.list_user_work(user_nr).await.unwrap() {
            assert_eq!(work.work, UserWork::TellDevices);
            storage.delete_user_work(user_nr, work).await.unwrap();
        }
        world.accounts.set_profile_field(user_nr, "m.tz", &json!("UTC")).await.unwrap();
        let noted = storage.list_changed_keys(user_nr).await.unwrap();
        assert_eq!(noted.iter().map(|row| &row.what).collect::<Vec<_>>(), [&ChangedKeys::Device(device.to_owned())]);
        // The next change of a device tells it with its own.
        world.accounts.name_device(&alice, device, Some("sofa".to_owned())).await.unwrap();
        assert!(storage.list_changed_keys(user_nr).await.unwrap().is_empty());
    }
}

/// MSC4133, "Propagation of Profile Fields": a user may be in thousands of rooms, which show name and picture only.
#[tokio::test]
async fn rooms_are_told_of_name_and_picture_only() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let storage = world.accounts.storage();
        let told = async || storage.list_profile_changes(Position(0), Position(i64::MAX), 10).await.unwrap().len();
        for (field, value, expected) in [
            ("m.tz", "UTC", 0),
            ("displayname", "Alice", 1),
            ("org.example.x", "x", 1),
            ("avatar_url", "mxc://one.test/a", 2),
            ("avatar_url", "", 3),
        ] {
            world.accounts.set_profile_field(alice.user_nr, field, &json!(value)).await.unwrap();
            assert_eq!(told().await, expected, "{field}");
        }
        world.accounts.deactivate(&alice, false).await.unwrap();
        assert_eq!(told().await, 3, "rooms that are left need not follow");
        // A request that was under way when the account was closed leaves nothing behind.
        world.accounts.set_profile_field(alice.user_nr, "displayname", &json!("Alice")).await.unwrap();
        assert_eq!(storage.list_profile(alice.user_nr).await.unwrap(), []);
    }
}

#[tokio::test]
async fn what_changes_nothing_is_not_told() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let before = world.accounts.storage().published();
        world.accounts.delete_profile_field(alice.user_nr, "m.tz").await.unwrap();
        world.accounts.delete_devices(&alice, &["NONE".to_owned()]).await.unwrap();
        assert_eq!(world.accounts.storage().published(), before);
    }
}

#[tokio::test]
async fn nothing_waits_for_the_devices_of_a_deactivated_user() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let bob = world.user(user_id!("@bob:one.test")).await;
        let message = |requester: &accounts::Requester| NewToDevice {
            user_nr: requester.user_nr,
            device_id: requester.device().to_owned(),
            message: "{}".into(),
        };
        let mut to_device = vec![message(&alice); 1_100];
        to_device.push(message(&bob));
        let storage = world.accounts.storage();
        storage.commit(Commit { to_device, ..Commit::default() }).await.unwrap();
        world.accounts.deactivate(&alice, false).await.unwrap();
        assert_eq!(storage.count_to_device(alice.user_nr, alice.device()).await.unwrap(), 0);
        assert_eq!(storage.count_to_device(bob.user_nr, bob.device()).await.unwrap(), 1);
    }
}
