//! The people of a case, their devices, and what may be asked of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use test_kit::{TestUser, encode};
use tokio::time::{Instant, sleep};

use crate::{
    actor::{Actor, Client, Halt, Step, failed},
    gate::{Gate, Hold},
    table::{Cell, Outcome},
    world::World,
};

/// Longest wait for what servers do among themselves.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Where one cell of the table is played.
pub(crate) struct Stage {
    pub(crate) world: Arc<World>,
    cell: Cell,
    /// The libraries that played, with their versions.
    pub(crate) versions: BTreeMap<Client, String>,
    /// What no server may see.
    secrets: Vec<Vec<u8>>,
    gates: Vec<Arc<Gate>>,
}

/// A person with an account; 0 is the first of the case, 1 the second.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) place: usize,
    pub(crate) user: TestUser,
}

/// A device of a person.
pub(crate) struct Device {
    pub(crate) person: Person,
    pub(crate) id: String,
    pub(crate) gate: Arc<Gate>,
    actor: Actor,
}

/// Two people in an encrypted room, who know each other's device.
pub(crate) struct Conversation {
    pub(crate) room: String,
    pub(crate) first: Device,
    pub(crate) second: Device,
}

impl Stage {
    pub(crate) fn new(world: Arc<World>, cell: Cell) -> Self {
        Self { world, cell, versions: BTreeMap::new(), secrets: Vec::new(), gates: Vec::new() }
    }

    /// Plays the case.
    pub(crate) async fn play(&mut self) -> Outcome {
        let played = Box::pin(self.cell.case.play(self)).await;
        match played.and_then(|()| self.servers_saw_nothing()) {
            Ok(()) => Outcome::Passed,
            Err(Halt::Impossible(why)) => Outcome::Impossible(why),
            Err(Halt::Failed(why)) => Outcome::Failed(why.replace('\n', " ")),
        }
    }

    /// What was encrypted is in no request of any device.
    fn servers_saw_nothing(&self) -> Step<()> {
        for secret in &self.secrets {
            if self.gates.iter().any(|gate| gate.count("", secret) > 0) {
                return failed(format!("a server saw `{}`", String::from_utf8_lossy(secret)));
            }
        }
        Ok(())
    }

    /// A text that nobody said before and no server may see.
    pub(crate) fn secret(&mut self, text: &str) -> String {
        let text = format!("{text} {}", name());
        self.secrets.push(text.clone().into_bytes());
        text
    }

    /// The same for a file.
    pub(crate) fn secret_file(&mut self, length: usize) -> Vec<u8> {
        let block: [u8; 1_024] = model::Random::system().bytes();
        self.secrets.push(block[..64].to_vec());
        block.into_iter().cycle().take(length).collect()
    }

    /// Somebody new at the server of the first or second.
    pub(crate) async fn person(&self, place: usize) -> Person {
        let user = self.world.user(place, &format!("{}{}", ["alice", "bob"][place], name())).await;
        Person { place, user }
    }

    /// The library that the first or second uses.
    pub(crate) fn client(&self, place: usize) -> Client {
        [self.cell.first, self.cell.second][place]
    }

    /// Logs a person in on a new device with this library, whose keys others find when this is done.
    pub(crate) async fn device(&mut self, person: &Person, client: Client) -> Step<Device> {
        let gate = Arc::new(Gate::to(self.world.upstream(person.place)).await);
        self.gates.push(gate.clone());
        let log = format!("{}-{}.log", person.user.localpart(), client.name());
        let mut actor = Actor::start(client, &log).await?;
        self.versions.insert(client, actor.library.clone());
        let password = password(&person.user);
        let command = json!({"do": "login", "url": gate.url(), "user": person.user.id(), "password": password});
        let id = text(&actor.ask(&command).await?, "device")?;
        let device = Device { person: person.clone(), id, gate, actor };
        let query = json!({"device_keys": {person.user.id(): []}});
        eventually(&format!("{} has published its keys", device.actor.library), async || {
            let found = person.at(&self.world).post("/keys/query", &query).await.ok();
            !found["device_keys"][person.user.id()][&device.id].is_null()
        })
        .await?;
        Ok(device)
    }

    /// Two people in a room that the first made.
    pub(crate) async fn conversation(&mut self) -> Step<Conversation> {
        let (first, second) = (self.person(0).await, self.person(1).await);
        let (mut first, mut second) =
            (self.device(&first, self.client(0)).await?, self.device(&second, self.client(1)).await?);
        let room = first.ask("create_room", json!({"invite": second.user()})).await?;
        let room = text(&room, "room")?;
        second.ask("join", json!({"room": room})).await?;
        first.sees_member(&room, &second, "join").await?;
        first.knows(&second).await?;
        second.knows(&first).await?;
        Ok(Conversation { room, first, second })
    }
}

impl Person {
    /// This person where the server is now.
    pub(crate) fn at(&self, world: &World) -> TestUser {
        self.user.at(&world.http(self.place))
    }
}

impl Device {
    /// The id of its user.
    pub(crate) fn user(&self) -> &str {
        self.person.user.id()
    }

    /// The password of its user.
    pub(crate) fn password(&self) -> String {
        password(&self.person.user)
    }

    /// The library and its version.
    pub(crate) fn library(&self) -> &str {
        &self.actor.library
    }

    /// Gives its actor a command.
    pub(crate) async fn ask(&mut self, what: &str, mut command: Value) -> Step<Value> {
        command["do"] = json!(what);
        self.actor.ask(&command).await
    }

    pub(crate) async fn sees_member(&mut self, room: &str, other: &Self, membership: &str) -> Step<()> {
        let command = json!({"room": room, "user": other.user(), "membership": membership});
        self.ask("sees_member", command).await.map(drop)
    }

    pub(crate) async fn knows(&mut self, other: &Self) -> Step<()> {
        self.ask("knows_device", json!({"user": other.user(), "device": other.id})).await.map(drop)
    }

    /// Says something, and gives the event.
    pub(crate) async fn says(&mut self, room: &str, body: &str) -> Step<String> {
        text(&self.ask("send", json!({"room": room, "body": body})).await?, "event")
    }

    /// Waits until it reads what somebody said.
    pub(crate) async fn hears(&mut self, room: &str, event: &str, from: &Self, body: &str) -> Step<()> {
        let heard = self.ask("receives", json!({"room": room, "event": event})).await?;
        if heard["body"] == body && heard["sender"] == from.user() {
            return Ok(());
        }
        failed(format!("{} heard {heard} and not `{body}` from {}", self.library(), from.user()))
    }

    /// Reads an event that it did not hear.
    pub(crate) async fn reads(&mut self, room: &str, event: &str, body: &str) -> Step<()> {
        let read = self.ask("read", json!({"room": room, "event": event})).await?;
        if read["body"] == body { Ok(()) } else { failed(format!("{} read {read} and not `{body}`", self.library())) }
    }

    /// Has the event, but cannot read it.
    pub(crate) async fn cannot_read(&mut self, room: &str, event: &str) -> Step<()> {
        let read = self.ask("read", json!({"room": room, "event": event})).await?;
        let is_secret = read["unreadable"].is_string() && read["body"].is_null();
        if is_secret { Ok(()) } else { failed(format!("{} should not read {read}", self.library())) }
    }

    /// Takes the device off the network, and back.
    pub(crate) fn offline(&self, offline: bool) {
        self.gate.hold(if offline { Hold::All } else { Hold::Nothing });
    }

    /// Waits until the server has an event of the past, which it may have to fetch.
    pub(crate) async fn server_has(&self, world: &World, room: &str, event: &str) -> Step<()> {
        let path = format!("/rooms/{}/messages?dir=b&limit=50", encode(room));
        eventually("the server has the event of the past", async || {
            let page = self.person.at(world).get(&path).await.ok();
            page["chunk"].as_array().is_some_and(|events| events.iter().any(|found| found["event_id"] == event))
        })
        .await
    }
}

/// The text of a key in an answer.
pub(crate) fn text(answer: &Value, key: &str) -> Step<String> {
    answer[key]
        .as_str()
        .map_or_else(|| failed(format!("an actor's answer lacks `{key}`: {answer}")), |text| Ok(text.into()))
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Step<()> {
    let end = Instant::now() + WAIT_MAX;
    while !holds().await {
        if Instant::now() > end {
            return failed(format!("it never came true that {what}"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The password that `test_kit::register` gives.
fn password(user: &TestUser) -> String {
    format!("{}'s password", user.localpart())
}

/// A name that nobody has.
fn name() -> String {
    model::Random::system().alphanumeric(10).to_lowercase()
}
