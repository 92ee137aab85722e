//! `swiftchat check-federation`: what an administrator is told of how others see a server.

use std::net::SocketAddr;

use federation::{Examination, Verdict};
use swiftchat::config::Config;
use test_kit::{Peer, TestFederation};

/// What is found of a server from the view of `hs1`.
async fn examine(federation: &TestFederation, config: Config, name: &str) -> Examination {
    let mut config = config;
    config.server.names.push("elsewhere.test".try_into().unwrap());
    config.unsafe_options.federation_extra_authorities = vec![federation.authority().file()];
    config.unsafe_options.federation_dns_server = Some(federation.dns("hs1").address());
    config.unsafe_options.outgoing_private_networks = vec!["127.0.0.0/8".parse().unwrap()];
    swiftchat::check_federation(&config, Some(name)).await.unwrap()
}

fn bad(found: &Examination) -> Vec<&str> {
    found.findings().iter().filter(|one| one.verdict == Verdict::Bad).map(|one| one.text.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_others_reach_is_found_healthy_with_its_keys() {
    let federation = TestFederation::of(2).await;
    let found = examine(&federation, Config::default(), "hs2").await;
    assert!(found.is_healthy(), "{found:#?}");
    let texts: Vec<_> = found.findings().iter().map(|one| one.text.as_str()).collect();
    for word in [
        "hs2 is at 127.",
        "valid for hs2",
        "signed by themselves: ed25519:",
        "runs SwiftChat",
        "other servers reach hs2",
    ] {
        assert!(texts.iter().any(|text| text.contains(word)), "{word}: {texts:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_with_what_helps() {
    let federation = TestFederation::of(2).await;
    let dns = federation.dns("hs1");
    // Nobody there; nobody listens; a certificate of another name; another server's keys.
    dns.add_address("silent.test", test_kit::loopback_address());
    let other = Peer::start("other.test", federation.authority()).await;
    dns.add_address("wrong.test", other.address());
    let posing = Peer::start("posing.test", federation.authority()).await;
    posing.answer("GET /_matrix/key/v2/server", 200, &other.keys(&[other.key()], &[]));
    dns.add_address("posing.test", posing.address());
    for (name, words) in [
        ("unknown.test", &["has no address", "an SRV record _matrix-fed._tcp.unknown.test"][..]),
        ("silent.test", &["nothing listens there: forward port 8448"]),
        ("wrong.test", &["the certificate must be valid for wrong.test"]),
        ("posing.test", &["does not say the keys of posing.test", "keys of another server"]),
    ] {
        let found = examine(&federation, Config::default(), name).await;
        let said = bad(&found).join("\n");
        for word in words {
            assert!(said.contains(word), "{name}: {word}: {found:#?}");
        }
        assert!(said.ends_with(&format!("no server reaches {name}")), "{said}");
    }
    // By its name this server should have the key of its own folder, and federate.
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.server.data_folder = folder.path().to_owned();
    config.server.names = vec!["hs2".try_into().unwrap()];
    config.federation.enabled = false;
    config.listeners[0].address = SocketAddr::from(([0, 0, 0, 0], 8_448));
    let found = examine(&federation, config, "hs2").await;
    let said = bad(&found).join("\n");
    for word in ["has other keys than this data folder", "`federation.enabled` is off"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}
