//! How many connections one address may have.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::network_of;
use tracing::warn;

/// Counts the connections of each address, so that no single one can take all that the server has. Clones share the counts.
#[derive(Clone, Debug)]
pub(crate) struct AddressLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections_max: u32,
    /// Those that have a connection: at most as many as there are connections.
    open: Mutex<HashMap<IpAddr, Open>>,
}

#[derive(Debug, Default)]
struct Open {
    connections: u32,
    /// Whether the log says already that it has too many.
    is_noted: bool,
}

/// One connection of an address. Dropping it ends the count.
#[derive(Debug)]
pub(crate) struct Counted {
    limit: AddressLimit,
    network: IpAddr,
}

impl AddressLimit {
    pub(crate) fn new(connections_max: u32) -> Self {
        Self(Arc::new(Inner { connections_max, open: Mutex::default() }))
    }

    /// Counts one more, or nothing when the address has all that it may have.
    pub(crate) fn count(&self, address: IpAddr) -> Option<Counted> {
        let network = network_of(address);
        let mut open = self.lock();
        let entry = open.entry(network).or_default();
        if entry.connections >= self.0.connections_max {
            if !std::mem::replace(&mut entry.is_noted, true) {
                warn!(
                    connections = entry.connections,
                    "an address has as many connections as `server.address_connections_max` allows, and gets no more; a \
                     proxy belongs into `listeners.trusted_proxies`"
                );
            }
            return None;
        }
        entry.connections += 1;
        Some(Counted { limit: self.clone(), network })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Open>> {
        // Nothing panics while it is held.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.limit.lock();
        if let Some(entry) = open.get_mut(&self.network) {
            entry.connections -= 1;
            if entry.connections == 0 {
                open.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_as_many_connections_as_it_may_have() {
        let limit = AddressLimit::new(2);
        let count = |address: &str| limit.count(address.parse().unwrap());
        let (first, _second) = (count("192.0.2.1").unwrap(), count("::ffff:192.0.2.1").unwrap());
        assert!(count("192.0.2.1").is_none());
        assert!(count("192.0.2.2").is_some(), "another one is not concerned");
        drop(first);
        assert!(count("192.0.2.1").is_some());
        // A household has a whole network of IPv6.
        let _six = [count("2001:db8::1").unwrap(), count("2001:db8::2").unwrap()];
        assert!(count("2001:db8::3").is_none());
        assert!(count("2001:db8:0:1::3").is_some());
    }

    #[test]
    fn nothing_is_kept_of_who_has_gone() {
        let limit = AddressLimit::new(2);
        drop([limit.count([192, 0, 2, 1].into()), limit.count([192, 0, 2, 1].into())]);
        assert!(limit.lock().is_empty());
    }
}
