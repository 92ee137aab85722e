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
            let answer = self.client().send(as_server, server, request, SMALL).await;
            let kind = |error: &Error| match error {
                Error::Refused { error, .. } => error.error_kind().cloned(),
                _ => None,
            };
            answer.map(|response| Some(response.into_iter().collect())).or_else(|error| match kind(&error) {
                Some(ErrorKind::NotFound) => Ok(None),
                Some(ErrorKind::Forbidden) => {
                    Err(RemoteError::Refused { server: server.to_owned(), source: Arc::new(error) })
                }
                _ => Err(RemoteError::Unavailable { server: server.to_owned(), source: Arc::new(error) }),
            })
        })
    }
}
