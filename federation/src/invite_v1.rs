//! `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`: ruma's request has only a part of the event, but all of it is signed.

use http::{Request as HttpRequest, header};
use model::Pdu;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId,
    api::{
        BytesBody, IncomingRequest, Metadata as _, OutgoingRequest,
        error::{DeserializationError, Error, IntoHttpError},
        federation::{authentication::ServerSignatures, membership::create_invite::v1::Response},
        metadata,
    },
};
use serde_json::{Value, json, value::RawValue};

metadata! {
    method: PUT,
    rate_limited: false,
    authentication: ServerSignatures,
    path: "/_matrix/federation/v1/invite/{room_id}/{event_id}",
}

/// The request; its body is the event, with what shows the room in `unsigned`.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) room_id: OwnedRoomId,
    pub(crate) event_id: OwnedEventId,
    pub(crate) event: Box<RawValue>,
}

impl Request {
    /// The request for an invitation of ours.
    pub(crate) fn outgoing(event: &Pdu, room_state: &[Box<RawValue>]) -> Result<Self, serde_json::Error> {
        let mut body: Value = serde_json::from_str(&event.json)?;
        body["unsigned"] = json!({"invite_room_state": room_state});
        let event_json = serde_json::value::to_raw_value(&body)?;
        Ok(Self { room_id: event.room_id.clone(), event_id: event.event_id.clone(), event: event_json })
    }
}

impl OutgoingRequest for Request {
    type Body = BytesBody;
    type EndpointError = Error;
    type IncomingResponse = Response;

    fn try_into_http_request_inner(self, base_url: &str, (): ()) -> Result<HttpRequest<BytesBody>, IntoHttpError> {
        let url = Self::make_endpoint_url((), base_url, &[&self.room_id, &self.event_id], "")?;
        let request = HttpRequest::builder().method(Self::METHOD).uri(url);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        Ok(request.body(BytesBody(self.event.get().as_bytes().to_vec()))?)
    }
}

impl IncomingRequest for Request {
    type EndpointError = Error;
    type OutgoingResponse = Response;

    fn try_from_http_request_inner(
        request: HttpRequest<&[u8]>,
        path_args: &[&str],
    ) -> Result<Self, DeserializationError> {
        let argument = |index: usize| path_args.get(index).copied().unwrap_or_default();
        Ok(Self {
            room_id: RoomId::parse(argument(0))?,
            event_id: EventId::parse(argument(1))?,
            event: serde_json::from_slice(request.body())?,
        })
    }
}
