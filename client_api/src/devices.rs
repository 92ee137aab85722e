//! The requester's devices. Client-Server API, "Device Management".

use accounts::Accounts;
use axum::{Router, extract::State};
use http::StatusCode;
use ruma::{
    MilliSecondsSinceUnixEpoch, UInt,
    api::client::device::{Device, delete_device, delete_devices, get_device, get_devices, update_device},
};
use serde_json::json;
use storage::DeviceRow;
use web::{MatrixError, Ruma, RumaRoutes as _};

use crate::{
    ClientApi,
    requester::{GuestOrRequester, Requester},
    uiaa,
};

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new()
        .ruma_route(get_devices)
        .ruma_route(get_device)
        .ruma_route(update_device)
        .ruma_route(delete_device)
        .ruma_route(delete_devices)
}

fn device(row: DeviceRow) -> Device {
    let mut device = Device::new(row.device_id.into());
    device.display_name = row.display_name;
    device.last_seen_ip = row.last_seen_ip;
    let at_ms = row.last_seen_at_ms.and_then(|at_ms| UInt::try_from(at_ms).ok());
    device.last_seen_ts = at_ms.map(MilliSecondsSinceUnixEpoch);
    device
}

/// `GET /devices`.
async fn get_devices(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(_request): Ruma<get_devices::v3::Request>,
) -> Result<Ruma<get_devices::v3::Response>, MatrixError> {
    let devices = accounts.devices(&requester).await?;
    Ok(Ruma(get_devices::v3::Response::new(devices.into_iter().map(device).collect())))
}

/// `GET /devices/{deviceId}`.
async fn get_device(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<get_device::v3::Request>,
) -> Result<Ruma<get_device::v3::Response>, MatrixError> {
    let found = accounts.device(&requester, request.device_id.as_str()).await?;
    Ok(Ruma(get_device::v3::Response::new(device(found))))
}

/// `PUT /devices/{deviceId}`. 201 when an application service made it.
async fn update_device(
    State(accounts): State<Accounts>,
    requester: GuestOrRequester,
    Ruma(request): Ruma<update_device::v3::Request>,
) -> Result<(StatusCode, Ruma<update_device::v3::Response>), MatrixError> {
    let made = accounts.name_device(&requester, request.device_id.as_str(), request.display_name).await?;
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Ruma(update_device::v3::Response::new())))
}

/// `DELETE /devices/{deviceId}`.
async fn delete_device(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<delete_device::v3::Request>,
) -> Result<Ruma<delete_device::v3::Response>, MatrixError> {
    let body = json!({"devices": [request.device_id]});
    uiaa::confirm(&accounts, &requester, "delete_device", body, request.auth.as_ref()).await?;
    accounts.delete_devices(&requester, &[request.device_id.to_string()]).await?;
    Ok(Ruma(delete_device::v3::Response::new()))
}

/// `POST /delete_devices`.
async fn delete_devices(
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<delete_devices::v3::Request>,
) -> Result<Ruma<delete_devices::v3::Response>, MatrixError> {
    let body = json!({"devices": request.devices});
    uiaa::confirm(&accounts, &requester, "delete_devices", body, request.auth.as_ref()).await?;
    let devices: Vec<String> = request.devices.iter().map(ToString::to_string).collect();
    accounts.delete_devices(&requester, &devices).await?;
    Ok(Ruma(delete_devices::v3::Response::new()))
}
