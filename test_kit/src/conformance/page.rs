//! The page `docs/conformance.md`.

use std::fmt::Write as _;

use super::{LOGIN_FLOWS, Markers, Operation, Presence, Probes, Releases, Table, optional};

/// Writes the page.
#[must_use]
pub fn page(table: &Table, probes: &Probes, markers: &Markers, releases: &Releases) -> String {
    let mut page = String::from(
        "# Conformance\n\n\
         Which endpoints of the Matrix specification the server answers, and which test shows it. Written by\n\
         `cargo run -p test_kit --bin conformance -- --write` from `tests/conformance/endpoints.json` and a running server; a test\n\
         fails when it is stale. A test says what it shows by a line `// shows: sendMessage, server-server:getEvent` above it.\n\n\
         An endpoint *answers* when a request for it gets something else than `M_UNRECOGNIZED`. **untested** marks one that answers,\n\
         but which no whole-server test shows yet. ○ marks one that belongs to a way to log in that the specification leaves to the\n\
         server's choice and that this one does not offer.\n\n",
    );
    summary(&mut page, table, probes, markers);
    release_list(&mut page, releases);
    for (api, title) in [("client-server", "Client-server API"), ("server-server", "Server-server API")] {
        let _ = write!(
            page,
            "\n## {title}\n\n| | endpoint | operation | since | shown by |\n| --- | --- | --- | --- | --- |\n"
        );
        for operation in of_api(table, api) {
            row(&mut page, operation, probes, markers);
        }
    }
    page.push_str(
        "\n## What others answer\n\n\
         Application services, identity servers and push gateways are asked by a homeserver, so it has none of these endpoints; the\n\
         tests named here show that it asks as it should.\n\n",
    );
    for api in ["application-service", "identity", "push-gateway"] {
        let shown = of_api(table, api).filter(|operation| markers.contains_key(&operation.name())).count();
        let _ = writeln!(page, "- {api}: {shown} of {} endpoints shown", of_api(table, api).count());
        for operation in of_api(table, api) {
            for test in markers.get(&operation.name()).into_iter().flatten() {
                let _ = writeln!(page, "  - `{} {}`: {test}", operation.method, operation.path);
            }
        }
    }
    page
}

fn summary(page: &mut String, table: &Table, probes: &Probes, markers: &Markers) {
    page.push_str("| API | endpoints | answered | of these shown by a test |\n| --- | ---: | ---: | ---: |\n");
    for api in ["client-server", "server-server"] {
        let answered: Vec<_> = of_api(table, api).filter(|operation| answers(operation, probes)).collect();
        let shown = answered.iter().filter(|operation| markers.contains_key(&operation.name())).count();
        let _ = writeln!(page, "| {api} | {} | {} | {shown} |", of_api(table, api).count(), answered.len());
    }
}

fn release_list(page: &mut String, releases: &Releases) {
    page.push_str("\n## Releases\n\n");
    let newest = releases.complete.last().map_or("none".to_owned(), |release| format!("**{release}**"));
    let _ = writeln!(
        page,
        "`GET /_matrix/client/versions` advertises a release when the endpoints that it and all releases since v1.1 added to the\n\
         client-server API exist. The newest such release is {newest}.\n",
    );
    for flow in LOGIN_FLOWS {
        let names: Vec<String> = flow.operations.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(
            page,
            "A server that does not offer `{}` needs no {}: {}.\n",
            flow.name,
            names.join(", no "),
            flow.reason,
        );
    }
    for (release, missing) in &releases.incomplete {
        let missing: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
        let lacks = if missing.is_empty() { "nothing of its own".to_owned() } else { missing.join(", ") };
        let _ = writeln!(page, "- {release} lacks {lacks}");
    }
}

fn row(page: &mut String, operation: &Operation, probes: &Probes, markers: &Markers) {
    let presence = probes.get(&operation.name()).copied().unwrap_or(Presence::Missing);
    let tests: Vec<String> =
        markers.get(&operation.name()).into_iter().flatten().map(|test| format!("`{test}`")).collect();
    let (mark, shown) = match (presence, tests.is_empty()) {
        (Presence::Answers, true) => ("✓", "**untested**".to_owned()),
        (Presence::Answers, false) => ("✓", tests.join("<br>")),
        (Presence::Missing, _) => ("–", String::new()),
        (Presence::NotOffered, _) => {
            let flow = optional::flow_of(operation).map_or("", |flow| flow.name);
            ("○", [vec![format!("`{flow}` is not offered")], tests].concat().join("<br>"))
        }
    };
    let _ = writeln!(
        page,
        "| {mark} | `{} {}` | {}{} | {} | {shown} |",
        operation.method,
        operation.path,
        operation.operation,
        if operation.deprecated { " (deprecated)" } else { "" },
        operation.added.as_deref().map_or("r0".to_owned(), |release| format!("v{release}")),
    );
}

fn of_api<'a>(table: &'a Table, api: &'a str) -> impl Iterator<Item = &'a Operation> {
    table.operations.iter().filter(move |operation| operation.api == api)
}

fn answers(operation: &Operation, probes: &Probes) -> bool {
    probes.get(&operation.name()) == Some(&Presence::Answers)
}
