//! Devices, tokens and messages to devices, on both databases.

use model::UserNr;

use crate::{Commit, NewToDevice, testing::TestDatabase};

/// A device that is switched off for months must not fill the disk, neither with many messages nor with large ones.
#[tokio::test]
async fn a_device_is_full_by_the_number_of_its_messages_or_by_their_bytes() {
    for database in TestDatabase::each().await {
        let storage = database.open().await;
        let message = |device: &str, bytes: usize| NewToDevice {
            user_nr: UserNr(1),
            device_id: device.to_owned(),
            message: "x".repeat(bytes).into(),
        };
        let to_device = vec![message("MANY", 1), message("MANY", 1), message("LARGE", 100), message("FREE", 99)];
        storage.commit(Commit { to_device, ..Commit::default() }).await.unwrap();
        let full = storage.list_full_devices(&[UserNr(1), UserNr(2)], 2, 100).await.unwrap();
        assert_eq!(full, [(UserNr(1), "LARGE".to_owned()), (UserNr(1), "MANY".to_owned())]);
    }
}
