//! `backup`: keys of messages on the server, for the next device.

use std::time::Duration;

use client::{Client, Error};
use ruma::api::client::{backup::get_latest_backup_info, config::get_global_account_data};
use serde_json::{Value, json};

use crate::{arguments::Backup, asking, failure::Failure, show::print};

/// Which key of secret storage is in use. Client-Server API, "Key storage".
const DEFAULT_KEY: &str = "m.secret_storage.default_key";

pub(crate) async fn perform(client: &Client, command: Backup) -> Result<(), Failure> {
    match command {
        Backup::Enable { replace } => enable(client, replace).await,
        Backup::Restore => restore(client).await,
        Backup::Status { json } => status(client, json).await,
    }
}

async fn enable(client: &Client, replace: bool) -> Result<(), Failure> {
    if !replace && has_recovery_key(client).await? {
        return Err(Error::BackupExists.into());
    }
    if !client.has_identity_keys().await? {
        make_identity(client).await?;
    }
    client.enable_backup(replace).await?;
    eprintln!("Uploading the keys of your messages.");
    while client.keys_to_back_up().await?.is_some_and(|count| count > 0) {
        client.sync_once(Duration::ZERO).await?;
    }
    let key = client.enable_recovery(None).await?;
    print(key.as_str())?;
    eprintln!("This is your recovery key. It is shown this once: keep it where nobody else finds it.");
    Ok(())
}

/// Most servers take the first identity as it is.
async fn make_identity(client: &Client) -> Result<(), Failure> {
    match client.make_identity(None, false).await {
        Err(Error::NeedsAuthentication(_)) => {
            let password =
                asking::secret("Password: ", "the server wants your password, which is asked for on a terminal only")?;
            Ok(client.make_identity(Some(&password), false).await?)
        }
        outcome => Ok(outcome?),
    }
}

async fn restore(client: &Client) -> Result<(), Failure> {
    if client.backup_key().await?.is_none() {
        let typed = asking::secret_or_stdin("Recovery key or passphrase: ")?;
        match client.recover(&typed).await {
            Ok(recovered) if recovered.backup => {}
            // Some clients make a backup with a key of its own.
            Ok(_) => client.use_backup(&typed).await?,
            Err(error @ (Error::Absent(_) | Error::WrongSecretStorageKey)) => {
                client.use_backup(&typed).await.map_err(|_| error)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    print(format_args!("{} room keys came from the backup.", client.restore_backup().await?))?;
    // This device has been signed, if it was.
    Ok(client.sync_once(Duration::ZERO).await?)
}

async fn status(client: &Client, as_json: bool) -> Result<(), Failure> {
    let backup = match client.api().send(get_latest_backup_info::v3::Request::new()).await {
        Ok(backup) => Some(backup),
        Err(Error::Refused { status: 404, .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let has_key = client.backup_key().await?.is_some();
    let waiting = client.keys_to_back_up().await?;
    let has_recovery_key = has_recovery_key(client).await?;
    if as_json {
        let status = json!({
            "version": backup.as_ref().map(|backup| &backup.version),
            "keys": backup.as_ref().map(|backup| u64::from(backup.count)),
            "has_key": has_key,
            "waiting": waiting,
            "has_recovery_key": has_recovery_key,
        });
        print(format_args!("{status}"))?;
        return Ok(());
    }
    let yes_no = |it: bool| if it { "yes" } else { "no" };
    match &backup {
        Some(backup) => {
            print(format_args!("Backup on the server:      version {}, {} room keys", backup.version, backup.count))?
        }
        None => print(format_args!("Backup on the server:      none; `swiftchat-client backup enable` makes one"))?,
    }
    print(format_args!("Its key is on this device: {}", yes_no(has_key)))?;
    print(format_args!(
        "Keys that it lacks:        {}",
        waiting.map_or("nothing is backed up from here".to_owned(), |count| count.to_string())
    ))?;
    print(format_args!("There is a recovery key:   {}", yes_no(has_recovery_key)))?;
    Ok(())
}

async fn has_recovery_key(client: &Client) -> Result<bool, Failure> {
    let request = get_global_account_data::v3::Request::new(client.user_id().to_owned(), DEFAULT_KEY.into());
    match client.api().send(request).await {
        Ok(answer) => {
            let content: Value = serde_json::from_str(answer.account_data.json().get()).unwrap_or_default();
            Ok(content["key"].is_string())
        }
        Err(Error::Refused { status: 404, .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
