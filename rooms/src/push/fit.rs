//! Whether rules that need the event itself fit it. Client-Server API, "Conditions".
//!
//! ruma has this too, but it builds a regular expression for each event and panics when that becomes too large, and without wildcards it calls
//! itself for each place that does not fit. Patterns are written by users, texts by anybody: here a text is gone through once.

use std::collections::BTreeMap;

use ruma::push::{
    Action, AnyPushRuleRef, ConditionalPushRule, FlattenedJson, PushCondition, PushConditionRoomCtx, Ruleset,
};

/// Most characters of a pattern; a longer one fits nothing.
const PATTERN_CHARS_MAX: usize = 255;

/// What the first rule that fits an event says. The reader has not sent it.
pub(crate) async fn actions<'a>(
    rules: &'a Ruleset,
    event: &FlattenedJson,
    context: &PushConditionRoomCtx,
) -> &'a [Action] {
    for rule in rules {
        let fits = match rule {
            AnyPushRuleRef::Override(rule) | AnyPushRuleRef::PostContent(rule) | AnyPushRuleRef::Underride(rule) => {
                rule_fits(rule, event, context).await
            }
            AnyPushRuleRef::Content(rule) => {
                let is_old = rule.rule_id == ".m.rule.contains_user_name" && event.contains_mentions();
                rule.enabled && !is_old && pattern_fits("content.body", &rule.pattern, event, context)
            }
            // About the room or the sender: nothing is searched for.
            other => other.applies(event, context).await,
        };
        if fits {
            return rule.actions();
        }
    }
    &[]
}

async fn rule_fits(rule: &ConditionalPushRule, event: &FlattenedJson, context: &PushConditionRoomCtx) -> bool {
    // The old rules about mentions are off when the event says whom it mentions.
    let is_old = matches!(&*rule.rule_id, ".m.rule.contains_display_name" | ".m.rule.roomnotif");
    if !rule.enabled || is_old && event.contains_mentions() {
        return false;
    }
    for condition in &rule.conditions {
        #[expect(deprecated, reason = "clients in use have rules with it")]
        let fits = match condition {
            PushCondition::EventMatch(data) => pattern_fits(&data.key, &data.pattern, event, context),
            PushCondition::ContainsDisplayName => event.get_str("content.body").is_some_and(|body| {
                Pattern::of_words(&context.user_display_name).is_some_and(|name| name.fits(body, true))
            }),
            other => other.applies(event, context).await,
        };
        if !fits {
            return false;
        }
    }
    true
}

fn pattern_fits(key: &str, pattern: &str, event: &FlattenedJson, context: &PushConditionRoomCtx) -> bool {
    let value = if key == "room_id" { Some(context.room_id.as_str()) } else { event.get_str(key) };
    let fits = |value| Pattern::new(pattern).is_some_and(|pattern| pattern.fits(value, key == "content.body"));
    value.is_some_and(fits)
}

/// Places in a pattern, a bit each: what comes before the first character is place 0.
#[derive(Clone, Copy, Default)]
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
struct Pattern {
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
    fn of_words(words: &str) -> Option<Self> {
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
