//! What a client asks of sliding sync, whichever wire format it speaks. MSC4186, "Request Body".

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ruma::OwnedRoomId;

use super::required_state::RequiredState;

/// Most lists of a request. MSC4186, "Top-level".
pub const LISTS_MAX: usize = 100;

/// A request. The door has checked its bounds.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// How the client calls the connection.
    pub conn_id: String,
    /// Where the connection stands; nothing for a new one.
    pub pos: Option<String>,
    /// How long to wait for news. Nobody waits for the first answer of a connection.
    pub timeout: Duration,
    /// The lists by name.
    pub lists: BTreeMap<String, List>,
    /// The rooms that are asked for by name.
    pub subscriptions: BTreeMap<OwnedRoomId, RoomConfig>,
    /// What else is asked for.
    pub extensions: Extensions,
    /// Whether the client is told what it has not read. Only the older form has it.
    pub counts_unread: bool,
}

/// A list of rooms and the part of it that the client looks at.
#[derive(Clone, Debug, Default, Hash)]
pub struct List {
    /// The first and the last place of each part, counted from zero; without, all of the list.
    pub ranges: Option<Vec<(u64, u64)>>,
    /// Which rooms are in the list.
    pub filters: Filters,
    /// What is wanted of its rooms.
    pub config: RoomConfig,
}

/// What is wanted of a room.
#[derive(Clone, Debug, Default, Hash)]
pub struct RoomConfig {
    /// Most events of the timeline in one answer.
    pub timeline_limit: u32,
    /// The state.
    pub required_state: RequiredState,
}

/// Which rooms a list has. MSC4186, "SlidingRoomFilter".
#[derive(Clone, Debug, Default, Hash)]
pub struct Filters {
    /// Direct chats only, or all but these.
    pub is_dm: Option<bool>,
    /// Rooms of these spaces that the user is in.
    pub spaces: Option<BTreeSet<OwnedRoomId>>,
    /// Encrypted rooms only, or all but these.
    pub is_encrypted: Option<bool>,
    /// Invitations only, or all but these.
    pub is_invited: Option<bool>,
    /// Rooms of these types; nothing among them stands for rooms without a type.
    pub room_types: Option<BTreeSet<Option<String>>>,
    /// No rooms of these types, in the same way.
    pub not_room_types: BTreeSet<Option<String>>,
    /// Rooms with this in their name, in any case. Only the older form has it.
    pub room_name_like: Option<String>,
    /// Rooms with one of these tags.
    pub tags: Option<BTreeSet<String>>,
    /// No rooms with one of these.
    pub not_tags: BTreeSet<String>,
}

/// What is wanted besides rooms.
#[derive(Clone, Debug, Default)]
pub struct Extensions {
    /// Messages to the device. MSC3885.
    pub to_device: Option<ToDevice>,
    /// Device lists and counts of keys. MSC3884.
    pub e2ee: bool,
    /// Account data. MSC3959.
    pub account_data: Option<Scope>,
    /// Receipts. MSC3960.
    pub receipts: Option<Scope>,
    /// Who is typing. MSC3961.
    pub typing: Option<Scope>,
    /// Most changes of subscriptions to threads in one answer. MSC4308.
    pub thread_subscriptions: Option<u32>,
}

/// Which messages to the device are wanted.
#[derive(Clone, Debug, Default)]
pub struct ToDevice {
    /// The token up to which the client has them.
    pub since: Option<String>,
    /// Most of them in one answer.
    pub limit: Option<u32>,
}

/// The rooms that an extension is about. MSC3575, "Extensions".
#[derive(Clone, Debug, Default, Hash)]
pub struct Scope {
    /// The lists whose rooms it is about; without, all of them.
    pub lists: Option<BTreeSet<String>>,
    /// The rooms asked for by name that it is about; without, all of them.
    pub rooms: Option<BTreeSet<String>>,
}

/// Stands for all lists, or all rooms that are asked for by name.
const ALL: &str = "*";

impl Scope {
    /// Whether a room is meant that is looked at in these lists, or is asked for by name.
    pub(super) fn covers(&self, lists: &[&str], subscribed: Option<&OwnedRoomId>) -> bool {
        let in_lists = match &self.lists {
            None => !lists.is_empty(),
            Some(wanted) if wanted.contains(ALL) => !lists.is_empty(),
            Some(wanted) => lists.iter().any(|name| wanted.contains(*name)),
        };
        in_lists
            || subscribed.is_some_and(|room| {
                self.rooms.as_ref().is_none_or(|wanted| wanted.contains(ALL) || wanted.contains(room.as_str()))
            })
    }
}

#[cfg(test)]
mod tests {
    use ruma::owned_room_id;

    use super::*;

    #[test]
    fn an_extension_is_about_the_lists_and_rooms_that_it_names_or_about_all() {
        let set = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        let (a, b) = (owned_room_id!("!a:x"), owned_room_id!("!b:x"));
        let all = Scope::default();
        assert!(all.covers(&["l"], None) && all.covers(&[], Some(&a)));
        let some = Scope { lists: set(&["l"]), rooms: set(&["!a:x"]) };
        assert!(some.covers(&["k", "l"], None) && some.covers(&["k"], Some(&a)));
        assert!(!some.covers(&["k"], None) && !some.covers(&[], Some(&b)));
        let starred = Scope { lists: set(&["*"]), rooms: set(&[]) };
        assert!(starred.covers(&["k"], None) && !starred.covers(&[], Some(&a)));
    }
}
