//! The pieces together, driven as a listener drives them.

use std::{net::IpAddr, num::NonZeroU32};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use http::{Method, StatusCode, header};
use model::Clock;
use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};
use ruma::{
    api::client::{
        account::register, discovery::get_supported_versions, membership::leave_room, message::get_message_events,
        state::send_state_event,
    },
    owned_event_id,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use web::{ClientAddress, MatrixError, Rate, RateLimitOptions, RateLimits, Ruma, RumaRoutes as _};

async fn send(
    request: Ruma<send_state_event::v3::Request>,
) -> Result<Ruma<send_state_event::v3::Response>, MatrixError> {
    if request.0.room_id == "!forbidden:localhost" {
        return Err(MatrixError::forbidden(format!("no {}", request.0.state_key)));
    }
    assert_ne!(request.0.state_key, "panic", "asked to panic");
    Ok(Ruma(send_state_event::v3::Response::new(owned_event_id!("$event"))))
}

async fn leave(
    State(_): State<RateLimits>,
    _: Ruma<leave_room::v3::Request>,
) -> Result<Ruma<leave_room::v3::Response>, MatrixError> {
    Ok(Ruma(leave_room::v3::Response::new()))
}

async fn messages(
    request: Ruma<get_message_events::v3::Request>,
) -> Result<Ruma<get_message_events::v3::Response>, MatrixError> {
    let mut response = get_message_events::v3::Response::new();
    response.start = request.0.limit.to_string();
    Ok(Ruma(response))
}

async fn versions(_: Ruma<get_supported_versions::Request>) -> Ruma<get_supported_versions::Response> {
    Ruma(get_supported_versions::Response::new(vec!["v1.1".to_owned()]))
}

async fn register(_: Ruma<register::v3::Request>) -> Result<Ruma<register::v3::Response>, MatrixError> {
    Err(MatrixError::json(StatusCode::UNAUTHORIZED, json!({"flows": []})))
}

fn router(limits: RateLimits) -> Router {
    let router =
        Router::new().ruma_route(send).ruma_route(leave).ruma_route(messages).ruma_route(versions).ruma_route(register);
    web::finish(router).with_state(limits)
}

async fn ask(router: &Router, method: &str, path: &str, body: impl Into<Body>) -> Response {
    let mut request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
    request.extensions_mut().insert(ClientAddress(Some(IpAddr::from([192, 0, 2, 1]))));
    router.clone().oneshot(request).await.unwrap()
}

async fn answer(method: &str, path: &str, body: impl Into<Body>) -> (u16, Value) {
    let response = ask(&router(RateLimits::off()), method, path, body).await;
    assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn errcode(method: &str, path: &str, body: impl Into<Body>) -> (u16, String) {
    let (status, body) = answer(method, path, body).await;
    assert!(body["error"].is_string(), "{body}");
    (status, body["errcode"].as_str().unwrap().to_owned())
}

const STATE: &str = "/_matrix/client/v3/rooms/!room:localhost/state/m.room.name";

#[tokio::test]
async fn a_request_reaches_its_handler_under_all_its_paths() {
    for path in [STATE.to_owned(), format!("{STATE}/"), format!("{STATE}/a%2Fb"), STATE.replace("v3", "r0")] {
        assert_eq!(answer("PUT", &path, r#"{"name":"x"}"#).await, (200, json!({"event_id": "$event"})), "{path}");
    }
    assert_eq!(answer("GET", "/_matrix/client/versions", "").await.1["versions"], json!(["v1.1"]));
}

#[tokio::test]
async fn a_path_argument_is_decoded() {
    let path = "/_matrix/client/v3/rooms/%21forbidden%3Alocalhost/state/m.room.name/a%2Fb%20c";
    let (status, body) = answer("PUT", path, "{}").await;
    assert_eq!((status, &body["error"]), (403, &json!("no a/b c")));
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_told_by_its_code() {
    for (body, expected) in [
        (b"{".to_vec(), "M_NOT_JSON"),
        (b"".to_vec(), "M_NOT_JSON"),
        (b"nonsense".to_vec(), "M_NOT_JSON"),
        (b"{\"name\":\"\xff\"}".to_vec(), "M_NOT_JSON"),
        (b"[]".to_vec(), "M_BAD_JSON"),
        (b"\"text\"".to_vec(), "M_BAD_JSON"),
    ] {
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(errcode("PUT", STATE, body).await, (400, expected.to_owned()), "{text}");
    }
    let register = "/_matrix/client/v3/register";
    assert_eq!(errcode("POST", register, r#"{"password":5}"#).await, (400, "M_BAD_JSON".to_owned()));
    assert_eq!(errcode("PUT", STATE, vec![b' '; 2 << 20]).await, (413, "M_TOO_LARGE".to_owned()));
}

#[tokio::test]
async fn what_is_wrong_with_path_or_query_is_told_by_its_code() {
    let messages = "/_matrix/client/v3/rooms/!room:localhost/messages";
    assert_eq!(errcode("GET", messages, "").await, (400, "M_MISSING_PARAM".to_owned()));
    for query in ["dir=x", "dir=b&limit=x", "dir=b&limit=-1"] {
        assert_eq!(errcode("GET", &format!("{messages}?{query}"), "").await, (400, "M_INVALID_PARAM".to_owned()));
    }
    for room in ["room", "%21%FF:localhost", &format!("!{}:localhost", "r".repeat(255))] {
        let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b");
        assert_eq!(errcode("GET", &path, "").await, (400, "M_INVALID_PARAM".to_owned()), "{room}");
    }
    let (status, body) = answer("GET", &format!("{messages}?dir=b&limit=7"), "").await;
    assert_eq!((status, &body["start"]), (200, &json!("7")));
}

#[tokio::test]
async fn a_post_may_leave_out_its_body() {
    let path = "/_matrix/client/v3/rooms/!room:localhost/leave";
    assert_eq!(answer("POST", path, "").await, (200, json!({})));
    assert_eq!(errcode("POST", path, "{").await, (400, "M_NOT_JSON".to_owned()));
}

#[tokio::test]
async fn an_answer_may_have_a_body_of_its_own_shape() {
    assert_eq!(answer("POST", "/_matrix/client/v3/register", "{}").await, (401, json!({"flows": []})));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_unrecognized() {
    for path in ["/", "/_matrix/client/v3/nothing", "/_matrix/client/v9/sync"] {
        assert_eq!(errcode("GET", path, "").await, (404, "M_UNRECOGNIZED".to_owned()), "{path}");
    }
    assert_eq!(errcode("PATCH", STATE, "").await, (405, "M_UNRECOGNIZED".to_owned()));
}

#[tokio::test]
async fn a_browser_may_ask_first() {
    for path in [STATE, "/_matrix/client/v3/nothing"] {
        let response = ask(&router(RateLimits::off()), "OPTIONS", path, "").await;
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers();
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_METHODS], "GET,POST,PUT,DELETE,OPTIONS");
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_HEADERS], "x-requested-with,content-type,authorization");
    }
}

#[tokio::test]
async fn a_panic_ends_its_request_only() {
    assert_eq!(errcode("PUT", &format!("{STATE}/panic"), "{}").await, (500, "M_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn too_many_requests_are_refused_until_the_time_they_are_told() {
    let clock = Clock::manual(1_000_000);
    let rate = |per_second, burst| Rate {
        per_second: NonZeroU32::new(per_second).unwrap(),
        burst: NonZeroU32::new(burst).unwrap(),
    };
    let options = RateLimitOptions {
        user: rate(1, 1),
        address: rate(2, 3),
        address_reads: rate(1, 2),
        server: rate(2, 3),
        stranger: rate(1, 1),
    };
    let router = router(RateLimits::new(Some(options), &clock));
    for _ in 0..3 {
        assert_eq!(ask(&router, "PUT", STATE, "{}").await.status(), StatusCode::OK);
    }
    let refused = ask(&router, "PUT", STATE, "{}").await;
    assert_eq!(
        (refused.status(), &refused.headers()[header::RETRY_AFTER]),
        (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap())
    );
    let body: Value = serde_json::from_slice(&to_bytes(refused.into_body(), 1000).await.unwrap()).unwrap();
    assert_eq!((&body["errcode"], &body["retry_after_ms"]), (&json!("M_LIMIT_EXCEEDED"), &json!(500)));
    let versions = "/_matrix/client/versions";
    for _ in 0..2 {
        assert_eq!(ask(&router, "GET", versions, "").await.status(), StatusCode::OK, "reading has a count of its own");
    }
    let refused = ask(&router, "GET", versions, "").await;
    assert_eq!(
        (refused.status(), &refused.headers()[header::RETRY_AFTER]),
        (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap())
    );
    clock.advance_ms(500);
    assert_eq!(ask(&router, "PUT", STATE, "{}").await.status(), StatusCode::OK);
}

/// Sends anything as room, query and body.
fn send_anything(seed: u64, cases: u32) {
    println!("seed {seed}");
    let config =
        ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Default::default() };
    let anything = ("\\PC{0,300}", "[ -~]{0,40}", proptest::collection::vec(any::<u8>(), 0..200));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = TestRunner::new(config).run(&anything, |(room, query, body)| {
        let encoded: String = room.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let query: String = query.chars().filter(|c| !" \"<>#`\\^{}|".contains(*c)).collect();
        let path = format!("/_matrix/client/v3/rooms/{encoded}");
        for (method, path) in
            [(Method::PUT, format!("{path}/state/m.x?{query}")), (Method::GET, format!("{path}/messages?{query}"))]
        {
            let (status, body) = runtime.block_on(answer(method.as_str(), &path, body.clone()));
            prop_assert!(status < 500, "{status} for {path}");
            prop_assert!(status == 200 || body["errcode"].is_string(), "{body}");
        }
        Ok(())
    });
    run.unwrap();
}

/// Whatever comes, the answer is one of the specification: JSON, and never an error of ours.
#[test]
fn no_input_is_our_fault() {
    send_anything(1, 200);
}

/// The same with many seeds.
#[test]
fn long_no_input_is_our_fault() {
    for seed in 100..120 {
        send_anything(seed, 2_000);
    }
}
