//! Names to addresses.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
    system_conf::read_system_conf,
};
use model::Random;

use crate::Error;

/// Most hosts of a service that are looked up, and most addresses of a host that are tried.
const HOSTS_MAX: usize = 8;

/// Most names whose answers are kept, each as long as its answer says.
const NAMES_CACHED: u64 = 10_000;

/// A host that offers a service, as an SRV record names it. RFC 2782.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceHost {
    /// Its name.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) port: u16,
}

/// Asks the name servers of the system, or those that are configured.
#[derive(Clone)]
pub(crate) struct Dns {
    resolver: TokioResolver,
    random: Random,
}

impl Dns {
    /// A resolver of its own cache; without `name_servers` those of the system.
    pub(crate) fn new(name_servers: &[SocketAddr], random: Random) -> Result<Self, Error> {
        let (config, options) = if name_servers.is_empty() {
            read_system_conf().map_err(|error| Error::Setup(Box::new(error)))?
        } else {
            (asking(name_servers), ResolverOpts::default())
        };
        Self::with(config, options, random)
    }

    fn with(config: ResolverConfig, mut options: ResolverOpts, random: Random) -> Result<Self, Error> {
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = NAMES_CACHED;
        // Names of servers and links are absolute: they are not looked for in the search domains of the machine.
        let config = ResolverConfig::from_parts(None, Vec::new(), config.name_servers().to_vec());
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder.with_options(options).build().map_err(|error| Error::Setup(Box::new(error)))?;
        Ok(Self { resolver, random })
    }

    /// The addresses of a name, by AAAA, A and CNAME records; none when it has none.
    pub(crate) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        match self.resolver.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().take(HOSTS_MAX).collect()),
            Err(error) if error.is_no_records_found() => Ok(Vec::new()),
            Err(error) => Err(failed(name, error)),
        }
    }

    /// The hosts of a service such as `_matrix-fed._tcp.example.org`, in the order in which to try them; none when it has no record.
    pub(crate) async fn service(&self, name: &str) -> Result<Vec<ServiceHost>, Error> {
        let found = match self.resolver.srv_lookup(name).await {
            Ok(found) => found,
            Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
            Err(error) => return Err(failed(name, error)),
        };
        let records = found.answers().iter().filter_map(|record| match &record.data {
            // A target of "." says that the service is decidedly not there.
            RData::SRV(srv) if !srv.target.is_root() => {
                let name = srv.target.to_utf8().trim_end_matches('.').to_owned();
                Some((srv.priority, srv.weight, ServiceHost { name, port: srv.port }))
            }
            _ => None,
        });
        Ok(in_order(records.take(HOSTS_MAX).collect(), &self.random))
    }
}

fn asking(name_servers: &[SocketAddr]) -> ResolverConfig {
    let servers = name_servers.iter().map(|address| {
        let with_port = |mut connection: ConnectionConfig| {
            connection.port = address.port();
            connection
        };
        let connections = vec![with_port(ConnectionConfig::udp()), with_port(ConnectionConfig::tcp())];
        NameServerConfig::new(address.ip(), true, connections)
    });
    ResolverConfig::from_name_servers(servers.collect())
}

fn failed(name: &str, error: NetError) -> Error {
    Error::Name { name: name.to_owned(), source: Box::new(error) }
}

/// Lowest priority first; within one, by chance as their weights say. RFC 2782, "Usage rules".
fn in_order(mut records: Vec<(u16, u16, ServiceHost)>, random: &Random) -> Vec<ServiceHost> {
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.iter().map(|(priority, ..)| *priority).min() {
        let total: u64 = weights(&records, priority).sum();
        let mut drawn = random.number() % (total + 1);
        let chosen = records.iter().position(|(of, weight, _)| {
            let is_it = *of == priority && drawn <= u64::from(*weight);
            drawn = if *of == priority { drawn.saturating_sub(u64::from(*weight)) } else { drawn };
            is_it
        });
        let first = records.iter().position(|(of, ..)| *of == priority);
        let Some(chosen) = chosen.or(first) else { break };
        ordered.push(records.swap_remove(chosen).2);
    }
    ordered
}

fn weights(records: &[(u16, u16, ServiceHost)], priority: u16) -> impl Iterator<Item = u64> {
    records.iter().filter(move |(of, ..)| *of == priority).map(|(_, weight, _)| u64::from(*weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_by_priority_then_by_weight() {
        let host = |name: &str| ServiceHost { name: name.to_owned(), port: 1 };
        let records = || vec![(2, 5, host("last")), (1, 1, host("light")), (1, 9, host("heavy"))];
        let random = Random::seeded(1);
        let mut heavy_first = 0;
        for _ in 0..1_000 {
            let ordered = in_order(records(), &random);
            assert_eq!(ordered.len(), 3);
            assert_eq!(ordered[2].name, "last");
            heavy_first += i32::from(ordered[0].name == "heavy");
        }
        assert!((750..950).contains(&heavy_first), "{heavy_first}");
    }

    /// A machine in `corp.test` must not find `printer.corp.test` for somebody who speaks of a server `printer`.
    #[tokio::test]
    async fn names_are_not_looked_for_in_the_search_domains_of_the_machine() {
        let server = crate::testing::TestDns::start().await;
        server.add_address("printer.corp.test", [127, 0, 0, 1].into());
        let search = vec!["corp.test.".parse().unwrap()];
        let mut config = asking(&[server.address()]);
        config = ResolverConfig::from_parts(None, search, config.name_servers().to_vec());
        let dns = Dns::with(config, ResolverOpts::default(), Random::seeded(1)).unwrap();
        assert_eq!(dns.addresses("printer.corp.test").await.unwrap().len(), 1);
        assert!(dns.addresses("printer").await.unwrap().is_empty());
    }

    #[test]
    fn hosts_without_weight_come_too() {
        let host = |name: &str| ServiceHost { name: name.to_owned(), port: 1 };
        let ordered = in_order(vec![(0, 0, host("a")), (0, 0, host("b"))], &Random::seeded(1));
        assert_eq!(ordered.len(), 2);
    }
}
