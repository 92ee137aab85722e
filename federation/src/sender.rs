//! What our users do, on its way to the other servers. Server-Server API, "Transactions".
//!
//! Nothing is written for a destination when something is sent. The sender follows the stream ([`stream`]), puts events into the queues of the
//! servers of their rooms in memory ([`destination`]), and notes every second up to where everything was sent ([`shares`]): a process that dies
//! is followed by one that begins there. A destination that gives no answer stands in the database as behind ([`catch_up`]), and costs
//! nothing but an entry in memory until its time has come ([`crate::outages`]). Receipts are looked up like events; what may be lost is in
//! [`lossy`] and [`ephemeral`].
//!
//! Destinations are dealt out in shares, and one process has each: so there is one transaction at a time for each of them ([`run`]).

mod catch_up;
mod destination;
mod devices;
mod ephemeral;
mod lossy;
mod receipts;
mod run;
mod shares;
mod stream;
#[cfg(test)]
mod tests;
mod transaction;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_bus::{Presence, Typing};
use http::StatusCode;
use model::{Position, RoomNr, UserNr};
use moka::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use storage::{SenderShare, Storage, StoredEvent};
use sync::Sync;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{debug, warn};

use self::transaction::BYTES_MAX;
pub(crate) use self::transaction::Transaction;
use self::{
    destination::{Destination, DeviceChange, Route, RunNr},
    ephemeral::Told,
    run::Run,
    shares::Alive,
};
use crate::{Error, Federation, client::Client, outages::Outages};

/// How often what has its time is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most transactions that are under way, each to another destination.
const AT_ONCE: usize = 512;
/// After so many tries in vain (half a minute) nothing is kept in memory for a destination.
const TRIES_KEPT: i64 = 5;
/// After so many tries a transaction that the other side calls wrong is given up: others wait behind it.
const WRONG_MAX: u32 = 5;
/// EDUs from the database in one transaction; with those of devices and those that may be lost at most [`transaction::EDUS_MAX`].
const EDUS_AT_ONCE: u32 = 40;
/// EDUs in one transaction with receipts and what may be lost.
const EPHEMERAL_AT_ONCE: usize = 20;
/// How long what is under way may take when the process ends.
const STOP_WITHIN: Duration = Duration::from_secs(1);
/// The pause after our own database failed, in milliseconds.
const PAUSE_MS: i64 = 1_000;
/// Most rooms and users whose servers are in memory.
const SERVERS_CACHED: u64 = 20_000;
/// How long it is believed with whom a user shares rooms, for what may be lost.
const SERVERS_OF_USER_FOR: Duration = Duration::from_secs(30);

const _: () =
    assert!(EDUS_AT_ONCE as usize + 2 * destination::CHANGES_AT_ONCE + EPHEMERAL_AT_ONCE <= transaction::EDUS_MAX);

type Servers = Arc<Vec<OwnedServerName>>;

/// Sends what our users do to other servers. Cheap to clone.
#[derive(Clone)]
pub struct Sender(Arc<Inner>);

struct Inner {
    federation: Federation,
    storage: Storage,
    sync: Sync,
    typing: Typing,
    presence: Option<Presence>,
    /// Guards what is to be sent. Held for moments only; the lock of the outages may be taken inside.
    state: Mutex<State>,
    /// The other servers of rooms, as of the newest position that is followed.
    servers_of_rooms: Cache<RoomNr, Servers>,
    servers_of_users: Cache<UserNr, Servers>,
    permits: Semaphore,
    /// Those who send. Guards them; held for moments only, no lock inside.
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    /// All up to here is queued.
    cursor: Position,
    /// All up to here is about to be.
    seen: Position,
    shares: HashMap<u32, SenderShare>,
    /// Until when no other process takes them.
    lease_until_ms: i64,
    destinations: HashMap<Route, Destination>,
    /// Destinations that give no answer, by when they are tried next.
    wheel: BTreeSet<(i64, Route)>,
    /// The newest task.
    runs: RunNr,
    /// Whether nothing is begun any more.
    is_stopping: bool,
}

impl Sender {
    /// A sender for `federation`, which runs with [`Sender::run`].
    #[must_use]
    pub fn new(
        federation: Federation,
        storage: Storage,
        sync: Sync,
        typing: Typing,
        presence: Option<Presence>,
    ) -> Self {
        Self(Arc::new(Inner {
            federation,
            storage,
            sync,
            typing,
            presence,
            state: Mutex::default(),
            servers_of_rooms: Cache::new(SERVERS_CACHED),
            servers_of_users: Cache::builder().max_capacity(SERVERS_CACHED).time_to_live(SERVERS_OF_USER_FOR).build(),
            permits: Semaphore::new(AT_ONCE),
            tasks: Mutex::default(),
        }))
    }

    /// Sends until `stop` ends. Run it as one task of each process.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut stream = self.0.sync.subscribe();
        let position = self.0.sync.position();
        {
            let mut state = self.lock();
            (state.cursor, state.seen) = (position, position);
        }
        let mut typing = self.0.typing.watch();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut alive, mut told) = (Alive::default(), Told::new(&self.0.typing, self.0.presence.as_ref()));
        loop {
            let done = tokio::select! {
                () = &mut stop => break,
                published = stream.recv() => match self.follow(published).await {
                    Ok(true) => Ok(()),
                    Ok(false) => break,
                    Err(error) => Err(error),
                },
                Ok(()) = typing.changed() => self.tell_typing(&mut told).await,
                servers = self.outages().ended() => {
                    self.try_again(&servers);
                    Ok(())
                }
                _ = look.tick() => self.look(&mut alive, &mut told).await,
            };
            if let Err(error) = done {
                warn!(%error, "what is to be sent to other servers is not known; it is looked up again in a second");
            }
        }
        self.lock().is_stopping = true;
        let mut tasks = std::mem::take(&mut *self.tasks());
        // What is under way is mostly about to arrive. The next process sends the rest again, whether it did or not.
        let _ = timeout(STOP_WITHIN, async { while tasks.join_next().await.is_some() {} }).await;
        drop(tasks);
        if let Err(error) = self.give_up().await {
            warn!(%error, "how far other servers are could not be noted; some will be sent some events twice");
        }
    }

    /// What is done every second.
    async fn look(&self, alive: &mut Alive, told: &mut Told) -> Result<(), storage::Error> {
        self.share_outages().await?;
        self.keep_shares(alive).await?;
        self.follow_to(self.0.sync.position()).await?;
        let now_ms = self.now_ms();
        {
            let state = &mut *self.lock();
            while let Some((at_ms, _)) = state.wheel.first()
                && *at_ms <= now_ms
                && let Some((_, route)) = state.wheel.pop_first()
            {
                self.kick(state, &route);
            }
            let waiting = state.destinations.iter().filter(|(_, destination)| destination.has_receipts());
            let waiting: Vec<Route> = waiting.map(|(route, _)| route.clone()).collect();
            waiting.iter().for_each(|route| self.kick(state, route));
            state.destinations.retain(|_, destination| !destination.is_idle());
        }
        while self.tasks().try_join_next().is_some() {}
        self.tell_presence(told).await?;
        self.tell_typing_again(told).await?;
        self.note_progress().await
    }

    /// Writes what became of other servers here, and reads what became of them elsewhere.
    async fn share_outages(&self) -> Result<(), storage::Error> {
        let (outages, storage) = (self.outages(), &self.0.storage);
        let rows = outages.take_changes();
        if !rows.is_empty()
            && let Err(error) = storage.upsert_outages(&rows).await
        {
            outages.keep_changes(rows);
            return Err(error);
        }
        shares::learn_outages(outages, storage).await
    }

    /// Sends to those servers now, if there is anything to send.
    fn try_again(&self, servers: &[OwnedServerName]) {
        let state = &mut *self.lock();
        for server in servers {
            for local in self.0.federation.servers().iter() {
                let route = Route { origin: local.name.clone(), destination: server.clone() };
                self.kick(state, &route);
            }
        }
    }

    /// Sends to a destination, unless somebody does or it is to be left in peace.
    fn kick(&self, state: &mut State, route: &Route) {
        let Some(destination) = state.destinations.get_mut(route) else { return };
        if state.is_stopping || destination.run.is_some() || !destination.has_work() {
            return;
        }
        if let Some((tries, next_ms)) =
            self.outages().next_try(&route.destination).filter(|(_, at_ms)| *at_ms > self.now_ms())
        {
            if tries >= TRIES_KEPT && destination.behind.is_none() {
                // It may be days until then, and the share would not get ahead.
                destination.fall_behind();
            }
            state.wheel.insert((next_ms, route.clone()));
            return;
        }
        if let Some(run) = state.begin_run(self, route) {
            self.tasks().spawn(self.clone().send_all(run));
        }
    }

    /// Sends what there is, one transaction after the other, until there is no more or the destination does not take it.
    async fn send_all(self, run: Run) {
        let (route, _end) = (&run.route, run.end_on_drop());
        let Ok(_permit) = self.0.permits.acquire().await else { return };
        loop {
            let transaction = match self.next_transaction(&run).await {
                Ok(Some(transaction)) => transaction,
                Ok(None) => return,
                Err(error) => {
                    warn!(%error, server.name = %route.destination, "what {} is to be sent could not be read", route.destination);
                    return self.rest(&run, false);
                }
            };
            let asking = self.outages().asking(&route.destination);
            let sent = self.client().send_transaction(&route.origin, &route.destination, &transaction).await;
            match sent {
                Ok(refused) => {
                    for (event_id, why) in refused {
                        debug!(server.name = %route.destination, event.id = %event_id, why, "an event was not taken");
                    }
                    self.outages().end(&route.destination);
                    if let Err(error) = self.arrived(&run).await {
                        warn!(%error, "what has arrived could not be noted; it will be sent again");
                    }
                }
                Err(error) => {
                    debug!(server.name = %route.destination, %error, "a transaction did not arrive");
                    if !matches!(error, Error::Unreachable { .. }) {
                        self.outages().refused(asking, &error);
                    }
                    let is_wrong = is_wrong(&error);
                    if is_wrong && self.count_wrong(&run) >= WRONG_MAX {
                        warn!(server.name = %route.destination, %error, "{} does not take a transaction, which is given up", route.destination);
                        if let Err(error) = self.arrived(&run).await {
                            warn!(%error, "what was given up could not be noted; it will be sent again");
                        }
                    }
                    return self.rest(&run, is_wrong);
                }
            }
        }
    }

    /// The next transaction for a destination, or the one that did not arrive; nothing when there is nothing to send.
    async fn next_transaction(&self, run: &Run) -> Result<Option<Arc<Transaction>>, storage::Error> {
        loop {
            match self.next_step(run) {
                Step::Nothing => return Ok(None),
                Step::Send(transaction) => return Ok(Some(transaction)),
                Step::Make(parts) => {
                    // What is made is sent in the next step, if the lease holds by then.
                    self.make(run, parts).await?;
                }
                Step::CatchUp => self.catch_up(run).await?,
            }
        }
    }

    fn next_step(&self, run: &Run) -> Step {
        let now_ms = self.now_ms();
        let state = &mut *self.lock();
        if state.lease_until_ms <= now_ms {
            state.end_run(run, now_ms + PAUSE_MS);
            return Step::Nothing;
        }
        let (seen, is_stopping) = (state.seen, state.is_stopping);
        let Some(destination) = state.of(run).filter(|_| !is_stopping) else { return Step::Nothing };
        if destination.in_flight.is_none() && !destination.take_next(EPHEMERAL_AT_ONCE) {
            if destination.behind.is_some() {
                return Step::CatchUp;
            }
            destination.run = None;
            return Step::Nothing;
        }
        let Some(in_flight) = &destination.in_flight else { return Step::Nothing };
        match &in_flight.made {
            Some((transaction, _)) => Step::Send(transaction.clone()),
            None => Step::Make(Parts {
                events: in_flight.events.iter().map(|queued| queued.event.clone()).collect(),
                devices: in_flight.devices.clone(),
                ephemeral: in_flight.ephemeral.clone(),
                edus_upto: in_flight.has_edus.then_some(seen),
            }),
        }
    }

    /// Makes a transaction of its parts; they may come to nothing.
    async fn make(&self, run: &Run, parts: Parts) -> Result<(), storage::Error> {
        let Route { origin, destination } = &run.route;
        let (mut edus, mut edus_sent_upto, mut has_more) = (Vec::new(), None, false);
        if let Some(upto) = parts.edus_upto {
            let rows = self.0.storage.list_outgoing_edus(origin, destination, upto, EDUS_AT_ONCE).await?;
            has_more = rows.len() == EDUS_AT_ONCE as usize;
            let mut bytes = 0;
            for (position, edu) in rows {
                if bytes >= BYTES_MAX {
                    has_more = true;
                    break;
                }
                bytes += edu.len();
                edus_sent_upto = Some(position);
                edus.push(edu);
            }
        }
        edus.extend(self.device_edus(origin, &parts.devices).await?);
        edus.extend(parts.ephemeral);
        let made = (!parts.events.is_empty() || !edus.is_empty()).then(|| {
            let pdus = parts.events.iter().map(|event| &*event.pdu.json);
            Arc::new(Transaction::new(origin, self.now_ms(), pdus, edus.iter().map(String::as_str)))
        });
        let state = &mut *self.lock();
        let Some(waiting) = state.of(run) else { return Ok(()) };
        if has_more {
            waiting.look_for_edus(edus_sent_upto.unwrap_or_default());
        }
        match (made, &mut waiting.in_flight) {
            (Some(transaction), Some(in_flight)) => in_flight.made = Some((transaction, edus_sent_upto)),
            _ => waiting.in_flight = None,
        }
        Ok(())
    }

    /// The transaction that was sent has arrived.
    async fn arrived(&self, run: &Run) -> Result<(), storage::Error> {
        let arrived = self.lock().of(run).and_then(Destination::arrived);
        let Some(arrived) = arrived else { return Ok(()) };
        let (storage, Route { origin, destination }) = (&self.0.storage, &run.route);
        if let Some((_, Some(upto))) = arrived.made {
            storage.delete_outgoing_edus(origin, destination, upto).await?;
        }
        if !arrived.farewells.is_empty() {
            storage.delete_outgoing_events(origin, destination, &arrived.farewells).await?;
        }
        Ok(())
    }

    /// Counts that a destination called what is in flight wrong.
    fn count_wrong(&self, run: &Run) -> u32 {
        let state = &mut *self.lock();
        let Some(destination) = state.of(run) else { return 0 };
        destination.times_wrong += 1;
        destination.times_wrong
    }

    /// Leaves a destination in peace until it is tried again.
    fn rest(&self, run: &Run, is_wrong: bool) {
        let next_try = self.outages().next_try(&run.route.destination);
        let state = &mut *self.lock();
        let Some(destination) = state.of(run) else { return };
        destination.lossy.clear();
        if !is_wrong && next_try.is_some_and(|(tries, _)| tries >= TRIES_KEPT) {
            destination.fall_behind();
        }
        state.end_run(run, next_try.map_or(self.now_ms() + PAUSE_MS, |(_, at_ms)| at_ms));
    }

    /// Whether a server is one to which anything is sent.
    fn sends_to(&self, server: &ServerName) -> bool {
        !self.0.federation.servers().is_local(server) && self.0.federation.options().lists.allow(server)
    }

    fn client(&self) -> &Client {
        self.0.federation.client()
    }

    fn outages(&self) -> &Outages {
        &self.client().outages
    }

    fn now_ms(&self) -> i64 {
        self.0.storage.clock().now_ms()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be done for a destination next.
enum Step {
    /// Nothing: nobody sends to it any more.
    Nothing,
    /// Sending a transaction, perhaps again.
    Send(Arc<Transaction>),
    /// Making one.
    Make(Parts),
    /// Looking up what was missed.
    CatchUp,
}

/// What a transaction is made of.
struct Parts {
    events: Vec<Arc<StoredEvent>>,
    devices: Vec<DeviceChange>,
    ephemeral: Vec<String>,
    /// Up to where EDUs of the database are to be in it.
    edus_upto: Option<Position>,
}

/// Whether a destination says that what it was sent is no good, or too much: sent again it will be neither.
fn is_wrong(error: &Error) -> bool {
    let Error::Refused { error, .. } = error else { return false };
    matches!(error.status_code, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE)
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("cursor", &self.lock().cursor).finish_non_exhaustive()
    }
}
