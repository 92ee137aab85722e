//! `/sync`. Client-Server API, "Syncing".

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse as _, Response},
};
use ruma::api::{
    OutgoingResponseExt as _,
    client::sync::sync_events::{self, v3::Filter},
};
use serde_json::{Value, json};
use sync::{Sync, v3::Request};
use web::{MatrixError, RequesterOrGuest, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(sync_events)
}

/// `GET /sync`.
async fn sync_events(
    State(sync): State<Sync>,
    RequesterOrGuest(requester): RequesterOrGuest,
    Ruma(request): Ruma<sync_events::v3::Request>,
) -> Result<Response, MatrixError> {
    let filter = match request.filter {
        None => Arc::default(),
        Some(Filter::FilterDefinition(filter)) => Arc::new(filter),
        Some(Filter::FilterId(id)) => {
            let unknown = || MatrixError::invalid_param(format!("you have no filter with the id {id}"));
            let filter_nr: i64 = id.parse().map_err(|_| unknown())?;
            sync.filter(requester.user_nr, filter_nr).await?.ok_or_else(unknown)?
        }
        Some(_) => return Err(MatrixError::invalid_param("the filter is neither an id nor a filter")),
    };
    let since = request.since.map(|since| since.parse()).transpose();
    let request = Request {
        since: since.map_err(|_| MatrixError::invalid_param("`since` is not a token of this server"))?,
        filter,
        full_state: request.full_state,
        timeout: request.timeout.unwrap_or(Duration::ZERO),
        use_state_after: request.use_state_after,
    };
    let answer = sync.sync_events(&requester, &request).await?;
    if answer.rooms.leave.is_empty() {
        return Ok(Ruma(answer).into_response());
    }
    let answer = answer.try_into_http_response::<Vec<u8>>().map_err(|error| MatrixError::internal(&error))?;
    let (parts, body) = answer.into_parts();
    let body = with_whole_left_rooms(&body).map_err(|error| MatrixError::internal(&error))?;
    Ok(Response::from_parts(parts, body.into()))
}

/// Adds what ruma leaves out of left rooms when it is empty, `state` and `timeline`: matrix-nio reads no answer without them.
fn with_whole_left_rooms(body: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut answer: Value = serde_json::from_slice(body)?;
    let rooms = answer.pointer_mut("/rooms/leave").and_then(Value::as_object_mut);
    for room in rooms.into_iter().flatten().filter_map(|(_, room)| room.as_object_mut()) {
        if !room.contains_key("state_after") {
            room.entry("state").or_insert_with(|| json!({ "events": [] }));
        }
        let timeline = room.entry("timeline").or_insert_with(|| json!({}));
        if let Some(timeline) = timeline.as_object_mut() {
            timeline.entry("events").or_insert_with(|| json!([]));
        }
    }
    serde_json::to_vec(&answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_left_room_has_its_state_and_timeline_also_when_they_are_empty() {
        let whole = |body: Value| -> Value {
            let body = with_whole_left_rooms(body.to_string().as_bytes()).unwrap();
            serde_json::from_slice(&body).unwrap()
        };
        assert_eq!(
            whole(
                json!({ "next_batch": "s1", "rooms": { "leave": { "!a": {}, "!b": { "state_after": { "events": [1] } } } } })
            ),
            json!({ "next_batch": "s1", "rooms": { "leave": {
                "!a": { "state": { "events": [] }, "timeline": { "events": [] } },
                "!b": { "state_after": { "events": [1] }, "timeline": { "events": [] } },
            } } }),
        );
        let complete =
            json!({ "rooms": { "leave": { "!a": { "state": { "events": [1] }, "timeline": { "events": [2] } } } } });
        assert_eq!(whole(complete.clone()), complete);
    }
}
