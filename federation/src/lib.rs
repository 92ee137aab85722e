//! The Matrix server-server API, in and out.
//!
//! [`Federation`] is the one handle. Other servers are found in `resolve`, asked in `client`, known by their `keys`; what they ask is in `door`, and files of theirs are in `media`.

mod client;
mod door;
mod edus;
mod error;
mod examination;
mod invite_v1;
mod invites;
mod keys;
mod media;
mod outages;
mod policy_servers;
mod published;
mod remote_servers;
mod remote_users;
mod resolve;
mod sender;
mod server_lists;
mod shared_tasks;
mod shares;
mod transactions;
mod well_known;

use std::{collections::BTreeMap, sync::Arc};

use model::{Clock, LocalServer, LocalServers, Random};
use outbound::{Outbound, Service};
use ruma::{OwnedServerName, ServerName};
use storage::Storage;

use self::{
    client::Client, keys::KeyRing, outages::Outages, resolve::Resolver, shares::Shares, transactions::Transactions,
    well_known::WellKnowns,
};
pub use self::{
    door::{FederationApi, router},
    error::Error,
    examination::{Examination, ExpectedKey, Finding, Verdict, examine},
    sender::Sender,
    server_lists::ServerLists,
};

/// What can be chosen about federation.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Servers that are asked for the keys of those that do not answer.
    pub notaries: Vec<OwnedServerName>,
    /// Where those of our names are that others do not find under the name itself.
    pub delegates: BTreeMap<OwnedServerName, OwnedServerName>,
    /// Which servers are asked and answered.
    pub lists: ServerLists,
}

/// Federation of our names with other servers. Cheap to clone.
#[derive(Clone)]
pub struct Federation(Arc<Inner>);

struct Inner {
    servers: LocalServers,
    clock: Clock,
    random: Random,
    outbound: Outbound,
    options: Options,
    client: Arc<Client>,
    keys: KeyRing,
    bodies: Shares,
    downloads: Shares,
    wholes: Shares,
    transactions: Transactions,
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
        let resolver = Resolver { well_knowns: WellKnowns::new(outbound.clone(), clock.clone()) };
        let http = outbound.by_service(service)?;
        let random = storage.random().clone();
        let outages = Outages::new(clock.clone(), random.clone());
        let client = Arc::new(Client::new(resolver, http, servers.clone(), options.lists.clone(), outages));
        let keys = KeyRing::new(client.clone(), storage.clone(), options.notaries.clone());
        let transactions = Transactions::new(storage);
        let bodies = Shares::new(door::BODIES_KIB, door::BODIES_KIB_OF_ADDRESS);
        let downloads = Shares::new(media::DOWNLOADS_MAX, media::DOWNLOADS_OF_SITE_MAX);
        let wholes = Shares::new(door::WHOLES_AT_ONCE, door::WHOLES_AT_ONCE_OF_SITE);
        let outbound = outbound.clone();
        Ok(Self(Arc::new(Inner {
            servers,
            clock,
            random,
            outbound,
            options,
            client,
            keys,
            bodies,
            downloads,
            wholes,
            transactions,
        })))
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

    /// The memory for what other servers send, in KiB, in which each address has its share.
    pub(crate) fn bodies(&self) -> &Shares {
        &self.0.bodies
    }

    /// The places of files that come from other servers.
    pub(crate) fn downloads(&self) -> &Shares {
        &self.0.downloads
    }

    /// Turns to be told of whole states and auth chains, in which each site has its share.
    pub(crate) fn wholes(&self) -> &Shares {
        &self.0.wholes
    }

    pub(crate) fn outbound(&self) -> &Outbound {
        &self.0.outbound
    }

    pub(crate) fn random(&self) -> &Random {
        &self.0.random
    }

    pub(crate) fn transactions(&self) -> &Transactions {
        &self.0.transactions
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
