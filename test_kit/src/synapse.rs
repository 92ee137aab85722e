//! A real Synapse as the other server.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use ruma::{OwnedServerName, ServerName};
use serde_json::{Value, json};

use crate::{Authority, Http, TestUser, loopback_address};

/// How many lines of its log are shown when a test fails.
const LOG_LINES_MAX: usize = 100;

/// A Synapse on SQLite in a process of its own, at an address of loopback of its own, whose name is that address and port 8448.
///
/// Anyone may register, nothing is rate limited, and who does not answer is asked again soon. It trusts the authority of the tests.
#[derive(Debug)]
pub struct Synapse {
    name: OwnedServerName,
    http: Http,
    python: PathBuf,
    folder: tempfile::TempDir,
    process: Child,
}

impl Synapse {
    /// Starts one, by the Python that the environment names.
    ///
    /// # Panics
    ///
    /// When it is not installed (`tests/parts/install synapse`) or does not start.
    pub async fn start(authority: &Authority) -> Self {
        let python = std::env::var_os("SWIFTCHAT_TEST_SYNAPSE").expect(
            "SWIFTCHAT_TEST_SYNAPSE names the Python of an installed Synapse; `tests/run synapse` installs it and sets this",
        );
        Self::start_by(python.into(), authority).await
    }

    /// Starts one, by this Python.
    ///
    /// # Panics
    ///
    /// When that has no Synapse, or it does not start.
    pub async fn start_by(python: PathBuf, authority: &Authority) -> Self {
        let address = loopback_address();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = OwnedServerName::try_from(format!("{address}:8448")).expect("an address and a port are a name");
        let config = config(&name, &address.to_string(), authority, folder.path());
        fs::write(folder.path().join("homeserver.yaml"), config.to_string()).expect("the folder can be written");
        fs::write(folder.path().join("log.yaml"), log_config(folder.path()).to_string())
            .expect("the folder can be written");
        let keys = command(&python, folder.path())
            .arg("--generate-keys")
            .stdout(Stdio::null())
            .status()
            .expect("Synapse runs");
        assert!(keys.success(), "Synapse makes its keys");
        let process = command(&python, folder.path()).spawn().expect("Synapse runs");
        let http = Http::new(&format!("http://{}", SocketAddr::new(address, 8_008)));
        let mut synapse = Self { name, http, python, folder, process };
        synapse.wait().await;
        synapse
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// A client for it.
    #[must_use]
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// The number of its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Registers a user.
    pub async fn user(&self, name: &str) -> TestUser {
        crate::register(&self.http, name).await
    }

    /// Ends it in order.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub fn stop(&mut self) {
        let asked = Command::new("kill").arg(self.process.id().to_string()).status();
        assert!(asked.expect("`kill` runs").success(), "Synapse runs");
        self.process.wait().expect("a child is waited for");
    }

    /// Starts it again after [`stop`](Self::stop), with the same data and address.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub async fn go_on(&mut self) {
        self.process = command(&self.python, self.folder.path()).spawn().expect("Synapse runs");
        self.wait().await;
    }

    /// Waits until it answers.
    async fn wait(&mut self) {
        for _ in 0..1_200 {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("Synapse ended with {status}:\n{}", self.log());
            }
            if let Ok(answer) = self.http.send("GET", b"/_matrix/client/versions", None, None, Vec::new()).await
                && answer.status.is_success()
            {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("Synapse did not start in a minute:\n{}", self.log());
    }

    /// How many requests it made of other servers whose line in its log has this text.
    #[must_use]
    pub fn times_asked(&self, what: &str) -> usize {
        let log = fs::read_to_string(self.folder.path().join("synapse.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("Completed request: ") && line.contains(what)).count()
    }

    /// The newest lines of its log.
    fn log(&self) -> String {
        let of = |file: &str| fs::read_to_string(self.folder.path().join(file)).unwrap_or_default();
        let (log, errors) = (of("synapse.log"), of("stderr.log"));
        let lines: Vec<&str> = errors.lines().chain(log.lines()).collect();
        lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n")
    }
}

impl Drop for Synapse {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- The end of the log of Synapse {}:\n{}", self.name, self.log());
        }
        // All of it, where the logs of tests are kept.
        if let Some(folder) = std::env::var_os("SWIFTCHAT_TEST_LOGS") {
            let file = Path::new(&folder).join(format!("synapse-{}.log", self.name.host()));
            let _ = fs::copy(self.folder.path().join("synapse.log"), file);
        }
    }
}

/// The program with its configuration.
fn command(python: &Path, folder: &Path) -> Command {
    let errors = fs::OpenOptions::new().create(true).append(true).open(folder.join("stderr.log"));
    let mut command = Command::new(python);
    command.args(["-m", "synapse.app.homeserver", "--config-path"]).arg(folder.join("homeserver.yaml"));
    command.stderr(errors.expect("the folder can be written")).current_dir(folder);
    command
}

fn config(name: &ServerName, address: &str, authority: &Authority, folder: &Path) -> Value {
    let certificate = authority.certify(&[address]);
    let unlimited = json!({"per_second": 1_000_000, "burst_count": 1_000_000});
    let mut config = json!({
        "server_name": name,
        "report_stats": false,
        "signing_key_path": folder.join("signing.key"),
        "media_store_path": folder.join("media"),
        "log_config": folder.join("log.yaml"),
        "pid_file": folder.join("pid"),
        "macaroon_secret_key": "of the tests",
        "form_secret": "of the tests",
        "registration_shared_secret": crate::server::SHARED_SECRET,
        "enable_registration": true,
        "enable_registration_without_verification": true,
        "bcrypt_rounds": 4,
        "presence": {"enabled": true},
        "allow_public_rooms_over_federation": true,
        "room_list_publication_rules": [{"action": "allow"}],
        "database": {"name": "sqlite3", "args": {"database": folder.join("homeserver.db")}},
        "tls_certificate_path": certificate.certificate,
        "tls_private_key_path": certificate.key,
        "listeners": [
            {"port": 8_008, "bind_addresses": [address], "type": "http", "resources": [{"names": ["client", "federation"]}]},
            {"port": 8_448, "bind_addresses": [address], "type": "http", "tls": true,
             "resources": [{"names": ["federation"]}]},
        ],
        "federation_custom_ca_list": [authority.file()],
        "federation_verify_certificates": true,
        "federation_ip_range_blacklist": [],
        "ip_range_blacklist": [],
        "trusted_key_servers": [],
        "suppress_key_server_warning": true,
        "federation": {
            "destination_min_retry_interval": 100,
            "destination_retry_multiplier": 2,
            "destination_max_retry_interval": 500,
        },
        "rc_federation": {"window_size": 1_000, "sleep_limit": 1_000_000, "sleep_delay": 1,
                          "reject_limit": 1_000_000, "concurrent": 100},
        "rc_login": {"address": unlimited, "account": unlimited, "failed_attempts": unlimited},
        "rc_joins": {"local": unlimited, "remote": unlimited},
        "rc_invites": {"per_room": unlimited, "per_user": unlimited, "per_issuer": unlimited},
        "rc_presence": {"per_user": unlimited},
    });
    for kind in [
        "rc_message",
        "rc_registration",
        "rc_admin_redaction",
        "rc_joins_per_room",
        "rc_key_requests",
        "rc_third_party_invite",
        "rc_media_create",
        "rc_room_creation",
        "rc_reports",
        "rc_user_directory",
        "rc_profile",
    ] {
        config[kind] = unlimited.clone();
    }
    config
}

fn log_config(folder: &Path) -> Value {
    json!({
        "version": 1,
        "disable_existing_loggers": false,
        "formatters": {"line": {"format": "%(asctime)s %(name)s %(levelname)s %(request)s %(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": folder.join("synapse.log"), "formatter": "line"}},
        "root": {"level": "INFO", "handlers": ["file"]},
    })
}
