//! Logging in and out, and the tokens in between.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use model::{Position, UserNr, limits::is_name};
use moka::sync::Cache;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use storage::{DeviceSeen, NewSession, SecretHash, UserRow};

use crate::{Accounts, Error, Requester, guesses::Guesser, secrets};

/// Most tokens that are remembered in memory.
const SESSIONS_CACHED: u64 = 100_000;
/// How long a token is remembered, at most: so long another process of a cluster may take one that was refreshed. One that was revoked it
/// takes no longer than [`OTHERS_ASKED_EVERY`].
const SESSION_CACHED_FOR: Duration = Duration::from_secs(30);
/// How exact the time is at which a device was last heard of, in milliseconds: so seldom it is written.
const SEEN_EVERY_MS: i64 = 180_000;
/// How often those times are written, for all devices together.
pub(crate) const SEEN_WRITTEN_EVERY: Duration = Duration::from_secs(60);
/// How often a process of a cluster asks whose devices changed elsewhere.
pub(crate) const OTHERS_ASKED_EVERY: Duration = Duration::from_secs(1);
/// Most changes that are taken in at once; with more, everything is forgotten.
const CHANGES_MAX: u32 = 1_000;
/// Most devices whose times wait to be written; what is beyond it is not noted.
const SEEN_WAITING_MAX: usize = 20_000;
/// Most devices whose times are written at once.
const SEEN_WRITTEN_MAX: usize = 500;
/// How long a one-time login token lives. Client-Server API, "POST /login/get_token" recommends no more than minutes.
pub(crate) const LOGIN_TOKEN_LIFETIME_MS: i64 = 120_000;
/// Most devices of a user. Beyond it a new one takes the place of the one that was heard of the longest ago: a program that logs in anew
/// each time it runs must not be locked out, and each message to all devices of a user is kept once for each of them.
pub(crate) const DEVICES_MAX: u32 = 1_000;
/// Longest device id, in bytes.
const DEVICE_ID_BYTES_MAX: usize = 255;
/// Longest name of a device, in bytes.
pub(crate) const DEVICE_NAME_BYTES_MAX: usize = 1_000;

/// Tokens in use, and when their devices were last heard of.
pub(crate) struct Sessions {
    cache: Cache<SecretHash, Arc<Session>>,
    /// How often sessions were forgotten: who read the database before that must not remember what it read.
    forgotten: AtomicU64,
    /// Guards what waits to be written; no lock inside.
    seen: Mutex<HashMap<(UserNr, String), DeviceSeen>>,
}

struct Session {
    requester: Requester,
    expires_at_ms: Option<i64>,
    seen_at_ms: AtomicI64,
}

/// How a device wants to log in.
#[derive(Clone, Debug, Default)]
pub struct SessionRequest {
    /// Its id, if it has one.
    pub device_id: Option<OwnedDeviceId>,
    /// Its name, used if it is new.
    pub display_name: Option<String>,
    /// Whether it understands refresh tokens.
    pub refresh_token: bool,
    /// From where it asks.
    pub ip: Option<IpAddr>,
}

/// A device has logged in, or has new tokens.
#[derive(Clone, Debug)]
pub struct LoggedIn {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The access token.
    pub access_token: String,
    /// The refresh token, if it asked for one.
    pub refresh_token: Option<String>,
    /// How long the access token lives.
    pub expires_in: Option<Duration>,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        let cache = Cache::builder()
            .max_capacity(SESSIONS_CACHED)
            .time_to_live(SESSION_CACHED_FOR)
            .support_invalidation_closures()
            .build();
        Self { cache, forgotten: AtomicU64::new(0), seen: Mutex::new(HashMap::new()) }
    }

    fn forget(&self, hashes: &[Vec<u8>]) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        for hash in hashes {
            if let Ok(hash) = SecretHash::try_from(&**hash) {
                self.cache.invalidate(&hash);
            }
        }
    }

    fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.cache.invalidate_all();
    }

    fn forget_user(&self, user_nr: UserNr) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        // Fails only without support for closures, which the builder above asked for.
        let _ = self.cache.invalidate_entries_if(move |_, session| session.requester.user_nr == user_nr);
    }
}

impl Accounts {
    /// Who an access token belongs to. Client-Server API, "Client Authentication".
    ///
    /// # Errors
    ///
    /// [`Error::UnknownToken`] when it is unknown, revoked or has ended, [`Error::UserLocked`].
    pub async fn authenticate(&self, token: &str, ip: Option<IpAddr>) -> Result<Requester, Error> {
        let hash = secrets::hash(token);
        let sessions = &self.0.sessions;
        let session = match sessions.cache.get(&hash) {
            Some(session) => session,
            None => {
                let forgotten = sessions.forgotten.load(Ordering::SeqCst);
                let session = self.load_session(hash).await?;
                sessions.cache.insert(hash, session.clone());
                if sessions.forgotten.load(Ordering::SeqCst) != forgotten {
                    sessions.cache.invalidate(&hash);
                }
                session
            }
        };
        let now_ms = self.now_ms();
        if session.expires_at_ms.is_some_and(|end| end <= now_ms) {
            return Err(Error::UnknownToken { soft_logout: true });
        }
        self.note_seen(&session, now_ms, ip);
        Ok(session.requester.clone())
    }

    /// Who an application service acts as: its sender, or the user that it names. Application Service API, "Identity assertion".
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when that user is not one of its own or not registered, [`Error::UnknownDevice`],
    /// [`Error::UserDeactivated`].
    pub async fn authenticate_app_service(
        &self,
        service: Arc<crate::AppService>,
        user_id: Option<&UserId>,
        device_id: Option<&DeviceId>,
    ) -> Result<Requester, Error> {
        let sender =
            service.sender(self.0.servers.primary()).ok_or(Error::Forbidden("the sender has no valid name"))?;
        let user_id = user_id.unwrap_or(&sender);
        if !service.may_act_as(user_id) || !self.0.servers.has_user(user_id) {
            return Err(Error::Forbidden("the application service may not act as this user"));
        }
        let mut user = self.0.storage.get_user(user_id).await?;
        if user.is_none() && *user_id == *sender {
            let new = storage::NewUser { app_service: Some(service.id.clone()), ..Default::default() };
            self.0.storage.insert_user(user_id, new).await?;
            user = self.0.storage.get_user(user_id).await?;
        }
        let user = user.ok_or(Error::Forbidden("the application service has not registered this user"))?;
        if user.deactivated_at_ms.is_some() {
            return Err(Error::UserDeactivated);
        }
        if let Some(device_id) = device_id {
            let device = self.0.storage.get_device(user.user_nr, device_id.as_str()).await?;
            device.ok_or(Error::UnknownDevice)?;
        }
        Ok(Requester {
            user_id: user.user_id,
            user_nr: user.user_nr,
            device_id: device_id.map(ToOwned::to_owned),
            is_guest: false,
            is_admin: user.is_admin,
            app_service: Some(service),
        })
    }

    async fn load_session(&self, hash: SecretHash) -> Result<Arc<Session>, Error> {
        let row = self.0.storage.find_access_token(hash).await?;
        let row = row.ok_or(Error::UnknownToken { soft_logout: false })?;
        if row.is_locked {
            return Err(Error::UserLocked);
        }
        if row.expires_at_ms.is_some_and(|end| end <= self.now_ms()) {
            return Err(Error::UnknownToken { soft_logout: true });
        }
        if let Some(replaces) = row.replaces {
            let revoked = self.0.storage.confirm_refresh(replaces).await?;
            self.0.sessions.forget(&revoked);
        }
        let requester = Requester {
            user_id: row.user_id,
            user_nr: row.user_nr,
            device_id: Some(row.device_id.into()),
            is_guest: row.is_guest,
            is_admin: row.is_admin,
            app_service: None,
        };
        Ok(Arc::new(Session { requester, expires_at_ms: row.expires_at_ms, seen_at_ms: AtomicI64::new(0) }))
    }

    fn note_seen(&self, session: &Session, now_ms: i64, ip: Option<IpAddr>) {
        let before = session.seen_at_ms.load(Ordering::Relaxed);
        if now_ms - before < SEEN_EVERY_MS || session.seen_at_ms.swap(now_ms, Ordering::Relaxed) != before {
            return;
        }
        let Requester { user_nr, device_id, .. } = &session.requester;
        let Some(device_id) = device_id.as_ref().map(ToString::to_string) else { return };
        let mut waiting = self.0.sessions.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < SEEN_WAITING_MAX {
            let ip = ip.map(|ip| ip.to_canonical().to_string());
            let seen = DeviceSeen { user_nr: *user_nr, device_id: device_id.clone(), at_ms: now_ms, ip };
            waiting.insert((*user_nr, device_id), seen);
        }
    }

    /// Writes when devices were last heard of.
    pub(crate) async fn write_seen(&self) {
        let waiting = std::mem::take(&mut *self.0.sessions.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let seen: Vec<_> = waiting.into_values().collect();
        for seen in seen.chunks(SEEN_WRITTEN_MAX) {
            if let Err(error) = self.0.storage.update_devices_seen(seen).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "could not write when devices were last heard of");
            }
        }
    }

    /// The user of a name and password. It takes as long when there is no such user.
    ///
    /// A name with capitals that nobody has means the same in small letters, as at registration.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when name or password is wrong, [`Error::LimitExceeded`] when that was so too often,
    /// [`Error::UserDeactivated`], [`Error::UserLocked`].
    pub async fn check_password(&self, user_id: Option<&UserId>, password: &str) -> Result<UserRow, Error> {
        self.check_guess(user_id.map(Guesser::Anyone), password).await
    }

    /// [`Accounts::check_password`], counted for the one who guesses.
    pub(crate) async fn check_guess(&self, guesser: Option<Guesser<'_>>, password: &str) -> Result<UserRow, Error> {
        let guesses = &self.0.guesses;
        let user = match guesser {
            Some(guesser) => {
                guesses.count(guesser, self.now_ms())?;
                self.find_user(guesser.user_id()).await?
            }
            None => None,
        };
        let hash = user.as_ref().and_then(|user| user.password_hash.clone());
        let is_right = self.0.passwords.verify(password, hash).await;
        if let (Some(guesser), Ok(true) | Err(_)) = (guesser, &is_right) {
            guesses.take_back(guesser);
        }
        let is_right = is_right?;
        match user {
            Some(user) if user.deactivated_at_ms.is_some() => Err(Error::UserDeactivated),
            Some(user) if is_right && user.is_locked => Err(Error::UserLocked),
            Some(user) if is_right => Ok(user),
            _ => Err(Error::Forbidden("the user name or the password is wrong")),
        }
    }

    /// The user of a name as people write it.
    pub(crate) async fn find_user(&self, user_id: &UserId) -> Result<Option<UserRow>, Error> {
        let user = self.0.storage.get_user(user_id).await?;
        let small = user_id.as_str().to_ascii_lowercase();
        match UserId::parse(&*small) {
            Ok(small) if user.is_none() && *small != *user_id => Ok(self.0.storage.get_user(&small).await?),
            _ => Ok(user),
        }
    }

    /// The user of a one-time login token, which is spent now. Client-Server API, "Token-based".
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when it is unknown, spent or has ended, [`Error::UserDeactivated`], [`Error::UserLocked`].
    pub async fn take_login_token(&self, token: &str) -> Result<UserRow, Error> {
        let refused = Error::Forbidden("the login token is unknown or has ended");
        let Some(user_nr) = self.0.storage.take_login_token(secrets::hash(token)).await? else { return Err(refused) };
        let user_id = self.0.storage.user_ids(&[user_nr]).await?.remove(&user_nr);
        let Some(user_id) = user_id else { return Err(refused) };
        let user = self.0.storage.get_user(&user_id).await?.ok_or(refused)?;
        self.check_active(&user)?;
        Ok(user)
    }

    /// Refuses users who may not log in.
    pub(crate) fn check_active(&self, user: &UserRow) -> Result<(), Error> {
        if user.deactivated_at_ms.is_some() {
            return Err(Error::UserDeactivated);
        }
        if user.is_locked { Err(Error::UserLocked) } else { Ok(()) }
    }

    /// Makes a token with which the requester can log in once on another device.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the server gives none.
    pub async fn make_login_token(&self, requester: &Requester) -> Result<(String, Duration), Error> {
        if !self.0.options.login_tokens || requester.is_guest {
            return Err(Error::Forbidden("login tokens are not given out"));
        }
        let token = self.0.storage.random().secret();
        let end_ms = self.now_ms() + LOGIN_TOKEN_LIFETIME_MS;
        self.0.storage.insert_login_token(secrets::hash(&token), requester.user_nr, end_ms).await?;
        Ok((token, Duration::from_millis(LOGIN_TOKEN_LIFETIME_MS.unsigned_abs())))
    }

    /// Logs a device in: what tokens it had are void. A user has at most [`DEVICES_MAX`] devices.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] when the device's id or name is not one.
    pub async fn log_in(&self, user: &UserRow, request: SessionRequest) -> Result<LoggedIn, Error> {
        let random = self.0.storage.random();
        let device_id = match request.device_id {
            Some(id) => {
                check_device_id(id.as_str())?;
                id
            }
            None => random.alphanumeric(10).to_uppercase().into(),
        };
        check_device_name(request.display_name.as_deref())?;
        let (access_token, refresh_token) = self.new_tokens(request.refresh_token);
        let expires_in_ms = request.refresh_token.then_some(self.0.options.access_token_lifetime_ms);
        let session = NewSession {
            user_nr: user.user_nr,
            device_id: device_id.to_string(),
            display_name: request.display_name,
            ip: request.ip.map(|ip| ip.to_canonical().to_string()),
            access: secrets::hash(&access_token),
            expires_at_ms: expires_in_ms.map(|lifetime| self.now_ms() + lifetime),
            refresh: refresh_token.as_deref().map(secrets::hash),
        };
        let inserted = self.0.storage.insert_session(session, DEVICES_MAX).await?;
        self.0.sessions.forget(&inserted.revoked);
        if inserted.others_deleted {
            self.forget_user(user.user_nr);
            self.follow_up(user.user_nr).await;
        }
        let expires_in = expires_in_ms.map(|lifetime| Duration::from_millis(lifetime.unsigned_abs()));
        Ok(LoggedIn { user_id: user.user_id.clone(), device_id, access_token, refresh_token, expires_in })
    }

    /// New tokens, which say what they are to whoever finds one in a log: `sct_…` and `scr_…`.
    fn new_tokens(&self, with_refresh: bool) -> (String, Option<String>) {
        let random = self.0.storage.random();
        (format!("sct_{}", random.secret()), with_refresh.then(|| format!("scr_{}", random.secret())))
    }

    /// Exchanges a refresh token for new tokens. Client-Server API, "Refreshing access tokens".
    ///
    /// The old tokens stay valid until one of the new ones is used.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownToken`] when it is unknown or was exchanged before and the new ones are in use.
    pub async fn refresh(&self, refresh_token: &str) -> Result<LoggedIn, Error> {
        let (access_token, new_refresh_token) = self.new_tokens(true);
        let lifetime_ms = self.0.options.access_token_lifetime_ms;
        let refresh = new_refresh_token.as_deref().map(secrets::hash).unwrap_or_default();
        let access = secrets::hash(&access_token);
        let end_ms = self.now_ms() + lifetime_ms;
        let refreshed =
            self.0.storage.refresh_tokens(secrets::hash(refresh_token), access, Some(end_ms), refresh).await?;
        let refreshed = refreshed.ok_or(Error::UnknownToken { soft_logout: false })?;
        self.0.sessions.forget(&refreshed.revoked);
        let user_id = self.0.storage.user_ids(&[refreshed.user_nr]).await?.remove(&refreshed.user_nr);
        Ok(LoggedIn {
            user_id: user_id.ok_or(Error::UnknownToken { soft_logout: false })?,
            device_id: refreshed.device_id.into(),
            access_token,
            refresh_token: new_refresh_token,
            expires_in: Some(Duration::from_millis(lifetime_ms.unsigned_abs())),
        })
    }

    /// Logs the requester's device out: it is gone with its keys. An application service without a device has nothing to end.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn log_out(&self, requester: &Requester) -> Result<(), Error> {
        match &requester.device_id {
            Some(device_id) => self.remove_devices(requester.user_nr, &[device_id.to_string()]).await,
            None => Ok(()),
        }
    }

    /// Logs all of a user's devices out, but for one if it is named. One-time login tokens that wait are void too, and
    /// those that show services who the user is.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn log_out_all(&self, user_nr: UserNr, but: Option<&str>) -> Result<(), Error> {
        // First: then nobody takes one any more while the devices are listed.
        self.0.storage.delete_login_tokens(user_nr).await?;
        self.0.storage.delete_openid_tokens(user_nr).await?;
        let devices = self.0.storage.list_devices(user_nr).await?.into_iter().map(|device| device.device_id);
        let devices: Vec<String> = devices.filter(|device| Some(&**device) != but).collect();
        self.remove_devices(user_nr, &devices).await
    }

    /// Removes devices with all that hangs on them, and tells who follows the user's devices.
    pub(crate) async fn remove_devices(&self, user_nr: UserNr, devices: &[String]) -> Result<(), Error> {
        if devices.is_empty() {
            return Ok(());
        }
        self.0.storage.delete_devices(user_nr, devices).await?;
        self.0.sessions.forget_user(user_nr);
        self.follow_up(user_nr).await;
        Ok(())
    }

    /// Forgets the tokens of users whose devices changed after a position, here or elsewhere; gives the newest such position.
    pub(crate) async fn follow_others(&self, after: Position) -> Position {
        match self.0.storage.list_all_device_list_changes(after, CHANGES_MAX).await {
            Ok(changes) if changes.len() < CHANGES_MAX as usize => {
                let users: BTreeSet<_> = changes.iter().map(|(_, user_nr)| *user_nr).collect();
                for user_nr in &users {
                    self.0.sessions.forget_user(*user_nr);
                }
                let users: Vec<_> = users.into_iter().collect();
                if !users.is_empty()
                    && let Err(error) = self.0.storage.refresh_erased_users(Some(&users)).await
                {
                    return not_asked(after, &error);
                }
                changes.last().map_or(after, |(position, _)| *position)
            }
            Ok(_) => {
                let newest = self.0.storage.published();
                self.0.sessions.forget_all();
                if let Err(error) = self.0.storage.refresh_erased_users(None).await {
                    return not_asked(after, &error);
                }
                newest.max(after)
            }
            Err(error) => not_asked(after, &error),
        }
    }

    /// Forgets what is remembered of a user's tokens: another process has changed them.
    pub fn forget_user(&self, user_nr: UserNr) {
        self.0.sessions.forget_user(user_nr);
    }
}

/// Where to go on when the database could not be asked: at the same place.
fn not_asked(after: Position, error: &storage::Error) -> Position {
    tracing::warn!(error = error as &dyn std::error::Error, "could not ask whose devices changed");
    after
}

/// Refuses a device id that cannot be looked up.
pub(crate) fn check_device_id(device_id: &str) -> Result<(), Error> {
    if !is_name(device_id, DEVICE_ID_BYTES_MAX) {
        let rule = format!("a device id has 1 to {DEVICE_ID_BYTES_MAX} bytes, none of them zero");
        return Err(Error::InvalidParam(rule));
    }
    Ok(())
}

/// Refuses a device name without end.
pub(crate) fn check_device_name(name: Option<&str>) -> Result<(), Error> {
    if name.is_some_and(|name| name.len() > DEVICE_NAME_BYTES_MAX) {
        return Err(Error::InvalidParam(format!("a device name may have at most {DEVICE_NAME_BYTES_MAX} bytes")));
    }
    Ok(())
}
