//! New users.

use ruma::{OwnedUserId, ServerName, UserId};
use storage::{NewUser, UserRow};

use crate::{Accounts, Completed, Error, Requester, app_services::AppService, passwords::Passwords};

/// An account to be made.
#[derive(Clone, Debug, Default)]
pub struct NewAccount {
    /// The password; without one the user cannot log in by password.
    pub password: Option<String>,
    /// Whether the user is a guest.
    pub is_guest: bool,
    /// Whether the user administers the server.
    pub is_admin: bool,
    /// The application service that makes the user.
    pub app_service: Option<String>,
    /// The name that the user shows, if another than none.
    pub display_name: Option<String>,
}

/// What [`Accounts::create_user`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisteredUser {
    /// There was no such user.
    New,
    /// The user was there; password and role are as asked for now, and no device is logged in.
    Changed,
}

impl Accounts {
    /// The user id that a wanted name means: a localpart, or a whole id of `server`. Appendices, "User Identifiers".
    ///
    /// Capitals become small letters, as people expect who write their name with one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUsername`].
    pub fn new_user_id(&self, name: &str, server: &ServerName) -> Result<OwnedUserId, Error> {
        let localpart = match name.strip_prefix('@') {
            None => name,
            Some(id) => {
                let (localpart, named) = id.split_once(':').unwrap_or((id, server.as_str()));
                if named != server.as_str() {
                    return Err(Error::InvalidUsername("this is a user name of another server"));
                }
                localpart
            }
        };
        let user_id = UserId::parse(format!("@{}:{server}", localpart.to_ascii_lowercase()));
        let user_id = user_id.map_err(|_| Error::InvalidUsername("this is not a user name"))?;
        if localpart.is_empty() || user_id.validate_strict().is_err() {
            return Err(Error::InvalidUsername("a user name has 1 or more of a-z, 0-9, and . _ = - / +"));
        }
        Ok(user_id)
    }

    /// Whether somebody could register a name; `Ok` when so. Client-Server API, "GET /register/available".
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUsername`], [`Error::UserInUse`], [`Error::Exclusive`].
    pub async fn check_available(
        &self,
        name: &str,
        server: &ServerName,
        service: Option<&AppService>,
    ) -> Result<OwnedUserId, Error> {
        let user_id = self.new_user_id(name, server)?;
        match service {
            // It will go on to use the name as it wrote it.
            Some(_) if name.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                return Err(Error::InvalidUsername("a user name has no capitals"));
            }
            Some(service) if !service.may_act_as(&user_id) => {
                return Err(Error::Exclusive("this user name does not belong to the application service"));
            }
            None if self.is_exclusive(&user_id) => {
                return Err(Error::Exclusive("this user name belongs to an application service"));
            }
            _ => {}
        }
        match self.0.storage.get_user(&user_id).await? {
            Some(_) => Err(Error::UserInUse),
            None => Ok(user_id),
        }
    }

    /// A name that nobody has.
    #[must_use]
    pub fn random_name(&self) -> String {
        self.0.storage.random().alphanumeric(18).to_lowercase()
    }

    /// Checks that a password may be chosen, before anybody is asked to authenticate.
    ///
    /// # Errors
    ///
    /// [`Error::WeakPassword`], [`Error::InvalidParam`].
    pub fn check_new_password(&self, password: &str) -> Result<(), Error> {
        Passwords::check(password)
    }

    /// Makes a user.
    ///
    /// # Errors
    ///
    /// [`Error::UserInUse`] when somebody was faster; [`Error::WeakPassword`].
    pub async fn register(&self, user_id: &UserId, account: NewAccount) -> Result<UserRow, Error> {
        let password_hash = match &account.password {
            Some(password) => Some(self.0.passwords.hash(password).await?),
            None => None,
        };
        let NewAccount { is_guest, is_admin, app_service, display_name, .. } = account;
        let new = NewUser { password_hash, is_guest, is_admin, app_service };
        if !self.0.storage.insert_user(user_id, new).await? {
            return Err(Error::UserInUse);
        }
        let user = self.0.storage.get_user(user_id).await?.ok_or(Error::NotFound("user"))?;
        self.write_default_push_rules(user_id, user.user_nr).await?;
        if let Some(name) = display_name {
            self.set_profile_field(user.user_nr, "displayname", &serde_json::Value::String(name)).await?;
        }
        Ok(user)
    }

    /// Makes a user, or of `guest` an ordinary one, for somebody who has proved what registration asks for.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the registration token was used up meanwhile, and those of [`Accounts::register`].
    pub async fn register_with_proof(
        &self,
        user_id: &UserId,
        guest: Option<&Requester>,
        account: NewAccount,
        proof: Completed,
    ) -> Result<UserRow, Error> {
        let storage = &self.0.storage;
        if let Some(token) = &proof.registration_token
            && !storage.use_registration_token(token).await?
        {
            return Err(Error::Forbidden("the registration token is not valid any more"));
        }
        let made = match guest {
            Some(guest) => self.upgrade_guest(guest, account).await,
            None => self.register(user_id, account).await,
        };
        if let (Err(_), Some(token)) = (&made, &proof.registration_token) {
            storage.return_registration_token(token).await?;
        }
        made
    }

    /// The guest who wants to become an ordinary user of the name that they have. Client-Server API, "Guest Access".
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`] when the token is not that of a guest, [`Error::InvalidUsername`] when the name is another.
    pub async fn guest_of_token(&self, token: &str, name: Option<&str>) -> Result<Requester, Error> {
        let requester = match self.authenticate(token, None).await {
            Err(Error::UnknownToken { .. }) => return Err(Error::Forbidden("the guest's access token is not valid")),
            other => other?,
        };
        if !requester.is_guest {
            return Err(Error::Forbidden("the guest's access token is not that of a guest"));
        }
        if name != Some(requester.user_id.localpart()) {
            return Err(Error::InvalidUsername("a guest keeps their user name"));
        }
        Ok(requester)
    }

    async fn upgrade_guest(&self, guest: &Requester, account: NewAccount) -> Result<UserRow, Error> {
        let hash = match &account.password {
            Some(password) => Some(self.0.passwords.hash(password).await?),
            None => None,
        };
        if !self.0.storage.upgrade_guest(guest.user_nr, hash).await? {
            return Err(Error::Forbidden("this is not a guest any more"));
        }
        self.forget_user(guest.user_nr);
        self.0.storage.get_user(&guest.user_id).await?.ok_or(Error::NotFound("user"))
    }

    /// Makes a user of one of our servers, or gives an existing one this password and role; for administrators.
    ///
    /// Who knew the old password is not let in any longer: all devices of an existing user are logged out.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUsername`], [`Error::WeakPassword`], [`Error::UserDeactivated`].
    pub async fn create_user(&self, user_id: &UserId, password: &str, is_admin: bool) -> Result<RegisteredUser, Error> {
        if !self.0.servers.has_user(user_id) {
            return Err(Error::InvalidUsername("this is a user name of another server"));
        }
        let user_id = self.new_user_id(user_id.as_str(), user_id.server_name())?;
        let hash = self.0.passwords.hash(password).await?;
        let new = NewUser { password_hash: Some(hash.clone()), is_admin, ..NewUser::default() };
        let is_new = self.0.storage.insert_user(&user_id, new).await?;
        let user_nr = self.0.storage.user_nr(&user_id).await?;
        if is_new {
            self.write_default_push_rules(&user_id, user_nr).await?;
            return Ok(RegisteredUser::New);
        }
        if !self.0.storage.update_password(user_nr, Some(hash)).await? {
            return Err(Error::UserDeactivated);
        }
        self.0.storage.update_admin(user_nr, is_admin).await?;
        self.forget_user(user_nr);
        self.log_out_all(user_nr, None).await?;
        Ok(RegisteredUser::Changed)
    }

    /// Gives the requester another password. Client-Server API, "POST /account/password".
    ///
    /// # Errors
    ///
    /// [`Error::WeakPassword`], [`Error::UserDeactivated`].
    pub async fn change_password(
        &self,
        requester: &Requester,
        password: &str,
        log_out_others: bool,
    ) -> Result<(), Error> {
        let hash = self.0.passwords.hash(password).await?;
        if !self.0.storage.update_password(requester.user_nr, Some(hash)).await? {
            return Err(Error::UserDeactivated);
        }
        if log_out_others {
            self.log_out_all(requester.user_nr, requester.device_id.as_ref().map(|id| id.as_str())).await?;
        }
        Ok(())
    }
}
