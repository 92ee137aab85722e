//! The resolvers of the HTTP clients: what they give has passed the guard, whatever the name server says from one moment to the next.

use std::{net::SocketAddr, sync::Arc};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::{Error, dns::Dns, guard::Guard};

/// A service by whose SRV records hosts are found where a URL has no port.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// The services whose records count, the first that has any: `_matrix-fed._tcp`.
    pub names: &'static [&'static str],
    /// The port of a host without such a record.
    pub port_default: u16,
}

/// Resolves the host of a URL.
#[derive(Clone)]
pub(crate) struct Guarded {
    pub(crate) dns: Dns,
    pub(crate) guard: Arc<Guard>,
    /// By whose records hosts are found; without, by their addresses alone.
    pub(crate) service: Option<Service>,
    /// The address of every host, which has passed the guard.
    pub(crate) fixed: Option<SocketAddr>,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = match (this.fixed, this.service) {
                (Some(address), _) => Ok(vec![address]),
                (None, Some(service)) => this.by_service(name.as_str(), service).await,
                (None, None) => this.by_address(name.as_str(), 0).await,
            };
            match found {
                Ok(addresses) => Ok(Box::new(addresses.into_iter()) as Addrs),
                Err(error) => Err(error.into()),
            }
        })
    }
}

impl Guarded {
    /// The addresses of a host, those that may be connected to; port zero stands for that of the URL.
    pub(crate) async fn by_address(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
        let found = self.dns.addresses(name).await?;
        if found.is_empty() {
            return Err(Error::NoAddress { name: name.to_owned() });
        }
        let allowed: Vec<SocketAddr> =
            found.into_iter().filter(|ip| self.guard.allows(*ip)).map(|ip| SocketAddr::new(ip, port)).collect();
        if allowed.is_empty() {
            return Err(Error::NotPublic { host: name.to_owned() });
        }
        Ok(allowed)
    }

    /// The addresses of all hosts of a service, in their order; without a record those of the name itself.
    pub(crate) async fn by_service(&self, name: &str, service: Service) -> Result<Vec<SocketAddr>, Error> {
        for record in service.names {
            let hosts = self.dns.service(&format!("{record}.{name}")).await?;
            let (mut addresses, mut failure) = (Vec::new(), None);
            for host in &hosts {
                match self.by_address(&host.name, host.port).await {
                    Ok(found) => addresses.extend(found),
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                _ if !addresses.is_empty() => return Ok(addresses),
                Some(error) => return Err(error),
                None => {}
            }
        }
        self.by_address(name, service.port_default).await
    }
}
