//! Long lists, answered while they are made.

use std::sync::Arc;

use ::rooms::StateList;
use axum::{
    body::{Body, Bytes},
    response::{IntoResponse as _, Response},
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderValue, header};
use web::MatrixError;

/// How many pieces of a list are made at once: one while another is sent.
pub(super) const PIECES_AT_ONCE: usize = 2;

/// Answers JSON: what stands before a list, the events of the list, and what stands after it.
pub(super) async fn answer_with_events(
    before: impl Into<Bytes>,
    list: StateList,
    after: &'static str,
) -> Result<Response, MatrixError> {
    let list = Arc::new(list);
    let pieces = stream::iter(list.pieces()).map(move |piece| {
        let list = list.clone();
        async move { list.events(piece).await }
    });
    answer_in_pieces(before, pieces.buffered(PIECES_AT_ONCE), after).await
}

/// Answers JSON: what stands before a list, the list in pieces, in which each member has a comma behind it, and what stands after it.
///
/// Waits for the first piece, so that what fails until there is answered as an error; later it ends the connection.
pub(super) async fn answer_in_pieces(
    before: impl Into<Bytes>,
    pieces: impl Stream<Item = Result<Vec<u8>, ::rooms::Error>> + Send + 'static,
    after: &'static str,
) -> Result<Response, MatrixError> {
    let mut pieces = Box::pin(pieces.try_filter(|piece| std::future::ready(!piece.is_empty())));
    // The comma of a piece's last member goes in front of the piece; the first piece needs none.
    let first = pieces.try_next().await?.map(|mut piece| {
        piece.pop();
        Bytes::from(piece)
    });
    let rest = pieces.map_ok(|mut piece| {
        piece.rotate_right(1);
        Bytes::from(piece)
    });
    let rest = rest.map_err(MatrixError::from);
    let start = [before.into()].into_iter().chain(first).map(Ok);
    let end = stream::iter([Ok(Bytes::from_static(after.as_bytes()))]);
    let body = Body::from_stream(stream::iter(start).chain(rest).chain(end));
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn answer(pieces: Vec<Result<&'static str, ::rooms::Error>>) -> Result<String, MatrixError> {
        let pieces = stream::iter(pieces.into_iter().map(|piece| piece.map(|text| text.as_bytes().to_vec())));
        let response = answer_in_pieces(r#"{"chunk":["#, pieces, "]}").await?;
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = to_bytes(response.into_body(), 1_000).await.map_err(|error| MatrixError::internal(&error))?;
        Ok(String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn pieces_make_one_list() {
        assert_eq!(answer(vec![]).await.unwrap(), r#"{"chunk":[]}"#);
        assert_eq!(answer(vec![Ok(""), Ok("")]).await.unwrap(), r#"{"chunk":[]}"#);
        assert_eq!(answer(vec![Ok("1,")]).await.unwrap(), r#"{"chunk":[1]}"#);
        let pieces = vec![Ok(""), Ok("1,2,"), Ok(""), Ok("3,"), Ok("4,5,")];
        assert_eq!(answer(pieces).await.unwrap(), r#"{"chunk":[1,2,3,4,5]}"#);
    }

    #[tokio::test]
    async fn what_fails_before_the_first_piece_is_an_error_and_later_no_whole_answer() {
        let failed = answer(vec![Ok(""), Err(::rooms::Error::NotMember)]).await.unwrap_err();
        assert_eq!(failed.status(), http::StatusCode::FORBIDDEN);
        let broken = answer(vec![Ok("1,"), Err(::rooms::Error::NotMember)]).await.unwrap_err();
        assert_eq!(broken.status(), http::StatusCode::INTERNAL_SERVER_ERROR);
    }
}
