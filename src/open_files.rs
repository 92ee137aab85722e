//! The limit of open files, which connections, the database and everything else share.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::config::{Config, Database, EventBusUrl};

/// Files of one connection to SQLite: the database, its write-ahead log, the log's index, and a temporary file for a large sort.
const SQLITE_CONNECTION_FILES: u64 = 4;
/// What stays free for the rest: standard streams, the runtime, the lock, certificates, name servers.
const OTHER_FILES: u64 = 48;

/// Raises the limit of this process as far as the machine allows, and gives it; nothing when there is none.
pub(crate) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        Ok(()) => limit.maximum,
        Err(error) => {
            warn!(%error, "the limit of open files could not be raised");
            limit.current
        }
    }
}

/// Most connections of clients at once: as configured, or fewer when a `limit` of open files leaves no room for them.
///
/// Accepting more would take the files that the database needs, and fail those who are connected already.
pub(crate) fn connections_max(config: &Config, limit: Option<u64>) -> u32 {
    let configured = config.server.connections_max.get();
    let Some(limit) = limit else { return configured };
    // However little there is, half of it is for clients.
    let free = limit.saturating_sub(files_kept(config)).max(limit / 2).max(1);
    let allowed = u32::try_from(free).unwrap_or(u32::MAX);
    if allowed >= configured {
        return configured;
    }
    if allowed >= configured / 10 * 9 {
        // Nobody has to act for so little.
        return allowed;
    }
    warn!(
        connections_max = allowed,
        open_files_max = limit,
        "the limit of open files leaves room for {allowed} connections, not for the {configured} of \
         `server.connections_max`: raise it (`LimitNOFILE=` of systemd, `ulimit -n`)"
    );
    allowed
}

/// Files that are not for clients.
fn files_kept(config: &Config) -> u64 {
    let database = match &config.storage.database {
        // One that writes and one for checkpoints beside those that read.
        Database::Sqlite(_) => (u64::from(config.storage.sqlite_read_connections.get()) + 2) * SQLITE_CONNECTION_FILES,
        Database::Postgres(_) => u64::from(config.storage.postgres_connections.get()),
    };
    let bus = match &config.event_bus.url {
        EventBusUrl::Memory => 0,
        EventBusUrl::Redis(_) => 4,
    };
    database + bus + config.listeners.len() as u64 + OTHER_FILES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_database() {
        let mut config = Config::default();
        assert_eq!(connections_max(&config, None), 20_000);
        assert_eq!(connections_max(&config, Some(1_000_000)), 20_000);
        assert_eq!(u64::from(connections_max(&config, Some(1_024))), 1_024 - files_kept(&config));
        assert_eq!(connections_max(&config, Some(60)), 30);
        assert_eq!(connections_max(&config, Some(0)), 1);
        let kept = files_kept(&config);
        config.storage.sqlite_read_connections = 14.try_into().unwrap();
        assert_eq!(files_kept(&config), kept + 40);
    }
}
