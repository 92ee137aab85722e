//! The stream: what a group of commits put into it, for those who listen in this process and for the other processes.
//!
//! Each row of `commits` has the parts of its group, packed: another process reads the rows that follow its last position
//! in one statement, however many groups they are, and the events that it does not have in memory in a second one.

use std::sync::Arc;

use model::{EventNr, Position, RoomNr, UserNr};
use ruma::OwnedServerName;

use crate::{
    Error, Storage, StoredEvent,
    db::args,
    packed::{push_number, take_number, unpack_events},
    statement::statements,
};

/// Most positions that are read at once; who is further behind starts anew.
const FOLLOWED_MAX: i64 = 5_000;

statements! {
    LIST_COMMITS = ["
        SELECT position, items, redacted, uncounted FROM commits WHERE position > $1 AND position <= $2 ORDER BY position"];
}

/// A part of a published group, in the order of positions.
#[derive(Clone, Debug)]
pub enum Item {
    /// A live event of a room.
    Event(Arc<StoredEvent>),
    /// State resolution changed a room's current state.
    State(RoomNr),
    /// A receipt in a room.
    Receipt(RoomNr, UserNr),
    /// Account data of a user.
    AccountData(UserNr),
    /// A message to a device.
    ToDevice(UserNr, String),
    /// An EDU of one of our names for another server.
    Outgoing(OwnedServerName, OwnedServerName),
    /// A user signed keys of another one, for themselves to see.
    Signed(UserNr),
    /// A user's devices or keys changed.
    DeviceList(UserNr),
    /// A user's profile changed.
    Profile(UserNr),
    /// A user's subscriptions to threads changed.
    ThreadSubscription(UserNr),
}

/// What groups of commits put into the stream.
#[derive(Debug)]
pub struct Published {
    /// The newest position before them, of any process.
    pub previous: Position,
    /// The position of their last part.
    pub position: Position,
    /// Their parts with their positions.
    pub items: Vec<(Position, Item)>,
    /// The events that they redact.
    pub redacted: Vec<EventNr>,
    /// Those of them that might count as unread, with whether they were in a thread.
    pub uncounted: Vec<(EventNr, bool)>,
}

impl Storage {
    /// What follows directly on `after`, up to `upto`, of any process; nothing when that cannot be told piece by piece, and who
    /// follows has to look at everything anew. All up to `upto` must be durable: whoever wrote it said so, or
    /// [`Storage::newest_durable`] did. Afterwards it is published here too.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn read_stream(&self, after: Position, upto: Position) -> Result<Option<Published>, Error> {
        if upto.0 - after.0 > FOLLOWED_MAX {
            return Ok(None);
        }
        let mut position = after;
        let (mut parts, mut redacted, mut uncounted) = (Vec::new(), Vec::new(), Vec::new());
        for row in self.db().read(&LIST_COMMITS, args![after, upto]).await? {
            let at: Position = row.nr(0)?;
            let (Some(items), Some(by_it)) = (row.get::<Option<Vec<u8>>>(1)?, row.get::<Option<Vec<u8>>>(2)?) else {
                // Written by an older program.
                return Ok(None);
            };
            let damaged = || Error::Damaged(format!("commit at {at}"));
            let items = unpack_items(&items).ok_or_else(damaged)?;
            if position.0 + (items.len() as i64).max(1) != at.0 {
                // A row between is gone.
                return Ok(None);
            }
            parts.extend((position.0 + 1..).map(Position).zip(items));
            let by_it = unpack_events(&by_it).ok_or_else(damaged)?;
            match row.get::<Option<Vec<u8>>>(3)? {
                Some(packed) => uncounted.extend(unpack_uncounted(&packed).ok_or_else(damaged)?),
                // Written by an older program: any of them might count.
                None => uncounted.extend(by_it.iter().map(|nr| (*nr, true))),
            }
            redacted.extend(by_it);
            position = at;
        }
        self.publish_upto(position);
        for nr in &redacted {
            self.0.event_cache.forget(*nr);
        }
        for (_, part) in &parts {
            if let Part::Other(Item::AccountData(user_nr)) = part {
                self.0.account_data_versions.note(*user_nr);
            }
        }
        let numbers: Vec<EventNr> = parts.iter().filter_map(|(_, part)| part.event_nr()).collect();
        let events = if numbers.is_empty() { Default::default() } else { self.get_events(&numbers).await? };
        for relation in events.values().filter_map(|event| event.relation()) {
            self.0.childless.forget(&relation.parent);
        }
        let items: Option<Vec<_>> = parts
            .into_iter()
            .map(|(at, part)| match part {
                Part::Event(nr) => Some((at, Item::Event(events.get(&nr)?.clone()))),
                Part::Other(item) => Some((at, item)),
            })
            .collect();
        Ok(items.map(|items| Published { previous: after, position, items, redacted, uncounted }))
    }
}

/// A part as it is unpacked: events are read together.
enum Part {
    Event(EventNr),
    Other(Item),
}

impl Part {
    fn event_nr(&self) -> Option<EventNr> {
        match self {
            Self::Event(nr) => Some(*nr),
            Self::Other(_) => None,
        }
    }
}

/// Packs the parts of a group, whose positions follow on each other: a byte for the kind, then its numbers.
pub(crate) fn pack_items(items: &[(Position, Item)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(items.len() * 5);
    let mut push = |kind: u8, numbers: &[i64], text: &str| {
        bytes.push(kind);
        numbers.iter().for_each(|number| push_number(&mut bytes, *number as u64));
        bytes.extend_from_slice(text.as_bytes());
    };
    for (_, item) in items {
        match item {
            Item::Event(event) => push(b'e', &[event.nr.0], ""),
            Item::State(room) => push(b's', &[room.0], ""),
            Item::Receipt(room, user) => push(b'r', &[room.0, user.0], ""),
            Item::AccountData(user) => push(b'a', &[user.0], ""),
            Item::ToDevice(user, device_id) => push(b't', &[user.0, device_id.len() as i64], device_id),
            Item::Outgoing(origin, destination) => {
                let lengths = [origin.as_str().len() as i64, destination.as_str().len() as i64];
                push(b'o', &lengths, &format!("{origin}{destination}"));
            }
            Item::Signed(user) => push(b'k', &[user.0], ""),
            Item::DeviceList(user) => push(b'd', &[user.0], ""),
            Item::Profile(user) => push(b'p', &[user.0], ""),
            Item::ThreadSubscription(user) => push(b'h', &[user.0], ""),
        }
    }
    bytes
}

/// The parts that [`pack_items`] packed; nothing when the bytes are damaged.
fn unpack_items(mut bytes: &[u8]) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        bytes = rest;
        let first = number(&mut bytes)?;
        parts.push(match kind {
            b'e' => Part::Event(EventNr(first)),
            b's' => Part::Other(Item::State(RoomNr(first))),
            b'r' => Part::Other(Item::Receipt(RoomNr(first), UserNr(number(&mut bytes)?))),
            b'a' => Part::Other(Item::AccountData(UserNr(first))),
            b't' => {
                let length = number(&mut bytes)?;
                Part::Other(Item::ToDevice(UserNr(first), text(&mut bytes, length)?.to_owned()))
            }
            b'o' => {
                let length = number(&mut bytes)?;
                let origin = text(&mut bytes, first)?.try_into().ok()?;
                Part::Other(Item::Outgoing(origin, text(&mut bytes, length)?.try_into().ok()?))
            }
            b'k' => Part::Other(Item::Signed(UserNr(first))),
            b'd' => Part::Other(Item::DeviceList(UserNr(first))),
            b'p' => Part::Other(Item::Profile(UserNr(first))),
            b'h' => Part::Other(Item::ThreadSubscription(UserNr(first))),
            _ => return None,
        });
    }
    Some(parts)
}

/// Packs events, each with whether it was in a thread.
pub(crate) fn pack_uncounted(events: &[(EventNr, bool)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(events.len() * 5);
    for (nr, is_in_thread) in events {
        push_number(&mut bytes, nr.0 as u64);
        push_number(&mut bytes, u64::from(*is_in_thread));
    }
    bytes
}

/// The events that [`pack_uncounted`] packed; nothing when the bytes are damaged.
fn unpack_uncounted(mut bytes: &[u8]) -> Option<Vec<(EventNr, bool)>> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        events.push((EventNr(number(&mut bytes)?), number(&mut bytes)? != 0));
    }
    Some(events)
}

fn text<'a>(bytes: &mut &'a [u8], length: i64) -> Option<&'a str> {
    let (text, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    std::str::from_utf8(text).ok()
}

fn number(bytes: &mut &[u8]) -> Option<i64> {
    take_number(bytes).map(|number| number as i64)
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngSeed};

    use super::*;

    fn item() -> impl Strategy<Value = Item> {
        let nr = 1..i64::MAX;
        prop_oneof![
            nr.clone().prop_map(|room| Item::State(RoomNr(room))),
            (nr.clone(), nr.clone()).prop_map(|(room, user)| Item::Receipt(RoomNr(room), UserNr(user))),
            nr.clone().prop_map(|user| Item::AccountData(UserNr(user))),
            (nr.clone(), ".{0,20}").prop_map(|(user, device)| Item::ToDevice(UserNr(user), device)),
            ("[a-z]{1,9}", "[a-z]{1,9}(:[0-9]{1,4})?").prop_map(|(origin, destination)| {
                Item::Outgoing(origin.try_into().unwrap(), destination.try_into().unwrap())
            }),
            nr.clone().prop_map(|user| Item::Signed(UserNr(user))),
            nr.clone().prop_map(|user| Item::DeviceList(UserNr(user))),
            nr.clone().prop_map(|user| Item::Profile(UserNr(user))),
            nr.prop_map(|user| Item::ThreadSubscription(UserNr(user))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn packed_items_come_back(items in proptest::collection::vec(item(), 0..20)) {
            let items: Vec<_> = items.into_iter().map(|item| (Position(0), item)).collect();
            let parts = unpack_items(&pack_items(&items)).unwrap();
            let back: Vec<String> = parts.iter().map(|part| match part {
                Part::Other(item) => format!("{item:?}"),
                Part::Event(nr) => format!("{nr:?}"),
            }).collect();
            let sent: Vec<String> = items.iter().map(|(_, item)| format!("{item:?}")).collect();
            prop_assert_eq!(back, sent);
        }

        #[test]
        fn packed_uncounted_events_come_back(events in proptest::collection::vec((0..i64::MAX, any::<bool>()), 0..20)) {
            let events: Vec<_> = events.into_iter().map(|(nr, is_in_thread)| (EventNr(nr), is_in_thread)).collect();
            prop_assert_eq!(unpack_uncounted(&pack_uncounted(&events)), Some(events));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = (unpack_items(&bytes), unpack_uncounted(&bytes));
        }
    }
}
