//! Events about presence, made once for all who are told. Client-Server API, "m.presence".
//!
//! In a large room a change is told to a thousand readers: all that is done for each of them here is a look and a copy.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use accounts::UserSettings;
use event_bus::{Availability, Presence, UserPresence};
use model::{EphemeralPosition, UserNr};
use ruma::{OwnedUserId, UserId, events::presence::PresenceEvent, serde::Raw};
use serde_json::{json, value::RawValue};

use crate::{Error, Sync};

/// How long an event is shown, in milliseconds: by so much `last_active_ago` may be behind.
const SHOWN_FOR_MS: i64 = 1_000;

/// A user whose presence is told, with the position of the change; without one, because the reader sees the user from now on.
pub(crate) type Told = (Option<EphemeralPosition>, UserNr);

/// The events that were made in the last moments, by the user and the change that they tell of.
#[derive(Default)]
pub(crate) struct PresenceEvents {
    /// Held for moments only; no other lock is taken inside.
    made: Mutex<HashMap<UserNr, (EphemeralPosition, Arc<Made>)>>,
}

struct Made {
    at_ms: i64,
    user_id: OwnedUserId,
    event: Box<RawValue>,
}

impl PresenceEvents {
    /// The events for these users, as far as they were made.
    fn find(&self, users: &[Told], now_ms: i64) -> Vec<Option<Arc<Made>>> {
        let made = self.lock();
        let find = |(at, user_nr): &Told| {
            let (of, event) = made.get(user_nr)?;
            (Some(*of) == *at && event.is_shown(now_ms)).then(|| event.clone())
        };
        users.iter().map(find).collect()
    }

    /// Keeps an event about a change. One about somebody who is new to a reader is not kept: they may change before they are told of.
    fn keep(&self, (at, user_nr): Told, event: &Arc<Made>) {
        if let Some(at) = at {
            self.lock().insert(user_nr, (at, event.clone()));
        }
    }

    /// Forgets what is too old to be shown.
    pub(crate) fn sweep(&self, now_ms: i64) {
        self.lock().retain(|_, (_, event)| event.is_shown(now_ms));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<UserNr, (EphemeralPosition, Arc<Made>)>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Made {
    fn is_shown(&self, now_ms: i64) -> bool {
        (0..SHOWN_FOR_MS).contains(&(now_ms - self.at_ms))
    }
}

impl Sync {
    /// The presence of users as events, for a reader who does not hear of those whom they ignore. Client-Server API, "Ignoring Users".
    pub(crate) async fn presence_events(
        &self,
        users: &[Told],
        settings: &UserSettings,
    ) -> Result<Vec<Raw<PresenceEvent>>, Error> {
        let Some(presence) = self.presence().filter(|_| !users.is_empty()) else { return Ok(Vec::new()) };
        let now_ms = self.0.storage.clock().now_ms();
        let mut events = self.0.presence_events.find(users, now_ms);
        if events.iter().any(Option::is_none) {
            self.make_missing(presence, users, &mut events, now_ms).await?;
        }
        let events = events.into_iter().flatten().filter(|made| !settings.ignores(&made.user_id));
        Ok(events.map(|made| Raw::from_json(made.event.clone())).collect())
    }

    async fn make_missing(
        &self,
        presence: &Presence,
        users: &[Told],
        events: &mut [Option<Arc<Made>>],
        now_ms: i64,
    ) -> Result<(), Error> {
        let missing = || users.iter().zip(events.iter()).filter(|(_, event)| event.is_none());
        let numbers: Vec<UserNr> = missing().map(|((_, user_nr), _)| *user_nr).collect();
        let names = self.0.storage.user_ids(&numbers).await?;
        for (told, event) in users.iter().zip(events).filter(|(_, event)| event.is_none()) {
            let (Some(user_id), Some(known)) = (names.get(&told.1), presence.get(told.1)) else { continue };
            let json = presence_event(user_id, &known);
            let made = Arc::new(Made { at_ms: now_ms, user_id: user_id.clone(), event: json });
            self.0.presence_events.keep(*told, &made);
            *event = Some(made);
        }
        Ok(())
    }
}

fn presence_event(user_id: &UserId, presence: &UserPresence) -> Box<RawValue> {
    let says = &presence.shown.says;
    let mut content = json!({"presence": presence.shown.availability});
    if presence.shown.availability == Availability::Online {
        content["currently_active"] = json!(presence.shown.currently_active);
    }
    if let Some(ago_ms) = presence.last_active_ago_ms {
        content["last_active_ago"] = json!(ago_ms);
    }
    let texts =
        [("status_msg", &says.status_msg), ("displayname", &says.display_name), ("avatar_url", &says.avatar_url)];
    for (key, text) in texts {
        if let Some(text) = text {
            content[key] = json!(text);
        }
    }
    let event = json!({"type": "m.presence", "sender": user_id, "content": content});
    serde_json::value::to_raw_value(&event).expect("texts and numbers serialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: UserNr = UserNr(1);

    fn made(at_ms: i64) -> Arc<Made> {
        let user_id = ruma::owned_user_id!("@alice:hs");
        let event = presence_event(&user_id, &UserPresence::default());
        Arc::new(Made { at_ms, user_id, event })
    }

    fn change(position: u64) -> Told {
        (Some(EphemeralPosition { incarnation: 1, position }), ALICE)
    }

    /// A reader who is told of a change never gets what was made before it.
    #[test]
    fn an_event_is_shown_for_its_change_only_and_for_a_moment() {
        let events = PresenceEvents::default();
        let is_found = |told: Told, now_ms| events.find(&[told], now_ms)[0].is_some();
        events.keep(change(1), &made(1_000));
        assert!(is_found(change(1), 1_000) && is_found(change(1), 1_999));
        assert!(!is_found(change(1), 2_000), "how long ago the user was active is another number by now");
        assert!(!is_found(change(1), 900), "the clock went back");
        assert!(!is_found(change(2), 1_000));
        let elsewhere = EphemeralPosition { incarnation: 2, position: 1 };
        assert!(!is_found((Some(elsewhere), ALICE), 1_000), "a position of another life");
        assert!(!is_found((None, ALICE), 1_000), "to whom the user is new, what they are now is told");
        events.keep((None, ALICE), &made(1_500));
        assert!(!is_found((None, ALICE), 1_500));
        events.sweep(1_999);
        assert_eq!(events.lock().len(), 1);
        events.sweep(2_000);
        assert_eq!(events.lock().len(), 0);
    }
}
