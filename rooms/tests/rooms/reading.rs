//! Many rooms at once.

use model::{Membership, Position};
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
                let alone: Vec<_> = alone.into_iter().map(|row| row.user_nr).collect();
                assert_eq!(together[room_nr], alone);
            }
        }
    }
}
