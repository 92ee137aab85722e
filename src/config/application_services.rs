//! `[[application_services]]`: bridges and bots that may connect.

use serde::{Deserialize, Deserializer, de::Error as _};

/// An application service. Application Service API, "Registration".
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationServiceConfig {
    /// Its id, unique here.
    pub id: String,
    /// The token that it shows to us.
    pub as_token: String,
    /// The token that we show to it.
    pub hs_token: String,
    /// The local part of the user in whose name it acts when it names no other.
    pub sender_localpart: String,
    /// Users that it cares for. Default: none.
    #[serde(default)]
    pub users: Vec<NamespaceConfig>,
    /// Aliases that it cares for. Default: none.
    #[serde(default)]
    pub aliases: Vec<NamespaceConfig>,
    /// Rooms that it cares for. Default: none.
    #[serde(default)]
    pub rooms: Vec<NamespaceConfig>,
}

/// Ids that an application service cares for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceConfig {
    /// Whether they are its alone.
    pub exclusive: bool,
    /// A regular expression that matches them from their first character on.
    #[serde(deserialize_with = "regular_expression")]
    pub regex: String,
}

impl ApplicationServiceConfig {
    /// The application service in the words of `accounts`; nothing if an expression is none, which reading has ruled out.
    #[must_use]
    pub fn to_app_service(&self) -> Option<accounts::AppService> {
        let namespaces = |configs: &[NamespaceConfig]| -> Option<Vec<accounts::Namespace>> {
            configs.iter().map(|config| accounts::Namespace::new(config.exclusive, &config.regex).ok()).collect()
        };
        Some(accounts::AppService {
            id: self.id.clone(),
            as_token: self.as_token.clone(),
            hs_token: self.hs_token.clone(),
            sender_localpart: self.sender_localpart.clone(),
            users: namespaces(&self.users)?,
            aliases: namespaces(&self.aliases)?,
            rooms: namespaces(&self.rooms)?,
        })
    }
}

impl std::fmt::Debug for ApplicationServiceConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplicationServiceConfig").field("id", &self.id).finish_non_exhaustive()
    }
}

fn regular_expression<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    match accounts::Namespace::new(false, &text) {
        Ok(_) => Ok(text),
        Err(_) => {
            Err(D::Error::custom(format!("`{text}` is not a regular expression such as `@irc_.*:example\\.org`")))
        }
    }
}
