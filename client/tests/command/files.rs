//! Files that are sent and got.

use test_kit::TestServer;

use crate::program::Device;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_arrives_as_it_was_sent_and_replaces_no_other() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    let room = alice.room_with("Pictures", &[&bob]);
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(alice.folder().join("cat.png"), &bytes).unwrap();
    let sent = alice.run(&["send", "--room", "Pictures", "--file", "cat.png", "a cat"]).ok();
    let [file, text] = *sent.lines().collect::<Vec<_>>() else {
        panic!("an id for the file and one for the text: {sent}")
    };
    assert_ne!(file, text);

    assert_eq!(bob.run(&["download", "Pictures", file]).ok(), "cat.png");
    assert_eq!(std::fs::read(bob.folder().join("cat.png")).unwrap(), bytes);
    bob.run(&["download", "Pictures", file]).failed(1);
    bob.run(&["download", &room, file, "--output", "another.png"]).ok();
    assert_eq!(std::fs::read(bob.folder().join("another.png")).unwrap(), bytes);
    bob.run(&["download", "Pictures", text]).failed(1);
    bob.run(&["download", "Pictures", file, "--output", "small.png", "--max-size", "0"]).failed(1);
    assert!(!bob.folder().join("small.png").exists());
    alice.run(&["send", "--room", "Pictures", "--file", "nothing.png"]).failed(1);

    // In a conversation, too.
    let mut chat = alice.start(&["chat", "Pictures"]);
    chat.types("/file nothing.png");
    chat.types("/file cat.png");
    let shown = chat.says("[file cat.png");
    assert!(shown.contains("✓ alice: "), "{shown}");
}
