//! A new device that reads what was said before.

use test_kit::TestServer;

use crate::program::Device;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_reads_the_past_from_the_backup() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    alice.room_with("Lunch", &[&bob]);
    bob.run(&["send", "--room", "Lunch", "said by Bob"]).ok();
    alice.run(&["send", "--room", "Lunch", "said by Alice"]).ok();
    assert!(alice.run(&["backup", "status"]).ok().contains("none"));
    let recovery_key = alice.run(&["backup", "enable"]).ok();
    alice.run(&["backup", "enable"]).failed(1);
    let status = &alice.run(&["backup", "status", "--json"]).json_lines()[0];
    assert_eq!((&status["keys"], &status["has_key"], &status["waiting"]), (&2.into(), &true.into(), &0.into()));
    assert_eq!(status["has_recovery_key"], true);

    let phone = alice.another(&server);
    let before = phone.run(&["chat", "Lunch"]).ok();
    assert!(before.contains("✗ bob: (cannot be read") && !before.contains("said by"), "{before}");
    phone.told(&["backup", "restore"], "not a recovery key").failed(5);
    let other = "EsTc LW2K PGiF wKEA 3As5 g5c4 BXwk qeeJ ZJV8 Q9fu gUMN UE4d";
    phone.told(&["backup", "restore"], other).failed(5);
    assert_eq!(phone.told(&["backup", "restore"], &recovery_key).ok(), "2 room keys came from the backup.");
    let after = phone.run(&["chat", "Lunch"]).ok();
    assert!(after.contains("? bob: said by Bob") && after.contains("? alice: said by Alice"), "{after}");
    assert!(!after.contains('✗'), "{after}");
    let devices = alice.run(&["devices"]).ok();
    assert!(
        devices.contains("this one") && devices.contains("verified") && !devices.contains("not verified"),
        "{devices}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recovery_key_verifies_a_new_device() {
    let server = TestServer::start().await;
    let alice = Device::new(&server, "alice").await;
    let recovery_key = alice.run(&["backup", "enable"]).ok();
    let phone = alice.another(&server);
    assert!(alice.run(&["devices"]).ok().contains("not verified"));
    phone.told(&["verify", "--recovery-key"], "mistyped").failed(5);
    assert!(alice.run(&["devices"]).ok().contains("not verified"));
    let verified = phone.told(&["verify", "--recovery-key"], &recovery_key).ok();
    assert!(verified.contains("is verified"), "{verified}");
    assert!(!alice.run(&["devices"]).ok().contains("not verified"));
    // What the first device's user replaces, nobody opens with the old key.
    let new_key = alice.run(&["backup", "enable", "--replace"]).ok();
    let tablet = alice.another(&server);
    tablet.told(&["verify", "--recovery-key"], &recovery_key).failed(5);
    tablet.told(&["verify", "--recovery-key"], &new_key).ok();
}
