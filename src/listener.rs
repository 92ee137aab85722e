//! Accepts connections and serves requests on them.

use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service as _;
use tracing::{debug, warn};
use web::{ClientAddress, MatrixError};

use crate::{
    Error,
    address_limit::AddressLimit,
    client_address,
    client_stream::ClientStream,
    config::{ListenerConfig, Network},
    tls,
};

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: u32 = 1_024;

/// Largest head of a request, and what a connection buffers at most, in bytes. An idle one keeps its first 8 KiB.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Most requests at once on an HTTP/2 connection.
const STREAMS_MAX: u32 = 100;

/// How often an HTTP/2 connection is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// Wait after the machine refused to give another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client is waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Longest that it may take to agree on TLS.
    handshake: Duration,
    /// Longest that it may take for the head of a request; a connection that asks for nothing is closed after it.
    head: Duration,
    /// Longest that it may take nothing of an answer, which is in memory as long.
    write: Duration,
}

impl Patience {
    const DEFAULT: Self =
        Self { handshake: Duration::from_secs(10), head: Duration::from_secs(90), write: Duration::from_secs(60) };
}

/// Where a running server can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerAddress {
    /// Address and port, the port that was taken if the configuration says 0.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub is_tls: bool,
}

impl fmt::Display for ListenerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_tls { "https" } else { "http" }, self.address)
    }
}

/// An address that is ours already, but not open yet.
pub(crate) struct Bound {
    socket: TcpSocket,
    configured: SocketAddr,
    tls: Option<TlsAcceptor>,
    trusted_proxies: Vec<Network>,
}

/// A port that is open.
pub(crate) struct Listener {
    listener: TcpListener,
    connections: Connections,
}

/// What the connections of one listener share.
#[derive(Clone)]
struct Connections {
    tls: Option<TlsAcceptor>,
    trusted_proxies: Arc<[Network]>,
    refuse_proxies: bool,
    patience: Patience,
    http1: Arc<http1::Builder>,
    http2: Arc<http2::Builder<TokioExecutor>>,
}

/// What all listeners of a server share.
#[derive(Clone)]
pub(crate) struct Shared {
    /// Ends everything in order.
    pub(crate) stop: CancellationToken,
    /// Ends the connections that did not end in time.
    pub(crate) abort: CancellationToken,
    /// The tasks of listeners and connections.
    pub(crate) tasks: TaskTracker,
    /// One permit for each connection.
    pub(crate) connections: Arc<Semaphore>,
    /// The connections of each address.
    pub(crate) addresses: AddressLimit,
}

impl Bound {
    /// Takes the address. Nobody can connect yet.
    pub(crate) fn bind(config: &ListenerConfig) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address: config.address, source };
        let tls = tls::acceptor(&config.tls)?;
        let socket =
            if config.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(config.address).map_err(failed)?;
        Ok(Self { socket, configured: config.address, tls, trusted_proxies: config.trusted_proxies.clone() })
    }

    /// Opens the port. With `refuse_proxies`, what a proxy forwards is answered 403.
    pub(crate) fn listen(self, refuse_proxies: bool) -> Result<(Listener, ListenerAddress), Error> {
        let failed = |source| Error::Listen { address: self.configured, source };
        let is_tls = self.tls.is_some();
        let listener = self.socket.listen(BACKLOG).map_err(failed)?;
        let address = ListenerAddress { address: listener.local_addr().map_err(failed)?, is_tls };
        let connections = Connections {
            tls: self.tls,
            trusted_proxies: self.trusted_proxies.into(),
            refuse_proxies,
            patience: Patience::DEFAULT,
            http1: Arc::new(http1_builder(Patience::DEFAULT)),
            http2: Arc::new(http2_builder()),
        };
        Ok((Listener { listener, connections }, address))
    }
}

fn http1_builder(patience: Patience) -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1.timer(TokioTimer::new()).header_read_timeout(patience.head).max_buf_size(BUFFER_BYTES_MAX);
    http1
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(BUFFER_BYTES_MAX as u32);
    http2
}

impl Listener {
    /// Accepts connections until the server stops.
    pub(crate) async fn run(self, router: Router, shared: Shared) {
        loop {
            // The permit first: when all are taken, new clients wait in the kernel's queue.
            let accepted = async {
                let permit = Arc::clone(&shared.connections).acquire_owned().await.ok();
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = shared.stop.cancelled() => return,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let counted = if self.connections.is_free_of_limits(peer.ip()) {
                        None
                    } else {
                        let Some(counted) = shared.addresses.count(peer.ip()) else { continue };
                        Some(counted)
                    };
                    // On its own: a future that is moved into another one takes its place twice there.
                    let connection =
                        Box::pin(self.connections.clone().serve(stream, peer, router.clone(), shared.stop.clone()));
                    let abort = shared.abort.clone();
                    shared.tasks.spawn(async move {
                        tokio::select! {
                            () = connection => {}
                            () = abort.cancelled() => {}
                        }
                        drop((permit, counted));
                    });
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(%error, "cannot accept connections, trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether the error concerns the one connection only, and not the machine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl Connections {
    /// Whether the connections of this address are not its own: many clients are behind a proxy, and what is on this machine may be one.
    fn is_free_of_limits(&self, peer: IpAddr) -> bool {
        peer.to_canonical().is_loopback() || self.trusted_proxies.iter().any(|network| network.contains(peer))
    }

    async fn serve(self, stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
        // Answers are written whole: waiting for more to send would only make them late.
        let _ = stream.set_nodelay(true);
        let stream = ClientStream::new(stream, self.patience.write);
        match self.tls.clone() {
            None => self.serve_plain(stream, peer, router, stop).await,
            // Boxed, as HTTP/2 is: what is larger and not taken would be in the memory of each connection.
            Some(tls) => Box::pin(self.serve_tls(tls, stream, peer, router, stop)).await,
        }
    }

    async fn serve_plain(
        self,
        mut stream: ClientStream<TcpStream>,
        peer: SocketAddr,
        router: Router,
        stop: CancellationToken,
    ) {
        let start = tokio::select! {
            start = timeout(self.patience.head, stream.starts_http2()) => start,
            () = stop.cancelled() => return,
        };
        match start {
            Ok(Ok(true)) => Box::pin(self.serve_http2(stream, peer, router, stop)).await,
            Ok(Ok(false)) => self.serve_http1(stream, peer, router, stop).await,
            Ok(Err(error)) => debug!(%error, "a connection ended before a request"),
            Err(_) => debug!("a client asked for nothing in time"),
        }
    }

    async fn serve_tls(
        self,
        tls: TlsAcceptor,
        stream: ClientStream<TcpStream>,
        peer: SocketAddr,
        router: Router,
        stop: CancellationToken,
    ) {
        let agreed = tokio::select! {
            agreed = timeout(self.patience.handshake, tls.accept(stream)) => agreed,
            () = stop.cancelled() => return,
        };
        match agreed {
            // HTTP/2 over TLS is always agreed upon. RFC 9113, "Starting HTTP/2".
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Box::pin(self.serve_http2(stream, peer, router, stop)).await;
            }
            Ok(Ok(stream)) => self.serve_http1(stream, peer, router, stop).await,
            Ok(Err(error)) => debug!(%error, "a client did not agree on TLS"),
            Err(_) => debug!("a client did not agree on TLS in time"),
        }
    }

    async fn serve_http1<I>(self, stream: I, peer: SocketAddr, router: Router, stop: CancellationToken)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let http1 = Arc::clone(&self.http1);
        let service = service_fn(move |request| self.answer(request, peer, router.clone()));
        let mut connection = pin!(http1.serve_connection(TokioIo::new(stream), service).with_upgrades());
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                // Requests in flight are answered, then the connection ends.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(error = &error as &dyn StdError, "a connection ended with an error");
        }
    }

    async fn serve_http2<I>(self, stream: I, peer: SocketAddr, router: Router, stop: CancellationToken)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let http2 = Arc::clone(&self.http2);
        let service = service_fn(move |request| self.answer(request, peer, router.clone()));
        let mut connection = pin!(http2.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(error = &error as &dyn StdError, "a connection ended with an error");
        }
    }

    fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        mut router: Router,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        let mut request = request.map(Body::new);
        let client = client_address::of_client(peer.ip(), request.headers(), &self.trusted_proxies);
        request.extensions_mut().insert(ClientAddress(Some(client)));
        let refused = self.refuse_proxies && client_address::is_forwarded(request.headers());
        async move { if refused { Ok(refuse_proxy().into_response()) } else { router.call(request).await } }
    }
}

fn refuse_proxy() -> MatrixError {
    MatrixError::forbidden(
        "this server is configured for its own machine alone, where anyone may register, but a proxy forwards to it: set \
         `server.names`, `listeners.trusted_proxies` and `accounts.registration` in its configuration",
    )
}

#[cfg(test)]
mod tests;
