//! Making a room. Client-Server API, "Creation".

use ::rooms::{NewRoomRequest, Preset, Rooms};
use accounts::Accounts;
use axum::{Router, extract::State};
use http::StatusCode;
use ruma::{
    RoomAliasId, ServerName,
    api::{
        client::room::{
            Visibility,
            create_room::{self, v3::RoomPreset},
        },
        error::ErrorKind,
    },
    events::AnyInitialStateEvent,
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use web::{MatrixError, Requester, Ruma, RumaRoutes as _};

use crate::ClientApi;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().ruma_route(create_room)
}

/// `POST /createRoom`.
async fn create_room(
    State(rooms): State<Rooms>,
    State(accounts): State<Accounts>,
    requester: Requester,
    Ruma(request): Ruma<create_room::v3::Request>,
) -> Result<Ruma<create_room::v3::Response>, MatrixError> {
    if !request.invite_3pid.is_empty() {
        return Err(no_identity_server());
    }
    let listed = match request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        _ => return Err(MatrixError::invalid_param("`visibility` is `public` or `private`")),
    };
    let preset = match request.preset {
        Some(RoomPreset::PrivateChat) => Preset::PrivateChat,
        Some(RoomPreset::PublicChat) => Preset::PublicChat,
        Some(RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        // Without one, who may see it in the directory may come in.
        None if listed => Preset::PublicChat,
        None => Preset::PrivateChat,
        Some(_) => return Err(MatrixError::invalid_param("there is no such `preset`")),
    };
    let alias = request.room_alias_name.map(|name| alias_of(&name, requester.user_id.server_name())).transpose()?;
    if let Some(alias) = &alias {
        accounts.check_alias(&requester, alias)?;
    }
    let new_room = NewRoomRequest {
        version: request.room_version,
        preset,
        listed,
        alias,
        name: request.name,
        topic: request.topic,
        invite: request.invite,
        is_direct: request.is_direct,
        creation_content: request.creation_content.map(Raw::into_json),
        initial_state: request.initial_state.iter().map(initial_state).collect::<Result<_, _>>()?,
        power_level_content_override: request.power_level_content_override.map(Raw::into_json),
    };
    let new_room = rooms.with_encryption_policy(new_room)?;
    let room_id = rooms.create_room(&requester, new_room).await.map_err(|error| match error {
        rooms::Error::AliasInUse => MatrixError::new(StatusCode::BAD_REQUEST, ErrorKind::RoomInUse, error.to_string()),
        other => other.into(),
    })?;
    Ok(Ruma(create_room::v3::Response::new(room_id)))
}

/// The alias of a local part. Appendices, "Room Aliases".
fn alias_of(name: &str, server: &ServerName) -> Result<ruma::OwnedRoomAliasId, MatrixError> {
    if name.is_empty() || name.contains([':', '\0']) || name.contains(char::is_whitespace) {
        return Err(MatrixError::invalid_param(
            "`room_alias_name` is the part between `#` and `:`, without white space",
        ));
    }
    RoomAliasId::parse(format!("#{name}:{server}"))
        .map_err(|error| MatrixError::invalid_param(format!("`room_alias_name`: {error}")))
}

fn initial_state(event: &Raw<AnyInitialStateEvent>) -> Result<(String, String, Box<RawValue>), MatrixError> {
    #[derive(Deserialize)]
    struct Event {
        #[serde(rename = "type")]
        event_type: String,
        #[serde(default)]
        state_key: String,
        content: Box<RawValue>,
    }
    let event: Event = serde_json::from_str(event.json().get())
        .map_err(|error| MatrixError::bad_json(format!("`initial_state`: {error}")))?;
    Ok((event.event_type, event.state_key, event.content))
}

/// The answer to invitations by mail address or telephone number: no identity server is asked here.
pub(super) fn no_identity_server() -> MatrixError {
    let message = "this server asks no identity server: invite by Matrix ID";
    MatrixError::new(StatusCode::FORBIDDEN, ErrorKind::ServerNotTrusted, message)
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    #[test]
    fn an_alias_is_made_of_a_local_part_only() {
        let server = server_name!("hs");
        assert_eq!(alias_of("kitchen", server).unwrap(), "#kitchen:hs");
        for bad in ["", "a:b", "a b", "a\tb", "a\0b", &"x".repeat(255)] {
            assert_eq!(alias_of(bad, server).unwrap_err().status(), StatusCode::BAD_REQUEST, "{bad:?}");
        }
    }

    #[test]
    fn initial_state_has_an_empty_key_unless_it_says_one() {
        let read = |json: &str| initial_state(&Raw::from_json(RawValue::from_string(json.to_owned()).unwrap()));
        let (event_type, state_key, content) = read(r#"{"type":"m.room.name","content":{"name":"x"}}"#).unwrap();
        assert_eq!((&*event_type, &*state_key, content.get()), ("m.room.name", "", r#"{"name":"x"}"#));
        assert_eq!(read(r#"{"type":"m.x","state_key":"k","content":{}}"#).unwrap().1, "k");
        for bad in [r#"{"content":{}}"#, r#"{"type":"m.x"}"#, r#"{"type":"m.x","state_key":5,"content":{}}"#] {
            assert_eq!(read(bad).unwrap_err().kind(), Some(&ErrorKind::BadJson), "{bad}");
        }
    }
}
