//! Whole verifications, by two sides that hand each other their messages as JSON.

use proptest::prelude::*;
use ruma::{UserId, device_id, event_id, owned_event_id, owned_room_id, user_id};
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000_000;

fn party(user_id: &UserId, device_id: &DeviceId) -> Party {
    let name = device_id.as_str();
    let keys = BTreeMap::from([
        (format!("ed25519:{name}"), format!("key of {name}")),
        (format!("ed25519:master{user_id}"), format!("master{user_id}")),
    ]);
    Party { user_id: user_id.to_owned(), device_id: device_id.to_owned(), keys }
}

fn alice() -> Party {
    party(user_id!("@alice:x"), device_id!("ALICE"))
}

fn bob() -> Party {
    party(user_id!("@bob:y"), device_id!("BOB"))
}

fn room() -> Flow {
    Flow::InRoom { room_id: owned_room_id!("!room:x"), event_id: owned_event_id!("$request") }
}

/// One side with all that it knows of the other.
struct Side {
    ours: Party,
    theirs: Party,
    ongoing: Ongoing,
}

impl Side {
    fn new(ours: Party, theirs: Party) -> Self {
        Self { ours, theirs, ongoing: Ongoing::default() }
    }

    /// Takes what the other side sends, as it is read from the network.
    fn take(&mut self, outgoing: Vec<Outgoing>) -> Vec<Outgoing> {
        outgoing
            .into_iter()
            .flat_map(|message| self.take_json(&message.flow, message.event_type, &message.content))
            .collect()
    }

    fn take_json(&mut self, flow: &Flow, event_type: &str, content: &Object) -> Vec<Outgoing> {
        let named = match flow {
            Flow::ToDevice { .. } => Flow::of_to_device(content),
            Flow::InRoom { room_id, .. } => Flow::of_room_event(room_id.clone(), content),
        };
        assert_eq!(named.as_ref(), Some(flow), "the content says what it belongs to");
        let message = Message::parse(event_type, content).expect("it is a message of a verification");
        let from_device = message.as_ref().ok().and_then(Message::from_device);
        let theirs = from_device.filter(|device| **device == self.theirs.device_id).map(|_| self.theirs.clone());
        let incoming =
            Incoming { flow: flow.clone(), sender: self.theirs.user_id.clone(), message, theirs, made_at: Some(NOW) };
        self.ongoing.receive(incoming, self.ours.clone(), NOW)
    }

    fn verification(&mut self) -> &mut Verification {
        self.ongoing.0.last_mut().expect("there is a verification")
    }

    fn stage(&mut self) -> Stage {
        self.verification().stage()
    }

    fn code(&mut self) -> Option<CancelCode> {
        match self.stage() {
            Stage::Cancelled { code, .. } => Some(code),
            _ => None,
        }
    }

    fn compared(&mut self) -> ShortCode {
        match self.stage() {
            Stage::Comparing(code) => code,
            other => panic!("there is something to compare, not {other:?}"),
        }
    }
}

/// Alice asks Bob's devices, and Bob is ready.
fn ready() -> (Side, Side) {
    let (mut alice, mut bob) = (Side::new(alice(), bob()), Side::new(bob(), alice()));
    let (verification, request) = Verification::request_devices(
        "txn".to_owned(),
        alice.ours.clone(),
        bob.ours.user_id.clone(),
        vec![bob.ours.device_id.clone()],
        NOW,
    );
    alice.ongoing.insert(verification);
    assert!(bob.take(request).is_empty());
    assert_eq!(bob.stage(), Stage::Requested { by_us: false });
    let agreed = bob.verification().accept().expect("it waits for it");
    assert!(alice.take(agreed).is_empty());
    assert_eq!((alice.stage(), bob.stage()), (Stage::Ready, Stage::Ready));
    (alice, bob)
}

/// Both see what they have to compare; Alice began.
fn comparing() -> (Side, Side) {
    let (mut alice, mut bob) = ready();
    let start = alice.verification().start().expect("it is ready");
    exchange(&mut bob, &mut alice, start);
    (alice, bob)
}

/// Hands messages back and forth until nobody has one, `one` taking the first.
fn exchange(one: &mut Side, other: &mut Side, mut messages: Vec<Outgoing>) {
    let mut sides = [one, other];
    for _ in 0..20 {
        if messages.is_empty() {
            return;
        }
        messages = sides[0].take(messages);
        sides.swap(0, 1);
    }
    panic!("they never stop: {messages:?}");
}

/// Both users say that it is equal, Alice first.
fn conclude(alice: &mut Side, bob: &mut Side) {
    let (ours, theirs) = (alice.compared(), bob.compared());
    assert_eq!(ours, theirs);
    let macs = alice.verification().confirm().expect("there is something to compare");
    assert_eq!(alice.stage(), Stage::Confirmed);
    exchange(bob, alice, macs);
    let macs = bob.verification().confirm().expect("there is something to compare");
    exchange(alice, bob, macs);
    assert_eq!(alice.stage(), Stage::Done { verified: bob.ours.keys.clone() });
    assert_eq!(bob.stage(), Stage::Done { verified: alice.ours.keys.clone() });
}

#[test]
fn two_users_verify_each_other_by_messages_to_devices() {
    let (mut alice, mut bob) = comparing();
    assert!(alice.compared().emoji.is_some());
    assert!(alice.compared().numbers.iter().all(|number| (1000..=9191).contains(number)));
    conclude(&mut alice, &mut bob);
}

#[test]
fn it_does_not_matter_who_begins_and_who_confirms_first() {
    let (mut alice, mut bob) = ready();
    let start = bob.verification().start().expect("it is ready");
    exchange(&mut alice, &mut bob, start);
    conclude(&mut bob, &mut alice);
}

#[test]
fn two_users_verify_each_other_in_a_room() {
    let (mut alice, mut bob) = (Side::new(alice(), bob()), Side::new(bob(), alice()));
    let request = room_request(&alice.ours.device_id, &bob.ours.user_id);
    let receive = |side: &mut Side, request: &Object| {
        let message = Message::parse("m.room.message", request).expect("it is a request");
        let incoming = Incoming {
            flow: room(),
            sender: side.theirs.user_id.clone(),
            message,
            theirs: Some(side.theirs.clone()),
            made_at: Some(NOW),
        };
        side.ongoing.receive(incoming, side.ours.clone(), NOW)
    };
    alice.ongoing.insert(Verification::requested_in_room(room(), alice.ours.clone(), bob.ours.user_id.clone(), NOW));
    assert!(receive(&mut bob, &request).is_empty());
    let agreed = bob.verification().accept().expect("it waits for it");
    assert_eq!(
        agreed[0].content["m.relates_to"],
        json!({ "rel_type": "m.reference", "event_id": event_id!("$request") })
    );
    alice.take(agreed);
    let start = alice.verification().start().expect("it is ready");
    exchange(&mut bob, &mut alice, start);
    conclude(&mut alice, &mut bob);

    let mut carol = Side::new(party(user_id!("@carol:z"), device_id!("CAROL")), self::alice());
    assert!(receive(&mut carol, &request).is_empty());
    assert_eq!(carol.ongoing.iter().count(), 0, "she was not asked");
}

/// As matrix-nio begins; it knows neither requests nor the end, and only the deprecated MAC.
#[test]
fn an_old_client_that_begins_without_a_request_is_verified() {
    let (mut alice, mut bob) = (Side::new(alice(), bob()), Side::new(bob(), alice()));
    let flow = Flow::ToDevice { transaction_id: "old".to_owned() };
    let mut offer = sas::offer();
    offer.message_authentication_codes.remove(0);
    let start = Start::sas(bob.ours.device_id.clone(), offer, &flow);
    let mut verification =
        Verification::requested_in_room(flow.clone(), bob.ours.clone(), alice.ours.user_id.clone(), NOW);
    verification.theirs = Some(alice.ours.clone());
    verification.requested = false;
    verification.state = State::Started { sas: Sas::new(), start: start.clone() };
    bob.ongoing.insert(verification);

    assert!(alice.take_json(&flow, "m.key.verification.start", &start.content).is_empty());
    assert_eq!(alice.stage(), Stage::Offered);
    let accepted = alice.verification().accept().expect("it waits for it");
    assert_eq!(accepted[0].content["message_authentication_code"], "hkdf-hmac-sha256");
    exchange(&mut bob, &mut alice, accepted);
    let macs = bob.verification().confirm().expect("there is something to compare");
    exchange(&mut alice, &mut bob, macs);
    let macs = alice.verification().confirm().expect("there is something to compare");
    assert!(
        macs.iter().all(|message| message.event_type == "m.key.verification.mac"),
        "it would not know what is done"
    );
    exchange(&mut bob, &mut alice, macs);
    assert_eq!(alice.stage(), Stage::Done { verified: bob.ours.keys.clone() });
    assert_eq!(bob.stage(), Stage::Done { verified: alice.ours.keys.clone() });
}

#[test]
fn when_both_begin_the_smaller_users_beginning_counts() {
    for bob_is_heard_first in [true, false] {
        let (mut alice, mut bob) = ready();
        let by_alice = alice.verification().start().expect("it is ready");
        let by_bob = bob.verification().start().expect("it is ready");
        if bob_is_heard_first {
            assert!(alice.take(by_bob).is_empty(), "hers counts");
            exchange(&mut bob, &mut alice, by_alice);
        } else {
            let accepted = bob.take(by_alice);
            assert!(alice.take(by_bob).is_empty(), "hers counts");
            exchange(&mut alice, &mut bob, accepted);
        }
        conclude(&mut alice, &mut bob);
    }
}

#[test]
fn when_both_begin_in_different_ways_it_is_cancelled() {
    let (mut alice, _) = ready();
    alice.verification().start().expect("it is ready");
    let flow = alice.verification().flow().clone();
    let content =
        json!({ "from_device": "BOB", "method": "m.reciprocate.v1", "secret": "aaaa", "transaction_id": "txn" });
    alice.take_json(&flow, "m.key.verification.start", content.as_object().expect("an object"));
    assert_eq!(alice.code(), Some(CancelCode::UnexpectedMessage));
}

#[test]
fn the_first_device_that_is_ready_takes_part_and_the_others_are_told() {
    let mut alice = Side::new(alice(), bob());
    let devices = ["BOB", "TABLET", "OLD"].map(OwnedDeviceId::from);
    let (verification, request) = Verification::request_devices(
        "txn".to_owned(),
        alice.ours.clone(),
        alice.theirs.user_id.clone(),
        devices.to_vec(),
        NOW,
    );
    assert_eq!(request[0].devices, devices);
    alice.ongoing.insert(verification);
    let mut bob = Side::new(alice.theirs.clone(), alice.ours.clone());
    bob.take(request);
    let agreed = bob.verification().accept().expect("it waits for it");
    let told = alice.take(agreed);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].devices, devices[1..]);
    assert_eq!(told[0].content["code"], "m.accepted");
    let mut tablet = Side::new(party(user_id!("@bob:y"), device_id!("TABLET")), alice.ours.clone());
    let asked = Verification::from_request(told[0].flow.clone(), tablet.ours.clone(), alice.ours.clone(), NOW, NOW);
    tablet.ongoing.insert(asked.expect("it is new"));
    assert!(tablet.take(told).is_empty());
    assert_eq!(tablet.stage(), Stage::TakenElsewhere);
    // The second one was ready at the same time.
    let late = json!({ "from_device": "TABLET", "methods": ["m.sas.v1"], "transaction_id": "txn" });
    let flow = alice.verification().flow().clone();
    assert!(alice.take_json(&flow, "m.key.verification.ready", late.as_object().expect("an object")).is_empty());
    assert_eq!(alice.stage(), Stage::Ready);
}

#[test]
fn a_request_that_one_device_declines_is_withdrawn_from_the_others() {
    let mut alice = Side::new(alice(), bob());
    let devices = ["BOB", "TABLET"].map(OwnedDeviceId::from).to_vec();
    let (verification, request) = Verification::request_devices(
        "txn".to_owned(),
        alice.ours.clone(),
        alice.theirs.user_id.clone(),
        devices.clone(),
        NOW,
    );
    alice.ongoing.insert(verification);
    let mut bob = Side::new(alice.theirs.clone(), alice.ours.clone());
    bob.take(request);
    let declined = bob.verification().cancel();
    assert_eq!(declined[0].content["code"], "m.user");
    let told = alice.take(declined);
    assert_eq!((told[0].devices.clone(), &told[0].content["code"]), (devices, &json!("m.user")));
    assert_eq!(alice.code(), Some(CancelCode::User));
}

#[test]
fn another_device_of_ours_that_answers_in_the_room_ends_it_here() {
    let mut bob = Side::new(bob(), alice());
    let asked = Verification::from_request(room(), bob.ours.clone(), bob.theirs.clone(), NOW, NOW);
    bob.ongoing.insert(asked.expect("it is new"));
    let mut see = |device: &str| {
        let message = Message::Ready { from_device: device.into(), methods: vec![VerificationMethod::SasV1] };
        let incoming = Incoming {
            flow: room(),
            sender: bob.ours.user_id.clone(),
            message: Ok(message),
            theirs: None,
            made_at: Some(NOW),
        };
        assert!(bob.ongoing.receive(incoming, bob.ours.clone(), NOW).is_empty());
        bob.stage()
    };
    assert_eq!(see("BOB"), Stage::Requested { by_us: false }, "that was ourselves");
    assert_eq!(see("TABLET"), Stage::TakenElsewhere);
}

/// Each message but the right one, at each stage, is answered with the right code.
#[test]
fn a_message_out_of_its_turn_cancels_the_verification() {
    let flow = Flow::ToDevice { transaction_id: "txn".to_owned() };
    let choice = || {
        json!({ "method": "m.sas.v1", "key_agreement_protocol": "curve25519-hkdf-sha256", "hash": "sha256",
        "message_authentication_code": "hkdf-hmac-sha256.v2", "short_authentication_string": ["decimal"], "commitment": "aaaa" })
    };
    let messages = [
        ("request", json!({ "from_device": "BOB", "methods": [], "timestamp": NOW })),
        ("ready", json!({ "from_device": "BOB", "methods": ["m.sas.v1"] })),
        ("accept", choice()),
        ("key", json!({ "key": "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08" })),
        ("mac", json!({ "mac": {}, "keys": "" })),
        ("done", json!({})),
    ];
    for stage in 0..4 {
        for (name, content) in &messages {
            let (mut alice, mut bob) = ready();
            let right: &[&str] = match stage {
                0 => &[],
                1 => {
                    alice.verification().start().expect("it is ready");
                    &["accept"]
                }
                2 => {
                    let start = bob.verification().start().expect("it is ready");
                    alice.take(start);
                    &["key"]
                }
                _ => {
                    (alice, _) = comparing();
                    &["mac"]
                }
            };
            if right.contains(name) {
                continue;
            }
            let mut content = content.as_object().expect("an object").clone();
            content.insert("transaction_id".to_owned(), "txn".into());
            let answer = alice.take_json(&flow, &format!("m.key.verification.{name}"), &content);
            assert_eq!(alice.code(), Some(CancelCode::UnexpectedMessage), "{name} at stage {stage}");
            assert_eq!(answer[0].content["code"], "m.unexpected_message", "{name} at stage {stage}");
            assert!(
                alice.take_json(&flow, &format!("m.key.verification.{name}"), &content).is_empty(),
                "one answer is enough"
            );
        }
    }
}

#[test]
fn a_message_that_cannot_be_read_cancels_the_verification() {
    let flow = Flow::ToDevice { transaction_id: "txn".to_owned() };
    let many: serde_json::Map<String, Value> = (0..101).map(|n| (format!("ed25519:{n}"), json!("mac"))).collect();
    for (name, content) in [
        ("ready", json!({})),
        ("start", json!({ "from_device": "BOB" })),
        ("start", json!({ "from_device": "", "method": "m.sas.v1" })),
        ("accept", json!({ "commitment": 1 })),
        ("key", json!({ "key": "A".repeat(44) })),
        ("key", json!({ "key": [] })),
        ("mac", json!({ "mac": [], "keys": "" })),
        ("mac", json!({ "mac": many, "keys": "" })),
        ("cancel", json!({})),
    ] {
        let (mut alice, _) = comparing();
        let mut content = content.as_object().expect("an object").clone();
        content.insert("transaction_id".to_owned(), "txn".into());
        let answer = alice.take_json(&flow, &format!("m.key.verification.{name}"), &content);
        assert_eq!(answer[0].content["code"], "m.invalid_message", "{name}");
    }
}

#[test]
fn a_key_other_than_the_promised_one_is_noticed() {
    let (mut alice, mut bob) = ready();
    let start = alice.verification().start().expect("it is ready");
    let accepted = bob.take(start);
    let key = alice.take(accepted);
    let mut key = bob.take(key);
    key[0].content["key"] = Sas::new().public_key().to_base64().into();
    alice.take(key);
    assert_eq!(alice.code(), Some(CancelCode::MismatchedCommitment));
}

#[test]
fn a_beginning_that_somebody_changed_on_its_way_is_noticed() {
    let (mut alice, mut bob) = ready();
    let mut start = alice.verification().start().expect("it is ready");
    start[0].content["short_authentication_string"] = json!(["decimal"]);
    exchange(&mut bob, &mut alice, start);
    assert_eq!(alice.code(), Some(CancelCode::MismatchedCommitment));
    assert_eq!(bob.code(), Some(CancelCode::MismatchedCommitment));
}

#[test]
fn somebody_who_sits_in_between_shows_different_pictures() {
    let (mut alice, mut bob) = ready();
    let start = alice.verification().start().expect("it is ready");
    let accepted = bob.take(start);
    let mut key = alice.take(accepted);
    // Alice's key goes over into the clear before Bob's does: replacing it is possible, and changes what Bob sees.
    key[0].content["key"] = Sas::new().public_key().to_base64().into();
    let key = bob.take(key);
    alice.take(key);
    let (ours, theirs) = (alice.compared(), bob.compared());
    assert_ne!(ours.numbers, theirs.numbers);
    let answer = alice.verification().mismatch().expect("there is something to compare");
    assert_eq!(answer[0].content["code"], "m.mismatched_sas");
    bob.take(answer);
    assert_eq!(bob.code(), Some(CancelCode::MismatchedSas));
    // And had they not looked, the MACs would differ, too.
    let (mut alice, mut bob) = comparing();
    let mut macs = bob.verification().confirm().expect("there is something to compare");
    macs[0].content["keys"] = "AAAA".into();
    alice.take(macs);
    assert_eq!(alice.code(), Some(CancelCode::KeyMismatch));
}

#[test]
fn a_key_that_a_server_replaced_is_not_verified() {
    for replaced in ["ed25519:BOB", "ed25519:master@bob:y"] {
        let (mut alice, mut bob) = (Side::new(alice(), bob()), Side::new(bob(), alice()));
        alice.theirs.keys.insert(replaced.to_owned(), "the server's".to_owned());
        let devices = vec![bob.ours.device_id.clone()];
        let (verification, request) =
            Verification::request_devices("txn".to_owned(), alice.ours.clone(), bob.ours.user_id.clone(), devices, NOW);
        alice.ongoing.insert(verification);
        bob.take(request);
        let agreed = bob.verification().accept().expect("it waits for it");
        alice.take(agreed);
        let start = alice.verification().start().expect("it is ready");
        exchange(&mut bob, &mut alice, start);
        let macs = bob.verification().confirm().expect("there is something to compare");
        let answer = alice.take(macs);
        assert_eq!(answer[0].content["code"], "m.key_mismatch", "{replaced}");
    }
}

#[test]
fn keys_that_are_not_known_here_are_left_out_and_none_at_all_is_an_error() {
    for known in [true, false] {
        let (mut alice, mut bob) = comparing();
        let theirs = alice.verification().theirs.as_mut().expect("it is known");
        theirs.keys.retain(|key_id, _| known && key_id == "ed25519:BOB");
        let macs = bob.verification().confirm().expect("there is something to compare");
        alice.take(macs);
        if known {
            alice.verification().confirm().expect("there is something to compare");
            let Some(State::Concluding { verified }) = alice.ongoing.0.last().map(|one| &one.state) else {
                panic!("it is concluding")
            };
            assert_eq!(verified.keys().collect::<Vec<_>>(), ["ed25519:BOB"]);
        } else {
            assert_eq!(alice.code(), Some(CancelCode::KeyMismatch));
        }
    }
}

#[test]
fn methods_that_nobody_knows_are_refused() {
    let flow = Flow::ToDevice { transaction_id: "txn".to_owned() };
    let good = Start::sas("BOB".into(), sas::offer(), &flow).content;
    for (field, value) in [
        ("method", json!("m.unheard.of")),
        ("hashes", json!(["md5"])),
        ("key_agreement_protocols", json!(["curve25519"])),
        ("message_authentication_codes", json!(["hmac-sha256"])),
        ("short_authentication_string", json!(["smell"])),
    ] {
        let (mut alice, _) = ready();
        let mut start = good.clone();
        start[field] = value;
        let answer = alice.take_json(&flow, "m.key.verification.start", &start);
        assert_eq!(answer[0].content["code"], "m.unknown_method", "{field}");
    }
    let (mut alice, mut bob) = ready();
    let start = alice.verification().start().expect("it is ready");
    let mut accepted = bob.take(start);
    accepted[0].content["hash"] = "md5".into();
    alice.take(accepted);
    assert_eq!(alice.code(), Some(CancelCode::UnknownMethod), "they chose what was not offered");
}

#[test]
fn a_verification_ends_after_ten_minutes_and_a_prompt_after_two() {
    let minutes = |count: u64| NOW + count * 60 * 1000;
    let (mut alice, mut bob) = comparing();
    assert!(alice.ongoing.check_time(minutes(10) - 1).is_empty());
    let answer = alice.ongoing.check_time(minutes(10));
    assert_eq!(answer[0].content["code"], "m.timeout");
    bob.take(answer);
    assert_eq!(bob.code(), Some(CancelCode::Timeout));
    assert_eq!(alice.ongoing.iter().count(), 0, "it is forgotten then");

    let asked = |made_at| Verification::from_request(room(), self::bob(), self::alice(), made_at, NOW);
    let mut prompt = asked(NOW).expect("it is new");
    assert!(prompt.check_time(minutes(2) - 1).is_empty() && !prompt.is_over());
    assert!(prompt.check_time(minutes(2)).is_empty(), "another device may still be at it");
    assert!(prompt.is_over());
    let mut agreed = asked(NOW).expect("it is new");
    agreed.accept().expect("it waits for it");
    assert!(agreed.check_time(minutes(9)).is_empty() && !agreed.is_over());
    assert!(asked(NOW - 10 * 60 * 1000).is_none(), "it is too old");
    assert!(asked(NOW + 5 * 60 * 1000 + 1).is_none(), "it was made in the future");
    assert!(asked(u64::MAX).is_none());
}

#[test]
fn messages_of_verifications_that_are_not_known_are_answered_once() {
    let mut alice = Side::new(alice(), bob());
    let flow = Flow::ToDevice { transaction_id: "unheard".to_owned() };
    let content = json!({ "transaction_id": "unheard", "key": "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08", "code": "m.user", "reason": "" });
    let content = content.as_object().expect("an object");
    let answer = alice.take_json(&flow, "m.key.verification.key", content);
    assert_eq!(answer[0].content["code"], "m.unknown_transaction");
    assert_eq!(answer[0].devices, ["*"].map(OwnedDeviceId::from));
    for name in ["done", "cancel"] {
        assert!(alice.take_json(&flow, &format!("m.key.verification.{name}"), content).is_empty(), "{name}");
    }
}

#[test]
fn a_device_that_wants_two_verifications_at_once_gets_none() {
    let (_, mut bob) = ready();
    let (_, again) = Verification::request_devices(
        "again".to_owned(),
        alice(),
        bob.ours.user_id.clone(),
        vec![bob.ours.device_id.clone()],
        NOW,
    );
    let answers = bob.take(again);
    let cancelled: Vec<_> = answers.iter().map(|answer| (answer.flow.id(), &answer.content["code"])).collect();
    assert_eq!(cancelled, [("txn", &json!("m.unexpected_message")), ("again", &json!("m.unexpected_message"))]);
}

#[test]
fn a_flood_of_requests_is_bounded() {
    let mut bob = Side::new(bob(), alice());
    for number in 0..1000 {
        let (_, request) = Verification::request_devices(
            number.to_string(),
            alice(),
            bob.ours.user_id.clone(),
            vec![bob.ours.device_id.clone()],
            NOW,
        );
        bob.take(request);
    }
    assert!(bob.ongoing.iter().count() <= 50);
}

#[test]
fn the_table_of_pictures_is_the_specifications() {
    assert_eq!(emoji::EMOJI.map(|emoji| emoji.symbol).iter().collect::<std::collections::HashSet<_>>().len(), 64);
    assert_eq!((emoji::EMOJI[0].description, emoji::EMOJI[63].description), ("Dog", "Pin"));
}

/// What happens next, in a world in which messages come late, twice or never, and users press what they like.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Deliver(prop::sample::Index),
    Repeat(prop::sample::Index),
    Lose(prop::sample::Index),
    Press { alice: bool, button: u8 },
    Wait { minutes: u64 },
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        8 => any::<prop::sample::Index>().prop_map(Turn::Deliver),
        1 => any::<prop::sample::Index>().prop_map(Turn::Repeat),
        1 => any::<prop::sample::Index>().prop_map(Turn::Lose),
        6 => (any::<bool>(), 0_u8..6).prop_map(|(alice, button)| Turn::Press { alice, button }),
        1 => (0_u64..4).prop_map(|minutes| Turn::Wait { minutes }),
    ]
}

proptest! {
    /// Whatever happens, nobody panics, nobody is verified whose user did not look, and what is over stays so.
    #[test]
    fn nobody_is_verified_unless_both_users_confirmed(turns in prop::collection::vec(turn(), 0..80)) {
        let (mut alice, mut bob) = ready();
        let (mut way, mut confirmed) = (Vec::<(bool, Outgoing)>::new(), [false, false]);
        let mut now = NOW;
        for turn in turns {
            match turn {
                Turn::Deliver(index) | Turn::Repeat(index) if !way.is_empty() => {
                    let at = index.index(way.len());
                    let (to_alice, message): (bool, Outgoing) = way[at].clone();
                    if matches!(turn, Turn::Deliver(_)) {
                        way.remove(at);
                    }
                    let side = if to_alice { &mut alice } else { &mut bob };
                    way.extend(side.take(vec![message]).into_iter().map(|answer| (!to_alice, answer)));
                    // Two devices that answer each other's errors would go on for ever.
                    way.truncate(50);
                }
                Turn::Lose(index) if !way.is_empty() => drop(way.remove(index.index(way.len()))),
                Turn::Press { alice: is_alice, button } => {
                    let side = if is_alice { &mut alice } else { &mut bob };
                    let Some(one) = side.ongoing.0.last_mut() else { continue };
                    let pressed = match button {
                        0 | 1 => one.start(),
                        2 | 3 => one.confirm().inspect(|_| confirmed[usize::from(is_alice)] = true),
                        4 => one.accept(),
                        _ => one.mismatch(),
                    };
                    way.extend(pressed.into_iter().flatten().map(|message| (!is_alice, message)));
                }
                Turn::Wait { minutes } => {
                    now += minutes * 60 * 1000;
                    way.extend(alice.ongoing.check_time(now).into_iter().map(|message| (false, message)));
                    way.extend(bob.ongoing.check_time(now).into_iter().map(|message| (true, message)));
                }
                _ => {}
            }
            for side in [&alice, &bob] {
                if side.ongoing.iter().any(|one| matches!(one.stage(), Stage::Done { .. })) {
                    prop_assert_eq!(confirmed, [true, true]);
                }
            }
        }
    }

    #[test]
    fn any_content_is_read_or_refused(
        name in prop::sample::select(vec!["request", "ready", "start", "accept", "key", "mac", "done", "cancel", "other"]),
        field in prop::sample::select(vec!["from_device", "methods", "method", "key", "mac", "keys", "code", "commitment", "hash", "timestamp"]),
        value in prop_oneof![".{0,60}".prop_map(Value::from), any::<u64>().prop_map(Value::from), Just(json!([])), Just(json!({ "a": [1.5] }))],
    ) {
        let (mut alice, _) = comparing();
        let mut content = json!({ "transaction_id": "txn", "from_device": "BOB", "methods": ["m.sas.v1"], "method": "m.sas.v1", "code": "m.user",
            "timestamp": NOW, "key": "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08", "mac": {}, "keys": "" });
        content[field] = value;
        let content = content.as_object().expect("an object");
        let flow = Flow::ToDevice { transaction_id: "txn".to_owned() };
        let event_type = format!("m.key.verification.{name}");
        if Message::parse(&event_type, content).is_some() {
            alice.take_json(&flow, &event_type, content);
            let is_done = matches!(alice.stage(), Stage::Done { .. });
            prop_assert!(!is_done);
        }
    }
}
