//! Spaces, and rooms that let in who is in them.

use rooms::{Error, HierarchyRequest, NewRoomRequest, Preset};
use ruma::RoomVersionId;
use serde_json::{Value, json, value::to_raw_value};
use storage::testing::TestDatabase;

use crate::house::{House, content, initial, power, room};

/// Client-Server API, "Restricted rooms": who is in one of the rooms that are allowed comes in, vouched for by a member whom the
/// server chooses. Nobody chooses for themselves: the server's signature under the event is what lets them in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restricted_room_lets_in_who_is_in_an_allowed_room() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob, eve) = (house.user("alice").await, house.user("bob").await, house.user("eve").await);
        let carl = house.user_of("carl", "two").await;
        let space = house.rooms.create_room(&alice, room(Preset::PublicChat)).await.unwrap();
        house.rooms.join(&bob, &space, None).await.unwrap();
        house.rooms.join(&carl, &space, None).await.unwrap();
        let rules = (8..=12).map(|version| (version, "restricted"));
        for (version, rule) in rules.chain((10..=12).map(|version| (version, "knock_restricted"))) {
            let allow = json!([{"type": "m.room_membership", "room_id": "!elsewhere:hs"},
                               {"type": "m.room_membership", "room_id": space}]);
            let request = NewRoomRequest {
                version: Some(RoomVersionId::try_from(version.to_string()).unwrap()),
                initial_state: vec![initial("m.room.join_rules", json!({"join_rule": rule, "allow": allow}))],
                ..room(Preset::PrivateChat)
            };
            let id = house.rooms.create_room(&alice, request).await.unwrap();
            let refused = house.rooms.join(&eve, &id, None).await;
            assert!(matches!(refused, Err(Error::NotAllowed(_))), "{rule} in version {version}: {refused:?}");
            // Not even who may write there names somebody who lets them in.
            house.rooms.ban(&alice, &id, &eve.user_id, None).await.unwrap();
            house.rooms.unban(&alice, &id, &eve.user_id, None).await.unwrap();
            let named = json!({"membership": "join", "join_authorised_via_users_server": alice.user_id});
            let refused = house.set(&eve, &id, "m.room.member", eve.user_id.as_str(), named.clone()).await;
            assert!(matches!(refused, Err(Error::NotAllowed(_))), "{rule} in version {version}: {refused:?}");

            house.rooms.join(&bob, &id, None).await.unwrap();
            let joined = house.state(&alice, &id, "m.room.member", bob.user_id.as_str()).await;
            assert_eq!(content(&joined)["join_authorised_via_users_server"], alice.user_id.as_str());
            // As state, too; another server's user has both signatures.
            let _ = house.rooms.knock(&carl, &id, None).await;
            house.set(&alice, &id, "m.room.power_levels", "", power(&alice, version)).await.unwrap();
            let knows = json!({"membership": "join", "join_authorised_via_users_server": bob.user_id});
            if version >= 10 && rule == "knock_restricted" {
                house.set(&carl, &id, "m.room.member", carl.user_id.as_str(), knows).await.unwrap();
            } else {
                house.rooms.join(&carl, &id, None).await.unwrap();
            }
            let joined = house.state(&alice, &id, "m.room.member", carl.user_id.as_str()).await;
            assert_eq!(content(&joined)["join_authorised_via_users_server"], alice.user_id.as_str());
            let json: Value = serde_json::from_str(&joined.pdu.json).unwrap();
            let signed: Vec<&String> = json["signatures"].as_object().unwrap().keys().collect();
            assert_eq!(signed, ["hs", "two"], "{rule} in version {version}");
            // What somebody who is in says of it is not believed either.
            house.set(&bob, &id, "m.room.member", bob.user_id.as_str(), named).await.unwrap();
            let renamed = house.state(&alice, &id, "m.room.member", bob.user_id.as_str()).await;
            assert_eq!(content(&renamed), json!({"membership": "join"}));
        }
        house.storage.close().await;
    }
}

/// What is looked at for a page of a space is bounded, however many rooms somebody puts into it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_with_very_many_rooms_is_looked_at_in_part() {
    const LOOKED_AT: usize = 2_000;
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let alice = house.user("alice").await;
        let create = |name: &str, kind: Option<&str>| NewRoomRequest {
            name: Some(name.to_owned()),
            creation_content: kind.map(|kind| to_raw_value(&json!({"type": kind})).unwrap()),
            ..room(Preset::PublicChat)
        };
        let space = house.rooms.create_room(&alice, create("space", Some("m.space"))).await.unwrap();
        let (first, last) = (create("first", None), create("last", None));
        let first = house.rooms.create_room(&alice, first).await.unwrap();
        let last = house.rooms.create_room(&alice, last).await.unwrap();
        // Between the two as many rooms as are looked at, of which we know nothing.
        let mut children = tokio::task::JoinSet::new();
        for index in 0..LOOKED_AT {
            let (rooms, alice, space) = (house.rooms.clone(), alice.clone(), space.clone());
            children.spawn(async move {
                let content = to_raw_value(&json!({"via": ["far.example.org"], "order": "m"})).unwrap();
                let child = format!("!far{index}:far.example.org");
                rooms.send_state(&alice, &space, "m.space.child".into(), &child, &content, None).await
            });
        }
        assert!(children.join_all().await.iter().all(Result::is_ok));
        for (child, order) in [(&first, "a"), (&last, "z")] {
            let content = json!({"via": ["hs"], "order": order});
            house.set(&alice, &space, "m.space.child", child.as_str(), content).await.unwrap();
        }
        let asked = HierarchyRequest { from: None, limit: 10, max_depth: None, suggested_only: false };
        let page = house.rooms.hierarchy(&alice, &space, &asked).await.unwrap();
        let names: Vec<_> = page.rooms.iter().filter_map(|room| room.summary.name.as_deref()).collect();
        assert_eq!((names, page.next), (vec!["space", "first"], None));
        assert_eq!(page.rooms[0].children.len(), LOOKED_AT + 2);
        house.storage.close().await;
    }
}

/// Who pages goes on with the walk that they began, and other processes can go on with it; but whatever was found when it began, each page
/// shows what its reader may see now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_space_goes_on_with_the_walk_and_looks_at_its_own_rooms() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, bob) = (house.user("alice").await, house.user("bob").await);
        let create = |name: &str, kind: Option<&str>| NewRoomRequest {
            name: Some(name.to_owned()),
            creation_content: kind.map(|kind| to_raw_value(&json!({"type": kind})).unwrap()),
            ..room(Preset::PublicChat)
        };
        let space = house.rooms.create_room(&alice, create("space", Some("m.space"))).await.unwrap();
        let add = async |name: &str| {
            let child = house.rooms.create_room(&alice, create(name, None)).await.unwrap();
            let content = json!({"via": ["hs"], "order": name});
            house.set(&alice, &space, "m.space.child", child.as_str(), content).await.unwrap();
            child
        };
        let mut rooms = Vec::new();
        for name in ["a", "b", "c", "d", "e", "f"] {
            rooms.push(add(name).await);
        }
        let ask = async |of: &rooms::Rooms, from: Option<&str>, limit| {
            let asked = HierarchyRequest { from, limit, max_depth: None, suggested_only: false };
            let page = of.hierarchy(&bob, &space, &asked).await?;
            let names: Vec<_> = page.rooms.iter().filter_map(|room| room.summary.name.clone()).collect();
            Ok::<_, Error>((names.join(" "), page.next))
        };
        let (names, next) = ask(&house.rooms, None, 2).await.unwrap();
        assert_eq!(names, "space a");
        let (names, third) = ask(&house.rooms, next.as_deref(), 2).await.unwrap();
        assert_eq!(names, "b c");

        // What is put in now is seen by who walks anew: another process, which does not know of this walk.
        add("cc").await;
        let another = rooms::Rooms::new(
            house.storage.clone(),
            house.rooms.servers().clone(),
            rooms::Options { default_version: RoomVersionId::V12, ..Default::default() },
        );
        assert_eq!(ask(&another, third.as_deref(), 9).await.unwrap().0, "cc d e f");
        assert_eq!(ask(&house.rooms, third.as_deref(), 9).await.unwrap().0, "d e f");
        // Also where the room is gone after which it goes on, and there by its place.
        house.set(&alice, &space, "m.space.child", rooms[2].as_str(), json!({})).await.unwrap();
        assert_eq!(ask(&another, third.as_deref(), 9).await.unwrap().0, "cc d e f");
        assert_eq!(ask(&house.rooms, third.as_deref(), 9).await.unwrap().0, "d e f");

        // What is not for the reader any more is not shown, though the walk came by.
        house.rooms.ban(&alice, &rooms[3], &bob.user_id, None).await.unwrap();
        house.set(&alice, &rooms[4], "m.room.join_rules", "", json!({"join_rule": "invite"})).await.unwrap();
        house.set(&alice, &rooms[5], "m.room.name", "", json!({"name": "F"})).await.unwrap();
        assert_eq!(ask(&house.rooms, third.as_deref(), 9).await.unwrap().0, "F");
        house.rooms.ban(&alice, &space, &bob.user_id, None).await.unwrap();
        assert!(matches!(ask(&house.rooms, third.as_deref(), 9).await, Err(Error::NotMember)));
        house.storage.close().await;
    }
}
