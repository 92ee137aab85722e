//! The class of an event: which of the default push rules fit it, for any reader. Client-Server API, "Predefined Rules".

use std::{collections::HashSet, sync::Arc};

use model::{LocalServers, Pdu, RoomNr, Thread};
use ruma::{UserId, events::TimelineEventType};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use storage::{Countable, Storage};

use crate::{Error, in_thread::thread_of_new};

// Each bit stands for a default rule, but for `MENTIONS` and `TEXT`. They are stored: a bit keeps its meaning for ever.
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
/// It has a text in which keywords are found.
pub(crate) const TEXT: i64 = 1 << 10;
pub(crate) const REACTION: i64 = 1 << 11;
pub(crate) const SERVER_ACL: i64 = 1 << 12;
pub(crate) const POLL_RESPONSE: i64 = 1 << 13;

/// The bits of rules that notify.
pub(crate) const NOTIFYING: i64 =
    MESSAGE | ENCRYPTED | CALL | TOMBSTONE | ROOM_MENTION | POLL_START | POLL_END | MENTIONS;
/// Most users of ours whom one event mentions so that it counts for them.
const MENTIONED_MAX: usize = 500;

#[derive(Default, Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    msgtype: Option<Value>,
    #[serde(rename = "m.relates_to")]
    relates_to: Option<Value>,
    #[serde(rename = "m.mentions")]
    mentions: Option<Value>,
}

/// What an event is to unread counts; nothing when it notifies nobody, has no text and is in no thread. Does nothing per member.
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
    let content: Content<'_> = serde_json::from_str(pdu.content.get()).unwrap_or_default();
    let mut class = class_of_type(pdu);
    if content.body.is_some_and(|body| body.get().starts_with('"')) {
        class |= TEXT;
    }
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
    countable.thread = thread_of_new(storage, room_nr, pdu).await?.into();
    // What notifies nobody by the default rules may count for whoever has a keyword, or is subscribed to the thread. Whose rules look at
    // anything else find it in the timeline.
    if class & (NOTIFYING | TEXT) == 0 && countable.thread == Thread::Main {
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
    let content: Content<'_> = serde_json::from_str(pdu.content.get()).unwrap_or_default();
    content.mentions.is_some_and(|mentions| mentioned(&mentions, servers).any(|mentioned| mentioned == user_id))
}

fn class_of_type(pdu: &Pdu) -> i64 {
    let event_type = pdu.event_type.to_string();
    match event_type.to_ascii_lowercase().as_str() {
        "m.room.message" => MESSAGE,
        "m.room.encrypted" => ENCRYPTED,
        "m.call.invite" => CALL,
        "m.room.tombstone" if pdu.state_key.as_deref() == Some("") => TOMBSTONE,
        "m.reaction" => REACTION,
        "m.room.server_acl" if pdu.state_key.as_deref() == Some("") => SERVER_ACL,
        // The rules for polls compare types to the letter.
        _ if event_type == "org.matrix.msc3381.poll.start" => POLL_START,
        _ if event_type == "org.matrix.msc3381.poll.end" => POLL_END,
        _ if event_type == "org.matrix.msc3381.poll.response" => POLL_RESPONSE,
        _ => 0,
    }
}

/// Rules compare words regardless of case.
fn is_word(value: Option<&Value>, word: &str) -> bool {
    value.and_then(Value::as_str).is_some_and(|text| text.eq_ignore_ascii_case(word))
}
