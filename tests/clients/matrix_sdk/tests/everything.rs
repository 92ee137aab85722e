//! Four people, two rooms and a space through a long day: everything that rooms and sync offer, a restart in the middle of it.

#![recursion_limit = "256"]

use std::collections::HashSet;

use anyhow::{Context, Result};
use matrix_sdk::{
    RoomState,
    ruma::{
        OwnedEventId, OwnedRoomId, RoomId, RoomVersionId,
        api::client::{
            presence::set_presence,
            receipt::create_receipt::v3::ReceiptType,
            relations::get_relating_events,
            room::{create_room, upgrade_room},
            space::get_hierarchy,
            threads::get_threads,
        },
        events::receipt::ReceiptThread,
        presence::PresenceState,
        room::RoomType,
        serde::Raw,
    },
};
use matrix_sdk_scenarios::{Person, Server, Signal, id_of};
use serde_json::{Value, json};

#[tokio::test]
async fn four_people_spend_a_day_in_two_rooms_and_a_space() -> Result<()> {
    let mut server = Server::start().await?;
    let mut alice = Person::register(&server, "alice").await?;
    let mut bob = Person::register(&server, "bob").await?;
    let mut carol = Person::register(&server, "carol").await?;
    let mut dave = Person::register(&server, "dave").await?;

    // A space with two rooms in it: one that anybody may join, one for its members alone.
    let garden = alice.create_public_room().await?;
    let study = alice.create_private_room(&[&bob, &carol, &dave]).await?;
    let space = create_space(&alice).await?;
    for room in [&garden, &study, &space] {
        alice.sync_until_room_is(room, RoomState::Joined).await?;
    }
    for room in [&garden, &study] {
        let child = json!({"via": ["localhost"]});
        alice.room(&space)?.send_state_event_raw("m.space.child", room.as_str(), child).await?;
    }
    for person in [&mut bob, &mut carol, &mut dave] {
        person.sync_until_room_is(&study, RoomState::Invited).await?;
        for room in [&study, &space, &garden] {
            person.client.join_room_by_id(room).await?;
            person.sync_until_room_is(room, RoomState::Joined).await?;
        }
        let hierarchy = person.client.send(get_hierarchy::v1::Request::new(space.clone())).await?;
        let shown: HashSet<_> = hierarchy.rooms.into_iter().map(|room| room.summary.room_id).collect();
        assert_eq!(shown, HashSet::from([space.clone(), garden.clone(), study.clone()]));
    }

    // A conversation with an edit, a reaction, a mention and a poll.
    let opening = alice.say(&garden, "who wants tee?").await?;
    let edit = json!({
        "msgtype": "m.text", "body": "* who wants tea?", "m.new_content": {"msgtype": "m.text", "body": "who wants tea?"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": opening},
    });
    let edit = send(&alice, &garden, "m.room.message", edit).await?;
    let reaction = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": opening, "key": "☕"}});
    let again = reaction.clone();
    let reaction = send(&bob, &garden, "m.reaction", reaction).await?;
    let refused = send(&bob, &garden, "m.reaction", again).await.err().context("the same reaction twice")?;
    assert!(format!("{refused:?}").contains("M_DUPLICATE_ANNOTATION"), "{refused:?}");
    let mention = json!({"msgtype": "m.text", "body": "Dave?", "m.mentions": {"user_ids": [dave.id()]}});
    let mention = send(&alice, &garden, "m.room.message", mention).await?;
    let poll = json!({
        "m.text": [{"body": "Milk?"}],
        "m.poll": {
            "kind": "m.disclosed", "max_selections": 1, "question": {"m.text": [{"body": "Milk?"}]},
            "answers": [{"m.id": "yes", "m.text": [{"body": "Yes"}]}, {"m.id": "no", "m.text": [{"body": "No"}]}],
        },
    });
    let poll = send(&alice, &garden, "m.poll.start", poll).await?;
    let vote = json!({"m.relates_to": {"rel_type": "m.reference", "event_id": poll}, "m.selections": ["yes"]});
    let vote = send(&carol, &garden, "m.poll.response", vote).await?;
    dave.sync_until("the vote", |dave| dave.event(&garden, vote.as_str()).is_some()).await?;
    assert_eq!(related(&dave, &garden, &opening).await?, HashSet::from([edit.clone(), reaction.clone()]));
    assert_eq!(related(&dave, &garden, &poll).await?, HashSet::from([vote.clone()]));

    // What dave has not read, and then has.
    dave.sync_until("counts", |dave| dave.unread(&garden) == (2, 1)).await?;
    let read = |event: &OwnedEventId, thread| (ReceiptType::Read, thread, event.clone());
    let (kind, thread, event) = read(&mention, ReceiptThread::Main);
    dave.room(&garden)?.send_single_receipt(kind, thread, event).await?;
    dave.sync_until("no counts", |dave| dave.unread(&garden) == (0, 0)).await?;

    // A thread.
    let in_thread = |body: &str| json!({"msgtype": "m.text", "body": body, "m.relates_to": {"rel_type": "m.thread", "event_id": opening}});
    send(&bob, &garden, "m.room.message", in_thread("one lump")).await?;
    let reply = send(&carol, &garden, "m.room.message", in_thread("or two?")).await?;
    let (count, latest) = thread_of(&dave, &garden, &opening).await?;
    assert_eq!((count, latest), (2, reply.to_string()));
    dave.sync_until("the thread's counts", |dave| dave.unread(&garden) == (2, 0)).await?;

    // Presence, seen by who shares a room.
    let mut presence = set_presence::v3::Request::new(carol.id().to_owned(), PresenceState::Unavailable);
    presence.status_msg = Some("in the rose garden".to_owned());
    carol.client.send(presence).await?;
    let seen = (PresenceState::Unavailable, Some("in the rose garden".to_owned()));
    let carols_id = carol.id().to_owned();
    alice.sync_until("carol's presence", |alice| alice.presence_of(&carols_id) == Some(&seen)).await?;

    // The server crashes and starts again; what was counted and read before is as it was.
    server.stop(Signal::Kill).await?;
    server.start_again(Signal::Kill).await?;
    alice.say(&study, "what was that noise?").await?;
    for person in [&mut alice, &mut bob, &mut carol, &mut dave] {
        person.sync_until("the question", |person| person.texts(&study) == ["what was that noise?"]).await?;
    }
    let mut other = dave.another_client(&server).await?;
    other.sync_until("counts", |dave| dave.unread(&garden) == (2, 0) && dave.unread(&study) == (1, 0)).await?;
    let (kind, thread, event) = read(&reply, ReceiptThread::Thread(opening.clone()));
    dave.room(&garden)?.send_single_receipt(kind, thread, event).await?;
    other.sync_until("no counts", |dave| dave.unread(&garden) == (0, 0)).await?;

    // The newest reply of the thread is taken back.
    carol.room(&garden)?.redact(&reply, None, None).await?;
    assert_eq!(thread_of(&bob, &garden, &opening).await?.0, 1);

    // The study moves; everybody follows.
    let upgrade = upgrade_room::v3::Request::new(study.clone(), RoomVersionId::V12);
    let moved = alice.client.send(upgrade).await?.replacement_room;
    alice.sync_until_room_is(&moved, RoomState::Joined).await?;
    for person in [&mut bob, &mut carol, &mut dave] {
        person
            .sync_until("the tombstone", |person| {
                person.events(&study).iter().any(|event| {
                    event["type"] == "m.room.tombstone" && event["content"]["replacement_room"] == moved.as_str()
                })
            })
            .await?;
        alice.room(&moved)?.invite_user_by_id(person.id()).await?;
        person.sync_until_room_is(&moved, RoomState::Invited).await?;
        person.client.join_room_by_id(&moved).await?;
        person.sync_until_room_is(&moved, RoomState::Joined).await?;
        let room = person.room(&moved)?;
        assert_eq!(room.name().as_deref(), Some("a private room"));
        assert_eq!(
            room.create_content().and_then(|create| create.predecessor).map(|old| old.room_id),
            Some(study.clone())
        );
    }
    let evening = bob.say(&moved, "good evening").await?;

    // Nothing is lost, nothing is doubled.
    for person in [&mut alice, &mut bob, &mut carol, &mut dave] {
        person.sync_until("the last text", |person| person.event(&moved, evening.as_str()).is_some()).await?;
        for room in [&garden, &study, &moved, &space] {
            assert!(!person.had_limited_timeline(room) || room == &moved);
            let heard: Vec<_> = person.events(room).iter().filter_map(id_of).collect();
            assert_eq!(heard.iter().collect::<HashSet<_>>().len(), heard.len(), "an event came twice");
            let history = person.history(room).await?;
            let stored: Vec<_> = history.iter().filter_map(id_of).collect();
            assert!(stored.ends_with(&heard), "{room}: heard {heard:?}, stored {stored:?}");
        }
    }
    Ok(())
}

async fn create_space(person: &Person) -> Result<OwnedRoomId> {
    let mut content = create_room::v3::CreationContent::new();
    content.room_type = Some(RoomType::Space);
    let mut request = create_room::v3::Request::new();
    request.preset = Some(create_room::v3::RoomPreset::PublicChat);
    request.creation_content = Some(Raw::new(&content)?);
    Ok(person.client.create_room(request).await?.room_id().to_owned())
}

async fn send(person: &Person, room: &RoomId, event_type: &str, content: Value) -> Result<OwnedEventId> {
    Ok(person.room(room)?.send_raw(event_type, content).await?.response.event_id)
}

async fn related(person: &Person, room: &RoomId, event: &OwnedEventId) -> Result<HashSet<OwnedEventId>> {
    let request = get_relating_events::v1::Request::new(room.to_owned(), event.clone());
    let answer = person.client.send(request).await?;
    answer.chunk.iter().map(|event| Ok(event.get_field("event_id")?.context("an event without an id")?)).collect()
}

/// The number of replies and the newest one of the room's only thread.
async fn thread_of(person: &Person, room: &RoomId, root: &OwnedEventId) -> Result<(u64, String)> {
    let threads = person.client.send(get_threads::v1::Request::new(room.to_owned())).await?.chunk;
    assert_eq!(threads.len(), 1);
    let shown: Value = serde_json::from_str(threads[0].json().get())?;
    assert_eq!(shown["event_id"], root.as_str());
    let thread = &shown["unsigned"]["m.relations"]["m.thread"];
    let latest = thread["latest_event"]["event_id"].as_str().context("the newest reply")?;
    Ok((thread["count"].as_u64().context("the number of replies")?, latest.to_owned()))
}
