//! What a destination missed while it gave no answer, or took less than there was, looked up in the database. Room by room: all of it, or
//! after long outages the newest events, upon which the other server asks for what lies before as it likes. Server-Server API,
//! "Backfilling and retrieving missing events".

use model::{EventNr, Position, RoomNr};

use super::{
    Sender,
    destination::{Pass, Queued, Route},
    receipts::Receipts,
    run::Run,
    transaction::PDUS_MAX,
};

/// After so long, in milliseconds, only the newest events of each room are sent.
const ALL_WITHIN_MS: i64 = 3_600_000;
/// So many of each room.
const NEWEST: usize = 10;
/// Rooms that are listed at once.
const ROOMS_AT_ONCE: u32 = 200;
/// Receipts that are sent at once: each may be an EDU.
const RECEIPTS_AT_ONCE: usize = 90;
/// Most users whose devices changed meanwhile that are told of; of more the next change tells.
const USERS_MAX: u32 = 10_000;

/// What was found to be sent.
#[derive(Default)]
struct Found {
    events: Vec<EventNr>,
    /// How far each room is with them.
    rooms: Vec<(RoomNr, Position)>,
    /// Up to which room all are done.
    rooms_done_upto: RoomNr,
}

impl Sender {
    /// One step for a destination that is behind: finds what is sent next, or that nothing is missing any more.
    pub(super) async fn catch_up(&self, run: &Run) -> Result<(), storage::Error> {
        let begun = {
            let state = &mut *self.lock();
            let cursor = state.cursor;
            let destination = state.of(run);
            let Some(behind) = destination.and_then(|destination| destination.behind.as_mut()) else { return Ok(()) };
            (behind.pass, behind.sent_upto, behind.missed.max(cursor))
        };
        match begun {
            (None, after, upto) => self.begin_pass(run, after, upto).await,
            (Some(pass), after, _) => self.go_on(run, pass, after).await,
        }
    }

    /// Begins a look at all rooms: with what is not in rooms.
    async fn begin_pass(&self, run: &Run, after: Position, upto: Position) -> Result<(), storage::Error> {
        let (storage, Route { origin, destination }) = (&self.0.storage, &run.route);
        let missed_ms = storage.find_commit_time_after(after).await?;
        // After some days it is not known any more when that was.
        let newest_only = storage.find_commit_upto(after).await?.is_none()
            || missed_ms.is_some_and(|at_ms| self.now_ms() - at_ms > ALL_WITHIN_MS);
        let farewells = storage.list_outgoing_events(origin, destination, u32::MAX).await?;
        let mut devices = storage.list_device_changes_for(destination, (after, upto), USERS_MAX).await?;
        let names = storage.user_ids(&devices.iter().map(|(nr, _)| *nr).collect::<Vec<_>>()).await?;
        devices.retain(|(nr, _)| names.get(nr).is_some_and(|user_id| user_id.server_name() == origin));
        let state = &mut *self.lock();
        let Some(waiting) = state.of(run) else { return Ok(()) };
        waiting.add_devices(devices, after);
        waiting.look_for_edus(after);
        if let Some(behind) = &mut waiting.behind {
            for nr in farewells {
                behind.farewells.entry(nr).or_insert(true);
            }
            behind.pass = Some(Pass { upto, rooms_done_upto: RoomNr(0), receipts_upto: after, newest_only });
        }
        Ok(())
    }

    async fn go_on(&self, run: &Run, pass: Pass, after: Position) -> Result<(), storage::Error> {
        let farewells: Vec<EventNr> = {
            let state = &mut *self.lock();
            let destination = state.of(run);
            let Some(behind) = destination.and_then(|destination| destination.behind.as_mut()) else { return Ok(()) };
            behind.farewells.keys().take(PDUS_MAX).copied().collect()
        };
        let found = if farewells.is_empty() { self.find_missed(run, pass, after).await? } else { Found::default() };
        let numbers: Vec<EventNr> = found.events.iter().chain(&farewells).copied().collect();
        let known = self.0.storage.get_events(&numbers).await?;
        let mut events = Vec::with_capacity(numbers.len());
        for event in numbers.iter().filter_map(|nr| known.get(nr)) {
            let is_ours = self.origin_of(event).await?.is_some_and(|origin| origin == run.route.origin);
            if is_ours && event.pdu.sender.server_name() != run.route.destination {
                let position = event.position.unwrap_or_default();
                events.push(Queued { event: event.clone(), position, is_farewell: false });
            }
        }
        if events.is_empty() && farewells.is_empty() && found.rooms.is_empty() {
            return match self.take_missed_receipts(run, pass).await? {
                true => Ok(()),
                false => self.end_pass(run, pass).await,
            };
        }
        {
            let state = &mut *self.lock();
            let Some(destination) = state.of(run) else { return Ok(()) };
            if let Some(pass) = destination.behind.as_mut().and_then(|behind| behind.pass.as_mut()) {
                pass.rooms_done_upto = pass.rooms_done_upto.max(found.rooms_done_upto);
            }
            let has_none = events.is_empty();
            destination.take_missed(events, found.rooms, farewells);
            if !has_none {
                return Ok(());
            }
        }
        // Others made all of it.
        self.arrived(run).await
    }

    /// The next events that were missed, as many as go into a transaction.
    async fn find_missed(&self, run: &Run, pass: Pass, after: Position) -> Result<Found, storage::Error> {
        let mut found = Found { rooms_done_upto: pass.rooms_done_upto, ..Found::default() };
        let mut after_room = pass.rooms_done_upto;
        loop {
            let rooms =
                self.0.storage.list_rooms_behind(&run.route.destination, after_room, after, ROOMS_AT_ONCE).await?;
            for (room_nr, newest) in &rooms {
                let sent_upto = self.sent_in_room(run, *room_nr).unwrap_or(after);
                after_room = *room_nr;
                if sent_upto >= pass.upto.min(*newest) {
                    if found.rooms.is_empty() {
                        found.rooms_done_upto = *room_nr;
                    }
                    continue;
                }
                let place = PDUS_MAX - found.events.len();
                if place == 0 || (pass.newest_only && place < NEWEST) {
                    return Ok(found);
                }
                let limit = if pass.newest_only { NEWEST } else { place };
                let range = (sent_upto, pass.upto);
                let ours = self.0.storage.list_ours(*room_nr, range, pass.newest_only, limit as u32).await?;
                let is_whole = pass.newest_only || ours.len() < limit;
                let reached = ours.last().filter(|_| !is_whole).map_or(pass.upto, |(_, position)| *position);
                found.rooms.push((*room_nr, reached));
                found.events.extend(ours.into_iter().map(|(nr, _)| nr));
            }
            if rooms.len() < ROOMS_AT_ONCE as usize {
                return Ok(found);
            }
        }
    }

    fn sent_in_room(&self, run: &Run, room_nr: RoomNr) -> Option<Position> {
        self.lock().of(run)?.behind.as_ref()?.rooms.get(&room_nr).copied()
    }

    /// Takes the next receipts that were missed, after the events; whether there are any.
    async fn take_missed_receipts(&self, run: &Run, pass: Pass) -> Result<bool, storage::Error> {
        let Route { origin, destination } = &run.route;
        let range = (pass.receipts_upto, pass.upto);
        let rows = self.0.storage.list_read_in_rooms_of(destination, range, RECEIPTS_AT_ONCE as u32).await?;
        let Some(upto) = rows.last().map(|row| row.position) else { return Ok(false) };
        let mut receipts = Receipts::default();
        for (_, of, receipt) in self.receipts_of(&rows).await? {
            if of == *origin {
                receipts.push(receipt);
            }
        }
        // Each has a place, and one is for those that go together.
        let edus = receipts.take(RECEIPTS_AT_ONCE + 1);
        if let Some(waiting) = self.lock().of(run) {
            waiting.take_missed_receipts(edus, upto);
        }
        Ok(true)
    }

    /// All is sent that was missed up to the end of the look; what was missed since needs another one.
    async fn end_pass(&self, run: &Run, pass: Pass) -> Result<(), storage::Error> {
        let (share, was_noted) = {
            let state = &mut *self.lock();
            let Some(share) = state.of(run).map(|destination| destination.share) else { return Ok(()) };
            let Some(share) = state.shares.get(&share).copied() else { return Ok(()) };
            let Some(behind) = state.of(run).and_then(|destination| destination.behind.as_mut()) else { return Ok(()) };
            let was_noted = behind.is_noted;
            (behind.sent_upto, behind.is_noted, behind.is_clearing, behind.pass) = (pass.upto, false, true, None);
            behind.rooms.clear();
            (share, was_noted)
        };
        if was_noted {
            self.0.storage.delete_arrears(&run.route.origin, &run.route.destination, share).await?;
        }
        let state = &mut *self.lock();
        let Some(destination) = state.of(run) else { return Ok(()) };
        let Some(behind) = &mut destination.behind else { return Ok(()) };
        behind.is_clearing = false;
        if behind.missed <= pass.upto && behind.farewells.is_empty() {
            destination.behind = None;
        }
        Ok(())
    }
}
