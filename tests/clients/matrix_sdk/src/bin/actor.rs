//! The Rust matrix-sdk as an actor: one device that does what it is told, a JSON object a line. The commands are in
//! `test_kit/src/bin/encryption/actor.rs`.

use std::{
    collections::HashMap,
    io::stdin,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use matrix_sdk::{
    Client, Room, RoomState,
    attachment::AttachmentConfig,
    config::{RequestConfig, SyncSettings},
    deserialized_responses::TimelineEventKind,
    encryption::{
        VERSION,
        verification::{SasVerification, Verification, VerificationRequest, VerificationRequestState},
    },
    media::{MediaFormat, MediaRequestParameters},
    ruma::{
        EventId, OwnedEventId, OwnedUserId, RoomId, UserId,
        api::client::{filter::FilterDefinition, room::create_room, sync::sync_events::v3::Filter, uiaa},
        events::{
            InitialStateEvent,
            key::verification::{VerificationMethod, request::ToDeviceKeyVerificationRequestEvent},
            room::{
                MediaSource,
                encryption::RoomEncryptionEventContent,
                member::MembershipState,
                message::{MessageType, OriginalSyncRoomMessageEvent, RoomMessageEventContent},
            },
        },
        serde::{Base64, base64::Standard},
    },
};
use serde_json::{Value, json};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

/// How long a command waits at most.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What the sync loop heard.
#[derive(Default)]
struct Heard {
    /// Whether there was an answer.
    synced: bool,
    /// Timeline events by id, as the library gave them.
    events: HashMap<OwnedEventId, TimelineEventKind>,
    /// Who asked for a verification, in which transaction.
    requests: Vec<(OwnedUserId, String)>,
}

#[derive(Default)]
struct Actor {
    client: Option<Client>,
    heard: Arc<Mutex<Heard>>,
    request: Option<VerificationRequest>,
    sas: Option<SasVerification>,
}

#[tokio::main]
async fn main() -> Result<()> {
    println!("{}", json!({"library": "matrix-rust-sdk", "version": VERSION}));
    let mut actor = Actor::default();
    // A thread that waits for a line would keep what was just spawned from its turn.
    while let Some(line) = spawn_blocking(|| stdin().lines().next()).await? {
        let command: Value = serde_json::from_str(&line?)?;
        let answer = match Box::pin(actor.obey(&command)).await {
            Ok(value) => json!({"ok": value}),
            Err(error) => json!({"failed": format!("{error:#}")}),
        };
        println!("{answer}");
    }
    Ok(())
}

impl Actor {
    async fn obey(&mut self, command: &Value) -> Result<Value> {
        let text = |key: &str| command[key].as_str().with_context(|| format!("no `{key}`"));
        let user = || anyhow::Ok(<&UserId>::try_from(text("user")?)?);
        let event = || anyhow::Ok(<&EventId>::try_from(text("event")?)?);
        let room = || self.room(text("room")?);
        match text("do")? {
            "login" => return self.login(text("url")?, text("user")?, text("password")?).await,
            "create_room" => return self.create_room(text("invite")?).await,
            "invite" => room()?.invite_user_by_id(user()?).await?,
            "join" => self.join(<&RoomId>::try_from(text("room")?)?).await?,
            "leave" => room()?.leave().await?,
            "sees_member" => sees_member(&room()?, user()?, text("membership")?.into()).await?,
            "knows_device" => {
                eventually("the device is known", async || {
                    anyhow::Ok(self.device(user()?, text("device")?).await.ok())
                })
                .await?;
            }
            "send" => {
                let sent = room()?.send(RoomMessageEventContent::text_plain(text("body")?)).await?;
                return Ok(json!({"event": sent.response.event_id}));
            }
            "receives" => {
                let received = self.received(&room()?, event()?).await?;
                return Ok(json!({"body": received["content"]["body"], "sender": received["sender"]}));
            }
            "read" => {
                return Ok(match room()?.event(event()?, None).await?.kind {
                    TimelineEventKind::UnableToDecrypt { utd_info, .. } => {
                        json!({"unreadable": format!("{:?}", utd_info.reason)})
                    }
                    kind => json!({"body": json_of(&kind)?["content"]["body"]}),
                });
            }
            "send_file" => {
                let data = Base64::<Standard>::parse(text("data")?)?.into_inner();
                let mime = "application/octet-stream".parse()?;
                let sent = room()?.send_attachment(text("name")?, &mime, data, AttachmentConfig::new()).await?;
                return Ok(json!({"event": sent.event_id}));
            }
            "fetch_file" => return self.fetch_file(&room()?, event()?).await,
            "has_fallback_key" => {}
            "set_up_backup" => return self.set_up_backup(text("password")?).await,
            "restore_backup" => {
                let encryption = self.client()?.encryption();
                encryption.recovery().recover(text("recovery_key")?).await?;
                encryption.backups().download_room_keys_for_room(room()?.room_id()).await?;
            }
            "request_verification" => {
                let device = self.device(user()?, text("device")?).await?;
                self.request = Some(device.request_verification_with_methods(vec![VerificationMethod::SasV1]).await?);
            }
            "accept_verification" => self.accept_verification(user()?.to_owned()).await?,
            "compare" => return self.compare().await,
            "confirm" => self.confirm().await?,
            "trusts" => return Ok(json!({"trusted": self.device(user()?, text("device")?).await?.is_verified()})),
            unknown => bail!("`{unknown}` is no command"),
        }
        Ok(json!({}))
    }

    fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("not logged in")
    }

    fn room(&self, room_id: &str) -> Result<Room> {
        self.client()?.get_room(<&RoomId>::try_from(room_id)?).with_context(|| format!("{room_id} is not known"))
    }

    async fn device(&self, user: &UserId, device: &str) -> Result<matrix_sdk::encryption::identities::Device> {
        let device = self.client()?.encryption().get_device(user, device.into()).await?;
        device.context("the device is not known")
    }

    async fn login(&mut self, url: &str, user: &str, password: &str) -> Result<Value> {
        let requests = RequestConfig::new().timeout(WAIT_MAX).retry_limit(50).max_retry_time(Duration::from_secs(1));
        let client = Client::builder().homeserver_url(url).request_config(requests).build().await?;
        let login = client.matrix_auth().login_username(user, password);
        let device = login.initial_device_display_name("matrix-rust-sdk").send().await?.device_id;
        let heard = self.heard.clone();
        client.add_event_handler(async move |event: ToDeviceKeyVerificationRequestEvent| {
            let request = (event.sender, event.content.transaction_id.to_string());
            heard.lock().expect("no panic").requests.push(request);
        });
        // Other libraries ask other users in a room, as the specification has it.
        let heard = self.heard.clone();
        client.add_event_handler(async move |event: OriginalSyncRoomMessageEvent| {
            if let MessageType::VerificationRequest(_) = event.content.msgtype {
                heard.lock().expect("no panic").requests.push((event.sender, event.event_id.to_string()));
            }
        });
        let (syncing, heard) = (client.clone(), self.heard.clone());
        tokio::spawn(async move {
            loop {
                if let Err(error) = sync(&syncing, &heard).await {
                    eprintln!("/sync: {error:#}");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        });
        let heard = &self.heard;
        eventually("the first sync", async || Ok(heard.lock().expect("no panic").synced.then_some(()))).await?;
        self.client = Some(client);
        Ok(json!({"device": device}))
    }

    async fn create_room(&self, invite: &str) -> Result<Value> {
        let mut request = create_room::v3::Request::new();
        request.preset = Some(create_room::v3::RoomPreset::PrivateChat);
        request.invite = vec![OwnedUserId::try_from(invite)?];
        let encryption = RoomEncryptionEventContent::with_recommended_defaults();
        request.initial_state = vec![InitialStateEvent::with_empty_state_key(encryption).to_raw_any()];
        let room = self.client()?.create_room(request).await?.room_id().to_owned();
        self.present(&room).await?;
        Ok(json!({"room": room}))
    }

    async fn join(&self, room_id: &RoomId) -> Result<()> {
        let client = self.client()?;
        let is_invited = async || Ok(client.get_room(room_id).filter(|room| room.state() == RoomState::Invited));
        eventually("the invitation", is_invited).await?.join().await?;
        self.present(room_id).await
    }

    /// Waits until the room is there and known to be encrypted.
    async fn present(&self, room_id: &RoomId) -> Result<()> {
        let client = self.client()?;
        eventually("the room is there", async || {
            let Some(room) = client.get_room(room_id).filter(|room| room.state() == RoomState::Joined) else {
                return Ok(None);
            };
            Ok(room.latest_encryption_state().await?.is_encrypted().then_some(()))
        })
        .await
    }

    /// Waits until an event came and can be read.
    async fn received(&self, room: &Room, event: &EventId) -> Result<Value> {
        eventually("the event is there, decrypted", async || {
            let found = self.heard.lock().expect("no panic").events.get(event).cloned();
            Ok(match found {
                None => None,
                // Its key came later.
                Some(TimelineEventKind::UnableToDecrypt { .. }) => {
                    let again = room.event(event, None).await?.kind;
                    self.heard.lock().expect("no panic").events.insert(event.to_owned(), again);
                    None
                }
                Some(kind) => Some(json_of(&kind)?),
            })
        })
        .await
    }

    async fn fetch_file(&self, room: &Room, event: &EventId) -> Result<Value> {
        let received = self.received(room, event).await?;
        let content: RoomMessageEventContent = serde_json::from_value(received["content"].clone())?;
        let MessageType::File(file) = content.msgtype else { bail!("{received} is no file") };
        ensure!(matches!(file.source, MediaSource::Encrypted(_)), "the file is not encrypted");
        let request = MediaRequestParameters { source: file.source, format: MediaFormat::File };
        let data = self.client()?.media().get_media_content(&request, false).await?;
        Ok(json!({"data": Base64::<Standard, _>::new(data).encode()}))
    }

    async fn set_up_backup(&self, password: &str) -> Result<Value> {
        let client = self.client()?;
        let encryption = client.encryption();
        if let Err(error) = encryption.bootstrap_cross_signing(None).await {
            let wanted = error.as_uiaa_response().context(error.to_string())?;
            let user = uiaa::UserIdentifier::Matrix(uiaa::MatrixUserIdentifier::new(
                client.user_id().context("no id")?.to_string(),
            ));
            let mut proof = uiaa::Password::new(user, password.to_owned());
            proof.session = wanted.session.clone();
            encryption.bootstrap_cross_signing(Some(uiaa::AuthData::Password(proof))).await?;
        }
        let key = encryption.recovery().enable().wait_for_backups_to_upload().await?;
        Ok(json!({"recovery_key": key}))
    }

    async fn accept_verification(&mut self, user: OwnedUserId) -> Result<()> {
        let encryption = self.client()?.encryption();
        let request = eventually("somebody asks for a verification", async || {
            let asked = self.heard.lock().expect("no panic").requests.iter().find(|(asker, _)| *asker == user).cloned();
            let Some((asker, transaction)) = asked else { return Ok(None) };
            Ok(encryption.get_verification_request(&asker, transaction).await)
        })
        .await?;
        request.accept_with_methods(vec![VerificationMethod::SasV1]).await?;
        self.request = Some(request);
        Ok(())
    }

    async fn compare(&mut self) -> Result<Value> {
        let request = self.request.clone().context("no verification was asked for")?;
        let sas = if request.we_started() {
            eventually("the other is ready", async || Ok(uncanceled_request(&request)?.is_ready().then_some(())))
                .await?;
            request.start_sas().await?.context("the other cannot compare emoji")?
        } else {
            let sas = eventually("the other starts", async || {
                Ok(match uncanceled_request(&request)?.state() {
                    VerificationRequestState::Transitioned { verification: Verification::SasV1(sas) } => Some(sas),
                    _ => None,
                })
            })
            .await?;
            sas.accept().await?;
            sas
        };
        let emoji = eventually("the keys are exchanged", async || Ok(uncanceled(&sas)?.emoji())).await?;
        self.sas = Some(sas);
        Ok(json!({"emoji": emoji.map(|emoji| emoji.symbol)}))
    }

    async fn confirm(&self) -> Result<()> {
        let sas = self.sas.as_ref().context("nothing was compared")?;
        sas.confirm().await?;
        eventually("the other confirms", async || Ok(uncanceled(sas)?.is_done().then_some(()))).await
    }
}

/// The request, unless it was canceled.
fn uncanceled_request(request: &VerificationRequest) -> Result<&VerificationRequest> {
    match request.cancel_info() {
        Some(info) => bail!("the verification was canceled: {}", info.cancel_code()),
        None => Ok(request),
    }
}

/// The same for what a request became.
fn uncanceled(sas: &SasVerification) -> Result<&SasVerification> {
    match sas.cancel_info() {
        Some(info) => bail!("the verification was canceled: {}", info.cancel_code()),
        None => Ok(sas),
    }
}

async fn sync(client: &Client, heard: &Mutex<Heard>) -> Result<()> {
    let mut filter = FilterDefinition::default();
    filter.room.timeline.limit = Some(100_u32.into());
    let settings = SyncSettings::new().filter(Filter::FilterDefinition(filter)).timeout(Duration::from_secs(10));
    let synced = client.sync_once(settings).await?;
    let mut heard = heard.lock().expect("no panic");
    heard.synced = true;
    let timelines = synced.rooms.joined.into_values().map(|room| room.timeline);
    for event in timelines.chain(synced.rooms.left.into_values().map(|room| room.timeline)).flat_map(|line| line.events)
    {
        if let Some(id) = event.event_id() {
            heard.events.insert(id.to_owned(), event.kind);
        }
    }
    Ok(())
}

async fn sees_member(room: &Room, user: &UserId, membership: MembershipState) -> Result<()> {
    eventually("the member is there", async || {
        let member = room.get_member(user).await?;
        let stands = member.map_or(MembershipState::Leave, |member| member.membership().clone());
        Ok((stands == membership).then_some(()))
    })
    .await
}

fn json_of(kind: &TimelineEventKind) -> Result<Value> {
    Ok(serde_json::from_str(kind.raw().json().get())?)
}

/// Waits until something gives a value.
async fn eventually<T>(what: &str, mut gives: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + WAIT_MAX;
    while Instant::now() < end {
        match timeout(WAIT_MAX, gives()).await.with_context(|| format!("waited in vain until {what}"))? {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(error),
        }
    }
    bail!("waited in vain until {what}")
}
