//! How fast events of another server are taken in: `cargo bench -p rooms --bench receive`.
//!
//! One server sends transactions of 50 messages of 600 bytes, one after the other, to one room and to 20; `-- --postgres` does it on the
//! database for tests.

mod world;

use std::time::Instant;

use ruma::{CanonicalJsonObject, OwnedEventId, OwnedRoomId, RoomVersionId};
use serde_json::json;
use world::{World, levels};

const EVENTS: usize = 5_000;
const TRANSACTION: usize = 50;

/// A room as the other server sees it.
struct Room {
    id: OwnedRoomId,
    auth: Vec<OwnedEventId>,
    tip: OwnedEventId,
    depth: i64,
}

/// A room of alice's which rem of the other server has joined.
async fn joined_room(world: &World) -> Room {
    let id = world.create_room(&levels(&RoomVersionId::V11)).await;
    let mut auth = Vec::new();
    for kind in ["m.room.create", "m.room.power_levels", "m.room.join_rules"] {
        auth.push(world.state_event(&id, kind, "").await);
    }
    // After the newest event of the room; which one that is does not matter here.
    let tip = world.state_event(&id, "m.room.guest_access", "").await;
    let mut room = Room { id, auth, tip, depth: 20 };
    let join = json!({
        "type": "m.room.member", "state_key": "@rem:other", "content": {"membership": "join"},
        "sender": "@rem:other", "room_id": room.id, "depth": room.depth, "origin_server_ts": 1_700_000_000_000_i64,
        "prev_events": [room.tip], "auth_events": room.auth,
    });
    let (join, event_id) = world.sign(join);
    assert_eq!(world.send(vec![join]).await, 1);
    room.auth[2] = event_id.clone();
    room.tip = event_id;
    room
}

fn message(world: &World, room: &mut Room) -> CanonicalJsonObject {
    room.depth += 1;
    let (object, event_id) = world.sign(json!({
        "type": "m.room.message", "content": {"msgtype": "m.text", "body": "x".repeat(150)}, "sender": "@rem:other",
        "room_id": room.id, "depth": room.depth, "origin_server_ts": 1_700_000_000_000_i64,
        "prev_events": [room.tip], "auth_events": room.auth,
    }));
    room.tip = event_id;
    object
}

async fn measure(world: &World, count: usize) {
    let mut rooms = Vec::new();
    for _ in 0..count {
        rooms.push(joined_room(world).await);
    }
    let pdus: Vec<CanonicalJsonObject> = (0..EVENTS).map(|number| message(world, &mut rooms[number % count])).collect();
    let start = Instant::now();
    let mut accepted = 0;
    for transaction in pdus.chunks(TRANSACTION) {
        accepted += world.send(transaction.to_vec()).await;
    }
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(accepted, EVENTS, "all events are taken in");
    println!("{count} rooms: {:.0} events/s", EVENTS as f64 / seconds);
}

#[tokio::main]
async fn main() {
    let database = world::database().await;
    let world = World::new(database.open().await, &RoomVersionId::V11);
    for count in [1, 20] {
        measure(&world, count).await;
    }
}
