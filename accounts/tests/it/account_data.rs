//! Account data and its form.

use accounts::{Error, Options};
use ruma::user_id;

use crate::World;

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
