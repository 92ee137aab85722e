//! The request of a redaction, with what MSC3912 adds to it.

use ruma::api::{IncomingRequest, Metadata, client::redact::redact_event::v3, error::DeserializationError};
use serde::Deserialize;

/// `PUT /rooms/{roomId}/redact/{eventId}/{txnId}`.
pub(super) struct RedactEvent {
    /// What the specification has of it.
    pub(super) request: v3::Request,
    /// What relates to the event in one of these ways is redacted, too.
    pub(super) related: Vec<String>,
}

impl Metadata for RedactEvent {
    const METHOD: http::Method = v3::Request::METHOD;
    const RATE_LIMITED: bool = v3::Request::RATE_LIMITED;
    type Authentication = <v3::Request as Metadata>::Authentication;
    type PathBuilder = <v3::Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = v3::Request::PATH_BUILDER;
}

impl IncomingRequest for RedactEvent {
    type EndpointError = <v3::Request as IncomingRequest>::EndpointError;
    type OutgoingResponse = v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        #[derive(Deserialize)]
        struct Body {
            #[serde(rename = "org.matrix.msc3912.with_relations", default)]
            related: Vec<String>,
        }
        let body = *request.body();
        let request = v3::Request::try_from_http_request_inner(request, path_args)?;
        let related = if body.is_empty() { Vec::new() } else { serde_json::from_slice::<Body>(body)?.related };
        Ok(Self { request, related })
    }
}
