//! Who asks, found from the token of a request.

use std::num::NonZeroU32;

use accounts::{Accounts, NewAccount, Options, SessionRequest};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{FromRef, Request},
    routing::get,
};
use http::header;
use model::{Clock, KeyPair, LocalServer, LocalServers, Random};
use ruma::{owned_server_name, user_id};
use serde_json::Value;
use storage::Storage;
use tempfile::TempDir;
use tower::ServiceExt as _;
use web::{ClientAddress, OptionalRequester, Rate, RateLimitOptions, RateLimits, Requester, RequesterOrGuest};

#[derive(Clone)]
struct State(Accounts, RateLimits);

impl FromRef<State> for Accounts {
    fn from_ref(state: &State) -> Self {
        state.0.clone()
    }
}

impl FromRef<State> for RateLimits {
    fn from_ref(state: &State) -> Self {
        state.1.clone()
    }
}

async fn accounts(folder: &TempDir) -> Accounts {
    let random = Random::seeded(1);
    let server = LocalServer::new(owned_server_name!("a.test"), KeyPair::generate(&random));
    let path = folder.path().join("test.db");
    let options = storage::Options::Sqlite { path, read_connections: 1 };
    let storage = Storage::open(options, Clock::manual(1_000_000), random).await.unwrap();
    let options = Options { cheap_password_hashing: true, ..Options::default() };
    Accounts::new(storage, LocalServers::new(vec![server]), options)
}

fn router(accounts: Accounts, limits: RateLimits) -> Router {
    let router = Router::new()
        .route("/full", get(async |requester: Requester| requester.user_id.to_string()))
        .route("/guest", get(async |requester: RequesterOrGuest| requester.user_id.to_string()))
        .route(
            "/optional",
            get(async |OptionalRequester(requester)| {
                requester.map_or("nobody".to_owned(), |it| it.user_id.to_string())
            }),
        );
    web::finish(router).with_state(State(accounts, limits))
}

async fn ask(router: &Router, path: &str, authorization: Option<&str>) -> (u16, String) {
    let mut request = Request::builder().uri(path);
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    request = request.extension(ClientAddress(Some([192, 0, 2, 1].into())));
    let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    let code = serde_json::from_slice::<Value>(&body).ok().and_then(|body| Some(body["errcode"].as_str()?.to_owned()));
    (status, code.unwrap_or_else(|| String::from_utf8(body.to_vec()).unwrap()))
}

#[tokio::test]
async fn a_request_is_from_who_its_token_belongs_to() {
    let folder = tempfile::tempdir().unwrap();
    let accounts = accounts(&folder).await;
    let user = accounts.register(user_id!("@alice:a.test"), NewAccount::default()).await.unwrap();
    let token = accounts.log_in(&user, SessionRequest::default()).await.unwrap().access_token;
    let account = NewAccount { is_guest: true, ..NewAccount::default() };
    let guest = accounts.register(user_id!("@1:a.test"), account).await.unwrap();
    let guest = accounts.log_in(&guest, SessionRequest::default()).await.unwrap().access_token;
    let router = router(accounts.clone(), RateLimits::off());
    let answer = |status: u16, text: &str| (status, text.to_owned());

    for authorization in [format!("Bearer {token}"), format!("bearer {token}")] {
        assert_eq!(ask(&router, "/full", Some(&authorization)).await, answer(200, "@alice:a.test"));
    }
    assert_eq!(ask(&router, &format!("/full?x=1&access_token={token}"), None).await, answer(200, "@alice:a.test"));
    for authorization in [None, Some("Basic x"), Some("Bearer")] {
        assert_eq!(ask(&router, "/full", authorization).await, answer(401, "M_MISSING_TOKEN"), "{authorization:?}");
    }
    let long = format!("Bearer {}", "x".repeat(10_000));
    for authorization in ["Bearer x", &format!("Bearer {token}x"), &long] {
        for path in ["/full", "/guest", "/optional"] {
            assert_eq!(ask(&router, path, Some(authorization)).await, answer(401, "M_UNKNOWN_TOKEN"), "{path}");
        }
    }
    let as_guest = format!("Bearer {guest}");
    assert_eq!(ask(&router, "/full", Some(&as_guest)).await, answer(403, "M_GUEST_ACCESS_FORBIDDEN"));
    assert_eq!(ask(&router, "/guest", Some(&as_guest)).await, answer(200, "@1:a.test"));
    assert_eq!(ask(&router, "/optional", None).await, answer(200, "nobody"));
    accounts.storage().close().await;
}

/// Whoever tries tokens is slowed down; whoever has one is not, even at the same address.
#[tokio::test]
async fn requests_without_a_valid_token_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let accounts = accounts(&folder).await;
    let user = accounts.register(user_id!("@alice:a.test"), NewAccount::default()).await.unwrap();
    let token = accounts.log_in(&user, SessionRequest::default()).await.unwrap().access_token;
    let rate = |burst| Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::new(burst).unwrap() };
    let options = RateLimitOptions {
        user: rate(1),
        address: rate(1),
        address_reads: rate(4),
        server: rate(1),
        stranger: rate(1),
    };
    for refused in [Some("Bearer x"), Some("Basic x"), None] {
        let clock = Clock::manual(1_000_000);
        let router = router(accounts.clone(), RateLimits::new(Some(options), &clock));
        for _ in 0..4 {
            assert_eq!(ask(&router, "/full", refused).await.0, 401);
        }
        assert_eq!(ask(&router, "/full", refused).await, (429, "M_LIMIT_EXCEEDED".to_owned()), "{refused:?}");
        for _ in 0..10 {
            assert_eq!(ask(&router, "/full", Some(&format!("Bearer {token}"))).await.0, 200);
        }
        clock.advance_ms(1_000);
        assert_eq!(ask(&router, "/full", refused).await.0, 401);
    }
    accounts.storage().close().await;
}
