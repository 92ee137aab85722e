//! Asking policy servers. Server-Server API, "Asking for a Policy Server signature on an event".

use std::time::Duration;

use model::Pdu;
use outbound::Bounds;
use rooms::{PolicyAnswer, RemoteError};
use ruma::{ServerName, api::federation::policy::sign_event};
use serde_json::value::RawValue;

use crate::{Error, Federation, remote_servers::unavailable};

/// The room waits meanwhile.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), body_bytes_max: 64 << 10 };

/// The signature of a policy server on an event, asked for in the name of one of ours.
pub(crate) async fn sign(
    federation: &Federation,
    as_server: &ServerName,
    policy_server: &ServerName,
    pdu: &Pdu,
) -> Result<PolicyAnswer, RemoteError> {
    let failed = |error| Err(unavailable(policy_server, error));
    let pdu = match RawValue::from_string(pdu.json.to_string()) {
        Ok(pdu) => pdu,
        Err(error) => return failed(Error::BadRequest(error.to_string())),
    };
    let request = sign_event::v1::Request::new(pdu);
    match federation.client().send(as_server, policy_server, request, BOUNDS).await {
        Ok(response) => match response.ed25519_signature(policy_server) {
            Some(signature) => Ok(PolicyAnswer::Signature(signature.to_owned())),
            None => {
                let what = "it answered without its signature".to_owned();
                failed(Error::Misbehaved { server: policy_server.to_owned(), what })
            }
        },
        Err(Error::Refused { error, .. }) => Ok(PolicyAnswer::Refusal(error)),
        Err(error) => failed(error),
    }
}
