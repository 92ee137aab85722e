//! The form that was accepted. MSC4186, "API".

use std::collections::{BTreeMap, BTreeSet};

use axum::{extract::State, response::Response};
use http::request::Parts;
use ruma::OwnedRoomId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sync::{
    Sync,
    sliding::{self, List, Pattern, Request, RequiredState, RoomConfig},
};
use web::{JsonBody, MatrixError, RateLimits, RequesterOrGuest};

use super::{
    Body, Common, ExtensionsAsked, Filters, HeroShown, answer, availability, check_rate, or_default, timeline_limit,
};

pub(super) const PATH: &str = "/_matrix/client/v4/sync";

/// Most rooms that are asked for by name.
const SUBSCRIPTIONS_MAX: usize = 100;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    conn_id: Option<String>,
    pos: Option<String>,
    timeout: Option<u64>,
    set_presence: Option<String>,
    #[serde(deserialize_with = "or_default")]
    lists: BTreeMap<String, ListAsked>,
    #[serde(deserialize_with = "or_default")]
    room_subscriptions: BTreeMap<OwnedRoomId, ConfigAsked>,
    #[serde(deserialize_with = "or_default")]
    extensions: ExtensionsAsked,
}

#[derive(Debug, Deserialize)]
struct ListAsked {
    timeline_limit: u64,
    required_state: StateAsked,
    range: Option<(u64, u64)>,
    filters: Option<Filters>,
}

#[derive(Debug, Deserialize)]
struct ConfigAsked {
    timeline_limit: u64,
    required_state: StateAsked,
}

/// MSC4186, "`RequiredStateRequest`".
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StateAsked {
    #[serde(deserialize_with = "or_default")]
    include: Vec<Element>,
    #[serde(deserialize_with = "or_default")]
    exclude: Vec<Element>,
    #[serde(deserialize_with = "or_default")]
    lazy_members: bool,
}

#[derive(Debug, Deserialize)]
struct Element {
    r#type: Option<String>,
    state_key: Option<String>,
}

/// `POST /_matrix/client/v4/sync`.
pub(super) async fn sync(
    State(sync): State<Sync>,
    State(rate_limits): State<RateLimits>,
    RequesterOrGuest(requester): RequesterOrGuest,
    parts: Parts,
    JsonBody(asked): Body<Asked>,
) -> Result<Response, MatrixError> {
    check_rate(&rate_limits, &parts, asked.pos.as_deref())?;
    drop(parts);
    let availability = availability(asked.set_presence.as_deref())?;
    let request = to_request(asked)?;
    // Until the answer is ready.
    let _syncing = sync.presences().syncs(&requester, availability).await?;
    let response = Box::pin(sync.sliding_sync(&requester, &request)).await?;
    answer(&response, RoomShown::of)
}

fn to_request(asked: Asked) -> Result<Request, MatrixError> {
    let common = Common {
        conn_id: asked.conn_id,
        pos: asked.pos,
        timeout_ms: asked.timeout,
        lists: asked.lists,
        subscriptions: asked.room_subscriptions,
        extensions: asked.extensions,
    };
    let list = |name: &str, list: ListAsked| {
        if !is_opaque_identifier(name) {
            return Err(MatrixError::invalid_param("the name of a list is no opaque identifier"));
        }
        Ok(List {
            ranges: list.range.map(|range| vec![range]),
            filters: list.filters.unwrap_or_default().into_model()?,
            config: config(list.timeline_limit, list.required_state),
        })
    };
    let subscription = |asked: ConfigAsked| config(asked.timeline_limit, asked.required_state);
    common.into_request(SUBSCRIPTIONS_MAX, list, subscription)
}

/// Appendices, "Opaque Identifiers".
fn is_opaque_identifier(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    (1..=255).contains(&text.len()) && text.bytes().all(is_allowed)
}

fn config(limit: u64, state: StateAsked) -> RoomConfig {
    // Of members that are loaded lazily only those that are named are wanted at once. MSC4186, "Lazy loaded memberships".
    let narrowed = if state.lazy_members { BTreeSet::from(["m.room.member".to_owned()]) } else { BTreeSet::new() };
    let patterns = |elements: Vec<Element>| {
        elements
            .into_iter()
            .map(|element| Pattern { event_type: element.r#type, state_key: element.state_key })
            .collect()
    };
    let required_state = RequiredState {
        include: patterns(state.include),
        exclude: patterns(state.exclude),
        narrowed,
        lazy_members: state.lazy_members,
    };
    RoomConfig { timeline_limit: timeline_limit(limit), required_state }
}

/// MSC4186, "`RoomResult`".
#[derive(Serialize)]
struct RoomShown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    bump_stamp: Option<i64>,
    membership: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    lists: &'a [String],
    /// Null when there is none any more, as with the picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar: Option<&'a Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heroes: Option<Vec<HeroShown<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_dm: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    initial: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expanded_timeline: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    required_state: Vec<StateShown<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    timeline: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_live: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invited_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripped_state: Option<&'a [Box<RawValue>]>,
}

/// An event, or what is left of one. MSC4186, "`StateStub` type".
#[derive(Serialize)]
#[serde(untagged)]
enum StateShown<'a> {
    Event(&'a RawValue),
    Stub {
        #[serde(rename = "type")]
        event_type: &'a str,
        state_key: &'a str,
    },
}

impl<'a> RoomShown<'a> {
    fn of(room: &'a sliding::Room) -> Self {
        let events = room.required_state.iter().map(|event| StateShown::Event(event));
        let stubs = room.deleted_state.iter().map(|(event_type, state_key)| StateShown::Stub { event_type, state_key });
        Self {
            bump_stamp: room.bump_stamp.map(|position| position.0),
            membership: room.membership.as_str(),
            lists: &room.lists,
            name: room.name.as_ref(),
            avatar: room.avatar.as_ref(),
            heroes: room.heroes.as_ref().map(|heroes| heroes.iter().map(HeroShown::of).collect()),
            is_dm: room.is_dm,
            initial: room.initial,
            expanded_timeline: room.expanded_timeline,
            required_state: events.chain(stubs).collect(),
            timeline: &room.timeline,
            prev_batch: room.prev_batch.as_deref(),
            limited: room.limited,
            num_live: room.num_live,
            joined_count: room.joined_count,
            invited_count: room.invited_count,
            stripped_state: room.stripped_state.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_list_is_an_opaque_identifier() {
        for (name, expected) in [
            ("all-rooms_1.x~", true),
            ("", false),
            ("a b", false),
            ("ä", false),
            (&"a".repeat(255), true),
            (&"a".repeat(256), false),
        ] {
            assert_eq!(is_opaque_identifier(name), expected, "{name}");
        }
    }

    #[test]
    fn a_request_has_its_bounds() {
        let to_request = |body: serde_json::Value| to_request(serde_json::from_value(body).unwrap());
        let list = |range: [u64; 2]| serde_json::json!({"lists": {"a": {"timeline_limit": 1, "required_state": {}, "range": range}}});
        assert!(to_request(list([0, 0])).is_ok());
        assert!(to_request(list([0, u64::MAX])).is_ok());
        assert!(to_request(list([2, 1])).is_err());
        let subscriptions = |count: usize| {
            let rooms: serde_json::Map<_, _> = (0..count)
                .map(|nr| (format!("!{nr}:x"), serde_json::json!({"timeline_limit": 1, "required_state": {}})))
                .collect();
            serde_json::json!({ "room_subscriptions": rooms })
        };
        assert!(to_request(subscriptions(100)).is_ok());
        assert!(to_request(subscriptions(101)).is_err());
    }

    #[test]
    fn deleted_state_is_a_stub_without_content() {
        let event = serde_json::value::to_raw_value(&serde_json::json!({"type": "a", "content": {}})).unwrap();
        let shown = [StateShown::Event(&event), StateShown::Stub { event_type: "b", state_key: "k" }];
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(json, serde_json::json!([{"type": "a", "content": {}}, {"type": "b", "state_key": "k"}]));
    }
}
