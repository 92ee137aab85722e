//! Subscriptions to threads. MSC4306, "Thread Subscriptions".

use std::sync::Arc;

use accounts::Requester;
use model::Position;
use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId};
use storage::{Commit, NewThreadSubscription, StoredEvent, ThreadSubscription, ThreadSubscriptionRow};

use crate::{
    Error, Rooms,
    in_thread::{InThread, thread_of},
};

/// A change of a user's subscriptions.
#[derive(Clone, Debug)]
pub struct SubscribedThread {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The thread's root.
    pub root_id: OwnedEventId,
    /// What the subscription is now.
    pub state: ThreadSubscription,
    /// When it became so.
    pub position: Position,
}

impl Rooms {
    /// Subscribes to a thread: because the user wants to, or (`cause`) because of an event in it.
    ///
    /// A manual subscription stays manual. MSC4306, "Subscribing to a thread".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`] for a thread that there is not, or that the requester may not see; [`Error::NotInThread`] when the cause is
    /// not in the thread; [`Error::ConflictingUnsubscription`] when the requester has unsubscribed since the cause.
    pub async fn subscribe_thread(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        root_id: &EventId,
        cause: Option<&EventId>,
    ) -> Result<(), Error> {
        let root = self.visible_root(requester, room_id, root_id).await?;
        let standing = self.storage().get_thread_subscription(requester.user_nr, root.nr).await?;
        let (state, cause) = match cause {
            None => (ThreadSubscription::Manual, None),
            Some(cause) => {
                let not_in_thread = |error| match error {
                    Error::EventUnknown | Error::NotMember | Error::InvalidParam(_) => Error::NotInThread,
                    other => other,
                };
                let (_, event) = self.event(requester, room_id, cause).await.map_err(not_in_thread)?;
                match thread_of(self.storage(), &event).await? {
                    InThread::Root(found) if found == *root_id => {}
                    _ => return Err(Error::NotInThread),
                }
                (ThreadSubscription::Automatic, event.place.map(|(anchor, _)| anchor))
            }
        };
        // MSC4306, "Server-side automatic subscription ordering".
        if let (Some(row), Some(cause)) = (&standing, cause)
            && row.state == ThreadSubscription::Unsubscribed
            && cause <= row.position
        {
            return Err(Error::ConflictingUnsubscription);
        }
        let is_standing = |row: &ThreadSubscriptionRow| match state {
            ThreadSubscription::Automatic => row.state != ThreadSubscription::Unsubscribed,
            _ => row.state == state,
        };
        if standing.as_ref().is_some_and(is_standing) {
            return Ok(());
        }
        self.store_subscription(requester, &root, state).await
    }

    /// Unsubscribes from a thread. MSC4306, "Unsubscribing from a thread".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`] for a thread that there is not, or that the requester may not see.
    pub async fn unsubscribe_thread(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        root_id: &EventId,
    ) -> Result<(), Error> {
        let root = self.visible_root(requester, room_id, root_id).await?;
        let standing = self.storage().get_thread_subscription(requester.user_nr, root.nr).await?;
        if standing.is_none_or(|row| row.state == ThreadSubscription::Unsubscribed) {
            return Ok(());
        }
        self.store_subscription(requester, &root, ThreadSubscription::Unsubscribed).await
    }

    /// What the requester's subscription to a thread is. MSC4306, "Retrieving thread subscription".
    ///
    /// # Errors
    ///
    /// [`Error::EventUnknown`] when there is none, too.
    pub async fn thread_subscription(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        root_id: &EventId,
    ) -> Result<ThreadSubscription, Error> {
        let root = self.visible_root(requester, room_id, root_id).await?;
        let standing = self.storage().get_thread_subscription(requester.user_nr, root.nr).await?;
        let state = standing.map(|row| row.state).filter(|state| *state != ThreadSubscription::Unsubscribed);
        state.ok_or(Error::EventUnknown)
    }

    /// The requester's subscriptions that changed after a position, up to another, newest first, at most `limit`; and, when there are
    /// more, the position from which on these lie. MSC4308.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn thread_subscriptions(
        &self,
        requester: &Requester,
        after: Position,
        upto: Position,
        limit: u32,
    ) -> Result<(Vec<SubscribedThread>, Option<Position>), Error> {
        let storage = self.storage();
        let mut rows = storage.list_thread_subscriptions(requester.user_nr, after, upto, limit + 1).await?;
        let has_more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let rest = rows.last().filter(|_| has_more).map(|row| Position(row.position.0 - 1));
        let numbers: Vec<_> = rows.iter().map(|row| row.root_nr).collect();
        let roots = if numbers.is_empty() { Default::default() } else { storage.get_events(&numbers).await? };
        let shown = rows.iter().filter_map(|row| {
            let root = roots.get(&row.root_nr)?;
            let (room_id, root_id) = (root.pdu.room_id.clone(), root.pdu.event_id.clone());
            Some(SubscribedThread { room_id, root_id, state: row.state, position: row.position })
        });
        Ok((shown.collect(), rest))
    }

    async fn visible_root(
        &self,
        requester: &Requester,
        room_id: &RoomId,
        root_id: &EventId,
    ) -> Result<Arc<StoredEvent>, Error> {
        let found = self.event(requester, room_id, root_id).await;
        found.map(|(_, root)| root).map_err(|error| match error {
            Error::NotMember | Error::RoomUnknown => Error::EventUnknown,
            other => other,
        })
    }

    async fn store_subscription(
        &self,
        requester: &Requester,
        root: &StoredEvent,
        state: ThreadSubscription,
    ) -> Result<(), Error> {
        let (user_nr, room_nr, root_nr) = (requester.user_nr, root.room_nr, root.nr);
        let subscription = NewThreadSubscription { user_nr, room_nr, root_nr, state };
        let commit = Commit { thread_subscriptions: vec![subscription], ..Commit::default() };
        self.storage().commit(commit).await?;
        Ok(())
    }
}
