//! `devices`: somebody's devices, and which of them are verified.

use client::Client;
use ruma::OwnedUserId;

use crate::{
    failure::Failure,
    show::{print, safe_line, table},
};

pub(crate) async fn list(client: &Client, user: Option<OwnedUserId>) -> Result<(), Failure> {
    let user = user.unwrap_or_else(|| client.user_id().to_owned());
    let mut rows = Vec::new();
    for device in client.devices(&user).await? {
        let is_this = user == *client.user_id() && device.device_id == *client.device_id();
        let trust = match client.is_verified(&user, &device.device_id).await? {
            _ if is_this => "this one",
            true => "verified",
            false => "not verified",
        };
        let name = device.keys.get("unsigned").and_then(|unsigned| unsigned.get("device_display_name"));
        let name = name.and_then(|name| name.as_str()).map(safe_line).unwrap_or_default();
        rows.push([safe_line(device.device_id.as_str()), trust.to_owned(), name]);
    }
    print(table(["DEVICE", "TRUST", "NAME"], &rows))?;
    Ok(())
}
