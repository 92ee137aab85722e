//! The kept device lists of users of other servers, on both databases.

use model::{Position, UserNr};

use crate::{RemoteDevice, RemoteDevices, Storage, UserWork, testing::TestDatabase};

const BOB: UserNr = UserNr(7);

fn devices(ids: &[&str]) -> RemoteDevices {
    let device = |id: &&str| RemoteDevice { device_id: (*id).to_owned(), keys: "{}".to_owned(), display_name: None };
    RemoteDevices { devices: ids.iter().map(device).collect(), ..RemoteDevices::default() }
}

async fn ids(storage: &Storage) -> Vec<String> {
    storage.list_remote_devices(&[BOB]).await.unwrap().into_iter().map(|row| row.device_id).collect()
}

/// Whether it is to be told that the keys changed; asked again it is not.
async fn is_told(storage: &Storage) -> bool {
    let work = storage.list_user_work(BOB).await.unwrap();
    for row in &work {
        assert_eq!(row.work, UserWork::TellDevices);
        storage.delete_user_work(BOB, *row).await.unwrap();
    }
    !work.is_empty()
}

/// An answer may be on its way for long: what was said meanwhile must not be lost.
#[tokio::test]
async fn an_answer_counts_only_if_nothing_was_said_since_the_question() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let now_ms = storage.clock().now_ms();
        let asked = storage.begin_remote_device_list(BOB, now_ms + 1_000).await.unwrap();
        assert_eq!((asked.stream_id, asked.ask_at_ms), (None, Some(now_ms + 1_000)));
        storage.note_gaps_in_remote_devices(&[BOB], 5_000).await.unwrap();
        assert!(!storage.settle_remote_devices(&asked, 3, &devices(&["OLD"]), false).await.unwrap());
        assert_eq!(ids(&storage).await, [""; 0]);
        let again = storage.begin_remote_device_list(BOB, now_ms + 1_000).await.unwrap();
        assert!(storage.settle_remote_devices(&again, 4, &devices(&["A", "B"]), false).await.unwrap());
        assert!(!is_told(&storage).await, "nobody knew another list");
        assert!(!storage.settle_remote_devices(&again, 3, &devices(&["OLD"]), false).await.unwrap(), "a second answer");
        assert_eq!(ids(&storage).await, ["A", "B"]);
        let complete = storage.begin_remote_device_list(BOB, now_ms + 1_000).await.unwrap();
        assert_eq!((complete.stream_id, complete.ask_at_ms), (Some(4), None));
        assert_eq!(storage.list_due_remote_device_lists(i64::MAX, 10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn what_differs_is_told_and_what_is_the_same_is_not() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let begin = async || storage.begin_remote_device_list(BOB, i64::MAX / 2).await.unwrap();
        assert!(storage.settle_remote_devices(&begin().await, 1, &devices(&["A", "B"]), true).await.unwrap());
        assert!(is_told(&storage).await, "somebody waits for it");
        let list = begin().await;
        let update = RemoteDevices { gone: vec!["B".to_owned()], ..devices(&["A", "C"]) };
        assert!(storage.update_remote_devices(&list, 2, &update, 10).await.unwrap());
        assert!(is_told(&storage).await);
        assert_eq!(ids(&storage).await, ["A", "C"]);
        assert!(!storage.update_remote_devices(&list, 2, &devices(&["D"]), 10).await.unwrap(), "not as it was");
        let list = begin().await;
        assert_eq!(list.stream_id, Some(2));
        assert!(storage.update_remote_devices(&list, 3, &devices(&["A"]), 10).await.unwrap());
        assert!(!is_told(&storage).await, "the same keys");
        assert!(storage.update_remote_devices(&begin().await, 4, &devices(&["D"]), 2).await.unwrap());
        assert_eq!(ids(&storage).await, ["A", "C"], "no more are kept, and the list is complete no less");
        assert_eq!((begin().await.stream_id, begin().await.ask_at_ms), (Some(4), None));
        is_told(&storage).await;
        storage.note_gaps_in_remote_devices(&[BOB], 0).await.unwrap();
        let list = begin().await;
        assert!(!storage.update_remote_devices(&list, 4, &devices(&["D"]), 10).await.unwrap(), "it lacks something");
        assert!(storage.settle_remote_devices(&list, 5, &devices(&["A", "C"]), false).await.unwrap());
        assert!(!is_told(&storage).await, "nothing was missed");
        let keys = vec![("master", "{}".to_owned())];
        let update = RemoteDevices { cross_signing_keys: keys, ..RemoteDevices::default() };
        for is_news in [true, false] {
            assert!(storage.update_remote_devices(&begin().await, 5, &update, 10).await.unwrap());
            assert_eq!(is_told(&storage).await, is_news);
        }
        // A list without the key takes it away.
        storage.note_gaps_in_remote_devices(&[BOB], 0).await.unwrap();
        assert!(storage.settle_remote_devices(&begin().await, 6, &devices(&["A", "C"]), false).await.unwrap());
        assert!(is_told(&storage).await);
        assert_eq!(storage.list_cross_signing_keys(&[BOB]).await.unwrap(), []);
        storage.delete_remote_device_lists(&[BOB]).await.unwrap();
        assert_eq!(ids(&storage).await, [""; 0]);
    }
}

/// Whatever a hostile server says, it is not asked all the time; one that is silent is asked later each time.
#[tokio::test]
async fn a_list_is_due_after_a_pause() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let begun_ms = storage.clock().now_ms();
        let due = async |at_ms: i64| storage.list_due_remote_device_lists(at_ms, 10).await.unwrap();
        storage.begin_remote_device_list(BOB, begun_ms + 90_000).await.unwrap();
        assert_eq!(due(begun_ms + 89_999).await, []);
        assert_eq!(due(begun_ms + 90_000).await, [BOB]);
        storage.note_no_remote_devices(BOB, begun_ms + 10_000).await.unwrap();
        assert_eq!((due(begun_ms + 9_999).await, due(begun_ms + 10_000).await), (vec![], vec![BOB]));
        let list = storage.list_remote_device_lists(&[BOB]).await.unwrap()[&BOB];
        assert_eq!(list.failures, 1);
        for _ in 0..10 {
            storage.note_gaps_in_remote_devices(&[BOB], 5_000).await.unwrap();
        }
        assert_eq!((due(begun_ms + 4_999).await, due(begun_ms + 6_000).await), (vec![], vec![BOB]));
        assert_eq!(storage.list_all_device_list_changes(Position(0), 1).await.unwrap(), []);
    }
}
