//! What people do.

use accounts::Requester;
use rooms::Error;
use ruma::OwnedUserId;
use serde_json::{Value, json, value::to_raw_value};

use crate::{
    Chance,
    world::{NAMES, PEOPLE, World, id_of},
};

/// Levels that are given and asked for; anchors have 100.
const LEVELS: [i64; 5] = [0, 25, 50, 75, 99];

/// Something that somebody wants to do.
#[derive(Debug)]
pub(crate) enum Action {
    Say(String),
    Set(&'static str, String, Value),
    Kick(OwnedUserId),
    Ban(OwnedUserId),
    Unban(OwnedUserId),
    Invite(OwnedUserId),
    Join,
    Leave,
    /// One of the newest events.
    Redact(usize),
    /// A change of the power levels: of a user, of an event type, or of what an action needs.
    Levels(Option<&'static str>, String, i64),
}

impl Action {
    /// What comes to the mind of somebody; `number` makes it different from all others.
    pub(crate) fn choose(chance: &Chance, number: u64, is_anchor: bool) -> Self {
        let someone = || id_of(chance.one_of(&PEOPLE[1..]), chance.one_of(&NAMES));
        match chance.below(100) {
            0..20 => Self::Say(format!("{number}")),
            20..35 => Self::Set("m.room.topic", String::new(), json!({"topic": number.to_string()})),
            35..45 => Self::Set("org.example.thing", chance.one_of(&["x", "y"]).to_owned(), json!({"number": number})),
            45..53 => Self::Kick(someone()),
            53..61 => Self::Ban(someone()),
            61..66 => Self::Unban(someone()),
            66..69 => Self::Invite(someone()),
            69..74 => Self::Redact(usize::try_from(chance.below(8)).expect("a small number")),
            74..80 => {
                let rule = chance.one_of(&["public", "public", "invite"]);
                Self::Set("m.room.join_rules", String::new(), json!({"join_rule": rule}))
            }
            80..90 => {
                let level = chance.one_of(&LEVELS);
                match chance.below(4) {
                    0 => Self::Levels(Some("events"), "m.room.topic".to_owned(), level),
                    1 => Self::Levels(
                        None,
                        chance.one_of(&["ban", "kick", "state_default", "events_default"]).to_owned(),
                        level,
                    ),
                    _ => Self::Levels(Some("users"), someone().to_string(), level),
                }
            }
            // Whose server has nobody in the room could not come back by itself.
            90..94 if !is_anchor => Self::Leave,
            _ => Self::Join,
        }
    }

    /// Does it; most things are not allowed to most people.
    pub(crate) async fn play(&self, world: &World, who: &Requester, number: u64) -> Result<(), Error> {
        let (rooms, room) = (&world.rooms, &*world.room);
        match self {
            Self::Say(text) => {
                let content = to_raw_value(&json!({"body": text})).expect("JSON");
                let kind = "m.room.message".into();
                rooms.send_message(who, room, kind, (&*number.to_string()).into(), &content, None).await.map(drop)
            }
            Self::Set(kind, key, content) => {
                let content = to_raw_value(content).expect("JSON");
                rooms.send_state(who, room, (*kind).into(), key, &content, None).await.map(drop)
            }
            Self::Kick(user) => rooms.kick(who, room, user, None).await,
            Self::Ban(user) => rooms.ban(who, room, user, None).await,
            Self::Unban(user) => rooms.unban(who, room, user, None).await,
            // Those of other servers are asked for their signature.
            Self::Invite(user) if user.server_name().as_str() != world.name => Ok(()),
            Self::Invite(user) => rooms.invite(who, room, user, None).await,
            Self::Join => rooms.join(who, room, None).await.map(drop),
            Self::Leave => rooms.leave(who, room, None).await,
            Self::Redact(back) => {
                let upto = world.storage.published();
                let all = world.storage.list_events_after(model::Position(0), upto, 10_000).await?;
                let events = world.storage.get_events(&all).await?;
                let mut here = all.iter().rev().map(|nr| &events[nr].pdu).filter(|pdu| pdu.room_id == world.room);
                let Some(target) = here.nth(*back) else { return Ok(()) };
                rooms.redact(who, room, &target.event_id, (&*number.to_string()).into(), None).await.map(drop)
            }
            Self::Levels(map, key, level) => {
                let (_, event) = rooms.state_event(who, room, "m.room.power_levels", "").await?;
                let mut content: Value = serde_json::from_str(event.pdu.content.get()).expect("JSON");
                match map {
                    Some(map) => content[map][key] = json!(level),
                    None => content[key] = json!(level),
                }
                let content = to_raw_value(&content).expect("JSON");
                rooms.send_state(who, room, "m.room.power_levels".into(), "", &content, None).await.map(drop)
            }
        }
    }
}
