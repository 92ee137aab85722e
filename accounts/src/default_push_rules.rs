//! The push rules that everybody has. Client-Server API, "Predefined Rules"; MSC3930 for polls and MSC4306 for threads, as
//! clients know them today.

use ruma::{
    UserId,
    push::{
        Action, ConditionalPushRule, ConditionalPushRuleInit, EventPropertyIsConditionData, PushCondition,
        RoomMemberCountConditionData, Ruleset, SoundTweakValue, Tweak,
    },
    uint,
};

/// The rules of a user who changed nothing; with those about subscriptions to threads, or without. MSC4306, "New Push Rules".
#[must_use]
pub fn default_push_rules(user_id: &UserId, thread_subscriptions: bool) -> Ruleset {
    let mut rules = Ruleset::server_default(user_id);
    if !thread_subscriptions {
        rules.postcontent.clear();
    }
    rules.override_.insert(poll_rule("poll_response", "response", false, Vec::new()));
    for (rule, kind) in [("poll_start", "start"), ("poll_end", "end")] {
        let sound = Action::SetTweak(Tweak::Sound(SoundTweakValue::Default));
        rules.underride.insert(poll_rule(&format!("{rule}_one_to_one"), kind, true, vec![Action::Notify, sound]));
        rules.underride.insert(poll_rule(rule, kind, false, vec![Action::Notify]));
    }
    rules
}

fn poll_rule(name: &str, kind: &str, is_one_to_one: bool, actions: Vec<Action>) -> ConditionalPushRule {
    let mut conditions = Vec::new();
    if is_one_to_one {
        conditions.push(RoomMemberCountConditionData::new(uint!(2).into()).into());
    }
    let event_type = format!("org.matrix.msc3381.poll.{kind}");
    let is_of_type = EventPropertyIsConditionData::new("type".to_owned(), event_type.into());
    conditions.push(PushCondition::EventPropertyIs(is_of_type));
    let rule_id = format!(".org.matrix.msc3930.rule.{name}");
    ConditionalPushRuleInit { actions, default: true, enabled: true, rule_id, conditions }.into()
}
