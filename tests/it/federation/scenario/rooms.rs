//! What rooms are, were, and how they are found.

use serde_json::{Value, json};
use test_kit::{encode, eventually};

use super::{Scene, Watcher, agree, join, talk_both_ways, try_join_via};

/// How many messages were sent before the guest came: more than one page of backfill.
const BEFORE: usize = 120;

pub(super) async fn what_was_before_is_read(scene: Scene) {
    let (maker, guest) = (scene.maker.user("maker").await, scene.guest.user("guest").await);
    let (room, alias) = scene.room(&maker, json!({"name": "First"})).await;
    let mut expected = Vec::new();
    for number in 0..BEFORE {
        expected.push(format!("before {number}"));
        maker.send_text(&room, &expected[number]).await;
        if number == BEFORE / 2 {
            maker.set_state(&room, "m.room.name", "", &json!({"name": "Second"})).await;
        }
    }
    join(&guest, &alias).await;
    let (mut texts, mut types, mut from) = (Vec::new(), Vec::new(), String::new());
    for _ in 0..BEFORE {
        let path = format!("/rooms/{}/messages?dir=b&limit=50{from}", encode(&room));
        let page = guest.get(&path).await.ok();
        for event in page["chunk"].as_array().unwrap() {
            types.push(event["type"].as_str().unwrap().to_owned());
            texts.extend(event["content"]["body"].as_str().map(str::to_owned));
        }
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", encode(end)),
            None => break,
        }
    }
    texts.reverse();
    assert_eq!(texts, expected, "all that was said before is read back to the beginning");
    assert_eq!(types.last().map(String::as_str), Some("m.room.create"));
    let (mut maker, mut guest) = (Watcher::of(maker).await, Watcher::of(guest).await);
    talk_both_ways(&room, &mut maker, &mut guest).await;
}

pub(super) async fn power_that_was_given_is_used(scene: Scene) {
    let (room, mut maker, mut guest) = scene.shared_room().await;
    let mut third = Watcher::of(scene.maker.user("third").await).await;
    third.user.join(&room).await;
    guest.sees_member(&room, &third.user, "join").await;
    guest.user.try_set_state(&room, "m.room.topic", "", &json!({"topic": "no"})).await.is_error(403, "M_FORBIDDEN");
    let path = format!("/rooms/{}/state/m.room.power_levels", encode(&room));
    let mut levels = maker.user.get(&path).await.ok();
    levels["users"][guest.user.id()] = json!(50);
    let given = maker.user.set_state(&room, "m.room.power_levels", "", &levels).await;
    guest.sees(&room, &given).await;
    let topic = guest.user.set_state(&room, "m.room.topic", "", &json!({"topic": "the guest's"})).await;
    assert_eq!(maker.sees(&room, &topic).await["content"]["topic"], "the guest's");
    let said = third.user.send_text(&room, "something").await;
    guest.sees(&room, &said).await;
    let redaction = guest.user.redact(&room, &said).await;
    maker.sees(&room, &redaction).await;
    guest.user.remove(&room, "kick", &third.user).await;
    third.sees_member(&room, &third.user.clone(), "leave").await;
    agree(&room, &maker.user, &guest.user).await;
}

/// Forks: what wins, wins everywhere.
pub(super) async fn both_change_the_same_at_once(scene: Scene) {
    let (room, maker, mut guest) = scene.shared_room().await;
    let path = format!("/rooms/{}/state/m.room.power_levels", encode(&room));
    let mut levels = maker.user.get(&path).await.ok();
    levels["users"][guest.user.id()] = json!(50);
    let given = maker.user.set_state(&room, "m.room.power_levels", "", &levels).await;
    guest.sees(&room, &given).await;
    for round in 0..6 {
        let (ours, theirs) = (json!({"topic": format!("maker {round}")}), json!({"topic": format!("guest {round}")}));
        let (room_of_all, text) = (&room, format!("said {round}"));
        tokio::join!(
            maker.user.set_state(room_of_all, "m.room.topic", "", &ours),
            guest.user.set_state(room_of_all, "m.room.topic", "", &theirs),
            maker.user.send_text(room_of_all, &text),
            guest.user.send_text(room_of_all, &text),
        );
    }
    let (mut maker, mut guest) = (maker, guest);
    talk_both_ways(&room, &mut maker, &mut guest).await;
    agree(&room, &maker.user, &guest.user).await;
}

pub(super) async fn the_directory_and_a_space_are_read(scene: Scene) {
    let (maker, guest) = (scene.maker.user("maker").await, scene.guest.user("guest").await);
    let name = format!("Listed by {}", maker.localpart());
    let (room, _) = scene.room(&maker, json!({"name": name, "visibility": "public"})).await;
    let (space, alias) = scene.room(&maker, json!({"creation_content": {"type": "m.space"}})).await;
    let child = json!({"via": [scene.maker.name]});
    maker.set_state(&space, "m.space.child", &room, &child).await;
    let path = format!("/publicRooms?server={}", encode(&scene.maker.name));
    let asked = json!({"filter": {"generic_search_term": name}, "limit": 10});
    let is_room = |entry: &Value| entry["room_id"] == room && entry["name"] == name;
    let has_room = |rooms: &Value| rooms.as_array().is_some_and(|rooms| rooms.iter().any(is_room));
    // Synapse works out what rooms are in the background.
    eventually!(has_room(&guest.post(&path, &asked).await.ok()["chunk"]));
    assert_eq!(join(&guest, &alias).await, space);
    let path = format!("/_matrix/client/v1/rooms/{}/hierarchy", encode(&space));
    eventually!(has_room(&guest.get(&path).await.ok()["rooms"]));
    let joined = try_join_via(&guest, &room, &scene.maker.name).await;
    assert!(joined.status.is_success(), "a room of a space is joined: {joined}");
}
