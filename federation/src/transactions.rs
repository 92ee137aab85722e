//! Transactions of other servers: each is worked off once, and one of a server at a time. Server-Server API, "Transactions".
//!
//! What was answered is in the database: one that comes again is answered the same, also by another process and after a restart. One that
//! comes again while it is worked off waits for that. When two processes work off the same one, each event is taken in once all the same, and
//! the first answer counts.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use storage::{Commit, NewReceivedTransaction, ReceivedTransactionKey, Storage};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::shares::{Share, Shares, site_of};

/// Most servers whose transactions are kept apart in memory.
const LANES_MAX: u64 = 20_000;

/// Most transactions of one server that are here: the specification wants it to wait for each answer, so this is one and some that it believes
/// to be lost.
const HERE_MAX: usize = 4;

/// Most memory for transactions that are worked off, of all servers and of those of one site, in KiB: a server that does not tell what it is
/// asked for meanwhile holds its transaction for minutes.
const MEMORY_KIB: usize = 512 << 10;
const MEMORY_KIB_OF_SITE: usize = 128 << 10;

/// What is being worked off.
pub(crate) struct Transactions {
    storage: Storage,
    lanes: Cache<(OwnedServerName, OwnedServerName), Arc<Lane>>,
    memory: Shares,
}

/// The transactions of one server to one of our names.
struct Lane {
    /// How many may be here.
    here: Arc<Semaphore>,
    /// Whoever holds it works one off. No lock inside but those of rooms.
    turn: Mutex<()>,
}

impl Transactions {
    pub(crate) fn new(storage: Storage) -> Self {
        Self { storage, lanes: Cache::new(LANES_MAX), memory: Shares::new(MEMORY_KIB, MEMORY_KIB_OF_SITE) }
    }

    /// Waits for so many bytes of memory, in the share of the site of a server; nothing when it is not to be had within `wait`.
    pub(crate) async fn memory_for(&self, server: &ServerName, bytes: usize, wait: Duration) -> Option<Share> {
        self.memory.take(&site_of(server), bytes.div_ceil(1_024).max(1), wait).await
    }

    /// Lets a transaction in, unless too many of its server are here.
    pub(crate) fn enter(&self, key: &ReceivedTransactionKey) -> Option<Entered> {
        let names = (key.destination.clone(), key.origin.clone());
        let lane = self
            .lanes
            .get_with(names, || Arc::new(Lane { here: Arc::new(Semaphore::new(HERE_MAX)), turn: Mutex::default() }));
        let permit = lane.here.clone().try_acquire_owned().ok()?;
        Some(Entered { lane, _permit: permit })
    }

    /// What a transaction was answered; or works it off when it is its turn, and remembers the answer.
    ///
    /// # Errors
    ///
    /// Those of `work`, or of the database: nothing is remembered then.
    pub(crate) async fn once<E, W>(&self, entered: Entered, key: ReceivedTransactionKey, work: W) -> Result<String, E>
    where
        E: From<rooms::Error>,
        W: Future<Output = Result<String, E>>,
    {
        let _turn = entered.lane.turn.lock().await;
        if let Some(answer) = self.storage.find_received_transaction(&key).await.map_err(rooms::Error::from)? {
            return Ok(answer);
        }
        let answer = work.await?;
        let new = NewReceivedTransaction { key, answer: answer.clone() };
        let commit = Commit { received_transactions: vec![new], ..Commit::default() };
        self.storage.commit(commit).await.map_err(rooms::Error::from)?;
        Ok(answer)
    }
}

/// A transaction that was let in.
pub(crate) struct Entered {
    lane: Arc<Lane>,
    _permit: OwnedSemaphorePermit,
}
