//! Making rooms.

use model::Membership;
use rooms::{Error, NewRoomRequest, Preset};
use ruma::UserId;
use storage::testing::TestDatabase;

use crate::house::{House, room};

/// A room of version 12 is named by its create event, which for rooms made in the same millisecond would be the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_makes_many_rooms_at_once() {
    for database in TestDatabase::each().await {
        let house = std::sync::Arc::new(House::open(&database).await);
        let alice = house.user("alice").await;
        let made = (0..8).map(|_| {
            let (house, alice) = (house.clone(), alice.clone());
            tokio::spawn(async move { house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap() })
        });
        let mut ids = std::collections::HashSet::new();
        for made in made.collect::<Vec<_>>() {
            assert!(ids.insert(made.await.unwrap()));
        }
    }
}

/// A room starts with many invitations to people who are new here, but not with any number of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_starts_with_a_bounded_number_of_invitations() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        let stranger = |n: usize| UserId::parse(format!("@new{n:03}:hs")).unwrap();
        let invite = |count: usize| NewRoomRequest {
            invite: (0..count).rev().map(stranger).collect(),
            ..room(Preset::TrustedPrivateChat)
        };
        assert!(matches!(house.rooms.create_room(&alice, invite(201)).await, Err(Error::InvalidParam(_))));
        assert_eq!(house.storage.find_user_nr(&stranger(0)).await.unwrap(), None);
        let id = house.rooms.create_room(&alice, invite(200)).await.unwrap();
        assert_eq!(house.members_who_are(&alice, &id, Membership::Invite).await.len(), 200);
        // They got their numbers together, so in the order of their names; one by one it would be that of the invitations.
        let first = house.storage.find_user_nr(&stranger(0)).await.unwrap().unwrap();
        let last = house.storage.find_user_nr(&stranger(199)).await.unwrap().unwrap();
        assert_eq!(last.0 - first.0, 199);
        house.storage.close().await;
    }
}
