//! `/sync`. Client-Server API, "Syncing".

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use accounts::Requester;
use axum::{
    Router,
    extract::State,
    response::{IntoResponse as _, Response},
};
use ruma::api::{
    OutgoingResponseExt as _,
    client::sync::sync_events::{self, v3::Filter},
};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use sync::{Sync, v3::Request};
use web::{MatrixError, RequesterOrGuest, Ruma, RumaRoutes as _};

use crate::{ClientApi, presence::availability};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(sync_events)
}

/// `GET /sync`.
async fn sync_events(
    State(sync): State<Sync>,
    RequesterOrGuest(requester): RequesterOrGuest,
    Ruma(request): Ruma<sync_events::v3::Request>,
) -> Result<Response, MatrixError> {
    // Until the answer is ready.
    let _syncing = sync.presences().syncs(&requester, availability(&request.set_presence)?).await?;
    // What it was read from is gone before the wait.
    let request = Box::pin(to_request(&sync, &requester, request)).await?;
    let answer = Box::pin(sync.sync_events(&requester, &request)).await?;
    if answer.rooms.leave.is_empty() {
        return Ok(Ruma(answer).into_response());
    }
    let answer = answer.try_into_http_response::<Vec<u8>>().map_err(|error| MatrixError::internal(&error))?;
    let (parts, body) = answer.into_parts();
    let body = with_whole_left_rooms(&body).map_err(|error| MatrixError::internal(&error))?;
    Ok(Response::from_parts(parts, body.into()))
}

/// What is asked, with the filter that it names.
async fn to_request(
    sync: &Sync,
    requester: &Requester,
    request: sync_events::v3::Request,
) -> Result<Request, MatrixError> {
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
    accounts::check_filter(&filter)?;
    let since = request.since.map(|since| since.parse()).transpose();
    Ok(Request {
        since: since.map_err(|_| MatrixError::invalid_param("`since` is not a token of this server"))?,
        filter,
        full_state: request.full_state,
        timeout: request.timeout.unwrap_or(Duration::ZERO),
        use_state_after: request.use_state_after,
    })
}

/// Adds what ruma leaves out of left rooms when it is empty, `state` and `timeline`: matrix-nio reads no answer without them.
///
/// Takes the answer apart down to those only: all below stays the text that it is, however deep that may be.
fn with_whole_left_rooms(body: &[u8]) -> serde_json::Result<Vec<u8>> {
    type Object = BTreeMap<String, Box<RawValue>>;
    let read = |json: &RawValue| serde_json::from_str::<Object>(json.get());
    let mut answer: Object = serde_json::from_slice(body)?;
    let mut rooms = answer.get("rooms").map_or_else(|| Ok(Object::new()), |rooms| read(rooms))?;
    let mut left = rooms.get("leave").map_or_else(|| Ok(Object::new()), |left| read(left))?;
    for room in left.values_mut() {
        let mut parts = read(room)?;
        if !parts.contains_key("state") && !parts.contains_key("state_after") {
            parts.insert("state".to_owned(), to_raw_value(&json!({ "events": [] }))?);
        }
        let mut timeline = parts.get("timeline").map_or_else(|| Ok(Object::new()), |timeline| read(timeline))?;
        if !timeline.contains_key("events") {
            timeline.insert("events".to_owned(), to_raw_value(&json!([]))?);
            parts.insert("timeline".to_owned(), to_raw_value(&timeline)?);
        }
        *room = to_raw_value(&parts)?;
    }
    rooms.insert("leave".to_owned(), to_raw_value(&left)?);
    answer.insert("rooms".to_owned(), to_raw_value(&rooms)?);
    serde_json::to_vec(&answer)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

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

    /// The events of an answer may be nested as deep as one can be read by itself.
    #[test]
    fn an_answer_that_is_nested_deep_is_no_mistake() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let body = format!(r#"{{"rooms":{{"leave":{{"!a":{{"timeline":{{"events":[{deep}]}}}}}}}}}}"#);
        let whole = String::from_utf8(with_whole_left_rooms(body.as_bytes()).unwrap()).unwrap();
        assert!(whole.contains(&deep) && whole.contains(r#""state":{"events":[]}"#), "{whole}");
    }
}
