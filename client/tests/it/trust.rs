//! People who make sure of each other, and servers that would like them to be sure of somebody else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use client::{
    Error, Event,
    cross_signing::{IdentityTrust, PrivateKeys},
    verification::Stage,
};
use ruma::UserId;
use test_kit::TestServer;

use crate::{
    people::{Person, encrypted_room},
    relay::Relay,
};

/// How long anything may take.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Lets people sync until something is there.
pub(crate) async fn until<T>(people: &[&Person], mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            for person in people {
                person.sync().await;
            }
        }
    };
    tokio::time::timeout(WAIT_MAX, wait).await.expect("it happens")
}

async fn stage(person: &Person, flow_id: &str) -> Option<Stage> {
    person.client.verifications().await.into_iter().find(|one| one.flow_id == flow_id).map(|one| one.stage)
}

/// One asks, the other agrees, and both see what they have to compare. Returns what the verification is called.
async fn compare(one: &Person, other: &Person) -> String {
    let id = one.client.request_verification(other.client.user_id()).await.unwrap();
    let both = [one, other];
    let asked = Stage::Requested { by_us: false };
    until(&both, async || (stage(other, &id).await == Some(asked.clone())).then_some(())).await;
    other.client.accept_verification(one.client.user_id(), &id).await.unwrap();
    let codes = until(&both, async || match (stage(one, &id).await, stage(other, &id).await) {
        (Some(Stage::Comparing(one)), Some(Stage::Comparing(other))) => Some((one, other)),
        _ => None,
    });
    let (ours, theirs) = codes.await;
    assert_eq!(ours, theirs);
    assert!(ours.emoji.is_some());
    id
}

/// They verify each other.
pub(crate) async fn verify(one: &Person, other: &Person) {
    let id = compare(one, other).await;
    one.client.confirm_verification(other.client.user_id(), &id).await.unwrap();
    other.client.confirm_verification(one.client.user_id(), &id).await.unwrap();
    until(&[one, other], async || {
        let done = (stage(one, &id).await, stage(other, &id).await);
        matches!(done, (Some(Stage::Done { .. }), Some(Stage::Done { .. }))).then_some(())
    })
    .await;
}

async fn trust(person: &Person, of: &UserId) -> Option<IdentityTrust> {
    person.client.identity_trust(of).await.unwrap()
}

async fn is_verified(person: &Person, other: &Person) -> bool {
    person.client.is_verified(other.client.user_id(), other.client.device_id()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_verify_each_other_in_their_room_and_trust_each_others_devices() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    for person in [&alice, &bob] {
        person.client.make_identity(None, false).await.unwrap();
    }
    encrypted_room(&alice, &[&bob]).await;
    until(&[&alice, &bob], async || {
        (trust(&alice, bob.client.user_id()).await?, trust(&bob, alice.client.user_id()).await?).into()
    })
    .await;
    assert_eq!(trust(&alice, bob.client.user_id()).await, Some(IdentityTrust::Pinned));
    assert!(!is_verified(&alice, &bob).await);

    verify(&alice, &bob).await;
    for (one, other) in [(&alice, &bob), (&bob, &alice)] {
        assert_eq!(trust(one, other.client.user_id()).await, Some(IdentityTrust::Verified));
        assert!(is_verified(one, other).await, "the device is vouched for by its owner");
    }
    // A device that Bob adds and signs needs nobody to look at it.
    let recovery = bob.client.enable_recovery(None).await.unwrap();
    let laptop = bob.another_device().await;
    laptop.client.recover(&recovery).await.unwrap();
    until(&[&alice], async || is_known(&alice, &laptop).await.then_some(())).await;
    until(&[&alice], async || is_verified(&alice, &laptop).await.then_some(())).await;
    // Alice's restarted client still knows.
    let alice = alice.restarted().await;
    assert_eq!(trust(&alice, bob.client.user_id()).await, Some(IdentityTrust::Verified));
}

async fn is_known(person: &Person, other: &Person) -> bool {
    let devices = person.client.devices(other.client.user_id()).await.unwrap();
    devices.iter().any(|device| device.device_id == other.client.device_id())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_device_that_is_verified_gets_the_secrets_and_is_signed() {
    let server = TestServer::start().await;
    let laptop = Person::new(&server, "alice").await;
    laptop.client.make_identity(None, false).await.unwrap();
    laptop.client.enable_backup(false).await.unwrap();
    let phone = laptop.another_device().await;
    let own = laptop.client.user_id().to_owned();
    until(&[&laptop, &phone], async || is_known(&laptop, &phone).await.then_some(())).await;
    assert_eq!(trust(&phone, &own).await, Some(IdentityTrust::Pinned), "it has not seen the private keys");
    assert!(phone.client.enable_recovery(None).await.is_err(), "it has no private keys");

    verify(&phone, &laptop).await;
    assert_eq!(trust(&phone, &own).await, Some(IdentityTrust::Verified));
    // All three private keys and that of the backup come over.
    until(&[&laptop, &phone], async || phone.client.backup_key().await.unwrap()).await;
    until(&[&laptop, &phone], async || phone.client.enable_recovery(None).await.ok()).await;
    let ours = laptop.client.backup_key().await.unwrap().expect("it made it").public_key();
    assert_eq!(phone.client.backup_key().await.unwrap().expect("it came").public_key(), ours);
    assert!(is_verified(&laptop, &phone).await && is_verified(&phone, &laptop).await);
    // Others see that it is signed, though they verified nobody.
    let bob = Person::new(&server, "bob").await;
    let devices = bob.client.devices(&own).await.unwrap();
    let phones = devices.iter().find(|device| device.device_id == phone.client.device_id()).expect("it is known");
    let signatures = phones.keys["signatures"][own.as_str()].as_object().expect("it is signed");
    assert_eq!(signatures.len(), 2, "by itself and by its owner's identity: {signatures:?}");
}

/// Who is killed before a secret is worked off has heard it, so the server does not give it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_were_lost_on_their_way_are_asked_for_again() {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let laptop = Person::new(&server, "alice").await;
    laptop.client.make_identity(None, false).await.unwrap();
    laptop.client.enable_backup(false).await.unwrap();
    let phone = Person::by_way_of(relay.address(), laptop.user.clone()).await;
    until(&[&laptop, &phone], async || is_known(&laptop, &phone).await.then_some(())).await;
    let lost = Arc::new(AtomicUsize::new(0));
    relay.alter({
        let lost = lost.clone();
        move |path, body| {
            if let Some(events) = body.pointer_mut("/to_device/events").and_then(serde_json::Value::as_array_mut)
                && path.contains("/sync")
            {
                let all = events.len();
                events.retain(|event| event["type"] != "m.room.encrypted");
                lost.fetch_add(all - events.len(), Ordering::Relaxed);
            }
        }
    });
    verify(&phone, &laptop).await;
    until(&[&laptop, &phone], async || (lost.load(Ordering::Relaxed) >= 4).then_some(())).await;
    assert!(phone.client.backup_key().await.unwrap().is_none());
    relay.heal();
    let phone = phone.killed().await;
    until(&[&laptop, &phone], async || phone.client.backup_key().await.unwrap()).await;
    until(&[&laptop, &phone], async || phone.client.has_identity_keys().await.unwrap().then_some(())).await;
    let asked = relay.seen("/sendToDevice/m.secret.request/").len();
    phone.sync().await;
    assert_eq!(relay.seen("/sendToDevice/m.secret.request/").len(), asked, "everything is here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_see_different_pictures_trust_nobody() {
    let server = TestServer::start().await;
    let (alice, bob) = (Person::new(&server, "alice").await, Person::new(&server, "bob").await);
    for person in [&alice, &bob] {
        person.client.make_identity(None, false).await.unwrap();
    }
    encrypted_room(&alice, &[&bob]).await;
    let id = compare(&alice, &bob).await;
    alice.client.reject_verification(bob.client.user_id(), &id).await.unwrap();
    let cancelled = until(&[&alice, &bob], async || match stage(&bob, &id).await {
        Some(Stage::Cancelled { code, by_us: false, .. }) => Some(code),
        _ => None,
    })
    .await;
    assert_eq!(cancelled.as_str(), "m.mismatched_sas");
    assert!(bob.client.confirm_verification(alice.client.user_id(), &id).await.is_err());
    assert_eq!(trust(&alice, bob.client.user_id()).await, Some(IdentityTrust::Pinned));
    assert_eq!(trust(&bob, alice.client.user_id()).await, Some(IdentityTrust::Pinned));
}

/// The keys that a server makes up for a user, in the form of an answer to `/keys/query`.
fn forged(user_id: &UserId) -> (PrivateKeys, serde_json::Value, serde_json::Value) {
    let private = PrivateKeys::generate();
    let keys = private.publish(user_id, |_| Ok(())).unwrap();
    let self_signing = keys.self_signing.expect("it was made").object;
    (private, keys.master.object.into(), self_signing.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_key_that_the_server_replaced_is_not_trusted_and_somebody_is_told() {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let alice = Person::by_way_of(relay.address(), server.user("alice").await).await;
    let bob = Person::new(&server, "bob").await;
    for person in [&alice, &bob] {
        person.client.make_identity(None, false).await.unwrap();
    }
    let bobs = bob.client.user_id().to_owned();
    let room = encrypted_room(&alice, &[&bob]).await;
    verify(&alice, &bob).await;
    assert_eq!(trust(&alice, &bobs).await, Some(IdentityTrust::Verified));

    let (private, master, self_signing) = forged(&bobs);
    relay.alter({
        let bobs = bobs.clone();
        move |path, body| {
            let user = bobs.as_str();
            if !path.contains("/keys/query") || body["master_keys"].get(user).is_none() {
                return;
            }
            (body["master_keys"][user], body["self_signing_keys"][user]) = (master.clone(), self_signing.clone());
            for (_, device) in body["device_keys"][user].as_object_mut().expect("devices") {
                let keys = device.as_object().expect("device keys");
                let signed = private.sign_device(&bobs, keys).expect("the key is here");
                for (key, signature) in signed["signatures"][user].as_object().expect("signatures") {
                    device["signatures"][user][key] = signature.clone();
                }
            }
        }
    });
    let mut events = alice.client.events();
    // Something changed, says the server, so it is asked.
    let laptop = bob.another_device().await;
    until(&[&alice], async || is_known(&alice, &laptop).await.then_some(())).await;
    assert_eq!(trust(&alice, &bobs).await, Some(IdentityTrust::Changed { was_verified: true }));
    assert!(!is_verified(&alice, &bob).await && !is_verified(&alice, &laptop).await);
    let told = async {
        loop {
            if let Event::IdentityChanged { user_id } = events.next().await.expect("the client is there") {
                return user_id;
            }
        }
    };
    assert_eq!(tokio::time::timeout(WAIT_MAX, told).await.expect("somebody is told"), bobs);
    // Also not after a restart; and when it is accepted, nobody has compared it.
    let alice = alice.restarted().await;
    assert_eq!(trust(&alice, &bobs).await, Some(IdentityTrust::Changed { was_verified: true }));
    match alice.client.send_text(&room, "for whom?").await {
        Err(Error::IdentityChanged(users)) => assert_eq!(users.as_slice(), std::slice::from_ref(&bobs)),
        other => panic!("{other:?}"),
    }
    alice.client.accept_identity(&bobs).await.unwrap();
    assert_eq!(trust(&alice, &bobs).await, Some(IdentityTrust::Pinned));
    let sent = alice.client.send_text(&room, "for the new one").await.unwrap();
    assert_eq!(laptop.hears(&sent).await.body(), Some("for the new one"));
    assert!(!is_verified(&alice, &bob).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_identity_needs_no_password_and_another_one_does() {
    let server = TestServer::start().await;
    let alice = Person::new(&server, "alice").await;
    alice.client.make_identity(None, false).await.unwrap();
    let own = alice.client.user_id();
    assert_eq!(trust(&alice, own).await, Some(IdentityTrust::Verified));
    assert!(matches!(alice.client.make_identity(None, false).await, Err(client::Error::IdentityExists)));
    let phone = alice.another_device().await;
    assert!(matches!(phone.client.make_identity(None, false).await, Err(client::Error::IdentityExists)));
    let refused = phone.client.make_identity(None, true).await;
    assert!(matches!(refused, Err(client::Error::NeedsAuthentication(_))), "{refused:?}");
    phone.client.make_identity(Some("alice's password"), true).await.unwrap();
    assert_eq!(trust(&phone, own).await, Some(IdentityTrust::Verified));
    until(&[&alice], async || {
        (trust(&alice, own).await == Some(IdentityTrust::Changed { was_verified: true })).then_some(())
    })
    .await;
}
