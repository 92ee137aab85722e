//! `[application_services]`: bridges and bots that may connect.

use std::{fs, path::PathBuf};

use accounts::{AppService, Namespace};
use ruma::UserId;
use serde::{Deserialize, Deserializer};

use super::ConfigError;

/// Bridges and bots that may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApplicationServicesConfig {
    /// The registration files that they come with, YAML. Default: none.
    pub registrations: Vec<PathBuf>,
}

/// A registration file. Application Service API, "Registration". Bridges add keys of their own: what is not here is passed over.
#[derive(Deserialize)]
struct Registration {
    id: String,
    #[serde(deserialize_with = "required")]
    url: Option<String>,
    as_token: String,
    hs_token: String,
    sender_localpart: String,
    namespaces: Namespaces,
    /// Not said, it is as Synapse has it: bridges that may send at any speed say so.
    rate_limited: Option<bool>,
}

/// Some files have nothing after the name of an empty list.
#[derive(Deserialize)]
struct Namespaces {
    users: Option<Vec<Ids>>,
    aliases: Option<Vec<Ids>>,
    rooms: Option<Vec<Ids>>,
}

#[derive(Deserialize)]
struct Ids {
    exclusive: bool,
    regex: String,
}

/// A value that may be null, but not be left out.
fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer)
}

impl ApplicationServicesConfig {
    /// Reads the registration files.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the file, and what is wrong with it.
    pub fn read(&self) -> Result<Vec<AppService>, ConfigError> {
        let mut services: Vec<AppService> = Vec::with_capacity(self.registrations.len());
        for path in &self.registrations {
            let wrong = |what: String| {
                ConfigError::new(format!("`application_services.registrations`: {}: {what}", path.display()))
            };
            let text = fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
            let service = parse(&text).map_err(wrong)?;
            // Application Service API, "Registration": both name the service, and the homeserver sees to it.
            if services.iter().any(|other| other.id == service.id) {
                return Err(wrong(format!("`id`: another file has `{}` too", service.id)));
            }
            if services.iter().any(|other| other.as_token == service.as_token) {
                return Err(wrong("`as_token`: another file has the same".to_owned()));
            }
            services.push(service);
        }
        Ok(services)
    }
}

fn parse(text: &str) -> Result<AppService, String> {
    // Without the lines around the mistake: they may hold a token.
    let options = serde_saphyr::options! { with_snippet: false };
    let registration: Registration =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    let Registration { id, url, as_token, hs_token, sender_localpart, namespaces, rate_limited } = registration;
    for (key, value) in [("id", &id), ("as_token", &as_token), ("hs_token", &hs_token)] {
        if value.is_empty() {
            return Err(format!("`{key}` is empty"));
        }
    }
    if url.is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
        return Err("`url` is neither null nor a URL such as `http://127.0.0.1:9000`".to_owned());
    }
    if sender_localpart.is_empty() || UserId::parse(format!("@{sender_localpart}:localhost")).is_err() {
        return Err(format!(
            "`sender_localpart`: `{sender_localpart}` is not what stands between @ and : of a user id"
        ));
    }
    Ok(AppService {
        id,
        as_token,
        hs_token,
        sender_localpart,
        users: read_namespaces("users", namespaces.users)?,
        aliases: read_namespaces("aliases", namespaces.aliases)?,
        rooms: read_namespaces("rooms", namespaces.rooms)?,
        rate_limited: rate_limited.unwrap_or(true),
    })
}

fn read_namespaces(key: &str, list: Option<Vec<Ids>>) -> Result<Vec<Namespace>, String> {
    let read = |ids: Ids| {
        Namespace::new(ids.exclusive, &ids.regex)
            .map_err(|_| format!("`namespaces.{key}`: `{}` is not a regular expression such as `@_irc_.*`", ids.regex))
    };
    list.unwrap_or_default().into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
id: \"IRC Bridge\"
url: \"http://127.0.0.1:1234\"
as_token: \"our secret\"
hs_token: \"their secret\"
sender_localpart: \"_irc_bot\" # becomes @_irc_bot:example.org
namespaces:
  users:
    - exclusive: true
      regex: \"@_irc_bridge_.*\"
  aliases:
    - exclusive: false
      regex: \"#_irc_bridge_.*\"
  rooms: []
de.example.unknown: [1, 2]
";

    #[test]
    fn the_example_of_the_specification_is_read() {
        let service = parse(GOOD).unwrap();
        assert_eq!(
            (&*service.id, &*service.as_token, &*service.hs_token),
            ("IRC Bridge", "our secret", "their secret")
        );
        assert_eq!(service.sender_localpart, "_irc_bot");
        assert!(service.users[0].exclusive && service.users[0].contains("@_irc_bridge_bob:example.org"));
        assert!(!service.aliases[0].exclusive && service.aliases[0].contains("#_irc_bridge_room:example.org"));
        assert!(service.rooms.is_empty() && service.rate_limited);
        let other = GOOD.replace("url: \"http://127.0.0.1:1234\"", "url: null\nrate_limited: false");
        assert!(!parse(&other.replace("rooms: []", "rooms:")).unwrap().rate_limited);
    }

    /// Each with the key that is wrong, in one line, and no token in it.
    #[test]
    fn what_is_wrong_with_a_file_is_told_in_a_line() {
        for (good, bad, expected) in [
            ("as_token: \"our secret\"\n", "", "missing field `as_token`"),
            ("url: \"http://127.0.0.1:1234\"\n", "", "missing field `url`"),
            ("exclusive: true", "exclusive: perhaps", "invalid boolean at line 9, column 18"),
            ("@_irc_bridge_.*", "@(", "`namespaces.users`: `@(` is not a regular expression such as `@_irc_.*`"),
            ("http://127.0.0.1:1234", "127.0.0.1", "`url` is neither null nor a URL"),
            ("_irc_bot", "a:b", "`sender_localpart`: `a:b` is not what stands between @ and :"),
            ("their secret", "", "`hs_token` is empty"),
            ("namespaces:", "namespaces: [", "line"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let error = parse(&GOOD.replacen(good, bad, 1)).unwrap_err();
            assert!(error.contains(expected), "{bad}: {error}");
            assert!(!error.contains('\n') && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn two_services_have_neither_id_nor_token_in_common() {
        let folder = tempfile::tempdir().unwrap();
        let read = |second: &str| {
            let registrations = [("one.yaml", GOOD), ("two.yaml", second)].map(|(name, text)| {
                let path = folder.path().join(name);
                fs::write(&path, text).unwrap();
                path
            });
            ApplicationServicesConfig { registrations: registrations.to_vec() }.read()
        };
        let other_id = GOOD.replace("IRC Bridge", "other");
        let other_token = GOOD.replace("our secret", "other");
        for (second, key) in [(&other_id, "`as_token`"), (&other_token, "`id`")] {
            let error = read(second).unwrap_err().to_string();
            assert!(error.starts_with("`application_services.registrations`: "), "{error}");
            assert!(error.contains("two.yaml: ") && error.contains(key) && !error.contains("secret"), "{error}");
        }
        assert_eq!(read(&other_id.replace("our secret", "other")).unwrap().len(), 2);
        let missing = ApplicationServicesConfig { registrations: vec![folder.path().join("none.yaml")] };
        assert!(missing.read().unwrap_err().to_string().contains("none.yaml: cannot be read"));
    }
}
