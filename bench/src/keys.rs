//! `bench keys`: the keys of many devices, asked for and claimed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use vodozemac::olm::Account;

use crate::{
    Target,
    client::Connection,
    matrix::{self, User},
    percentiles::Samples,
    process::Meter,
    report::{Report, progress},
    setup::{self, Plan},
};

/// Options of `bench keys`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Users whose keys are asked for at once.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    users: u32,
    /// Devices with keys of each user.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    devices: u32,
    /// One-time keys of each device, all of which are claimed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    one_time_keys: u32,
    /// Questions for the keys of all users, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    queries: u32,
    /// Devices of which a request claims a key.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    claimed_at_once: u32,
    /// Connections that claim.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
}

/// A device with keys.
#[derive(Clone, Debug)]
struct Device {
    user_id: String,
    device_id: String,
}

/// Runs the benchmark.
pub(crate) async fn run(target: &Target, options: &Options) -> Result<()> {
    let users = options.users as usize;
    let world = setup::build(target, Plan { users, rooms: 0, members: 0, messages: 0, text_bytes: 0 })
        .await
        .context("setup")?;
    let devices: Arc<[Device]> = make_devices(target, &world.users, options).await?.into();

    progress("asking for all keys");
    let asker = &world.users[0];
    let mut report = Report::new("keys");
    report.count("users", options.users.into()).count("devices", devices.len() as u64);
    query_all(target, asker, &world.users, options, &mut report).await?;

    progress("claiming all one-time keys");
    claim_all(target, asker, &devices, options, &mut report).await?;
    report.print(target.json);
    Ok(())
}

/// Logs the devices of all users in, each with keys.
async fn make_devices(target: &Target, users: &[User], options: &Options) -> Result<Vec<Device>> {
    let of_user = options.devices as usize;
    let count = users.len() * of_user;
    progress(&format!("logging in {count} devices with keys"));
    let users: Arc<[User]> = users.into();
    let one_time_keys = options.one_time_keys as usize;
    setup::parallel(target, count, move |mut connection, index| {
        let user_id = users[index / of_user].id.clone();
        async move {
            let device = make_device(&mut connection, user_id, one_time_keys).await;
            (connection, device)
        }
    })
    .await
}

async fn make_device(connection: &mut Connection, user_id: String, one_time_keys: usize) -> Result<Device> {
    let (user, device_id) = matrix::log_in(connection, &user_id).await?;
    let mut account = Account::new();
    account.generate_one_time_keys(one_time_keys);
    let signer = format!("ed25519:{device_id}");
    // Without a preserved order, what `serde_json` writes of texts is canonical JSON.
    let signed = |mut object: Value| {
        let signature = account.sign(object.to_string()).to_base64();
        object["signatures"] = json!({ &user_id: { &signer: signature } });
        object
    };
    let keys = account.identity_keys();
    let device_keys = signed(json!({
        "user_id": user_id, "device_id": device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": { &signer: keys.ed25519.to_base64(), format!("curve25519:{device_id}"): keys.curve25519.to_base64() },
    }));
    let one_time: Map<String, Value> = (account.one_time_keys().into_iter())
        .map(|(id, key)| (format!("signed_curve25519:{}", id.to_base64()), signed(json!({ "key": key.to_base64() }))))
        .collect();
    let upload = json!({ "device_keys": device_keys, "one_time_keys": one_time });
    matrix::post(connection, &user, "keys/upload", Bytes::from(upload.to_string()))
        .await
        .context("cannot upload keys")?;
    Ok(Device { user_id, device_id })
}

async fn query_all(
    target: &Target,
    asker: &User,
    users: &[User],
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let devices = users.len() * options.devices as usize;
    let wanted: Map<String, Value> = users.iter().map(|user| (user.id.clone(), json!([]))).collect();
    let body = Bytes::from(json!({ "device_keys": wanted }).to_string());
    let mut connection = setup::connection(target, 0);
    let mut samples = Samples::default();
    let mut bytes = 0;
    let meter = Meter::start(&setup::processes(target))?;
    for _ in 0..options.queries {
        let started = Instant::now();
        let answer = matrix::post(&mut connection, asker, "keys/query", body.clone()).await?;
        samples.add(started.elapsed());
        bytes = answer.len();
        let shown = answer.windows(12).filter(|window| *window == b"\"curve25519:").count();
        ensure!(shown == devices, "{shown} of {devices} devices were shown");
    }
    let cost = meter.stop()?;
    report.count("answer_bytes", bytes as u64).latencies("query", samples);
    report.cost(cost, "query", options.queries.into());
    Ok(())
}

async fn claim_all(
    target: &Target,
    asker: &User,
    devices: &Arc<[Device]>,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let at_once = options.claimed_at_once as usize;
    let requests_each_round = devices.len().div_ceil(at_once);
    let requests = requests_each_round * options.one_time_keys as usize;
    let next = Arc::new(AtomicUsize::new(0));
    let mut claiming = JoinSet::new();
    let meter = Meter::start(&setup::processes(target))?;
    for index in 0..options.connections {
        let (next, devices, asker) = (next.clone(), devices.clone(), asker.clone());
        let mut connection = setup::connection(target, index as usize);
        claiming.spawn(async move {
            let (mut samples, mut claimed) = (Samples::default(), 0);
            loop {
                let request = next.fetch_add(1, Ordering::Relaxed);
                if request >= requests {
                    return Ok::<_, anyhow::Error>((samples, claimed));
                }
                let first = request % requests_each_round * at_once;
                let wanted = &devices[first..devices.len().min(first + at_once)];
                let started = Instant::now();
                claimed += claim(&mut connection, &asker, wanted).await?;
                samples.add(started.elapsed());
            }
        });
    }
    let (mut samples, mut claimed) = (Samples::default(), 0);
    while let Some(done) = claiming.join_next().await {
        let (of_connection, keys) = done.context("a connection failed")??;
        samples.merge(of_connection);
        claimed += keys;
    }
    let cost = meter.stop()?;
    let expected = devices.len() * options.one_time_keys as usize;
    ensure!(claimed == expected, "{claimed} of {expected} keys were claimed");
    report.count("claim_requests", requests as u64).count("claims", claimed as u64);
    report.number("claims_per_s", claimed as f64 / cost.wall.as_secs_f64());
    report.latencies("claim", samples).cost(cost, "claim", claimed as u64);
    Ok(())
}

/// Claims a key of each device; gives how many there were.
async fn claim(connection: &mut Connection, asker: &User, devices: &[Device]) -> Result<usize> {
    let mut wanted: Map<String, Value> = Map::new();
    for device in devices {
        wanted.entry(&device.user_id).or_insert_with(|| json!({}))[&device.device_id] = json!("signed_curve25519");
    }
    let body = Bytes::from(json!({ "one_time_keys": wanted }).to_string());
    let answer = matrix::post(connection, asker, "keys/claim", body).await?;
    Ok(answer.windows(19).filter(|window| *window == b"\"signed_curve25519:").count())
}
