//! Many rooms at once.

use model::{Clock, Membership, Position};
use rooms::Preset;
use storage::{TimelineDirection, testing::TestDatabase};

use crate::house::{House, room};

/// What many rooms are asked together is what each of them says alone.
#[tokio::test]
async fn many_rooms_are_read_in_one_statement() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let mut rooms = Vec::new();
        for count in [0, 3, 12] {
            let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
            house.rooms.join(&bob, &id, None).await.unwrap();
            for number in 0..count {
                house.say(&alice, &id, &format!("{count} {number}"), "hello").await.unwrap();
            }
            rooms.push(house.rooms.room(&id).await.unwrap().nr);
        }
        let storage = &house.storage;
        let newest = storage.published();
        let middle = Position(newest.0 / 2);
        for (after, upto, limit) in [
            (Position(i64::MIN), newest, 5),
            (Position(i64::MIN), newest, 500),
            (middle, newest, 5),
            (Position(i64::MIN), middle, 4),
            (newest, newest, 5),
        ] {
            let together = storage.list_timelines(&rooms, (after, upto), limit).await.unwrap();
            for room_nr in &rooms {
                let backward = TimelineDirection::Backward;
                let (from, to) = ((upto, i64::MAX), (after, i64::MAX));
                let alone = storage.list_timeline(*room_nr, backward, from, to, limit).await.unwrap();
                assert_eq!(together.get(room_nr).cloned().unwrap_or_default(), alone, "{after:?} {upto:?} {limit}");
            }
        }
        let places: Vec<_> = rooms.iter().flat_map(|room_nr| [(*room_nr, newest), (*room_nr, middle)]).collect();
        let states = storage.list_states_at(&places).await.unwrap();
        for place in places {
            let alone = storage.get_state_at(place.0, place.1).await.unwrap();
            assert_eq!(states.get(&place).copied().unwrap_or(model::NodeNr(0)), alone);
        }
        for (kinds, limit) in [(&[Membership::Join][..], 1), (&[Membership::Join, Membership::Leave], 9)] {
            let together = storage.list_oldest_members(&rooms, kinds, limit).await.unwrap();
            for room_nr in &rooms {
                let alone = storage.list_members_of_kinds(*room_nr, kinds, limit).await.unwrap();
                let alone: Vec<_> = alone.into_iter().map(|row| (row.user_nr, row.event_nr)).collect();
                assert_eq!(together[room_nr], alone);
            }
        }
    }
}

/// A long list does not bring its events into memory: it is written from what is stored, and that makes no difference.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_state_is_the_same_from_memory_and_from_the_database() {
    for database in TestDatabase::each().await {
        let house = House::open_at(&database, Clock::manual(1_000_000)).await;
        let (alice, bob, carol) = (house.user("alice").await, house.user("bob").await, house.user("carol").await);
        let id = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        house.rooms.join(&bob, &id, Some("with a reason")).await.unwrap();
        house.rooms.join(&carol, &id, None).await.unwrap();
        let joined = house.state(&alice, &id, "m.room.member", "@carol:hs").await;
        house.rooms.redact(&alice, &id, &joined.pdu.event_id, "1".into(), Some("no")).await.unwrap();
        let mut lists = Vec::new();
        for is_in_memory in [true, false] {
            let forget = || (!is_in_memory).then(|| house.storage.forget_all());
            forget();
            let list = house.rooms.full_state(&bob, &id).await.unwrap();
            let state = list.events(list.pieces().next().unwrap()).await.unwrap();
            forget();
            let list = house.rooms.joined_members(&bob, &id).await.unwrap();
            let profiles = list.profiles(list.pieces().next().unwrap()).await.unwrap();
            forget();
            let members = house.members_who_are(&bob, &id, Membership::Join).await;
            lists.push((String::from_utf8(state).unwrap(), String::from_utf8(profiles).unwrap(), members));
        }
        assert_eq!(lists[0], lists[1]);
        let (state, profiles, members) = &lists[0];
        assert!(state.contains("redacted_because") && state.contains("with a reason"), "{state}");
        assert!(profiles.contains(r#""@bob:hs":{"#), "{profiles}");
        assert_eq!(members.len(), 3);
        assert!(members.iter().any(|member| member["unsigned"]["membership"] == "join"), "{members:?}");
    }
}
