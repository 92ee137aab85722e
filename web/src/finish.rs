//! What holds for all routes of all doors: CORS, unknown paths and methods, panics, the request's span in the log.

use std::any::Any;

use axum::{
    Router,
    extract::MatchedPath,
    response::{IntoResponse, Response},
};
use http::{Method, Request, header, header::HeaderName};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{Any as AnyOrigin, CorsLayer},
    trace::TraceLayer,
};
use tracing::debug_span;

use crate::MatrixError;

/// Completes the merged routes of the doors of one listener.
///
/// Unknown paths answer 404 and known paths with another method 405, both `M_UNRECOGNIZED` (Client-Server API, "Standard error
/// response"). Every answer carries CORS headers, and `OPTIONS` is answered for all paths without running a handler
/// (Client-Server API, "Web Browser Clients"). A panic ends its request only, with 500 `M_UNKNOWN`.
pub fn finish<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    let cors = CorsLayer::new()
        .allow_origin(AnyOrigin)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS])
        .allow_headers([HeaderName::from_static("x-requested-with"), header::CONTENT_TYPE, header::AUTHORIZATION]);
    // The path as it was registered, not as it was asked for: that may hold a token.
    let trace = TraceLayer::new_for_http()
        .make_span_with(|request: &Request<_>| {
            let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
            debug_span!("request", http.method = %request.method(), http.route = path)
        })
        .on_failure(());
    router
        .fallback(async || MatrixError::unrecognized())
        .method_not_allowed_fallback(async || MatrixError::method_not_allowed())
        .layer(CatchPanicLayer::custom(answer_panic))
        .layer(trace)
        .layer(cors)
}

/// The program's panic hook has logged it.
fn answer_panic(_panic: Box<dyn Any + Send + 'static>) -> Response {
    MatrixError::internal_answer().into_response()
}
