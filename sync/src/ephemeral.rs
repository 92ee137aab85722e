//! Typing and receipts as events for a reader, who sees neither of those whom they ignore. Client-Server API, "Typing Notifications",
//! "Receipts".

use std::collections::{BTreeMap, BTreeSet, HashMap};

use accounts::{Requester, UserSettings};
use event_bus::TypingChange;
use model::{RoomNr, UserNr};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use storage::ReceiptRow;

use crate::{Error, Sync};

/// An event of each room.
pub(crate) type EventByRoom = HashMap<RoomNr, Box<RawValue>>;

impl Sync {
    /// Who is typing in rooms, an event a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub(crate) async fn typing_events(
        &self,
        settings: &UserSettings,
        changes: &[TypingChange],
    ) -> Result<EventByRoom, Error> {
        let users: Vec<UserNr> = changes.iter().flat_map(|change| change.users.iter().copied()).collect();
        let names = if users.is_empty() { HashMap::new() } else { self.0.storage.user_ids(&users).await? };
        let mut shown = EventByRoom::new();
        for change in changes {
            let ids = change.users.iter().filter_map(|user| names.get(user)).filter(|user| !settings.ignores(user));
            let ids: BTreeSet<_> = ids.collect();
            if let Ok(event) = to_raw_value(&json!({"type": "m.typing", "content": {"user_ids": ids}})) {
                shown.insert(change.room_nr, event);
            }
        }
        Ok(shown)
    }

    /// Receipts, an event a room.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub(crate) async fn receipt_events(
        &self,
        requester: &Requester,
        found: HashMap<RoomNr, Vec<ReceiptRow>>,
    ) -> Result<EventByRoom, Error> {
        let settings = self.0.rooms.settings(requester).await?;
        let users: Vec<UserNr> = found.values().flatten().map(|receipt| receipt.user_nr).collect();
        let names = self.0.storage.user_ids(&users).await?;
        let mut shown = EventByRoom::new();
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
            if content.is_empty() {
                continue;
            }
            if let Ok(event) = to_raw_value(&json!({"type": "m.receipt", "content": content})) {
                shown.insert(room, event);
            }
        }
        Ok(shown)
    }
}
