//! How far our users have read, as it waits for a destination: of each user, room and thread the newest. Server-Server API, "Receipts".

use std::{collections::BTreeMap, sync::Arc};

use model::{Position, RoomNr, UserNr};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde_json::{Map, Value, json};
use storage::ReadRow;

use super::lossy::edu;

/// How far a user has read a room, or a thread of it.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    /// Where it is in the stream.
    pub(crate) position: Position,
    read: Arc<Read>,
}

#[derive(Debug)]
struct Read {
    /// Room, reader, and thread, which is empty for the whole room.
    of: (RoomNr, UserNr, String),
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    /// The receipt as it is told.
    told: Value,
}

impl Receipt {
    pub(crate) fn new(row: &ReadRow, room_id: OwnedRoomId, user_id: OwnedUserId, event_id: &OwnedEventId) -> Self {
        let thread = row.thread.as_ref().map(|thread| thread.as_str().to_owned());
        let mut data = json!({"ts": row.at_ms});
        if let Some(thread) = &thread {
            data["thread_id"] = json!(thread);
        }
        let of = (row.room_nr, row.user_nr, thread.unwrap_or_default());
        let told = json!({"data": data, "event_ids": [event_id]});
        Self { position: row.position, read: Arc::new(Read { of, room_id, user_id, told }) }
    }

    #[cfg(test)]
    pub(crate) fn of(user_nr: UserNr, position: Position) -> Self {
        tests::receipt(user_nr, "", position)
    }
}

/// Those that wait.
#[derive(Debug, Default)]
pub(crate) struct Receipts(BTreeMap<(RoomNr, UserNr, String), Receipt>);

impl Receipts {
    /// Adds what is newer than all before.
    pub(crate) fn push(&mut self, receipt: Receipt) {
        self.0.insert(receipt.read.of.clone(), receipt);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The position of the oldest.
    pub(crate) fn first(&self) -> Option<Position> {
        self.0.values().map(|receipt| receipt.position).min()
    }

    /// The position of the newest.
    pub(crate) fn last(&self) -> Option<Position> {
        self.0.values().map(|receipt| receipt.position).max()
    }

    /// Takes what fits into at most so many EDUs, as canonical JSON.
    pub(crate) fn take(&mut self, edus_max: usize) -> Vec<String> {
        let mut edus = Vec::new();
        // An EDU has one receipt of a user in a room: those in several threads go one by one. One place is for all others.
        let mut rooms: BTreeMap<OwnedRoomId, Map<String, Value>> = BTreeMap::new();
        while edus.len() + 1 < edus_max
            && let Some((_, Receipt { read, .. })) = self.0.pop_first()
        {
            let Read { room_id, user_id, told, .. } = &*read;
            match rooms.entry(room_id.clone()).or_default().entry(user_id.as_str()) {
                serde_json::map::Entry::Vacant(entry) => drop(entry.insert(told.clone())),
                serde_json::map::Entry::Occupied(_) => {
                    edus.push(receipts_edu(&json!({ room_id.as_str(): {"m.read": { user_id.as_str(): told }} })));
                }
            }
        }
        if !rooms.is_empty() {
            let content: Map<String, Value> =
                rooms.into_iter().map(|(room_id, users)| (room_id.to_string(), json!({"m.read": users}))).collect();
            edus.push(receipts_edu(&Value::Object(content)));
        }
        edus
    }
}

fn receipts_edu(content: &Value) -> String {
    edu("m.receipt", content)
}

#[cfg(test)]
mod tests {
    use model::Thread;
    use ruma::{owned_event_id, owned_room_id};

    use super::*;

    pub(super) fn receipt(user_nr: UserNr, thread: &str, position: Position) -> Receipt {
        let event_id = owned_event_id!("$event");
        let thread = match thread {
            "" => None,
            "main" => Some(Thread::Main),
            root => Some(Thread::Root(root.try_into().unwrap())),
        };
        let row = ReadRow { room_nr: RoomNr(1), user_nr, thread, event_id: event_id.to_string(), at_ms: 1, position };
        let user_id = format!("@user{user_nr}:hs1").try_into().unwrap();
        Receipt::new(&row, owned_room_id!("!room:hs1"), user_id, &event_id)
    }

    fn waiting(all: impl IntoIterator<Item = (i64, &'static str)>) -> Receipts {
        let mut receipts = Receipts::default();
        for (position, (user, thread)) in all.into_iter().enumerate() {
            receipts.push(receipt(UserNr(user), thread, Position(position as i64)));
        }
        receipts
    }

    fn taken(receipts: &mut Receipts, edus_max: usize) -> Vec<Value> {
        receipts.take(edus_max).iter().map(|edu| serde_json::from_str(edu).unwrap()).collect()
    }

    #[test]
    fn of_each_user_the_newest_is_told_once_and_many_go_together() {
        let mut receipts = waiting([(1, ""), (1, ""), (2, "")]);
        assert_eq!((receipts.first(), receipts.last()), (Some(Position(1)), Some(Position(2))));
        let edus = taken(&mut receipts, 10);
        assert_eq!(edus.len(), 1, "{edus:?}");
        assert_eq!(edus[0]["content"]["!room:hs1"]["m.read"].as_object().unwrap().len(), 2);
        assert!(taken(&mut receipts, 10).is_empty());
    }

    /// An EDU has one receipt of a user in a room, whatever threads there are.
    #[test]
    fn receipts_in_threads_go_apart_and_no_transaction_has_more_than_it_may() {
        let threads = ["", "main", "$root"];
        let mut receipts = waiting((0..20).flat_map(|user| threads.map(|thread| (user, thread))));
        let mut told = 0;
        while !receipts.is_empty() {
            let edus = taken(&mut receipts, 10);
            assert!(!edus.is_empty() && edus.len() <= 10);
            let count = |edu: &Value| edu["content"]["!room:hs1"]["m.read"].as_object().unwrap().len();
            told += edus.iter().map(count).sum::<usize>();
        }
        assert_eq!(told, 60);
    }
}
