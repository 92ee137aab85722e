//! Who comes, goes, and is let in.

use serde_json::json;
use test_kit::encode;

use super::{Scene, Watcher, agree, join, talk_both_ways, try_join_via};

pub(super) async fn an_invitation_is_accepted_and_passed_on(scene: Scene) {
    let maker = Watcher::of(scene.maker.user("maker").await).await;
    let mut guest = Watcher::of(scene.guest.user("guest").await).await;
    let (room, _) = scene.room(&maker.user, json!({"preset": "private_chat", "name": "Private"})).await;
    let mut maker = maker;
    maker.user.invite(&room, &guest.user).await;
    let state = guest.is_invited(&room).await;
    assert!(state.iter().any(|event| event["content"]["name"] == "Private"), "the invited one sees a name: {state:?}");
    let joined = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert!(joined.status.is_success(), "the invited one joins: {joined}");
    maker.sees_member(&room, &guest.user, "join").await;
    talk_both_ways(&room, &mut maker, &mut guest).await;
    // By the guest: somebody of the maker's server, and somebody of their own.
    for side in [&scene.maker, &scene.guest] {
        let mut third = Watcher::of(side.user("third").await).await;
        guest.user.invite(&room, &third.user).await;
        third.is_invited(&room).await;
        let joined = try_join_via(&third.user, &room, &scene.guest.name).await;
        assert!(joined.status.is_success(), "who was invited by the guest joins: {joined}");
        maker.sees_member(&room, &third.user, "join").await;
        talk_both_ways(&room, &mut maker, &mut third).await;
    }
    agree(&room, &maker.user, &guest.user).await;
}

pub(super) async fn an_invitation_is_declined(scene: Scene) {
    let mut maker = Watcher::of(scene.maker.user("maker").await).await;
    let mut guest = Watcher::of(scene.guest.user("guest").await).await;
    let (room, _) = scene.room(&maker.user, json!({"preset": "private_chat"})).await;
    maker.user.invite(&room, &guest.user).await;
    guest.is_invited(&room).await;
    let left = guest.user.in_room(&room, "leave", &json!({})).await;
    assert!(left.status.is_success(), "the invited one declines: {left}");
    maker.sees_member(&room, &guest.user, "leave").await;
    let refused = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert_eq!(refused.status, 403, "who declined may not join: {refused}");
}

pub(super) async fn an_invitation_is_taken_back(scene: Scene) {
    let maker = scene.maker.user("maker").await;
    let mut guest = Watcher::of(scene.guest.user("guest").await).await;
    let (room, _) = scene.room(&maker, json!({"preset": "private_chat"})).await;
    maker.invite(&room, &guest.user).await;
    guest.is_invited(&room).await;
    maker.remove(&room, "kick", &guest.user).await;
    let refused = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert_eq!(refused.status, 403, "whose invitation was taken back may not join: {refused}");
}

pub(super) async fn who_left_comes_back(scene: Scene) {
    let (room, mut maker, mut guest) = scene.shared_room().await;
    talk_both_ways(&room, &mut maker, &mut guest).await;
    for _ in 0..2 {
        guest.user.leave(&room).await;
        maker.sees_member(&room, &guest.user, "leave").await;
        maker.user.send_text(&room, "said while nobody was there").await;
        maker.look_ahead();
        guest.look_ahead();
        let joined = try_join_via(&guest.user, &room, &scene.maker.name).await;
        assert!(joined.status.is_success(), "who left joins again: {joined}");
        maker.sees_member(&room, &guest.user, "join").await;
        talk_both_ways(&room, &mut maker, &mut guest).await;
    }
    agree(&room, &maker.user, &guest.user).await;
}

pub(super) async fn who_was_kicked_comes_back_and_who_was_banned_does_not(scene: Scene) {
    let (room, mut maker, mut guest) = scene.shared_room().await;
    maker.user.remove(&room, "kick", &guest.user).await;
    guest.sees_member(&room, &guest.user.clone(), "leave").await;
    maker.look_ahead();
    let joined = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert!(joined.status.is_success(), "who was kicked joins again: {joined}");
    maker.sees_member(&room, &guest.user, "join").await;
    talk_both_ways(&room, &mut maker, &mut guest).await;

    maker.user.remove(&room, "ban", &guest.user).await;
    guest.sees_member(&room, &guest.user.clone(), "ban").await;
    let refused = guest.user.try_send(&room, "m.room.message", &json!({"body": "still here"})).await;
    refused.is_error(403, "M_FORBIDDEN");
    let refused = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert_eq!(refused.status, 403, "who was banned may not join: {refused}");

    maker.user.remove(&room, "unban", &guest.user).await;
    maker.look_ahead();
    let joined = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert!(joined.status.is_success(), "who is banned no more joins: {joined}");
    maker.sees_member(&room, &guest.user, "join").await;
    talk_both_ways(&room, &mut maker, &mut guest).await;
    agree(&room, &maker.user, &guest.user).await;
}

pub(super) async fn who_knocks_is_let_in(scene: Scene) {
    let mut maker = Watcher::of(scene.maker.user("maker").await).await;
    let mut guest = Watcher::of(scene.guest.user("guest").await).await;
    let knock = json!([{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}]);
    let (room, _) = scene.room(&maker.user, json!({"preset": "private_chat", "initial_state": knock})).await;
    let via = encode(&scene.maker.name);
    let path = format!("/knock/{}?via={via}&server_name={via}", encode(&room));
    let knocked = guest.user.post(&path, &json!({"reason": "let me in"})).await;
    assert!(knocked.status.is_success(), "the guest knocks: {knocked}");
    let seen = maker.sees_member(&room, &guest.user, "knock").await;
    assert_eq!(seen["content"]["reason"], "let me in");
    guest.until("the knock", |answer| answer["rooms"]["knock"][&room].as_object().map(|_| ())).await;
    maker.user.invite(&room, &guest.user).await;
    guest.is_invited(&room).await;
    let joined = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert!(joined.status.is_success(), "who knocked and was invited joins: {joined}");
    maker.sees_member(&room, &guest.user, "join").await;
    talk_both_ways(&room, &mut maker, &mut guest).await;
    // And one who is not let in.
    let other = scene.guest.user("other").await;
    other.post(&path, &json!({})).await.ok();
    maker.sees_member(&room, &other, "knock").await;
    other.leave(&room).await;
    maker.sees_member(&room, &other, "leave").await;
    agree(&room, &maker.user, &guest.user).await;
}

pub(super) async fn who_is_in_one_room_may_join_the_other(scene: Scene) {
    let mut maker = Watcher::of(scene.maker.user("maker").await).await;
    let mut guest = Watcher::of(scene.guest.user("guest").await).await;
    let (club, alias) = scene.room(&maker.user, json!({})).await;
    let rule = json!({"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]});
    let rules = json!([{"type": "m.room.join_rules", "state_key": "", "content": rule}]);
    let (room, _) = scene.room(&maker.user, json!({"preset": "private_chat", "initial_state": rules})).await;
    let refused = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert_eq!(refused.status, 403, "who is not in the club may not join: {refused}");
    join(&guest.user, &alias).await;
    maker.sees_member(&club, &guest.user, "join").await;
    let joined = try_join_via(&guest.user, &room, &scene.maker.name).await;
    assert!(joined.status.is_success(), "who is in the club joins: {joined}");
    let seen = maker.sees_member(&room, &guest.user, "join").await;
    assert_eq!(seen["content"]["join_authorised_via_users_server"], maker.user.id());
    talk_both_ways(&room, &mut maker, &mut guest).await;
    // Another one of the same server, which is in the room now and has nobody who may invite.
    let other = scene.guest.user("other").await;
    join(&other, &alias).await;
    let joined = try_join_via(&other, &room, &scene.maker.name).await;
    assert!(joined.status.is_success(), "the next one of the club joins: {joined}");
    maker.sees_member(&room, &other, "join").await;
    agree(&room, &maker.user, &guest.user).await;
}
