//! What a user's push rules come to in one room.

use std::{collections::HashMap, ops::RangeBounds as _};

use ruma::{
    OwnedUserId, RoomId, UInt, UserId,
    push::{Action, AnyPushRuleRef, ConditionalPushRule, PushCondition, Ruleset},
};

use super::class::{CALL, EDIT, ENCRYPTED, MENTIONS, MESSAGE, NOTICE, POLL_END, POLL_START, ROOM_MENTION, TOMBSTONE};

/// What an event does to a reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    /// It counts.
    pub(crate) notifies: bool,
    /// It counts as highlighted, too.
    pub(crate) highlights: bool,
}

impl Effect {
    pub(crate) fn of(actions: &[Action]) -> Self {
        let notifies = actions.iter().any(Action::should_notify);
        Self { notifies, highlights: notifies && actions.iter().any(Action::is_highlight) }
    }
}

/// When a rule fits.
#[derive(Clone, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// For events whose class has that bit.
    Class(i64),
    /// For events that mention the reader.
    Mentioned,
    /// For events of a sender.
    Sender(OwnedUserId),
}

/// What is known of when a rule fits, without an event.
enum Known {
    Never,
    When(When),
    /// The event has to be looked at.
    ByEvent,
}

/// A user's rules in one room, as far as they can matter there, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    steps: Vec<(When, Effect)>,
    /// Some rule needs the event itself: its class does not say enough.
    pub(crate) is_by_event: bool,
    /// Some rule is about senders.
    pub(crate) is_by_sender: bool,
}

/// What is known of an event when a plan is applied to its class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) class: i64,
    pub(crate) mentions_reader: bool,
    pub(crate) sender: Option<&'a UserId>,
}

impl Plan {
    /// The plan of those rules in a room with so many joined members.
    pub(crate) fn new(rules: &Ruleset, room_id: &RoomId, joined: UInt) -> Self {
        let mut plan = Self::default();
        for rule in rules {
            let effect = Effect::of(rule.actions());
            let known = match rule {
                AnyPushRuleRef::Override(rule) | AnyPushRuleRef::Underride(rule) if rule.default => {
                    default_rule(rule, effect, joined)
                }
                _ if !rule.enabled() => Known::Never,
                AnyPushRuleRef::Override(rule)
                | AnyPushRuleRef::PostContent(rule)
                | AnyPushRuleRef::Underride(rule) => own_rule(rule, room_id, joined),
                AnyPushRuleRef::Room(rule) if rule.rule_id == room_id => Known::When(When::Always),
                AnyPushRuleRef::Room(_) => Known::Never,
                AnyPushRuleRef::Sender(rule) => Known::When(When::Sender(rule.rule_id.clone())),
                AnyPushRuleRef::Content(_) => Known::ByEvent,
                _ => Known::ByEvent,
            };
            match known {
                Known::Never => {}
                Known::ByEvent => plan.is_by_event = true,
                Known::When(when) => {
                    // Events that no default rule notifies of have no class.
                    plan.is_by_event |= effect.notifies && matches!(when, When::Always | When::Sender(_));
                    plan.is_by_sender |= matches!(when, When::Sender(_));
                    let is_last = when == When::Always;
                    plan.steps.push((when, effect));
                    if is_last {
                        break;
                    }
                }
            }
        }
        plan
    }

    /// What an event does to the reader. Not for plans that are [by event](Plan::is_by_event).
    pub(crate) fn effect(&self, facts: Facts<'_>) -> Effect {
        let fits = |when: &When| match when {
            When::Always => true,
            When::Class(bit) => facts.class & bit != 0,
            When::Mentioned => facts.mentions_reader,
            When::Sender(sender) => facts.sender == Some(sender),
        };
        self.steps.iter().find(|(when, _)| fits(when)).map(|(_, effect)| *effect).unwrap_or_default()
    }
}

/// Whether rules ask how many members a room has, so that it makes a difference to counts.
pub(crate) fn depend_on_members(rules: &Ruleset) -> bool {
    let effects: HashMap<&str, (bool, Effect)> = rules
        .underride
        .iter()
        .filter(|rule| rule.default)
        .map(|rule| (rule.rule_id.as_str(), (rule.enabled, Effect::of(&rule.actions))))
        .collect();
    let differs = |one: &str, all: &str| {
        effects.get(one).is_some_and(|(enabled, effect)| *enabled && effects.get(all) != Some(&(true, *effect)))
    };
    let own = rules.override_.iter().chain(&rules.underride).filter(|rule| !rule.default && rule.enabled);
    let asks = |rule: &ConditionalPushRule| {
        rule.conditions.iter().any(|condition| matches!(condition, PushCondition::RoomMemberCount(_)))
    };
    differs(".m.rule.room_one_to_one", ".m.rule.message")
        || differs(".m.rule.encrypted_room_one_to_one", ".m.rule.encrypted")
        || differs(".org.matrix.msc3930.rule.poll_start_one_to_one", ".org.matrix.msc3930.rule.poll_start")
        || differs(".org.matrix.msc3930.rule.poll_end_one_to_one", ".org.matrix.msc3930.rule.poll_end")
        || own.into_iter().any(asks)
}

/// A predefined rule. Client-Server API, "Predefined Rules".
fn default_rule(rule: &ConditionalPushRule, effect: Effect, joined: UInt) -> Known {
    let class = |bit| if rule.enabled { Known::When(When::Class(bit)) } else { Known::Never };
    let one_to_one = |bit| if joined == UInt::from(2_u32) { class(bit) } else { Known::Never };
    // What these keep quiet has no class: if they do not, the events have to be looked at.
    let quiet = |known: Known| if effect.notifies { Known::ByEvent } else { known };
    match rule.rule_id.as_str() {
        ".m.rule.master" if rule.enabled => Known::When(When::Always),
        ".m.rule.suppress_notices" if rule.enabled => quiet(class(NOTICE)),
        ".m.rule.suppress_edits" if rule.enabled => quiet(class(EDIT)),
        ".m.rule.member_event" => {
            if rule.enabled {
                quiet(Known::Never)
            } else {
                Known::ByEvent
            }
        }
        ".m.rule.reaction" | ".m.rule.room.server_acl" | ".org.matrix.msc3930.rule.poll_response" if rule.enabled => {
            quiet(Known::Never)
        }
        ".m.rule.is_user_mention" if rule.enabled => Known::When(When::Mentioned),
        ".m.rule.is_room_mention" => class(ROOM_MENTION),
        ".m.rule.tombstone" => class(TOMBSTONE),
        ".m.rule.call" => class(CALL),
        ".m.rule.message" => class(MESSAGE),
        ".m.rule.room_one_to_one" => one_to_one(MESSAGE),
        ".m.rule.encrypted" => class(ENCRYPTED),
        ".m.rule.encrypted_room_one_to_one" => one_to_one(ENCRYPTED),
        ".org.matrix.msc3930.rule.poll_start" => class(POLL_START),
        ".org.matrix.msc3930.rule.poll_start_one_to_one" => one_to_one(POLL_START),
        ".org.matrix.msc3930.rule.poll_end" => class(POLL_END),
        ".org.matrix.msc3930.rule.poll_end_one_to_one" => one_to_one(POLL_END),
        // An invite of the reader comes before they join.
        ".m.rule.invite_for_me" => Known::Never,
        _ if rule.enabled => Known::ByEvent,
        _ => Known::Never,
    }
}

/// A rule of the user's own: as far as it is about the room alone, that is known.
fn own_rule(rule: &ConditionalPushRule, room_id: &RoomId, joined: UInt) -> Known {
    let mut known = Known::When(When::Always);
    for condition in &rule.conditions {
        let fits = match condition {
            PushCondition::EventMatch(data) if data.key == "room_id" => {
                if data.pattern.contains(['*', '?']) {
                    None
                } else {
                    Some(data.pattern.to_lowercase() == room_id.as_str().to_lowercase())
                }
            }
            PushCondition::RoomMemberCount(data) => Some(data.is.contains(&joined)),
            // Nobody says yet who is subscribed to which thread.
            PushCondition::ThreadSubscription(_) => Some(false),
            _ => None,
        };
        match fits {
            Some(false) => return Known::Never,
            Some(true) => {}
            None => known = Known::ByEvent,
        }
    }
    known
}

/// The class of events without the reader's own mention.
pub(crate) fn facts(class: i64, mentions_reader: bool, sender: Option<&UserId>) -> Facts<'_> {
    Facts { class: class & !MENTIONS, mentions_reader, sender }
}
