//! What a user's push rules come to in one room.

use std::{collections::HashMap, ops::RangeBounds as _};

use accounts::default_push_rules;
use ruma::{
    OwnedUserId, RoomId, UInt, UserId,
    push::{Action, AnyPushRuleRef, ConditionalPushRule, PushCondition, Ruleset},
};

use super::class::{
    CALL, EDIT, ENCRYPTED, MESSAGE, NOTICE, NOTIFYING, POLL_END, POLL_RESPONSE, POLL_START, REACTION, ROOM_MENTION,
    SERVER_ACL, TEXT, TOMBSTONE,
};

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
    /// For events of threads that the reader is, or is not, subscribed to. MSC4306.
    Subscribed(bool),
}

/// What is known of when a rule fits, without an event.
enum Known {
    Never,
    When(When),
    /// The event has to be looked at, if it has a text.
    ByText,
    /// The event has to be looked at.
    ByEvent,
    /// Events that have no class have to be looked at, whatever other rules say.
    Classless,
}

/// Which events have to be looked at, because their class does not say what they are to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looks {
    /// Those whose class has one of these bits.
    At(i64),
    /// All, also those that have no class.
    Everything,
}

impl Default for Looks {
    fn default() -> Self {
        Self::At(0)
    }
}

/// A user's rules in one room, as far as they can matter there, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    steps: Vec<(When, Effect)>,
    /// The events that some rule needs itself.
    pub(crate) looks: Looks,
    /// Some rule is about senders.
    pub(crate) is_by_sender: bool,
    /// Some rule is about subscriptions to threads.
    pub(crate) is_by_subscription: bool,
}

/// What is known of an event when a plan is applied to its class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) class: i64,
    pub(crate) mentions_reader: bool,
    pub(crate) sender: Option<&'a UserId>,
    /// Whether the reader is subscribed to its thread; nothing in the main timeline.
    pub(crate) is_subscribed: Option<bool>,
}

impl Plan {
    /// The plan of the default rules.
    pub(crate) fn of_defaults(thread_subscriptions: bool) -> Self {
        let (user_id, room_id) = (ruma::user_id!("@anybody:localhost"), ruma::room_id!("!any:localhost"));
        Self::new(&default_push_rules(user_id, thread_subscriptions), room_id, UInt::MIN)
    }

    /// The plan of those rules in a room with so many joined members.
    pub(crate) fn new(rules: &Ruleset, room_id: &RoomId, joined: UInt) -> Self {
        let mut plan = Self::default();
        let mut asks = Asks::default();
        for rule in rules {
            let effect = Effect::of(rule.actions());
            let known = match rule {
                AnyPushRuleRef::Override(rule)
                | AnyPushRuleRef::PostContent(rule)
                | AnyPushRuleRef::Underride(rule)
                    if rule.default =>
                {
                    default_rule(rule, effect, room_id, joined)
                }
                _ if !rule.enabled() => Known::Never,
                AnyPushRuleRef::Override(rule)
                | AnyPushRuleRef::PostContent(rule)
                | AnyPushRuleRef::Underride(rule) => own_rule(rule, room_id, joined),
                AnyPushRuleRef::Room(rule) if rule.rule_id == room_id => Known::When(When::Always),
                AnyPushRuleRef::Room(_) => Known::Never,
                AnyPushRuleRef::Sender(rule) => Known::When(When::Sender(rule.rule_id.clone())),
                AnyPushRuleRef::Content(_) => Known::ByText,
                _ => Known::ByEvent,
            };
            match known {
                Known::Never => {}
                Known::ByText => asks.for_text = true,
                Known::Classless => asks.for_everything = true,
                Known::ByEvent if effect.notifies => asks.for_everything = true,
                Known::ByEvent => asks.what_to_keep_quiet = true,
                Known::When(when) => {
                    // Events that no default rule notifies of have no class, outside of threads.
                    asks.for_everything |= effect.notifies && matches!(when, When::Always | When::Sender(_));
                    asks.for_threads |= effect.notifies && matches!(when, When::Subscribed(_));
                    plan.is_by_sender |= matches!(when, When::Sender(_));
                    plan.is_by_subscription |= matches!(when, When::Subscribed(_));
                    let is_last = when == When::Always;
                    plan.steps.push((when, effect));
                    if is_last {
                        break;
                    }
                }
            }
        }
        plan.looks = asks.looks();
        plan
    }

    /// Whether an event of a class, or of none, has to be looked at.
    pub(crate) fn looks_at(&self, class: Option<i64>) -> bool {
        match self.looks {
            Looks::At(mask) => class.is_some_and(|class| class & mask != 0),
            Looks::Everything => true,
        }
    }

    /// What an event does to the reader by its class. Of one that [has to be looked at](Plan::looks_at) it is a guess, as if there were
    /// only the rules that need not look.
    pub(crate) fn effect(&self, facts: Facts<'_>) -> Effect {
        let fits = |when: &When| match when {
            When::Always => true,
            When::Class(bit) => facts.class & bit != 0,
            When::Mentioned => facts.mentions_reader,
            When::Sender(sender) => facts.sender == Some(sender),
            When::Subscribed(wanted) => facts.is_subscribed == Some(*wanted),
        };
        self.steps.iter().find(|(when, _)| fits(when)).map(|(_, effect)| *effect).unwrap_or_default()
    }
}

/// What the rules of a plan ask for.
#[derive(Default)]
struct Asks {
    for_text: bool,
    /// Some rule notifies of events that may have no class.
    for_everything: bool,
    /// Some rule may keep quiet what another one notifies of.
    what_to_keep_quiet: bool,
    /// Some rule notifies of anything in a thread.
    for_threads: bool,
}

impl Asks {
    fn looks(&self) -> Looks {
        if self.for_everything || self.what_to_keep_quiet && self.for_threads {
            return Looks::Everything;
        }
        let text = if self.for_text { TEXT } else { 0 };
        Looks::At(text | if self.what_to_keep_quiet { NOTIFYING } else { 0 })
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
fn default_rule(rule: &ConditionalPushRule, effect: Effect, room_id: &RoomId, joined: UInt) -> Known {
    let class = |bit| if rule.enabled { Known::When(When::Class(bit)) } else { Known::Never };
    let one_to_one = |bit| if joined == UInt::from(2_u32) { class(bit) } else { Known::Never };
    // What these keep quiet has no class: if they do not, the events have to be looked at.
    let quiet = |known: Known| if rule.enabled && effect.notifies { Known::ByEvent } else { known };
    match rule.rule_id.as_str() {
        ".m.rule.master" if rule.enabled => Known::When(When::Always),
        ".m.rule.suppress_notices" if rule.enabled => quiet(class(NOTICE)),
        ".m.rule.suppress_edits" if rule.enabled => quiet(class(EDIT)),
        ".m.rule.member_event" => {
            if rule.enabled {
                quiet(Known::Never)
            } else {
                Known::Classless
            }
        }
        ".m.rule.reaction" => quiet(class(REACTION)),
        ".m.rule.room.server_acl" => quiet(class(SERVER_ACL)),
        ".org.matrix.msc3930.rule.poll_response" => quiet(class(POLL_RESPONSE)),
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
        _ if rule.enabled => own_rule(rule, room_id, joined),
        _ => Known::Never,
    }
}

/// Any other rule: as far as it is about the room or the thread alone, that is known.
fn own_rule(rule: &ConditionalPushRule, room_id: &RoomId, joined: UInt) -> Known {
    let (mut by_event, mut by_text, mut subscribed) = (false, false, None);
    for condition in &rule.conditions {
        match condition {
            PushCondition::EventMatch(data) if data.key == "room_id" && !data.pattern.contains(['*', '?']) => {
                if data.pattern.to_lowercase() != room_id.as_str().to_lowercase() {
                    return Known::Never;
                }
            }
            PushCondition::RoomMemberCount(data) => {
                if !data.is.contains(&joined) {
                    return Known::Never;
                }
            }
            PushCondition::ThreadSubscription(data) => {
                if subscribed.replace(data.subscribed).is_some_and(|other| other != data.subscribed) {
                    return Known::Never;
                }
            }
            condition if asks_for_text(condition) => by_text = true,
            _ => by_event = true,
        }
    }
    match subscribed {
        _ if by_text => Known::ByText,
        _ if by_event => Known::ByEvent,
        Some(subscribed) => Known::When(When::Subscribed(subscribed)),
        None => Known::When(When::Always),
    }
}

/// Whether a condition fits only events with a text.
fn asks_for_text(condition: &PushCondition) -> bool {
    match condition {
        PushCondition::EventMatch(data) => data.key == "content.body",
        PushCondition::EventPropertyIs(data) => data.key == "content.body" && data.value.as_str().is_some(),
        #[expect(deprecated, reason = "clients in use have rules with it")]
        PushCondition::ContainsDisplayName => true,
        _ => false,
    }
}
