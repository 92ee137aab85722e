//! How long state resolution of a large fork takes: `cargo bench -p rooms --bench fork`.
//!
//! In a room of 10,000 members, 20 administrators of another server each go on for themselves after the same event: they change powers, the
//! topic and who may join, ban and kick the same members and others, and members rename themselves and leave. An event that comes after all
//! 20 branches, and not after what came since, has the state that they resolve to: how long one takes is shown. `-- --postgres` does it on the database for tests; `-- --members 1000` with fewer members.

mod world;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ruma::{CanonicalJsonObject, OwnedEventId, OwnedRoomId, RoomVersionId};
use serde_json::{Value, json};
use world::{World, levels};

/// As many as an event may refer to.
const BRANCHES: usize = 20;
const TRANSACTION: usize = 50;
/// How often the 20 branches are brought together by a server that has them in memory.
const WARM_RUNS: usize = 3;

/// A line of events, as the other server sees it.
#[derive(Clone)]
struct Branch {
    room: OwnedRoomId,
    state: HashMap<(&'static str, String), OwnedEventId>,
    tips: Vec<OwnedEventId>,
    depth: usize,
    events: Vec<CanonicalJsonObject>,
}

impl Branch {
    /// The next event: with what authorizes it of the state here.
    fn add(&mut self, world: &World, sender: &str, kind: &'static str, state_key: Option<&str>, content: Value) {
        self.depth += 1;
        let mut auth = vec![("m.room.power_levels", ""), ("m.room.member", sender)];
        if world.refers_to_create() {
            auth.push(("m.room.create", ""));
        }
        if let Some(target) = state_key.filter(|target| kind == "m.room.member" && *target != sender) {
            auth.push(("m.room.member", target));
        }
        if content["membership"] == "join" {
            auth.push(("m.room.join_rules", ""));
        }
        let auth: Vec<&OwnedEventId> =
            auth.into_iter().filter_map(|(kind, key)| self.state.get(&(kind, key.to_owned()))).collect();
        let mut event = json!({
            "type": kind, "sender": sender, "content": content, "room_id": self.room, "depth": self.depth,
            "origin_server_ts": 1_700_000_000_000_usize + self.depth, "prev_events": self.tips, "auth_events": auth,
        });
        if let Some(key) = state_key {
            event["state_key"] = json!(key);
        }
        let (event, id) = world.sign(event);
        if let Some(key) = state_key {
            self.state.insert((kind, key.to_owned()), id.clone());
        }
        self.tips = vec![id];
        self.events.push(event);
    }

    fn member(&mut self, world: &World, (sender, target): (&str, &str), content: Value) {
        self.add(world, sender, "m.room.member", Some(target), content);
    }

    /// Sends what was added, and gives how long the slowest transaction took.
    async fn send(&mut self, world: &World) -> Duration {
        let mut slowest = Duration::ZERO;
        for transaction in std::mem::take(&mut self.events).chunks(TRANSACTION) {
            let start = Instant::now();
            assert_eq!(world.send(transaction.to_vec()).await, transaction.len(), "all events are taken in");
            slowest = slowest.max(start.elapsed());
        }
        slowest
    }
}

fn admin(number: usize) -> String {
    format!("@admin{number}:other")
}

fn member(number: usize) -> String {
    format!("@member{number}:other")
}

/// The room before the fork.
async fn trunk(world: &World, levels: &Value, members: usize) -> Branch {
    let room = world.create_room(levels).await;
    let mut state = HashMap::new();
    for kind in ["m.room.create", "m.room.power_levels", "m.room.join_rules"] {
        state.insert((kind, String::new()), world.state_event(&room, kind, "").await);
    }
    let tip = world.state_event(&room, "m.room.guest_access", "").await;
    let mut trunk = Branch { room, state, tips: vec![tip], depth: 20, events: Vec::new() };
    for user in (0..BRANCHES).map(admin).chain((0..members - BRANCHES).map(member)) {
        trunk.member(world, (&user, &user), json!({"membership": "join", "displayname": user}));
    }
    trunk.send(world).await;
    trunk
}

/// What the administrator of a branch and some members do there.
fn grow(world: &World, branch: &mut Branch, number: usize, mut levels: Value) {
    let by = admin(number);
    let ban = json!({"membership": "ban"});
    levels["users"][member(1_000 + number)] = json!(50);
    levels["ban"] = json!(50 + number);
    branch.add(world, &by, "m.room.power_levels", Some(""), levels.clone());
    for common in 200..205 {
        branch.member(world, (&by, &member(common)), ban.clone());
    }
    branch.member(world, (&by, &member(300 + number)), json!({"membership": "leave"}));
    branch.add(world, &by, "m.room.topic", Some(""), json!({"topic": by}));
    branch.add(world, &by, "m.room.name", Some(""), json!({"name": by}));
    let rule = if number.is_multiple_of(2) { "invite" } else { "public" };
    branch.add(world, &by, "m.room.join_rules", Some(""), json!({"join_rule": rule}));
    for renamed in [500, 501].into_iter().chain((0..10).map(|index| 600 + number * 10 + index)) {
        let user = member(renamed);
        branch.member(world, (&user, &user), json!({"membership": "join", "displayname": by}));
    }
    let user = member(400 + number);
    branch.member(world, (&user, &user), json!({"membership": "leave"}));
    levels["kick"] = json!(50 + number);
    branch.add(world, &by, "m.room.power_levels", Some(""), levels);
}

async fn measure(version: &RoomVersionId, members: usize) {
    let database = world::database().await;
    let storage = database.open().await;
    let world = World::new(storage.clone(), version);
    let mut levels = levels(version);
    for number in 0..BRANCHES {
        levels["users"][admin(number)] = json!(100);
    }
    let trunk = trunk(&world, &levels, members).await;
    // With what the version has of its own in it.
    let levels = world.state_content(&trunk.room, "m.room.power_levels", "").await;
    let mut merged = trunk.clone();
    merged.tips.clear();
    let mut slowest = Duration::ZERO;
    for number in 0..BRANCHES {
        let mut branch = trunk.clone();
        grow(&world, &mut branch, number, levels.clone());
        slowest = slowest.max(branch.send(&world).await);
        merged.depth = merged.depth.max(branch.depth);
        merged.tips.extend(branch.tips);
    }
    // Somebody whom nobody touched says something after all that was done.
    let mut merge = async |world: &World| {
        let mut merge = merged.clone();
        merged.depth += 1;
        merge.add(world, &member(900), "m.room.message", None, json!({"msgtype": "m.text", "body": "together"}));
        merge.send(world).await
    };
    // What all extremities resolve to is the current state: the first one to come after them costs nothing.
    merge(&world).await;
    let mut warm = Vec::new();
    for _ in 0..WARM_RUNS {
        warm.push(merge(&world).await);
    }
    storage.close().await;
    let cold = merge(&World::new(database.open().await, version)).await;
    println!(
        "version {version}: {BRANCHES} branches resolved in {cold:.1?} cold, {warm:.1?} warm; \
         the slowest branch of 24 events came in within {slowest:.1?}"
    );
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let members = arguments.iter().position(|argument| argument == "--members");
    let members = members.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(10_000);
    for version in [RoomVersionId::V11, RoomVersionId::V12] {
        measure(&version, members).await;
    }
}
