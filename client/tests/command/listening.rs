//! `send` and `listen`, as scripts use them.

use rustix::process::Signal;
use serde_json::Value;
use test_kit::TestServer;

use crate::program::Device;

fn texts(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["body"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_hears_everything_once_over_many_runs() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    let room = alice.room_with("Alerts", &[&bob]);
    let send = |text: &str| alice.told(&["send", "--room", "Alerts", "-"], text).ok();
    send("before anybody listened");
    assert_eq!(texts(&bob.run(&["listen", "--json", "--once"]).json_lines()), ["before anybody listened"; 0]);

    let first = send("disk full\n");
    // Another command hears it, and takes nothing away.
    bob.run(&["rooms"]).ok();
    send("disk\nfuller");
    let lines = bob.run(&["listen", "--json", "--once"]).json_lines();
    assert_eq!(texts(&lines), ["disk full", "disk\nfuller"]);
    let line = &lines[0];
    assert_eq!(line["event_id"], first.as_str());
    assert_eq!((&line["room"], &line["room_name"]), (&room.as_str().into(), &"Alerts".into()));
    assert_eq!(
        (&line["kind"], &line["sender"], &line["type"]),
        (&"event".into(), &alice.id().into(), &"m.room.message".into())
    );
    assert_eq!((&line["encrypted"], &line["trusted"]), (&true.into(), &false.into()));
    assert!(line["problem"].as_str().unwrap().starts_with("nobody has verified the device "), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    assert_eq!(bob.run(&["listen", "--json", "--once"]).json_lines(), [Value::Null; 0], "nothing comes twice");

    let mut listening = bob.start(&["listen", "--json"]);
    send("live");
    listening.says("live");
    listening.signal(Signal::INT);
    assert_eq!(listening.ends().ok(), "");
    assert_eq!(
        bob.run(&["listen", "--json", "--once"]).json_lines(),
        [Value::Null; 0],
        "what was printed is done with"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_killed_loses_nothing() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    alice.room_with("Alerts", &[&bob]);
    bob.run(&["listen", "--json", "--once"]).ok();
    let mut heard = Vec::new();
    for round in 0..5 {
        let mut listening = bob.start(&["listen", "--json"]);
        let text = format!("alert {round}");
        alice.run(&["send", "--room", "Alerts", &text]).ok();
        alice.run(&["send", "--room", "Alerts", &format!("{text}, again")]).ok();
        heard.push(listening.says("\"body\":\"alert"));
        listening.signal(Signal::KILL);
        heard.extend(listening.ends().stdout.lines().map(str::to_owned));
    }
    heard.extend(bob.run(&["listen", "--json", "--once"]).ok().lines().map(str::to_owned));
    let heard: Vec<Value> = heard.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // At most what was printed last comes again.
    let mut texts = texts(&heard);
    texts.dedup();
    let all: Vec<String> =
        (0..5).flat_map(|round| [format!("alert {round}"), format!("alert {round}, again")]).collect();
    for text in &all {
        assert!(texts.contains(&text.as_str()), "{text} was heard: {texts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_to_one_room_hears_of_no_other_and_invitations_are_heard_by_all() {
    let server = TestServer::start().await;
    let (alice, bob) = (Device::new(&server, "alice").await, Device::new(&server, "bob").await);
    alice.room_with("One", &[&bob]);
    alice.room_with("Other", &[&bob]);
    bob.run(&["listen", "--json", "--once"]).ok();
    alice.run(&["send", "--room", "Other", "passed over"]).ok();
    alice.run(&["send", "--room", "One", "heard"]).ok();
    assert_eq!(texts(&bob.run(&["listen", "--json", "--once", "--room", "One"]).json_lines()), ["heard"]);
    let room = alice.run(&["create", "New", "--invite", bob.id()]).ok();
    let lines = bob.run(&["listen", "--json", "--once"]).json_lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["kind"], &lines[0]["room"]), (&"invite".into(), &room.as_str().into()));
    assert_eq!(lines[0]["sender"], alice.id());
}
