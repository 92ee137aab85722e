//! Servers that federate: each with a name, an address of its own on loopback, a certificate, and its own view of where the others are.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use outbound::testing::TestDns;
use ruma::OwnedServerName;
use storage::testing::TestDatabase;
use swiftchat::config::ListenerConfig;

use crate::{Authority, Link, Peer, ServerOptions, TestServer, TestUser, authority::loopback_address};

/// Servers `hs1` to `hsN`, that find each other as servers do.
#[derive(Debug)]
pub struct TestFederation {
    authority: Authority,
    members: BTreeMap<String, Member>,
    links: BTreeMap<(String, String), Link>,
}

#[derive(Debug)]
struct Member {
    server: TestServer,
    address: IpAddr,
    dns: TestDns,
}

impl TestFederation {
    /// `count` servers on SQLite.
    pub async fn of(count: usize) -> Self {
        let mut federation = Self::empty();
        for number in 1..=count {
            federation.add(&format!("hs{number}"), TestDatabase::sqlite(), ServerOptions::default()).await;
        }
        federation
    }

    /// No servers yet.
    #[must_use]
    pub fn empty() -> Self {
        Self { authority: Authority::new(), members: BTreeMap::new(), links: BTreeMap::new() }
    }

    /// Starts a server with this name, on this database, that finds those which are here, and is found by them.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn add(&mut self, name: &str, database: TestDatabase, mut options: ServerOptions) {
        options.config.unsafe_options.outgoing_private_networks = vec!["127.0.0.0/8".parse().expect("a network")];
        self.add_careful(name, database, options).await;
    }

    /// The same, but it asks nobody at an address that is not public: so none of the servers of a test.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn add_careful(&mut self, name: &str, database: TestDatabase, options: ServerOptions) {
        self.add_at(loopback_address(), name, database, options).await;
    }

    /// Starts a server whose name is its address and port 8448, so that who asks no DNS server finds it; gives the name.
    ///
    /// No link leads there: it is not cut off from anybody.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn add_by_address(&mut self, database: TestDatabase, mut options: ServerOptions) -> String {
        options.config.unsafe_options.outgoing_private_networks = vec!["127.0.0.0/8".parse().expect("a network")];
        let address = loopback_address();
        let name = format!("{address}:8448");
        self.add_at(address, &name, database, options).await;
        name
    }

    async fn add_at(&mut self, address: IpAddr, name: &str, database: TestDatabase, mut options: ServerOptions) {
        let dns = TestDns::start().await;
        let config = &mut options.config;
        if config.server.names.is_empty() {
            config.server.names = vec![OwnedServerName::try_from(name).expect("a server name")];
        }
        let names: Vec<String> = config.server.names.iter().map(|name| name.host().to_owned()).collect();
        config.federation.notaries.retain(|notary| notary != "matrix.org");
        config.federation.enabled = true;
        config.unsafe_options.open_registration = true;
        config.unsafe_options.federation_extra_authorities = vec![self.authority.file()];
        config.unsafe_options.federation_dns_server = Some(dns.address());
        let mut certified: Vec<&str> = names.iter().map(String::as_str).collect();
        let ip = address.to_string();
        certified.retain(|name| *name != ip);
        certified.push(&ip);
        options.more_listeners.push(ListenerConfig {
            address: SocketAddr::new(address, 8_448),
            tls: Some(self.authority.certify(&certified)),
            ..ListenerConfig::default()
        });
        let server = Box::pin(TestServer::on(database, options)).await;
        for (other, member) in &self.members {
            let there = Link::to(SocketAddr::new(member.address, 8_448)).await;
            let back = Link::to(SocketAddr::new(address, 8_448)).await;
            dns.add_address(other, there.ip());
            for name in &names {
                member.dns.add_address(name, back.ip());
            }
            self.links.insert((name.to_owned(), other.clone()), there);
            self.links.insert((other.clone(), name.to_owned()), back);
        }
        self.members.insert(name.to_owned(), Member { server, address, dns });
    }

    /// The authority that all trust.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A server.
    ///
    /// # Panics
    ///
    /// When there is none with this name.
    #[must_use]
    #[track_caller]
    pub fn server(&self, name: &str) -> &TestServer {
        &self.member(name).server
    }

    /// A server, to restart it.
    ///
    /// # Panics
    ///
    /// When there is none with this name.
    #[track_caller]
    pub fn server_mut(&mut self, name: &str) -> &mut TestServer {
        &mut self.members.get_mut(name).unwrap_or_else(|| panic!("no server {name}")).server
    }

    /// Where a server looks names up.
    ///
    /// # Panics
    ///
    /// When there is none with this name.
    #[must_use]
    #[track_caller]
    pub fn dns(&self, name: &str) -> &TestDns {
        &self.member(name).dns
    }

    #[track_caller]
    fn member(&self, name: &str) -> &Member {
        self.members.get(name).unwrap_or_else(|| panic!("no server {name}"))
    }

    /// A user of a server.
    pub async fn user(&self, server: &str, name: &str) -> TestUser {
        self.server(server).user(name).await
    }

    /// A server in the test's hands, which all that are here find.
    pub async fn peer(&self, name: &str) -> Peer {
        let peer = Peer::start(name, &self.authority).await;
        for member in self.members.values() {
            member.dns.add_address(name, peer.address());
        }
        peer
    }

    /// Cuts two servers off from each other.
    ///
    /// # Panics
    ///
    /// When one is not there.
    #[track_caller]
    pub fn cut(&self, one: &str, other: &str) {
        self.both_ways(one, other).for_each(Link::cut);
    }

    /// Cuts the way from one server to another: what the other one asks still arrives.
    ///
    /// # Panics
    ///
    /// When one is not there.
    #[track_caller]
    pub fn cut_way(&self, from: &str, to: &str) {
        self.both_ways(from, to).take(1).for_each(Link::cut);
    }

    /// Lets two servers reach each other again.
    ///
    /// # Panics
    ///
    /// When one is not there.
    #[track_caller]
    pub fn heal(&self, one: &str, other: &str) {
        self.both_ways(one, other).for_each(Link::heal);
    }

    #[track_caller]
    fn both_ways(&self, one: &str, other: &str) -> impl Iterator<Item = &Link> {
        let way = |from: &str, to: &str| {
            let link = self.links.get(&(from.to_owned(), to.to_owned()));
            link.unwrap_or_else(|| panic!("no way from {from} to {to}"))
        };
        [way(one, other), way(other, one)].into_iter()
    }
}
