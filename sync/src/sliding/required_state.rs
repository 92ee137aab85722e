//! Which state a client wants of a room. MSC4186, "RequiredStateRequest".

use std::{collections::BTreeSet, sync::Arc};

use model::{StateKeyNr, TypeNr};
use serde::{Deserialize, Serialize};
use storage::{StateKey, StoredEvent};
use tokio::sync::OnceCell;

use crate::{Error, Sync};

const MEMBER: &str = "m.room.member";

/// The state that one list or subscription asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequiredState {
    /// What is wanted,
    pub include: BTreeSet<Pattern>,
    /// but for this.
    pub exclude: BTreeSet<Pattern>,
    /// Types of which only what is included by its state key is wanted: members that are loaded lazily, and in the older form what
    /// stands beside `["*", "*"]`.
    pub narrowed: BTreeSet<String>,
    /// Whether the members come as they are needed.
    pub lazy_members: bool,
}

/// Some state: of a type or of all, with a state key or with any.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pattern {
    /// The type; nothing stands for all.
    pub event_type: Option<String>,
    /// The state key; nothing stands for any.
    pub state_key: Option<String>,
}

impl Pattern {
    fn matches(&self, event_type: &str, state_key: &str) -> bool {
        self.event_type.as_ref().is_none_or(|word| word == event_type)
            && self.state_key.as_ref().is_none_or(|word| word == state_key)
    }
}

impl RequiredState {
    fn wants(&self, event_type: &str, state_key: &str) -> bool {
        let is_narrow = self.narrowed.contains(event_type);
        let is_meant = |pattern: &Pattern| pattern.matches(event_type, state_key);
        self.include.iter().any(|pattern| is_meant(pattern) && (!is_narrow || pattern.state_key.is_some()))
            && !self.exclude.iter().any(is_meant)
    }

    /// How much it takes, in bytes, roughly.
    pub(super) fn bytes(&self) -> usize {
        let text = |text: &Option<String>| 24 + text.as_ref().map_or(0, String::len);
        let patterns = self.include.iter().chain(&self.exclude);
        let patterns: usize = patterns.map(|pattern| text(&pattern.event_type) + text(&pattern.state_key)).sum();
        100 + patterns + self.narrowed.iter().map(|word| 24 + word.len()).sum::<usize>()
    }

    /// Whether all members are wanted at once.
    fn has_all_members(&self) -> bool {
        let is_wide = |pattern: &Pattern| {
            pattern.state_key.is_none() && pattern.event_type.as_deref().is_none_or(|word| word == MEMBER)
        };
        !self.narrowed.contains(MEMBER) && self.include.iter().any(is_wide)
    }
}

/// What several lists and subscriptions together want of a room. MSC4186, "Combining room configs".
#[derive(Debug)]
pub(super) struct Wanted {
    asked: Vec<Arc<RequiredState>>,
    /// Whether the members come as they are needed.
    pub(super) lazy_members: bool,
    /// The same in numbers, once it was needed.
    numbers: OnceCell<Arc<WantedKeys>>,
}

/// What is wanted, in numbers: for looking into states.
#[derive(Debug, Default)]
pub(super) struct WantedKeys {
    parts: Vec<Part>,
}

/// In numbers, what one of them wants.
#[derive(Debug, Default)]
struct Part {
    include: Vec<Numbers>,
    exclude: Vec<Numbers>,
    narrowed: Vec<TypeNr>,
}

#[derive(Clone, Copy, Debug)]
struct Numbers {
    type_nr: Option<TypeNr>,
    key_nr: Option<StateKeyNr>,
}

impl Numbers {
    fn matches(self, key: StateKey) -> bool {
        self.type_nr.is_none_or(|nr| nr == key.0) && self.key_nr.is_none_or(|nr| nr == key.1)
    }
}

impl Part {
    fn wants(&self, key: StateKey) -> bool {
        let is_narrow = self.narrowed.contains(&key.0);
        self.include.iter().any(|pattern| pattern.matches(key) && (!is_narrow || pattern.key_nr.is_some()))
            && !self.exclude.iter().any(|pattern| pattern.matches(key))
    }
}

impl Wanted {
    pub(super) fn new(asked: Vec<Arc<RequiredState>>) -> Self {
        let lazy_members = asked.iter().any(|asked| asked.lazy_members)
            && !asked.iter().any(|asked| !asked.lazy_members && asked.has_all_members());
        Self { asked, lazy_members, numbers: OnceCell::new() }
    }

    /// Whether the state that an event sets is wanted. Asks nobody.
    pub(super) fn wants_event(&self, event: &StoredEvent) -> bool {
        let Some(state_key) = &event.pdu.state_key else { return false };
        let event_type = event.pdu.event_type.to_string();
        self.asked.iter().any(|asked| asked.wants(&event_type, state_key))
    }
}

impl WantedKeys {
    /// Whether a piece of state is wanted.
    pub(super) fn wants(&self, key: StateKey) -> bool {
        self.parts.iter().any(|part| part.wants(key))
    }

    /// The pieces of state that can be wanted, unless there is no telling without looking at all of a room's state.
    pub(super) fn keys(&self) -> Option<Vec<StateKey>> {
        let mut keys = Vec::new();
        for pattern in self.parts.iter().flat_map(|part| &part.include) {
            keys.push((pattern.type_nr?, pattern.key_nr?));
        }
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| self.wants(*key));
        Some(keys)
    }
}

impl Sync {
    /// What is wanted, in numbers. Words that no event ever had match nothing.
    pub(super) async fn wanted_keys(&self, wanted: &Wanted) -> Result<Arc<WantedKeys>, Error> {
        Ok(wanted
            .numbers
            .get_or_try_init(|| async { self.to_numbers(&wanted.asked).await.map(Arc::new) })
            .await?
            .clone())
    }

    async fn to_numbers(&self, asked: &[Arc<RequiredState>]) -> Result<WantedKeys, Error> {
        let patterns = || asked.iter().flat_map(|asked| asked.include.iter().chain(&asked.exclude));
        let narrowed = asked.iter().flat_map(|asked| &asked.narrowed).map(String::as_str);
        let types: BTreeSet<&str> =
            patterns().filter_map(|pattern| pattern.event_type.as_deref()).chain(narrowed).collect();
        let keys: BTreeSet<&str> = patterns().filter_map(|pattern| pattern.state_key.as_deref()).collect();
        let (types, keys): (Vec<&str>, Vec<&str>) = (types.into_iter().collect(), keys.into_iter().collect());
        let (types, keys) = self.0.storage.find_words(&types, &keys).await?;
        let numbers = |pattern: &Pattern| {
            let type_nr = pattern.event_type.as_ref().map(|word| types.get(word).copied().ok_or(()));
            let key_nr = pattern.state_key.as_ref().map(|word| keys.get(word).copied().ok_or(()));
            Some(Numbers { type_nr: type_nr.transpose().ok()?, key_nr: key_nr.transpose().ok()? })
        };
        let parts = asked.iter().map(|asked| Part {
            include: asked.include.iter().filter_map(numbers).collect(),
            exclude: asked.exclude.iter().filter_map(numbers).collect(),
            narrowed: asked.narrowed.iter().filter_map(|word| types.get(word).copied()).collect(),
        });
        Ok(WantedKeys { parts: parts.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: StateKey = (TypeNr(1), StateKeyNr(0));
    const ALICE: StateKey = (TypeNr(2), StateKeyNr(1));
    const BOB: StateKey = (TypeNr(2), StateKeyNr(2));

    fn numbers(type_nr: Option<i64>, key_nr: Option<i64>) -> Numbers {
        Numbers { type_nr: type_nr.map(TypeNr), key_nr: key_nr.map(StateKeyNr) }
    }

    fn wanted(include: Vec<Numbers>, exclude: Vec<Numbers>, narrowed: Vec<TypeNr>) -> WantedKeys {
        WantedKeys { parts: vec![Part { include, exclude, narrowed }] }
    }

    #[test]
    fn a_pattern_wants_what_it_names_and_nothing_else() {
        let one = wanted(vec![numbers(Some(2), Some(1))], vec![], vec![]);
        assert!(one.wants(ALICE) && !one.wants(BOB) && !one.wants(NAME));
        assert_eq!(one.keys(), Some(vec![ALICE]));
        let of_key = wanted(vec![numbers(None, Some(2))], vec![], vec![]);
        assert!(of_key.wants(BOB) && !of_key.wants(ALICE) && of_key.keys().is_none());
    }

    #[test]
    fn everything_but_what_is_excluded_or_narrowed() {
        let but_name = wanted(vec![numbers(None, None)], vec![numbers(Some(1), None)], vec![]);
        assert!(but_name.wants(ALICE) && !but_name.wants(NAME));
        let narrow = wanted(vec![numbers(None, None), numbers(Some(2), Some(1))], vec![], vec![TypeNr(2)]);
        assert!(narrow.wants(NAME) && narrow.wants(ALICE) && !narrow.wants(BOB));
    }

    #[test]
    fn together_they_want_what_one_of_them_wants() {
        let mut both = wanted(vec![numbers(None, None)], vec![numbers(Some(1), None)], vec![]);
        assert!(!both.wants(NAME));
        both.parts.extend(wanted(vec![numbers(Some(1), Some(0))], vec![], vec![]).parts);
        assert!(both.wants(NAME));
    }

    /// In words and in numbers it comes to the same.
    #[test]
    fn words_want_what_their_numbers_want() {
        let pattern = |t: Option<&str>, k: Option<&str>| Pattern {
            event_type: t.map(str::to_owned),
            state_key: k.map(str::to_owned),
        };
        let asked = RequiredState {
            include: [pattern(None, None), pattern(Some("member"), Some("alice"))].into(),
            exclude: [pattern(Some("name"), None)].into(),
            narrowed: ["member".to_owned()].into(),
            lazy_members: false,
        };
        let wants = |t: &str, k: &str| asked.wants(t, k);
        assert!(wants("topic", "") && wants("member", "alice"));
        assert!(!wants("member", "bob") && !wants("name", ""));
    }

    #[test]
    fn all_members_are_wanted_by_a_star_that_is_not_narrowed() {
        let star = Pattern::default();
        let members = Pattern { event_type: Some(MEMBER.to_owned()), state_key: None };
        for pattern in [star, members] {
            let mut asked = RequiredState { include: [pattern].into(), ..RequiredState::default() };
            assert!(asked.has_all_members());
            asked.narrowed.insert(MEMBER.to_owned());
            assert!(!asked.has_all_members());
        }
    }
}
