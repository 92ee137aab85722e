//! What is reported. Client-Server API, "Reporting Content".

use rooms::{Error, Preset};
use storage::testing::TestDatabase;

use crate::house::{House, room};

/// Client-Server API, "Reporting Content": for those who administer the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reported_is_kept() {
    for database in TestDatabase::each().await {
        let house = House::open(&database).await;
        let (alice, eve) = (house.user("alice").await, house.user("eve").await);
        let id = house.rooms.create_room(&alice, room(Preset::PrivateChat)).await.unwrap();
        let said = house.say(&alice, &id, "1", "a bad thing").await.unwrap();
        house.rooms.report_event(&alice, &id, &said, "first\0").await.unwrap();
        house.rooms.report_room(&eve, &id, "second").await.unwrap();
        house.rooms.report_user(&eve, &alice.user_id, "").await.unwrap();
        // What is not known here, and what may not be reported, is not kept.
        house.rooms.report_room(&eve, ruma::room_id!("!none:hs"), "no").await.unwrap();
        house.rooms.report_user(&eve, ruma::user_id!("@nobody:hs"), "no").await.unwrap();
        assert!(matches!(house.rooms.report_event(&eve, &id, &said, "no").await, Err(Error::EventUnknown)));
        let rows = house.storage.list_reports(i64::MAX, 100).await.unwrap();
        let shown: Vec<_> = rows
            .iter()
            .map(|row| {
                (row.reporter_nr, row.report.reason.as_str(), row.report.event_id.as_str(), row.report.user_id.as_str())
            })
            .collect();
        let (said, alice_id) = (said.as_str(), alice.user_id.as_str());
        let expected = [
            (eve.user_nr, "", "", alice_id),
            (eve.user_nr, "second", "", ""),
            (alice.user_nr, "first\u{FFFD}", said, ""),
        ];
        assert_eq!(shown, expected);
        assert_eq!((rows[0].report.room_id.as_str(), rows[1].report.room_id.as_str()), ("", id.as_str()));
        assert_eq!(house.storage.list_reports(rows[1].report_nr, 100).await.unwrap(), rows[2..]);
    }
}
