//! Answers with very many events, written while they are sent.

use std::sync::Arc;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderValue, header};
use model::EventNr;
use rooms::{BODIES_AT_ONCE, Rooms};
use web::MatrixError;

/// Pieces of a list that are read while one is on its way.
const PIECES_AT_ONCE: usize = 2;

/// A JSON object with lists of events, by their names. However many there are, few are in memory.
pub(super) fn answer<const LISTS: usize>(rooms: &Rooms, lists: [(&'static str, Vec<EventNr>); LISTS]) -> Response {
    answer_with(rooms, String::new(), lists)
}

/// The same with other fields before the lists: JSON with a comma behind each field.
pub(super) fn answer_with<const LISTS: usize>(
    rooms: &Rooms,
    fields: String,
    lists: [(&'static str, Vec<EventNr>); LISTS],
) -> Response {
    let text = |text: String| stream::once(std::future::ready(Ok(Bytes::from(text))));
    let lists = lists.map(|(name, events)| text(format!("\"{name}\":[")).chain(list(rooms.clone(), events)).boxed());
    let mut body = text(format!("{{{fields}")).boxed();
    for (index, list) in lists.into_iter().enumerate() {
        let end = if index + 1 < LISTS { "]," } else { "]}" };
        body = body.chain(list).chain(text(end.to_owned())).boxed();
    }
    let content_type = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response()
}

/// The JSON of events, with commas between them.
pub(super) fn list(
    rooms: Rooms,
    events: Vec<EventNr>,
) -> impl Stream<Item = Result<Bytes, MatrixError>> + Send + 'static {
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
