//! How many whole states of other servers are asked for at the same time: each takes much memory, and some never come.

use std::sync::Arc;

use model::site_of;
use moka::sync::Cache;
use ruma::ServerName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most of them, and most of those of one site.
const AT_ONCE: usize = 8;
const AT_ONCE_OF_SITE: usize = 2;

/// Most sites that are told apart.
const SITES_MAX: u64 = 10_000;

/// The permits to ask for a whole state, or a whole auth chain.
pub(crate) struct StatesAsked {
    all: Arc<Semaphore>,
    of_sites: Cache<String, Arc<Semaphore>>,
}

impl StatesAsked {
    pub(crate) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), of_sites: Cache::new(SITES_MAX) }
    }

    /// Waits for one's turn to ask a server; to be held until what it told is taken in. Who waits for other questions to the same site keeps
    /// nothing from others.
    pub(crate) async fn permits_for(&self, server: &ServerName) -> [Option<OwnedSemaphorePermit>; 2] {
        let own = self.of_sites.get_with(site_of(server), || Arc::new(Semaphore::new(AT_ONCE_OF_SITE)));
        let own = own.acquire_owned().await.ok();
        [own, self.all.clone().acquire_owned().await.ok()]
    }
}
