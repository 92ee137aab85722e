//! How the program ends when something is wrong, and what it says then.

use serde_json::json;
use test_kit::TestServer;

use crate::program::Device;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_and_leaves_no_store() {
    let server = TestServer::start().await;
    let alice = Device::empty(&server, "alice").await;
    let refused = alice.login("not it").failed(1);
    assert!(refused.contains("M_FORBIDDEN"), "{refused}");
    assert_eq!(std::fs::read_dir(alice.store()).unwrap().count(), 0);
    alice.run(&["rooms"]).failed(3);
    alice.login(&alice.password()).ok();
    let taken = alice.login(&alice.password()).failed(1);
    assert!(taken.contains("--store"), "it says what to do: {taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_rooms_and_rooms_of_one_name_are_refused() {
    let server = TestServer::start().await;
    let alice = Device::new(&server, "alice").await;
    for room in ["Nowhere", "!nowhere:localhost", "#nowhere:localhost"] {
        alice.run(&["send", "--room", room, "hello"]).failed(1);
    }
    let (one, other) = (alice.room_with("Twice", &[]), alice.room_with("Twice", &[]));
    let refused = alice.run(&["send", "--room", "Twice", "hello"]).failed(1);
    assert!(refused.contains(&one) && refused.contains(&other), "both are named: {refused}");
    let bob = Device::new(&server, "bob").await;
    alice.run(&["invite", &one, bob.id()]).ok();
    let refused = bob.run(&["send", "--room", &one, "hello"]).failed(1);
    assert!(refused.contains("join"), "an invitation has to be accepted first: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_told_at_once_and_nothing_is_forgotten() {
    let mut server = TestServer::start().await;
    let alice = Device::new(&server, "alice").await;
    let bob = Device::empty(&server, "bob").await;
    alice.room_with("Lunch", &[]);
    server.stop().await;
    let down = alice.run(&["send", "--room", "Lunch", "hello"]).failed(4);
    assert!(down.contains("does not answer"), "{down}");
    alice.run(&["listen", "--json", "--once"]).failed(4);
    alice.run(&["logout"]).failed(4);
    assert!(alice.store().join("store.sqlite").exists());
    bob.login(&bob.password()).failed(4);
    assert_eq!(std::fs::read_dir(bob.store()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_ended_elsewhere_is_told_and_makes_room_for_another() {
    let server = TestServer::start().await;
    let alice = Device::new(&server, "alice").await;
    alice.user.post("/logout/all", &json!({})).await.ok();
    let ended = alice.run(&["rooms"]).failed(3);
    assert!(ended.contains("log in again"), "{ended}");
    alice.run(&["logout"]).ok();
    assert_eq!(std::fs::read_dir(alice.store()).unwrap().count(), 0, "nothing is left");
    alice.login(&alice.password()).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_opened_by_its_passphrase_and_by_no_other() {
    let server = TestServer::start().await;
    let alice = Device::empty(&server, "alice").await.with_passphrase("correct horse");
    alice.login(&alice.password()).ok();
    assert!(!alice.store().join("key").exists(), "no key lies beside it");
    let alice = alice.with_passphrase("battery staple");
    let refused = alice.run(&["rooms"]).failed(1);
    assert!(refused.contains("passphrase"), "{refused}");
    let alice = alice.with_passphrase("");
    alice.run(&["rooms"]).failed(2);
    alice.with_passphrase("correct horse").run(&["rooms"]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_file_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = TestServer::start().await;
    let alice = Device::new(&server, "alice").await;
    let key = alice.store().join("key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(alice.store()).unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(alice.run(&["rooms"]).failed(1).contains("chmod 600"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_programs_do_not_use_one_store_at_once() {
    let server = TestServer::start().await;
    let alice = Device::new(&server, "alice").await;
    alice.room_with("Lunch", &[]);
    let mut chat = alice.start(&["chat", "Lunch"]);
    chat.types("I am here");
    chat.says("I am here");
    let refused = alice.run(&["rooms"]).failed(1);
    assert!(refused.contains("--store"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_is_told_and_help_has_examples() {
    let server = TestServer::start().await;
    let alice = Device::empty(&server, "alice").await;
    for wrong in [
        &["send", "--room", "Lunch"][..],
        &["nonsense"],
        &["invite", "Lunch", "bob"],
        &["login", "alice", "--password-stdin"],
    ] {
        assert_eq!(alice.run(wrong).code, 2, "{wrong:?}");
    }
    assert!(
        alice
            .told(&["login", "alice", "--homeserver", "example.org", "--password-stdin"], "x")
            .failed(2)
            .contains("https://")
    );
    alice.run(&["rooms"]).failed(3);
    let help = alice.run(&["--help"]).ok();
    assert!(help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
}
