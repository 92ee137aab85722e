//! Who is typing, has read, and is there, at other servers. Server-Server API, "Typing Notifications", "Receipts", "Presence".

use event_bus::{Availability, Reported};
use model::Thread;
use rooms::{Error, RemoteReceipt};
use ruma::{
    OwnedRoomId, OwnedUserId, ServerName,
    api::federation::transactions::edu::{ReceiptContent, TypingContent},
    events::receipt::ReceiptThread,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::FederationApi;

/// How long somebody is shown typing of whom their server says no more, in milliseconds: others repeat it after 40 seconds.
const TYPING_MS: i64 = 60_000;
/// Most receipts of a transaction.
const RECEIPTS_MAX: usize = 2_000;
/// Most users of a transaction of whom it is said how they are.
const PRESENCES_MAX: usize = 2_000;

/// Shows users of a server typing, in rooms that they are joined to.
pub(super) async fn take_typing(
    api: &FederationApi,
    origin: &ServerName,
    said: Vec<TypingContent>,
) -> Result<(), Error> {
    let pairs: Vec<(OwnedRoomId, OwnedUserId)> =
        said.iter().map(|content| (content.room_id.clone(), content.user_id.clone())).collect();
    let members = api.rooms.members_of(origin, &pairs).await?;
    for (content, pair) in said.iter().zip(&pairs) {
        if let Some((room_nr, user_nr)) = members.get(pair) {
            api.typing.set(*room_nr, *user_nr, content.typing.then_some(TYPING_MS));
        }
    }
    Ok(())
}

/// Notes how far users of a server have read.
pub(super) async fn take_receipts(
    api: &FederationApi,
    origin: &ServerName,
    said: Vec<ReceiptContent>,
) -> Result<(), Error> {
    let of_room = said.into_iter().flat_map(|content| content.receipts).flat_map(|(room_id, receipts)| {
        receipts.read.into_iter().map(move |(user_id, receipt)| (room_id.clone(), user_id, receipt))
    });
    let receipts = of_room.filter_map(|(room_id, user_id, receipt)| {
        let thread = match receipt.data.thread {
            ReceiptThread::Unthreaded => None,
            ReceiptThread::Main => Some(Thread::Main),
            ReceiptThread::Thread(root) => Some(Thread::Root(root)),
            _ => return None,
        };
        let at_ms = receipt.data.ts.map(|ts| i64::from(ts.0));
        Some(RemoteReceipt { room_id, user_id, event_ids: receipt.event_ids, thread, at_ms })
    });
    api.rooms.receive_receipts(origin, receipts.take(RECEIPTS_MAX).collect()).await
}

/// How users are, each read by itself: what is wrong with one is not the others' fault.
#[derive(Debug, Deserialize)]
pub(super) struct PresenceContent {
    push: Vec<Box<RawValue>>,
}

/// How a user is. Some servers do not say when somebody who is away was last active.
#[derive(Debug, Deserialize)]
struct PresenceUpdate {
    user_id: OwnedUserId,
    presence: Availability,
    last_active_ago: Option<u64>,
    #[serde(default)]
    currently_active: bool,
    status_msg: Option<String>,
}

/// Shows how users of a server are, to those who share rooms with them.
pub(super) async fn take_presence(
    api: &FederationApi,
    origin: &ServerName,
    said: Vec<PresenceContent>,
) -> Result<(), Error> {
    let updates = said.iter().flat_map(|content| &content.push).take(PRESENCES_MAX);
    let updates = updates.filter_map(|update| serde_json::from_str::<PresenceUpdate>(update.get()).ok());
    let reports = updates.filter(|update| update.user_id.server_name() == origin).map(|update| {
        let reported = Reported {
            availability: update.presence,
            currently_active: update.currently_active && update.presence == Availability::Online,
            last_active_ago_ms: update.last_active_ago.map(|ago_ms| i64::try_from(ago_ms).unwrap_or(i64::MAX)),
            status_msg: update.status_msg,
        };
        (update.user_id, reported)
    });
    api.presences.report(reports.collect()).await
}
