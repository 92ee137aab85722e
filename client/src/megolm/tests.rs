//! Sessions of rooms, by two sides.

use ruma::{device_id, room_id, user_id};

use super::*;

fn room() -> Room {
    Room::new(room_id!("!room:example.org").to_owned())
}

fn alice() -> &'static UserId {
    user_id!("@alice:example.org")
}

fn encryption() -> Encryption {
    Encryption { algorithm: MEGOLM.to_owned(), rotation_period_ms: 1_000, rotation_period_msgs: 3 }
}

fn inbound(outbound: &Outbound, sender: &UserId) -> Inbound {
    let key = outbound.room_key(&room().room_id);
    Inbound::from_room_key(key.as_object().unwrap(), sender, "curve", "ed").unwrap()
}

fn say(outbound: &mut Outbound, body: &str) -> EncryptedContent {
    let device = ("curve", device_id!("PHONE"));
    let content = outbound.encrypt(&room().room_id, "m.room.message", &json!({ "body": body }), device);
    EncryptedContent::read(content.as_object().unwrap()).unwrap()
}

#[test]
fn what_one_encrypts_the_others_decrypt_from_when_they_got_the_key() {
    let mut outbound = Outbound::new(&room(), 0);
    let first = say(&mut outbound, "one");
    let mut inbound = inbound(&outbound, alice());
    let second = say(&mut outbound, "two");
    assert_eq!(inbound.decrypt(&room().room_id, alice(), &first).unwrap_err(), Undecryptable::BeforeTheKey);
    let decrypted = inbound.decrypt(&room().room_id, alice(), &second).unwrap();
    assert_eq!((decrypted.content["body"].as_str(), decrypted.index), (Some("two"), 1));
}

/// What a server could relabel: the room, the sender, the text.
#[test]
fn a_message_counts_only_in_its_room_and_from_its_sender() {
    let mut outbound = Outbound::new(&room(), 0);
    let mut inbound = inbound(&outbound, alice());
    let message = say(&mut outbound, "one");
    let other_room = room_id!("!other:example.org");
    assert!(matches!(inbound.decrypt(other_room, alice(), &message), Err(Undecryptable::Forged(_))));
    let mallory = user_id!("@mallory:example.org");
    assert!(matches!(inbound.decrypt(&room().room_id, mallory, &message), Err(Undecryptable::Forged(_))));
    inbound.room_id = other_room.to_owned();
    assert_eq!(
        inbound.decrypt(other_room, alice(), &message).unwrap_err(),
        Undecryptable::Forged("it was said in another room")
    );
    let foreign = say(&mut Outbound::new(&room(), 0), "one");
    inbound.room_id = room().room_id;
    assert!(matches!(inbound.decrypt(&room().room_id, alice(), &foreign), Err(Undecryptable::Forged(_))));
}

#[test]
fn a_session_is_replaced_by_age_by_count_and_when_somebody_may_not_read_on() {
    let device = |key: &str| BTreeMap::from([(OwnedDeviceId::from("PHONE"), key.to_owned())]);
    let readers = BTreeMap::from([(alice().to_owned(), device("key"))]);
    let holders = || {
        let holder = Holder { key: "key".to_owned(), renewals: 0 };
        BTreeMap::from([(alice().to_owned(), BTreeMap::from([(OwnedDeviceId::from("PHONE"), holder)]))])
    };
    let mut outbound = Outbound::new(&room(), 5_000);
    outbound.shared_with = holders();
    let rotates =
        |outbound: &Outbound, readers: &_, now_ms| outbound.must_rotate(&encryption(), &room(), readers, now_ms);
    assert!(!rotates(&outbound, &readers, 5_999));
    assert!(rotates(&outbound, &readers, 6_000), "age");
    assert!(rotates(&outbound, &BTreeMap::new(), 5_000), "a user who is gone");
    assert!(
        rotates(&outbound, &BTreeMap::from([(alice().to_owned(), BTreeMap::new())]), 5_000),
        "a device that is gone"
    );
    assert!(rotates(&outbound, &BTreeMap::from([(alice().to_owned(), device("other"))]), 5_000), "another device");
    for _ in 0..2 {
        say(&mut outbound, "text");
    }
    assert!(!rotates(&outbound, &readers, 5_000));
    say(&mut outbound, "text");
    assert!(rotates(&outbound, &readers, 5_000), "count");

    let mut closed = room();
    closed.history_visibility = "joined".to_owned();
    let fresh = Outbound { shared_with: holders(), ..Outbound::new(&room(), 5_000) };
    assert!(fresh.must_rotate(&encryption(), &closed, &readers, 5_000), "history that is not shared any more");
}

/// Client-Server API, "m.megolm.v1.aes-sha2", on updating a session: an earlier index wins, another session never does.
#[test]
fn keys_of_one_session_are_joined_and_others_are_refused() {
    let mut outbound = Outbound::new(&room(), 0);
    let early = inbound(&outbound, alice());
    say(&mut outbound, "one");
    let late = || inbound(&outbound, alice());
    assert_eq!(late().merge(Inbound { ..inbound_again(&early) }).unwrap().unwrap().first_known_index(), 0);
    assert!(inbound_again(&early).merge(late()).unwrap().is_none());

    let forwarded = Inbound::from_forwarded(early.forwarded().as_object().unwrap()).unwrap();
    assert_eq!((forwarded.claims[0].origin, forwarded.claims[0].sender.as_ref()), (Origin::Forwarded, None));
    let merged = forwarded.merge(late()).unwrap().unwrap();
    assert_eq!((merged.claims[0].origin, merged.first_known_index()), (Origin::Direct, 0));
    assert_eq!((merged.claims[0].sender.as_deref(), merged.claims.len()), (Some(alice()), 1));

    let mut other = Outbound::new(&room(), 0).room_key(&room().room_id);
    other["session_id"] = json!(outbound.session_id());
    assert!(Inbound::from_room_key(other.as_object().unwrap(), alice(), "curve", "ed").is_err());
    assert!(inbound_again(&early).merge(inbound(&Outbound::new(&room(), 0), alice())).is_err());
}

/// A room key is signed by its session, not by a device: who was given it can pass it on as their own, before its maker or after.
#[test]
fn who_passes_a_key_on_as_their_own_takes_the_makers_messages_from_nobody() {
    let mallory = user_id!("@mallory:example.org");
    let mut outbound = Outbound::new(&room(), 0);
    let makers = || inbound(&outbound, alice());
    let passed_on =
        || Inbound::from_room_key(outbound.room_key(&room().room_id).as_object().unwrap(), mallory, "m", "m");
    let imported = || Inbound::import(&makers().export()).unwrap();
    let joined = [
        makers().merge(passed_on().unwrap()),
        passed_on().unwrap().merge(makers()),
        imported().merge(passed_on().unwrap()),
        passed_on().unwrap().merge(imported()),
    ];
    let mut joined = joined.map(|joined| joined.unwrap().expect("it is news"));
    let again = inbound_again(&joined[2]).merge(makers()).unwrap().expect("the maker's word is better");
    assert_eq!(again.claims_of(alice()).map(|claim| claim.origin).collect::<Vec<_>>(), [Origin::Direct]);
    let message = say(&mut outbound, "one");
    for inbound in &mut joined {
        let decrypted = inbound.decrypt(&room().room_id, alice(), &message).unwrap();
        assert_eq!(decrypted.content["body"], "one");
        assert!(inbound.claims_of(alice()).all(|claim| claim.sender_key == "curve"), "{inbound:?}");
    }
}

/// Whoever has the backup's public key can write into it, and session ids stand in every message.
#[test]
fn a_made_up_key_of_a_backup_gives_way_to_the_true_one() {
    let mut outbound = Outbound::new(&room(), 0);
    let exported = inbound(&outbound, alice()).export();
    let other = inbound(&Outbound::new(&room(), 0), alice()).export();
    // The ratchet of another session, under this one's signing key, which is its id.
    let mut forged = vodozemac::base64_decode(&other.session_key).unwrap();
    let good = vodozemac::base64_decode(&exported.session_key).unwrap();
    let at = forged.len() - 32;
    forged[at..].copy_from_slice(&good[at..]);
    let forged_key = vodozemac::base64_encode(forged);
    let mut forged = exported.clone();
    forged.session_key = forged_key;
    let forged = || Inbound::import(&forged).unwrap();
    let message = say(&mut outbound, "one");
    assert!(forged().decrypt(&room().room_id, alice(), &message).is_err());
    let genuine = || direct(&exported);
    let mut joined = forged().merge(genuine()).unwrap().expect("it is better");
    assert_eq!(joined.decrypt(&room().room_id, alice(), &message).unwrap().content["body"], "one");
    assert!(matches!(genuine().merge(forged()), Err(Error::Forged(_))));
}

/// The session of an exported key, as if it had come from its maker.
fn direct(exported: &ExportedRoomKey) -> Inbound {
    let mut inbound = Inbound::import(exported).unwrap();
    inbound.claims[0].origin = Origin::Direct;
    inbound.claims[0].sender = Some(alice().to_owned());
    inbound
}

fn inbound_again(inbound: &Inbound) -> Inbound {
    serde_json::from_value(serde_json::to_value(inbound).unwrap()).unwrap()
}

#[test]
fn an_exported_key_decrypts_but_proves_nothing_of_its_sender() {
    let mut outbound = Outbound::new(&room(), 0);
    let message = say(&mut outbound, "one");
    let mut outbound = Outbound::new(&room(), 0);
    let exported = inbound(&outbound, alice()).export();
    let message_of_it = say(&mut outbound, "two");
    let mut imported = Inbound::import(&exported).unwrap();
    assert_eq!(imported.claims[0].origin, Origin::Imported);
    assert_eq!(imported.decrypt(&room().room_id, alice(), &message_of_it).unwrap().content["body"], "two");
    assert!(imported.decrypt(&room().room_id, alice(), &message).is_err());
}

#[test]
fn what_is_no_encrypted_message_is_told_so() {
    let read = |content: Value| EncryptedContent::read(content.as_object().unwrap()).err();
    assert_eq!(read(json!({})), Some(Undecryptable::Malformed));
    assert_eq!(
        read(json!({ "algorithm": MEGOLM, "session_id": "x", "ciphertext": "?" })),
        Some(Undecryptable::Malformed)
    );
    assert_eq!(read(json!({ "algorithm": "rot13" })), Some(Undecryptable::UnknownAlgorithm("rot13".to_owned())));
}
