//! The form that deployed clients speak. MSC4186 as of September 2025, at the path of its unstable prefix.

use std::collections::BTreeMap;

use axum::{
    extract::{Query, State},
    response::Response,
};
use http::request::Parts;
use model::Membership;
use ruma::{OwnedRoomId, UserId};
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

pub(super) const PATH: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";

/// Longest name of a list, in bytes.
const LIST_NAME_BYTES_MAX: usize = 64;
/// Most rooms that are asked for by name. This form says nothing of it.
const SUBSCRIPTIONS_MAX: usize = 1_000;

const MEMBER: &str = "m.room.member";

#[derive(Debug, Deserialize)]
pub(super) struct Parameters {
    pos: Option<String>,
    timeout: Option<u64>,
    set_presence: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    conn_id: Option<String>,
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
    #[serde(default, deserialize_with = "or_default")]
    required_state: Vec<(String, String)>,
    ranges: Option<Vec<(u64, u64)>>,
    filters: Option<Filters>,
}

#[derive(Debug, Deserialize)]
struct ConfigAsked {
    timeline_limit: u64,
    #[serde(default, deserialize_with = "or_default")]
    required_state: Vec<(String, String)>,
}

/// `POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync`.
pub(super) async fn sync(
    State(sync): State<Sync>,
    State(rate_limits): State<RateLimits>,
    RequesterOrGuest(requester): RequesterOrGuest,
    parts: Parts,
    query: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
    JsonBody(asked): Body<Asked>,
) -> Result<Response, MatrixError> {
    let Query(parameters) = query.map_err(|error| MatrixError::invalid_param(error.body_text()))?;
    check_rate(&rate_limits, &parts, parameters.pos.as_deref())?;
    drop(parts);
    let availability = availability(parameters.set_presence.as_deref())?;
    let request = to_request(parameters, asked, &requester.user_id)?;
    // Until the answer is ready.
    let _syncing = sync.presences().syncs(&requester, availability).await?;
    let response = Box::pin(sync.sliding_sync(&requester, &request)).await?;
    answer(&response, RoomShown::of)
}

fn to_request(parameters: Parameters, asked: Asked, user_id: &UserId) -> Result<Request, MatrixError> {
    let common = Common {
        conn_id: asked.conn_id,
        pos: parameters.pos,
        timeout_ms: parameters.timeout,
        lists: asked.lists,
        subscriptions: asked.room_subscriptions,
        extensions: asked.extensions,
    };
    let config = |limit: u64, state: &[(String, String)]| RoomConfig {
        timeline_limit: timeline_limit(limit),
        required_state: required_state(state, user_id),
    };
    let list = |name: &str, list: ListAsked| {
        if name.len() > LIST_NAME_BYTES_MAX {
            let rule = format!("the name of a list is longer than {LIST_NAME_BYTES_MAX} bytes");
            return Err(MatrixError::invalid_param(rule));
        }
        Ok(List {
            ranges: list.ranges,
            filters: list.filters.unwrap_or_default().into_model()?,
            config: config(list.timeline_limit, &list.required_state),
        })
    };
    let subscription = |asked: ConfigAsked| config(asked.timeline_limit, &asked.required_state);
    let request = common.into_request(SUBSCRIPTIONS_MAX, list, subscription)?;
    Ok(Request { counts_unread: true, ..request })
}

/// The tuples with their special values. MSC4186, "`RequiredStateTuple`".
fn required_state(tuples: &[(String, String)], user_id: &UserId) -> RequiredState {
    let is =
        |tuple: &(String, String), event_type: &str, state_key: &str| tuple.0 == event_type && tuple.1 == state_key;
    let has = |event_type: &str, state_key: &str| tuples.iter().any(|tuple| is(tuple, event_type, state_key));
    let has_all = has("*", "*");
    let lazy_members = has(MEMBER, "$LAZY") && !has(MEMBER, "*");
    let mut wanted = RequiredState { lazy_members, ..RequiredState::default() };
    for (event_type, state_key) in tuples.iter().filter(|(_, state_key)| state_key != "$LAZY") {
        let state_key = if state_key == "$ME" { user_id.as_str() } else { state_key };
        let unless_star = |word: &str| (word != "*").then(|| word.to_owned());
        let pattern = Pattern { event_type: unless_star(event_type), state_key: unless_star(state_key) };
        // What stands beside `["*", "*"]` is all that is wanted of its type.
        if has_all && pattern.state_key.is_some() {
            wanted.narrowed.extend(pattern.event_type.clone());
        }
        wanted.include.insert(pattern);
    }
    if lazy_members {
        wanted.narrowed.insert(MEMBER.to_owned());
    }
    wanted
}

/// MSC4186 as of September 2025, "`RoomResult`".
#[derive(Serialize)]
struct RoomShown<'a> {
    /// Empty when there is none any more, which means the same ("m.room.name"): in this form it is a text, and clients take null for
    /// unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// Null when there is none any more: clients understand that here.
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar: Option<&'a Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heroes: Option<Vec<HeroShown<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_dm: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    initial: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unstable_expanded_timeline: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    required_state: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    timeline: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "Option::is_none")]
    bump_stamp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_live: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    highlight_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invited_count: Option<u64>,
    /// Synapse calls it so for knocks, too, and clients read it there.
    #[serde(skip_serializing_if = "Option::is_none")]
    invite_state: Option<&'a [Box<RawValue>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    knock_state: Option<&'a [Box<RawValue>]>,
}

impl<'a> RoomShown<'a> {
    fn of(room: &'a sliding::Room) -> Self {
        let stripped = room.stripped_state.as_deref();
        Self {
            name: room.name.as_ref().map(|name| name.as_deref().unwrap_or_default()),
            avatar: room.avatar.as_ref(),
            heroes: room.heroes.as_ref().map(|heroes| heroes.iter().map(HeroShown::of).collect()),
            is_dm: room.is_dm,
            initial: room.initial,
            unstable_expanded_timeline: room.expanded_timeline,
            required_state: &room.required_state,
            timeline: &room.timeline,
            bump_stamp: room.bump_stamp.map(|position| position.0),
            prev_batch: room.prev_batch.as_deref(),
            limited: room.limited,
            num_live: room.num_live,
            notification_count: room.unread.map(|counts| counts.notifications),
            highlight_count: room.unread.map(|counts| counts.highlights),
            joined_count: room.joined_count,
            invited_count: room.invited_count,
            invite_state: stripped.filter(|_| matches!(room.membership, Membership::Invite | Membership::Knock)),
            knock_state: stripped.filter(|_| room.membership == Membership::Knock),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ruma::user_id;

    use super::*;

    fn wanted(tuples: &[(&str, &str)]) -> RequiredState {
        let tuples: Vec<_> = tuples.iter().map(|(t, k)| ((*t).to_owned(), (*k).to_owned())).collect();
        required_state(&tuples, user_id!("@me:x"))
    }

    fn pattern(event_type: Option<&str>, state_key: Option<&str>) -> Pattern {
        Pattern { event_type: event_type.map(str::to_owned), state_key: state_key.map(str::to_owned) }
    }

    #[test]
    fn me_is_who_asks_and_stars_stand_for_anything() {
        let state = wanted(&[(MEMBER, "$ME"), ("m.room.name", ""), ("m.space.child", "*"), ("*", "@a:x")]);
        let expected = [
            pattern(Some(MEMBER), Some("@me:x")),
            pattern(Some("m.room.name"), Some("")),
            pattern(Some("m.space.child"), None),
            pattern(None, Some("@a:x")),
        ];
        assert_eq!(state.include, expected.into());
        assert!(state.narrowed.is_empty() && !state.lazy_members);
    }

    #[test]
    fn what_stands_beside_everything_is_all_that_is_wanted_of_its_type() {
        let state = wanted(&[("*", "*"), (MEMBER, "@a:x")]);
        assert_eq!(state.narrowed, BTreeSet::from([MEMBER.to_owned()]));
        // Not needed beside everything, and it takes nothing away.
        assert!(wanted(&[("*", "*"), ("m.space.child", "*")]).narrowed.is_empty());
    }

    #[test]
    fn members_are_lazy_unless_all_are_wanted() {
        let state = wanted(&[("*", "*"), (MEMBER, "$LAZY")]);
        assert!(state.lazy_members && state.narrowed.contains(MEMBER));
        assert_eq!(state.include, [pattern(None, None)].into());
        assert!(!wanted(&[(MEMBER, "$LAZY"), (MEMBER, "*")]).lazy_members);
    }
}
