//! Who is there, shared by processes over Redis; see [`crate::following`].
//!
//! The rules are in [`super::record`]. A process that has something to say changes its copy's record and puts it into Redis, which takes it
//! if nobody was faster; else the process does it again with what the other one put there.

use std::collections::BTreeMap;

use ::redis::from_redis_value;
use model::{EphemeralPosition, UserNr};

use super::{
    DEVICE_MS, Saying, Shared,
    record::{Happening, Record},
};
use crate::following::{Fault, Followed, News, Redis, Row};

/// How often a record is changed again because somebody else was faster.
const TRIES_MAX: usize = 8;

/// What waits for a user: the record as it is known, the position of its last change, and what happened.
struct Change {
    record: Record,
    changed: u64,
    happened: Vec<Happening>,
}

impl Followed for Shared {
    const NAME: &'static str = "presence";
    const SCRIPT: &'static str = concat!(
        include_str!("../following/begin.lua"),
        include_str!("presence.lua"),
        include_str!("../following/end.lua")
    );
    type Change = Saying;

    fn position(&self) -> EphemeralPosition {
        self.lock().position()
    }

    fn take(&self, News { is_whole, at, floor, rows }: News) {
        self.change(|state| {
            if is_whole {
                state.begin(at.incarnation, floor);
            }
            for row in rows {
                if let Some((user_nr, changed, shown, record)) = parse_row(&row) {
                    state.insert(user_nr, record, changed, shown);
                }
            }
            state.position = at.position;
            state.is_known = true;
            if floor > state.floor {
                state.floor = floor;
                state.forget_before(floor);
            }
            true
        });
        if is_whole {
            self.forget_told();
        }
    }

    /// What was said meanwhile was lost: all devices that sync say so again.
    fn connected(&self) {
        self.forget_told();
    }

    /// What was known is shown on: nothing better is known.
    fn lose(&self) {}

    async fn bring(&self, redis: &mut Redis, sayings: Vec<Saying>) -> Result<(), Fault> {
        let mut touched = Vec::new();
        let mut changes: BTreeMap<UserNr, Change> = BTreeMap::new();
        for saying in sayings {
            match saying {
                Saying::Touch(keys) => touched.extend(keys.into_iter().map(|key| (key, DEVICE_MS))),
                Saying::Happened(user_nr, happening, before) => {
                    let shown = happening.shows_device().map(|device| (user_nr, device.to_owned()));
                    touched.extend(shown.map(|key| (key, happening.shows_for_ms())));
                    let change = changes.entry(user_nr).or_insert_with(|| {
                        let (record, changed) = self.lock().known(user_nr).unwrap_or_default();
                        Change { record, changed, happened: Vec::new() }
                    });
                    if let Some(before) = before.filter(|_| change.changed == 0 && change.happened.is_empty()) {
                        change.record = Record::new(before);
                    }
                    change.happened.push(happening);
                }
            }
        }
        if !touched.is_empty() {
            let now_ms = self.clock.now_ms();
            let ends = touched
                .into_iter()
                .flat_map(|((user_nr, device), for_ms)| [(now_ms + for_ms).to_string(), format!("{user_nr} {device}")]);
            redis.call("touch", &ends.collect::<Vec<_>>()).await?;
        }
        self.put(redis, changes).await
    }

    async fn tick(&self, redis: &mut Redis) -> Result<(), Fault> {
        redis.call("tick", &[]).await?;
        let due = redis.call("due", &[self.clock.now_ms().to_string()]).await?;
        let due: Vec<String> = due.into_iter().filter_map(|value| from_redis_value(value).ok()).collect();
        let mut changes: BTreeMap<UserNr, Change> = BTreeMap::new();
        for ended in due.iter().step_by(2) {
            let (user_nr, device) = match ended.split_once(' ') {
                Some((user_nr, device)) => (user_nr, Some(device)),
                None => (ended.as_str(), None),
            };
            let Ok(user_nr) = user_nr.parse().map(UserNr) else { continue };
            let Some((record, changed)) = self.lock().known(user_nr) else { continue };
            let happening = device.map_or(Happening::Waited, |device| Happening::Gone { device: device.to_owned() });
            let change = changes.entry(user_nr).or_insert(Change { record, changed, happened: Vec::new() });
            change.happened.push(happening);
        }
        self.put(redis, changes).await?;
        if !due.is_empty() {
            redis.call("done", &due).await?;
        }
        Ok(())
    }
}

impl Shared {
    /// Puts records into Redis, until each is there or has become what it was.
    async fn put(&self, redis: &mut Redis, mut changes: BTreeMap<UserNr, Change>) -> Result<(), Fault> {
        for _ in 0..TRIES_MAX {
            let now_ms = self.clock.now_ms();
            let mut arguments = Vec::new();
            let mut flips = Vec::new();
            changes.retain(|user_nr, change| {
                let mut record = change.record.clone();
                let mut is_told = false;
                for happening in &change.happened {
                    is_told |= record.note(happening, now_ms);
                }
                if record == change.record {
                    return false;
                }
                if record.is_away() != change.record.is_away() {
                    flips.push((*user_nr, (!record.is_away(), record.last_active_ms)));
                }
                let Ok(json) = serde_json::to_string(&record) else { return false };
                arguments.extend([
                    user_nr.to_string(),
                    change.changed.to_string(),
                    u8::from(is_told).to_string(),
                    u8::from(record.is_away()).to_string(),
                    record.next_change_ms().unwrap_or(-1).to_string(),
                    json,
                ]);
                true
            });
            if changes.is_empty() {
                return Ok(());
            }
            let refused = redis.call("put", &arguments).await?;
            let refused: Vec<Row> = refused.into_iter().filter_map(|row| from_redis_value(row).ok()).collect();
            changes.retain(|user_nr, change| {
                let Some(row) = refused.iter().find(|row| row.0 == user_nr.0) else { return false };
                change.changed = row.1;
                change.record = parse_row(row).map(|(.., record)| record).unwrap_or_default();
                true
            });
            flips.retain(|(user_nr, ..)| !changes.contains_key(user_nr));
            self.lock().flips.extend(flips);
        }
        Ok(())
    }
}

/// A user, the position of the last change, that of the last one that is shown, and the record.
fn parse_row((user_nr, changed, text): &Row) -> Option<(UserNr, u64, u64, Record)> {
    let mut parts = text.splitn(3, ' ');
    let shown = parts.next()?.parse().ok()?;
    Some((UserNr(*user_nr), *changed, shown, serde_json::from_str(parts.nth(1)?).ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ::redis::Client;
    use model::{Clock, Random};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        Availability, Presence,
        following::Place,
        testing::{RedisProxy, redis_url},
    };

    const ALICE: UserNr = UserNr(7);
    const BOB: UserNr = UserNr(12);

    fn some_name() -> String {
        format!("test:{}", Random::system().alphanumeric(12))
    }

    fn process(url: &str, name: &str, clock: &Clock, users_max: usize) -> Presence {
        let place = Place { url, name, channel: name, bounds: [0, users_max] };
        Presence::redis_with(&place, clock.clone(), &Random::system()).unwrap()
    }

    /// Waits until a process shows this of a user.
    async fn shown(presence: &Presence, user_nr: UserNr, availability: Availability) {
        let mut changed = presence.watch();
        let now = || presence.get(user_nr).map(|known| known.shown.availability).unwrap_or_default();
        let comes = timeout(Duration::from_secs(30), async {
            while now() != availability {
                changed.changed().await.unwrap();
            }
        });
        comes.await.unwrap_or_else(|_| panic!("{user_nr} is {:?}", now()));
    }

    /// Waits until both are connected: what is said before may be lost.
    async fn connected(processes: &[&Presence]) {
        for presence in processes {
            let mut changed = presence.watch();
            while presence.incarnation().is_none() {
                presence.set(UserNr(1), "X", Availability::Online, None, None).await;
                let _ = timeout(Duration::from_millis(50), changed.changed()).await;
            }
        }
    }

    #[tokio::test]
    async fn a_device_may_sync_with_any_process() {
        let Some(url) = redis_url() else { return };
        let (name, clock) = (some_name(), Clock::manual(1_000_000));
        let [one, two] = [(); 2].map(|()| process(&url, &name, &clock, 100));
        connected(&[&one, &two]).await;
        let at_one = one.syncs(ALICE, "A", false, None);
        shown(&two, ALICE, Availability::Online).await;
        let seen = two.news(EphemeralPosition::default());
        assert!(seen.changes.iter().any(|(_, user_nr)| *user_nr == ALICE));
        shown(&one, ALICE, Availability::Online).await;
        assert_eq!(one.news(seen.position).changes, [], "one life for both");
        drop(at_one);
        let _at_two = two.syncs(ALICE, "A", false, None);
        for _ in 0..5 {
            clock.advance_ms(10_000);
            one.tick();
            two.tick();
            // What was said before it is done then.
            let text = Some(clock.now_ms().to_string());
            two.set(BOB, "B", Availability::Online, text.clone(), None).await;
            let mut changed = one.watch();
            while one.get(BOB).and_then(|known| known.shown.says.status_msg) != text {
                timeout(Duration::from_secs(30), changed.changed()).await.unwrap().unwrap();
            }
        }
        assert_ne!(one.get(ALICE).unwrap().shown.availability, Availability::Offline);
        two.set(ALICE, "A", Availability::Offline, None, None).await;
        shown(&one, ALICE, Availability::Offline).await;
    }

    #[tokio::test]
    async fn a_device_of_a_process_that_died_is_gone_in_time() {
        let Some(url) = redis_url() else { return };
        let (name, clock) = (some_name(), Clock::manual(1_000_000));
        let [one, two] = [(); 2].map(|()| process(&url, &name, &clock, 100));
        connected(&[&one, &two]).await;
        let syncing = one.syncs(ALICE, "A", false, None);
        shown(&two, ALICE, Availability::Online).await;
        std::mem::forget(syncing);
        drop(one);
        clock.advance_ms(41_000);
        shown(&two, ALICE, Availability::Offline).await;
        let flips = two.take_flips();
        assert!(flips.iter().any(|(user_nr, is_there, _)| (*user_nr, *is_there) == (ALICE, false)), "{flips:?}");
    }

    #[tokio::test]
    async fn processes_that_speak_of_one_user_at_once_lose_nothing() {
        let Some(url) = redis_url() else { return };
        let (name, clock) = (some_name(), Clock::manual(1_000_000));
        let [one, two] = [(); 2].map(|()| process(&url, &name, &clock, 100));
        connected(&[&one, &two]).await;
        let mut syncing = Vec::new();
        for number in 0..8 {
            syncing.push(one.syncs(ALICE, &format!("one {number}"), false, None));
            syncing.push(two.syncs(ALICE, &format!("two {number}"), false, None));
        }
        let has_all = |presence: &Presence| {
            let devices = (0..8).flat_map(|number| [format!("one {number}"), format!("two {number}")]);
            let state = presence.shared.lock();
            let record = state.users.get(&ALICE).map(|known| known.record.clone()).unwrap_or_default();
            devices.into_iter().all(|device| record.has_device(&device))
        };
        for presence in [&one, &two] {
            let mut changed = presence.watch();
            let all = timeout(Duration::from_secs(30), async {
                while !has_all(presence) {
                    changed.changed().await.unwrap();
                }
            });
            assert!(all.await.is_ok());
        }
    }

    #[tokio::test]
    async fn who_is_there_is_shown_on_while_redis_is_away_and_comes_back_when_it_forgot() {
        let Some(url) = redis_url() else { return };
        let (name, clock) = (some_name(), Clock::manual(1_000_000));
        let proxy = RedisProxy::start(&url).await;
        let (one, two) = (process(&url, &name, &clock, 100), process(proxy.url(), &name, &clock, 100));
        connected(&[&one, &two]).await;
        let _syncing = two.syncs(ALICE, "A", false, None);
        shown(&one, ALICE, Availability::Online).await;
        shown(&two, ALICE, Availability::Online).await;
        proxy.cut();
        one.set(BOB, "B", Availability::Online, None, None).await;
        shown(&one, BOB, Availability::Online).await;
        assert_eq!(two.get(ALICE).unwrap().shown.availability, Availability::Online);
        let keys = [":life", ":ends", ":rows", ":values"].map(|part| format!("{{{name}}}:presence{part}"));
        let mut raw = Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        let before = one.incarnation();
        ::redis::cmd("DEL").arg(&keys).query_async::<()>(&mut raw).await.unwrap();
        shown(&one, ALICE, Availability::Offline).await;
        assert_ne!(one.incarnation(), before, "another life");
        proxy.heal();
        let comes_back = timeout(Duration::from_secs(30), async {
            let mut changed = one.watch();
            loop {
                two.tick();
                let now = one.get(ALICE).map(|known| known.shown.availability);
                if now == Some(Availability::Online) {
                    return;
                }
                let _ = timeout(Duration::from_millis(100), changed.changed()).await;
            }
        });
        assert!(comes_back.await.is_ok(), "who syncs with a process says so again");
    }

    /// After Redis was away all devices of a process are to be told of at once.
    #[tokio::test]
    async fn more_devices_than_the_queue_takes_are_told_with_the_next_ticks() {
        let Some(url) = redis_url() else { return };
        let (name, clock) = (some_name(), Clock::manual(1_000_000));
        let [one, two] = [(); 2].map(|()| process(&url, &name, &clock, 10_000));
        connected(&[&one, &two]).await;
        let users = (100..2_600).map(UserNr);
        // Nothing is taken off the queue meanwhile: this test has one thread.
        let _syncing: Vec<_> = users.clone().map(|user_nr| one.syncs(user_nr, "A", false, None)).collect();
        let all = timeout(Duration::from_secs(30), async {
            while !users.clone().all(|user_nr| two.knows(user_nr)) {
                one.tick();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(all.await.is_ok(), "{} are known", users.filter(|user_nr| two.knows(*user_nr)).count());
    }

    /// A client says it once.
    #[tokio::test]
    async fn what_a_user_says_of_themselves_waits_until_the_queue_has_place() {
        let Some(url) = redis_url() else { return };
        let (name, clock) = (some_name(), Clock::manual(1_000_000));
        let [one, two] = [(); 2].map(|()| process(&url, &name, &clock, 10_000));
        connected(&[&one, &two]).await;
        let _syncing: Vec<_> = (100..2_600).map(|number| one.syncs(UserNr(number), "A", false, None)).collect();
        one.set(BOB, "B", Availability::Online, None, None).await;
        shown(&two, BOB, Availability::Online).await;
    }

    #[tokio::test]
    async fn redis_keeps_few_users_and_those_who_are_there_first() {
        let Some(url) = redis_url() else { return };
        let (name, clock) = (some_name(), Clock::manual(1_000_000));
        let [one, two] = [(); 2].map(|()| process(&url, &name, &clock, 5));
        connected(&[&one, &two]).await;
        one.set(ALICE, "A", Availability::Online, None, None).await;
        for number in 100..140 {
            one.set(UserNr(number), "D", Availability::Online, None, None).await;
            one.set(UserNr(number), "D", Availability::Offline, Some("away".to_owned()), None).await;
        }
        one.set(BOB, "B", Availability::Online, None, None).await;
        shown(&two, BOB, Availability::Online).await;
        shown(&two, ALICE, Availability::Online).await;
        let count = two.shared.lock().users.len();
        assert!(count <= 6, "{count} users");
    }
}
