//! What a destination missed while it gave no answer, or took less than there was, looked up in the database. Room by room: all of it, or
//! after long outages the newest events, upon which the other server asks for what lies before as it likes. Server-Server API,
//! "Backfilling and retrieving missing events".

use model::{EventNr, Position, RoomNr};

use super::{
    Sender,
    destination::{Pass, Queued, Route},
    transaction::PDUS_MAX,
};

/// After so long, in milliseconds, only the newest events of each room are sent.
const ALL_WITHIN_MS: i64 = 3_600_000;
/// So many of each room.
const NEWEST: usize = 10;
/// Rooms that are listed at once.
const ROOMS_AT_ONCE: u32 = 200;
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
    pub(super) async fn catch_up(&self, route: &Route) -> Result<(), storage::Error> {
        let begun = {
            let state = &mut *self.lock();
            let cursor = state.cursor;
            let destination = state.destinations.get_mut(route);
            let Some(behind) = destination.and_then(|destination| destination.behind.as_mut()) else { return Ok(()) };
            (behind.pass, behind.sent_upto, behind.missed.max(cursor))
        };
        match begun {
            (None, after, upto) => self.begin_pass(route, after, upto).await,
            (Some(pass), after, _) => self.go_on(route, pass, after).await,
        }
    }

    /// Begins a look at all rooms: with what is not in rooms.
    async fn begin_pass(&self, route: &Route, after: Position, upto: Position) -> Result<(), storage::Error> {
        let (storage, Route { origin, destination }) = (&self.0.storage, route);
        let missed_ms = storage.find_commit_time_after(after).await?;
        let newest_only = missed_ms.is_some_and(|at_ms| self.now_ms() - at_ms > ALL_WITHIN_MS);
        let farewells = storage.list_outgoing_events(origin, destination, u32::MAX).await?;
        let mut devices = storage.list_device_changes_for(destination, (after, upto), USERS_MAX).await?;
        let names = storage.user_ids(&devices.iter().map(|(nr, _)| *nr).collect::<Vec<_>>()).await?;
        devices.retain(|(nr, _)| names.get(nr).is_some_and(|user_id| user_id.server_name() == origin));
        let state = &mut *self.lock();
        let Some(waiting) = state.destinations.get_mut(route) else { return Ok(()) };
        waiting.add_devices(devices);
        waiting.look_for_edus(after);
        if let Some(behind) = &mut waiting.behind {
            for nr in farewells {
                behind.farewells.entry(nr).or_insert(true);
            }
            behind.pass = Some(Pass { upto, rooms_done_upto: RoomNr(0), newest_only });
        }
        Ok(())
    }

    async fn go_on(&self, route: &Route, pass: Pass, after: Position) -> Result<(), storage::Error> {
        let farewells: Vec<EventNr> = {
            let state = &mut *self.lock();
            let destination = state.destinations.get_mut(route);
            let Some(behind) = destination.and_then(|destination| destination.behind.as_mut()) else { return Ok(()) };
            behind.farewells.keys().take(PDUS_MAX).copied().collect()
        };
        let found = if farewells.is_empty() { self.find_missed(route, pass, after).await? } else { Found::default() };
        let numbers: Vec<EventNr> = found.events.iter().chain(&farewells).copied().collect();
        let known = self.0.storage.get_events(&numbers).await?;
        let mut events = Vec::with_capacity(numbers.len());
        for event in numbers.iter().filter_map(|nr| known.get(nr)) {
            let is_ours = self.origin_of(event).await?.is_some_and(|origin| origin == route.origin);
            if is_ours && event.pdu.sender.server_name() != route.destination {
                let position = event.position.unwrap_or_default();
                events.push(Queued { event: event.clone(), position, is_farewell: false });
            }
        }
        if events.is_empty() && farewells.is_empty() && found.rooms.is_empty() {
            return self.end_pass(route, pass).await;
        }
        {
            let state = &mut *self.lock();
            let Some(destination) = state.destinations.get_mut(route) else { return Ok(()) };
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
        self.arrived(route).await
    }

    /// The next events that were missed, as many as go into a transaction.
    async fn find_missed(&self, route: &Route, pass: Pass, after: Position) -> Result<Found, storage::Error> {
        let mut found = Found { rooms_done_upto: pass.rooms_done_upto, ..Found::default() };
        let mut after_room = pass.rooms_done_upto;
        loop {
            let rooms = self.0.storage.list_rooms_behind(&route.destination, after_room, after, ROOMS_AT_ONCE).await?;
            for (room_nr, newest) in &rooms {
                let sent_upto = self.sent_in_room(route, *room_nr).unwrap_or(after);
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

    fn sent_in_room(&self, route: &Route, room_nr: RoomNr) -> Option<Position> {
        let state = self.lock();
        state.destinations.get(route)?.behind.as_ref()?.rooms.get(&room_nr).copied()
    }

    /// All is sent that was missed up to the end of the look; what was missed since needs another one.
    async fn end_pass(&self, route: &Route, pass: Pass) -> Result<(), storage::Error> {
        let (share, was_noted) = {
            let state = &mut *self.lock();
            let Some(destination) = state.destinations.get_mut(route) else { return Ok(()) };
            let Some(share) = state.shares.get(&destination.share).copied() else { return Ok(()) };
            let Some(behind) = &mut destination.behind else { return Ok(()) };
            let was_noted = behind.is_noted;
            (behind.sent_upto, behind.is_noted, behind.is_clearing, behind.pass) = (pass.upto, false, true, None);
            behind.rooms.clear();
            (share, was_noted)
        };
        if was_noted {
            self.0.storage.delete_arrears(&route.origin, &route.destination, share).await?;
        }
        let state = &mut *self.lock();
        let Some(destination) = state.destinations.get_mut(route) else { return Ok(()) };
        let Some(behind) = &mut destination.behind else { return Ok(()) };
        behind.is_clearing = false;
        if behind.missed <= pass.upto && behind.farewells.is_empty() {
            destination.behind = None;
        }
        Ok(())
    }
}
