//! A server in a process of its own, so that what it takes is its own.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use storage::Options;
use test_kit::{Authority, Http, Synapse, TestDatabase, loopback_address};

/// A server that joins: where it is asked, and its process.
pub(crate) struct Joiner {
    pub(crate) label: String,
    pub(crate) name: String,
    pub(crate) http: Http,
    pub(crate) pid: u32,
    _runs: Runs,
}

enum Runs {
    Ours { _program: Program, _folder: tempfile::TempDir, _database: Box<TestDatabase> },
    Synapse { _synapse: Box<Synapse> },
}

/// Our program, killed at the end.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Joiner {
    /// Our program.
    pub(crate) async fn ours(authority: &Authority, database: TestDatabase) -> Self {
        let address = loopback_address();
        let name = format!("{address}:8448");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (label, url) = match &database.options {
            Options::Sqlite { path, .. } => ("SwiftChat, SQLite", format!("sqlite:{}", path.display())),
            Options::Postgres { url, .. } => ("SwiftChat, PostgreSQL", url.clone()),
        };
        let certificate = authority.certify(&[&address.to_string()]);
        let config = format!(
            "[server]\nnames = [\"{name}\"]\n\
             [[listeners]]\naddress = \"{address}:8008\"\n\
             [[listeners]]\naddress = \"{name}\"\ntls = {{ certificate = {:?}, key = {:?} }}\n\
             [storage]\ndatabase = \"{url}\"\n\
             [accounts]\nregistration = \"open\"\n\
             [federation]\nenabled = true\nnotaries = []\n\
             [unsafe]\ncheap_password_hashing = true\nrate_limits_off = true\nopen_registration = true\n\
             federation_extra_authorities = [{:?}]\noutgoing_private_networks = [\"127.0.0.0/8\"]\n",
            certificate.certificate,
            certificate.key,
            authority.file(),
        );
        fs::write(folder.path().join("config.toml"), config).expect("the folder can be written");
        let program = Program(start(folder.path()));
        let pid = program.0.id();
        let http = Http::new(&format!("http://{address}:8008"));
        let runs = Runs::Ours { _program: program, _folder: folder, _database: Box::new(database) };
        let joiner = Self { label: label.to_owned(), name, http, pid, _runs: runs };
        joiner.wait().await;
        joiner
    }

    /// A Synapse on SQLite.
    pub(crate) async fn synapse(authority: &Authority, python: &Path) -> Self {
        let synapse = Synapse::start_by(python.to_owned(), authority).await;
        Self {
            label: "Synapse, SQLite".to_owned(),
            name: synapse.name().to_string(),
            http: synapse.http().clone(),
            pid: synapse.pid(),
            _runs: Runs::Synapse { _synapse: Box::new(synapse) },
        }
    }

    /// Waits until it answers.
    async fn wait(&self) {
        for _ in 0..300 {
            if self.http.send("GET", b"/_matrix/client/versions", None, None, Vec::new()).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} does not start", self.label);
    }

    /// Its memory by a line of its status, in MiB.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the process runs");
        let found =
            status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')?.split_whitespace().next());
        found.and_then(|number| number.parse::<u64>().ok()).expect("the status tells of memory") / 1_024
    }

    /// Counts the peak of its memory from here.
    pub(crate) fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid), "5").expect("the peak of memory can be set back");
    }

    /// The processor time that it has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the process runs");
        let (_, fields) = stat.rsplit_once(") ").expect("proc(5)");
        // Of itself, in user and in system mode: fields 14 and 15, counted from the third; in hundredths of a second.
        let ticks =
            fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
        Duration::from_millis(ticks * 10)
    }
}

/// The `swiftchat` that was built with this program.
fn start(folder: &Path) -> Child {
    let program = std::env::current_exe().expect("this program's path").with_file_name("swiftchat");
    assert!(program.exists(), "{} is not built: cargo build --release -p swiftchat", program.display());
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SWIFTCHAT_")) {
        command.env_remove(name);
    }
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}
