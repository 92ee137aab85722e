//! People at two programs who compare pictures.

use test_kit::TestServer;

use crate::program::{Device, Program};

/// One asks, the other accepts, and both see what they have to compare.
fn compare(asking: &Device, asked: &Device, arguments: &[&str]) -> (Program, Program) {
    let mut at_asked = asked.start(&["verify"]);
    let mut at_asking = asking.start(arguments);
    at_asked.types("yes");
    let (one, other) = (at_asking.says("   "), at_asked.says("   "));
    assert_eq!(one, other, "both see the same");
    assert_eq!(one.split("   ").count(), 7, "seven pictures: {one}");
    (at_asking, at_asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_verify_each_other_and_trust_what_the_other_says() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    let lonely = alice.run(&["verify", bob.id()]).failed(1);
    assert!(lonely.contains("create --direct"), "it says what is lacking: {lonely}");
    alice.room_with("Two", &[&bob]);
    bob.run(&["listen", "--json", "--once"]).ok();
    let (mut at_alice, mut at_bob) = compare(&alice, &bob, &["verify", bob.id()]);
    at_bob.types("yes");
    at_alice.types("yes");
    at_alice.says("is verified");
    at_bob.says("is verified");
    at_alice.ends().ok();
    at_bob.ends().ok();
    alice.run(&["send", "--room", "Two", "it is me"]).ok();
    assert!(bob.run(&["chat", "Two", "--history", "1"]).ok().ends_with("✓ alice: it is me"));
    let lines = bob.run(&["listen", "--json", "--once"]).json_lines();
    let said = lines.iter().find(|line| line["body"] == "it is me").expect("it was heard");
    assert_eq!((&said["trusted"], &said["problem"]), (&true.into(), &serde_json::Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn people_who_see_different_pictures_trust_nobody() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    alice.room_with("Two", &[&bob]);
    let (mut at_alice, at_bob) = compare(&alice, &bob, &["verify", bob.id()]);
    at_alice.types("no");
    at_alice.ends().failed(5);
    // Bob need not answer any more.
    at_bob.ends().failed(5);
    alice.run(&["send", "--room", "Two", "is it me?"]).ok();
    assert!(bob.run(&["chat", "Two", "--history", "1"]).ok().ends_with("~ alice: is it me?"));
    // Who asks for nobody's verification is asked by nobody.
    let mut at_bob = bob.start(&["verify"]);
    let at_alice = alice.start(&["verify", bob.id()]);
    at_bob.types("no");
    at_bob.ends().failed(5);
    at_alice.ends().failed(5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_gets_the_keys_by_verification() {
    let server = TestServer::start().await;
    let alice = Device::new(&server, "alice").await;
    alice.room_with("Notes", &[]);
    alice.run(&["send", "--room", "Notes", "said before"]).ok();
    alice.run(&["backup", "enable"]).ok();
    let phone = alice.another(&server);
    let (mut at_phone, mut at_alice) = compare(&phone, &alice, &["verify", alice.id()]);
    at_phone.types("yes");
    at_alice.types("yes");
    at_phone.says("1 room keys came from the backup");
    at_phone.ends().ok();
    at_alice.ends().ok();
    assert!(phone.run(&["chat", "Notes", "--history", "1"]).ok().ends_with("? alice: said before"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_device_of_somebody_is_verified_without_a_room() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    alice.run(&["verify", bob.id(), "NOSUCHDEVICE"]).failed(1);
    let devices = alice.run(&["devices", bob.id()]).ok();
    let device = devices.lines().nth(1).and_then(|line| line.split(' ').next());
    let (mut at_alice, mut at_bob) = compare(&alice, &bob, &["verify", bob.id(), device.expect("Bob's device")]);
    at_alice.types("yes");
    at_bob.types("yes");
    at_alice.ends().ok();
    at_bob.ends().ok();
    let devices = alice.run(&["devices", bob.id()]).ok();
    assert!(!devices.contains("not verified"), "{devices}");
}
