//! What stands between a device and its server: it keeps what it carried, holds back what it is told to, and stays while the server restarts.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// Where a server is at present.
pub(crate) type Upstream = Arc<Mutex<String>>;

/// Which requests wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Nothing,
    /// Those that send to-device messages.
    ToDevice,
    /// All: the device is offline. What it asked before gets no answer either.
    All,
}

impl Hold {
    fn covers(self, path: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::ToDevice => path.contains("/sendToDevice/"),
            Self::All => true,
        }
    }
}

/// The way of one device to its server.
pub(crate) struct Gate {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    upstream: Upstream,
    hold: watch::Sender<Hold>,
    /// How many requests wait.
    waiting: watch::Sender<usize>,
    /// What came, as path and body.
    requests: Mutex<Vec<(String, Bytes)>>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Gate {
    /// One to this server, on a port of its own.
    pub(crate) async fn to(upstream: Upstream) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let state = Arc::new(State {
            upstream,
            hold: watch::Sender::new(Hold::Nothing),
            waiting: watch::Sender::new(0),
            requests: Mutex::default(),
            // A connection each: one that is kept breaks when the server restarts.
            client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(HttpConnector::new()),
        });
        let address = listener.local_addr().expect("a bound socket has an address");
        Self { address, state: state.clone(), task: tokio::spawn(serve(listener, state)) }
    }

    /// What the client takes for its server.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets these requests wait from now on, and others no longer.
    pub(crate) fn hold(&self, hold: Hold) {
        self.state.hold.send_replace(hold);
    }

    /// Waits until a request waits.
    pub(crate) async fn holds_something(&self) {
        let _ = self.state.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }

    /// How many requests with this in their path and this in their body came.
    pub(crate) fn count(&self, path: &str, body: &[u8]) -> usize {
        let requests = self.state.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |(its_path, its_body): &&(String, Bytes)| its_path.contains(path) && contains(its_body, body);
        requests.iter().filter(fits).count()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            // An error ends the connection, as a server does that is not there.
            let service = service_fn(|request| {
                let state = state.clone();
                async move { state.carry(request).await }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl State {
    async fn carry(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, String> {
        let (mut head, body) = request.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        let path = head.uri.path().to_owned();
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push((path.clone(), body.clone()));
        self.pass(&path).await;
        let upstream = self.upstream.lock().unwrap_or_else(PoisonError::into_inner).clone();
        head.uri = format!("{upstream}{}", head.uri).parse::<Uri>().map_err(|error| error.to_string())?;
        for name in [http::header::HOST, http::header::TRANSFER_ENCODING] {
            head.headers.remove(name);
        }
        let answer = self.client.request(Request::from_parts(head, Full::from(body))).await;
        // What was asked before the device went offline is not answered before it is back.
        if *self.hold.borrow() == Hold::All {
            self.pass(&path).await;
        }
        let (mut head, body) = answer.map_err(|error| error.to_string())?.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        head.headers.remove(http::header::TRANSFER_ENCODING);
        Ok(Response::from_parts(head, Full::from(body)))
    }

    /// Waits while such requests are held.
    async fn pass(&self, path: &str) {
        let mut hold = self.hold.subscribe();
        if !hold.borrow_and_update().covers(path) {
            return;
        }
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _ = hold.wait_for(|hold| !hold.covers(path)).await;
        self.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use test_kit::{Http, TestServer, register};

    use super::*;

    #[tokio::test]
    async fn a_gate_keeps_what_it_carries_and_lets_who_is_offline_wait() {
        let server = TestServer::start().await;
        let gate = Gate::to(Arc::new(Mutex::new(server.http().base().to_owned()))).await;
        let alice = register(&Http::new(&gate.url()), "alice").await;
        assert_eq!((gate.count("/register", b"alice's password"), gate.count("/register", b"bob's password")), (1, 0));
        gate.hold(Hold::All);
        let asked = tokio::spawn(async move { alice.get("/account/whoami").await });
        gate.holds_something().await;
        assert!(!asked.is_finished());
        gate.hold(Hold::ToDevice);
        assert_eq!(asked.await.expect("no panic").ok()["user_id"], json!("@alice:localhost"));
        server.shutdown().await;
    }
}
