//! Sliding sync in its two wire formats. MSC4186, "Simplified Sliding Sync".
//!
//! Deployed clients speak the [`unstable`] one; [`v4`] is the one that was accepted, whose appendix lists the differences. Both are thin: what
//! a client asks becomes a [`sync::sliding::Request`], and what it is answered comes from a [`sync::sliding::Response`]. Ruma's types speak the unstable form only, and
//! without the filters by space, tag and name: the types here are our own.

mod unstable;
mod v4;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ::rooms::SubscribedThread;
use axum::{Router, response::Response, routing::post};
use event_bus::Availability;
use http::request::Parts;
use model::limits::{BODY_BYTES_MAX, ID_BYTES_MAX};
use ruma::{OwnedEventId, OwnedRoomId, UserId};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use storage::ThreadSubscription;
use sync::sliding::{
    self, ExtensionAnswers, Extensions, Hero, LISTS_MAX, List, Request, RequiredState, RoomConfig, Scope,
    ThreadSubscriptions, ToDevice,
};
use web::{JsonBody, MatrixError, RateLimits, ReadyJson};

use crate::ClientApi;

/// Most events of a room's timeline in one answer: the specification lets a server cut what a client asks.
const TIMELINE_LIMIT_MAX: u64 = 100;
/// Most parts of a list.
const RANGES_MAX: usize = 100;
/// Most pieces of state that one list or subscription names.
const REQUIRED_STATE_MAX: usize = 250;
/// Most pieces of state that all lists and subscriptions of a request name, where those that name the same count once.
const REQUIRED_STATE_SUM_MAX: usize = 1_000;
/// Most values of one filter.
const FILTER_VALUES_MAX: usize = 100;
/// Most lists or rooms that one extension names.
const SCOPE_MAX: usize = 500;

/// The body of a request.
type Body<T> = JsonBody<T, BODY_BYTES_MAX>;

pub(crate) fn routes() -> Router<ClientApi> {
    Router::new().route(unstable::PATH, post(unstable::sync)).route(v4::PATH, post(v4::sync))
}

/// How a client wants to be seen, as in `/sync`; whoever says nothing is online.
fn availability(word: Option<&str>) -> Result<Availability, MatrixError> {
    word.map_or(Ok(Availability::Online), |word| crate::presence::availability(&word.into()))
}

/// Counts a request that begins a connection: it writes, and is answered with all there is.
fn check_rate(limits: &RateLimits, parts: &Parts, pos: Option<&str>) -> Result<(), MatrixError> {
    if pos.is_none() { limits.check_change(parts) } else { Ok(()) }
}

/// What is null counts as not there.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A request as both forms have it, but for how they write its lists, and what is wanted of a room.
struct Common<L, C> {
    conn_id: Option<String>,
    pos: Option<String>,
    timeout_ms: Option<u64>,
    lists: BTreeMap<String, L>,
    subscriptions: BTreeMap<OwnedRoomId, C>,
    extensions: ExtensionsAsked,
}

impl<L, C> Common<L, C> {
    /// The request, if it keeps to the bounds. MSC4186, "Request Body".
    ///
    /// # Errors
    ///
    /// 400 `M_INVALID_PARAM`, which names the first bound that it does not keep to.
    fn into_request(
        self,
        subscriptions_max: usize,
        list: impl Fn(&str, L) -> Result<List, MatrixError>,
        config: impl Fn(C) -> RoomConfig,
    ) -> Result<Request, MatrixError> {
        check_count("lists", self.lists.len(), LISTS_MAX)?;
        check_count("subscriptions", self.subscriptions.len(), subscriptions_max)?;
        let conn_id = self.conn_id.unwrap_or_default();
        check_text("`conn_id`", &conn_id)?;
        let lists = self.lists.into_iter().map(|(name, asked)| {
            let list = list(&name, asked)?;
            Ok((name, list))
        });
        let request = Request {
            conn_id,
            pos: self.pos,
            timeout: Duration::from_millis(self.timeout_ms.unwrap_or(0)),
            lists: lists.collect::<Result<_, MatrixError>>()?,
            subscriptions: self.subscriptions.into_iter().map(|(room_id, asked)| (room_id, config(asked))).collect(),
            extensions: self.extensions.into_model()?,
            counts_unread: false,
        };
        check_configs(&request)?;
        Ok(request)
    }
}

/// Bounds what is wanted of rooms: in each list or subscription, and in all of them together.
fn check_configs(request: &Request) -> Result<(), MatrixError> {
    for list in request.lists.values() {
        check_ranges(list.ranges.as_deref().unwrap_or_default())?;
    }
    let configs = request.lists.values().map(|list| &list.config).chain(request.subscriptions.values());
    let different: BTreeSet<&RequiredState> = configs.map(|config| &config.required_state).collect();
    let mut sum = 0;
    for state in different {
        let pieces = state.include.len() + state.exclude.len();
        check_count("pieces of required state", pieces, REQUIRED_STATE_MAX)?;
        sum += pieces;
        for pattern in state.include.iter().chain(&state.exclude) {
            check_text("a type", pattern.event_type.as_deref().unwrap_or_default())?;
            check_text("a state key", pattern.state_key.as_deref().unwrap_or_default())?;
        }
    }
    check_count("different pieces of required state in all lists and subscriptions", sum, REQUIRED_STATE_SUM_MAX)
}

fn check_ranges(ranges: &[(u64, u64)]) -> Result<(), MatrixError> {
    check_count("ranges in a list", ranges.len(), RANGES_MAX)?;
    match ranges.iter().any(|(first, last)| last < first) {
        true => Err(MatrixError::invalid_param("a range ends before it begins")),
        false => Ok(()),
    }
}

fn check_count(what: &str, count: usize, max: usize) -> Result<(), MatrixError> {
    if count <= max { Ok(()) } else { Err(MatrixError::invalid_param(format!("more than {max} {what}"))) }
}

fn check_text(what: &str, text: &str) -> Result<(), MatrixError> {
    if text.len() <= ID_BYTES_MAX && !text.contains('\0') {
        return Ok(());
    }
    Err(MatrixError::invalid_param(format!("{what} is longer than {ID_BYTES_MAX} bytes, or has a zero byte")))
}

fn timeline_limit(asked: u64) -> u32 {
    asked.min(TIMELINE_LIMIT_MAX) as u32
}

/// MSC4186, "SlidingRoomFilter".
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Filters {
    is_dm: Option<bool>,
    spaces: Option<BTreeSet<String>>,
    is_encrypted: Option<bool>,
    /// Called so in the accepted form,
    is_invited: Option<bool>,
    /// and so in the unstable one.
    is_invite: Option<bool>,
    room_types: Option<BTreeSet<Option<String>>>,
    not_room_types: Option<BTreeSet<Option<String>>>,
    room_name_like: Option<String>,
    tags: Option<BTreeSet<String>>,
    not_tags: Option<BTreeSet<String>>,
}

impl Filters {
    fn into_model(self) -> Result<sliding::Filters, MatrixError> {
        let counts = [
            self.spaces.as_ref().map_or(0, BTreeSet::len),
            self.room_types.as_ref().map_or(0, BTreeSet::len),
            self.not_room_types.as_ref().map_or(0, BTreeSet::len),
            self.tags.as_ref().map_or(0, BTreeSet::len),
            self.not_tags.as_ref().map_or(0, BTreeSet::len),
        ];
        for count in counts {
            check_count("values in a filter", count, FILTER_VALUES_MAX)?;
        }
        check_text("`room_name_like`", self.room_name_like.as_deref().unwrap_or_default())?;
        Ok(sliding::Filters {
            is_dm: self.is_dm,
            // What is no room id is no space that anybody is in.
            spaces: self.spaces.map(|ids| ids.into_iter().filter_map(|id| id.try_into().ok()).collect()),
            is_encrypted: self.is_encrypted,
            is_invited: self.is_invited.or(self.is_invite),
            room_types: self.room_types,
            not_room_types: self.not_room_types.unwrap_or_default(),
            room_name_like: self.room_name_like,
            tags: self.tags,
            not_tags: self.not_tags.unwrap_or_default(),
        })
    }
}

/// The extensions of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ExtensionsAsked {
    #[serde(deserialize_with = "or_default")]
    to_device: ToDeviceAsked,
    #[serde(deserialize_with = "or_default")]
    e2ee: Asked,
    #[serde(deserialize_with = "or_default")]
    account_data: Asked,
    #[serde(deserialize_with = "or_default")]
    receipts: Asked,
    #[serde(deserialize_with = "or_default")]
    typing: Asked,
    #[serde(rename = "io.element.msc4308.thread_subscriptions", deserialize_with = "or_default")]
    thread_subscriptions: ThreadsAsked,
}

/// MSC4308.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ThreadsAsked {
    enabled: Option<bool>,
    limit: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ToDeviceAsked {
    enabled: Option<bool>,
    limit: Option<u64>,
    since: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    enabled: Option<bool>,
    lists: Option<BTreeSet<String>>,
    rooms: Option<BTreeSet<String>>,
}

impl Asked {
    fn into_scope(self) -> Result<Option<Scope>, MatrixError> {
        for names in [&self.lists, &self.rooms].into_iter().flatten() {
            check_count("lists or rooms of an extension", names.len(), SCOPE_MAX)?;
        }
        Ok((self.enabled == Some(true)).then_some(Scope { lists: self.lists, rooms: self.rooms }))
    }
}

impl ExtensionsAsked {
    fn into_model(self) -> Result<Extensions, MatrixError> {
        let to_device = self.to_device;
        Ok(Extensions {
            to_device: (to_device.enabled == Some(true)).then(|| ToDevice {
                since: to_device.since,
                limit: to_device.limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
            }),
            e2ee: self.e2ee.enabled == Some(true),
            account_data: self.account_data.into_scope()?,
            receipts: self.receipts.into_scope()?,
            typing: self.typing.into_scope()?,
            thread_subscriptions: (self.thread_subscriptions.enabled == Some(true))
                .then(|| self.thread_subscriptions.limit.map_or(100, |limit| u32::try_from(limit).unwrap_or(u32::MAX))),
        })
    }
}

/// A list in an answer.
#[derive(Serialize)]
struct ListShown {
    count: usize,
}

/// MSC4186, "`Hero` type".
#[derive(Serialize)]
struct HeroShown<'a> {
    user_id: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    displayname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar_url: Option<&'a str>,
}

impl<'a> HeroShown<'a> {
    fn of(hero: &'a Hero) -> Self {
        Self {
            user_id: &hero.user_id,
            displayname: hero.display_name.as_deref(),
            avatar_url: hero.avatar_url.as_deref(),
        }
    }
}

/// The extensions of an answer.
#[derive(Serialize)]
struct ExtensionsShown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    to_device: Option<ToDeviceShown<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e2ee: Option<E2eeShown<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_data: Option<AccountDataShown<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts: Option<ByRoom<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    typing: Option<ByRoom<'a>>,
    #[serde(rename = "io.element.msc4308.thread_subscriptions", skip_serializing_if = "Option::is_none")]
    thread_subscriptions: Option<ThreadsShown<'a>>,
}

/// MSC4308.
#[derive(Default, Serialize)]
struct ThreadsShown<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subscribed: BTreeMap<&'a OwnedRoomId, BTreeMap<&'a OwnedEventId, ThreadShown>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unsubscribed: BTreeMap<&'a OwnedRoomId, BTreeMap<&'a OwnedEventId, ThreadShown>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<&'a str>,
}

#[derive(Serialize)]
struct ThreadShown {
    #[serde(skip_serializing_if = "Option::is_none")]
    automatic: Option<bool>,
    bump_stamp: i64,
}

impl<'a> ThreadsShown<'a> {
    fn of(answer: &'a ThreadSubscriptions) -> Self {
        let mut shown = Self { prev_batch: answer.prev_batch.as_deref(), ..Self::default() };
        for SubscribedThread { room_id, root_id, state, position } in &answer.changes {
            let automatic =
                (*state != ThreadSubscription::Unsubscribed).then_some(*state == ThreadSubscription::Automatic);
            let rooms = if automatic.is_some() { &mut shown.subscribed } else { &mut shown.unsubscribed };
            rooms.entry(room_id).or_default().insert(root_id, ThreadShown { automatic, bump_stamp: position.0 });
        }
        shown
    }
}

#[derive(Serialize)]
struct ToDeviceShown<'a> {
    next_batch: &'a str,
    events: &'a [Box<RawValue>],
}

#[derive(Serialize)]
struct E2eeShown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_lists: Option<DeviceListsShown<'a>>,
    device_one_time_keys_count: BTreeMap<&'a str, u64>,
    device_unused_fallback_key_types: &'a [String],
}

#[derive(Serialize)]
struct DeviceListsShown<'a> {
    changed: &'a [ruma::OwnedUserId],
    left: &'a [ruma::OwnedUserId],
}

#[derive(Serialize)]
struct AccountDataShown<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    global: &'a [Box<RawValue>],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rooms: &'a BTreeMap<OwnedRoomId, Vec<Box<RawValue>>>,
}

#[derive(Serialize)]
struct ByRoom<'a> {
    rooms: &'a BTreeMap<OwnedRoomId, Box<RawValue>>,
}

impl<'a> ExtensionsShown<'a> {
    fn of(answer: &'a ExtensionAnswers) -> Self {
        let by_room = |rooms: &'a BTreeMap<_, _>| (!rooms.is_empty()).then_some(ByRoom { rooms });
        let (global, rooms) = (&answer.global_account_data[..], &answer.room_account_data);
        Self {
            to_device: answer
                .to_device
                .as_ref()
                .map(|shown| ToDeviceShown { next_batch: &shown.next_batch, events: &shown.events }),
            e2ee: answer.e2ee.as_ref().map(|shown| {
                let (lists, counts) = (&shown.device_lists, &shown.key_counts);
                let mut one_time: BTreeMap<&str, u64> =
                    counts.one_time.iter().map(|(algorithm, count)| (algorithm.as_str(), *count)).collect();
                // As in `/sync`: it is there also when there is none left.
                one_time.entry("signed_curve25519").or_default();
                E2eeShown {
                    device_lists: (!lists.is_empty())
                        .then(|| DeviceListsShown { changed: &lists.changed, left: &lists.left }),
                    device_one_time_keys_count: one_time,
                    device_unused_fallback_key_types: &counts.unused_fallback,
                }
            }),
            account_data: (!global.is_empty() || !rooms.is_empty()).then_some(AccountDataShown { global, rooms }),
            receipts: by_room(&answer.receipts),
            typing: by_room(&answer.typing),
            thread_subscriptions: answer.thread_subscriptions.as_ref().map(ThreadsShown::of),
        }
    }
}

/// An answer with its rooms in one of the forms.
#[derive(Serialize)]
struct Answer<'a, R> {
    pos: &'a str,
    lists: BTreeMap<&'a str, ListShown>,
    rooms: BTreeMap<&'a OwnedRoomId, R>,
    extensions: ExtensionsShown<'a>,
}

fn answer<'a, R: Serialize>(
    response: &'a sliding::Response,
    room: impl Fn(&'a sliding::Room) -> R,
) -> Result<Response, MatrixError> {
    let answer = Answer {
        pos: &response.pos,
        lists: response.lists.iter().map(|(name, count)| (name.as_str(), ListShown { count: *count })).collect(),
        rooms: response.rooms.iter().map(|(room_id, shown)| (room_id, room(shown))).collect(),
        extensions: ExtensionsShown::of(&response.extensions),
    };
    let body = serde_json::to_vec(&answer).map_err(|error| MatrixError::internal(&error))?;
    Ok(axum::response::IntoResponse::into_response(ReadyJson(body.into())))
}
