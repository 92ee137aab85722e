//! The class of an event: which of the default push rules fit it, for any reader. Client-Server API, "Predefined Rules".

use std::{collections::HashSet, sync::Arc};

use model::{LocalServers, Pdu, RoomNr};
use ruma::{UserId, events::TimelineEventType};
use serde::Deserialize;
use serde_json::Value;
use storage::{Countable, Storage};

use crate::{Error, in_thread::thread_root};

// Each bit stands for a default rule, but for the last one. They are stored: a bit keeps its meaning for ever.
pub(crate) const MESSAGE: i64 = 1;
pub(crate) const ENCRYPTED: i64 = 1 << 1;
pub(crate) const CALL: i64 = 1 << 2;
pub(crate) const TOMBSTONE: i64 = 1 << 3;
/// It mentions the room, and its sender may.
pub(crate) const ROOM_MENTION: i64 = 1 << 4;
pub(crate) const NOTICE: i64 = 1 << 5;
pub(crate) const EDIT: i64 = 1 << 6;
pub(crate) const POLL_START: i64 = 1 << 7;
pub(crate) const POLL_END: i64 = 1 << 8;
/// It mentions users of ours: who they are is stored beside it.
pub(crate) const MENTIONS: i64 = 1 << 9;

/// The bits of rules that notify.
const NOTIFYING: i64 = MESSAGE | ENCRYPTED | CALL | TOMBSTONE | ROOM_MENTION | POLL_START | POLL_END | MENTIONS;
/// Most users of ours whom one event mentions so that it counts for them.
const MENTIONED_MAX: usize = 500;

#[derive(Default, Deserialize)]
struct Content {
    msgtype: Option<Value>,
    #[serde(rename = "m.relates_to")]
    relates_to: Option<Value>,
    #[serde(rename = "m.mentions")]
    mentions: Option<Value>,
}

/// What an event is to unread counts; nothing when it notifies nobody and is in no thread. Does nothing per member.
///
/// `may_notify_room` says whether the sender has the power for `@room`; it is asked when the event mentions the room.
///
/// # Errors
///
/// When the database fails, or `may_notify_room` does.
pub(crate) async fn countable<F: Future<Output = Result<bool, Error>>>(
    storage: &Storage,
    servers: &LocalServers,
    room_nr: RoomNr,
    pdu: &Pdu,
    may_notify_room: impl FnOnce() -> F,
) -> Result<Option<Arc<Countable>>, Error> {
    // Members' events notify nobody but who is invited, and an invited user has no counts. When a room is made nobody is there.
    if matches!(pdu.event_type, TimelineEventType::RoomMember | TimelineEventType::RoomCreate) {
        return Ok(None);
    }
    let content: Content = serde_json::from_str(pdu.content.get()).unwrap_or_default();
    let mut class = class_of_type(pdu);
    if is_word(content.msgtype.as_ref(), "m.notice") {
        class |= NOTICE;
    }
    if content.relates_to.as_ref().is_some_and(|relation| relation["rel_type"] == "m.replace") {
        class |= EDIT;
    }
    let mut countable = Countable::default();
    if let Some(mentions) = &content.mentions {
        if mentions["room"] == true && may_notify_room().await? {
            class |= ROOM_MENTION;
        }
        let users: HashSet<&UserId> = mentioned(mentions, servers).filter(|user_id| *user_id != pdu.sender).collect();
        if !users.is_empty() {
            let users: Vec<&UserId> = users.into_iter().collect();
            countable.mentions = storage.find_user_nrs(&users).await?.into_values().collect();
            if !countable.mentions.is_empty() {
                class |= MENTIONS;
            }
        }
    }
    countable.thread = thread_root(storage, room_nr, pdu).await?.map(String::from).unwrap_or_default();
    // What notifies nobody may count for whose rules look into events: these find it in its thread, and everything else in the timeline.
    if !notifies(class) && countable.thread.is_empty() {
        return Ok(None);
    }
    countable.class = class;
    countable.has_been_read_to = notifies(class) && servers.has_user(&pdu.sender);
    Ok(Some(Arc::new(countable)))
}

/// The users of ours whom `m.mentions` names.
fn mentioned<'a>(mentions: &'a Value, servers: &'a LocalServers) -> impl Iterator<Item = &'a UserId> {
    let listed = mentions["user_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
    listed
        .filter_map(|user_id| <&UserId>::try_from(user_id).ok())
        .filter(|user_id| servers.has_user(user_id))
        .take(MENTIONED_MAX)
}

/// Whether an event of that class may notify anybody. One that does not counts for nobody, unless they have rules of their own.
pub(crate) fn notifies(class: i64) -> bool {
    class & NOTIFYING != 0
}

/// Whether `m.mentions` names a user of ours, among those for whom it counts. Client-Server API, "User and room mentions".
pub(crate) fn mentions(pdu: &Pdu, user_id: &UserId, servers: &LocalServers) -> bool {
    let content: Content = serde_json::from_str(pdu.content.get()).unwrap_or_default();
    content.mentions.is_some_and(|mentions| mentioned(&mentions, servers).any(|mentioned| mentioned == user_id))
}

fn class_of_type(pdu: &Pdu) -> i64 {
    let event_type = pdu.event_type.to_string();
    match event_type.to_ascii_lowercase().as_str() {
        "m.room.message" => MESSAGE,
        "m.room.encrypted" => ENCRYPTED,
        "m.call.invite" => CALL,
        "m.room.tombstone" if pdu.state_key.as_deref() == Some("") => TOMBSTONE,
        // The rules for polls compare types to the letter.
        _ if event_type == "org.matrix.msc3381.poll.start" => POLL_START,
        _ if event_type == "org.matrix.msc3381.poll.end" => POLL_END,
        _ => 0,
    }
}

/// Rules compare words regardless of case.
fn is_word(value: Option<&Value>, word: &str) -> bool {
    value.and_then(Value::as_str).is_some_and(|text| text.eq_ignore_ascii_case(word))
}
