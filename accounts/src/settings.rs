//! What users chose that others' rules ask for again and again: push rules, whom they ignore, and whether they are invited. In memory, as of the newest change that
//! this process knows of.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use model::UserNr;
use moka::sync::Cache;
use ruma::{OwnedUserId, UserId, push::Ruleset};
use serde::Deserialize;
use storage::Storage;

use crate::{
    account_data::GLOBAL,
    default_push_rules,
    push_rules::{PUSH_RULES, rules_of},
};

/// The type of account data that names whom a user ignores. Client-Server API, "Ignoring Users".
pub(crate) const IGNORED_USERS: &str = "m.ignored_user_list";
/// The type of account data that says who may invite a user. Client-Server API, "Invite permission".
const INVITE_PERMISSION: &str = "m.invite_permission_config";
/// Most bytes of settings in memory, roughly.
const CACHE_BYTES: u64 = 32 << 20;
/// What the rules of somebody with rules of their own take, roughly.
const RULES_BYTES: usize = 12_000;

/// What a user chose.
#[derive(Debug, Default)]
pub struct UserSettings {
    /// Their push rules; nothing when they are the default ones.
    pub push_rules: Option<Box<Ruleset>>,
    /// Whom they ignore.
    pub ignored: HashSet<OwnedUserId>,
    /// Whether nobody may invite them. Client-Server API, "Invite permission".
    pub blocks_invites: bool,
    /// Tells these from others.
    fingerprint: u64,
}

impl UserSettings {
    /// Whether the user ignores another.
    #[must_use]
    pub fn ignores(&self, user_id: &UserId) -> bool {
        !self.ignored.is_empty() && self.ignored.contains(user_id)
    }

    fn bytes(&self) -> u32 {
        let rules = self.push_rules.as_ref().map_or(0, |_| RULES_BYTES);
        (200 + rules + 80 * self.ignored.len()).try_into().unwrap_or(u32::MAX)
    }

    /// Whether the user is not shown an event of that sender: state of those whom they ignore is shown all the same.
    #[must_use]
    pub fn hides(&self, sender: &UserId, is_state: bool) -> bool {
        !is_state && self.ignores(sender)
    }
}

/// Whether [`UserSettings`] are made of account data of that type, which is of no room.
#[must_use]
pub fn is_of_settings(event_type: &str) -> bool {
    matches!(event_type, PUSH_RULES | IGNORED_USERS | INVITE_PERMISSION)
}

/// Settings of users. Cheap to clone.
#[derive(Clone)]
pub struct Settings {
    storage: Storage,
    thread_subscriptions: bool,
    /// With the version of the account data that they were made of.
    cache: Cache<UserNr, (u64, Arc<UserSettings>)>,
}

impl Settings {
    /// The settings in a database, where the default rules are about subscriptions to threads or not.
    #[must_use]
    pub fn new(storage: Storage, thread_subscriptions: bool) -> Self {
        let bytes = |_: &UserNr, (_, settings): &(u64, Arc<UserSettings>)| settings.bytes();
        Self { storage, thread_subscriptions, cache: Cache::builder().max_capacity(CACHE_BYTES).weigher(bytes).build() }
    }

    /// A user's settings. As long as they are the same, so is the `Arc`, mostly.
    ///
    /// # Errors
    ///
    /// When the database fails or the push rules are damaged.
    pub async fn of_user(&self, user_id: &UserId, user_nr: UserNr) -> Result<Arc<UserSettings>, storage::Error> {
        let version = self.storage.account_data_version(user_nr);
        let known = self.cache.get(&user_nr);
        if let Some((at, settings)) = &known
            && *at == version
        {
            return Ok(settings.clone());
        }
        let rules = self.storage.get_account_data(user_nr, GLOBAL, PUSH_RULES).await?;
        let ignored = self.storage.get_account_data(user_nr, GLOBAL, IGNORED_USERS).await?;
        let invites = self.storage.get_account_data(user_nr, GLOBAL, INVITE_PERMISSION).await?;
        let mut hasher = DefaultHasher::new();
        (&rules, &ignored, &invites).hash(&mut hasher);
        let fingerprint = hasher.finish();
        let settings = match known {
            // Other account data changed.
            Some((_, settings)) if settings.fingerprint == fingerprint => settings,
            _ => Arc::new(UserSettings {
                push_rules: own_rules(user_id, rules.as_deref(), self.thread_subscriptions)?,
                ignored: ignored
                    .as_deref()
                    .and_then(ignored_users)
                    .map(|ignored| without(ignored, user_id))
                    .unwrap_or_default(),
                blocks_invites: invites.as_deref().is_some_and(blocks_invites),
                fingerprint,
            }),
        };
        self.cache.insert(user_nr, (version, settings.clone()));
        Ok(settings)
    }
}

impl Settings {
    /// Those of the users who let nobody invite them. Client-Server API, "Invite permission".
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn who_blocks_invites(&self, users: &[UserNr]) -> Result<HashSet<UserNr>, storage::Error> {
        let rows = self.storage.list_account_data_of_users(users, INVITE_PERMISSION).await?;
        Ok(rows.into_iter().filter(|(_, content)| blocks_invites(content)).map(|(user_nr, _)| user_nr).collect())
    }
}

/// A user's rules, unless they are the default ones.
fn own_rules(
    user_id: &UserId,
    content: Option<&str>,
    thread_subscriptions: bool,
) -> Result<Option<Box<Ruleset>>, storage::Error> {
    if content.is_none() {
        return Ok(None);
    }
    let rules = rules_of(user_id, content, thread_subscriptions)?;
    let json = |rules: &Ruleset| serde_json::to_string(rules).ok();
    let is_default = json(&rules) == json(&default_push_rules(user_id, thread_subscriptions));
    Ok((!is_default).then(|| Box::new(rules)))
}

fn blocks_invites(content: &str) -> bool {
    #[derive(Deserialize)]
    struct Content {
        default_action: String,
    }
    serde_json::from_str::<Content>(content).is_ok_and(|content| content.default_action == "block")
}

/// Nobody ignores themselves.
fn without(mut ignored: HashSet<OwnedUserId>, user_id: &UserId) -> HashSet<OwnedUserId> {
    ignored.remove(user_id);
    ignored
}

/// The users that the content of `m.ignored_user_list` names; nothing when it has not that shape. What is no user id names nobody, so that
/// one odd key in an old list does not keep clients from changing it, and without `ignored_users`, nobody is ignored.
pub(crate) fn ignored_users(content: &str) -> Option<HashSet<OwnedUserId>> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        ignored_users: std::collections::HashMap<String, serde::de::IgnoredAny>,
    }
    let listed = serde_json::from_str::<Content>(content).ok()?.ignored_users;
    Some(listed.into_keys().filter_map(|key| OwnedUserId::try_from(key).ok()).collect())
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn only_the_word_block_blocks_invitations() {
        assert!(blocks_invites(r#"{"default_action":"block","other":1}"#));
        for content in
            ["{}", r#"{"default_action":"allow"}"#, r#"{"default_action":1}"#, r#"{"default_action":null}"#, "[]"]
        {
            assert!(!blocks_invites(content), "{content}");
        }
    }

    #[test]
    fn who_changed_nothing_has_the_default_rules() {
        let alice = user_id!("@alice:hs");
        let mut rules = default_push_rules(alice, false);
        let content = |rules: &Ruleset| serde_json::json!({"global": rules}).to_string();
        assert!(own_rules(alice, None, false).unwrap().is_none());
        assert!(own_rules(alice, Some(&content(&rules)), false).unwrap().is_none());
        rules.set_enabled(ruma::push::RuleKind::Override, ".m.rule.master", true).unwrap();
        assert!(own_rules(alice, Some(&content(&rules)), false).unwrap().is_some());
    }

    /// What the deployment decides about threads holds for those too who came before it did.
    #[test]
    fn the_rules_about_threads_come_and_go() {
        let alice = user_id!("@alice:hs");
        let mut rules = default_push_rules(alice, true);
        let content = |rules: &Ruleset| serde_json::json!({"global": rules}).to_string();
        let with =
            |rules: &Ruleset, threads| rules_of(alice, Some(&content(rules)), threads).unwrap().postcontent.len();
        assert_eq!((with(&rules, true), with(&rules, false)), (2, 0));
        let without = default_push_rules(alice, false);
        assert_eq!((with(&without, true), with(&without, false)), (2, 0));
        assert!(own_rules(alice, Some(&content(&without)), true).unwrap().is_none());
        let rule = ".io.element.msc4306.rule.subscribed_thread";
        rules.set_enabled(ruma::push::RuleKind::PostContent, rule, false).unwrap();
        let changed = own_rules(alice, Some(&content(&rules)), true).unwrap().unwrap();
        assert!(!changed.postcontent.get(rule).unwrap().enabled);
        assert!(own_rules(alice, Some(&content(&rules)), false).unwrap().is_none());
    }

    #[test]
    fn the_list_of_ignored_users_has_one_shape() {
        let names = |json| ignored_users(json).map(|names| names.len());
        assert_eq!(names(r#"{"ignored_users":{"@a:hs":{},"@b:hs":{"any":1}}}"#), Some(2));
        assert_eq!(names(r#"{"ignored_users":{}}"#), Some(0));
        assert_eq!(names("{}"), Some(0));
        assert_eq!(names(r#"{"ignored_users":{"nobody":{},"@a:hs":{}}}"#), Some(1));
        assert_eq!(names(r#"{"ignored_users":["@a:hs"]}"#), None);
    }
}
