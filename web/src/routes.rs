//! Registers handlers under the paths that ruma knows for their endpoint.

use axum::{
    Router,
    handler::Handler,
    routing::{MethodFilter, on},
};
use ruma::api::{IncomingRequest, Metadata, path_builder::PathBuilder};

/// An argument of a handler that reads a request of ruma's, whoever made it.
pub trait RumaArgument {
    /// The request.
    type Request: IncomingRequest;
}

/// A handler whose last argument is a request of ruma's: it says by itself which endpoint it answers.
pub trait RumaHandler<Arguments, S>: Handler<Arguments, S> {
    /// The request that it takes.
    type Request: IncomingRequest;
}

macro_rules! ruma_handler {
    ($($argument:ident),*) => {
        impl<F, S, M, R, $($argument),*> RumaHandler<(M, $($argument,)* R,), S> for F
        where
            F: Handler<(M, $($argument,)* R,), S>,
            R: RumaArgument,
        {
            type Request = R::Request;
        }
    };
}

ruma_handler!();
ruma_handler!(A);
ruma_handler!(A, B);
ruma_handler!(A, B, C);
ruma_handler!(A, B, C, D);
ruma_handler!(A, B, C, D, E);
ruma_handler!(A, B, C, D, E, G);

/// Routing by ruma's metadata.
pub trait RumaRoutes<S> {
    /// Registers `handler` for the method and all paths of its endpoint: the current one, `r0` and those of before the release.
    ///
    /// Where the path ends with a state key it is registered without one too (Client-Server API,
    /// "GET /rooms/{roomId}/state/{eventType}/{stateKey}": an empty key may be left out, with or without the slash).
    ///
    /// # Panics
    ///
    /// When an endpoint is registered twice: our mistake, seen at the first start.
    #[must_use]
    fn ruma_route<Arguments: 'static, H: RumaHandler<Arguments, S>>(self, handler: H) -> Self;
}

impl<S: Clone + Send + Sync + 'static> RumaRoutes<S> for Router<S> {
    fn ruma_route<Arguments: 'static, H: RumaHandler<Arguments, S>>(mut self, handler: H) -> Self {
        let filter = MethodFilter::try_from(H::Request::METHOD).expect("ruma's methods are known to axum");
        let mut paths: Vec<String> = Vec::new();
        for path in H::Request::PATH_BUILDER.all_paths() {
            if let Some(without_key) = path.strip_suffix("/{state_key}") {
                paths.extend([numbered(without_key), numbered(&format!("{without_key}/"))]);
            }
            paths.push(numbered(path));
        }
        // An endpoint may have the same path twice, under an unstable feature and a release.
        paths.sort_unstable();
        paths.dedup();
        for path in paths {
            self = self.route(&path, on(filter, handler.clone()));
        }
        self
    }
}

/// The path with its arguments named by their place: endpoints that share a prefix call the same argument by different names.
fn numbered(path: &str) -> String {
    let mut arguments = 0;
    let segments = path.split('/').map(|segment| {
        if !segment.starts_with('{') {
            return segment.to_owned();
        }
        arguments += 1;
        format!("{{argument_{arguments}}}")
    });
    segments.collect::<Vec<_>>().join("/")
}
