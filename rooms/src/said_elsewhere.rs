//! What users of other servers do in rooms that is no event: typing and reading. Server-Server API, "Typing Notifications", "Receipts".

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use model::{
    RoomNr, Thread, UserNr,
    limits::{ID_BYTES_MAX, is_name},
};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId};
use storage::{Commit, NewReceipt, RoomRow};

use crate::{Error, Rooms};

/// How far a user of another server has read.
#[derive(Clone, Debug)]
pub struct RemoteReceipt {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The reader.
    pub user_id: OwnedUserId,
    /// The newest events that they have read.
    pub event_ids: Vec<OwnedEventId>,
    /// The thread; nothing for all of them.
    pub thread: Option<Thread>,
    /// When, in milliseconds since 1970, if it is said.
    pub at_ms: Option<i64>,
}

impl Rooms {
    /// Of these users of the server `origin` those who are joined to the room named with each, if the room lets their server take part. In a
    /// room whose members are not all here it may be a user of whom nothing is known, if their server is said to be there.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn members_of(
        &self,
        origin: &ServerName,
        pairs: &[(OwnedRoomId, OwnedUserId)],
    ) -> Result<HashMap<(OwnedRoomId, OwnedUserId), (RoomNr, UserNr)>, Error> {
        let mut by_room: BTreeMap<&RoomId, Vec<&UserId>> = BTreeMap::new();
        for (room_id, user_id) in pairs.iter().filter(|(_, user_id)| user_id.server_name() == origin) {
            by_room.entry(room_id).or_default().push(user_id);
        }
        if by_room.is_empty() {
            return Ok(HashMap::new());
        }
        let rooms = self.find_rooms(&by_room.keys().copied().collect::<Vec<_>>()).await?;
        let users: HashSet<&UserId> = by_room.values().flatten().copied().collect();
        let users: Vec<&UserId> = users.into_iter().collect();
        let mut numbers = self.storage().find_user_nrs(&users).await?;
        if numbers.len() < users.len() && self.is_in_partial(&rooms, origin).await? {
            self.storage().intern(&[], &[], &users).await?;
            numbers = self.storage().find_user_nrs(&users).await?;
        }
        let mut asked: HashMap<(RoomNr, UserNr), (&RoomId, &UserId)> = HashMap::new();
        for room in &rooms {
            for user_id in by_room.get(&*room.id).into_iter().flatten() {
                if let Some(user_nr) = numbers.get(user_id) {
                    asked.insert((room.nr, *user_nr), (&room.id, user_id));
                }
            }
        }
        let pairs: Vec<(RoomNr, UserNr)> = asked.keys().copied().collect();
        let mut joined = self.storage().list_joined(&pairs).await?;
        if joined.len() < pairs.len() {
            joined.extend(self.storage().list_unknown_members(&pairs, origin.as_str()).await?);
        }
        // Last: only rooms that the server is in are looked at.
        let mut allowed: HashMap<RoomNr, bool> = HashMap::new();
        let mut members = HashMap::new();
        for pair @ (room_nr, _) in joined {
            let Some((room_id, user_id)) = asked.get(&pair) else { continue };
            if let Entry::Vacant(entry) = allowed.entry(room_nr) {
                entry.insert(self.is_server_allowed(room_id, origin).await?);
            }
            if allowed.get(&room_nr) == Some(&true) {
                members.insert(((*room_id).to_owned(), (*user_id).to_owned()), pair);
            }
        }
        Ok(members)
    }

    /// Whether a server is said to be in one of these rooms, of which not all members are here.
    async fn is_in_partial(&self, rooms: &[Arc<RoomRow>], server: &ServerName) -> Result<bool, Error> {
        let numbers: Vec<RoomNr> = rooms.iter().map(|room| room.nr).collect();
        Ok(self.storage().is_in_partial_room(&numbers, server.as_str()).await?)
    }

    /// Notes how far users of the server `origin` have read, in one commit. Passed over is what is said of others' users, of rooms that they
    /// are not joined to, and of threads that we do not know.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn receive_receipts(&self, origin: &ServerName, said: Vec<RemoteReceipt>) -> Result<(), Error> {
        if said.is_empty() {
            return Ok(());
        }
        let pairs: Vec<_> = said.iter().map(|one| (one.room_id.clone(), one.user_id.clone())).collect();
        let members = self.members_of(origin, &pairs).await?;
        let now_ms = self.storage().clock().now_ms();
        let mut receipts = Vec::new();
        for (one, pair) in said.into_iter().zip(pairs) {
            let (Some(&(room_nr, user_nr)), Some(event_id)) = (members.get(&pair), one.event_ids.into_iter().next())
            else {
                continue;
            };
            if !is_name(event_id.as_str(), ID_BYTES_MAX) {
                continue;
            }
            // A time to come would stay the newest for ever.
            let at_ms = one.at_ms.unwrap_or(now_ms).clamp(0, now_ms);
            receipts.push(NewReceipt {
                room_nr,
                user_nr,
                receipt_type: "m.read".to_owned(),
                thread: one.thread,
                event_id,
                at_ms,
                read_upto: None,
            });
        }
        let roots: HashSet<OwnedEventId> = receipts.iter().filter_map(|one| root_of(one).cloned()).collect();
        if !roots.is_empty() {
            // Each thread is a row: nobody makes as many as they like.
            let known = self.storage().find_event_nrs(&roots.into_iter().collect::<Vec<_>>()).await?;
            let events = self.storage().get_events(&known.values().copied().collect::<Vec<_>>()).await?;
            let is_known = |receipt: &NewReceipt| match root_of(receipt) {
                Some(root) => {
                    known.get(root).and_then(|nr| events.get(nr)).is_some_and(|event| event.room_nr == receipt.room_nr)
                }
                None => true,
            };
            receipts.retain(is_known);
        }
        if !receipts.is_empty() {
            self.storage().commit(Commit { receipts, ..Commit::default() }).await?;
        }
        Ok(())
    }
}

fn root_of(receipt: &NewReceipt) -> Option<&OwnedEventId> {
    match &receipt.thread {
        Some(Thread::Root(root)) => Some(root),
        _ => None,
    }
}
