//! EDUs of other servers. Server-Server API, "EDUs".
//!
//! One that is broken, or speaks of somebody else's users, is passed over: the others of its transaction count all the same.

mod ephemeral;

use ruma::{
    ServerName,
    api::federation::transactions::edu::{
        DeviceListUpdateContent, DirectDeviceContent, ReceiptContent, SigningKeyUpdateContent, TypingContent,
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tracing::debug;
use web::MatrixError;

use self::ephemeral::{PresenceContent, take_presence, take_receipts, take_typing};
use crate::FederationApi;

/// An EDU as it came.
#[derive(Debug, Deserialize)]
pub(crate) struct ReceivedEdu {
    /// Its type.
    pub(crate) edu_type: String,
    /// Its content, of whatever shape.
    pub(crate) content: Box<RawValue>,
}

/// The EDUs of a transaction, by type, each type in order.
#[derive(Debug, Default)]
struct Sorted {
    to_device: Vec<DirectDeviceContent>,
    device_lists: Vec<DeviceListUpdateContent>,
    signing_keys: Vec<SigningKeyUpdateContent>,
    typing: Vec<TypingContent>,
    receipts: Vec<ReceiptContent>,
    presence: Vec<PresenceContent>,
}

/// Takes in EDUs that `origin` sent to `local`, one of our names. What we do not know, and what has not the shape of its type, is dropped.
///
/// Messages to devices, and that keys changed, are durable when this returns. Who is typing, has read or is there may be lost.
///
/// # Errors
///
/// Only for a failure of ours: the whole transaction is sent again then. What of it was done is not done twice.
pub(crate) async fn take_in(
    api: &FederationApi,
    local: &ServerName,
    origin: &ServerName,
    edus: Vec<ReceivedEdu>,
) -> Result<(), MatrixError> {
    let mut sorted = Sorted::default();
    for edu in &edus {
        if let Err(error) = sorted.add(edu) {
            debug!(server.name = %origin, edu.r#type = edu.edu_type, %error, "dropped an EDU of {origin}");
        }
    }
    drop(edus);
    // Boxed: most transactions have none of these.
    Box::pin(api.accounts.receive_to_device(origin, local, sorted.to_device)).await?;
    Box::pin(api.accounts.take_device_updates(origin, sorted.device_lists, sorted.signing_keys)).await?;
    let passing = Box::pin(async {
        take_typing(api, origin, sorted.typing).await?;
        take_receipts(api, origin, sorted.receipts).await?;
        take_presence(api, origin, sorted.presence).await
    });
    if let Err(error) = passing.await {
        let error = &error as &dyn std::error::Error;
        debug!(server.name = %origin, error, "who is typing, has read or is there at {origin} is lost");
    }
    Ok(())
}

impl Sorted {
    fn add(&mut self, edu: &ReceivedEdu) -> Result<(), serde_json::Error> {
        fn read<T: DeserializeOwned>(content: &RawValue, into: &mut Vec<T>) -> Result<(), serde_json::Error> {
            into.push(serde_json::from_str(content.get())?);
            Ok(())
        }
        let content = &*edu.content;
        match &*edu.edu_type {
            "m.direct_to_device" => read(content, &mut self.to_device),
            "m.device_list_update" => read(content, &mut self.device_lists),
            "m.signing_key_update" => read(content, &mut self.signing_keys),
            "m.typing" => read(content, &mut self.typing),
            "m.receipt" => read(content, &mut self.receipts),
            "m.presence" => read(content, &mut self.presence),
            _ => Ok(()),
        }
    }
}
