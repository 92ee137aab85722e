//! Users of other servers come into our rooms. Server-Server API, "Joining Rooms".

use std::fmt::Write as _;

use axum::{Router, extract::State, response::Response};
use rooms::{Handshake, JoinedState, Rooms};
use ruma::api::federation::membership::{create_join_event, prepare_join_event};
use web::{MatrixError, Ruma, RumaRoutes as _};

use super::{
    FederationApi, Signed, event_lists,
    leaves_and_knocks::{read_event, template},
    wholes,
};
use crate::Federation;

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
    let _turn = wholes::turn(&federation, &signed.origin).await?;
    let (asker, request) = (signed.asker(), &signed.request);
    let event = read_event(&request.pdu)?;
    let ids = (&*request.room_id, &*request.event_id);
    let joined = rooms.accept_join(asker, ids, event, request.omit_members).await?;
    Ok(answer(&rooms, joined))
}

/// The answer is sent while it is made: it may have tens of thousands of events.
fn answer(rooms: &Rooms, joined: JoinedState) -> Response {
    let mut fields = format!(r#""event":{},"#, joined.join.pdu.json);
    if let Some(servers) = joined.servers {
        let servers = serde_json::to_string(&servers).expect("texts serialize");
        write!(fields, r#""members_omitted":true,"servers_in_room":{servers},"#).expect("a text can be written to");
    }
    event_lists::answer_with(rooms, fields, [("state", joined.state), ("auth_chain", joined.auth_chain)])
}
