//! Which destinations this process sends to, and how far they are.

use std::collections::{HashMap, HashSet};

use model::Position;
use storage::{ArrearsRow, SENDER_SHARES, SenderShare, Storage};

use super::{
    Sender,
    destination::{Behind, Destination, Route},
};
use crate::outages::Outages;

/// How long a process that says nothing counts as alive, in milliseconds.
const ALIVE_MS: i64 = 10_000;
/// How often a process says that it is alive, in milliseconds.
const SAID_EVERY_MS: i64 = 3_000;
/// So far back the stream is followed when a share is taken; what is older is looked up for each destination.
const REPLAYED_MAX: i64 = 20_000;
/// Positions that are read at once.
const READ_AT_ONCE: i64 = 5_000;
/// Servers that are listed at once.
const SERVERS_AT_ONCE: u32 = 1_000;
/// Outages that are read at once.
const OUTAGES_AT_ONCE: u32 = 1_000;
/// Clocks of processes differ by less, in milliseconds.
const CLOCKS_DIFFER_MS: i64 = 5_000;
/// How long the end of an outage is kept for the other processes, in milliseconds.
const ENDED_KEPT_MS: i64 = 3_600_000;

/// When this process said last that it is alive.
#[derive(Debug, Default)]
pub(super) struct Alive {
    said_ms: Option<i64>,
    /// When ended outages were forgotten last.
    cleaned_ms: i64,
}

/// The share of a destination: the same in all processes, for ever.
pub(super) fn share_of(route: &Route) -> u32 {
    let bytes = route.origin.as_str().bytes().chain([b' ']).chain(route.destination.as_str().bytes());
    // FNV-1a.
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    u32::try_from((hash >> 32) % u64::from(SENDER_SHARES)).unwrap_or_default()
}

/// Reads the outages that other processes and administrators began or ended.
pub(super) async fn learn_outages(outages: &Outages, storage: &Storage) -> Result<(), storage::Error> {
    let mut since_ms = outages.learned_upto_ms() - CLOCKS_DIFFER_MS;
    loop {
        let rows = storage.list_changed_outages(since_ms, OUTAGES_AT_ONCE).await?;
        let is_last = rows.len() < OUTAGES_AT_ONCE as usize;
        since_ms = rows.last().map_or(since_ms, |row| row.changed_ms).max(since_ms + 1);
        outages.learn(rows);
        if is_last {
            return Ok(());
        }
    }
}

impl Sender {
    /// Says that this process is alive, and takes or gives back shares, so that all processes have about as many.
    pub(super) async fn keep_shares(&self, alive: &mut Alive) -> Result<(), storage::Error> {
        let (now_ms, storage) = (self.now_ms(), &self.0.storage);
        if alive.said_ms.is_some_and(|said_ms| (0..SAID_EVERY_MS).contains(&(now_ms - said_ms))) {
            return Ok(());
        }
        let processes = storage.upsert_sender(ALIVE_MS).await?;
        // The database of one process is nobody else's.
        self.lock().lease_until_ms = if storage.is_shared() { now_ms + ALIVE_MS } else { i64::MAX };
        let own: HashMap<u32, i64> = storage.list_own_sender_shares().await?.into_iter().collect();
        let fair = u64::from(SENDER_SHARES).div_ceil(processes.max(1)) as usize;
        if self.lock().shares.len() > fair {
            // Who takes what is given back goes on from here.
            self.note_progress().await?;
        }
        let (free, many) = {
            let state = &mut *self.lock();
            state.shares.retain(|share, known| own.get(share) == Some(&known.fence));
            let shares = &state.shares;
            state.destinations.retain(|_, destination| shares.contains_key(&destination.share));
            let free: Vec<u32> = (0..SENDER_SHARES).filter(|share| !shares.contains_key(share)).collect();
            let busy: HashSet<u32> =
                state.destinations.values().filter(|known| known.behind.is_none()).map(|known| known.share).collect();
            let idle = shares.values().filter(|share| !busy.contains(&share.share));
            let many: Vec<SenderShare> = idle.take(shares.len().saturating_sub(fair)).copied().collect();
            for share in &many {
                state.shares.remove(&share.share);
                state.destinations.retain(|_, destination| destination.share != share.share);
            }
            (free, many)
        };
        if !many.is_empty() {
            storage.give_back_sender_shares(&many).await?;
        }
        let mut missing = fair.saturating_sub(SENDER_SHARES as usize - free.len());
        let (mut free, mut taken) = (&free[..], Vec::new());
        while missing > 0 && !free.is_empty() && many.is_empty() {
            let (asked, rest) = free.split_at(missing.min(free.len()));
            let had = storage.take_sender_shares(asked).await?;
            missing -= had.len();
            taken.extend(had);
            free = rest;
        }
        if !taken.is_empty() {
            self.begin(taken).await?;
        }
        if now_ms >= alive.cleaned_ms + ENDED_KEPT_MS {
            storage.delete_ended_outages(now_ms - ENDED_KEPT_MS).await?;
            alive.cleaned_ms = now_ms;
        }
        alive.said_ms = Some(now_ms);
        Ok(())
    }

    /// Goes on where those left off who had the shares before.
    async fn begin(&self, taken: Vec<SenderShare>) -> Result<(), storage::Error> {
        let mut routes = Vec::new();
        for share in &taken {
            for row in self.0.storage.list_arrears(share.share).await? {
                if !self.sends_to(&row.destination) {
                    // It may be allowed again one day.
                    continue;
                }
                let route = Route { origin: row.origin, destination: row.destination };
                let mut destination = Destination::new(share.share);
                destination.behind = Some(Behind::new(row.sent_upto, true));
                routes.push((route, destination));
            }
        }
        let from: HashMap<u32, Position> = taken.iter().map(|share| (share.share, share.position)).collect();
        let cursor = {
            let state = &mut *self.lock();
            for (route, mut destination) in routes {
                if let Some(behind) = &mut destination.behind {
                    // Anything may have been missed.
                    behind.miss(state.cursor);
                }
                state.destinations.insert(route, destination);
            }
            // Up to the cursor nothing of them is queued yet: until it is, they are where they were.
            state.cursor
        };
        if !self.replay(&from, cursor).await? {
            self.fall_behind(&from).await?;
        }
        let state = &mut *self.lock();
        state.shares.extend(taken.into_iter().map(|share| (share.share, share)));
        let routes: Vec<Route> = state.destinations.keys().cloned().collect();
        for route in routes {
            self.kick(state, &route);
        }
        Ok(())
    }

    /// Queues what came after the positions of shares up to the cursor; `false` when that is too much.
    async fn replay(&self, from: &HashMap<u32, Position>, cursor: Position) -> Result<bool, storage::Error> {
        let Some(first) = from.values().min().filter(|first| **first < cursor) else { return Ok(true) };
        if cursor.0 - first.0 > REPLAYED_MAX {
            return Ok(false);
        }
        // A share may be in the midst of a group.
        let Some(mut at) = self.0.storage.find_commit_upto(*first).await? else { return Ok(false) };
        while at < cursor {
            let upto = Position(cursor.0.min(at.0 + READ_AT_ONCE));
            let Some(published) = self.0.storage.read_stream(at, upto).await? else { return Ok(false) };
            if published.position <= at {
                return Ok(false);
            }
            self.queue(&published, Some(from)).await?;
            at = published.position;
        }
        Ok(true)
    }

    /// All destinations of shares are behind from a position on: what happened since cannot be told piece by piece.
    pub(super) async fn fall_behind(&self, from: &HashMap<u32, Position>) -> Result<(), storage::Error> {
        let mut after = String::new();
        loop {
            let servers = self.0.storage.list_all_servers(&after, SERVERS_AT_ONCE).await?;
            let Some(last) = servers.last() else { return Ok(()) };
            last.as_str().clone_into(&mut after);
            let state = &mut *self.lock();
            for server in servers.iter().filter(|server| self.sends_to(server)) {
                for local in self.0.federation.servers().iter() {
                    let route = Route { origin: local.name.clone(), destination: server.clone() };
                    let share = share_of(&route);
                    let Some(position) = from.get(&share) else { continue };
                    let cursor = state.cursor;
                    let destination = state.destinations.entry(route).or_insert_with(|| Destination::new(share));
                    let behind = destination.behind.get_or_insert_with(|| Behind::new(*position, false));
                    behind.miss(cursor);
                }
            }
        }
    }

    /// Writes up to where everything was sent, and who is behind.
    pub(super) async fn note_progress(&self) -> Result<(), storage::Error> {
        let (mut arrears, mut farewells, mut shares) = (Vec::new(), Vec::new(), HashMap::new());
        {
            let state = &mut *self.lock();
            for share in state.shares.values() {
                shares.insert(share.share, SenderShare { position: state.cursor, ..*share });
            }
            for (route, destination) in &state.destinations {
                let Some(share) = shares.get_mut(&destination.share) else { continue };
                if let Some(position) = destination.holds_at() {
                    share.position = share.position.min(position);
                }
                let Some(behind) = &destination.behind else { continue };
                let unnoted = behind.farewells.iter().filter(|(_, is_noted)| !**is_noted);
                farewells.extend(unnoted.map(|(nr, _)| (route.origin.clone(), route.destination.clone(), *nr)));
                if !behind.is_noted && !behind.is_clearing {
                    let (origin, destination) = (route.origin.clone(), route.destination.clone());
                    arrears.push((ArrearsRow { origin, destination, sent_upto: behind.sent_upto }, *share));
                }
            }
            shares.retain(|share, reached| {
                state.shares.get(share).is_some_and(|known| known.position < reached.position)
            });
        }
        let storage = &self.0.storage;
        // First what is missing, then that all else is there.
        if !farewells.is_empty() {
            storage.insert_outgoing_events(&farewells).await?;
        }
        if !arrears.is_empty() {
            storage.upsert_arrears(&arrears).await?;
        }
        let shares: Vec<SenderShare> = shares.into_values().collect();
        storage.advance_sender_shares(&shares).await?;
        let state = &mut *self.lock();
        for share in shares {
            if let Some(known) = state.shares.get_mut(&share.share).filter(|known| known.fence == share.fence) {
                known.position = share.position;
            }
        }
        for (row, _) in arrears {
            let route = Route { origin: row.origin, destination: row.destination };
            let behind = state.destinations.get_mut(&route).and_then(|destination| destination.behind.as_mut());
            if let Some(behind) = behind.filter(|behind| behind.sent_upto == row.sent_upto && !behind.is_clearing) {
                behind.is_noted = true;
            }
        }
        for (origin, destination, nr) in farewells {
            let route = Route { origin, destination };
            let behind = state.destinations.get_mut(&route).and_then(|destination| destination.behind.as_mut());
            if let Some(is_noted) = behind.and_then(|behind| behind.farewells.get_mut(&nr)) {
                *is_noted = true;
            }
        }
        Ok(())
    }

    /// Notes how far destinations are and gives the shares back.
    pub(super) async fn give_up(&self) -> Result<(), storage::Error> {
        self.note_progress().await?;
        let rows = self.outages().take_changes();
        if !rows.is_empty() {
            self.0.storage.upsert_outages(&rows).await?;
        }
        let shares: Vec<SenderShare> = std::mem::take(&mut self.lock().shares).into_values().collect();
        self.0.storage.give_back_sender_shares(&shares).await?;
        self.0.storage.delete_sender().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_about_as_large_and_stay_what_they_are() {
        let share = |number: usize| {
            share_of(&Route {
                origin: "hs1".try_into().unwrap(),
                destination: format!("server{number}.test").try_into().unwrap(),
            })
        };
        let mut counts = [0; SENDER_SHARES as usize];
        (0..1_600).for_each(|number| counts[share(number) as usize] += 1);
        assert!(counts.iter().all(|count| (60..=140).contains(count)), "{counts:?}");
        let route = Route { origin: "hs1".try_into().unwrap(), destination: "hs2".try_into().unwrap() };
        assert_eq!(share_of(&route), share_of(&route.clone()));
    }
}
