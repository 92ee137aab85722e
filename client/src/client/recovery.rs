//! What a new device of the user needs: from secret storage, by a key that the user kept, or from the user's other devices. Client-Server
//! API, "Secrets".

use ruma::{
    api::client::config::{get_global_account_data, set_global_account_data},
    events::{
        EventContentFromType as _,
        secret_storage::{
            key::SecretStorageKeyEventContent,
            secret::{SecretEncryptedData, SecretEventContent},
        },
    },
    serde::Raw,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::to_raw_value;
use zeroize::Zeroizing;

use super::Client;
use crate::{
    Error,
    backup::BackupKey,
    events::ToDeviceEvent,
    machine::Backup,
    secret_sharing::{Received, Request},
    secret_storage::{SecretStorageKey, names},
};

/// Which key of secret storage is the usual one.
const DEFAULT_KEY: &str = "m.secret_storage.default_key";

/// What was recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The user's identity is verified, its private keys are here, and it has signed this device.
    pub identity: bool,
    /// The backup's key is here; [`Client::restore_backup`] gets the room keys.
    pub backup: bool,
}

#[derive(Serialize, serde::Deserialize)]
struct DefaultKey {
    key: String,
}

impl Client {
    /// Puts the private keys of the identity, and the backup's if there is one, into secret storage on the server, under a new key: one that is
    /// made of `passphrase`, or of chance. Returns its form for people, the recovery key, which opens it in both cases.
    ///
    /// # Errors
    ///
    /// [`Error::NoIdentity`] when the private keys are not here; [`Error::Unreachable`].
    pub async fn enable_recovery(&self, passphrase: Option<&str>) -> Result<Zeroizing<String>, Error> {
        let (mut secrets, backup) = {
            let machine = self.machine().await;
            (machine.private_keys().await?.secrets().collect::<Vec<_>>(), machine.backup().await?)
        };
        if secrets.len() < 3 {
            return Err(Error::NoIdentity);
        }
        secrets.extend(backup.and_then(|backup| backup.private_key).map(|key| (names::BACKUP, key.to_base64())));
        let passphrase = passphrase.map(|passphrase| Zeroizing::new(passphrase.to_owned()));
        // Making a key of a passphrase takes a second of work.
        let made =
            tokio::task::spawn_blocking(move || SecretStorageKey::generate(passphrase.as_deref().map(String::as_str)));
        let (key, description) = made.await.expect("making a key does not panic");
        self.set_account_data(&format!("m.secret_storage.key.{}", key.id()), &description).await?;
        // Whoever is interrupted here has no other key than the former one, which therefore opens everything until the next call.
        let former = self.account_data::<DefaultKey>(DEFAULT_KEY).await?;
        for (name, secret) in &secrets {
            let mut encrypted = match self.account_data::<SecretEventContent>(name).await {
                Ok(content) => content.map(|content| content.encrypted).unwrap_or_default(),
                Err(Error::Malformed(_)) => Default::default(),
                Err(error) => return Err(error),
            };
            encrypted.retain(|id, _| former.as_ref().is_some_and(|former| former.key == *id));
            let data = SecretEncryptedData::serialize(&key.encrypt(name, secret)).expect("a secret can be written");
            encrypted.insert(key.id().to_owned(), data);
            self.set_account_data(name, &SecretEventContent::new(encrypted)).await?;
        }
        // The last step: what it points at is there.
        self.set_account_data(DEFAULT_KEY, &DefaultKey { key: key.id().to_owned() }).await?;
        Ok(key.recovery_key())
    }

    /// Takes what secret storage holds, which is opened with what the user typed: the recovery key or the passphrase. The identity is verified
    /// then, and signs this device.
    ///
    /// # Errors
    ///
    /// [`Error::WrongSecretStorageKey`] and [`Error::MistypedKey`] before any secret is asked for; [`Error::Absent`] when there is no secret
    /// storage; [`Error::Forged`] when the server shows another identity than the one whose keys are there.
    pub async fn recover(&self, typed: &str) -> Result<Recovered, Error> {
        let absent = || Error::Absent("secret storage");
        let DefaultKey { key: id } = self.account_data(DEFAULT_KEY).await?.ok_or_else(absent)?;
        let event_type = format!("m.secret_storage.key.{id}");
        let description: Box<serde_json::value::RawValue> = self.account_data(&event_type).await?.ok_or_else(absent)?;
        let description = SecretStorageKeyEventContent::from_parts(&event_type, &description)
            .map_err(|_| Error::Malformed("description of a key of secret storage"))?;
        let typed = Zeroizing::new(typed.to_owned());
        let opened = tokio::task::spawn_blocking(move || SecretStorageKey::open(&description, &typed));
        let key = opened.await.expect("opening does not panic")?;

        let mut secrets = Vec::new();
        for name in [names::MASTER, names::SELF_SIGNING, names::USER_SIGNING] {
            secrets.extend(self.stored_secret(&key, name).await?.map(|secret| (name, secret)));
        }
        let identity = secrets.len() == 3;
        if identity {
            self.learn(self.user_id()).await?;
            self.machine().await.import_private_keys(&secrets, true).await?;
            self.upload_signatures().await?;
        }
        let backup = match self.stored_secret(&key, names::BACKUP).await? {
            Some(secret) => self.use_backup_key(BackupKey::from_base64(&secret)?).await?,
            None => false,
        };
        Ok(Recovered { identity, backup })
    }

    async fn stored_secret(&self, key: &SecretStorageKey, name: &str) -> Result<Option<Zeroizing<String>>, Error> {
        let Some(content) = self.account_data::<SecretEventContent>(name).await? else { return Ok(None) };
        let Some(data) = content.encrypted.get(key.id()) else { return Ok(None) };
        let data = SecretEncryptedData::deserialize_as_aes_hmac_sha2(data).map_err(|_| Error::Malformed("secret"))?;
        key.decrypt(name, &data).map(Some)
    }

    /// Asks the user's verified devices for the private keys that are not here.
    pub(super) async fn ask_for_secrets(&self) -> Result<(), Error> {
        self.learn(self.user_id()).await?;
        let present = self.present_secrets().await?;
        let (devices, mut requests) = {
            let machine = self.machine().await;
            (machine.own_verified_devices().await?, machine.secret_requests().await?)
        };
        let ids: Vec<_> = devices.iter().map(|device| device.device_id.clone()).collect();
        let mut contents = Vec::new();
        for name in [names::MASTER, names::SELF_SIGNING, names::USER_SIGNING, names::BACKUP] {
            if !present.contains(&name) {
                contents.push(requests.ask(name, self.device_id(), ids.clone()));
            }
        }
        self.machine().await.keep_secret_requests(&requests).await?;
        // What waits besides must not keep the others from being asked for: all are sent together, later.
        for content in &contents {
            self.machine().await.post_clear("m.secret.request", &devices, content).await?;
        }
        Ok(())
    }

    /// Asks once more, when the client starts and then from time to time, for what was asked for and has not come: the server forgets an answer
    /// as soon as it was heard, and who is killed before it is worked off has lost it.
    pub(super) async fn ask_again_for_secrets(&self) -> Result<(), Error> {
        if !self.0.letters.lock().await.is_time_to_ask_again() {
            return Ok(());
        }
        let mut requests = self.machine().await.secret_requests().await?;
        requests.forget(&self.present_secrets().await?);
        let devices = self.machine().await.own_verified_devices().await?;
        for (content, asked) in requests.again(self.device_id()) {
            let asked: Vec<_> = devices.iter().filter(|device| asked.contains(&device.device_id)).cloned().collect();
            self.machine().await.post_clear("m.secret.request", &asked, &content).await?;
        }
        self.0.letters.lock().await.asked_again();
        Ok(())
    }

    /// The names of the secrets that are here.
    async fn present_secrets(&self) -> Result<Vec<&'static str>, Error> {
        let (private, backup) = {
            let machine = self.machine().await;
            (machine.private_keys().await?, machine.backup().await?)
        };
        let has_backup = backup.is_some_and(|backup| backup.private_key.is_some());
        Ok(private.secrets().map(|(name, _)| name).chain(has_backup.then_some(names::BACKUP)).collect())
    }

    /// Gives a secret to a device of our own, if that is verified.
    pub(super) async fn answer_secret_request(&self, event: ToDeviceEvent) -> Result<(), Error> {
        if event.sender != *self.user_id() {
            return Ok(());
        }
        let Some(request) = Request::parse(&event.content) else { return Ok(()) };
        self.learn(&event.sender).await?;
        let (device, private, backup) = {
            let machine = self.machine().await;
            let devices = machine.own_verified_devices().await?;
            let device = devices.into_iter().find(|device| device.device_id == request.device_id);
            (device, machine.private_keys().await?, machine.backup().await?)
        };
        let Some(device) = device else {
            tracing::debug!(device.id = %request.device_id, "a device that is not verified asks for a secret");
            return Ok(());
        };
        let secret = match request.name.as_str() {
            names::BACKUP => backup.and_then(|backup| backup.private_key).map(|key| key.to_base64()),
            name => private.secrets().find(|(known, _)| *known == name).map(|(_, secret)| secret),
        };
        let Some(secret) = secret else { return Ok(()) };
        self.send_encrypted_to_devices(&[device], "m.secret.send", &request.answer(&secret)).await.map(drop)
    }

    /// Takes a secret that we asked a verified device of ours for.
    pub(super) async fn receive_secret(&self, event: ToDeviceEvent) -> Result<(), Error> {
        let Some(device_id) = event.device_id.filter(|_| event.is_verified && event.sender == *self.user_id()) else {
            return Err(Error::Forged("a secret of a device that is not verified"));
        };
        let mut requests = self.machine().await.secret_requests().await?;
        let Some(received) = requests.receive(&device_id, &event.content, self.device_id()) else {
            return Err(Error::Forged("a secret that nobody asked for"));
        };
        let Received { name, secret, cancellation, others } = received;
        match name.as_str() {
            names::BACKUP => _ = self.use_backup_key(BackupKey::from_base64(&secret)?).await?,
            name => self.machine().await.import_private_keys(&[(name, secret)], false).await?,
        }
        self.machine().await.keep_secret_requests(&requests).await?;
        let devices = self.machine().await.own_verified_devices().await?;
        let others: Vec<_> = devices.into_iter().filter(|device| others.contains(&device.device_id)).collect();
        if !others.is_empty() {
            self.send_to_devices(&others, "m.secret.request", &cancellation).await?;
        }
        Ok(())
    }

    /// Keeps the key of the backup, if it is that of the version that the server has. Returns whether it is.
    pub(super) async fn use_backup_key(&self, key: BackupKey) -> Result<bool, Error> {
        let Some((version, auth_data)) = self.backup_version().await? else { return Ok(false) };
        if crate::backup::public_key(&auth_data)? != key.public_key() {
            return Ok(false);
        }
        let backup = Backup { version, public_key: key.public_key(), private_key: Some(key) };
        self.machine().await.set_backup(Some(&backup)).await?;
        Ok(true)
    }

    async fn set_account_data(&self, event_type: &str, content: &(impl Serialize + Sync)) -> Result<(), Error> {
        let data = Raw::from_json(to_raw_value(content).expect("account data can be written"));
        let request = set_global_account_data::v3::Request::new_raw(self.user_id().to_owned(), event_type.into(), data);
        self.api().send(request).await.map(drop)
    }

    async fn account_data<T: DeserializeOwned>(&self, event_type: &str) -> Result<Option<T>, Error> {
        let request = get_global_account_data::v3::Request::new(self.user_id().to_owned(), event_type.into());
        match self.api().send(request).await {
            Ok(answer) => serde_json::from_str(answer.account_data.json().get())
                .map(Some)
                .map_err(|_| Error::Malformed("account data of secret storage")),
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
