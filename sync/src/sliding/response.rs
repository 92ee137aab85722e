//! What sliding sync answers, whichever wire format the client speaks. MSC4186, "Response Body".

use std::{collections::BTreeMap, sync::Arc};

use model::{Membership, Position};
use rooms::Counts;
use rooms::SubscribedThread;
use ruma::{OwnedRoomId, OwnedUserId, api::client::sync::sync_events::DeviceLists};
use serde_json::value::RawValue;
use storage::KeyCounts;

/// An answer.
#[derive(Debug, Default)]
pub struct Response {
    /// Where the connection stands now.
    pub pos: String,
    /// How many rooms are in each list.
    pub lists: BTreeMap<String, usize>,
    /// The rooms with something to tell.
    pub rooms: BTreeMap<OwnedRoomId, Room>,
    /// What there is besides rooms.
    pub extensions: Extensions,
}

/// A room; what has not changed is not there.
#[derive(Debug)]
pub struct Room {
    /// What the user is to the room.
    pub membership: Membership,
    /// The lists in whose ranges the room is.
    pub lists: Vec<String>,
    /// When the room last saw activity.
    pub bump_stamp: Option<Position>,
    /// Whether this is all of the room, and what is not here is not set.
    pub initial: bool,
    /// Whether the timeline reaches back behind what was sent before.
    pub expanded_timeline: bool,
    /// The name, if it changed: nothing inside when it has none any more.
    pub name: Option<Option<String>>,
    /// The picture, in the same way.
    pub avatar: Option<Option<String>>,
    /// After whom the room is called that has no name.
    pub heroes: Option<Vec<Hero>>,
    /// Whether the room is a direct chat, if that changed.
    pub is_dm: Option<bool>,
    /// The state that changed.
    pub required_state: Vec<Box<RawValue>>,
    /// State that is there no more, by type and key.
    pub deleted_state: Vec<(String, String)>,
    /// The events, oldest first.
    pub timeline: Vec<Box<RawValue>>,
    /// Where `/messages` goes on.
    pub prev_batch: Option<String>,
    /// Whether there are events before those that the client has not seen.
    pub limited: bool,
    /// How many of the events, the last ones, came after the request's `pos`.
    pub num_live: Option<usize>,
    /// What the user has not read of it, in all threads.
    pub unread: Option<Counts>,
    /// How many are joined.
    pub joined_count: Option<u64>,
    /// How many are invited.
    pub invited_count: Option<u64>,
    /// What somebody who was never joined sees of the room.
    pub stripped_state: Option<Vec<Box<RawValue>>>,
}

/// Somebody after whom a room is called.
#[derive(Debug)]
pub struct Hero {
    /// The user.
    pub user_id: OwnedUserId,
    /// Their name in the room.
    pub display_name: Option<String>,
    /// Their picture in the room.
    pub avatar_url: Option<String>,
}

/// What there is besides rooms.
#[derive(Debug, Default)]
pub struct Extensions {
    /// Messages to the device, when they were asked for.
    pub to_device: Option<ToDevice>,
    /// Device lists and counts of keys, when they were asked for.
    pub e2ee: Option<E2ee>,
    /// Account data of no room.
    pub global_account_data: Vec<Box<RawValue>>,
    /// Account data of rooms.
    pub room_account_data: BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
    /// An `m.receipt` of each room.
    pub receipts: BTreeMap<OwnedRoomId, Box<RawValue>>,
    /// An `m.typing` of each room.
    pub typing: BTreeMap<OwnedRoomId, Box<RawValue>>,
    /// Subscriptions to threads, when some changed.
    pub thread_subscriptions: Option<ThreadSubscriptions>,
}

/// Subscriptions to threads that changed, newest first.
#[derive(Debug)]
pub struct ThreadSubscriptions {
    /// The newest of them.
    pub changes: Vec<SubscribedThread>,
    /// Where the others are, when these are not all.
    pub prev_batch: Option<String>,
}

/// Messages to the device.
#[derive(Debug)]
pub struct ToDevice {
    /// The token with which the client says that it has them.
    pub next_batch: String,
    /// The messages.
    pub events: Vec<Box<RawValue>>,
}

/// What end-to-end encryption needs.
#[derive(Debug)]
pub struct E2ee {
    /// Whose devices changed, and whose need not be followed any more.
    pub device_lists: DeviceLists,
    /// How many keys of the device are left.
    pub key_counts: Arc<KeyCounts>,
}

impl Response {
    /// Whether there is nothing in it that a client would wait for.
    pub(super) fn is_empty(&self) -> bool {
        let Extensions {
            to_device,
            e2ee,
            global_account_data,
            room_account_data,
            receipts,
            typing,
            thread_subscriptions,
        } = &self.extensions;
        self.rooms.is_empty()
            && to_device.as_ref().is_none_or(|to_device| to_device.events.is_empty())
            && e2ee.as_ref().is_none_or(|e2ee| e2ee.device_lists.is_empty())
            && global_account_data.is_empty()
            && room_account_data.is_empty()
            && receipts.is_empty()
            && typing.is_empty()
            && thread_subscriptions.is_none()
    }
}

impl Room {
    /// A room of which there is nothing to tell yet.
    pub(super) fn new(membership: Membership, initial: bool) -> Self {
        Self {
            membership,
            lists: Vec::new(),
            bump_stamp: None,
            initial,
            expanded_timeline: false,
            name: None,
            avatar: None,
            heroes: None,
            is_dm: None,
            required_state: Vec::new(),
            deleted_state: Vec::new(),
            timeline: Vec::new(),
            prev_batch: None,
            limited: false,
            num_live: None,
            unread: None,
            joined_count: None,
            invited_count: None,
            stripped_state: None,
        }
    }

    /// Whether nothing has changed.
    pub(super) fn is_empty(&self) -> bool {
        !self.initial
            && self.name.is_none()
            && self.avatar.is_none()
            && self.heroes.is_none()
            && self.is_dm.is_none()
            && self.required_state.is_empty()
            && self.deleted_state.is_empty()
            && self.timeline.is_empty()
            && !self.limited
            && self.unread.is_none()
            && self.joined_count.is_none()
            && self.stripped_state.is_none()
    }
}
