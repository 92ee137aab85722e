//! Push rules: the specification's and the user's own. Client-Server API, "Push Rules".

use model::{UserNr, check_depth};
use ruma::{
    UserId,
    push::{
        Action, AnyPushRuleRef, InsertPushRuleError, NewPushRule, PushCondition, RemovePushRuleError, RuleKind, Ruleset,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Accounts, Error, Requester, account_data::GLOBAL, default_push_rules};

/// The type of account data that they are.
pub(crate) const PUSH_RULES: &str = "m.push_rules";
/// Largest ruleset, in bytes of JSON.
pub(crate) const RULESET_BYTES_MAX: usize = 262_144;
/// Longest pattern, in bytes: a longer one would fit nothing.
const PATTERN_BYTES_MAX: usize = 255;
/// Most patterns of a user that texts are searched for.
const PATTERNS_MAX: usize = 200;
/// Longest id of a rule, in bytes.
const RULE_ID_BYTES_MAX: usize = 255;

const NOTHING_BESIDE: &str = "there is no such other rule to stand before or after";

#[derive(Default, Deserialize, Serialize)]
struct Content {
    global: Ruleset,
}

/// The rules that account data comes to, with all default rules of the specification.
///
/// # Errors
///
/// When they are damaged.
pub(crate) fn rules_of(
    user_id: &UserId,
    content: Option<&str>,
    thread_subscriptions: bool,
) -> Result<Ruleset, storage::Error> {
    let defaults = default_push_rules(user_id, thread_subscriptions);
    let Some(content) = content else { return Ok(defaults) };
    let content: Content = serde_json::from_str(content)
        .map_err(|error| storage::Error::Damaged(format!("push rules of {user_id}: {error}")))?;
    let mut rules = content.global;
    // Defaults of a newer specification, with what the user changed in older ones. ruma leaves those about threads as they are.
    let mut of_threads = defaults.postcontent.clone();
    for old in &rules.postcontent {
        if let Some(mut rule) = of_threads.get(old.rule_id.as_str()).cloned() {
            (rule.enabled, rule.actions) = (old.enabled, old.actions.clone());
            of_threads.replace(rule);
        }
    }
    rules.update_with_server_default(defaults);
    rules.postcontent = of_threads;
    Ok(rules)
}

impl Accounts {
    /// The rules of a user, with all default rules of the specification.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn push_rules(&self, user_id: &UserId, user_nr: UserNr) -> Result<Ruleset, Error> {
        let content = self.0.storage.get_account_data(user_nr, GLOBAL, PUSH_RULES).await?;
        Ok(rules_of(user_id, content.as_deref(), self.0.options.thread_subscriptions)?)
    }

    /// Gives a new user the default rules, so that the first sync shows them.
    pub(crate) async fn write_default_push_rules(&self, user_id: &UserId, user_nr: UserNr) -> Result<(), Error> {
        let content = Content { global: default_push_rules(user_id, self.0.options.thread_subscriptions) };
        self.write_account_data(user_nr, GLOBAL, PUSH_RULES, &content).await
    }

    /// One rule, as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn push_rule(&self, requester: &Requester, kind: RuleKind, rule_id: &str) -> Result<Value, Error> {
        let rules = self.push_rules(&requester.user_id, requester.user_nr).await?;
        let rule = match rules.get(kind, rule_id).ok_or(Error::NotFound("push rule"))? {
            AnyPushRuleRef::Override(rule) | AnyPushRuleRef::PostContent(rule) | AnyPushRuleRef::Underride(rule) => {
                serde_json::to_value(rule)
            }
            AnyPushRuleRef::Content(rule) => serde_json::to_value(rule),
            AnyPushRuleRef::Room(rule) => serde_json::to_value(rule),
            AnyPushRuleRef::Sender(rule) => serde_json::to_value(rule),
            _ => return Err(Error::NotFound("push rule")),
        };
        rule.map_err(|error| Error::BadJson(error.to_string()))
    }

    /// Adds a rule of the user's own, or changes one, at a place beside another.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when there is no such other rule, [`Error::InvalidParam`], [`Error::TooLarge`], [`Error::TooMuch`].
    pub async fn set_push_rule(
        &self,
        requester: &Requester,
        rule: NewPushRule,
        after: Option<&str>,
        before: Option<&str>,
    ) -> Result<(), Error> {
        if rule.rule_id().is_empty() || rule.rule_id().len() > RULE_ID_BYTES_MAX {
            return Err(Error::InvalidParam(format!("the id of a rule has 1 to {RULE_ID_BYTES_MAX} bytes")));
        }
        // What it stands before counts.
        let after = after.filter(|_| before.is_none());
        if [after, before].contains(&Some(rule.rule_id())) {
            return Err(Error::Unknown(NOTHING_BESIDE));
        }
        self.change_push_rules(requester, |rules| {
            if after.is_some() || before.is_some() {
                // ruma 0.17 counts a rule that moves down twice, and panics when it moves to the end. A default rule is not
                // removed; inserting it fails below.
                let _ = rules.remove(rule.kind(), rule.rule_id());
            }
            rules.insert(rule, after, before).map_err(|error| match error {
                InsertPushRuleError::UnknownRuleId => Error::Unknown(NOTHING_BESIDE),
                other => Error::InvalidParam(other.to_string()),
            })
        })
        .await
    }

    /// Deletes a rule of the user's own.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::InvalidParam`] for a default rule.
    pub async fn delete_push_rule(&self, requester: &Requester, kind: RuleKind, rule_id: &str) -> Result<(), Error> {
        self.change_push_rules(requester, |rules| {
            rules.remove(kind, rule_id).map_err(|error| match error {
                RemovePushRuleError::NotFound => Error::NotFound("push rule"),
                other => Error::InvalidParam(other.to_string()),
            })
        })
        .await
    }

    /// Switches a rule on or off.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn enable_push_rule(
        &self,
        requester: &Requester,
        kind: RuleKind,
        rule_id: &str,
        enabled: bool,
    ) -> Result<(), Error> {
        self.change_push_rules(requester, |rules| {
            rules.set_enabled(kind, rule_id, enabled).map_err(|_| Error::NotFound("push rule"))
        })
        .await
    }

    /// Changes what a rule does.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn set_push_rule_actions(
        &self,
        requester: &Requester,
        kind: RuleKind,
        rule_id: &str,
        actions: Vec<Action>,
    ) -> Result<(), Error> {
        self.change_push_rules(requester, |rules| {
            rules.set_actions(kind, rule_id, actions).map_err(|_| Error::NotFound("push rule"))
        })
        .await
    }

    async fn change_push_rules(
        &self,
        requester: &Requester,
        change: impl FnOnce(&mut Ruleset) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _turn = self.0.turns.of(requester.user_nr).await;
        let mut rules = self.push_rules(&requester.user_id, requester.user_nr).await?;
        let before = patterns(&rules).count();
        change(&mut rules)?;
        check_patterns(&rules, before)?;
        let content = serde_json::to_value(Content { global: rules }).map_err(|e| Error::BadJson(e.to_string()))?;
        check_depth(&content)?;
        if content.to_string().len() > RULESET_BYTES_MAX {
            return Err(Error::TooLarge(RULESET_BYTES_MAX));
        }
        self.write_account_data(requester.user_nr, GLOBAL, PUSH_RULES, &content).await
    }
}

/// The patterns of own rules, but for those about the room alone.
fn patterns(rules: &Ruleset) -> impl Iterator<Item = &str> {
    let conditional = rules.override_.iter().chain(&rules.underride).filter(|rule| !rule.default);
    let conditions = conditional.flat_map(|rule| &rule.conditions).filter_map(|condition| match condition {
        PushCondition::EventMatch(data) if data.key != "room_id" => Some(data.pattern.as_str()),
        _ => None,
    });
    rules.content.iter().filter(|rule| !rule.default).map(|rule| rule.pattern.as_str()).chain(conditions)
}

/// Each of them is searched for in each event that the user has not read.
fn check_patterns(rules: &Ruleset, count_before: usize) -> Result<(), Error> {
    if patterns(rules).any(|pattern| pattern.len() > PATTERN_BYTES_MAX) {
        return Err(Error::InvalidParam(format!("a pattern has at most {PATTERN_BYTES_MAX} bytes")));
    }
    let count = patterns(rules).count();
    if count > PATTERNS_MAX && count > count_before {
        return Err(Error::TooMuch("you have too many push rules with patterns"));
    }
    Ok(())
}
