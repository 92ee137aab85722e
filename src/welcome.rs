//! What a server says when it is ready.

use std::fmt::Write as _;

use crate::{
    Server,
    config::{Config, Registration},
};

/// The text: where to connect, how to make the first administrator, and what to change before others can reach the server.
///
/// `program` is how the program was called.
#[must_use]
pub fn text(server: &Server, config: &Config, program: &str) -> String {
    let names: Vec<String> = config.server.names_in_force().iter().map(ToString::to_string).collect();
    let addresses: Vec<String> = server.addresses().iter().map(ToString::to_string).collect();
    let mut text = format!("SwiftChat is ready as {}.\n\n", names.join(", "));
    let mut say = |what: &str, how: &str| {
        let _ = writeln!(text, "  {what:<22}{how}");
    };
    say("Clients connect to", &addresses.join(", "));
    say("First administrator", &format!("{program} user create --admin NAME"));
    say(
        "Registration",
        match (config.registration(), config.is_private()) {
            (Registration::Open, true) => "open: anyone on this machine",
            (Registration::Open, false) => "open: anyone",
            (Registration::Token, _) => "with a registration token",
            (Registration::Closed, _) => "closed (`accounts.registration`)",
        },
    );
    if config.federates() {
        say("Other servers", &format!("share rooms; whether they find this one tells {program} check-federation"));
    }
    if config.server.names.is_empty() {
        text.push_str(
            "\n  This server is called \"localhost\" and is for trying things out. A server that others can reach needs its own \
             name\n  from its first day, because a name cannot be changed: set `server.names`, `listeners` and \
             `accounts.registration`\n  in config.toml (the one in the repository shows every option), with a new data \
             folder.\n",
        );
    }
    text
}
