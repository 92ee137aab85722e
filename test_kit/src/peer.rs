//! Another server in the hands of a test: it says what the test wants, well-behaved or not.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use ::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use model::{KeyPair, Random};
use ruma::{
    CanonicalJsonObject, OwnedServerName,
    api::federation::authentication::XMatrix,
    serde::Base64,
    signatures::{KeyPair as _, sign_json},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{Answer, Authority, Http, PeerBody, http::decode, link::listen, peer_body::Given};

/// A server that a test drives: it listens on port 8448 of an address of its own, with a certificate for its name.
#[derive(Debug)]
pub struct Peer {
    name: OwnedServerName,
    address: IpAddr,
    key: KeyPair,
    said: Arc<Said>,
    task: JoinHandle<()>,
}

/// What it answers, and what it was asked.
#[derive(Debug, Default)]
struct Said {
    answers: Mutex<HashMap<String, (StatusCode, Bytes)>>,
    redirects: Mutex<HashMap<String, String>>,
    bodies: Mutex<HashMap<String, (StatusCode, PeerBody)>>,
    given: Arc<AtomicUsize>,
    asked: Mutex<Vec<Asked>>,
    responders: Responders,
}

/// What works answers out, by how the request begins.
#[derive(Default)]
struct Responders(Mutex<Vec<(String, Arc<Responder>)>>);

/// What it answers, as JSON; nothing if it does not know what is asked.
type Responder = dyn Fn(&Asked) -> Option<(u16, Bytes)> + Send + Sync;

impl Responders {
    async fn respond(&self, asked: Asked) -> Option<(StatusCode, Bytes)> {
        let mut responders = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        responders.retain(|(beginning, _)| asked.what.starts_with(beginning));
        let respond = move || responders.iter().find_map(|(_, responder)| responder(&asked));
        let (status, body) = tokio::task::spawn_blocking(respond).await.ok()??;
        Some((StatusCode::from_u16(status).expect("a status"), body))
    }
}

impl std::fmt::Debug for Responders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responders").finish_non_exhaustive()
    }
}

/// A request that a peer got.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Method and path with the query: `GET /_matrix/key/v2/server`.
    pub what: String,
    /// The `Host` header.
    pub host: String,
    /// The `Authorization` header.
    pub authorization: String,
    /// The body; null when it is no JSON.
    pub body: Value,
}

impl Peer {
    /// A peer with keys of its own, which it publishes.
    ///
    /// # Panics
    ///
    /// When `name` is no server name.
    pub async fn start(name: &str, authority: &Authority) -> Self {
        Self::at_port(8_448, name, authority).await
    }

    /// The same at another port: at 443 it is the web server of a name.
    ///
    /// # Panics
    ///
    /// When `name` is no server name.
    pub async fn at_port(port: u16, name: &str, authority: &Authority) -> Self {
        Self::on(listen(port).await, name, authority)
    }

    /// A peer whose name is its address and port 8448, so that who asks no DNS server finds it.
    ///
    /// # Panics
    ///
    /// When it has no address.
    pub async fn by_address(authority: &Authority) -> Self {
        let listener = listen(8_448).await;
        let name = listener.local_addr().expect("a bound socket has an address").to_string();
        Self::on(listener, &name, authority)
    }

    fn on(listener: TcpListener, name: &str, authority: &Authority) -> Self {
        let name = OwnedServerName::try_from(name).expect("a server name");
        let address = listener.local_addr().expect("a bound socket has an address").ip();
        let acceptor = authority.acceptor(&[name.host(), &address.to_string()]);
        let said = Arc::new(Said::default());
        let to_serve = said.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, said) = (acceptor.clone(), to_serve.clone());
                // What is answered is not to wait for more.
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(said.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let peer = Self { name, address, key: KeyPair::generate(&Random::system()), said, task };
        peer.answer("GET /_matrix/key/v2/server", 200, &peer.keys(&[&peer.key], &[]));
        peer
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &OwnedServerName {
        &self.name
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The key that signs for it.
    #[must_use]
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// Signs with another key from now on; gives the one before. It publishes what it did.
    pub fn set_key(&mut self, key: KeyPair) -> KeyPair {
        std::mem::replace(&mut self.key, key)
    }

    /// What it says of its keys: `current` ones, which sign it, and ended ones with their end.
    #[must_use]
    pub fn keys(&self, current: &[&KeyPair], old: &[(&KeyPair, i64)]) -> Value {
        let current_keys: serde_json::Map<String, Value> =
            current.iter().map(|key| (key.id().to_string(), json!({"key": key.public_key()}))).collect();
        let old_keys: serde_json::Map<String, Value> = old
            .iter()
            .map(|(key, end_ms)| (key.id().to_string(), json!({"key": key.public_key(), "expired_ts": end_ms})))
            .collect();
        let valid_until_ms = model::Clock::system().now_ms() + 24 * 3_600_000;
        let said = json!({
            "server_name": self.name, "verify_keys": current_keys, "old_verify_keys": old_keys,
            "valid_until_ts": valid_until_ms,
        });
        current.iter().fold(said, |said, key| self.sign(said, key))
    }

    /// The object with a signature of this server by `key`.
    ///
    /// # Panics
    ///
    /// When it is no object that can be signed.
    #[must_use]
    pub fn sign(&self, object: Value, key: &KeyPair) -> Value {
        let mut object: CanonicalJsonObject = serde_json::from_value(object).expect("canonical JSON");
        sign_json(self.name.as_str(), key, &mut object).expect("an object that can be signed");
        serde_json::to_value(&object).expect("JSON")
    }

    /// From now on it answers `what`, such as `GET /_matrix/key/v2/server`, with this; else with 404. With a `*` at its end it is how
    /// what is asked begins, with nothing percent-encoded.
    pub fn answer(&self, what: &str, status: u16, body: &Value) {
        let status = StatusCode::from_u16(status).expect("a status");
        self.said
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(what.to_owned(), (status, body.to_string().into()));
    }

    /// From now on it answers `what` with this body, whatever it is; `what` as in [`Peer::answer`], before which this counts.
    ///
    /// # Panics
    ///
    /// When it is no status.
    pub fn answer_with(&self, what: &str, status: u16, body: PeerBody) {
        let status = StatusCode::from_u16(status).expect("a status");
        self.said.bodies.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_owned(), (status, body));
    }

    /// Answers as before there were such bodies.
    pub fn end_answers_with(&self) {
        self.said.bodies.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many bytes of such bodies were taken from it, those that are on their way among them.
    #[must_use]
    pub fn given(&self) -> usize {
        self.said.given.load(Ordering::SeqCst)
    }

    /// From now on it answers `what` with a redirect to `location`; `what` as in [`Peer::answer`].
    pub fn redirect(&self, what: &str, location: &str) {
        let mut redirects = self.said.redirects.lock().unwrap_or_else(PoisonError::into_inner);
        redirects.insert(what.to_owned(), location.to_owned());
    }

    /// From now on it answers what begins so, such as `PUT /_matrix/federation/v2/invite/`, with what this makes of the request; it may wait.
    ///
    /// The newest of those that fit is taken, after what [`Peer::answer`] says.
    pub fn respond(&self, beginning: &str, responder: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static) {
        self.respond_ready(beginning, move |asked| {
            let (status, body) = responder(asked);
            Some((status, body.to_string().into()))
        });
    }

    /// The same with JSON as it is sent; what this has no answer for is left to what was there before.
    pub(crate) fn respond_ready(
        &self,
        beginning: &str,
        responder: impl Fn(&Asked) -> Option<(u16, Bytes)> + Send + Sync + 'static,
    ) {
        let mut responders = self.said.responders.0.lock().unwrap_or_else(PoisonError::into_inner);
        responders.insert(0, (beginning.to_owned(), Arc::new(responder)));
    }

    /// What it was asked so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.said.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the server `destination` at `http`, signed.
    ///
    /// # Panics
    ///
    /// When no answer comes.
    pub async fn ask(&self, http: &Http, destination: &str, method: &str, path: &str, body: &Value) -> Answer {
        let header = self.header(destination, method, path, body);
        http.request(method, path, Some(&header), body).await
    }

    /// The `Authorization` header of a request.
    ///
    /// # Panics
    ///
    /// When the request cannot be signed.
    #[must_use]
    pub fn header(&self, destination: &str, method: &str, path: &str, body: &Value) -> String {
        // As it is sent, like Synapse, which has a form also for what canonical JSON has none for.
        let content = (!body.is_null()).then(|| body.to_string());
        self.header_of_text(destination, method, path, content.as_deref())
    }

    /// The same for a body that is this text of canonical JSON.
    ///
    /// # Panics
    ///
    /// When `destination` is no server name.
    #[must_use]
    pub fn header_of_text(&self, destination: &str, method: &str, path: &str, content: Option<&str>) -> String {
        let destination = OwnedServerName::try_from(destination).expect("a server name");
        let rest = json!({"destination": destination, "method": method, "origin": self.name, "uri": path}).to_string();
        // `content` is the first of the fields by their order.
        let text = match content {
            Some(content) => format!("{{\"content\":{content},{}", &rest[1..]),
            None => rest,
        };
        let signature = Base64::new(self.key.sign(text.as_bytes()).as_bytes().to_vec());
        XMatrix::new(self.name.clone(), destination, self.key.id().clone(), signature).to_string()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(said: Arc<Said>, request: Request<Incoming>) -> Result<Response<Given>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await?.to_bytes();
    let header = |name: &str| {
        let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let what = format!("{} {path}", parts.method);
    let body =
        if parts.method == Method::GET { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or_default() };
    let asked = Asked { what: what.clone(), host: header("host"), authorization: header("authorization"), body };
    said.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    if let Some((status, body)) = fitting(&said.bodies, &what) {
        let mut response = Response::new(Given::of(body, said.given.clone()).await);
        *response.status_mut() = status;
        return Ok(response);
    }
    let mut found = fitting(&said.answers, &what);
    if found.is_none() {
        found = said.responders.respond(asked).await;
    }
    let unknown = br#"{"errcode": "M_UNRECOGNIZED", "error": "not in this test"}"#;
    let (status, body) = found.unwrap_or((StatusCode::NOT_FOUND, Bytes::from_static(unknown)));
    let mut response = Response::new(Given::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", ::http::HeaderValue::from_static("application/json"));
    if let Some(location) = fitting(&said.redirects, &what).and_then(|location| location.try_into().ok()) {
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert("location", location);
    }
    Ok(response)
}

/// What is said of exactly this request, or of all that begin like it.
fn fitting<T: Clone>(said: &Mutex<HashMap<String, T>>, what: &str) -> Option<T> {
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let plain = decode(what);
    let begins = |key: &str| key.strip_suffix('*').is_some_and(|start| plain.starts_with(start));
    said.get(what).or_else(|| said.iter().find(|(key, _)| begins(key)).map(|(_, found)| found)).cloned()
}
