//! Whether rules that need the event itself fit it. Client-Server API, "Conditions".
//!
//! ruma has this too, but it builds a regular expression for each event and panics when that becomes too large, and without wildcards it calls
//! itself for each place that does not fit. Patterns are written by users, texts by anybody: here a text is gone through once.

use std::{collections::BTreeMap, ops::RangeBounds as _};

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UInt, UserId,
    push::{AnyPushRuleRef, ConditionalPushRule, FlattenedJson, FlattenedJsonValue, PushCondition, Ruleset},
};

use super::plan::{Effect, depend_on_members};
use crate::power::Power;

/// A text that is longer is not gone through for many rules in one go.
const LONG_TEXT_BYTES: usize = 4_096;

/// Most characters of a pattern; a longer one fits nothing.
const PATTERN_CHARS_MAX: usize = 255;

/// A user's rules, taken apart once: those that are switched on, in their order.
#[derive(Debug)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    /// Whether they ask for the reader's name in the room.
    pub(crate) ask_for_name: bool,
    /// Whether they ask for what the sender may.
    pub(crate) ask_for_power: bool,
    /// Whether it makes a difference to counts how many members a room has.
    pub(crate) depend_on_members: bool,
}

#[derive(Debug)]
struct Rule {
    tests: Vec<Test>,
    effect: Effect,
}

/// What is to be true of an event.
#[derive(Debug)]
enum Test {
    /// Some property matches; without a pattern none does.
    Pattern(String, Option<Pattern>),
    Room(OwnedRoomId),
    Sender(OwnedUserId),
    DisplayName,
    Subscribed(bool),
    /// It does not say whom it mentions: old rules look for that in the text.
    NoMentions,
    Other(PushCondition),
}

/// What rules ask for beside the event itself. The reader has not sent it.
pub(crate) struct About<'a> {
    pub(crate) room_id: &'a RoomId,
    /// How many are joined to the room.
    pub(crate) joined: UInt,
    /// The reader's name in the room.
    pub(crate) display_name: Option<&'a Pattern>,
    pub(crate) sender: &'a UserId,
    pub(crate) power: Option<&'a Power>,
    /// Whether the reader is subscribed to its thread; nothing in the main timeline.
    pub(crate) is_subscribed: Option<bool>,
}

impl Rules {
    pub(crate) fn new(rules: &Ruleset) -> Self {
        let enabled = rules.iter().filter(|rule| rule.enabled());
        let taken: Vec<Rule> = enabled.map(Rule::new).collect();
        let tests = || taken.iter().flat_map(|rule| &rule.tests);
        let ask_for_name = tests().any(|test| matches!(test, Test::DisplayName));
        let is_about_power = |test: &Test| matches!(test, Test::Other(PushCondition::SenderNotificationPermission(_)));
        let ask_for_power = tests().any(is_about_power);
        Self { ask_for_name, ask_for_power, depend_on_members: depend_on_members(rules), rules: taken }
    }

    /// What the first rule that fits an event says.
    pub(crate) async fn effect(&self, event: &FlattenedJson, about: &About<'_>) -> Effect {
        let is_long = event.get_str("content.body").is_some_and(|body| body.len() > LONG_TEXT_BYTES);
        'rules: for rule in &self.rules {
            for test in &rule.tests {
                if is_long && matches!(test, Test::Pattern(..) | Test::DisplayName) {
                    // Going through a long text takes its time, and others wait for the thread.
                    tokio::task::yield_now().await;
                }
                if !test.fits(event, about) {
                    continue 'rules;
                }
            }
            return rule.effect;
        }
        Effect::default()
    }

    /// The memory that they take, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let of_test = |test: &Test| match test {
            Test::Pattern(_, pattern) => 200 + pattern.as_ref().map_or(0, |pattern| 48 * pattern.steps.len()),
            _ => 200,
        };
        self.rules.iter().map(|rule| 100 + rule.tests.iter().map(of_test).sum::<usize>()).sum()
    }
}

impl Rule {
    fn new(rule: AnyPushRuleRef<'_>) -> Self {
        let tests = match rule {
            AnyPushRuleRef::Override(rule) | AnyPushRuleRef::PostContent(rule) | AnyPushRuleRef::Underride(rule) => {
                tests_of(rule)
            }
            AnyPushRuleRef::Content(rule) => {
                let is_old = rule.rule_id == ".m.rule.contains_user_name";
                let pattern = Test::pattern("content.body".to_owned(), &rule.pattern);
                is_old.then_some(Test::NoMentions).into_iter().chain([pattern]).collect()
            }
            AnyPushRuleRef::Room(rule) => vec![Test::Room(rule.rule_id.clone())],
            AnyPushRuleRef::Sender(rule) => vec![Test::Sender(rule.rule_id.clone())],
            _ => vec![Test::Pattern(String::new(), None)],
        };
        Self { tests, effect: Effect::of(rule.actions()) }
    }
}

fn tests_of(rule: &ConditionalPushRule) -> Vec<Test> {
    let is_old = matches!(&*rule.rule_id, ".m.rule.contains_display_name" | ".m.rule.roomnotif");
    let conditions = rule.conditions.iter().map(|condition| match condition {
        PushCondition::EventMatch(data) => Test::pattern(data.key.clone(), &data.pattern),
        #[expect(deprecated, reason = "clients in use have rules with it")]
        PushCondition::ContainsDisplayName => Test::DisplayName,
        PushCondition::ThreadSubscription(data) => Test::Subscribed(data.subscribed),
        other => Test::Other(other.clone()),
    });
    is_old.then_some(Test::NoMentions).into_iter().chain(conditions).collect()
}

impl Test {
    fn pattern(key: String, pattern: &str) -> Self {
        Self::Pattern(key, Pattern::new(pattern))
    }

    /// Client-Server API, "Conditions". What is not known fits nothing.
    fn fits(&self, event: &FlattenedJson, about: &About<'_>) -> bool {
        let body = || event.get_str("content.body");
        match self {
            Self::Pattern(key, pattern) => {
                let value = if key == "room_id" { Some(about.room_id.as_str()) } else { event.get_str(key) };
                let fits = |value| pattern.as_ref().is_some_and(|pattern| pattern.fits(value, key == "content.body"));
                value.is_some_and(fits)
            }
            Self::Room(room_id) => room_id == about.room_id,
            Self::Sender(sender) => sender == about.sender,
            Self::DisplayName => {
                body().is_some_and(|body| about.display_name.is_some_and(|name| name.fits(body, true)))
            }
            Self::Subscribed(wanted) => about.is_subscribed == Some(*wanted),
            Self::NoMentions => !event.contains_mentions(),
            Self::Other(PushCondition::RoomMemberCount(data)) => data.is.contains(&about.joined),
            Self::Other(PushCondition::SenderNotificationPermission(data)) => {
                about.power.is_some_and(|power| power.may_notify(about.sender, data.key.as_str()))
            }
            Self::Other(PushCondition::EventPropertyIs(data)) => {
                event.get(&data.key).is_some_and(|value| *value == data.value)
            }
            Self::Other(PushCondition::EventPropertyContains(data)) => {
                let values = event.get(&data.key).and_then(FlattenedJsonValue::as_array);
                values.is_some_and(|values| values.contains(&data.value))
            }
            Self::Other(_) => false,
        }
    }
}

/// Places in a pattern, a bit each: what comes before the first character is place 0.
#[derive(Clone, Copy, Debug, Default)]
struct Places([u64; 4]);

impl Places {
    fn add(&mut self, place: usize) {
        self.0[place / 64] |= 1 << (place % 64);
    }

    fn has(self, place: usize) -> bool {
        self.0[place / 64] & 1 << (place % 64) != 0
    }

    fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// Each place one further.
    fn next(self) -> Self {
        let carried = |word: usize| if word == 0 { 0 } else { self.0[word - 1] >> 63 };
        Self(std::array::from_fn(|word| self.0[word] << 1 | carried(word)))
    }
}

/// A glob, regardless of case: `*` stands for any characters, `?` for one.
#[derive(Debug)]
pub(crate) struct Pattern {
    /// The places that each character leads on from, in order of the characters.
    steps: Vec<(char, Places)>,
    /// The places that any other character leads on from.
    any: Places,
    /// The places where any character may be passed over.
    stars: Places,
    end: usize,
}

impl Pattern {
    /// Nothing when it is too long.
    fn new(pattern: &str) -> Option<Self> {
        Self::parse(pattern, true)
    }

    /// One in which `*` and `?` stand for themselves.
    pub(crate) fn of_words(words: &str) -> Option<Self> {
        Self::parse(words, false)
    }

    fn parse(pattern: &str, has_wildcards: bool) -> Option<Self> {
        let mut steps: BTreeMap<char, Places> = BTreeMap::new();
        let (mut any, mut stars, mut end) = (Places::default(), Places::default(), 0);
        for character in pattern.chars().flat_map(char::to_lowercase) {
            if has_wildcards && character == '*' {
                stars.add(end);
                continue;
            }
            if end == PATTERN_CHARS_MAX {
                return None;
            }
            if has_wildcards && character == '?' {
                any.add(end);
            } else {
                steps.entry(character).or_default().add(end);
            }
            end += 1;
        }
        let steps = steps.into_iter().map(|(character, places)| (character, places.or(any))).collect();
        Some(Self { steps, any, stars, end })
    }

    /// Whether it fits a text: as a whole, or some words in it. Client-Server API, "`event_match`".
    fn fits(&self, text: &str, in_words: bool) -> bool {
        if self.end == 0 && !self.stars.has(0) {
            return text.is_empty();
        }
        let mut at = Places::default();
        let mut text = text.chars().flat_map(char::to_lowercase).peekable();
        let mut before: Option<char> = None;
        loop {
            let after = text.peek().copied();
            let is_edge = in_words && !(before.is_some_and(is_of_word) && after.is_some_and(is_of_word));
            if before.is_none() || is_edge {
                at.add(0);
            }
            if (after.is_none() || is_edge) && at.has(self.end) {
                return true;
            }
            let Some(character) = text.next() else { return false };
            let step = self.steps.binary_search_by_key(&character, |(character, _)| *character);
            let step = step.map_or(self.any, |found| self.steps[found].1);
            at = at.and(step).next().or(at.and(self.stars));
            before = Some(character);
        }
    }
}

/// Client-Server API, "`event_match`": letters, digits and `_` of ASCII make words.
fn is_of_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngSeed};
    use ruma::{push::EventMatchConditionData, serde::Raw};
    use serde_json::{json, value::to_raw_value};

    use super::*;

    fn fits(pattern: &str, text: &str, in_words: bool) -> bool {
        Pattern::new(pattern).is_some_and(|pattern| pattern.fits(text, in_words))
    }

    #[test]
    fn words_are_found_between_others() {
        for (pattern, text) in [
            ("kettle", "a KETTLE, again"),
            ("a", "xa xa a"),
            ("lunc?*", "No lunch today"),
            ("ex*ple", "Example event"),
            ("*", ""),
            ("!x", "a!x"),
            ("Größe", "die GRÖSSE? die GRÖßE!"),
            ("b?d", "bad"),
            ("cake*lie", "The cake is\na lie"),
        ] {
            assert!(fits(pattern, text, true), "{pattern} in {text}");
        }
        for (pattern, text) in [("a", "xa ax xax"), ("lunc?", "lunches"), ("", "any"), ("kettle", "kettles")] {
            assert!(!fits(pattern, text, true), "{pattern} in {text}");
        }
        assert!(Pattern::of_words("what?").unwrap().fits("oh what? no", true));
        assert!(!Pattern::of_words("what?").unwrap().fits("oh whats no", true));
    }

    #[test]
    fn other_values_are_compared_as_a_whole() {
        assert!(fits("@*:hs", "@alice:HS", false));
        assert!(fits("m.room.message", "m.room.message", false));
        assert!(!fits("room", "m.room.message", false));
        assert!(fits("", "", false));
    }

    /// Whether a glob fits a whole text: tried out, as the Appendices say it ("Glob-style matching").
    fn is_glob(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|taken| is_glob(rest, &text[taken..])),
            Some(('?', rest)) => !text.is_empty() && is_glob(rest, &text[1..]),
            Some((character, rest)) => text.first() == Some(character) && is_glob(rest, &text[1..]),
        }
    }

    /// Whether a glob fits some words of a text: all of them are tried. Client-Server API, "`event_match`".
    fn is_in_words(pattern: &[char], text: &[char]) -> bool {
        let is_edge = |at: usize| at == 0 || at == text.len() || !is_of_word(text[at - 1]) || !is_of_word(text[at]);
        let edges: Vec<usize> = (0..=text.len()).filter(|at| is_edge(*at)).collect();
        edges.iter().any(|start| edges.iter().any(|end| start <= end && is_glob(pattern, &text[*start..*end])))
    }

    fn lowercase(text: &str) -> Vec<char> {
        text.chars().flat_map(char::to_lowercase).collect()
    }

    /// What ruma says of a pattern for a property of an event.
    fn ruma_fits(key: &str, pattern: &str, text: &str) -> bool {
        let event = json!({"sender": "@a:hs", "topic": text, "content": {"body": text}});
        let event: Raw<ruma::events::AnyTimelineEvent> = Raw::from_json(to_raw_value(&event).unwrap());
        let (room_id, user_id) = (ruma::owned_room_id!("!room:hs"), ruma::owned_user_id!("@b:hs"));
        let context = ruma::push::PushConditionRoomCtx::new(room_id, UInt::MIN, user_id, String::new());
        let condition = PushCondition::from(EventMatchConditionData::new(key.to_owned(), pattern.to_owned()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(condition.applies(&FlattenedJson::from_raw(&event), &context))
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2_000, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default()
        })]

        #[test]
        fn a_pattern_fits_what_the_specification_says(
            pattern in "[aAb_é?* .-]{0,6}", text in "[aAb_é?* .-]{0,10}|([ab]{1,2}[ -]){0,4}\n?",
        ) {
            let (small, words) = (lowercase(&pattern), lowercase(&text));
            prop_assert_eq!(fits(&pattern, &text, false), is_glob(&small, &words), "{:?} is {:?}", pattern, text);
            // An empty pattern is in no text but the empty one, as ruma and Synapse have it.
            let expected = if small.is_empty() { words.is_empty() } else { is_in_words(&small, &words) };
            prop_assert_eq!(fits(&pattern, &text, true), expected, "{:?} in {:?}", pattern, text);
        }

        /// Not of wildcards beside each other: ruma takes every second one for itself.
        #[test]
        fn a_pattern_fits_what_ruma_says(pattern in "([aAb_-]|[?*][aAb_-]){1,4}[?*]?", text in "([aAb_]{1,3}[ .-]?){0,5}") {
            prop_assert_eq!(fits(&pattern, &text, false), ruma_fits("topic", &pattern, &text), "{:?} is {:?}", pattern, text);
            let in_words = ruma_fits("content.body", &pattern, &text);
            prop_assert_eq!(fits(&pattern, &text, true), in_words, "{:?} in {:?}", pattern, text);
        }
    }

    /// ruma's expression for the first becomes too large, and its search for the second calls itself each time.
    #[test]
    fn no_pattern_and_no_text_is_too_much() {
        assert!(!fits(&format!("a{}", "?".repeat(200_000)), "a", true));
        assert!(!fits("a", &"xa ".repeat(21_000), true));
        assert!(fits(&"?".repeat(PATTERN_CHARS_MAX), &"x".repeat(PATTERN_CHARS_MAX), true));
        assert!(!fits(&"?".repeat(PATTERN_CHARS_MAX + 1), &"x".repeat(65_000), false));
        assert!(!fits(&format!("{}y", "x*".repeat(200)), &"x".repeat(60_000), false));
    }
}
