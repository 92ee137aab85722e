//! What `accounts` asks of other servers.

use std::sync::Arc;

use accounts::{Asking, RemoteError, RemoteUsers};
use ruma::{
    ServerName, UserId,
    api::{error::ErrorKind, federation::query::get_profile_information},
};
use serde_json::{Map, Value};

use crate::{Error, Federation, client::SMALL};

impl RemoteUsers for Federation {
    fn profile<'a>(&'a self, as_server: &'a ServerName, user_id: &'a UserId) -> Asking<'a, Option<Map<String, Value>>> {
        Box::pin(async move {
            let server = user_id.server_name();
            let request = get_profile_information::v1::Request::new(user_id.to_owned());
            match self.client().send(as_server, server, request, SMALL).await {
                Ok(response) => Ok(Some(response.into_iter().collect())),
                Err(Error::Refused { error, .. }) if error.error_kind() == Some(&ErrorKind::NotFound) => Ok(None),
                Err(error) if is_forbidden(&error) => Err(failed(server, error)),
                Err(error) => Err(RemoteError::Unavailable { server: server.to_owned(), source: Arc::new(error) }),
            }
        })
    }
}

/// Whether a server does not want to tell.
fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Refused { error, .. } if error.error_kind() == Some(&ErrorKind::Forbidden))
}

fn failed(server: &ServerName, error: Error) -> RemoteError {
    let server = server.to_owned();
    match error {
        Error::Refused { .. } => RemoteError::Refused { server, source: Arc::new(error) },
        error => RemoteError::Unavailable { server, source: Arc::new(error) },
    }
}
