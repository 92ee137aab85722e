//! What is played: each case with a first and a second person, who use one library each.

use ruma::serde::{Base64, base64::Standard};
use serde_json::{Value, json};

use crate::{
    actor::{Halt, Step, failed},
    gate::Hold,
    stage::{Conversation, Device, Stage, eventually, text},
};

/// How many keys of a device are claimed before it must have come to an end with them.
const CLAIMS_MAX: usize = 500;
/// How large the file is that is sent.
const FILE_BYTES: usize = 200_000;

/// A case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Case {
    FirstContact,
    NewDevice,
    Verification,
    Backup,
    Leaving,
    Fallback,
    Restart,
    Attachment,
}

impl Case {
    pub(crate) const ALL: [Self; 8] = [
        Self::FirstContact,
        Self::NewDevice,
        Self::Verification,
        Self::Backup,
        Self::Leaving,
        Self::Fallback,
        Self::Restart,
        Self::Attachment,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FirstContact => "First contact",
            Self::NewDevice => "New device mid-conversation",
            Self::Verification => "Device verification",
            Self::Backup => "Key backup",
            Self::Leaving => "A member who leaves",
            Self::Fallback => "One-time keys exhausted",
            Self::Restart => "Server restarted between key claim and delivery",
            Self::Attachment => "Encrypted attachment",
        }
    }

    /// What happens, for the page.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::FirstContact => {
                "The first invites the second into a new encrypted room and writes; the second reads it and answers."
            }
            Self::NewDevice => {
                "After some words the second logs in on another device with the same library: it reads what the first writes from then \
                 on, not what was written before, and the others read what it writes."
            }
            Self::Verification => {
                "The first's device asks the second's to verify each other: both show the same emoji, and each trusts the other device \
                 afterwards."
            }
            Self::Backup => {
                "The second talks with the first using the first's library and makes a key backup with a recovery key; a new device with \
                 the second library gets that key and reads the old history."
            }
            Self::Leaving => {
                "The second leaves and is invited again: what the first wrote in between stays unreadable, what comes after is read."
            }
            Self::Fallback => {
                "The second is offline, and others claim all of its one-time keys: the first still writes to it, with its fallback key."
            }
            Self::Restart => {
                "The second is offline. The first claims its key; all servers restart before the room key is sent, and again before it \
                 is fetched."
            }
            Self::Attachment => "Each sends the other a file, which arrives byte by byte.",
        }
    }

    /// Whether it needs servers of its own.
    pub(crate) fn restarts_servers(self) -> bool {
        self == Self::Restart
    }

    pub(crate) async fn play(self, stage: &mut Stage) -> Step<()> {
        match self {
            Self::FirstContact => first_contact(stage).await,
            Self::NewDevice => new_device(stage).await,
            Self::Verification => verification(stage).await,
            Self::Backup => backup(stage).await,
            Self::Leaving => leaving(stage).await,
            Self::Fallback => fallback(stage).await,
            Self::Restart => restart(stage).await,
            Self::Attachment => attachment(stage).await,
        }
    }
}

async fn first_contact(stage: &mut Stage) -> Step<()> {
    let Conversation { room, mut first, mut second } = stage.conversation().await?;
    say_and_hear(stage, &room, &mut first, &mut second).await?;
    say_and_hear(stage, &room, &mut second, &mut first).await?;
    // Otherwise it would mean nothing that no server saw the text.
    let path = "/send/m.room.encrypted/";
    if [&first, &second].iter().any(|device| device.gate.count(path, b"m.megolm.v1.aes-sha2") != 1) {
        return failed("a device did not send one encrypted event");
    }
    Ok(())
}

/// One says something that the other reads; gives the event and what was said.
async fn say_and_hear(stage: &mut Stage, room: &str, one: &mut Device, other: &mut Device) -> Step<(String, String)> {
    let body = stage.secret("down the rabbit hole");
    let event = one.says(room, &body).await?;
    other.hears(room, &event, one, &body).await?;
    Ok((event, body))
}

async fn new_device(stage: &mut Stage) -> Step<()> {
    let Conversation { room, mut first, mut second } = stage.conversation().await?;
    let (before, _) = say_and_hear(stage, &room, &mut first, &mut second).await?;
    let mut new = stage.device(&second.person.clone(), stage.client(1)).await?;
    first.knows(&new).await?;
    for device in [&first, &second] {
        new.knows(device).await?;
    }
    let body = stage.secret("curiouser");
    let event = first.says(&room, &body).await?;
    second.hears(&room, &event, &first, &body).await?;
    new.hears(&room, &event, &first, &body).await?;
    new.cannot_read(&room, &before).await?;
    let body = stage.secret("and curiouser");
    let event = new.says(&room, &body).await?;
    first.hears(&room, &event, &new, &body).await?;
    second.hears(&room, &event, &new, &body).await
}

async fn verification(stage: &mut Stage) -> Step<()> {
    let Conversation { mut first, mut second, .. } = stage.conversation().await?;
    let names = [&first, &second].map(|device| json!({"user": device.user(), "device": device.id}));
    for (device, other) in [(&mut first, &names[1]), (&mut second, &names[0])] {
        let trusts = device.ask("trusts", other.clone()).await?;
        if trusts["trusted"] != false {
            return failed(format!("{} trusts a device that nobody verified: {trusts}", device.library()));
        }
    }
    first.ask("request_verification", names[1].clone()).await?;
    second.ask("accept_verification", names[0].clone()).await?;
    let nothing = json!({});
    let (one, other) = tokio::join!(first.ask("compare", nothing.clone()), second.ask("compare", nothing.clone()));
    // When one of them canceled, the other may know why.
    let (one, other) = match (&one, &other) {
        (Err(Halt::Failed(_)), Ok(_)) => (one, second.ask("confirm", nothing.clone()).await),
        (Ok(_), Err(Halt::Failed(_))) => (first.ask("confirm", nothing.clone()).await, other),
        _ => (one, other),
    };
    let (one, other) = both(one, other)?;
    if one["emoji"] != other["emoji"] || one["emoji"].as_array().map(Vec::len) != Some(7) {
        return failed(format!("the emoji differ: {one} and {other}"));
    }
    let (one, other) = tokio::join!(first.ask("confirm", nothing.clone()), second.ask("confirm", nothing));
    both(one, other)?;
    for (device, other) in [(&mut first, &names[1]), (&mut second, &names[0])] {
        let trusts = device.ask("trusts", other.clone()).await?;
        if trusts["trusted"] != true {
            return failed(format!("{} does not trust the device that it verified: {trusts}", device.library()));
        }
    }
    Ok(())
}

/// What two did at once. That a library cannot do it says more than what the other one made of that.
fn both(one: Step<Value>, other: Step<Value>) -> Step<(Value, Value)> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(halt @ Halt::Impossible(_)), _) | (_, Err(halt @ Halt::Impossible(_))) => Err(halt),
        (Err(halt), _) | (_, Err(halt)) => Err(halt),
    }
}

async fn backup(stage: &mut Stage) -> Step<()> {
    // The second's first device has the first library: it makes what the second library restores.
    let (alice, bob) = (stage.person(0).await, stage.person(1).await);
    let mut first = stage.device(&alice, stage.client(1)).await?;
    let mut old = stage.device(&bob, stage.client(0)).await?;
    let room = text(&first.ask("create_room", json!({"invite": old.user()})).await?, "room")?;
    old.ask("join", json!({"room": room})).await?;
    first.sees_member(&room, &old, "join").await?;
    first.knows(&old).await?;
    old.knows(&first).await?;
    let (heard, heard_body) = say_and_hear(stage, &room, &mut first, &mut old).await?;
    let (said, said_body) = say_and_hear(stage, &room, &mut old, &mut first).await?;
    let made = old.ask("set_up_backup", json!({"password": old.password()})).await?;
    let recovery_key = text(&made, "recovery_key")?;
    eventually("both room keys are in the backup", async || {
        bob.at(&stage.world).get("/room_keys/version").await.ok()["count"] == 2
    })
    .await?;
    // A backup of the same library may be restored from anything that the device kept: there is no such thing.
    drop(old);
    let mut new = stage.device(&bob, stage.client(1)).await?;
    new.cannot_read(&room, &heard).await?;
    new.ask("restore_backup", json!({"recovery_key": recovery_key, "room": room})).await?;
    new.reads(&room, &heard, &heard_body).await?;
    new.reads(&room, &said, &said_body).await
}

async fn leaving(stage: &mut Stage) -> Step<()> {
    let Conversation { room, mut first, mut second } = stage.conversation().await?;
    say_and_hear(stage, &room, &mut first, &mut second).await?;
    second.ask("leave", json!({"room": room})).await?;
    first.sees_member(&room, &second, "leave").await?;
    let between = stage.secret("nobody else hears this");
    let between = first.says(&room, &between).await?;
    first.ask("invite", json!({"room": room, "user": second.user()})).await?;
    second.ask("join", json!({"room": room})).await?;
    first.sees_member(&room, &second, "join").await?;
    first.knows(&second).await?;
    second.knows(&first).await?;
    say_and_hear(stage, &room, &mut first, &mut second).await?;
    second.server_has(&stage.world, &room, &between).await?;
    second.cannot_read(&room, &between).await
}

async fn fallback(stage: &mut Stage) -> Step<()> {
    let Conversation { room, mut first, mut second } = stage.conversation().await?;
    second.ask("has_fallback_key", json!({})).await?;
    eventually("a fallback key is uploaded", async || second.gate.count("/keys/upload", br#""fallback":true"#) > 0)
        .await?;
    second.offline(true);
    let thief = stage.person(0).await.user;
    let claim = json!({"one_time_keys": {second.user(): {&second.id: "signed_curve25519"}}});
    let mut last = Value::Null;
    for _ in 0..CLAIMS_MAX {
        let claimed = thief.post("/keys/claim", &claim).await.ok();
        last = claimed["one_time_keys"][second.user()][&second.id].clone();
        if is_fallback(&last) {
            break;
        }
    }
    if !is_fallback(&last) {
        return failed(format!("after {CLAIMS_MAX} claims there is no fallback key, but {last}"));
    }
    let body = stage.secret("can you hear me?");
    let event = first.says(&room, &body).await?;
    second.offline(false);
    second.hears(&room, &event, &first, &body).await?;
    say_and_hear(stage, &room, &mut second, &mut first).await?;
    Ok(())
}

/// Whether these are claimed keys of a device of which one says that it is the fallback key.
fn is_fallback(keys: &Value) -> bool {
    keys.as_object().is_some_and(|keys| keys.values().any(|key| key["fallback"] == true))
}

async fn restart(stage: &mut Stage) -> Step<()> {
    let Conversation { room, mut first, mut second } = stage.conversation().await?;
    second.offline(true);
    first.gate.hold(Hold::ToDevice);
    let body = stage.secret("off with her head");
    let gate = first.gate.clone();
    let claimed_and_restarted = async {
        gate.holds_something().await;
        let claims = gate.count("/keys/claim", b"");
        stage.world.restart().await;
        gate.hold(Hold::Nothing);
        claims
    };
    let (event, claims) = tokio::join!(first.says(&room, &body), claimed_and_restarted);
    let event = event?;
    if claims == 0 {
        return failed("the room key was sent before a key was claimed");
    }
    stage.world.restart().await;
    // A Synapse that restarted keeps what it had not sent yet to another server until there is more for that one.
    let later_body = stage.secret("and so on");
    let later = first.says(&room, &later_body).await?;
    second.offline(false);
    second.hears(&room, &event, &first, &body).await?;
    second.hears(&room, &later, &first, &later_body).await?;
    say_and_hear(stage, &room, &mut second, &mut first).await?;
    Ok(())
}

async fn attachment(stage: &mut Stage) -> Step<()> {
    let Conversation { room, mut first, mut second } = stage.conversation().await?;
    for first_sends in [true, false] {
        let (from, to) = if first_sends { (&mut first, &mut second) } else { (&mut second, &mut first) };
        let file = stage.secret_file(FILE_BYTES);
        let command =
            json!({"room": room, "name": "tarts.bin", "data": Base64::<Standard, _>::new(&file[..]).encode()});
        let event = text(&from.ask("send_file", command).await?, "event")?;
        let fetched = to.ask("fetch_file", json!({"room": room, "event": event})).await?;
        let data = Base64::<Standard>::parse(text(&fetched, "data")?);
        if !data.is_ok_and(|data| data.as_bytes() == file) {
            return failed(format!("{} got another file than was sent", to.library()));
        }
        if from.gate.count("/upload", b"") == 0 {
            return failed(format!("{} did not upload the file", from.library()));
        }
    }
    Ok(())
}
