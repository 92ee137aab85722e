//! How far somebody has read. Client-Server API, "Receipts" and "Fully read markers".

use std::sync::Arc;

use accounts::Requester;
use model::{Membership, Thread};
use ruma::{EventId, OwnedEventId, RoomId};
use serde::Deserialize;
use storage::{Commit, NewAccountData, NewReceipt, RoomRow, StoredEvent};

use crate::{
    Error, Rooms, TimelineToken,
    in_thread::{InThread, thread_of},
};

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
    /// The thread; nothing for all threads.
    pub thread: Option<Thread>,
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
            let thread = request.thread;
            let standing =
                self.storage().get_receipt(room.nr, requester.user_nr, receipt_type, thread.as_ref()).await?;
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
    async fn check_thread(&self, thread: &Thread, event: &StoredEvent) -> Result<(), Error> {
        let is_in = match (thread_of(self.storage(), event).await?, thread) {
            (InThread::Main | InThread::Unknown, Thread::Main) => true,
            (InThread::Main, Thread::Root(root)) => *root == event.pdu.event_id,
            (InThread::Root(found), Thread::Root(root)) => found == *root,
            (InThread::Root(_), Thread::Main) => false,
            (InThread::Unknown, Thread::Root(root)) => {
                let root = self.storage().find_event(root).await?;
                let is_known = root.is_some_and(|root| root.room_nr == event.room_nr);
                let unknown = || Error::InvalidParam("there is no event with the id that `thread_id` is".to_owned());
                return is_known.then_some(()).ok_or_else(unknown);
            }
        };
        let not_in = || Error::InvalidParam("the event is not in the thread of `thread_id`".to_owned());
        is_in.then_some(()).ok_or_else(not_in)
    }
}
