//! What is said, and what is seen of those who say it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use test_kit::{TestUser, encode, eventually};

use super::{Scene, Watcher, agree, join, talk_both_ways};

pub(super) async fn an_alias_leads_into_a_room_where_both_talk(scene: Scene) {
    let (maker, guest) = (scene.maker.user("maker").await, scene.guest.user("guest").await);
    let (room, alias) = scene.room(&maker, json!({"name": "The hall", "topic": "Talk"})).await;
    let (mut maker, mut guest) = (Watcher::of(maker).await, Watcher::of(guest).await);
    assert_eq!(join(&guest.user, &alias).await, room);
    maker.sees_member(&room, &guest.user, "join").await;
    let name = guest.event(&room, "the name of the room", |event| event["type"] == "m.room.name").await;
    assert_eq!(name["content"]["name"], "The hall");
    for _ in 0..3 {
        talk_both_ways(&room, &mut maker, &mut guest).await;
        talk_both_ways(&room, &mut guest, &mut maker).await;
    }
    agree(&room, &maker.user, &guest.user).await;
    // Many at once, of both.
    let mut sent = BTreeSet::new();
    for number in 0..10 {
        let texts = (format!("maker {number}"), format!("guest {number}"));
        tokio::join!(maker.user.send_text(&room, &texts.0), guest.user.send_text(&room, &texts.1));
        sent.extend([texts.0, texts.1]);
    }
    for watcher in [&mut maker, &mut guest] {
        for text in &sent {
            watcher.event(&room, text, |event| event["content"]["body"] == **text).await;
        }
    }
}

pub(super) async fn what_was_said_is_edited_answered_and_redacted(scene: Scene) {
    let (room, mut maker, mut guest) = scene.shared_room().await;
    for turned in [false, true] {
        let (author, reader) = if turned { (&mut guest, &mut maker) } else { (&mut maker, &mut guest) };
        let said = author.user.send_text(&room, "wrong").await;
        reader.sees(&room, &said).await;
        let edit = json!({
            "msgtype": "m.text", "body": "* right", "m.new_content": {"msgtype": "m.text", "body": "right"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": said},
        });
        let edit = author.user.send(&room, "m.room.message", &edit).await;
        assert_eq!(reader.sees(&room, &edit).await["content"]["m.new_content"]["body"], "right");
        let bundled = event(&reader.user, &room, &said).await;
        assert_eq!(bundled["unsigned"]["m.relations"]["m.replace"]["event_id"], edit, "{bundled}");

        let like = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": said, "key": "👍"}});
        let reaction = reader.user.send(&room, "m.reaction", &like).await;
        assert_eq!(author.sees(&room, &reaction).await["content"], like);

        let reply = json!({"msgtype": "m.text", "body": "yes", "m.relates_to": {"m.in_reply_to": {"event_id": said}}});
        let reply = reader.user.send(&room, "m.room.message", &reply).await;
        author.sees(&room, &reply).await;

        // One's own, of each.
        for (redactor, witness, target) in [(&*reader, &*author, &reaction), (&*author, &*reader, &said)] {
            redactor.user.redact(&room, target).await;
            eventually!(event(&witness.user, &room, target).await["content"] == json!({}));
        }
    }
    agree(&room, &maker.user, &guest.user).await;
}

pub(super) async fn names_are_seen_and_followed(scene: Scene) {
    let (room, mut maker, mut guest) = scene.shared_room().await;
    for turned in [false, true] {
        let (one, other) = if turned { (&mut guest, &mut maker) } else { (&mut maker, &mut guest) };
        let path = format!("/profile/{}/displayname", encode(one.user.id()));
        one.user.put(&path, &json!({"displayname": "A new name"})).await.ok();
        let is_named = |event: &Value| {
            event["type"] == "m.room.member"
                && event["state_key"] == one.user.id()
                && event["content"]["displayname"] == "A new name"
        };
        other.event(&room, "the new name in the room", is_named).await;
        let profile = other.user.get(&format!("/profile/{}", encode(one.user.id()))).await.ok();
        assert_eq!(profile["displayname"], "A new name", "{} asks for {}", other.user.id(), one.user.id());
    }
    agree(&room, &maker.user, &guest.user).await;
}

pub(super) async fn who_reads_types_and_is_there_is_seen(scene: Scene) {
    let (room, mut maker, mut guest) = scene.shared_room().await;
    for turned in [false, true] {
        let (one, other) = if turned { (&mut guest, &mut maker) } else { (&mut maker, &mut guest) };
        let id = one.user.id().to_owned();
        let typing = format!("/rooms/{}/typing/{}", encode(&room), encode(&id));
        one.user.put(&typing, &json!({"typing": true, "timeout": 30_000})).await.ok();
        other.ephemeral(&room, "m.typing", |content| content["user_ids"] == json!([id])).await;
        other.look_ahead();
        one.user.put(&typing, &json!({"typing": false})).await.ok();
        other.ephemeral(&room, "m.typing", |content| content["user_ids"] == json!([])).await;

        let said = other.user.send_text(&room, "read this").await;
        one.sees(&room, &said).await;
        one.user.post(&format!("/rooms/{}/receipt/m.read/{}", encode(&room), encode(&said)), &json!({})).await.ok();
        let is_read = |content: &Value| content[&said]["m.read"][&id].is_object();
        other.ephemeral(&room, "m.receipt", is_read).await;

        let status = json!({"presence": "online", "status_msg": "at the desk"});
        one.user.put(&format!("/presence/{}/status", encode(&id)), &status).await.ok();
        let is_there = |answer: &Value| {
            let mut events = answer["presence"]["events"].as_array()?.iter();
            events.find(|event| event["sender"] == id && event["content"]["status_msg"] == "at the desk").cloned()
        };
        let there = other.until("who is there", is_there).await;
        assert_eq!(there["content"]["presence"], "online");
    }
}

async fn event(user: &TestUser, room: &str, event: &str) -> Value {
    user.get(&format!("/rooms/{}/event/{}", encode(room), encode(event))).await.ok()
}
