//! A running server: its start and its end, in order.

use std::{sync::Arc, time::Duration};

use model::{Clock, LocalServers, Random};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{info, warn};

use crate::{
    Error, ListenerAddress,
    address_limit::AddressLimit,
    config::{Config, Database},
    data_folder::{self, Lock},
    listener::{Bound, Shared},
    open_files, signing_keys,
    wiring::{self, Services},
};

/// Shortest time that the database has to close, whatever the configuration says.
const CLOSE_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// What a test puts in the place of the machine's own.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Where time comes from.
    pub clock: Clock,
    /// Where chance comes from.
    pub random: Random,
    /// How often the database is asked what other processes wrote, should the bus not tell; nothing for the usual second.
    pub ask_every: Option<Duration>,
}

/// A running server. Dropping it stops it at once, without waiting for anything; [`Server::shutdown`] ends it in order.
pub struct Server {
    addresses: Vec<ListenerAddress>,
    local_servers: LocalServers,
    services: Services,
    shared: Shared,
    shutdown_timeout: Duration,
    _stop_on_drop: DropGuard,
    _lock: Option<Lock>,
}

impl Server {
    /// Starts a server: data folder, signing keys, database, services, and last the ports.
    ///
    /// # Errors
    ///
    /// [`Error`] says what the one who starts it must change. No port is open then.
    pub async fn start(config: Config, overrides: Overrides) -> Result<Self, Error> {
        let accounts_options = wiring::accounts_options(&config)?;
        // Taken first, because a port that is not free is the likeliest trouble; opened last.
        let bound = config.listeners.iter().map(Bound::bind).collect::<Result<Vec<_>, _>>()?;
        let folder = data_folder::make(&config.server.data_folder)?;
        let lock = match config.storage.database {
            Database::Sqlite(_) => Some(data_folder::lock(&folder)?),
            Database::Postgres(_) => None,
        };
        signing_keys::end_replaced(
            &folder,
            &config.server.names_in_force(),
            overrides.clock.now_ms(),
            &overrides.random,
        )?;
        let local_servers = signing_keys::open(&folder, config.server.names_in_force(), &overrides.random)?;
        let connections_max = open_files::connections_max(&config, open_files::raise_limit());
        let shared = Shared {
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
            connections: Arc::new(Semaphore::new(connections_max as usize)),
            addresses: AddressLimit::new(config.server.address_connections_max.get()),
        };
        // From here on whatever was started ends, however this ends.
        let stop_on_drop = shared.stop.clone().drop_guard();
        let stopping = shared.stop.child_token();
        let services =
            Services::start(&config, &folder, local_servers.clone(), accounts_options, overrides, stopping).await?;
        let mut addresses = Vec::new();
        let mut listeners = Vec::new();
        for (bound, listener_config) in bound.into_iter().zip(&config.listeners) {
            let (listener, address) = bound.listen(config.is_private())?;
            addresses.push(address);
            listeners.push((listener, services.router(&listener_config.apis)));
        }
        for (listener, router) in listeners {
            shared.tasks.spawn(listener.run(router, shared.clone()));
        }
        for key in config.unsafe_options.in_force() {
            warn!(option = key, "{key} is set: this server is not safe for other people's data");
        }
        let shutdown_timeout = Duration::from_secs(config.server.shutdown_timeout_seconds.into());
        Ok(Self {
            addresses,
            local_servers,
            services,
            shared,
            shutdown_timeout,
            _stop_on_drop: stop_on_drop,
            _lock: lock,
        })
    }

    /// Where it can be reached, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[ListenerAddress] {
        &self.addresses
    }

    /// The server names that it answers for.
    #[must_use]
    pub fn local_servers(&self) -> &LocalServers {
        &self.local_servers
    }

    /// Ends it in order: the ports close, long polls are answered at once and requests in flight within the configured time, what is
    /// queued for the database is written, and the database is closed. A database that does not answer is left as it is after the same
    /// time again: what was acknowledged is safe in it.
    pub async fn shutdown(self) {
        // Ends the listeners and whatever waits, too.
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if timeout(self.shutdown_timeout, self.shared.tasks.wait()).await.is_err() {
            warn!(connections = self.shared.tasks.len(), "some requests did not end in time");
            self.shared.abort.cancel();
            self.shared.tasks.wait().await;
        }
        if timeout(self.shutdown_timeout.max(CLOSE_TIMEOUT_MIN), self.services.close()).await.is_err() {
            warn!("the database did not answer in time, and was not closed; nothing that was acknowledged is lost");
        }
        info!("ended");
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
