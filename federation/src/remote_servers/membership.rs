//! Joining, leaving and knocking through servers that are in the room. Server-Server API, "Joining Rooms", "Leaving Rooms (Rejecting
//! Invites)", "Knocking upon a room".

use std::time::Duration;

use model::{Membership, Pdu, ROOM_VERSIONS};
use outbound::Bounds;
use rooms::{JoinAnswer, MemberTemplate, RemoteError};
use ruma::{
    OwnedServerName, RoomId, RoomVersionId, ServerName, UserId,
    api::{
        error::ErrorKind,
        federation::membership::{
            create_join_event, create_knock_event, create_leave_event, prepare_join_event, prepare_knock_event,
            prepare_leave_event,
        },
    },
};
use serde_json::value::RawValue;

use crate::{Error, Federation, client::SMALL};

/// What the state of a room may be: 50,000 events of state and as many that allow it, of a usual size.
const STATE: Bounds = Bounds { timeout: Duration::from_secs(180), body_bytes_max: 256 << 20 };

impl Federation {
    pub(super) async fn ask_for_template(
        &self,
        as_server: &ServerName,
        server: &ServerName,
        (room_id, user_id): (&RoomId, &UserId),
        membership: Membership,
    ) -> Result<MemberTemplate, RemoteError> {
        let (room_id, user_id) = (room_id.to_owned(), user_id.to_owned());
        let client = self.client();
        let (version, event) = match membership {
            Membership::Join => {
                let mut request = prepare_join_event::v1::Request::new(room_id, user_id);
                request.ver = ROOM_VERSIONS.to_vec();
                let answer = client.send(as_server, server, request, SMALL).await;
                answer.map(|answer| (answer.room_version, answer.event))
            }
            Membership::Knock => {
                let mut request = prepare_knock_event::v1::Request::new(room_id, user_id);
                request.ver = ROOM_VERSIONS.to_vec();
                let answer = client.send(as_server, server, request, SMALL).await;
                answer.map(|answer| (Some(answer.room_version), answer.event))
            }
            _ => {
                let request = prepare_leave_event::v1::Request::new(room_id, user_id);
                let answer = client.send(as_server, server, request, SMALL).await;
                answer.map(|answer| (answer.room_version, answer.event))
            }
        }
        .map_err(|error| remote_error(server, error))?;
        // Servers from before there were versions do not say it.
        Ok(MemberTemplate { version: version.unwrap_or(RoomVersionId::V1), event })
    }

    pub(super) async fn ask_to_join(
        &self,
        as_server: &ServerName,
        server: &ServerName,
        join: &Pdu,
        omit_members: bool,
    ) -> Result<JoinAnswer, RemoteError> {
        let mut request =
            create_join_event::v2::Request::new(join.room_id.clone(), join.event_id.clone(), json_of(join)?);
        request.omit_members = omit_members;
        let answer = self.client().send(as_server, server, request, STATE).await;
        let state = answer.map_err(|error| remote_error(server, error))?.room_state;
        Ok(JoinAnswer {
            event: state.event,
            state: state.state,
            auth_chain: state.auth_chain,
            members_omitted: state.members_omitted,
            servers: state.servers_in_room.unwrap_or_default(),
        })
    }

    pub(super) async fn ask_to_leave(
        &self,
        as_server: &ServerName,
        server: &ServerName,
        leave: &Pdu,
    ) -> Result<(), RemoteError> {
        let request =
            create_leave_event::v2::Request::new(leave.room_id.clone(), leave.event_id.clone(), json_of(leave)?);
        self.client().send(as_server, server, request, SMALL).await.map_err(|error| remote_error(server, error))?;
        Ok(())
    }

    pub(super) async fn ask_to_knock(
        &self,
        as_server: &ServerName,
        server: &ServerName,
        knock: &Pdu,
    ) -> Result<Vec<Box<RawValue>>, RemoteError> {
        let request =
            create_knock_event::v1::Request::new(knock.room_id.clone(), knock.event_id.clone(), json_of(knock)?);
        let answer = self.client().send(as_server, server, request, SMALL).await;
        let state = answer.map_err(|error| remote_error(server, error))?.knock_room_state;
        // Servers from before version 1.16 of the specification send no whole events: both are shown in the same way.
        let json = state.iter().map(serde_json::value::to_raw_value);
        json.collect::<Result<_, _>>()
            .map_err(|error| RemoteError::Misbehaved { server: server.to_owned(), what: error.to_string() })
    }
}

fn json_of(pdu: &Pdu) -> Result<Box<RawValue>, RemoteError> {
    RawValue::from_string(pdu.json.to_string()).map_err(|error| RemoteError::Misbehaved {
        server: pdu.sender.server_name().to_owned(),
        what: error.to_string(),
    })
}

/// What an error of ours says to who asked for something.
pub(super) fn remote_error(server: &ServerName, error: Error) -> RemoteError {
    let server: OwnedServerName = server.to_owned();
    match error {
        Error::Refused { error, .. } => {
            if let Some(ErrorKind::IncompatibleRoomVersion(data)) = error.error_kind() {
                return RemoteError::UnsupportedVersion(data.room_version.clone());
            }
            RemoteError::Refused { server, error }
        }
        Error::Misbehaved { what, .. } => RemoteError::Misbehaved { server, what },
        error => RemoteError::Unavailable { server, source: std::sync::Arc::new(error) },
    }
}
