//! Typing and receipts in an answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use accounts::Requester;
use event_bus::TypingChange;
use model::{Membership, Position, RoomNr, UserNr};
use ruma::api::client::sync::sync_events::v3::JoinedRoom;
use serde_json::json;
use storage::{ReceiptRow, RoomMembership, RoomRow};

use super::{Answer, filter::matches_part, raw};
use crate::{Error, Sync};

/// Most receipts of others in a room that is new to the client: who read it long ago is of no interest.
const RECEIPTS_MAX: u32 = 1_000;

impl Sync {
    /// Adds who is typing in a room and who has read what, as far as it is new.
    pub(super) async fn add_ephemeral(
        &self,
        answer: &Answer<'_>,
        shown: &mut JoinedRoom,
        room: &RoomRow,
        typing: &[TypingChange],
        receipts: &HashMap<RoomNr, String>,
    ) -> Result<(), Error> {
        let filter = &answer.request.filter.room.ephemeral;
        if let Some(change) = typing.iter().find(|change| change.room_nr == room.nr)
            && matches_part(filter, &room.id, "m.typing")
        {
            let users = self.0.storage.user_ids(&change.users).await?;
            let ids: BTreeSet<_> = users.into_values().filter(|user| !answer.settings.ignores(user)).collect();
            let event = json!({"type": "m.typing", "content": {"user_ids": ids}});
            shown.ephemeral.events.extend(raw(event.to_string()));
        }
        if let Some(event) = receipts.get(&room.nr)
            && matches_part(filter, &room.id, "m.receipt")
        {
            shown.ephemeral.events.extend(raw(event.clone()));
        }
        Ok(())
    }

    /// The receipts of rooms as events: new ones, and the newest of a room that is new to the client.
    pub(super) async fn receipts(
        &self,
        answer: &Answer<'_>,
        rows: &[(&RoomMembership, &Arc<RoomRow>)],
    ) -> Result<HashMap<RoomNr, String>, Error> {
        let storage = &self.0.storage;
        let since = answer.since.unwrap_or(Position(0));
        let joined = rows.iter().map(|(row, _)| *row).filter(|row| row.membership == Membership::Join);
        let (new, old): (Vec<&RoomMembership>, Vec<&RoomMembership>) = joined.partition(|row| row.position > since);
        let mut found = HashMap::new();
        let numbers = |rows: Vec<&RoomMembership>| -> Vec<RoomNr> { rows.iter().map(|row| row.room_nr).collect() };
        let (new, old) = (numbers(new), numbers(old));
        if !new.is_empty() {
            let user_nr = answer.requester.user_nr;
            found.extend(storage.list_newest_receipts(user_nr, &new, answer.upto, RECEIPTS_MAX).await?);
        }
        if !old.is_empty() {
            found.extend(storage.list_receipts(&old, since, answer.upto).await?);
        }
        self.receipt_events(answer.requester, found).await
    }

    /// Receipts as one event a room, as a reader gets them.
    pub(crate) async fn receipt_events(
        &self,
        requester: &Requester,
        found: HashMap<RoomNr, Vec<ReceiptRow>>,
    ) -> Result<HashMap<RoomNr, String>, Error> {
        let settings = self.0.rooms.settings(requester).await?;
        let users: Vec<UserNr> = found.values().flatten().map(|receipt| receipt.user_nr).collect();
        let names = self.0.storage.user_ids(&users).await?;
        let mut shown = HashMap::new();
        for (room, receipts) in found {
            type ByUser = BTreeMap<String, serde_json::Value>;
            let mut content: BTreeMap<String, BTreeMap<String, ByUser>> = BTreeMap::new();
            for receipt in receipts {
                // A private receipt is its owner's alone. Client-Server API, "Private read receipts".
                if receipt.receipt_type == "m.read.private" && receipt.user_nr != requester.user_nr {
                    continue;
                }
                let user_id = names.get(&receipt.user_nr).filter(|user| !settings.ignores(user));
                let Some(user_id) = user_id else { continue };
                let mut data = json!({"ts": receipt.at_ms});
                if let Some(thread) = &receipt.thread {
                    data["thread_id"] = json!(thread.as_str());
                }
                let by_type = content.entry(receipt.event_id).or_default();
                by_type.entry(receipt.receipt_type).or_default().insert(user_id.to_string(), data);
            }
            if !content.is_empty() {
                shown.insert(room, json!({"type": "m.receipt", "content": content}).to_string());
            }
        }
        Ok(shown)
    }
}
