//! Which threads users have subscribed to.

use std::collections::{HashMap, HashSet};

use model::{EventNr, Position, RoomNr, UserNr};
use ruma::{EventId, OwnedEventId};

use crate::{
    Error, Storage,
    db::{Row, args},
    statement::statements,
};

statements! {
    GET_SUBSCRIPTION = ["
        SELECT room_nr, root_nr, state, position FROM thread_subscriptions WHERE user_nr = $1 AND root_nr = $2"];
    LIST_SUBSCRIPTIONS = ["
        SELECT room_nr, root_nr, state, position FROM thread_subscriptions
         WHERE user_nr = $1 AND position > $2 AND position <= $3 ORDER BY position DESC LIMIT $4"];
    LIST_ROOMS_OF_SUBSCRIPTIONS = ["
        SELECT DISTINCT room_nr FROM thread_subscriptions
         WHERE user_nr = $1 AND position > $2 AND position <= $3 ORDER BY room_nr"];
    LIST_SUBSCRIBED = ["
        SELECT s.room_nr, e.event_id FROM thread_subscriptions s JOIN events e ON e.event_nr = s.root_nr
         WHERE s.user_nr = $1 AND s.state <> 0 AND s.room_nr", (in_list 2), " ORDER BY s.root_nr"];
}

/// Whether a user has subscribed to a thread. MSC4306.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadSubscription {
    /// Not any more.
    Unsubscribed,
    /// By a client, because of an event.
    Automatic,
    /// By the user.
    Manual,
}

impl ThreadSubscription {
    /// Its number in the database; never changes.
    pub(crate) const fn code(self) -> i64 {
        match self {
            Self::Unsubscribed => 0,
            Self::Automatic => 1,
            Self::Manual => 2,
        }
    }

    const fn from_code(code: i64) -> Self {
        match code {
            1 => Self::Automatic,
            2 => Self::Manual,
            _ => Self::Unsubscribed,
        }
    }
}

/// A subscription as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadSubscriptionRow {
    /// The room.
    pub room_nr: RoomNr,
    /// The thread's root.
    pub root_nr: EventNr,
    /// What it is now.
    pub state: ThreadSubscription,
    /// When it became so.
    pub position: Position,
}

fn subscription(row: &Row) -> Result<ThreadSubscriptionRow, Error> {
    Ok(ThreadSubscriptionRow {
        room_nr: row.nr(0)?,
        root_nr: row.nr(1)?,
        state: ThreadSubscription::from_code(row.get(2)?),
        position: row.nr(3)?,
    })
}

impl Storage {
    /// A user's subscription to a thread; nothing when they never had one.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn get_thread_subscription(
        &self,
        user_nr: UserNr,
        root_nr: EventNr,
    ) -> Result<Option<ThreadSubscriptionRow>, Error> {
        self.db().read_one(&GET_SUBSCRIPTION, args![user_nr, root_nr]).await?.map(|row| subscription(&row)).transpose()
    }

    /// The rooms in which a user's subscriptions changed after a position, up to another.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_rooms_of_subscriptions(
        &self,
        user_nr: UserNr,
        after: Position,
        upto: Position,
    ) -> Result<Vec<RoomNr>, Error> {
        let rows = self.db().read(&LIST_ROOMS_OF_SUBSCRIPTIONS, args![user_nr, after, upto]).await?;
        rows.iter().map(|row| row.nr(0)).collect()
    }

    /// The roots of the threads in rooms that a user is subscribed to.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_subscribed_threads(
        &self,
        user_nr: UserNr,
        rooms: &[RoomNr],
    ) -> Result<HashMap<RoomNr, HashSet<OwnedEventId>>, Error> {
        let numbers: Vec<i64> = rooms.iter().map(|room| room.0).collect();
        let mut roots: HashMap<RoomNr, HashSet<OwnedEventId>> = HashMap::new();
        for row in self.db().read(&LIST_SUBSCRIBED, args![user_nr, numbers]).await? {
            let root: String = row.get(1)?;
            let root = EventId::parse(&root).map_err(|_| Error::Damaged(format!("event id `{root}`")))?;
            roots.entry(row.nr(0)?).or_default().insert(root);
        }
        Ok(roots)
    }

    /// A user's subscriptions that changed after a position, up to another, newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn list_thread_subscriptions(
        &self,
        user_nr: UserNr,
        after: Position,
        upto: Position,
        limit: u32,
    ) -> Result<Vec<ThreadSubscriptionRow>, Error> {
        let rows = self.db().read(&LIST_SUBSCRIPTIONS, args![user_nr, after, upto, i64::from(limit)]).await?;
        rows.iter().map(subscription).collect()
    }
}
