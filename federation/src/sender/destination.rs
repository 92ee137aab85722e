//! What one destination is to be sent, as far as it is in memory.
//!
//! Events wait in a queue while the destination takes them. When too many do, or it gives no answer for a while, it is *behind*: nothing is
//! kept in memory for it any more, and what it lacks is looked up once it answers.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use model::{EventNr, Position, RoomNr, UserNr};
use ruma::OwnedServerName;
use storage::StoredEvent;

use super::{
    lossy::Lossy,
    receipts::{Receipt, Receipts},
    transaction::{BYTES_MAX, PDUS_MAX, Transaction},
};

/// Most events that wait in memory.
const EVENTS_MAX: usize = 20_000;
/// Most bytes of events that wait in memory.
const EVENTS_BYTES_MAX: usize = 32 << 20;
/// Most changes of devices that wait in memory.
const CHANGES_MAX: usize = 10_000;
/// Most changes of devices that one transaction tells of.
pub(super) const CHANGES_AT_ONCE: usize = 20;
/// Most receipts that wait in memory.
const RECEIPTS_MAX: usize = 1_000;

/// From which of our names to which server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) origin: OwnedServerName,
    pub(crate) destination: OwnedServerName,
}

/// An event that waits.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    pub(crate) event: Arc<StoredEvent>,
    pub(crate) position: Position,
    /// Whether its room no longer shows the destination.
    pub(crate) is_farewell: bool,
}

/// A change of a user's devices that a destination is to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceChange {
    pub(crate) user_nr: UserNr,
    /// Where it is in the stream; where the user came to a room with the destination, if that makes all of the devices new there.
    pub(crate) position: Position,
    /// What came after this may be missing too; nothing when all before it was told.
    pub(crate) missing_after: Option<Position>,
}

/// A destination with something to send to it, or that is behind.
#[derive(Debug, Default)]
pub(crate) struct Destination {
    pub(crate) share: u32,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    pub(crate) lossy: Lossy,
    receipts: Receipts,
    /// Changes of devices, by where they are in the stream.
    devices: BTreeMap<Position, DeviceChange>,
    /// The first EDU that must arrive and waits in the database.
    edus_from: Option<Position>,
    /// What is being sent.
    pub(crate) in_flight: Option<InFlight>,
    pub(crate) behind: Option<Behind>,
    /// How often the other side called what is in flight wrong.
    pub(crate) times_wrong: u32,
    /// Who sends, if anybody does.
    pub(crate) run: Option<RunNr>,
}

/// Which task sends to a destination: each has another number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunNr(pub(crate) u64);

/// What is being sent, until it was acknowledged.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// The position of the first part of it that would be lost.
    first: Option<Position>,
    pub(crate) events: Vec<Queued>,
    pub(crate) devices: Vec<DeviceChange>,
    /// Whether EDUs from the database are to be in it.
    pub(crate) has_edus: bool,
    /// Receipts, and what may be lost, as EDUs.
    pub(crate) ephemeral: Vec<String>,
    /// Up to where receipts that were looked up are in it.
    pub(crate) receipts_upto: Option<Position>,
    /// How far each room is with the events of it that were looked up.
    pub(crate) rooms: Vec<(RoomNr, Position)>,
    /// The events of it that rows stand for.
    pub(crate) farewells: Vec<EventNr>,
    /// Made when it is sent first, and the same until it is acknowledged; with how far the EDUs from the database are in it.
    pub(crate) made: Option<(Arc<Transaction>, Option<Position>)>,
}

/// A destination that is behind.
#[derive(Debug)]
pub(crate) struct Behind {
    /// All up to here is sent, or in the queue.
    pub(crate) sent_upto: Position,
    /// The newest of what was not queued.
    pub(crate) missed: Position,
    /// Whether it stands in the database.
    pub(crate) is_noted: bool,
    /// Whether it is about to be taken out of there.
    pub(crate) is_clearing: bool,
    /// How far its rooms were sent since.
    pub(crate) rooms: HashMap<RoomNr, Position>,
    /// Events that their rooms no longer show it for, with whether rows stand for them.
    pub(crate) farewells: BTreeMap<EventNr, bool>,
    /// The look at its rooms that is under way.
    pub(crate) pass: Option<Pass>,
}

/// A look at the rooms of a destination that is behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    /// What came after it is for the next one.
    pub(crate) upto: Position,
    /// All rooms up to this one are done.
    pub(crate) rooms_done_upto: RoomNr,
    /// All receipts up to here are told.
    pub(crate) receipts_upto: Position,
    /// Whether so much was missed that the other side has to ask for most of it.
    pub(crate) newest_only: bool,
}

impl Behind {
    pub(crate) fn new(sent_upto: Position, is_noted: bool) -> Self {
        Self {
            sent_upto,
            missed: sent_upto,
            is_noted,
            is_clearing: false,
            rooms: HashMap::new(),
            farewells: BTreeMap::new(),
            pass: None,
        }
    }

    pub(crate) fn miss(&mut self, position: Position) {
        self.missed = self.missed.max(position);
    }
}

impl Destination {
    pub(crate) fn new(share: u32) -> Self {
        Self { share, ..Self::default() }
    }

    /// Adds an event, or notes that it was missed.
    pub(crate) fn push(&mut self, queued: Queued) {
        if let Some(behind) = &mut self.behind {
            behind.miss(queued.position);
            if queued.is_farewell {
                behind.farewells.insert(queued.event.nr, false);
            }
            return;
        }
        self.queue_bytes += queued.event.pdu.json.len();
        let position = queued.position;
        self.queue.push_back(queued);
        if self.queue.len() >= EVENTS_MAX || self.queue_bytes >= EVENTS_BYTES_MAX {
            self.behind = Some(Behind::new(position, false));
        }
    }

    /// Notes that the devices of a user changed, or are new to it.
    pub(crate) fn push_devices(&mut self, user_nr: UserNr, position: Position) {
        match &mut self.behind {
            Some(behind) => behind.miss(position),
            None if self.devices.len() >= CHANGES_MAX => self.miss_from(position),
            None => drop(self.devices.insert(position, DeviceChange { user_nr, position, missing_after: None })),
        }
    }

    /// Adds users whose devices changed while it was behind, each with the newest change.
    pub(crate) fn add_devices(&mut self, users: Vec<(UserNr, Position)>, missing_after: Position) {
        self.devices.extend(users.into_iter().map(|(user_nr, position)| {
            (position, DeviceChange { user_nr, position, missing_after: Some(missing_after) })
        }));
    }

    /// Adds how far somebody has read.
    pub(crate) fn push_receipt(&mut self, receipt: Receipt) {
        match &mut self.behind {
            Some(behind) => behind.miss(receipt.position),
            None if self.receipts.len() >= RECEIPTS_MAX => self.miss_from(receipt.position),
            None => self.receipts.push(receipt),
        }
    }

    /// What comes from a position on is in the database and is looked up there: too much of it waits here.
    fn miss_from(&mut self, position: Position) {
        let mut behind = Behind::new(Position(position.0 - 1), false);
        behind.miss(position);
        self.behind = Some(behind);
    }

    /// Notes that an EDU waits in the database.
    pub(crate) fn push_edu(&mut self, position: Position) {
        match &mut self.behind {
            Some(behind) => behind.miss(position),
            None => self.edus_from = Some(self.edus_from.unwrap_or(position)),
        }
    }

    /// EDUs may wait in the database.
    pub(crate) fn look_for_edus(&mut self, after: Position) {
        self.edus_from = Some(self.edus_from.unwrap_or(Position(after.0 + 1)));
    }

    /// Whether there is anything to send.
    pub(crate) fn has_work(&self) -> bool {
        self.in_flight.is_some()
            || self.behind.is_some()
            || !self.queue.is_empty()
            || !self.devices.is_empty()
            || self.edus_from.is_some()
            || !self.receipts.is_empty()
            || !self.lossy.is_empty()
    }

    /// Whether receipts wait, and nobody sends.
    pub(crate) fn has_receipts(&self) -> bool {
        self.run.is_none() && !self.receipts.is_empty()
    }

    /// Whether it can be forgotten.
    pub(crate) fn is_idle(&self) -> bool {
        self.run.is_none() && !self.has_work()
    }

    /// The position of the first part that would be lost with this process, but for what the database says is missing.
    pub(crate) fn first_unsent(&self) -> Option<Position> {
        let in_flight = self.in_flight.as_ref().and_then(|in_flight| in_flight.first);
        let queued = self.queue.front().map(|queued| queued.position);
        let devices = self.devices.keys().next().copied();
        [in_flight, queued, devices, self.receipts.first(), self.edus_from].into_iter().flatten().min()
    }

    /// How far the share may say that it is because of this one: nothing when it does not hinder.
    pub(crate) fn holds_at(&self) -> Option<Position> {
        let unsent = self.first_unsent().map(|first| Position(first.0 - 1));
        // Others are noted before the share goes on.
        let behind = self.behind.as_ref().filter(|behind| behind.is_clearing).map(|behind| behind.sent_upto);
        [unsent, behind].into_iter().flatten().min()
    }

    /// Takes what goes into the next transaction; nothing when only what was missed is left, or nothing at all.
    pub(crate) fn take_next(&mut self, ephemeral_max: usize) -> bool {
        let first = self.first_unsent();
        let (mut events, mut bytes) = (Vec::new(), 0);
        while events.len() < PDUS_MAX
            && bytes < BYTES_MAX
            && let Some(queued) = self.queue.pop_front()
        {
            bytes += queued.event.pdu.json.len();
            events.push(queued);
        }
        self.queue_bytes -= bytes;
        let mut devices = Vec::new();
        while devices.len() < CHANGES_AT_ONCE
            && let Some((_, change)) = self.devices.pop_first()
        {
            devices.push(change);
        }
        let has_edus = self.edus_from.take().is_some();
        let mut ephemeral = self.receipts.take(ephemeral_max / 2);
        ephemeral.extend(self.lossy.take(ephemeral_max - ephemeral.len()));
        if events.is_empty() && devices.is_empty() && ephemeral.is_empty() && !has_edus {
            return false;
        }
        self.in_flight = Some(InFlight { first, devices, has_edus, ephemeral, ..InFlight::of(events) });
        true
    }

    /// Events that were looked up are sent next.
    pub(crate) fn take_missed(&mut self, events: Vec<Queued>, rooms: Vec<(RoomNr, Position)>, farewells: Vec<EventNr>) {
        self.in_flight = Some(InFlight { rooms, farewells, ..InFlight::of(events) });
    }

    /// Receipts that were looked up are sent next, all up to a position; there may be none among them for this destination.
    pub(crate) fn take_missed_receipts(&mut self, edus: Vec<String>, upto: Position) {
        let has_none = edus.is_empty();
        self.in_flight = Some(InFlight { ephemeral: edus, receipts_upto: Some(upto), ..InFlight::of(Vec::new()) });
        if has_none {
            self.arrived();
        }
    }

    /// What was in flight has arrived.
    pub(crate) fn arrived(&mut self) -> Option<InFlight> {
        let in_flight = self.in_flight.take()?;
        self.times_wrong = 0;
        if let Some(behind) = &mut self.behind {
            behind.rooms.extend(in_flight.rooms.iter().copied());
            behind.farewells.retain(|nr, _| !in_flight.farewells.contains(nr));
            if let (Some(pass), Some(upto)) = (&mut behind.pass, in_flight.receipts_upto) {
                pass.receipts_upto = upto;
            }
        }
        Some(in_flight)
    }

    /// Gives up what is in memory, because the destination gives no answer.
    pub(crate) fn fall_behind(&mut self) {
        let Some(first) = self.first_unsent() else {
            // What was in flight was looked up, and is looked up again: by then it may be too much.
            self.in_flight = None;
            if let Some(behind) = &mut self.behind {
                behind.pass = None;
            }
            return;
        };
        let in_flight = self.in_flight.take().into_iter().flat_map(|in_flight| in_flight.events);
        let events: Vec<Queued> = in_flight.chain(self.queue.drain(..)).collect();
        let newest = events.iter().map(|queued| queued.position).chain(self.devices.keys().copied());
        let newest = newest.chain(self.receipts.last()).max();
        self.queue_bytes = 0;
        self.devices.clear();
        self.receipts.clear();
        self.lossy.clear();
        self.edus_from = None;
        let unsent = Position(first.0 - 1);
        let behind = self.behind.get_or_insert_with(|| Behind::new(unsent, false));
        if unsent < behind.sent_upto {
            (behind.sent_upto, behind.is_noted) = (unsent, false);
        }
        behind.miss(newest.unwrap_or(first));
        behind.pass = None;
        let farewells = events.iter().filter(|queued| queued.is_farewell);
        behind.farewells.extend(farewells.map(|queued| (queued.event.nr, false)));
    }
}

impl InFlight {
    fn of(events: Vec<Queued>) -> Self {
        Self {
            first: None,
            events,
            devices: Vec::new(),
            has_edus: false,
            ephemeral: Vec::new(),
            receipts_upto: None,
            rooms: Vec::new(),
            farewells: Vec::new(),
            made: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: UserNr = UserNr(1);

    /// A share must not go past what would be lost with this process.
    #[test]
    fn what_is_not_sent_holds_the_share() {
        let mut destination = Destination::new(0);
        assert!(destination.is_idle());
        assert_eq!(destination.holds_at(), None);
        destination.push_devices(ALICE, Position(7));
        destination.push_edu(Position(5));
        destination.push_edu(Position(9));
        assert_eq!(destination.holds_at(), Some(Position(4)));
        assert!(destination.take_next(10));
        destination.push_edu(Position(12));
        assert_eq!(destination.holds_at(), Some(Position(4)), "what is in flight may be lost");
        let arrived = destination.arrived().unwrap();
        assert_eq!((arrived.devices[0].position, arrived.has_edus), (Position(7), true));
        assert_eq!(destination.holds_at(), Some(Position(11)));
    }

    #[test]
    fn who_falls_behind_keeps_nothing_in_memory_and_knows_from_where_on() {
        let mut destination = Destination::new(0);
        destination.push_devices(ALICE, Position(7));
        assert!(destination.take_next(10));
        destination.push_edu(Position(9));
        destination.fall_behind();
        assert!(destination.in_flight.is_none());
        assert_eq!(destination.holds_at(), None, "it is noted before the share goes on");
        let behind = destination.behind.as_mut().unwrap();
        assert_eq!((behind.sent_upto, behind.is_noted), (Position(6), false));
        behind.is_noted = true;
        destination.push_devices(ALICE, Position(20));
        assert!(!destination.take_next(10), "it is looked up");
        assert_eq!(destination.behind.as_ref().unwrap().missed, Position(20));
        // Once more, with nothing new: it stays where it is.
        destination.fall_behind();
        let behind = destination.behind.as_mut().unwrap();
        assert_eq!((behind.sent_upto, behind.is_noted), (Position(6), true));
        behind.is_clearing = true;
        assert_eq!(destination.holds_at(), Some(Position(6)), "nothing stands in the database for a moment");
    }

    #[test]
    fn too_many_changes_of_devices_are_looked_up_too() {
        let mut destination = Destination::new(0);
        for user in 1..=CHANGES_MAX as i64 + 5 {
            destination.push_devices(UserNr(user), Position(user));
        }
        let behind = destination.behind.as_ref().unwrap();
        assert_eq!((behind.sent_upto, behind.missed), (Position(CHANGES_MAX as i64), Position(CHANGES_MAX as i64 + 5)));
        assert_eq!(destination.devices.len(), CHANGES_MAX);
    }

    /// A look that finds nothing for it must get ahead all the same.
    #[test]
    fn missed_receipts_of_other_names_are_done() {
        let mut destination = Destination { behind: Some(Behind::new(Position(1), true)), ..Destination::new(0) };
        let pass =
            Pass { upto: Position(9), rooms_done_upto: RoomNr(0), receipts_upto: Position(1), newest_only: false };
        let reached = |destination: &Destination| destination.behind.as_ref().unwrap().pass.unwrap().receipts_upto;
        destination.behind.as_mut().unwrap().pass = Some(pass);
        destination.take_missed_receipts(Vec::new(), Position(5));
        assert_eq!((destination.in_flight.is_none(), reached(&destination)), (true, Position(5)));
        destination.take_missed_receipts(vec![String::new()], Position(7));
        assert_eq!(reached(&destination), Position(5), "they are in flight");
        destination.arrived().unwrap();
        assert_eq!(reached(&destination), Position(7));
    }

    #[test]
    fn receipts_wait_as_what_must_arrive_and_too_many_are_looked_up() {
        let mut destination = Destination::new(0);
        for user in 1..=RECEIPTS_MAX as i64 + 5 {
            destination.push_receipt(Receipt::of(UserNr(user), Position(100 + user)));
        }
        assert_eq!(destination.holds_at(), Some(Position(100)));
        let behind = destination.behind.as_ref().unwrap();
        assert_eq!((behind.sent_upto, behind.missed), (Position(1_100), Position(1_105)));
        assert!(destination.take_next(20));
        assert_eq!(destination.holds_at(), Some(Position(100)), "those in flight may be lost");
        destination.fall_behind();
        let behind = destination.behind.as_ref().unwrap();
        assert_eq!((behind.sent_upto, behind.missed), (Position(100), Position(1_105)));
        assert!(!destination.take_next(20), "they are looked up");
    }
}
