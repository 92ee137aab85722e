//! `bench rename`: a change of name of somebody who is in many rooms, and sends of others meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    Target,
    matrix::{self, User},
    percentiles::Samples,
    probe::Probe,
    process::Meter,
    report::{Report, progress},
    setup::{self, Plan},
};

/// What the one who is renamed wants of `/sync`: where their member events changed.
const FILTER: &str = r#"{"presence":{"types":[]},"account_data":{"types":[]},"room":{"timeline":{"types":["m.room.member"]},"state":{"types":[]},"ephemeral":{"types":[]},"account_data":{"types":[]}}}"#;
/// The pause between two looks at how far the name has come.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest that a name may take into all rooms.
const PATIENCE: Duration = Duration::from_secs(120);

/// Options of `bench rename`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Rooms that the user is in.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rooms: u32,
    /// Changes of the name, one when the one before is in all rooms.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    renames: u32,
    /// Seconds of sends before, to compare with.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let plan = Plan { users: 1, rooms: options.rooms as usize, members: 1, messages: 0, text_bytes: 0 };
    let renamed = setup::build(target, plan).await?.users.remove(0);
    let other = setup::build(target, Plan { rooms: 1, ..plan }).await?;
    let (sender, room) = (&other.users[0], &other.rooms[0]);

    progress("sending alone");
    let alone = Probe::start(target, sender, room);
    sleep(Duration::from_secs(options.seconds)).await;
    let alone = alone.stop().await?;

    progress("renaming");
    let mut connection = setup::connection(target, 0);
    let query = format!("filter={}&", matrix::encode(FILTER));
    let mut token = matrix::sync(&mut connection, &renamed, &query, 0, None).await?.next_batch;
    let run = setup::run_name();
    let probe = Probe::start(target, sender, room);
    let meter = Meter::start(&setup::processes(target))?;
    let (mut answers, mut everywhere) = (Samples::default(), Samples::default());
    for number in 0..options.renames {
        let name = format!("{run} {number}");
        let started = Instant::now();
        rename(&mut connection, &renamed, &name).await?;
        answers.add(started.elapsed());
        let mut shown = 0;
        while shown < options.rooms as usize {
            let synced = matrix::sync(&mut connection, &renamed, &query, 0, Some(&token)).await?;
            token = synced.next_batch;
            shown += times_in(&synced.body, &name);
            if started.elapsed() > PATIENCE {
                bail!("after {PATIENCE:?} the name is in {shown} rooms");
            }
            sleep(LOOK_EVERY).await;
        }
        everywhere.add(started.elapsed());
    }
    let cost = meter.stop()?;
    let beside = probe.stop().await?;

    let mut report = Report::new("rename");
    report.count("rooms", options.rooms.into()).count("renames", options.renames.into());
    report.latencies("answer", answers).latencies("all_rooms", everywhere);
    report.latencies("send_alone", alone).latencies("send_beside", beside);
    report.cost(cost, "room", u64::from(options.rooms) * u64::from(options.renames));
    report.print(target.json);
    Ok(())
}

async fn rename(connection: &mut crate::client::Connection, user: &User, name: &str) -> Result<()> {
    let path = format!("/_matrix/client/v3/profile/{}/displayname", matrix::encode(&user.id));
    let body = Some(Bytes::from(json!({ "displayname": name }).to_string()));
    connection.request(Method::PUT, &path, Some(&user.authorization), body).await?.ok()?;
    Ok(())
}

/// How many events of an answer show a name; what they had before names another.
fn times_in(answer: &[u8], name: &str) -> usize {
    let shown = format!("\"displayname\":\"{name}\"");
    answer.windows(shown.len()).filter(|window| *window == shown.as_bytes()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_where_they_are_whole() {
        let answer = br#"{"content":{"displayname":"b 1"},"unsigned":{"prev_content":{"displayname":"b 0"}}}"#;
        assert_eq!((times_in(answer, "b 1"), times_in(answer, "b 0"), times_in(answer, "b")), (1, 1, 0));
    }
}
