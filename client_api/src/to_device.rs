//! Messages from device to device. Client-Server API, "Send-to-Device messaging".

use accounts::Accounts;
use axum::{Router, extract::State};
use ruma::api::client::to_device::send_event_to_device;
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{ClientApi, requester::GuestOrRequester};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(send_event_to_device)
}

/// `PUT /sendToDevice/{eventType}/{txnId}`.
async fn send_event_to_device(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<send_event_to_device::v3::Request>,
) -> Result<Ruma<send_event_to_device::v3::Response>, MatrixError> {
    let event_type = request.event_type.to_string();
    accounts.send_to_device(&requester, &event_type, &request.txn_id, request.messages).await?;
    Ok(Ruma(send_event_to_device::v3::Response::new()))
}
