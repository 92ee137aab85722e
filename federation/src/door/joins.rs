//! Users of other servers come into our rooms. Server-Server API, "Joining Rooms".

use std::{fmt::Write as _, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse as _, Response},
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderValue, header};
use model::EventNr;
use rooms::{BODIES_AT_ONCE, Handshake, JoinedState, Rooms};
use ruma::api::federation::membership::{create_join_event, prepare_join_event};
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{
    FederationApi, Signed,
    leaves_and_knocks::{read_event, template},
};
use crate::Federation;

/// How many pieces of a list are made at once: one while another is sent.
const PIECES_AT_ONCE: usize = 2;

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(prepare_join_event).ruma_route(create_join_event)
}

/// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}`.
async fn prepare_join_event(
    State(rooms): State<Rooms>,
    signed: Signed<prepare_join_event::v1::Request>,
) -> Result<Ruma<prepare_join_event::v1::Response>, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    let versions = Some(&*request.ver);
    let template = template(&rooms, asker, &request.room_id, &request.user_id, Handshake::Join, versions).await?;
    let mut response = prepare_join_event::v1::Response::new(template.event);
    response.room_version = Some(template.version);
    Ok(Ruma(response))
}

/// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`.
async fn create_join_event(
    State(rooms): State<Rooms>,
    State(federation): State<Federation>,
    signed: Signed<create_join_event::v2::Request>,
) -> Result<Response, MatrixError> {
    let (asker, request) = (signed.asker(), &signed.request);
    let (event, keys) = read_event(&rooms, &federation, &request.room_id, &request.pdu).await?;
    let ids = (&*request.room_id, &*request.event_id);
    let joined = rooms.accept_join(asker, ids, event, &keys, request.omit_members).await?;
    Ok(answer(rooms, joined))
}

/// The answer is sent while it is made: it may have tens of thousands of events.
fn answer(rooms: Rooms, joined: JoinedState) -> Response {
    let JoinedState { join, state, auth_chain, servers } = joined;
    let mut start = format!(r#"{{"event":{}"#, join.pdu.json);
    if let Some(servers) = servers {
        let servers = serde_json::to_string(&servers).expect("texts serialize");
        write!(start, r#","members_omitted":true,"servers_in_room":{servers}"#).expect("a text can be written to");
    }
    start.push_str(r#","state":["#);
    let text = |text: String| stream::once(std::future::ready(Ok(Bytes::from(text))));
    let body = text(start)
        .chain(list(rooms.clone(), state))
        .chain(text(r#"],"auth_chain":["#.to_owned()))
        .chain(list(rooms, auth_chain))
        .chain(text("]}".to_owned()));
    let content_type = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response()
}

/// The JSON of events, with commas between them.
fn list(rooms: Rooms, events: Vec<EventNr>) -> impl Stream<Item = Result<Bytes, MatrixError>> + Send + 'static {
    let count = events.len();
    let events: Arc<[EventNr]> = events.into();
    let pieces = stream::iter((0..count).step_by(BODIES_AT_ONCE)).map(move |start| {
        let (rooms, events) = (rooms.clone(), events.clone());
        async move {
            let bodies = rooms.bodies(&events[start..count.min(start + BODIES_AT_ONCE)]).await?;
            let mut piece = String::with_capacity(bodies.iter().map(|body| body.len() + 1).sum());
            for (index, body) in bodies.iter().enumerate() {
                if start + index > 0 {
                    piece.push(',');
                }
                piece.push_str(body);
            }
            Ok::<_, rooms::Error>(Bytes::from(piece))
        }
    });
    pieces.buffered(PIECES_AT_ONCE).map_err(MatrixError::from)
}
