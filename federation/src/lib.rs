//! The Matrix server-server API, in and out.
//!
//! [`Federation`] is the one handle. Other servers are found in `resolve`, asked in `client`, known by their `keys`; what they ask is in `door`.

mod client;
mod door;
mod error;
mod event_keys;
mod invite_v1;
mod invites;
mod keys;
mod outages;
mod published;
mod remote_servers;
mod resolve;
mod sender;
mod well_known;

use std::{collections::BTreeMap, sync::Arc};

use model::{Clock, LocalServer, LocalServers};
use outbound::{Outbound, Service};
use ruma::{OwnedServerName, ServerName};
use storage::Storage;

use self::{client::Client, keys::KeyRing, outages::Outages, resolve::Resolver, well_known::WellKnowns};
pub use self::{
    door::{FederationApi, router},
    error::Error,
    sender::Sender,
};

/// What can be chosen about federation.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Servers that are asked for the keys of those that do not answer.
    pub notaries: Vec<OwnedServerName>,
    /// Where those of our names are that others do not find under the name itself.
    pub delegates: BTreeMap<OwnedServerName, OwnedServerName>,
}

/// Federation of our names with other servers. Cheap to clone.
#[derive(Clone)]
pub struct Federation(Arc<Inner>);

struct Inner {
    servers: LocalServers,
    clock: Clock,
    options: Options,
    client: Arc<Client>,
    keys: KeyRing,
}

impl Federation {
    /// Federation of `servers` over `outbound`.
    ///
    /// # Errors
    ///
    /// [`outbound::Error::Setup`].
    pub fn new(
        outbound: &Outbound,
        storage: Storage,
        servers: LocalServers,
        options: Options,
    ) -> Result<Self, outbound::Error> {
        let clock = storage.clock().clone();
        let service = Service { names: resolve::SERVICES, port_default: resolve::PORT_DEFAULT };
        let client = Arc::new(Client {
            resolver: Resolver { well_knowns: WellKnowns::new(outbound.clone(), clock.clone()) },
            http: outbound.by_service(service)?,
            servers: servers.clone(),
            outages: Outages::new(clock.clone(), storage.random().clone()),
        });
        let keys = KeyRing::new(client.clone(), storage, options.notaries.clone());
        Ok(Self(Arc::new(Inner { servers, clock, options, client, keys })))
    }

    pub(crate) fn servers(&self) -> &LocalServers {
        &self.0.servers
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn keys(&self) -> &KeyRing {
        &self.0.keys
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.0.clock.now_ms()
    }

    /// A server asked us something, and proved that it is itself: it is there, whatever was known of it.
    pub(crate) fn heard_from(&self, server: &ServerName) {
        self.0.client.outages.end(server);
    }

    /// Which of our names is meant by a host: the name itself, with or without its port, or the one that is delegated to it.
    pub(crate) fn local_server_of_host(&self, host: &str) -> &LocalServer {
        let servers = &self.0.servers;
        let host = <&ServerName>::try_from(host).ok();
        let by_name = |host: &ServerName| {
            servers.get(host).or_else(|| servers.iter().find(|server| server.name.host() == host.host()))
        };
        let by_delegate = |host: &ServerName| {
            let delegates = self.0.options.delegates.iter();
            let mut found = delegates.filter(|(_, delegate)| *delegate == host || delegate.host() == host.host());
            found.next().and_then(|(name, _)| servers.get(name))
        };
        let found = host.and_then(|host| by_name(host).or_else(|| by_delegate(host)));
        found.or_else(|| servers.get(servers.primary())).expect("the primary name is one of ours")
    }
}

impl std::fmt::Debug for Federation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Federation").field("servers", &self.0.servers).finish_non_exhaustive()
    }
}
