//! Accepts connections and serves requests on them.

use std::{convert::Infallible, fmt, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, response::IntoResponse as _};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
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
    Error, client_address,
    config::{ListenerConfig, Network},
    tls,
};

/// Connections that the kernel keeps for us until we accept them.
const BACKLOG: u32 = 1_024;

/// Longest that a client may take to agree on TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest that a client may take for the head of a request; a connection that asks for nothing is closed after it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// Largest head of a request, and what a connection buffers at most, in bytes. An idle one keeps its first 8 KiB.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Most requests at once on an HTTP/2 connection.
const STREAMS_MAX: u32 = 100;

/// How often an HTTP/2 connection is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// Wait after the machine refused to give another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    http: Arc<auto::Builder<TokioExecutor>>,
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
}

impl Bound {
    /// Takes the address. Nobody can connect yet.
    pub(crate) fn bind(config: &ListenerConfig) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address: config.address, source };
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
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
            http: Arc::new(http_builder()),
        };
        Ok((Listener { listener, connections }, address))
    }
}

fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER_BYTES_MAX);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(BUFFER_BYTES_MAX as u32);
    http
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
                    let connection = self.connections.clone().serve(stream, peer, router.clone(), shared.stop.clone());
                    let abort = shared.abort.clone();
                    shared.tasks.spawn(async move {
                        tokio::select! {
                            () = connection => {}
                            () = abort.cancelled() => {}
                        }
                        drop(permit);
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
    async fn serve(self, stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
        // Answers are written whole: waiting for more to send would only make them late.
        let _ = stream.set_nodelay(true);
        match self.tls.clone() {
            None => self.serve_http(stream, peer, router, stop).await,
            Some(tls) => match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.serve_http(stream, peer, router, stop).await,
                Ok(Err(error)) => debug!(%error, "a client did not agree on TLS"),
                Err(_) => debug!("a client did not agree on TLS in time"),
            },
        }
    }

    async fn serve_http<I>(self, stream: I, peer: SocketAddr, router: Router, stop: CancellationToken)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (trusted_proxies, refuse_proxies) = (self.trusted_proxies, self.refuse_proxies);
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            let client = client_address::of_client(peer.ip(), request.headers(), &trusted_proxies);
            request.extensions_mut().insert(ClientAddress(Some(client)));
            let refused = refuse_proxies && client_address::is_forwarded(request.headers());
            let mut router = router.clone();
            async move {
                if refused {
                    return Ok::<_, Infallible>(refuse_proxy().into_response());
                }
                router.call(request).await
            }
        });
        let mut connection = pin!(self.http.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                // Requests in flight are answered, then the connection ends.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(error, "a connection ended with an error");
        }
    }
}

fn refuse_proxy() -> MatrixError {
    MatrixError::forbidden(
        "this server is configured for its own machine alone, where anyone may register, but a proxy forwards to it: set \
         `server.names`, `listeners.trusted_proxies` and `accounts.registration` in its configuration",
    )
}
