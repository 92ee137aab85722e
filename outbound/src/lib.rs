//! The one way to the outside: HTTP requests and DNS, guarded.
//!
//! Nothing else opens connections to hosts that strangers name. Addresses that are not public are refused, as literals, after a look-up and
//! after each redirect; answers are bounded in size and time; proxies of the environment are not used.

mod dns;
mod download;
mod error;
mod guard;
mod resolver;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ipnet::IpNet;
use model::Random;
use reqwest::redirect;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::CertificateDer;
use url::{Host, Url};

use self::{dns::Dns, guard::Guard, resolver::Guarded};
pub use self::{download::Download, error::Error, resolver::Service};

/// How long connecting may take, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Unused connections that are kept to one host.
const IDLE_PER_HOST: usize = 4;

/// Redirects that are followed where they are followed at all.
const REDIRECTS_MAX: usize = 5;

/// What an answer may be at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the request to the end of the answer.
    pub timeout: Duration,
    /// Of the body, after decompression, in bytes.
    pub body_bytes_max: usize,
}

/// How the outside is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ranges that may be connected to though they are not public.
    pub allowed_ranges: Vec<IpNet>,
    /// Public ranges that may not.
    pub denied_ranges: Vec<IpNet>,
    /// The name servers; those of the system if there are none.
    pub name_servers: Vec<SocketAddr>,
    /// Certificate authorities that are trusted beside those of the system.
    pub certificate_authorities: Vec<CertificateDer<'static>>,
    /// What requests say of their maker.
    pub user_agent: String,
    /// Where chance comes from.
    pub random: Random,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Bytes,
}

/// Makes requests to the outside. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    guard: Arc<Guard>,
    dns: Dns,
    tls: ClientConfig,
    user_agent: HeaderValue,
    /// Follows redirects.
    pages: reqwest::Client,
}

/// Makes requests whose hosts are found by the SRV records of a service. Cheap to clone.
#[derive(Clone)]
pub struct ServiceClient {
    guard: Arc<Guard>,
    by_service: reqwest::Client,
    by_address: reqwest::Client,
}

impl Outbound {
    /// A way to the outside.
    ///
    /// # Errors
    ///
    /// [`Error::Setup`] when the system has neither certificate authorities nor name servers, or the options make no sense.
    pub fn new(options: Options) -> Result<Self, Error> {
        let setup = |text: String| Error::Setup(text.into());
        let guard = Arc::new(Guard::new(options.allowed_ranges, options.denied_ranges));
        let dns = Dns::new(&options.name_servers, options.random)?;
        let tls = tls(&options.certificate_authorities)?;
        let user_agent = HeaderValue::from_str(&options.user_agent).map_err(|error| setup(error.to_string()))?;
        let resolver = Guarded { dns: dns.clone(), guard: guard.clone(), service: None, fixed: None };
        let hops = guard.clone();
        // A literal never comes to the resolver: each hop is looked at here.
        let policy = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > REDIRECTS_MAX {
                return attempt.error("too many redirects");
            }
            // Who asked over TLS wants an answer that came over TLS.
            let is_weaker = attempt.previous().last().is_some_and(|from| from.scheme() == "https")
                && attempt.url().scheme() != "https";
            if is_weaker {
                return attempt.error("a redirect from https to http");
            }
            match check_host(&hops, attempt.url()) {
                Ok(_) => attempt.follow(),
                Err(error) => attempt.error(error),
            }
        });
        let pages = client(&tls, &user_agent, resolver, policy)?;
        Ok(Self { guard, dns, tls, user_agent, pages })
    }

    /// A client that finds hosts by the records of a service, and follows no redirects.
    ///
    /// # Errors
    ///
    /// [`Error::Setup`].
    pub fn by_service(&self, service: Service) -> Result<ServiceClient, Error> {
        let resolver = |service| Guarded { service, ..self.resolver() };
        let of = |resolver| client(&self.tls, &self.user_agent, resolver, redirect::Policy::none());
        Ok(ServiceClient {
            guard: self.guard.clone(),
            by_service: of(resolver(Some(service)))?,
            by_address: of(resolver(None))?,
        })
    }

    /// A client that connects to one address, if that may be connected to, whatever a name says.
    ///
    /// # Errors
    ///
    /// [`Error::NotPublic`], [`Error::Setup`].
    pub fn at(&self, address: SocketAddr) -> Result<ServiceClient, Error> {
        if !self.guard.allows(address.ip()) {
            return Err(Error::NotPublic { host: address.to_string() });
        }
        let resolver = Guarded { fixed: Some(address), ..self.resolver() };
        let client = client(&self.tls, &self.user_agent, resolver, redirect::Policy::none())?;
        Ok(ServiceClient { guard: self.guard.clone(), by_service: client.clone(), by_address: client })
    }

    /// The addresses of a host, those that may be connected to.
    ///
    /// # Errors
    ///
    /// [`Error::NoAddress`], [`Error::NotPublic`], [`Error::Name`].
    pub async fn addresses_of(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
        self.resolver().by_address(host, port).await
    }

    /// The same of the hosts of a service, in their order.
    ///
    /// # Errors
    ///
    /// As [`Outbound::addresses_of`].
    pub async fn addresses_of_service(&self, host: &str, service: Service) -> Result<Vec<SocketAddr>, Error> {
        self.resolver().by_service(host, service).await
    }

    fn resolver(&self) -> Guarded {
        Guarded { dns: self.dns.clone(), guard: self.guard.clone(), service: None, fixed: None }
    }

    /// Gets what is at `url`; redirects are followed, each to a host that may be connected to.
    ///
    /// # Errors
    ///
    /// Those of [`Error`].
    pub async fn get(&self, url: &Url, bounds: Bounds) -> Result<Answer, Error> {
        let host = check_host(&self.guard, url)?;
        let request = self.pages.get(url.clone()).timeout(bounds.timeout).build();
        let request = request.map_err(|error| Error::BadRequest(error.to_string()))?;
        execute(&self.pages, request, &host, bounds).await
    }
}

impl ServiceClient {
    /// Sends a request to the host of its URL, which records find if `by_service`, and its address and port otherwise. A `Host` header that
    /// it has is kept.
    ///
    /// # Errors
    ///
    /// Those of [`Error`].
    pub async fn send(&self, request: http::Request<Bytes>, by_service: bool, bounds: Bounds) -> Result<Answer, Error> {
        let (request, host) = self.request(request, bounds.timeout)?;
        let client = if by_service { &self.by_service } else { &self.by_address };
        execute(client, request, &host, bounds).await
    }

    /// The request as it is sent, and its host, if that may be asked.
    fn request(&self, request: http::Request<Bytes>, timeout: Duration) -> Result<(reqwest::Request, String), Error> {
        let bad = |error: &dyn std::fmt::Display| Error::BadRequest(error.to_string());
        let url = Url::parse(&request.uri().to_string()).map_err(|error| bad(&error))?;
        let host = check_host(&self.guard, &url)?;
        // `0x7f.1` is a name by its letters and an address to whoever connects: what is decided by names would not hold.
        if matches!(url.host(), Some(Host::Ipv4(_))) && request.uri().host() != Some(&*host) {
            return Err(bad(&"an address that does not look like one"));
        }
        let mut request = reqwest::Request::try_from(request).map_err(|error| bad(&error))?;
        *request.timeout_mut() = Some(timeout);
        Ok((request, host))
    }
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ServiceClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceClient").field("guard", &self.guard).finish_non_exhaustive()
    }
}

/// Who is trusted: the authorities of the system, and those of the configuration.
fn tls(more: &[CertificateDer<'static>]) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    for certificate in more {
        roots.add(certificate.clone()).map_err(|error| Error::Setup(Box::new(error)))?;
    }
    if roots.is_empty() {
        let text = "there are no certificate authorities: install the system's (package ca-certificates)";
        return Err(Error::Setup(text.into()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Setup(Box::new(error)))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn client(
    tls: &ClientConfig,
    user_agent: &HeaderValue,
    resolver: Guarded,
    redirects: redirect::Policy,
) -> Result<reqwest::Client, Error> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .user_agent(user_agent.clone())
        .dns_resolver(Arc::new(resolver))
        .redirect(redirects)
        .no_proxy()
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .build()
        .map_err(|error| Error::Setup(Box::new(error)))
}

/// The host of a URL, if it is one that may be asked as far as the URL alone tells.
fn check_host(guard: &Guard, url: &Url) -> Result<String, Error> {
    if !matches!(url.scheme(), "https" | "http") {
        return Err(Error::BadRequest(format!("`{}` is neither `https` nor `http`", url.scheme())));
    }
    let host = url.host().ok_or_else(|| Error::BadRequest("a URL without a host".to_owned()))?;
    let literal = match &host {
        Host::Ipv4(address) => Some((*address).into()),
        Host::Ipv6(address) => Some((*address).into()),
        Host::Domain(_) => None,
    };
    if literal.is_some_and(|address| !guard.allows(address)) {
        return Err(Error::NotPublic { host: host.to_string() });
    }
    Ok(host.to_string())
}

async fn execute(
    client: &reqwest::Client,
    request: reqwest::Request,
    host: &str,
    bounds: Bounds,
) -> Result<Answer, Error> {
    let mut response = client.execute(request).await.map_err(|error| unreachable(host, error))?;
    let too_large = || Error::TooLarge { host: host.to_owned(), bytes_max: bounds.body_bytes_max };
    let said = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if said.is_some_and(|bytes: usize| bytes > bounds.body_bytes_max) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(host, error))? {
        if body.len() + chunk.len() > bounds.body_bytes_max {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status: response.status(), headers: std::mem::take(response.headers_mut()), body: body.freeze() })
}

/// What our own resolver or redirect policy found is passed on; the rest is the host's.
fn unreachable(host: &str, error: reqwest::Error) -> Error {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        match cause.downcast_ref::<Error>() {
            Some(Error::NotPublic { host }) => return Error::NotPublic { host: host.clone() },
            Some(Error::NoAddress { name }) => return Error::NoAddress { name: name.clone() },
            _ => source = cause.source(),
        }
    }
    Error::Unreachable { host: host.to_owned(), source: Box::new(error.without_url()) }
}
