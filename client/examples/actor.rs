//! This library as an actor: one device that does what it is told, a JSON object a line, in the tests of client libraries with each other.
//! The commands are in `test_kit/src/bin/encryption/actor.rs`.

use std::{
    collections::HashMap,
    error::Error,
    io::stdin,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use client::{
    Client, Event, Login, Membership, NewFile, NewRoom, RoomEvent, Secrecy, Store, StoreKey, VerificationChange,
    verification::Stage,
};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId, api::client::room::get_room_event,
    events::AnyTimelineEvent, serde::Raw,
};
use serde_json::{Value, json};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// How long a command waits at most.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Largest file that is fetched.
const FILE_BYTES_MAX: u64 = 10_000_000;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What the client told.
#[derive(Default)]
struct Heard {
    events: HashMap<OwnedEventId, RoomEvent>,
    /// The newest of each user's.
    verifications: HashMap<OwnedUserId, VerificationChange>,
}

struct Actor {
    client: Option<Client>,
    heard: Arc<Mutex<Heard>>,
    /// With whom devices are verified.
    other: Option<OwnedUserId>,
    folder: tempfile::TempDir,
}

#[tokio::main]
async fn main() -> Result<()> {
    println!("{}", json!({"library": "swiftchat", "version": env!("CARGO_PKG_VERSION")}));
    let folder = tempfile::tempdir()?;
    let mut actor = Actor { client: None, heard: Arc::default(), other: None, folder };
    while let Some(line) = spawn_blocking(|| stdin().lines().next()).await? {
        let command: Value = serde_json::from_str(&line?)?;
        let answer = match Box::pin(actor.obey(&command)).await {
            Ok(value) => json!({"ok": value}),
            Err(error) => json!({"failed": chain(&*error)}),
        };
        println!("{answer}");
    }
    Ok(())
}

/// An error with what caused it.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}

impl Actor {
    async fn obey(&mut self, command: &Value) -> Result<Value> {
        let text = |key: &str| command[key].as_str().ok_or_else(|| format!("no `{key}`"));
        let user = || Result::Ok(<&UserId>::try_from(text("user")?)?);
        let room = || Result::Ok(<&RoomId>::try_from(text("room")?)?);
        let event = || Result::Ok(<&EventId>::try_from(text("event")?)?);
        match text("do")? {
            "login" => return self.login(text("url")?, text("user")?, text("password")?).await,
            "create_room" => {
                let invite = vec![OwnedUserId::try_from(text("invite")?)?];
                let room = NewRoom { invite, is_encrypted: true, ..NewRoom::default() };
                return Ok(json!({"room": self.client()?.create_room(room).await?}));
            }
            "invite" => self.client()?.invite(room()?, user()?).await?,
            "join" => self.join(room()?).await?,
            "leave" => self.client()?.leave(room()?).await?,
            "sees_member" => self.sees_member(room()?, user()?, text("membership")?).await?,
            "knows_device" => {
                let (client, device) = (self.client()?, text("device")?);
                eventually("the device is known", async || {
                    let devices = client.devices(user()?).await?;
                    Ok(devices.iter().any(|known| known.device_id == device).then_some(()))
                })
                .await?;
            }
            "send" => return Ok(json!({"event": self.client()?.send_text(room()?, text("body")?).await?})),
            "receives" => {
                let received = self.received(event()?).await?;
                return Ok(json!({"body": received.body(), "sender": received.sender}));
            }
            "read" => return self.read(room()?, event()?).await,
            "send_file" => return self.send_file(room()?, text("name")?, text("data")?).await,
            "fetch_file" => return self.fetch_file(event()?).await,
            "has_fallback_key" => {}
            "set_up_backup" => {
                let client = self.client()?;
                client.make_identity(Some(text("password")?), false).await?;
                client.enable_backup(false).await?;
                return Ok(json!({"recovery_key": *client.enable_recovery(None).await?}));
            }
            "restore_backup" => {
                let client = self.client()?;
                let recovered = client.recover(text("recovery_key")?).await?;
                if !(recovered.identity && recovered.backup) {
                    return Err(format!("not all is recovered: {recovered:?}").into());
                }
                client.restore_backup().await?;
            }
            "request_verification" => {
                self.client()?.request_verification(user()?).await?;
                self.other = Some(user()?.to_owned());
            }
            "accept_verification" => {
                self.other = Some(user()?.to_owned());
                let asks = |stage: &Stage| (*stage == Stage::Requested { by_us: false }).then_some(());
                let ((), flow) = self.verification("somebody asks for a verification", asks).await?;
                self.client()?.accept_verification(user()?, &flow).await?;
            }
            "compare" => {
                let compares = |stage: &Stage| match stage {
                    Stage::Comparing(code) => code.emoji,
                    _ => None,
                };
                let (emoji, _) = self.verification("the keys are exchanged", compares).await?;
                return Ok(json!({"emoji": emoji.map(|emoji| emoji.symbol)}));
            }
            "confirm" => {
                let compares = |stage: &Stage| matches!(stage, Stage::Comparing(_)).then_some(());
                let ((), flow) = self.verification("the keys are exchanged", compares).await?;
                self.client()?.confirm_verification(self.other.as_ref().ok_or("nobody was asked")?, &flow).await?;
                let is_done = |stage: &Stage| matches!(stage, Stage::Done { .. }).then_some(());
                self.verification("the other confirms", is_done).await?;
            }
            "trusts" => {
                let trusted = self.client()?.is_verified(user()?, text("device")?.into()).await?;
                return Ok(json!({"trusted": trusted}));
            }
            unknown => return Err(format!("`{unknown}` is no command").into()),
        }
        Ok(json!({}))
    }

    fn client(&self) -> Result<&Client> {
        self.client.as_ref().ok_or_else(|| "not logged in".into())
    }

    async fn login(&mut self, url: &str, user: &str, password: &str) -> Result<Value> {
        let store = Store::open(&self.folder.path().join("store"), &StoreKey::raw(rand::random())).await?;
        let homeserver = url.parse()?;
        let client =
            Client::login(store, Login { homeserver: &homeserver, user, password, device_name: "swiftchat" }).await?;
        let (mut events, heard) = (client.events(), self.heard.clone());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let mut heard = heard.lock().expect("no panic");
                match event {
                    Event::Room(event) | Event::Late(event) => _ = heard.events.insert(event.event_id.clone(), event),
                    Event::Verification(change) => _ = heard.verifications.insert(change.user_id.clone(), change),
                    _ => {}
                }
            }
        });
        client.sync_once(Duration::ZERO).await?;
        let syncing = client.clone();
        tokio::spawn(async move { eprintln!("/sync: {:?}", syncing.sync().await) });
        let device = client.device_id().to_owned();
        self.client = Some(client);
        Ok(json!({"device": device}))
    }

    async fn join(&self, room: &RoomId) -> Result<()> {
        let client = self.client()?;
        eventually("the invitation", async || {
            Ok(client.room(room).await.ok().filter(|room| room.membership == Membership::Invite))
        })
        .await?;
        client.join(OwnedRoomId::from(room).into()).await?;
        Ok(())
    }

    async fn sees_member(&self, room: &RoomId, user: &UserId, membership: &str) -> Result<()> {
        let client = self.client()?;
        let wanted: Membership = serde_json::from_value(membership.into())?;
        eventually("the member is there", async || {
            let room = client.room(room).await?;
            let stands = room.members.get(user).map_or(Membership::Leave, |member| member.membership);
            Ok((stands == wanted).then_some(()))
        })
        .await
    }

    /// Waits until an event came and can be read.
    async fn received(&self, event: &EventId) -> Result<RoomEvent> {
        eventually("the event is there, decrypted", async || {
            let found = self.heard.lock().expect("no panic").events.get(event).cloned();
            Ok(found.filter(|event| matches!(event.secrecy, Secrecy::Encrypted(_))))
        })
        .await
    }

    async fn read(&self, room: &RoomId, event: &EventId) -> Result<Value> {
        let client = self.client()?;
        let request = get_room_event::v3::Request::new(room.to_owned(), event.to_owned());
        let found: Raw<AnyTimelineEvent> = client.api().send(request).await?.event;
        let found = serde_json::from_str(found.json().get())?;
        let read = client.read(room, &[found]).await?.pop().ok_or("the server gave something else")?;
        Ok(match &read.secrecy {
            Secrecy::Undecryptable(why) => json!({"unreadable": why.to_string()}),
            _ => json!({"body": read.body()}),
        })
    }

    async fn send_file(&self, room: &RoomId, name: &str, data: &str) -> Result<Value> {
        let path = self.folder.path().join("sent");
        tokio::fs::write(&path, BASE64.decode(data)?).await?;
        let file = NewFile { path: &path, name, content_type: "application/octet-stream" };
        Ok(json!({"event": self.client()?.send_file(room, file, |_| {}).await?}))
    }

    async fn fetch_file(&self, event: &EventId) -> Result<Value> {
        let received = self.received(event).await?;
        let path = self.folder.path().join("fetched");
        self.client()?.download_file(&received.content, &path, FILE_BYTES_MAX).await?;
        Ok(json!({"data": BASE64.encode(tokio::fs::read(&path).await?)}))
    }

    /// Waits until the verification is where it should be; gives what it is called too.
    async fn verification<T>(&self, what: &str, reaches: impl Fn(&Stage) -> Option<T>) -> Result<(T, String)> {
        let other = self.other.as_ref().ok_or("nobody was asked")?;
        eventually(what, async || {
            let Some(change) = self.heard.lock().expect("no panic").verifications.get(other).cloned() else {
                return Ok(None);
            };
            if let Stage::Cancelled { code, reason, .. } = &change.stage {
                return Err(format!("the verification was canceled: {code} ({reason})").into());
            }
            Ok(reaches(&change.stage).map(|reached| (reached, change.flow_id)))
        })
        .await
    }
}

/// Waits until something gives a value.
async fn eventually<T>(what: &str, mut gives: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + WAIT_MAX;
    while Instant::now() < end {
        if let Some(value) = gives().await? {
            return Ok(value);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(format!("waited in vain until {what}").into())
}
