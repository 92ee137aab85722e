//! A quick look at what is new, in memory where it reaches back far enough.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use accounts::{Requester, is_of_settings};
use event_bus::TypingNews;
use model::{Position, RoomNr, StreamToken};
use ruma::events::TimelineEventType;
use storage::{AccountDataRow, Item, StoredEvent};

use crate::{Sync, UserRooms};

/// What kinds of things are new for a user.
#[derive(Default)]
pub(crate) struct News {
    /// The new events of each room of the user; nothing when only the database knows.
    pub(crate) events: Option<HashMap<RoomNr, Vec<Arc<StoredEvent>>>>,
    /// Rooms with new receipts.
    receipt_rooms: HashSet<RoomNr>,
    /// Rooms of which the user has read more.
    read_rooms: HashSet<RoomNr>,
    /// Rooms of threads that the user has subscribed to, or unsubscribed from, where that was looked up.
    pub(crate) subscribed_rooms: HashSet<RoomNr>,
    /// Whether the user chose anew what counts as unread.
    recounts: bool,
    /// Rooms whose state was changed by state resolution.
    resolved_rooms: HashSet<RoomNr>,
    pub(crate) receipts: bool,
    pub(crate) account_data: bool,
    pub(crate) to_device: bool,
    pub(crate) device_lists: bool,
    pub(crate) threads: bool,
    /// Whether the user, or somebody in a room of theirs, may have joined or left.
    pub(crate) members: bool,
    own_memberships: bool,
    typing: bool,
}

impl News {
    /// Whether there may be something to answer with.
    pub(crate) fn any(&self) -> bool {
        self.events.as_ref().is_none_or(|events| !events.is_empty())
            || self.receipts
            || self.account_data
            || self.to_device
            || self.device_lists
            || self.threads
            || self.own_memberships
            || !self.resolved_rooms.is_empty()
            || self.typing
    }

    /// Whether a joined room may have something new.
    pub(crate) fn room(&self, room_nr: RoomNr) -> bool {
        match &self.events {
            Some(events) => {
                events.contains_key(&room_nr)
                    || self.receipt_rooms.contains(&room_nr)
                    || self.subscribed_rooms.contains(&room_nr)
                    || self.is_resolved(room_nr)
            }
            None => true,
        }
    }

    /// Notes which account data is new: some of it decides what counts as unread.
    pub(crate) fn note_account_data(&mut self, rows: &[AccountDataRow]) {
        self.recounts = rows.iter().any(|row| row.room_nr == RoomNr(0) && is_of_settings(&row.event_type));
    }

    /// Whether what the user has not read may be another number in all rooms.
    pub(crate) fn recounts(&self) -> bool {
        self.recounts || self.events.is_none()
    }

    /// Whether what the user has not read of a room may be another number now.
    pub(crate) fn may_count(&self, room_nr: RoomNr) -> bool {
        let counts = |event: &Arc<StoredEvent>| {
            event.countable.is_some() || event.pdu.event_type == TimelineEventType::RoomRedaction
        };
        let events = self.events.as_ref().and_then(|events| events.get(&room_nr));
        self.recounts()
            || self.read_rooms.contains(&room_nr)
            || self.subscribed_rooms.contains(&room_nr)
            || events.is_some_and(|events| events.iter().any(counts))
    }

    /// Whether state resolution may have changed a room's state.
    pub(crate) fn is_resolved(&self, room_nr: RoomNr) -> bool {
        self.events.is_none() || self.resolved_rooms.contains(&room_nr)
    }

    /// Whether a joined room may have new receipts.
    pub(crate) fn has_receipts(&self, room_nr: RoomNr) -> bool {
        self.events.is_none() || self.receipt_rooms.contains(&room_nr)
    }

    fn unknown() -> Self {
        Self {
            receipts: true,
            account_data: true,
            to_device: true,
            device_lists: true,
            threads: true,
            members: true,
            ..Self::default()
        }
    }
}

impl Sync {
    /// Looks at what came after `after`, the client's token or the end of the last look. Touches no table.
    pub(crate) fn news(
        &self,
        requester: &Requester,
        since: Option<StreamToken>,
        rooms: &UserRooms,
        (after, upto): (Position, Position),
        typing: &TypingNews,
    ) -> News {
        let Some(since) = since else { return News::unknown() };
        let mut news = News::default();
        let mut events: HashMap<RoomNr, Vec<Arc<StoredEvent>>> = HashMap::new();
        let user_nr = requester.user_nr;
        let all_here = self.0.ring.scan(after, upto, |_, item| match item {
            Item::Event(event) if rooms.is_joined.contains(&event.room_nr) => {
                news.members |= event.pdu.event_type == TimelineEventType::RoomMember;
                events.entry(event.room_nr).or_default().push(event.clone());
            }
            Item::State(room_nr) if rooms.is_joined.contains(room_nr) => {
                news.members = true;
                news.resolved_rooms.insert(*room_nr);
            }
            Item::Receipt(room_nr, user) if rooms.is_joined.contains(room_nr) => {
                news.receipts = true;
                news.receipt_rooms.insert(*room_nr);
                if *user == user_nr {
                    news.read_rooms.insert(*room_nr);
                }
            }
            Item::AccountData(user) => news.account_data |= *user == user_nr,
            Item::ToDevice(user, device) => {
                news.to_device |= *user == user_nr && requester.device_id.as_ref().is_some_and(|own| own == device);
            }
            Item::DeviceList(_) => news.device_lists = true,
            Item::Signed(user) => news.device_lists |= *user == user_nr,
            Item::ThreadSubscription(user) => news.threads |= *user == user_nr,
            _ => {}
        });
        if !all_here {
            return News::unknown();
        }
        news.events = Some(events);
        news.to_device |= since.to_device.is_some();
        news.own_memberships = rooms.rows.iter().any(|row| row.position > since.position && !row.forgotten);
        news.members |= news.own_memberships;
        news.typing = !typing.changes.is_empty();
        news
    }
}
