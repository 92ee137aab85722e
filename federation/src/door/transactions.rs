//! Transactions: events and EDUs of other servers. Server-Server API, "Transactions".

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use model::{
    JsonShape,
    limits::{TRANSACTION_ID_BYTES_MAX, is_name},
};
use rooms::{Error, Received, Source};
use ruma::{OwnedEventId, api::federation::transactions::send_transaction_message};
use serde::Serialize;
use storage::ReceivedTransactionKey;
use web::{MatrixError, RumaRoutes as _};

use super::{FederationApi, Signed};
use crate::edus::{self, ReceivedEdu};

/// Most PDUs of a transaction.
const PDUS_MAX: usize = 50;

/// Most EDUs of a transaction.
const EDUS_MAX: usize = 100;

/// How long a server is told to wait that sends more transactions at once than it may.
const WAIT: Duration = Duration::from_secs(5);

pub(super) fn routes() -> Router<FederationApi> {
    Router::new().ruma_route(send_transaction_message)
}

/// `PUT /_matrix/federation/v1/send/{txnId}`.
async fn send_transaction_message(
    State(api): State<FederationApi>,
    Signed { origin, destination, request }: Signed<send_transaction_message::v1::Request>,
) -> Result<Response, MatrixError> {
    if request.pdus.len() > PDUS_MAX || request.edus.len() > EDUS_MAX {
        let message = format!("a transaction has at most {PDUS_MAX} PDUs and {EDUS_MAX} EDUs");
        return Err(MatrixError::invalid_param(message));
    }
    let transaction_id = request.transaction_id.to_string();
    if !is_name(&transaction_id, TRANSACTION_ID_BYTES_MAX) {
        return Err(MatrixError::invalid_param(format!(
            "a transaction id has 1 to {TRANSACTION_ID_BYTES_MAX} bytes, none of them zero"
        )));
    }
    let key = ReceivedTransactionKey { destination, origin, transaction_id };
    let entered = api.federation.transactions().enter(&key).ok_or_else(|| MatrixError::limit_exceeded(WAIT))?;
    let memory = api.federation.transactions().memory_for(&key.origin, weight_of(&request), WAIT).await;
    let memory = memory.ok_or_else(|| MatrixError::limit_exceeded(WAIT))?;
    // A task of its own, so that a server that hangs up does not stop it half-way.
    let work = async move {
        let worked = Box::pin(work_off(&api, key.clone(), request));
        let answer = api.federation.transactions().once(entered, key, worked).await;
        drop(memory);
        answer
    };
    let answer = tokio::spawn(work).await.map_err(|_| MatrixError::busy())??;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

/// Takes in what a transaction has, and says what became of its PDUs.
async fn work_off(
    api: &FederationApi,
    key: ReceivedTransactionKey,
    request: send_transaction_message::v1::Request,
) -> Result<String, MatrixError> {
    let ReceivedTransactionKey { destination, origin, .. } = &key;
    let source = Source { as_server: destination, server: origin };
    let received = api.rooms.receive(source, request.pdus).await?;
    let edus = request.edus.iter().filter_map(|edu| serde_json::from_str::<ReceivedEdu>(edu.json().get()).ok());
    edus::take_in(api, destination, origin, edus.collect()).await?;
    let pdus = received.into_iter().map(|(event_id, received)| (event_id, PduResult { error: complaint(received) }));
    serde_json::to_string(&Answer { pdus: pdus.collect() }).map_err(|error| MatrixError::internal(&error))
}

/// The memory that a transaction takes while it is worked off, in bytes, roughly.
fn weight_of(request: &send_transaction_message::v1::Request) -> usize {
    let pdus = request.pdus.iter().map(|pdu| pdu.get());
    pdus.chain(request.edus.iter().map(|edu| edu.json().get())).map(|json| JsonShape::of(json.as_bytes()).weight).sum()
}

#[derive(Serialize)]
struct Answer {
    pdus: BTreeMap<OwnedEventId, PduResult>,
}

#[derive(Serialize)]
struct PduResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What its server is told of an event that was not taken in. Of a soft failure it is not told: that is our view of the room.
fn complaint(received: Result<Received, Error>) -> Option<String> {
    match received {
        Ok(Received::Known | Received::Accepted | Received::SoftFailed(_)) => None,
        Ok(Received::Rejected(rule)) => Some(rule),
        Ok(Received::Missing(missing)) => {
            let missing: Vec<&str> = missing.iter().map(|id| id.as_str()).collect();
            Some(format!("it refers to events that could not be had: {}", missing.join(", ")))
        }
        Err(error) => Some(error.to_string()),
    }
}
