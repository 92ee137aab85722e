//! How far somebody has read. Client-Server API, "Receipts" and "Fully read markers".

use ::rooms::{Presences, ReceiptKind, ReceiptRequest, Rooms};
use axum::{Router, extract::State};
use model::Thread;
use ruma::api::client::{
    read_marker::set_read_marker,
    receipt::create_receipt::{self, v3::ReceiptType},
};
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(create_receipt).ruma_route(set_read_marker)
}

fn no_thread() -> MatrixError {
    MatrixError::invalid_param("`thread_id` is `main` or the id of the event that began the thread")
}

/// `POST /rooms/{roomId}/receipt/{receiptType}/{eventId}`.
async fn create_receipt(
    State(rooms): State<Rooms>,
    State(presences): State<Presences>,
    requester: Requester,
    Ruma(request): Ruma<create_receipt::v3::Request>,
) -> Result<Ruma<create_receipt::v3::Response>, MatrixError> {
    let kind = match request.receipt_type {
        ReceiptType::Read => ReceiptKind::Read,
        ReceiptType::ReadPrivate => ReceiptKind::ReadPrivate,
        ReceiptType::FullyRead => ReceiptKind::FullyRead,
        other => return Err(MatrixError::invalid_param(format!("there is no receipt type `{other}`"))),
    };
    let thread = request.thread.as_str().map(|thread| Thread::parse(thread).ok_or_else(no_thread)).transpose()?;
    let receipt = ReceiptRequest { kind, event_id: request.event_id, thread };
    rooms.mark_read(&requester, &request.room_id, vec![receipt]).await?;
    presences.active(&requester);
    Ok(Ruma(create_receipt::v3::Response::new()))
}

/// `POST /rooms/{roomId}/read_markers`.
async fn set_read_marker(
    State(rooms): State<Rooms>,
    State(presences): State<Presences>,
    requester: Requester,
    Ruma(request): Ruma<set_read_marker::v3::Request>,
) -> Result<Ruma<set_read_marker::v3::Response>, MatrixError> {
    let marks = [
        (ReceiptKind::FullyRead, request.fully_read),
        (ReceiptKind::Read, request.read_receipt),
        (ReceiptKind::ReadPrivate, request.private_read_receipt),
    ];
    let receipts = marks
        .into_iter()
        .filter_map(|(kind, event_id)| Some(ReceiptRequest { kind, event_id: event_id?, thread: None }))
        .collect();
    rooms.mark_read(&requester, &request.room_id, receipts).await?;
    presences.active(&requester);
    Ok(Ruma(set_read_marker::v3::Response::new()))
}
