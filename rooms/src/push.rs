//! Push rules: what notifies whom. Client-Server API, "Push Rules".
//!
//! An event has a [`class`]: which of the default rules fit it, whoever reads it. It is stored with the event, so that a reader whose rules
//! are about classes, rooms, senders and threads is answered from sums ([`plan`]). Only for rules about anything else, events are looked at
//! ([`fit`], [`judge`]).

pub(crate) mod class;
pub(crate) mod fit;
pub(crate) mod judge;
pub(crate) mod plan;

use std::sync::Arc;

use accounts::UserSettings;
use model::UserNr;
use moka::sync::Cache;

use self::fit::Rules;

/// Most bytes of taken apart rules in memory, roughly.
const RULES_BYTES_CACHED: u64 = 16 << 20;

/// What a user chose, with their push rules taken apart.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) settings: Arc<UserSettings>,
    /// Nothing when they are the default ones.
    pub(crate) rules: Option<Rules>,
}

impl Chosen {
    fn new(settings: Arc<UserSettings>) -> Self {
        let rules = settings.push_rules.as_deref().map(Rules::new);
        Self { settings, rules }
    }

    /// Whether it makes a difference to counts how many members a room has.
    pub(crate) fn depends_on_members(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.depend_on_members)
    }
}

/// What users chose, of those whose rules are their own: patterns are made ready once, not for each event.
#[derive(Clone)]
pub(crate) struct ChosenByUser(Cache<UserNr, Arc<Chosen>>);

impl ChosenByUser {
    pub(crate) fn new() -> Self {
        let bytes = |_: &UserNr, chosen: &Arc<Chosen>| {
            let rules = chosen.rules.as_ref().map_or(0, Rules::bytes);
            u32::try_from(200 + rules).unwrap_or(u32::MAX)
        };
        Self(Cache::builder().max_capacity(RULES_BYTES_CACHED).weigher(bytes).build())
    }

    /// What a user whose settings these are chose.
    pub(crate) fn of(&self, user_nr: UserNr, settings: Arc<UserSettings>) -> Arc<Chosen> {
        let known = self.0.get(&user_nr).filter(|known| Arc::ptr_eq(&known.settings, &settings));
        known.unwrap_or_else(|| {
            let chosen = Arc::new(Chosen::new(settings));
            self.0.insert(user_nr, chosen.clone());
            chosen
        })
    }
}
