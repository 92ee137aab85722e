//! Events without a place, and states that others have said.

use std::sync::Arc;

use model::{EventNr, NodeNr, Pdu, StateKeyNr, TypeNr};
use ruma::{RoomId, RoomVersionId};
use serde_json::json;

use crate::{NewNodes, Storage, testing::TestDatabase};

fn pdu(name: &str, auth: &[&str]) -> Arc<Pdu> {
    let auth: Vec<String> = auth.iter().map(|name| format!("${name}")).collect();
    let body = json!({
        "type": "m.room.topic", "state_key": name, "content": {}, "sender": "@a:other", "room_id": "!a:other", "depth": 3,
        "origin_server_ts": 1_000, "prev_events": ["$elsewhere"], "auth_events": auth,
    });
    let event_id = ruma::EventId::parse(format!("${name}")).unwrap();
    let rules = RoomVersionId::V11.rules().unwrap();
    let room_id = RoomId::parse("!a:other").unwrap();
    Arc::new(Pdu::from_stored(body.to_string().into(), event_id, room_id, &rules).unwrap())
}

/// Two processes stage the same room, in chunks that overlap.
#[tokio::test]
async fn outliers_are_stored_once_whoever_stores_them() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let room_id = RoomId::parse("!a:other").unwrap();
        let room = storage.ensure_room(&room_id, &RoomVersionId::V11).await.unwrap();
        assert_eq!(storage.ensure_room(&room_id, &RoomVersionId::V11).await.unwrap().nr, room.nr);
        let names: Vec<String> = (0..1_200).map(|number| format!("e{number}")).collect();
        let all: Vec<Arc<Pdu>> = names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let auth: Vec<&str> = index.checked_sub(1).map(|before| &*names[before]).into_iter().collect();
                pdu(name, &auth)
            })
            .collect();
        let other: Storage = storage.clone();
        let (some, all_again) = (all[..700].to_vec(), all.clone());
        let (one, two) = tokio::join!(async { storage.insert_outliers(room.nr, &some).await.unwrap() }, async {
            other.insert_outliers(room.nr, &all_again).await.unwrap()
        },);
        assert_eq!((one.len(), two.len()), (700, 1_200));
        assert!(one.iter().all(|(id, nr)| two[id] == *nr));
        let event = storage.get_event(two[&all[900].event_id]).await.unwrap().unwrap();
        assert!(event.outlier && event.position.is_none() && event.place.is_none());
        let auth = storage.list_auth_events(&[event.nr]).await.unwrap();
        assert_eq!(auth[&event.nr], [two[&all[899].event_id]]);

        let mut refused = (*pdu("refused", &["e1"])).clone();
        refused.rejected = true;
        let refused = storage.insert_outliers(room.nr, &[Arc::new(refused)]).await.unwrap();
        let nr = *refused.values().next().unwrap();
        assert!(storage.get_event(nr).await.unwrap().unwrap().pdu.rejected);
    }
}

#[tokio::test]
async fn a_state_of_entries_is_the_same_whatever_it_is_built_upon() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let room_id = RoomId::parse("!a:other").unwrap();
        let room = storage.ensure_room(&room_id, &RoomVersionId::V11).await.unwrap();
        let entry = |key: i64, nr: i64| ((TypeNr(1 + key % 3), StateKeyNr(key)), EventNr(nr));
        let first: Vec<_> = (0..2_000).map(|key| entry(key, 10_000 + key)).collect();
        let mut second = first.clone();
        second.retain(|(key, _)| key.1.0 % 500 != 7);
        second.push(entry(3_000, 77));
        second[5].1 = EventNr(99);
        let mut new = NewNodes::default();
        let base = storage.build_state(room.nr, NodeNr(0), first, &mut new).await.unwrap();
        let whole = storage.build_state(room.nr, NodeNr(0), second.clone(), &mut new).await.unwrap();
        let before = new.nodes.len();
        let shared = storage.build_state(room.nr, base, second.clone(), &mut new).await.unwrap();
        assert!(new.nodes.len() - before < 60, "{} nodes for 6 changes", new.nodes.len() - before);
        assert_eq!(storage.shape(room.nr, whole).await, storage.shape(room.nr, shared).await);
        storage.insert_state_nodes(room.nr, new).await.unwrap();
        let again = database.open().await;
        second.sort_unstable();
        assert_eq!(again.list_state(room.nr, shared).await.unwrap(), second);
    }
}
