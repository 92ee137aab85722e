//! `verify`: people compare pictures, or one types a recovery key.

use std::time::Duration;

use client::{
    Client, Error, Event, Events, VerificationChange,
    verification::{ShortCode, Stage},
};
use ruma::OwnedUserId;

use crate::{
    arguments::Verify,
    asking,
    asking::Lines,
    failure::Failure,
    show::{print, safe_line},
    while_syncing,
};

/// How long devices of one user go on after a verification, so that the new one gets its secrets.
const SECRETS_WAIT: Duration = Duration::from_secs(10);

pub(crate) async fn verify(client: &Client, options: Verify) -> Result<(), Failure> {
    if options.recovery_key {
        return by_recovery_key(client).await;
    }
    let mut events = client.events();
    let mut lines = Lines::of_stdin();
    let had_keys = client.has_identity_keys().await?;
    let work = Box::pin(async {
        let (user_id, flow_id) = match options.user {
            Some(user_id) => {
                let flow_id = match &options.device {
                    Some(device_id) => client.request_device_verification(&user_id, device_id).await?,
                    None => client.request_verification(&user_id).await?,
                };
                eprintln!("Waiting for {user_id} to accept.");
                (user_id, flow_id)
            }
            None => accept(client, &mut events, &mut lines).await?,
        };
        compare(client, &mut events, &mut lines, &user_id, &flow_id).await?;
        if user_id == *client.user_id() {
            share_secrets(client, had_keys).await?;
        }
        Ok(())
    });
    let outcome = while_syncing(client, work).await;
    // Whatever it led to goes out: what was signed, or why it ended.
    client.sync_once(Duration::ZERO).await?;
    outcome
}

/// Waits until somebody asks whom the user wants to verify.
async fn accept(client: &Client, events: &mut Events, lines: &mut Lines) -> Result<(OwnedUserId, String), Failure> {
    eprintln!("Waiting for somebody to ask; on the other side: `swiftchat-client verify {}`.", client.user_id());
    // Some may have asked before.
    let mut asked = client.verifications().await;
    loop {
        for VerificationChange { user_id, flow_id, device_id, stage } in asked.drain(..) {
            if !matches!(stage, Stage::Requested { by_us: false } | Stage::Offered) {
                continue;
            }
            let device = device_id.map(|device_id| safe_line(device_id.as_str())).unwrap_or_default();
            if lines.agrees(&format!("{user_id} wants to verify, with the device {device}. Do you?")).await {
                client.accept_verification(&user_id, &flow_id).await?;
                return Ok((user_id, flow_id));
            }
            client.cancel_verification(&user_id, &flow_id).await?;
            return Err(Failure::NotTrusted(format!("{user_id} was not verified")));
        }
        match events.next().await {
            Some(Event::Verification(change)) => asked.push(change),
            Some(_) => {}
            None => return Err(Failure::NotTrusted("nobody asked".to_owned())),
        }
    }
}

/// Goes through a verification that both sides want.
async fn compare(
    client: &Client,
    events: &mut Events,
    lines: &mut Lines,
    user_id: &OwnedUserId,
    flow_id: &str,
) -> Result<(), Failure> {
    let mut last = None;
    loop {
        let Some(VerificationChange { device_id, stage, .. }) = find(client, user_id, flow_id).await else {
            return Err(Failure::NotTrusted(format!("{user_id} was not verified")));
        };
        if last.as_ref() == Some(&stage) {
            events.next().await;
            continue;
        }
        match &stage {
            Stage::Comparing(code) => {
                print(shown(code))?;
                let same = tokio::select! {
                    same = lines.agrees("Does the other side show exactly the same?") => same,
                    () = is_over(client, events, user_id, flow_id) => {
                        eprintln!();
                        continue;
                    }
                };
                if !same {
                    match client.reject_verification(user_id, flow_id).await {
                        // It is over already.
                        Ok(()) | Err(Error::NotNow(_)) => {}
                        Err(error) => return Err(error.into()),
                    }
                    return Err(Failure::NotTrusted(format!(
                        "{user_id} was not verified: somebody may sit between you and them"
                    )));
                }
                match client.confirm_verification(user_id, flow_id).await {
                    Ok(()) => eprintln!("Waiting for the other side to say the same."),
                    // The other side was faster to end it; the next stage says why.
                    Err(Error::NotNow(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Stage::Done { .. } => {
                let device = device_id.map(|device_id| safe_line(device_id.as_str())).unwrap_or_default();
                print(format_args!("{user_id} is verified, with the device {device}."))?;
                return Ok(());
            }
            Stage::TakenElsewhere => {
                return Err(Failure::Refused("another device of yours goes on with it".to_owned()));
            }
            Stage::Cancelled { code, reason, .. } => {
                let (code, reason) = (safe_line(code.as_str()), safe_line(reason));
                return Err(Failure::NotTrusted(format!("{user_id} was not verified: {reason} ({code})")));
            }
            _ => {}
        }
        last = Some(stage);
    }
}

async fn find(client: &Client, user_id: &OwnedUserId, flow_id: &str) -> Option<VerificationChange> {
    client.verifications().await.into_iter().find(|one| one.user_id == *user_id && one.flow_id == flow_id)
}

/// Waits until the other side, or another device of ours, ends it.
async fn is_over(client: &Client, events: &mut Events, user_id: &OwnedUserId, flow_id: &str) {
    let over = |stage| matches!(stage, Stage::Cancelled { .. } | Stage::TakenElsewhere);
    while find(client, user_id, flow_id).await.is_some_and(|one| !over(one.stage)) {
        events.next().await;
    }
}

/// What people compare, as they read it aloud. Client-Server API, "SAS method: `emoji`", "SAS method: `decimal`".
fn shown(code: &ShortCode) -> String {
    match &code.emoji {
        Some(emoji) => {
            let emoji = emoji.iter().map(|emoji| format!("{} {}", emoji.symbol, emoji.description));
            emoji.collect::<Vec<_>>().join("   ")
        }
        None => code.numbers.map(|number| number.to_string()).join(" "),
    }
}

/// After a verification between devices of the same user, the one without the private keys of the identity asks for them.
async fn share_secrets(client: &Client, had_keys: bool) -> Result<(), Failure> {
    let done = async {
        if had_keys {
            eprintln!("Handing the keys over, a moment.");
            return std::future::pending().await;
        }
        eprintln!("Waiting for the keys from the other device.");
        while !client.has_identity_keys().await? || client.backup_key().await?.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, Failure>(())
    };
    match tokio::time::timeout(SECRETS_WAIT, done).await {
        Ok(Err(error)) => return Err(error),
        Ok(Ok(())) => {
            let count = client.restore_backup().await?;
            print(format_args!("{count} room keys came from the backup."))?;
        }
        Err(_) if !had_keys && !client.has_identity_keys().await? => {
            eprintln!("They have not come yet; they will when both devices are used next.");
        }
        Err(_) => {}
    }
    Ok(())
}

/// Secret storage has the private keys of the identity. Client-Server API, "Secret storage".
async fn by_recovery_key(client: &Client) -> Result<(), Failure> {
    let typed = asking::secret_or_stdin("Recovery key or passphrase: ")?;
    let recovered = client.recover(&typed).await?;
    if !recovered.identity {
        return Err(Failure::NotTrusted("secret storage does not hold your identity".to_owned()));
    }
    print(format_args!("{} is verified, with this device {}.", client.user_id(), client.device_id()))?;
    if recovered.backup {
        print(format_args!("{} room keys came from the backup.", client.restore_backup().await?))?;
    }
    Ok(client.sync_once(Duration::ZERO).await?)
}
