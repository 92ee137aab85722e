//! The way from a client to its server, which a test can change: it loses requests and answers, and puts words into the server's mouth.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use ruma::OwnedRoomId;
use serde_json::Value;
use test_kit::{Http, TestServer};
use tokio::net::TcpListener;

use crate::people::{Person, encrypted_room};

type Alter = Box<dyn FnMut(&str, &mut Value) + Send>;

/// A server's other address.
pub(crate) struct Relay {
    address: String,
    state: Arc<Mutex<State>>,
}

struct State {
    server: Http,
    /// Requests whose path has this in it are lost on the way.
    lost: Option<&'static str>,
    /// Answers to requests whose path has this in it are lost on the way back.
    unanswered: Option<&'static str>,
    /// Requests whose path has this in it are refused by this status and error code.
    refused: Option<(&'static str, u16, &'static str)>,
    alter: Option<Alter>,
    seen: Vec<Seen>,
}

/// A request that came by.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) body: Value,
}

impl Relay {
    /// Another address of this server.
    pub(crate) async fn to(server: &TestServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = State {
            server: server.http().clone(),
            lost: None,
            unanswered: None,
            refused: None,
            alter: None,
            seen: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        tokio::spawn({
            let state = state.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let state = state.clone();
                    let service = service_fn(move |request| relay(state.clone(), request));
                    // An error of the service ends the connection without an answer.
                    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                }
            }
        });
        Self { address, state }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The server was restarted, so it is at another port.
    pub(crate) fn follow(&self, server: &TestServer) {
        self.state().server = server.http().clone();
    }

    /// Loses requests whose path has `part` in it, until [`heal`](Self::heal).
    pub(crate) fn lose(&self, part: &'static str) {
        self.state().lost = Some(part);
    }

    /// Loses the answers to requests whose path has `part` in it, until [`heal`](Self::heal).
    pub(crate) fn lose_answers_to(&self, part: &'static str) {
        self.state().unanswered = Some(part);
    }

    /// Refuses requests whose path has `part` in it, until [`heal`](Self::heal).
    pub(crate) fn refuse(&self, part: &'static str, status: u16, code: &'static str) {
        self.state().refused = Some((part, status, code));
    }

    /// Changes what the server answers: `alter` is given the path and the body.
    pub(crate) fn alter(&self, alter: impl FnMut(&str, &mut Value) + Send + 'static) {
        self.state().alter = Some(Box::new(alter));
    }

    /// Carries everything as it is.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        (state.lost, state.unanswered, state.refused, state.alter) = (None, None, None, None);
    }

    /// The requests so far whose path has `part` in it, the lost ones included.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        self.state().seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Why there is no answer.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lost on the way")
    }
}

impl std::error::Error for Lost {}

async fn relay(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Lost> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let body = body.collect().await.map_err(|_| Lost)?.to_bytes();
    let server = {
        let mut state = state.lock().unwrap();
        let seen = Seen { path: path.clone(), body: serde_json::from_slice(&body).unwrap_or_default() };
        state.seen.push(seen);
        if state.lost.is_some_and(|part| path.contains(part)) {
            return Err(Lost);
        }
        if let Some((_, status, code)) = state.refused.filter(|(part, ..)| path.contains(part)) {
            let body = serde_json::json!({ "errcode": code, "error": "refused on the way" }).to_string();
            return Ok(Response::builder().status(status).body(Full::new(body.into())).expect("a response"));
        }
        state.server.clone()
    };
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let token = header(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    let sent = server.send(parts.method.as_str(), path.as_bytes(), token, header(header::CONTENT_TYPE), body).await;
    let answer = sent.map_err(|_| Lost)?;
    let mut state = state.lock().unwrap();
    if state.unanswered.is_some_and(|part| path.contains(part)) {
        return Err(Lost);
    }
    let mut bytes = answer.bytes.clone();
    if let Some(alter) = &mut state.alter
        && answer.status == StatusCode::OK
    {
        let mut body = answer.json();
        alter(&path, &mut body);
        bytes = body.to_string().into();
    }
    let response = Response::builder().status(answer.status).header(header::CONTENT_TYPE, answer.content_type);
    Ok(response.body(Full::new(bytes)).expect("a response"))
}

/// Alice, whose traffic goes through a relay, and bob, whose does not, in an encrypted room.
pub(crate) async fn two_and_a_relay() -> (TestServer, Relay, Person, Person, OwnedRoomId) {
    let server = TestServer::start().await;
    let relay = Relay::to(&server).await;
    let alice = Person::by_way_of(relay.address(), server.user("alice").await).await;
    let bob = Person::new(&server, "bob").await;
    let room = encrypted_room(&alice, &[&bob]).await;
    (server, relay, alice, bob, room)
}
