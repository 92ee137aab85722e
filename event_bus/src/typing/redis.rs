//! Who is typing where, shared by processes over Redis; see [`crate::following`].

use model::{EphemeralPosition, RoomNr, UserNr};

use super::{RoomTyping, Shared, State, TYPING_USERS_MAX};
use crate::following::{Fault, Followed, News, Redis};

/// A user is typing, or no longer.
pub(super) struct Change {
    pub(super) room_nr: RoomNr,
    pub(super) user_nr: UserNr,
    pub(super) for_ms: Option<i64>,
}

impl Followed for Shared {
    const NAME: &'static str = "typing";
    const SCRIPT: &'static str = concat!(
        include_str!("../following/begin.lua"),
        include_str!("typing.lua"),
        include_str!("../following/end.lua")
    );
    type Change = Change;

    fn position(&self) -> EphemeralPosition {
        self.lock().position()
    }

    fn take(&self, News { is_whole, at, floor, rows }: News) {
        self.change(|state| {
            if is_whole {
                *state = State { incarnation: at.incarnation, position: 0, floor, rooms: Default::default() };
            }
            for (room_nr, changed, users) in rows {
                // Redis knows until when, and ends it.
                let users = users.split_whitespace().take(TYPING_USERS_MAX);
                let users = users.filter_map(|user| Some((UserNr(user.parse().ok()?), i64::MAX))).collect();
                state.rooms.insert(RoomNr(room_nr), RoomTyping { users, changed });
            }
            state.position = at.position;
            if floor > state.floor {
                state.floor = floor;
                state.rooms.retain(|_, room| room.changed > floor || !room.users.is_empty());
            }
            true
        });
    }

    /// Nobody must be shown typing for ever.
    fn lose(&self) {
        self.change(|state| {
            *state = State::new(&self.random);
            true
        });
    }

    async fn bring(&self, redis: &mut Redis, changes: Vec<Change>) -> Result<(), Fault> {
        for Change { room_nr, user_nr, for_ms } in changes {
            let arguments = [room_nr.0, user_nr.0, for_ms.unwrap_or(-1)].map(|number| number.to_string());
            redis.call("set", &arguments).await?;
        }
        Ok(())
    }

    async fn tick(&self, redis: &mut Redis) -> Result<(), Fault> {
        redis.call("tick", &[]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use ::redis::Client;
    use model::{Clock, Random};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        Typing,
        following::{Place, Remote},
        testing::{RedisProxy, redis_url},
        typing::{TypingChange, TypingNews},
    };

    const ROOM: RoomNr = RoomNr(1);
    const ALICE: UserNr = UserNr(7);
    const BOB: UserNr = UserNr(12);
    const NOBODY: EphemeralPosition = EphemeralPosition { incarnation: 0, position: 0 };

    fn some_name() -> String {
        format!("test:{}", Random::system().alphanumeric(12))
    }

    fn process(url: &str, name: &str, channel: &str, rooms_max: usize) -> Typing {
        let shared = Arc::new(Shared::new(Clock::system(), Random::system()));
        let place = Place { url, name, channel, bounds: [TYPING_USERS_MAX, rooms_max] };
        let remote = Remote::start(&place, shared.clone(), Random::system()).unwrap();
        Typing { shared, remote: Some(remote) }
    }

    fn change(room_nr: RoomNr, users: &[UserNr]) -> TypingChange {
        TypingChange { room_nr, users: users.to_vec() }
    }

    /// Waits until a reader of the room at `since` is told just this.
    async fn told(typing: &Typing, since: EphemeralPosition, users: &[UserNr]) -> EphemeralPosition {
        let mut changed = typing.watch();
        let news = timeout(Duration::from_secs(30), async {
            loop {
                let news = typing.news(&[ROOM], since);
                if news.changes == [change(ROOM, users)] {
                    return news;
                }
                changed.changed().await.unwrap();
            }
        });
        news.await
            .unwrap_or_else(|_| panic!("{users:?} is not what is told: {:?}", typing.news(&[ROOM], since)))
            .position
    }

    /// Says it until somebody hears it: who is not connected yet loses it.
    async fn type_until_told(at: &Typing, typing: &Typing) -> EphemeralPosition {
        loop {
            at.set(ROOM, ALICE, Some(60_000));
            if let Ok(position) = timeout(Duration::from_millis(100), told(typing, NOBODY, &[ALICE])).await {
                return position;
            }
        }
    }

    #[tokio::test]
    async fn a_reader_moves_between_processes_and_misses_nothing() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let [one, two] = [(); 2].map(|()| Typing::redis(&url, &name, Clock::system(), &Random::system()).unwrap());
        let seen = type_until_told(&one, &two).await;
        assert_eq!(told(&one, NOBODY, &[ALICE]).await, seen, "one life for both");
        assert_eq!(one.news(&[ROOM], seen), TypingNews { changes: vec![], position: seen }, "told once, wherever");
        two.set(ROOM, BOB, Some(60_000));
        let seen = told(&one, seen, &[ALICE, BOB]).await;
        one.set(ROOM, ALICE, None);
        let seen = told(&two, seen, &[BOB]).await;
        told(&one, NOBODY, &[BOB]).await;
        two.set(ROOM, BOB, None);
        assert_eq!(told(&one, seen, &[]).await, NOBODY);
        // Others in the same Redis have nothing to do with it.
        let other = Typing::redis(&url, &some_name(), Clock::system(), &Random::system()).unwrap();
        one.set(ROOM, ALICE, Some(60_000));
        let at_other = type_until_told(&other, &other).await;
        assert_ne!(at_other.incarnation, told(&two, NOBODY, &[ALICE]).await.incarnation);
    }

    #[tokio::test]
    async fn time_ends_typing_at_all_processes() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let [one, two] = [(); 2].map(|()| process(&url, &name, &name, 100));
        let seen = type_until_told(&one, &two).await;
        // The process where it was said is gone: the others do not need it for the end.
        one.set(ROOM, BOB, Some(60_000));
        let seen = told(&two, seen, &[ALICE, BOB]).await;
        one.set(ROOM, ALICE, Some(1));
        told(&one, NOBODY, &[BOB]).await;
        one.set(ROOM, BOB, Some(1));
        told(&one, seen, &[]).await;
        drop(one);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
    }

    /// What is published is lost where nobody listens: a process with another channel hears nothing ever.
    #[tokio::test]
    async fn a_process_that_hears_nothing_learns_all_the_same() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let (one, deaf) = (process(&url, &name, &name, 100), process(&url, &name, &some_name(), 100));
        let seen = type_until_told(&one, &deaf).await;
        one.set(ROOM, ALICE, None);
        assert_eq!(told(&deaf, seen, &[]).await, NOBODY);
    }

    #[tokio::test]
    async fn a_redis_that_forgot_or_went_back_begins_a_new_life() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let (one, two) = (process(&url, &name, &name, 100), process(&url, &name, &name, 100));
        let seen = type_until_told(&one, &two).await;
        let mut raw = Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        let keys = [":life", ":ends", ":rows", ":values"].map(|part| format!("{{{name}}}:typing{part}"));
        ::redis::cmd("DEL").arg(&keys).query_async::<()>(&mut raw).await.unwrap();
        assert_eq!(told(&one, seen, &[]).await, NOBODY);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
        let seen = type_until_told(&one, &two).await;
        ::redis::cmd("HSET").arg(&keys[0]).arg(&["position", "0"]).query_async::<()>(&mut raw).await.unwrap();
        assert_eq!(told(&one, seen, &[]).await, NOBODY);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
    }

    #[tokio::test]
    async fn nobody_types_for_ever_while_redis_is_away() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let proxy = RedisProxy::start(&url).await;
        let (one, two) = (process(&url, &name, &name, 100), process(proxy.url(), &name, &name, 100));
        let seen = type_until_told(&one, &two).await;
        proxy.cut();
        one.set(ROOM, ALICE, None);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
        one.set(ROOM, BOB, Some(60_000));
        told(&one, NOBODY, &[BOB]).await;
        assert_eq!(two.news(&[ROOM], NOBODY), TypingNews::default(), "it cannot know");
        proxy.heal();
        told(&two, NOBODY, &[BOB]).await;
        // Who saw the end of it at the other process hears of the next change here.
        let seen = told(&one, seen, &[BOB]).await;
        one.set(ROOM, BOB, None);
        assert_eq!(told(&two, seen, &[]).await, NOBODY);
    }

    #[tokio::test]
    async fn redis_keeps_few_rooms_and_tells_who_it_forgot() {
        let Some(url) = redis_url() else { return };
        let name = some_name();
        let (one, two) = (process(&url, &name, &name, 4), process(&url, &name, &name, 4));
        let seen = type_until_told(&one, &two).await;
        let early = RoomNr(2);
        one.set(early, BOB, Some(60_000));
        one.set(early, BOB, None);
        for room in 3..40 {
            one.set(RoomNr(room), BOB, Some(60_000));
            one.set(RoomNr(room), BOB, None);
        }
        one.set(ROOM, BOB, Some(60_000));
        told(&two, NOBODY, &[ALICE, BOB]).await;
        let counts = |typing: &Typing| typing.shared.state.lock().unwrap().rooms.len();
        assert!(counts(&two) <= 5, "{} rooms", counts(&two));
        let news = two.news(&[ROOM, early], seen);
        assert_eq!(news.changes, [change(ROOM, &[ALICE, BOB]), change(early, &[])]);
        let all = [2, 3, 4].map(RoomNr);
        for room in all {
            one.set(room, BOB, Some(60_000));
        }
        one.set(RoomNr(50), BOB, Some(60_000));
        one.set(ROOM, BOB, None);
        told(&two, NOBODY, &[ALICE]).await;
        let news = two.news(&[RoomNr(4), RoomNr(50)], NOBODY);
        assert_eq!(news.changes, [change(RoomNr(4), &[BOB])], "more rooms than can be kept show nobody");
    }
}
