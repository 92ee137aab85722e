//! `bench members`: what the list of the members of a large room costs.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use http::Method;
use serde_json::json;

use crate::{
    Target,
    matrix::{self, User},
    percentiles::Samples,
    process::{self, Meter},
    report::{Report, progress},
    setup::{self, Plan},
};

/// Options of `bench members`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Members of the room: one is joined, the others, users of a server that does not exist, are banned, which costs no registration.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(2..=200_000))]
    members: u32,
    /// Lists that are measured, after the first one.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    lists: u32,
    /// Shell command between setup and measurement, for instance one that restarts the server to measure it cold.
    #[arg(long)]
    before_measuring: Option<String>,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let world = setup::build(target, Plan { users: 1, rooms: 1, members: 1, messages: 0, text_bytes: 0 }).await?;
    let (user, room) = (world.users[0].clone(), world.rooms[0].id.clone());
    progress(&format!("banning {} users", options.members - 1));
    let ban = format!("/_matrix/client/v3/rooms/{}/ban", matrix::encode(&room));
    setup::parallel(target, options.members as usize - 1, {
        let (user, ban) = (user.clone(), ban.clone());
        move |mut connection, index| {
            let (user, ban) = (user.clone(), ban.clone());
            async move {
                let body = json!({ "user_id": format!("@member{index}:far.example.org"), "reason": "to be in a list" });
                let body = Some(Bytes::from(body.to_string()));
                let banned = connection.request(Method::POST, &ban, Some(&user.authorization), body).await;
                (connection, banned.and_then(crate::client::Answer::ok))
            }
        }
    })
    .await?;
    let mut connection = setup::connection(target, 0);
    let mut processes = setup::processes(target);
    if let Some(command) = &options.before_measuring {
        progress(command);
        let status = tokio::process::Command::new("sh").arg("-c").arg(command).status().await?;
        if !status.success() {
            bail!("`{command}` failed: {status}");
        }
        matrix::wait_until_ready(&mut connection, 3_000, Duration::from_millis(20)).await?;
        processes.server.retain(|pid| process::resident_bytes(&[*pid]).is_ok());
    }
    for (what, path, lists) in [
        ("members, the first list", format!("/_matrix/client/v3/rooms/{}/members", matrix::encode(&room)), 1),
        ("members", format!("/_matrix/client/v3/rooms/{}/members", matrix::encode(&room)), options.lists),
        (
            "members, of one membership",
            format!("/_matrix/client/v3/rooms/{}/members?membership=ban", matrix::encode(&room)),
            options.lists,
        ),
    ] {
        let meter = Meter::start(&processes)?;
        let (mut samples, mut bytes) = (Samples::default(), 0);
        for _ in 0..lists {
            let started = Instant::now();
            bytes = list(&mut connection, &user, &path, options.members).await?;
            samples.add(started.elapsed());
        }
        let mut report = Report::new(what);
        report.count("members", options.members.into()).count("bytes", bytes as u64).count("lists", lists.into());
        report.latencies("latency", samples).cost(meter.stop()?, "list", lists.into());
        report.memory("server_memory", process::resident_bytes(&processes.server)?);
        report.print(target.json);
    }
    Ok(())
}

/// Asks for a list and counts the members in it, without reading it as JSON: that would be measured, too.
async fn list(connection: &mut crate::client::Connection, user: &User, path: &str, members: u32) -> Result<usize> {
    let body = connection.request(Method::GET, path, Some(&user.authorization), None).await?.ok()?;
    let found = body.windows(13).filter(|window| window == b"\"membership\":").count();
    // A member event may say the membership of who reads it, too.
    if found < members as usize - 1 {
        bail!("the list has {found} of {members} members");
    }
    Ok(body.len())
}
