//! Who gets a room's key, by what is put into the outbox.

use std::sync::Arc;

use ruma::{UserId, room_id, serde::Raw, user_id};

use super::*;
use crate::{
    Kind, Store, StoreKey,
    account::KeyCounts,
    olm::{read_encrypted, read_payload},
    outbox::Outbox,
    rooms::ROOMS,
};

const OUTBOX: Kind = Kind("outbox");

fn alice() -> &'static UserId {
    user_id!("@alice:example.org")
}

fn bob() -> &'static UserId {
    user_id!("@bob:example.org")
}

fn room() -> Room {
    let mut room = Room::new(room_id!("!room:example.org").to_owned());
    room.membership = Membership::Join;
    for (event_type, state_key, content) in [
        ("m.room.encryption", "", json!({ "algorithm": MEGOLM })),
        ("m.room.member", alice().as_str(), json!({ "membership": "join" })),
        ("m.room.member", bob().as_str(), json!({ "membership": "join" })),
    ] {
        room.apply(event_type, state_key, content.as_object().unwrap());
    }
    room
}

/// Alice's machine, which knows a room with Bob and his devices and has a session with each.
async fn machine(folder: &tempfile::TempDir, bobs: &mut [Account]) -> Machine {
    let store = Store::open(&folder.path().join("store"), &StoreKey::raw([1; 32])).await.unwrap();
    let mut batch = Batch::new();
    Account::new(alice().to_owned(), "PHONE".into()).save(&mut batch);
    batch.put(ROOMS, room().room_id.as_str(), &room());
    let mut list = DeviceList::default();
    let keys = bobs.iter().map(|account| (account.device_id().to_owned(), Value::Object(account.device_keys())));
    assert!(list.update(bob(), keys.collect(), 0).is_empty());
    batch.put(DEVICES, bob().as_str(), &list);
    store.commit(batch).await.unwrap();
    let outbox = Arc::new(Outbox::load(&store).await.unwrap());
    let mut machine = Machine::load(store, outbox).await.unwrap();

    let mut claimed = BTreeMap::new();
    for account in bobs {
        account.refill(KeyCounts { one_time: 49, ..KeyCounts::default() }, 0);
        let (id, key) = account.to_upload().one_time_keys.remove(0);
        let key = Raw::new(&key).unwrap().cast_unchecked();
        claimed.insert(account.device_id().to_owned(), BTreeMap::from([(id.as_str().try_into().unwrap(), key)]));
    }
    let answer = claim_keys::v3::Response::new(BTreeMap::from([(bob().to_owned(), claimed)]));
    let devices = machine.without_session(&room().room_id).await.unwrap();
    machine.begin_sessions(&devices, &answer).await.unwrap();
    assert!(machine.without_session(&room().room_id).await.unwrap().is_empty());
    machine
}

/// What was put into the outbox since this was asked last, in order: to-device messages, and events.
async fn posted(machine: &Machine) -> (Vec<Value>, usize) {
    let mut entries: Vec<(u64, Value)> = machine
        .store
        .list::<Value>(OUTBOX)
        .await
        .unwrap()
        .into_iter()
        .map(|(number, entry)| (number.parse().unwrap(), entry))
        .collect();
    entries.sort_by_key(|(number, _)| *number);
    let mut batch = Batch::new();
    entries.iter().for_each(|(number, _)| batch.delete(OUTBOX, number.to_string()));
    machine.store.commit(batch).await.unwrap();
    let is_event = |entry: &Value| entry["outgoing"].get("Room").is_some();
    let events = entries.iter().filter(|(_, entry)| is_event(entry)).count();
    assert!(entries.last().is_some_and(|(_, entry)| is_event(entry)), "keys leave before the message");
    let messages = entries.iter().map(|(_, entry)| entry["outgoing"]["ToDevice"]["messages"][bob().as_str()].clone());
    (messages.filter(|messages| !messages.is_null()).collect(), events)
}

fn device_count(requests: &[Value]) -> Vec<usize> {
    requests.iter().map(|devices| devices.as_object().unwrap().len()).collect()
}

/// Each device gets the key once, many in a request; whoever is gone ends it.
#[tokio::test]
async fn all_devices_of_a_room_get_its_key_once_until_one_of_them_is_gone() {
    let mut bobs: Vec<Account> =
        (0..520).map(|index| Account::new(bob().to_owned(), format!("D{index:03}").into())).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(&folder, &mut bobs).await;
    let (room_id, content) = (room().room_id, json!({ "body": "hello" }));
    machine.post(&room_id, "m.room.message", &content, true).await.unwrap();
    let (requests, events) = posted(&machine).await;
    assert_eq!((device_count(&requests), events), (vec![250, 250, 20], 1));

    let last = bobs.last_mut().unwrap();
    let message = requests[2][last.device_id().as_str()].as_object().unwrap().clone();
    let (sender_key, message) = read_encrypted(last, &message).unwrap();
    let (plaintext, _) = Sessions::default().decrypt(last, sender_key, &message).unwrap();
    let plaintext = read_payload(last, bob(), alice(), sender_key, &plaintext).unwrap();
    assert_eq!((plaintext.event_type.as_str(), plaintext.sender_key), ("m.room_key", machine.curve25519));
    let first_session = plaintext.content["session_id"].clone();
    Inbound::from_room_key(&plaintext.content, alice(), "", "").unwrap();

    machine.post(&room_id, "m.room.message", &content, true).await.unwrap();
    let (requests, events) = posted(&machine).await;
    assert_eq!((device_count(&requests), events), (vec![], 1), "they have it");

    let mut list: DeviceList = machine.store.get(DEVICES, bob().as_str()).await.unwrap().unwrap();
    list.devices.remove(bobs[0].device_id());
    let mut batch = Batch::new();
    batch.put(DEVICES, bob().as_str(), &list);
    machine.store.commit(batch).await.unwrap();
    machine.post(&room_id, "m.room.message", &content, true).await.unwrap();
    let (requests, events) = posted(&machine).await;
    assert_eq!((device_count(&requests), events), (vec![250, 250, 19], 1));
    let outbound: Outbound = machine.store.get(OUTBOUND, room_id.as_str()).await.unwrap().unwrap();
    assert_ne!(json!(outbound.session_id()), first_session);
}

/// A device without a session is told so once, and gets the key when there is one.
#[tokio::test]
async fn a_device_that_cannot_be_reached_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(&folder, &mut []).await;
    let account = Account::new(bob().to_owned(), "LAPTOP".into());
    let mut list = DeviceList::default();
    list.update(bob(), BTreeMap::from([("LAPTOP".into(), Value::Object(account.device_keys()))]), 0);
    let mut batch = Batch::new();
    batch.put(DEVICES, bob().as_str(), &list);
    machine.store.commit(batch).await.unwrap();
    let (room_id, content) = (room().room_id, json!({ "body": "hello" }));
    // Its server was asked for a key, and has none.
    let devices = machine.without_session(&room_id).await.unwrap();
    machine.begin_sessions(&devices, &claim_keys::v3::Response::new(BTreeMap::new())).await.unwrap();
    machine.post(&room_id, "m.room.message", &content, true).await.unwrap();
    let (requests, events) = posted(&machine).await;
    assert_eq!((requests[0]["LAPTOP"]["code"].as_str(), requests.len(), events), (Some("m.no_olm"), 1, 1));
    assert_eq!(requests[0]["LAPTOP"].get("session_id"), None, "it is about all sessions");
    machine.post(&room_id, "m.room.message", &content, true).await.unwrap();
    assert_eq!(posted(&machine).await, (vec![], 1));
}

/// A one-time key of each device.
fn claimed(accounts: &[&Account]) -> claim_keys::v3::Response {
    let mut claimed = BTreeMap::new();
    for account in accounts {
        let (id, key) = account.to_upload().one_time_keys.remove(0);
        let key = Raw::new(&key).unwrap().cast_unchecked();
        claimed.insert(account.device_id().to_owned(), BTreeMap::from([(id.as_str().try_into().unwrap(), key)]));
    }
    claim_keys::v3::Response::new(BTreeMap::from([(bob().to_owned(), claimed)]))
}

fn with_keys(device_id: &str) -> Account {
    let mut account = Account::new(bob().to_owned(), device_id.into());
    account.refill(KeyCounts { one_time: 45, ..KeyCounts::default() }, 0);
    account
}

/// A question for Bob's devices is asked, and answered with these.
async fn learn(machine: &mut Machine, bobs: &[&Account]) {
    machine.follow(&[alice().to_owned(), bob().to_owned()]).await.unwrap();
    let question = machine.question(None).await.unwrap().expect("Bob's devices are outdated");
    let keys = bobs
        .iter()
        .map(|account| (account.device_id().to_owned(), Raw::new(&account.device_keys()).unwrap().cast_unchecked()));
    let mut answer = ruma::api::client::keys::get_keys::v3::Response::new();
    answer.device_keys.insert(bob().to_owned(), keys.collect());
    answer.device_keys.insert(alice().to_owned(), BTreeMap::new());
    machine.answered(question, answer).await.unwrap();
}

/// Bob's devices changed, says the server.
async fn change(machine: &mut Machine) {
    let mut work = Work::default();
    machine.devices_changed(&mut work, &[bob().to_owned()], &[]).await.unwrap();
    machine.commit(work).await.unwrap();
}

/// Client-Server API, "Tracking the device list for a user": the device that comes while others are asked for keys reads the message, too.
#[tokio::test]
async fn nothing_is_sent_before_all_devices_are_met() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(&folder, &mut []).await;
    let (phone, laptop) = (with_keys("PHONE"), with_keys("LAPTOP"));
    let (room_id, content) = (room().room_id, json!({ "body": "hello" }));
    learn(&mut machine, &[&phone]).await;
    assert!(machine.post(&room_id, "m.room.message", &content, false).await.unwrap().is_none(), "no session");
    let devices = machine.without_session(&room_id).await.unwrap();
    // While the phone's key is claimed the laptop comes.
    change(&mut machine).await;
    machine.begin_sessions(&devices, &claimed(&[&phone])).await.unwrap();
    assert!(machine.post(&room_id, "m.room.message", &content, false).await.unwrap().is_none(), "devices changed");
    learn(&mut machine, &[&phone, &laptop]).await;
    assert!(machine.post(&room_id, "m.room.message", &content, false).await.unwrap().is_none(), "no session");
    assert_eq!(machine.store.count(OUTBOX).await.unwrap(), 0);
    let devices = machine.without_session(&room_id).await.unwrap();
    machine.begin_sessions(&devices, &claimed(&[&laptop])).await.unwrap();
    assert!(machine.post(&room_id, "m.room.message", &content, false).await.unwrap().is_some());
    assert_eq!(device_count(&posted(&machine).await.0), [2]);
}

/// Nobody is told that there is no session with them before somebody tried to begin one.
#[tokio::test]
async fn a_device_that_was_not_asked_for_a_key_is_not_told_that_it_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(&folder, &mut []).await;
    learn(&mut machine, &[&with_keys("PHONE")]).await;
    machine.post(&room().room_id, "m.room.message", &json!({ "body": "hello" }), true).await.unwrap();
    assert_eq!(posted(&machine).await, (vec![], 1));
}

/// What Alice's machine said to one of Bob's devices.
fn heard(account: &mut Account, sessions: &mut Sessions, request: &Value) -> String {
    let content = request[account.device_id().as_str()].as_object().expect("a message").clone();
    let (sender_key, message) = read_encrypted(account, &content).unwrap();
    let (plaintext, _) = sessions.decrypt(account, sender_key, &message).unwrap();
    read_payload(account, bob(), alice(), sender_key, &plaintext).unwrap().event_type
}

/// Client-Server API, "Recovering from undecryptable messages": what was sent in the session before may be lost.
#[tokio::test]
async fn a_device_whose_session_was_replaced_gets_the_room_key_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(&folder, &mut []).await;
    let mut phone = with_keys("PHONE");
    let (room_id, content) = (room().room_id, json!({ "body": "hello" }));
    learn(&mut machine, &[&phone]).await;
    let devices = machine.without_session(&room_id).await.unwrap();
    machine.begin_sessions(&devices, &claimed(&[&phone])).await.unwrap();
    machine.post(&room_id, "m.room.message", &content, false).await.unwrap().unwrap();
    assert_eq!(device_count(&posted(&machine).await.0), [1]);
    let first: Outbound = machine.store.get(OUTBOUND, room_id.as_str()).await.unwrap().unwrap();

    // The phone begins a session of its own, since it lost ours.
    let own = Account::load(&machine.store, &Batch::new()).await.unwrap();
    let to_alice = Device::check(alice(), "PHONE".into(), Value::Object(own.device_keys()), None).unwrap();
    let mut own = own;
    own.refill(KeyCounts { one_time: 49, ..KeyCounts::default() }, 0);
    let mut batch = Batch::new();
    own.save(&mut batch);
    machine.store.commit(batch).await.unwrap();
    let key = own.to_upload().one_time_keys.remove(0).1;
    let key = check_one_time_key(&to_alice, key.as_object().unwrap()).unwrap();
    let mut sessions = Sessions::default();
    sessions.begin(&mut phone, own.curve25519(), key).unwrap();
    let dummy = payload(&phone, &phone.device_keys(), &to_alice, "m.dummy", &json!({}));
    let dummy = sessions.encrypt(&dummy).unwrap();
    let message =
        json!({ "type": "m.room.encrypted", "sender": bob(), "content": encrypted(&phone, &to_alice, &dummy) });
    let mut work = Work::default();
    machine.receive_to_device(&mut work, message.as_object().unwrap()).await.unwrap();
    machine.commit(work).await.unwrap();

    machine.post(&room_id, "m.room.message", &content, false).await.unwrap().unwrap();
    let (requests, _) = posted(&machine).await;
    assert_eq!(heard(&mut phone, &mut sessions, &requests[0]), "m.room_key");
    let second: Outbound = machine.store.get(OUTBOUND, room_id.as_str()).await.unwrap().unwrap();
    assert_eq!(second.session_id(), first.session_id(), "the session goes on");
    machine.post(&room_id, "m.room.message", &content, false).await.unwrap().unwrap();
    assert_eq!(device_count(&posted(&machine).await.0), [0_usize; 0], "it has it now");
}

/// A claim that fails leaves the session to be replaced later, also after a restart; one that was replaced is not again within the hour.
#[tokio::test]
async fn a_broken_session_stays_noted_until_there_is_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(&folder, &mut []).await;
    let mut phone = with_keys("PHONE");
    learn(&mut machine, &[&phone]).await;
    let no_olm = json!({ "type": "m.room_key.withheld", "sender": bob(), "content": {
        "algorithm": MEGOLM, "code": "m.no_olm", "sender_key": phone.curve25519().to_base64() } });
    let mut work = Work::default();
    machine.receive_to_device(&mut work, no_olm.as_object().unwrap()).await.unwrap();
    machine.commit(work).await.unwrap();
    assert_eq!(machine.broken_devices().await.unwrap().len(), 1);

    let (store, outbox) = (machine.store.clone(), machine.outbox.clone());
    drop(machine);
    let mut machine = Machine::load(store, outbox).await.unwrap();
    let devices = machine.broken_devices().await.unwrap();
    machine.begin_sessions(&devices, &claimed(&[&phone])).await.unwrap();
    let outgoing: Vec<Value> = machine.store.list(OUTBOX).await.unwrap().into_values().collect();
    let request = &outgoing[0]["outgoing"]["ToDevice"]["messages"][bob().as_str()];
    assert_eq!(heard(&mut phone, &mut Sessions::default(), request), "m.dummy");
    assert!(machine.broken_devices().await.unwrap().is_empty());

    let mut work = Work::default();
    machine.receive_to_device(&mut work, no_olm.as_object().unwrap()).await.unwrap();
    machine.commit(work).await.unwrap();
    assert!(machine.broken_devices().await.unwrap().is_empty(), "once an hour");
}

/// A device does not prove that it has the Curve25519 key that it signs.
#[tokio::test]
async fn who_claims_anothers_key_does_not_touch_the_sessions_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(&folder, &mut []).await;
    let phone = with_keys("PHONE");
    learn(&mut machine, &[&phone]).await;
    let devices = machine.without_session(&room().room_id).await.unwrap();
    let mallory = UserId::parse("@mallory:example.org").unwrap();
    let claimed_device = Device { user_id: mallory.clone(), ..devices[0].clone() };
    machine.begin_sessions(&devices, &claimed(&[&phone])).await.unwrap();
    let lacking = machine.lacking(vec![claimed_device.clone()]).await.unwrap();
    assert_eq!(lacking.as_slice(), std::slice::from_ref(&claimed_device));
    let mut work = Work::default();
    assert!(!machine.post_encrypted(&mut work, &claimed_device, "m.dummy", &json!({})).await.unwrap());
    let mut list = DeviceList::default();
    list.devices.insert("PHONE".into(), claimed_device);
    work.batch.put(DEVICES, mallory.as_str(), &list);
    machine.mark_broken(&mut work, &mallory, &phone.curve25519()).await.unwrap();
    machine.commit(work).await.unwrap();
    let broken = machine.broken_devices().await.unwrap();
    assert_eq!(broken.iter().map(|device| &device.user_id).collect::<Vec<_>>(), [&mallory]);
}

/// No answer for a user is none; and what a server left out for once does not come back as something new.
#[tokio::test]
async fn a_user_who_is_missing_from_an_answer_keeps_their_devices() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine(&folder, &mut []).await;
    learn(&mut machine, &[&with_keys("PHONE")]).await;
    change(&mut machine).await;
    let question = machine.question(None).await.unwrap().unwrap();
    machine.answered(question, ruma::api::client::keys::get_keys::v3::Response::new()).await.unwrap();
    assert_eq!(machine.known_devices(bob()).await.unwrap().len(), 1);
    assert!(machine.question(None).await.unwrap().is_none(), "it is not asked again at once");
}
