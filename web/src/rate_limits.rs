//! How many requests a user or an address may make.

use std::{
    hash::Hash,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock::Clock as GovernorClock, middleware::NoOpMiddleware, nanos::Nanos,
    state::keyed::DashMapStateStore,
};
use http::request::Parts;
use model::{Clock, network_of};
use ruma::OwnedUserId;

use crate::{ClientAddress, MatrixError};

/// Most users or addresses that are counted at once. Beyond it those that have been quiet are forgotten, then new ones share a count.
const KEYS_MAX: usize = 100_000;

/// A steady rate and what may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second, in the long run.
    pub per_second: NonZeroU32,
    /// Requests at once after a pause.
    pub burst: NonZeroU32,
}

/// The limits in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitOptions {
    /// Of one user: what changes something, and what the specification limits.
    pub user: Rate,
    /// Of one address: the same for requests without a token, such as logging in and registering.
    pub address: Rate,
    /// Of one address: requests without a token that only read, and those with a token that is not valid.
    pub address_reads: Rate,
    /// Of one other server: requests that it has signed.
    pub server: Rate,
    /// Of one address, and in the name of one other server: requests that are not known to be signed.
    pub stranger: Rate,
}

/// The counters. Cheap to clone; clones share them. They belong to this process.
#[derive(Clone)]
pub struct RateLimits(Option<Arc<Limiters>>);

struct Limiters {
    users: Limiter<OwnedUserId>,
    addresses: Limiter<IpAddr>,
    address_reads: Limiter<IpAddr>,
    servers: Limiter<String>,
    strangers: Limiter<IpAddr>,
    strange_servers: Limiter<String>,
}

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// It changes something, or the specification limits it.
    Change,
    /// It only reads: free for whoever has a token, because clients ask for much at once when they start.
    Read,
}

struct Limiter<K: Hash + Eq + Clone> {
    counts: RateLimiter<K, DashMapStateStore<K>, ModelClock, NoOpMiddleware<Nanos>>,
    overflow: K,
    /// When quiet keys were last forgotten.
    cleaned_at_ms: AtomicI64,
}

/// Whose requests count together: put into a request by the one who authenticated it.
#[derive(Clone, Debug)]
pub(crate) struct RateLimitedUser(pub(crate) Option<OwnedUserId>);

impl RateLimits {
    /// Counts from now on by `options`; without, nothing is limited.
    #[must_use]
    pub fn new(options: Option<RateLimitOptions>, clock: &Clock) -> Self {
        Self(options.map(|options| {
            let nobody = ruma::owned_user_id!("@overflow:server.invalid");
            let users = Limiter::new(options.user, clock, nobody);
            let addresses = Limiter::new(options.address, clock, IpAddr::from([0, 0, 0, 0]));
            let address_reads = Limiter::new(options.address_reads, clock, IpAddr::from([0, 0, 0, 0]));
            let servers = Limiter::new(options.server, clock, String::new());
            let strangers = Limiter::new(options.stranger, clock, IpAddr::from([0, 0, 0, 0]));
            let strange_servers = Limiter::new(options.stranger, clock, String::new());
            Arc::new(Limiters { users, addresses, address_reads, servers, strangers, strange_servers })
        }))
    }

    /// No limits.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Counts a request whose token, if it has one, was found valid.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` when its user, or for want of one its address, has made too many.
    pub(crate) fn check(&self, parts: &Parts, cost: Cost) -> Result<(), MatrixError> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        let outcome = match (parts.extensions.get(), cost) {
            (Some(RateLimitedUser(Some(user_id))), Cost::Change) => limiters.users.check(user_id),
            // An application service may not be limited.
            (Some(RateLimitedUser(_)), _) => Ok(()),
            (None, Cost::Change) => limiters.addresses.check_address(parts),
            (None, Cost::Read) => limiters.address_reads.check_address(parts),
        };
        outcome.map_err(MatrixError::limit_exceeded)
    }

    /// Counts a request that changes something, for endpoints that ruma does not know.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` when its user, or for want of one its address, has made too many.
    pub fn check_change(&self, parts: &Parts) -> Result<(), MatrixError> {
        self.check(parts, Cost::Change)
    }

    /// Counts a request that another server has signed; `site` is what counts as one server.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` when it has made too many.
    pub fn check_server(&self, site: &str) -> Result<(), MatrixError> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        limiters.servers.check(&site.to_owned()).map_err(MatrixError::limit_exceeded)
    }

    /// Counts a request that another server is said to have signed, when that has to be looked into, or was found wrong.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` when its address has made too many.
    pub fn check_stranger(&self, parts: &Parts) -> Result<(), MatrixError> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        limiters.strangers.check_address(parts).map_err(MatrixError::limit_exceeded)
    }

    /// Counts a request in the name of a server that has to be asked for its keys; `site` is what counts as one server.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` when too many were made in its name.
    pub fn check_strange_server(&self, site: &str) -> Result<(), MatrixError> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        limiters.strange_servers.check(&site.to_owned()).map_err(MatrixError::limit_exceeded)
    }

    /// Counts a request that is refused, because it has no valid token.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` when its address has made too many: it is then told so instead.
    pub(crate) fn check_refused(&self, parts: &Parts) -> Result<(), MatrixError> {
        let Some(limiters) = &self.0 else { return Ok(()) };
        limiters.address_reads.check_address(parts).map_err(MatrixError::limit_exceeded)
    }
}

impl Limiter<IpAddr> {
    /// Counts for the address of the request, if it has one.
    fn check_address(&self, parts: &Parts) -> Result<(), Duration> {
        match parts.extensions.get() {
            Some(ClientAddress(Some(address))) => self.check(&network_of(*address)),
            _ => Ok(()),
        }
    }
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    fn new(rate: Rate, clock: &Clock, overflow: K) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        Self {
            counts: RateLimiter::new(quota, DashMapStateStore::default(), ModelClock(clock.clone())),
            overflow,
            cleaned_at_ms: AtomicI64::new(0),
        }
    }

    fn check(&self, key: &K) -> Result<(), Duration> {
        let now_ms = self.counts.clock().0.now_ms();
        // Forgetting walks through all keys: not for each request of a flood.
        if self.counts.len() > KEYS_MAX && self.cleaned_at_ms.swap(now_ms, Ordering::Relaxed) / 1000 != now_ms / 1000 {
            self.counts.retain_recent();
        }
        let key = if self.counts.len() > KEYS_MAX { &self.overflow } else { key };
        self.counts.check_key(key).map_err(|not_until| not_until.wait_time_from(self.counts.clock().now()))
    }
}

/// The house's clock as governor wants it.
#[derive(Clone, Debug)]
struct ModelClock(Clock);

impl GovernorClock for ModelClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Duration::from_millis(u64::try_from(self.0.now_ms()).unwrap_or(0)).into()
    }
}
