//! EDUs of other servers. Server-Server API, "EDUs".

use ruma::ServerName;
use serde::Deserialize;
use serde_json::value::RawValue;
use web::MatrixError;

use crate::FederationApi;

/// An EDU as it came.
#[derive(Debug, Deserialize)]
pub(crate) struct ReceivedEdu {
    /// Its type.
    pub(crate) edu_type: String,
    /// Its content, of whatever shape.
    pub(crate) content: Box<RawValue>,
}

/// Takes in EDUs that `origin` sent to `local`, one of our names, in order. What we do not know, and what has not the shape of its type, is
/// dropped.
///
/// # Errors
///
/// Only for a failure of ours: the whole transaction is sent again then.
pub(crate) async fn take_in(
    _api: &FederationApi,
    local: &ServerName,
    origin: &ServerName,
    edus: Vec<ReceivedEdu>,
) -> Result<(), MatrixError> {
    for ReceivedEdu { edu_type, content } in edus {
        let bytes = content.get().len();
        tracing::debug!(server.name = %origin, local.name = %local, edu.r#type = edu_type, bytes, "dropped an EDU of {origin}");
    }
    Ok(())
}
