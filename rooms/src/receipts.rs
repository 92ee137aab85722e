//! How far somebody has read. Client-Server API, "Receipts" and "Fully read markers".

use std::sync::Arc;

use accounts::Requester;
use model::{Membership, Relation};
use ruma::{EventId, OwnedEventId, RoomId};
use serde::Deserialize;
use storage::{Commit, MAIN_THREAD, NewAccountData, NewReceipt, RoomRow, StoredEvent};

use crate::{Error, Rooms, TimelineToken, in_thread::HOPS_MAX};

/// What a reader marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptKind {
    /// `m.read`: all in the room see it.
    Read,
    /// `m.read.private`: nobody else sees it.
    ReadPrivate,
    /// `m.fully_read`: the marker of the reader's own, in the room's account data.
    FullyRead,
}

/// A mark at an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptRequest {
    /// What is marked.
    pub kind: ReceiptKind,
    /// The event that was read, with all before it.
    pub event_id: OwnedEventId,
    /// The thread: `main` or its root's id; nothing for all threads.
    pub thread: Option<String>,
}

impl Rooms {
    /// The room, for who is joined to it.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] for everybody else.
    pub async fn joined_room(&self, requester: &Requester, room_id: &RoomId) -> Result<Arc<RoomRow>, Error> {
        let room = self.room_for(requester, room_id).await?;
        let row = self.storage().get_membership(room.nr, requester.user_nr).await?;
        if row.is_some_and(|row| row.membership == Membership::Join) { Ok(room) } else { Err(Error::NotMember) }
    }

    /// Marks events as read, in one commit. A mark never goes back: one at an older event than that which stands changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NotMember`] for all but joined members; [`Error::InvalidParam`] for an event that is not in the room or not in the
    /// thread, or for a thread where there can be none. Nothing was marked then.
    pub async fn mark_read(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        requests: Vec<ReceiptRequest>,
    ) -> Result<(), Error> {
        let room = self.joined_room(requester, room_id).await?;
        let _turn = self.reading_turn(requester.user_nr).await;
        let mut commit = Commit::default();
        for request in requests {
            let event = self.marked_event(&room, &request.event_id).await?;
            let receipt_type = match request.kind {
                ReceiptKind::Read => "m.read",
                ReceiptKind::ReadPrivate => "m.read.private",
                ReceiptKind::FullyRead => {
                    if request.thread.is_some() {
                        return Err(Error::InvalidParam("`m.fully_read` has no thread".to_owned()));
                    }
                    if self.advances(self.fully_read(requester, &room).await?, &event).await? {
                        commit.account_data.push(NewAccountData {
                            user_nr: requester.user_nr,
                            room_nr: room.nr,
                            event_type: "m.fully_read".to_owned(),
                            content: serde_json::json!({"event_id": request.event_id}).to_string(),
                        });
                    }
                    continue;
                }
            };
            if let Some(thread) = &request.thread {
                self.check_thread(thread, &event).await?;
            }
            let thread = request.thread.unwrap_or_default();
            let standing = self.storage().get_receipt(room.nr, requester.user_nr, receipt_type, &thread).await?;
            let standing = standing.and_then(|row| row.event_id.try_into().ok());
            if self.advances(standing, &event).await? {
                commit.receipts.push(NewReceipt {
                    room_nr: room.nr,
                    user_nr: requester.user_nr,
                    receipt_type: receipt_type.to_owned(),
                    thread,
                    event_id: request.event_id,
                    at_ms: self.storage().clock().now_ms(),
                    read_upto: event.place.map(|place| TimelineToken(place).position()),
                });
            }
        }
        if commit.receipts.is_empty() && commit.account_data.is_empty() {
            return Ok(());
        }
        self.storage().commit(commit).await?;
        Ok(())
    }

    async fn marked_event(&self, room: &RoomRow, event_id: &EventId) -> Result<Arc<StoredEvent>, Error> {
        let event = self.storage().find_event(event_id).await?;
        event
            .filter(|event| event.room_nr == room.nr && event.place.is_some())
            .ok_or_else(|| Error::InvalidParam(format!("`{event_id}` is not an event of this room")))
    }

    async fn fully_read(&self, requester: &Requester, room: &RoomRow) -> Result<Option<OwnedEventId>, Error> {
        #[derive(Deserialize)]
        struct Content {
            event_id: OwnedEventId,
        }
        let content = self.storage().get_account_data(requester.user_nr, room.nr, "m.fully_read").await?;
        Ok(content.and_then(|json| serde_json::from_str::<Content>(&json).ok()).map(|content| content.event_id))
    }

    /// Whether a mark at `event` says more than the one that stands.
    async fn advances(&self, standing: Option<OwnedEventId>, event: &StoredEvent) -> Result<bool, Error> {
        let Some(standing) = standing else { return Ok(true) };
        if standing == event.pdu.event_id {
            return Ok(false);
        }
        let place = self.storage().find_event(&standing).await?.and_then(|event| event.place);
        Ok(place.is_none_or(|place| event.place.is_some_and(|new| new > place)))
    }

    /// Whether the event is in the thread. Client-Server API, "Threaded read receipts".
    ///
    /// A thread's root counts as in the thread and in the main timeline. A redacted event has lost what it related to: it counts as in
    /// any thread that there is.
    async fn check_thread(&self, thread: &str, event: &Arc<StoredEvent>) -> Result<(), Error> {
        let root_id = match thread {
            MAIN_THREAD => None,
            _ => Some(EventId::parse(thread).map_err(|_| {
                Error::InvalidParam(format!(
                    "`thread_id` is `{MAIN_THREAD}` or the id of the event that began the thread"
                ))
            })?),
        };
        let mut current = event.clone();
        let mut root = None;
        for _ in 0..HOPS_MAX {
            if current.redacted_by.is_some() {
                let Some(root_id) = &root_id else { return Ok(()) };
                let root = self.storage().find_event(root_id).await?;
                let is_known = root.is_some_and(|root| root.room_nr == event.room_nr);
                let unknown = || Error::InvalidParam("there is no event with the id that `thread_id` is".to_owned());
                return is_known.then_some(()).ok_or_else(unknown);
            }
            let Some(relation) = current.relation() else { break };
            if relation.rel_type == Relation::THREAD {
                root = Some(relation.parent.clone());
                break;
            }
            let Some(parent) = self.storage().find_event(&relation.parent).await? else { break };
            if parent.room_nr != event.room_nr {
                break;
            }
            // An event that relates to a root by another relation is in the main timeline, as the root is.
            current = parent;
        }
        let is_in = match &root {
            Some(root) => root.as_str() == thread,
            None => thread == MAIN_THREAD || thread == event.pdu.event_id.as_str(),
        };
        if is_in {
            Ok(())
        } else {
            Err(Error::InvalidParam("the event is not in the thread of `thread_id`".to_owned()))
        }
    }
}
