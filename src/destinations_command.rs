//! `swiftchat destinations`: how it stands with other servers, from the command line, on the database itself, whether the server runs or not.

use anyhow::ensure;
use swiftchat::{DestinationRow, Tools, config::Config};

use crate::command_line::DestinationsCommand;

/// Servers that are read at once.
const SERVERS_AT_ONCE: u32 = 1_000;

/// Lists them, or does what is asked for one.
pub(crate) async fn run(config: &Config, command: Option<DestinationsCommand>, failing: bool) -> anyhow::Result<()> {
    let tools = Tools::open(config).await?;
    let outcome = match command {
        None => list(config, &tools, failing).await,
        Some(DestinationsCommand::Reset { name }) => reset(&tools, &name).await,
    };
    tools.close().await;
    outcome
}

async fn list(config: &Config, tools: &Tools, failing: bool) -> anyhow::Result<()> {
    let lists = config.federation.server_lists();
    let (accounts, mut after) = (tools.accounts(), String::new());
    let now_ms = accounts.storage().clock().now_ms();
    let mut count = 0;
    loop {
        let rows = accounts.storage().list_destinations(&after, SERVERS_AT_ONCE).await?;
        let Some(last) = rows.last() else { break };
        after = last.server.to_string();
        for row in rows {
            if !accounts.servers().is_local(&row.server) && (!failing || row.outage.is_some() || row.behind.is_some()) {
                println!("{}", line(&row, lists.allow(&row.server), now_ms));
                count += 1;
            }
        }
    }
    if count == 0 {
        println!(
            "{}",
            if failing { "All other servers have everything." } else { "No rooms are shared with other servers." }
        );
    }
    Ok(())
}

/// How it stands with a server, in words.
fn line(row: &DestinationRow, is_allowed: bool, now_ms: i64) -> String {
    let mut line = format!("{}  shared rooms: {}", row.server, row.rooms);
    if let Some((_, rooms)) = row.behind {
        line.push_str(&format!(", behind in: {rooms}"));
    }
    if row.waiting_edus > 0 {
        line.push_str(&format!(", messages to devices: {}", row.waiting_edus));
    }
    match &row.outage {
        _ if !is_allowed => line.push_str("\n    denied: the configuration does not let this server federate with it"),
        None if row.behind.is_some() => line.push_str("\n    catching up"),
        None => line.push_str("\n    has everything"),
        Some(outage) => line.push_str(&format!(
            "\n    {} for {}, tried {} times, next try {}\n    {}",
            if outage.is_unreachable { "gives no answer" } else { "does not take what it is sent" },
            duration(now_ms - outage.since_ms),
            outage.tries,
            if outage.next_try_ms > now_ms {
                format!("in {}", duration(outage.next_try_ms - now_ms))
            } else {
                "now".to_owned()
            },
            outage.last_error
        )),
    }
    line
}

async fn reset(tools: &Tools, name: &str) -> anyhow::Result<()> {
    let was_down = tools.accounts().storage().reset_outage(name).await?;
    ensure!(
        was_down,
        "{name} is not known to give no answer; `swiftchat destinations --failing` lists those that do not"
    );
    println!("{name} is tried again in a second, or when the server is started.");
    Ok(())
}

/// A duration in the two largest units that it has.
fn duration(ms: i64) -> String {
    let seconds = ms.max(0) / 1_000;
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_server_is_shown_as_denied() {
        let server = "peer.test".try_into().unwrap();
        let row = DestinationRow { server, rooms: 2, outage: None, behind: None, waiting_edus: 0 };
        assert!(line(&row, true, 0).ends_with("has everything"));
        let denied = line(&row, false, 0);
        assert!(denied.starts_with("peer.test  shared rooms: 2\n    denied"), "{denied}");
    }

    #[test]
    fn durations_have_their_two_largest_units() {
        for (ms, text) in [
            (0, "0 s"),
            (59_999, "59 s"),
            (61_000, "1 min 1 s"),
            (3_600_000 * 5 + 60_000, "5 h 1 min"),
            (86_400_000 * 3 + 3_600_000, "3 d 1 h"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }
}
