//! Networks that fall apart and become whole again.

use serde_json::json;
use test_kit::{TestFederation, TestUser, eventually};

use super::scenario::{agree, join};

/// Three servers, on each somebody who may set the topic, and the room that all are in.
async fn world() -> (TestFederation, [TestUser; 3], String) {
    let federation = TestFederation::of(3).await;
    let alice = federation.user("hs1", "alice").await;
    let (bob, carol) = (federation.user("hs2", "bob").await, federation.user("hs3", "carol").await);
    let levels = json!({"users": {alice.id(): 100, bob.id(): 50, carol.id(): 50}});
    let request = json!({"preset": "public_chat", "room_version": "11", "room_alias_name": "hall",
                         "power_level_content_override": levels});
    let room = alice.create_room_with(&request).await;
    join(&bob, "#hall:hs1").await;
    join(&carol, "#hall:hs1").await;
    let people = [alice, bob, carol];
    everybody_sees(&people, &room, &[]).await;
    (federation, people, room)
}

/// Waits until all see all of these texts and the same state.
async fn everybody_sees(people: &[TestUser; 3], room: &str, expected: &[String]) {
    for person in people {
        eventually!({
            let texts = person.texts(room).await;
            expected.iter().all(|text| texts.contains(text))
        });
        agree(room, &people[0], person).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_on_all_sides_of_a_cut_is_everywhere_after_it() {
    let (federation, people, room) = world().await;
    let mut expected = Vec::new();
    for cut in [&[("hs1", "hs2")][..], &[("hs1", "hs2"), ("hs1", "hs3"), ("hs2", "hs3")]] {
        cut.iter().for_each(|(one, other)| federation.cut(one, other));
        for round in 0..3 {
            for person in &people {
                let said = format!("{} in round {round} of {} cuts", person.localpart(), cut.len());
                person.set_state(&room, "m.room.topic", "", &json!({"topic": said})).await;
                person.send_text(&room, &said).await;
                expected.push(said);
            }
        }
        cut.iter().for_each(|(one, other)| federation.heal(one, other));
        for person in &people {
            let said = format!("{} after {} cuts", person.localpart(), cut.len());
            person.send_text(&room, &said).await;
            expected.push(said);
        }
        everybody_sees(&people, &room, &expected).await;
    }
}

/// A ban holds even while the banned user's server has not heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_banned_behind_a_cut_is_not_heard_after_it() {
    let (federation, people, room) = world().await;
    let [alice, bob, carol] = &people;
    let dave = federation.user("hs2", "dave").await;
    dave.join(&room).await;
    everybody_sees(&people, &room, &[]).await;
    federation.cut("hs1", "hs2");
    federation.cut("hs2", "hs3");
    alice.remove(&room, "ban", bob).await;
    bob.send_text(&room, "still here").await;
    // What dave says comes after what bob said, on every way.
    dave.send_text(&room, "hello").await;
    federation.heal("hs1", "hs2");
    federation.heal("hs2", "hs3");
    alice.send_text(&room, "good riddance").await;
    for person in [alice, carol] {
        eventually!(person.texts(&room).await.contains(&"hello".to_owned()));
        assert!(!person.texts(&room).await.contains(&"still here".to_owned()), "{} hears bob", person.id());
    }
    eventually!(bob.try_send(&room, "m.room.message", &json!({"body": "still here"})).await.status == 403);
    agree(&room, alice, &dave).await;
}
