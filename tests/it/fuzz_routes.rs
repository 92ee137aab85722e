//! Every endpoint under valid and hostile requests, from a seed.
//!
//! `SWIFTCHAT_FUZZ_SEED`, `SWIFTCHAT_FUZZ_CASES` and `SWIFTCHAT_FUZZ_URL` (another server) change what is tried.

use model::Random;
use test_kit::{Http, ServerOptions, TestServer, fuzz::Plan, fuzz::run};

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

async fn fuzz(seed: u64, cases: u64, time_max_ms: i64) {
    let plan = Plan { seed, cases, time_max_ms };
    println!("seed {seed}, {cases} requests");
    if let Ok(url) = std::env::var("SWIFTCHAT_FUZZ_URL") {
        run(&Http::new(&url), plan).await.check(plan);
        return;
    }
    let server = TestServer::with(ServerOptions { random: Random::seeded(seed), ..Default::default() }).await;
    run(server.http(), plan).await.check(plan);
    server.shutdown().await;
}

/// Whatever is sent, with whatever token: the server answers, in the shape of the specification, and lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_brings_the_server_out_of_order() {
    let seed = variable("SWIFTCHAT_FUZZ_SEED").unwrap_or(1);
    fuzz(seed, variable("SWIFTCHAT_FUZZ_CASES").unwrap_or(3_000), 120_000).await;
}

/// The same with many seeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_no_request_brings_the_server_out_of_order() {
    let first = variable("SWIFTCHAT_FUZZ_SEED").unwrap_or(100);
    for seed in first..first + 30 {
        fuzz(seed, variable("SWIFTCHAT_FUZZ_CASES").unwrap_or(5_000), 120_000).await;
    }
}
