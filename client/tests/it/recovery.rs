//! New devices that get at what the old ones knew, by a key that the user kept.

use client::{Error, Event, Recovered, cross_signing::IdentityTrust};
use serde_json::{Value, json};
use test_kit::TestServer;

use crate::{
    people::{Person, encrypted_room, texts},
    relay::{Relay, two_and_a_relay},
    trust::until,
};

/// Syncs until everything is in the backup.
async fn backed_up(person: &Person) {
    until(&[person], async || (person.client.keys_to_back_up().await.unwrap() == Some(0)).then_some(())).await;
}

/// Alice has said something in a room, her room keys are in the backup, and the keys to all of it in secret storage.
async fn with_history(server: &TestServer, passphrase: Option<&str>) -> (Person, Person, ruma::OwnedRoomId, String) {
    let (alice, bob) = (Person::new(server, "alice").await, Person::new(server, "bob").await);
    let room = encrypted_room(&alice, &[&bob]).await;
    alice.client.send_text(&room, "said before there was a backup").await.unwrap();
    alice.client.make_identity(None, false).await.unwrap();
    alice.client.enable_backup(false).await.unwrap();
    let heard = bob.client.send_text(&room, "heard").await.unwrap();
    alice.hears(&heard).await;
    backed_up(&alice).await;
    let recovery = alice.client.enable_recovery(passphrase).await.unwrap();
    (alice, bob, room, recovery.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_device_reads_the_history_by_the_recovery_key() {
    let server = TestServer::start().await;
    let (alice, _bob, room, recovery) = with_history(&server, None).await;
    let phone = alice.another_device().await;
    phone.sync().await;
    assert_eq!(texts(&phone, &room).await, [""; 0]);
    assert_eq!(phone.client.recover(&recovery).await.unwrap(), Recovered { identity: true, backup: true });
    assert_eq!(phone.client.restore_backup().await.unwrap(), 2);
    assert_eq!(texts(&phone, &room).await, ["said before there was a backup", "heard"]);
    assert_eq!(phone.client.restore_backup().await.unwrap(), 0, "they are here already");
    assert_eq!(phone.client.keys_to_back_up().await.unwrap(), Some(0), "they came from there");
    assert_eq!(phone.client.identity_trust(alice.client.user_id()).await.unwrap(), Some(IdentityTrust::Verified));
    until(&[&alice], async || {
        alice.client.devices(alice.client.user_id()).await.unwrap();
        alice
            .client
            .is_verified(phone.client.user_id(), phone.client.device_id())
            .await
            .is_ok_and(|it| it)
            .then_some(())
    })
    .await;
    // What the new device says goes into the same backup.
    phone.client.send_text(&room, "said on the new device").await.unwrap();
    backed_up(&phone).await;
    let tablet = alice.another_device().await;
    tablet.sync().await;
    tablet.client.recover(&recovery).await.unwrap();
    tablet.client.restore_backup().await.unwrap();
    assert_eq!(texts(&tablet, &room).await.last().map(String::as_str), Some("said on the new device"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passphrase_opens_it_and_a_wrong_one_asks_for_nothing() {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let (alice, _bob, room, _) = with_history(&server, Some("correct horse")).await;
    let phone = Person::by_way_of(relay.address(), alice.user.clone()).await;
    phone.sync().await;
    for wrong in ["wrong horse", "EsTc LW2K PGiF wKEA 3As5 g5c4 BXwk qeeJ ZJV8 Q9fu gUMN UE4d"] {
        let refused = phone.client.recover(wrong).await;
        assert!(matches!(refused, Err(Error::WrongSecretStorageKey)), "{refused:?}");
    }
    assert!(relay.seen("/account_data/m.cross_signing").is_empty(), "no secret was asked for");
    assert!(relay.seen("/room_keys/").is_empty(), "no backup was asked for");
    assert_eq!(phone.client.recover("correct horse").await.unwrap(), Recovered { identity: true, backup: true });
    phone.client.restore_backup().await.unwrap();
    assert_eq!(texts(&phone, &room).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backups_own_key_opens_it_and_that_of_another_version_asks_for_nothing() {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let (alice, _bob, room, _) = with_history(&server, None).await;
    let phone = Person::by_way_of(relay.address(), alice.user.clone()).await;
    phone.sync().await;
    let wrong = client::backup::BackupKey::generate().recovery_key();
    assert!(matches!(phone.client.use_backup(&wrong).await, Err(Error::WrongBackupKey)));
    assert!(matches!(phone.client.use_backup("EsTc").await, Err(Error::MistypedKey)));
    assert!(matches!(phone.client.restore_backup().await, Err(Error::Absent(_))));
    assert!(relay.seen("/room_keys/keys").is_empty(), "no room key was asked for");
    let right = alice.client.backup_key().await.unwrap().expect("it made it").recovery_key();
    phone.client.use_backup(&right).await.unwrap();
    assert_eq!(phone.client.restore_backup().await.unwrap(), 2);
    assert_eq!(texts(&phone, &room).await.len(), 2);
}

/// The server, or whoever has the user's token, makes another version: no room key goes there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_a_stranger_made_gets_no_keys() {
    let server = TestServer::start().await;
    let (alice, bob, room, _) = with_history(&server, None).await;
    let stranger = client::backup::BackupKey::generate();
    let version = json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": stranger.auth_data() });
    let version = alice.user.post("/room_keys/version", &version).await.ok()["version"].as_str().unwrap().to_owned();
    let mut events = alice.client.events();
    let laptop = bob.another_device().await;
    laptop.sync().await;
    let said = laptop.client.send_text(&room, "by a new key").await.unwrap();
    alice.hears(&said).await;
    until(&[&alice], async || alice.client.keys_to_back_up().await.unwrap().is_none().then_some(())).await;
    let told = async {
        loop {
            if matches!(events.next().await.expect("the client is there"), Event::BackupReplaced) {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), told).await.expect("somebody is told");
    let there = alice.user.get(&format!("/room_keys/version/{version}")).await.ok();
    assert_eq!(there["count"], 0);
}

/// The user resets the backup on one device: the other goes on with the new one, since that is signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_a_device_of_ours_made_anew_is_gone_on_with() {
    let server = TestServer::start().await;
    let (alice, bob, room, recovery) = with_history(&server, None).await;
    let phone = alice.another_device().await;
    phone.sync().await;
    phone.client.recover(&recovery).await.unwrap();
    phone.client.enable_backup(true).await.unwrap();
    let laptop = bob.another_device().await;
    laptop.sync().await;
    let said = laptop.client.send_text(&room, "by a new key").await.unwrap();
    alice.hears(&said).await;
    backed_up(&alice).await;
    let now: Value = alice.user.get("/room_keys/version").await.ok();
    assert_eq!(now["count"], 3, "all keys, the old ones too");
    assert_eq!(alice.client.backup_key().await.unwrap().map(|_| ()), None, "it can put keys in, and take none out");
    phone.hears(&said).await;
    assert!(phone.client.restore_backup().await.is_ok());
    assert_eq!(texts(&phone, &room).await.len(), 3);
}

/// A server that refuses keys for the version that it shows was asked again at once, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_takes_no_keys_is_left_alone() {
    let (_server, relay, alice, bob, room) = two_and_a_relay().await;
    alice.client.enable_backup(false).await.unwrap();
    alice.client.send_text(&room, "by a key that it does not get").await.unwrap();
    relay.refuse("/room_keys/keys", 404, "M_NOT_FOUND");
    tokio::time::timeout(std::time::Duration::from_secs(30), alice.sync()).await.expect("it ends");
    assert_eq!(relay.seen("/room_keys/keys").len(), 2);
    relay.heal();
    bob.client.send_text(&room, "another key").await.unwrap();
    backed_up(&alice).await;
}

/// Whoever is interrupted was not shown the new key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_former_recovery_key_opens_everything_when_making_another_is_interrupted() {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let alice = Person::by_way_of(relay.address(), server.user("alice").await).await;
    alice.client.make_identity(None, false).await.unwrap();
    alice.client.enable_backup(false).await.unwrap();
    let former = alice.client.enable_recovery(None).await.unwrap();
    relay.refuse("/account_data/m.cross_signing.user_signing", 403, "M_FORBIDDEN");
    let interrupted = alice.client.enable_recovery(None).await;
    assert!(matches!(interrupted, Err(Error::Refused { status: 403, .. })), "{interrupted:?}");
    relay.heal();
    let phone = alice.another_device().await;
    assert_eq!(phone.client.recover(&former).await.unwrap(), Recovered { identity: true, backup: true });
    let next = alice.client.enable_recovery(None).await.unwrap();
    let tablet = alice.another_device().await;
    assert!(matches!(tablet.client.recover(&former).await, Err(Error::WrongSecretStorageKey)));
    assert_eq!(tablet.client.recover(&next).await.unwrap(), Recovered { identity: true, backup: true });
}
