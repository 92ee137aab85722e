//! The scenario between two of our own.

use test_kit::{ServerOptions, TestDatabase, TestFederation};

use super::scenario::{SHORT, Scene, Side, WHOLE};

/// Two servers, with rooms that are made on the first one.
async fn world(version: u8, postgres: bool) -> (TestFederation, Scene) {
    let mut federation = TestFederation::empty();
    for name in ["hs1", "hs2"] {
        let database = if postgres { TestDatabase::postgres().await } else { None };
        federation.add(name, database.unwrap_or_else(TestDatabase::sqlite), ServerOptions::default()).await;
    }
    let side = |name: &str| Side { name: name.to_owned(), http: federation.server(name).http().clone() };
    let scene = Scene { version, maker: side("hs1"), guest: side("hs2") };
    (federation, scene)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_share_rooms_of_version_12() {
    let (_federation, scene) = world(12, false).await;
    scene.play_both_ways(WHOLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_share_rooms_of_version_11() {
    let (_federation, scene) = world(11, true).await;
    scene.play_both_ways(WHOLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_share_rooms_of_version_10() {
    let (_federation, scene) = world(10, false).await;
    scene.play_both_ways(WHOLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_share_rooms_of_version_1() {
    let (_federation, scene) = world(1, true).await;
    scene.play_both_ways(WHOLE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_talk_in_rooms_of_versions_2_to_9() {
    let (_federation, scene) = world(2, false).await;
    for version in 2..=9 {
        Scene { version, ..scene.clone() }.play_both_ways(SHORT).await;
    }
}
