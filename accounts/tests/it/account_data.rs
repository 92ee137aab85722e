//! Account data and its bounds.

use accounts::{Error, Options};
use model::RoomNr;
use ruma::user_id;
use serde_json::json;

use crate::World;

fn content(bytes: usize) -> String {
    let content = json!({"x": "x".repeat(bytes - 8)}).to_string();
    assert_eq!(content.len(), bytes);
    content
}

/// An initial sync has all of it.
#[tokio::test]
async fn account_data_has_a_bound_by_piece_and_in_all() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let accounts = &world.accounts;
        let set = async |room: i64, content: &str| {
            accounts.set_account_data(alice.user_nr, Some(RoomNr(room)), "org.example.x", content).await
        };
        let too_large = set(1, &content(65_537)).await;
        assert!(matches!(too_large, Err(Error::TooLarge(65_536))), "{too_large:?}");
        let mut pieces = 0;
        let full = loop {
            match set(pieces + 1, &content(65_536)).await {
                Ok(()) => pieces += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, Error::TooMuch(_)), "{full:?}");
        // 4 MiB less the push rules that everybody has.
        assert_eq!(pieces, 63);
        let tag = accounts.set_tag(alice.user_nr, RoomNr(100), "u.x", json!({"x": "x".repeat(65_000)})).await;
        assert!(matches!(tag, Err(Error::TooMuch(_))), "{tag:?}");
        set(1, "{}").await.expect("less is always possible");
        set(pieces + 1, &content(60_000)).await.expect("there is room again");
        let stored = accounts.account_data(alice.user_nr, Some(RoomNr(2)), "org.example.x").await.unwrap();
        assert_eq!(stored.len(), 65_536);
    }
}

#[tokio::test]
async fn account_data_that_no_client_can_read_is_refused() {
    for world in World::each(Options::default()).await {
        let alice = world.user(user_id!("@alice:one.test")).await;
        let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(110), "]".repeat(110));
        for content in [r#"{"x":"\ud800"}"#, &deep, "[]"] {
            let refused = world.accounts.set_account_data(alice.user_nr, None, "org.example.x", content).await;
            assert!(matches!(refused, Err(Error::BadJson(_))), "{content}: {refused:?}");
        }
        let value = serde_json::from_str::<serde_json::Value>(&deep).unwrap();
        let refused = world.accounts.set_profile_field(alice.user_nr, "org.example.x", &value).await;
        assert!(matches!(refused, Err(Error::BadJson(_))), "{refused:?}");
    }
}
