//! What is set in rooms.

use serde_json::json;
use test_kit::encode;

use super::{Scene, Watcher, agree, talk_both_ways};

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
