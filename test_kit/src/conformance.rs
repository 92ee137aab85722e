//! The specification's endpoints beside what the server does: the table, the prober, the page, the advertised releases.

mod markers;
mod optional;
mod page;
mod probe;
mod releases;
mod schema;
mod table;

use std::path::{Path, PathBuf};

pub use self::{
    markers::{Markers, collect},
    optional::{LOGIN_FLOWS, LoginFlow},
    page::page,
    probe::{Presence, Probes, fill_path, probe},
    releases::{Releases, source},
    schema::{Schema, violation},
    table::{Body, Operation, Parameter, Table, table},
};

use storage::testing::TestDatabase;

use crate::{ServerOptions, TestFederation};

/// Where the page is, from the root of the repository.
pub const PAGE: &str = "docs/conformance.md";
/// Where the advertised releases are, from the root of the repository.
pub const RELEASES: &str = "client_api/src/releases.rs";

/// The root of the repository that this was built in.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// The server that is probed, `hs1`: one that federates, and whose name is delegated.
///
/// # Panics
///
/// When it does not start.
pub async fn probed() -> TestFederation {
    let mut options = ServerOptions::default();
    let name = |name: &str| ruma::OwnedServerName::try_from(name).expect("a server name");
    options.config.federation.delegates.insert(name("hs1"), name("hs1:8448"));
    let mut federation = TestFederation::empty();
    federation.add("hs1", TestDatabase::sqlite(), options).await;
    federation
}

/// What the page and the releases must be for the server that `probes` were made of, as path and text.
///
/// # Errors
///
/// What is wrong with the markers of the tests, in words.
pub fn generate(probes: &Probes) -> Result<Vec<(&'static str, String)>, String> {
    let table = table();
    let markers = collect(&repository(), table)?;
    let releases = Releases::of(table, probes);
    Ok(vec![(PAGE, page(table, probes, &markers, &releases)), (RELEASES, source(&releases))])
}
