//! A quick look at what is new, in memory where it reaches back far enough.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use accounts::Requester;
use event_bus::TypingNews;
use model::{Position, RoomNr};
use storage::{Item, RoomMembership, StoredEvent};

use super::Request;
use crate::{Error, Sync};

/// What kinds of things are new for a user.
#[derive(Default)]
pub(super) struct News {
    /// The new events of each room of the user; nothing when only the database knows.
    pub(super) events: Option<HashMap<RoomNr, Vec<Arc<StoredEvent>>>>,
    /// Rooms with new receipts.
    receipt_rooms: HashSet<RoomNr>,
    pub(super) receipts: bool,
    pub(super) account_data: bool,
    pub(super) to_device: bool,
    pub(super) device_lists: bool,
    memberships: bool,
    typing: bool,
}

impl News {
    /// Whether there may be something to answer with.
    pub(super) fn any(&self) -> bool {
        self.events.as_ref().is_none_or(|events| !events.is_empty())
            || self.receipts
            || self.account_data
            || self.to_device
            || self.device_lists
            || self.memberships
            || self.typing
    }

    /// Whether a joined room may have something new.
    pub(super) fn room(&self, room_nr: RoomNr) -> bool {
        match &self.events {
            Some(events) => events.contains_key(&room_nr) || self.receipt_rooms.contains(&room_nr),
            None => true,
        }
    }

    fn unknown() -> Self {
        Self { receipts: true, account_data: true, to_device: true, device_lists: true, ..Self::default() }
    }
}

impl Sync {
    /// Looks at what came after the client's token. Touches no table.
    pub(super) fn news(
        &self,
        requester: &Requester,
        request: &Request,
        memberships: &[RoomMembership],
        joined: &[RoomNr],
        upto: Position,
        typing: &TypingNews,
    ) -> Result<News, Error> {
        let Some(since) = request.since else { return Ok(News::unknown()) };
        let rooms: HashSet<RoomNr> = joined.iter().copied().collect();
        let mut news = News::default();
        let mut events: HashMap<RoomNr, Vec<Arc<StoredEvent>>> = HashMap::new();
        let user_nr = requester.user_nr;
        let all_here = self.0.ring.scan(since.position, upto, |_, item| match item {
            Item::Event(event) if rooms.contains(&event.room_nr) => {
                events.entry(event.room_nr).or_default().push(event.clone());
            }
            Item::Receipt(room_nr, _) if rooms.contains(room_nr) => {
                news.receipts = true;
                news.receipt_rooms.insert(*room_nr);
            }
            Item::AccountData(user) => news.account_data |= *user == user_nr,
            Item::ToDevice(user, device) => {
                news.to_device |= *user == user_nr && requester.device_id.as_ref().is_some_and(|own| own == device);
            }
            Item::DeviceList(_) => news.device_lists = true,
            _ => {}
        });
        if !all_here {
            return Ok(News::unknown());
        }
        news.events = Some(events);
        news.memberships = memberships.iter().any(|row| row.position > since.position && !row.forgotten);
        news.typing = !typing.changes.is_empty();
        Ok(news)
    }
}
