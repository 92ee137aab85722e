//! People come, go, and look back.

#![recursion_limit = "256"]

use std::collections::HashSet;

use anyhow::Result;
use matrix_sdk::{
    RoomState,
    ruma::{RoomAliasId, api::error::ErrorKind},
};
use matrix_sdk_scenarios::{Person, Server, id_of, text_of};

#[tokio::test]
async fn somebody_who_registered_can_log_in_elsewhere_and_out_again() -> Result<()> {
    let server = Server::start().await?;
    let alice = Person::register(&server, "alice").await?;
    let elsewhere = alice.another_client(&server).await?;
    assert_eq!(elsewhere.client.whoami().await?.user_id, alice.id());
    assert_ne!(elsewhere.client.device_id(), alice.client.device_id());
    assert_eq!(alice.client.devices().await?.devices.len(), 2);
    elsewhere.client.matrix_auth().logout().await?;
    let refused = elsewhere.client.whoami().await.unwrap_err();
    assert!(matches!(refused.client_api_error_kind(), Some(ErrorKind::UnknownToken { .. })), "{refused}");
    assert_eq!(alice.client.devices().await?.devices.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_refused() -> Result<()> {
    let server = Server::start().await?;
    let alice = Person::register(&server, "alice").await?;
    let refused = alice.client.matrix_auth().login_username(alice.id(), "guessed").send().await.unwrap_err();
    assert_eq!(refused.client_api_error_kind(), Some(&ErrorKind::Forbidden));
    Ok(())
}

#[tokio::test]
async fn a_public_room_can_be_joined_and_a_private_one_only_by_invitation() -> Result<()> {
    let server = Server::start().await?;
    let alice = Person::register(&server, "alice").await?;
    let mut bob = Person::register(&server, "bob").await?;
    let (public, private) = (alice.create_public_room().await?, alice.create_private_room(&[]).await?);
    bob.client.join_room_by_id(&public).await?;
    bob.sync_until_room_is(&public, RoomState::Joined).await?;
    let refused = bob.client.join_room_by_id(&private).await.unwrap_err();
    assert_eq!(refused.client_api_error_kind(), Some(&ErrorKind::Forbidden));
    alice.room(&private)?.invite_user_by_id(bob.id()).await?;
    bob.sync_until_room_is(&private, RoomState::Invited).await?;
    assert_eq!(bob.room(&private)?.name().as_deref(), Some("a private room"));
    bob.client.join_room_by_id(&private).await?;
    bob.sync_until_room_is(&private, RoomState::Joined).await
}

#[tokio::test]
async fn somebody_who_left_hears_nothing_more_and_one_who_was_banned_cannot_return() -> Result<()> {
    let server = Server::start().await?;
    let mut alice = Person::register(&server, "alice").await?;
    let mut bob = Person::register(&server, "bob").await?;
    let room = alice.create_public_room().await?;
    alice.sync_until_room_is(&room, RoomState::Joined).await?;
    bob.client.join_room_by_id(&room).await?;
    bob.sync_until_room_is(&room, RoomState::Joined).await?;
    bob.room(&room)?.leave().await?;
    bob.sync_until_room_is(&room, RoomState::Left).await?;
    alice.say(&room, "bob is gone").await?;
    alice.room(&room)?.ban_user(bob.id(), Some("for good")).await?;
    bob.sync().await?;
    assert!(bob.texts(&room).is_empty());
    let refused = bob.client.join_room_by_id(&room).await.unwrap_err();
    // Synapse calls it M_BAD_STATE, the specification M_FORBIDDEN; both with this status.
    assert_eq!(refused.as_client_api_error().map(|error| error.status_code.as_u16()), Some(403), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_display_name_is_seen_in_the_room() -> Result<()> {
    let server = Server::start().await?;
    let alice = Person::register(&server, "alice").await?;
    let mut bob = Person::register(&server, "bob").await?;
    let room = alice.create_public_room().await?;
    bob.client.join_room_by_id(&room).await?;
    bob.sync_until_room_is(&room, RoomState::Joined).await?;
    alice.client.account().set_display_name(Some("Alice Liddell")).await?;
    bob.sync_until("the new name", |bob| {
        bob.events(&room)
            .iter()
            .any(|event| event["type"] == "m.room.member" && event["content"]["displayname"] == "Alice Liddell")
    })
    .await?;
    assert_eq!(alice.client.account().get_display_name().await?.as_deref(), Some("Alice Liddell"));
    Ok(())
}

#[tokio::test]
async fn an_alias_leads_to_its_room() -> Result<()> {
    let server = Server::start().await?;
    let alice = Person::register(&server, "alice").await?;
    let mut bob = Person::register(&server, "bob").await?;
    let room = alice.create_public_room().await?;
    let alias = format!("#of-{}:{}", alice.id().localpart(), alice.id().server_name());
    let alias = RoomAliasId::parse(alias)?;
    alice.client.create_room_alias(&alias, &room).await?;
    assert_eq!(bob.client.resolve_room_alias(&alias).await?.room_id, room);
    bob.client.join_room_by_id_or_alias((&*alias).into(), &[]).await?;
    bob.sync_until_room_is(&room, RoomState::Joined).await
}

/// What a short timeline left out is found by paging back, without a gap and without a double.
#[tokio::test]
async fn the_history_behind_a_limited_timeline_is_complete() -> Result<()> {
    let server = Server::start().await?;
    let mut alice = Person::register(&server, "alice").await?;
    let mut bob = Person::register(&server, "bob").await?;
    let room = alice.create_public_room().await?;
    alice.sync_until_room_is(&room, RoomState::Joined).await?;
    bob.client.join_room_by_id(&room).await?;
    bob.sync_until_room_is(&room, RoomState::Joined).await?;
    let said: Vec<String> = (0..30).map(|number| format!("number {number}")).collect();
    for text in &said {
        alice.say(&room, text).await?;
    }
    bob.sync_with_timeline_limit(5).await?;
    assert!(bob.had_limited_timeline(&room));
    assert_eq!(bob.texts(&room), said[25..]);
    let history = bob.history(&room).await?;
    let ids: HashSet<_> = history.iter().filter_map(id_of).collect();
    assert_eq!(ids.len(), history.len(), "an event came twice");
    assert_eq!(history.iter().filter_map(text_of).collect::<Vec<_>>(), said);
    assert_eq!(history[0]["type"], "m.room.create");
    Ok(())
}
