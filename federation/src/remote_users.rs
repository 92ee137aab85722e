//! What `accounts` asks of other servers.

use std::{collections::BTreeMap, sync::Arc};

use accounts::{Asking, RemoteError, RemoteUsers};
use ruma::{
    OwnedDeviceId, OwnedUserId, ServerName, UserId,
    api::{
        error::ErrorKind,
        federation::{
            device::get_devices,
            keys::{claim_keys, get_keys},
            query::get_profile_information,
        },
    },
};
use serde_json::{Map, Value};

use crate::{Error, Federation, client::SMALL};

impl RemoteUsers for Federation {
    fn federates_with(&self, server: &ServerName) -> bool {
        self.options().lists.allow(server)
    }

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

    fn devices<'a>(&'a self, as_server: &'a ServerName, user_id: &'a UserId) -> Asking<'a, get_devices::v1::Response> {
        Box::pin(async move {
            let server = user_id.server_name();
            let request = get_devices::v1::Request::new(user_id.to_owned());
            self.client().send(as_server, server, request, SMALL).await.map_err(|error| failed(server, error))
        })
    }

    fn query_keys<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        wanted: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
    ) -> Asking<'a, get_keys::v1::Response> {
        Box::pin(async move {
            let request = get_keys::v1::Request::new(wanted);
            self.client().send(as_server, server, request, SMALL).await.map_err(|error| failed(server, error))
        })
    }

    fn claim_keys<'a>(
        &'a self,
        as_server: &'a ServerName,
        server: &'a ServerName,
        wanted: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
    ) -> Asking<'a, claim_keys::v1::Response> {
        Box::pin(async move {
            let wanted = wanted.into_iter().map(|(user_id, devices)| {
                (user_id, devices.into_iter().map(|(device_id, algorithm)| (device_id, algorithm.into())).collect())
            });
            let request = claim_keys::v1::Request::new(wanted.collect());
            self.client().send(as_server, server, request, SMALL).await.map_err(|error| failed(server, error))
        })
    }
}

fn failed(server: &ServerName, error: Error) -> RemoteError {
    let server = server.to_owned();
    match error {
        Error::Unreachable { .. } => RemoteError::Unavailable { server, source: Arc::new(error) },
        error => RemoteError::Refused { server, source: Arc::new(error) },
    }
}
