//! A reader's rules, applied to single events of a room.

use std::{collections::HashMap, sync::Arc};

use accounts::Requester;
use model::{NodeNr, RoomNr};
use ruma::{UInt, push::FlattenedJson, serde::Raw};
use serde_json::value::RawValue;
use storage::{RoomRow, StoredEvent};

use super::{
    Chosen,
    fit::{About, Pattern, Rules},
    plan::Effect,
};
use crate::{Error, Rooms, power::Power};

/// Applies a user's rules to events of a room that others sent.
pub(crate) struct Judge<'a> {
    rooms: &'a Rooms,
    chosen: &'a Chosen,
    room: Arc<RoomRow>,
    joined: UInt,
    display_name: Option<Pattern>,
    /// The powers in the states that were looked at.
    powers: HashMap<NodeNr, Option<Arc<Power>>>,
}

impl<'a> Judge<'a> {
    pub(crate) async fn new(
        rooms: &'a Rooms,
        requester: &Requester,
        chosen: &'a Chosen,
        room_nr: RoomNr,
    ) -> Result<Self, Error> {
        let room = rooms.storage().get_rooms(&[room_nr]).await?.remove(&room_nr).ok_or(Error::RoomUnknown)?;
        let asks = |what: fn(&Rules) -> bool| chosen.rules.as_ref().is_some_and(what);
        let (mut display_name, mut joined) = (None, UInt::MIN);
        if asks(|rules| rules.ask_for_name) {
            let name = rooms.display_name(requester, &room).await?.unwrap_or_default();
            display_name = Pattern::of_words(&name);
        }
        if asks(|rules| rules.depend_on_members) {
            joined = rooms.joined_counts(&[room_nr]).await?.get(&room_nr).copied().unwrap_or_default();
        }
        Ok(Self { rooms, chosen, room, joined, display_name, powers: HashMap::new() })
    }

    /// What an event does to the reader, who is, or is not, subscribed to its thread, if it is in one.
    pub(crate) async fn effect(&mut self, event: &StoredEvent, is_subscribed: Option<bool>) -> Result<Effect, Error> {
        let Some(rules) = &self.chosen.rules else { return Ok(Effect::default()) };
        let power = if rules.ask_for_power { self.power_at(event.state).await? } else { None };
        let Ok(json) = RawValue::from_string(event.pdu.json.to_string()) else { return Ok(Effect::default()) };
        let json = FlattenedJson::from_raw(&Raw::<ruma::events::AnyTimelineEvent>::from_json(json));
        let about = About {
            room_id: &self.room.id,
            joined: self.joined,
            display_name: self.display_name.as_ref(),
            sender: &event.pdu.sender,
            power: power.as_deref(),
            is_subscribed,
        };
        Ok(rules.effect(&json, &about).await)
    }

    async fn power_at(&mut self, state: NodeNr) -> Result<Option<Arc<Power>>, Error> {
        if let Some(power) = self.powers.get(&state) {
            return Ok(power.clone());
        }
        let power = match self.rooms.power_at(&self.room, state).await {
            Ok(power) => Some(Arc::new(power)),
            Err(error @ Error::Storage(_)) => return Err(error),
            // A room whose state is damaged lets nobody notify it.
            Err(_) => None,
        };
        self.powers.insert(state, power.clone());
        Ok(power)
    }
}
