//! Requests and answers in ruma's types.

use std::{any::TypeId, collections::BTreeMap};

use axum::{
    body::Body,
    extract::{FromRef, FromRequest, FromRequestParts as _, RawPathParams, Request},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, header, request::Parts};
use model::limits::{BODY_BYTES_MAX, TO_DEVICE_BODY_BYTES_MAX};
use ruma::api::{
    IncomingRequest, IncomingRequestExt as _, OutgoingResponse, OutgoingResponseExt as _,
    client::{
        account::{change_password, deactivate, register},
        device::{delete_device, delete_devices},
        keys::upload_signing_keys,
        profile::set_profile_field,
        session::{get_login_token, login},
        to_device::send_event_to_device,
        typing::create_typing_event,
    },
    error::{DeserializationError, FromHttpRequestError},
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json, value::RawValue};

use crate::{
    MatrixError, RateLimits, RumaArgument,
    body::{not_json_of_this_shape, read_body},
    rate_limits::Cost,
};

/// How long somebody types who does not say for how long, in milliseconds.
const TYPING_MS_DEFAULT: u64 = 30_000;

/// As an argument: the request of an endpoint, complete and of the right shape. As a result: its answer.
///
/// As an argument it must be the last one: it reads the body. What is wrong is answered as the specification has it (Client-Server
/// API, "Standard error response"): not JSON or broken UTF-8 `M_NOT_JSON`, JSON of another shape `M_BAD_JSON`, a missing query
/// parameter `M_MISSING_PARAM`, a bad value in path or query `M_INVALID_PARAM`, a body beyond the bound of its endpoint `M_TOO_LARGE`, too many
/// requests `M_LIMIT_EXCEEDED`. A `POST` or `DELETE` without a body counts as one with `{}`, as clients rely on.
#[derive(Clone, Debug)]
pub struct Ruma<T>(pub T);

impl<T: IncomingRequest> RumaArgument for Ruma<T> {
    type Request = T;
}

impl<S, T> FromRequest<S> for Ruma<T>
where
    S: Send + Sync,
    T: IncomingRequest + 'static,
    RateLimits: FromRef<S>,
{
    type Rejection = MatrixError;

    async fn from_request(request: Request, state: &S) -> Result<Self, MatrixError> {
        let (mut parts, body) = request.into_parts();
        let cost = if T::METHOD != Method::GET || T::RATE_LIMITED { Cost::Change } else { Cost::Read };
        RateLimits::from_ref(state).check(&parts, cost)?;
        let arguments = path_arguments(&mut parts, state).await?;
        let arguments: Vec<&str> = arguments.iter().map(|(_, value)| value).collect();
        let body = if T::METHOD == Method::GET {
            Bytes::new()
        } else {
            read_body(&parts.headers, body, body_bytes_max::<T>()).await?
        };
        let is_empty_json =
            body.is_empty() && matches!(T::METHOD, Method::POST | Method::DELETE) && is_json(&parts.headers);
        let body = if is_empty_json { b"{}".as_slice() } else { &body };
        refuse_what_ruma_cannot_read::<T>(body)?;
        let field = only_profile_field::<T>(body, &arguments)?;
        let changed = field.or_else(|| with_readable_auth::<T>(body)).or_else(|| with_typing_timeout::<T>(body));
        let body = changed.as_deref().unwrap_or(body);
        request_of(http::Request::from_parts(parts, body), &arguments).map(Self)
    }
}

/// Largest body of an endpoint, in bytes.
fn body_bytes_max<T: 'static>() -> usize {
    match TypeId::of::<T>() == TypeId::of::<send_event_to_device::v3::Request>() {
        true => TO_DEVICE_BODY_BYTES_MAX,
        false => BODY_BYTES_MAX,
    }
}

/// The arguments in the path of a request, decoded.
///
/// # Errors
///
/// [`MatrixError::invalid_param`] when they are not UTF-8.
pub async fn path_arguments<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<RawPathParams, MatrixError> {
    let arguments = RawPathParams::from_request_parts(parts, state).await;
    arguments.map_err(|_| MatrixError::invalid_param("the path is not UTF-8 in percent-encoding"))
}

/// Reads a request of ruma's from its parts; `arguments` are those of its path, decoded.
///
/// # Errors
///
/// As [`Ruma`] has them.
pub fn request_of<T: IncomingRequest>(request: http::Request<&[u8]>, arguments: &[&str]) -> Result<T, MatrixError> {
    T::try_from_http_request(request, arguments).map_err(|error| not_understood(&error))
}

/// Whether the body counts as JSON: clients may leave the type out (Client-Server API, "API Standards").
fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return true };
    content_type.as_bytes().get(..16).is_some_and(|start| start.eq_ignore_ascii_case(b"application/json"))
}

/// A login without a `type` makes ruma 0.17 panic instead of fail.
fn refuse_what_ruma_cannot_read<T: 'static>(body: &[u8]) -> Result<(), MatrixError> {
    #[derive(Deserialize)]
    struct Login {
        r#type: Option<IgnoredAny>,
    }
    if TypeId::of::<T>() == TypeId::of::<login::v3::Request>() {
        let login: Login = serde_json::from_slice(body).map_err(|error| not_json_of_this_shape(&error))?;
        login.r#type.ok_or_else(|| MatrixError::missing_param("missing parameter `type`"))?;
    }
    Ok(())
}

/// The body with its `auth` as ruma can read it.
///
/// An `auth` that has neither a type nor a session is left out: clients ask for the stages in this way too, and no field of it is
/// required (Client-Server API, "User-interactive API in the REST API"), but ruma wants one of them. A password stage that names its
/// user in the way of before the `identifier` gets one: clients in use still do so.
fn with_readable_auth<T: 'static>(body: &[u8]) -> Option<Vec<u8>> {
    let with_auth = [
        TypeId::of::<change_password::v3::Request>(),
        TypeId::of::<deactivate::v3::Request>(),
        TypeId::of::<delete_device::v3::Request>(),
        TypeId::of::<delete_devices::v3::Request>(),
        TypeId::of::<get_login_token::v1::Request>(),
        TypeId::of::<register::v3::Request>(),
        TypeId::of::<upload_signing_keys::v3::Request>(),
    ];
    if !with_auth.contains(&TypeId::of::<T>()) {
        return None;
    }
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body).ok()?;
    let mut auth: BTreeMap<String, Value> = serde_json::from_str(fields.get("auth")?.get()).ok()?;
    if !auth.contains_key("type") && !auth.contains_key("session") {
        fields.remove("auth");
    } else if auth.get("type")? == "m.login.password" && !auth.contains_key("identifier") {
        let identifier = json!({"type": "m.id.user", "user": auth.get("user")?});
        auth.insert("identifier".to_owned(), identifier);
        fields.insert("auth".to_owned(), serde_json::value::to_raw_value(&auth).ok()?);
    } else {
        return None;
    }
    serde_json::to_vec(&fields).ok()
}

/// The body with nothing but the profile field that the path names: ruma 0.17 cannot read one with others in it.
fn only_profile_field<T: 'static>(body: &[u8], arguments: &[&str]) -> Result<Option<Vec<u8>>, MatrixError> {
    let (true, Some(name)) = (TypeId::of::<T>() == TypeId::of::<set_profile_field::v3::Request>(), arguments.get(1))
    else {
        return Ok(None);
    };
    let mut fields: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(body).map_err(|error| not_json_of_this_shape(&error))?;
    let value = fields.remove(*name);
    let value = value.ok_or_else(|| MatrixError::missing_param(format!("missing parameter `{name}`")))?;
    Ok(serde_json::to_vec(&BTreeMap::from([(name, value)])).ok())
}

/// The body with a `timeout`, when somebody types without one: it is not required (Client-Server API, "Typing Notifications"), but ruma
/// wants it.
fn with_typing_timeout<T: 'static>(body: &[u8]) -> Option<Vec<u8>> {
    if TypeId::of::<T>() != TypeId::of::<create_typing_event::v3::Request>() {
        return None;
    }
    let mut fields: BTreeMap<String, Value> = serde_json::from_slice(body).ok()?;
    if fields.get("timeout").is_some_and(|timeout| !timeout.is_null()) {
        return None;
    }
    fields.insert("timeout".to_owned(), TYPING_MS_DEFAULT.into());
    serde_json::to_vec(&fields).ok()
}

fn not_understood(error: &FromHttpRequestError) -> MatrixError {
    let FromHttpRequestError::Deserialization(error) = error else { return MatrixError::method_not_allowed() };
    match error {
        DeserializationError::Json(json) => not_json_of_this_shape(json),
        DeserializationError::Utf8(utf8) => MatrixError::not_json(utf8.to_string()),
        // Of a missing parameter the parser tells in its text only.
        DeserializationError::Query(query) if query.to_string().starts_with("missing field") => {
            MatrixError::missing_param(query.to_string().replacen("missing field", "missing parameter", 1))
        }
        other => MatrixError::invalid_param(other.to_string()),
    }
}

impl<T: OutgoingResponse> IntoResponse for Ruma<T> {
    fn into_response(self) -> Response {
        match self.0.try_into_http_response::<BytesMut>() {
            Ok(response) => response.map(|body| Body::from(body.freeze())).into_response(),
            Err(error) => MatrixError::internal(&error).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::api::error::ErrorKind;

    use super::*;

    #[test]
    fn an_auth_that_says_nothing_counts_as_none() {
        let without = |body: &str| {
            with_readable_auth::<change_password::v3::Request>(body.as_bytes())
                .map(|body| String::from_utf8(body).unwrap())
        };
        assert_eq!(without(r#"{"auth":{},"new_password":"a"}"#).as_deref(), Some(r#"{"new_password":"a"}"#));
        assert_eq!(without(r#"{"auth":{"user":"a"}}"#).as_deref(), Some("{}"));
        assert_eq!(without(r#"{"auth":{"type":"m.login.dummy"}}"#), None);
        assert_eq!(without(r#"{"auth":{"session":"s"}}"#), None);
        assert_eq!(without(r#"{"auth":1}"#), None);
        assert_eq!(without("{}"), None);
        assert_eq!(with_readable_auth::<login::v3::Request>(br#"{"auth":{}}"#), None);
    }

    #[test]
    fn a_profile_field_is_found_among_others_or_missing() {
        let read = |body: &str| {
            only_profile_field::<set_profile_field::v3::Request>(body.as_bytes(), &["@a:b.test", "displayname"])
                .map(|body| String::from_utf8(body.unwrap()).unwrap())
                .map_err(|error| error.kind().cloned().unwrap())
        };
        assert_eq!(read("{}"), Err(ErrorKind::MissingParam));
        assert_eq!(read(r#"{"avatar_url":"mxc://a.test/b"}"#), Err(ErrorKind::MissingParam));
        assert_eq!(read("[]"), Err(ErrorKind::BadJson));
        assert_eq!(read("{"), Err(ErrorKind::NotJson));
        let field = r#"{"displayname":"A"}"#.to_owned();
        assert_eq!(read(r#"{"a":1,"displayname":"A","z":{}}"#), Ok(field));
        assert!(only_profile_field::<login::v3::Request>(b"{}", &["@a:b.test", "displayname"]).unwrap().is_none());
    }

    #[test]
    fn a_password_stage_may_name_its_user_in_the_old_way() {
        let read = |body: &str| {
            let changed = with_readable_auth::<delete_devices::v3::Request>(body.as_bytes());
            let body = changed.as_deref().unwrap_or(body.as_bytes()).to_vec();
            let body: Value = serde_json::from_slice(&body).unwrap();
            serde_json::from_value::<ruma::api::client::uiaa::AuthData>(body["auth"].clone()).is_ok()
        };
        assert!(read(
            r#"{"devices":[],"auth":{"type":"m.login.password","user":"alice","password":"p","session":"s"}}"#
        ));
        assert!(!read(r#"{"devices":[],"auth":{"type":"m.login.password","password":"p","session":"s"}}"#));
    }
}
