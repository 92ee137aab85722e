//! Media, on both databases.

use model::UserNr;
use ruma::server_name;

use crate::{MediaContent, MediaDescription, testing::TestDatabase};

const CONTENT: MediaContent = MediaContent { hash: [7; 32], length: 3 };

fn described(name: &str) -> MediaDescription {
    MediaDescription { content_type: Some("image/png".to_owned()), file_name: Some(name.to_owned()) }
}

#[tokio::test]
async fn many_uris_may_stand_for_one_content() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (one, other) = ((server_name!("one.test"), "a"), (server_name!("other.test"), "a"));
        storage.upsert_media(one, CONTENT, &described("one"), Some(UserNr(1))).await.unwrap();
        storage.upsert_media(other, CONTENT, &described("other"), None).await.unwrap();
        for (uri, name, uploader) in [(one, "one", Some(UserNr(1))), (other, "other", None)] {
            let row = storage.get_media(uri.0, uri.1).await.unwrap().unwrap();
            assert_eq!((row.content, row.description, row.uploader), (Some(CONTENT), described(name), uploader));
        }
        // Fetched anew.
        let newer = MediaContent { hash: [8; 32], length: 4 };
        storage.upsert_media(other, newer, &MediaDescription::default(), None).await.unwrap();
        let row = storage.get_media(other.0, other.1).await.unwrap().unwrap();
        assert_eq!((row.content, row.description), (Some(newer), MediaDescription::default()));
        assert_eq!(storage.get_media(one.0, "b").await.unwrap(), None);
    }
}

#[tokio::test]
async fn what_was_created_is_filled_once_and_in_time() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let (server, user) = (server_name!("one.test"), UserNr(1));
        let end_ms = storage.clock().now_ms() + 60_000;
        for (id, is_created) in [("a", true), ("b", true), ("c", false)] {
            let created = storage.insert_pending_media((server, id), user, end_ms, 2).await.unwrap();
            assert_eq!(created, is_created, "{id}");
        }
        assert!(storage.insert_pending_media((server, "d"), UserNr(2), end_ms, 2).await.unwrap(), "of another user");
        let row = storage.get_media(server, "a").await.unwrap().unwrap();
        assert_eq!((row.content, row.expires_at_ms, row.uploader), (None, Some(end_ms), Some(user)));
        assert!(storage.fill_pending_media((server, "a"), CONTENT, &described("a")).await.unwrap());
        let row = storage.get_media(server, "a").await.unwrap().unwrap();
        assert_eq!((row.content, row.expires_at_ms), (Some(CONTENT), None));
        assert!(!storage.fill_pending_media((server, "a"), CONTENT, &described("again")).await.unwrap());
        assert!(!storage.fill_pending_media((server, "never"), CONTENT, &described("x")).await.unwrap());
        assert!(storage.insert_pending_media((server, "c"), user, end_ms, 2).await.unwrap(), "there is room again");
        // Too late.
        assert!(storage.insert_pending_media((server, "e"), UserNr(3), 1, 2).await.unwrap());
        assert!(!storage.fill_pending_media((server, "e"), CONTENT, &described("e")).await.unwrap());
        storage.clean().await.unwrap();
        assert_eq!(storage.get_media(server, "e").await.unwrap(), None);
        for id in ["a", "b", "c"] {
            assert!(storage.get_media(server, id).await.unwrap().is_some(), "{id}");
        }
    }
}
