//! Rooms: which there are, by what they are named, making, joining and leaving them.

use std::time::Duration;

use client::{Client, Membership, NewRoom, Room};
use ruma::{OwnedUserId, RoomAliasId, RoomOrAliasId, api::client::alias::get_alias};
use serde_json::json;

use crate::{
    arguments::{Create, Rooms},
    failure::Failure,
    show::{print, safe_line, table},
};

/// The room that somebody means by its id, its alias, or its name if no other room has it: one that the user is in or invited to.
pub(crate) async fn find(client: &Client, wanted: &str) -> Result<Room, Failure> {
    let rooms = client.rooms().await?;
    let name = |room: &Room| room.display_name(client.user_id());
    let is_meant =
        |room: &Room| room.room_id == wanted || room.alias.as_deref() == Some(wanted) || name(room) == wanted;
    let mut meant: Vec<Room> = rooms.iter().filter(|room| is_meant(room)).cloned().collect();
    if meant.is_empty()
        && let Ok(alias) = RoomAliasId::parse(wanted)
    {
        let answer = client.api().send(get_alias::v3::Request::new(alias)).await?;
        meant.extend(rooms.into_iter().find(|room| room.room_id == answer.room_id));
    }
    if meant.len() > 1 {
        let ids: Vec<&str> = meant.iter().map(|room| room.room_id.as_str()).collect();
        return Err(Failure::Refused(format!(
            "several rooms are called `{wanted}`; by their ids:\n{}",
            ids.join("\n")
        )));
    }
    meant.pop().ok_or_else(|| {
        Failure::Refused(format!("you are in no room `{wanted}`; `swiftchat-client rooms` lists those that you are in"))
    })
}

/// The same, if the user is a member.
pub(crate) async fn find_joined(client: &Client, wanted: &str) -> Result<Room, Failure> {
    let room = find(client, wanted).await?;
    if room.membership == Membership::Join {
        return Ok(room);
    }
    Err(Failure::Refused(format!("you are invited to that room; `swiftchat-client join '{}'` accepts", room.room_id)))
}

pub(crate) async fn list(client: &Client, options: &Rooms) -> Result<(), Failure> {
    let rooms = client.rooms().await?;
    let name = |room: &Room| room.display_name(client.user_id());
    let members = |room: &Room| room.members.values().filter(|member| member.membership == Membership::Join).count();
    if options.json {
        let rooms = rooms.iter().map(|room| {
            json!({
                "id": room.room_id,
                "name": name(room),
                "alias": room.alias,
                "membership": room.membership,
                "encrypted": room.encryption.is_some(),
                "members": members(room),
                "unread": room.unread,
            })
        });
        print(serde_json::Value::from_iter(rooms))?;
        return Ok(());
    }
    let rows: Vec<_> = rooms
        .iter()
        .map(|room| {
            let is_invited = room.membership == Membership::Invite;
            let unread = if is_invited { "invited".to_owned() } else { room.unread.to_string() };
            let encrypted = if room.encryption.is_some() { "yes" } else { "no" };
            [safe_line(&name(room)), encrypted.to_owned(), members(room).to_string(), unread, room.room_id.to_string()]
        })
        .collect();
    print(table(["NAME", "ENCRYPTED", "MEMBERS", "UNREAD", "ID"], &rows))?;
    Ok(())
}

pub(crate) async fn create(client: &Client, options: Create) -> Result<(), Failure> {
    let Create { name, invite, direct, unencrypted } = options;
    let new = NewRoom { name, invite, is_direct: direct, is_encrypted: !unencrypted, ..NewRoom::default() };
    print(client.create_room(new).await?)?;
    Ok(())
}

pub(crate) async fn join(client: &Client, wanted: &str) -> Result<(), Failure> {
    let room = match RoomOrAliasId::parse(wanted) {
        Ok(room) => room,
        Err(_) => find(client, wanted).await?.room_id.into(),
    };
    print(client.join(room).await?)?;
    Ok(())
}

pub(crate) async fn invite(client: &Client, wanted: &str, users: &[OwnedUserId]) -> Result<(), Failure> {
    let room = find_joined(client, wanted).await?;
    for user in users {
        client.invite(&room.room_id, user).await?;
    }
    Ok(())
}

pub(crate) async fn leave(client: &Client, wanted: &str) -> Result<(), Failure> {
    let room = find(client, wanted).await?;
    client.leave(&room.room_id).await?;
    Ok(client.sync_once(Duration::ZERO).await?)
}
