//! The application services that may connect, as the configuration has them.

use std::{fmt, sync::Arc};

use regex::Regex;
use ruma::{OwnedUserId, RoomAliasId, ServerName, UserId};

use storage::UserRow;

use crate::{Accounts, Error, Requester, secrets};

/// An application service. Application Service API, "Registration".
#[derive(Clone)]
pub struct AppService {
    /// Its id.
    pub id: String,
    /// What it shows to us.
    pub as_token: String,
    /// What we show to it.
    pub hs_token: String,
    /// The user in whose name it acts when it names no other.
    pub sender_localpart: String,
    /// Users that it cares for.
    pub users: Vec<Namespace>,
    /// Aliases that it cares for.
    pub aliases: Vec<Namespace>,
    /// Rooms that it cares for.
    pub rooms: Vec<Namespace>,
    /// Whether the requests that it makes in the name of its users are limited like theirs. Its sender's never are.
    pub rate_limited: bool,
}

/// Ids that an application service cares for.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Whether they are its alone.
    pub exclusive: bool,
    regex: Regex,
}

impl Namespace {
    /// The ids that a regular expression matches from their first character on.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn new(exclusive: bool, regex: &str) -> Result<Self, regex::Error> {
        Ok(Self { exclusive, regex: Regex::new(&format!("^(?:{regex})"))? })
    }

    /// Whether an id belongs to it.
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        self.regex.is_match(id)
    }
}

impl AppService {
    /// The user in whose name it acts when it names no other.
    #[must_use]
    pub fn sender(&self, server: &ServerName) -> Option<OwnedUserId> {
        UserId::parse(format!("@{}:{server}", self.sender_localpart)).ok()
    }

    /// Whether it may act as a user: its sender, or one of its users.
    #[must_use]
    pub fn may_act_as(&self, user_id: &UserId) -> bool {
        user_id.localpart() == self.sender_localpart || self.users.iter().any(|names| names.contains(user_id.as_str()))
    }

    /// Whether its requests in the name of a user are limited.
    #[must_use]
    pub fn is_limited_as(&self, user_id: &UserId) -> bool {
        self.rate_limited && user_id.localpart() != self.sender_localpart
    }

    fn owns(&self, user_id: &UserId) -> bool {
        user_id.localpart() == self.sender_localpart
            || self.users.iter().any(|names| names.exclusive && names.contains(user_id.as_str()))
    }
}

impl fmt::Debug for AppService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppService").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Accounts {
    /// The application service of a token.
    #[must_use]
    pub fn app_service_of(&self, token: &str) -> Option<Arc<AppService>> {
        let services = &self.0.options.app_services;
        services.iter().find(|service| secrets::is_same(&service.as_token, token)).cloned().map(Arc::new)
    }

    /// A user that an application service logs in. Client-Server API, "Appservice Login".
    ///
    /// # Errors
    ///
    /// [`Error::Exclusive`] when the user is not one of its own, [`Error::Forbidden`] when there is none of that name.
    pub async fn user_of_service(&self, service: &AppService, user_id: &UserId) -> Result<UserRow, Error> {
        if !service.may_act_as(user_id) {
            return Err(Error::Exclusive("the application service may not log this user in"));
        }
        let user = self.0.storage.get_user(user_id).await?;
        let user = user.ok_or(Error::Forbidden("the application service has not registered this user"))?;
        self.check_active(&user)?;
        Ok(user)
    }

    /// Whether somebody may make or remove an alias: an application service only those that it cares for, and nobody those that are
    /// another application service's alone. Application Service API, "Registration".
    ///
    /// # Errors
    ///
    /// [`Error::Exclusive`].
    pub fn check_alias(&self, requester: &Requester, alias: &RoomAliasId) -> Result<(), Error> {
        let own = requester.app_service.as_ref();
        if own.is_some_and(|service| !service.aliases.iter().any(|names| names.contains(alias.as_str()))) {
            return Err(Error::Exclusive("the application service does not care for this alias"));
        }
        let others = self.0.options.app_services.iter().filter(|service| own.is_none_or(|own| own.id != service.id));
        let mut exclusive = others.flat_map(|service| &service.aliases).filter(|names| names.exclusive);
        if exclusive.any(|names| names.contains(alias.as_str())) {
            return Err(Error::Exclusive("the alias belongs to an application service"));
        }
        Ok(())
    }

    /// Whether a user name belongs to an application service alone.
    pub(crate) fn is_exclusive(&self, user_id: &UserId) -> bool {
        self.0.options.app_services.iter().any(|service| service.owns(user_id))
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn an_application_service_acts_as_its_own_users_only() {
        let service = AppService {
            id: "irc".to_owned(),
            as_token: "a".to_owned(),
            hs_token: "h".to_owned(),
            sender_localpart: "ircbot".to_owned(),
            users: vec![Namespace::new(true, "@irc_.*:a\\.test").unwrap()],
            aliases: Vec::new(),
            rooms: Vec::new(),
            rate_limited: true,
        };
        assert!(service.may_act_as(user_id!("@ircbot:a.test")));
        assert!(service.may_act_as(user_id!("@irc_bob:a.test")));
        assert!(!service.may_act_as(user_id!("@bob_irc_bob:a.test")));
        assert!(service.is_limited_as(user_id!("@irc_bob:a.test")));
        assert!(!service.is_limited_as(user_id!("@ircbot:a.test")));
        assert!(!format!("{service:?}").contains("token"));
    }
}
