//! The built server, or one that runs already.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, timeout},
};

/// How long a server may take to answer after its start, and to end.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// All servers of a test program may share one PostgreSQL database: they run one after the other.
static TURN: Mutex<()> = Mutex::const_new(());

/// How a server is ended.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// In order (SIGTERM).
    Terminate,
    /// At once, as a crash (SIGKILL).
    Kill,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Kill => "KILL",
        }
    }
}

/// A server that answers. One that was started here ends when this is dropped.
pub struct Server {
    /// The address for clients.
    pub url: String,
    own: Option<Own>,
    _turn: MutexGuard<'static, ()>,
}

/// A process of our own; its folder goes when it goes.
struct Own {
    child: Child,
    config: PathBuf,
    _folder: TempDir,
}

impl Server {
    /// Starts the binary of `SWIFTCHAT_BIN` on a free port with a new data folder, on the database of
    /// `SWIFTCHAT_TEST_DATABASE`, else on SQLite. Takes the server at `SWIFTCHAT_TEST_SERVER` if that is set.
    pub async fn start() -> Result<Self> {
        let turn = TURN.lock().await;
        if let Ok(url) = env::var("SWIFTCHAT_TEST_SERVER") {
            return Ok(Self { url: url.trim_end_matches('/').to_owned(), own: None, _turn: turn });
        }
        let folder = tempfile::Builder::new().prefix("swiftchat-matrix-sdk-").tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = folder.path().join("config.toml");
        fs::write(&config, configuration(folder.path(), &address.to_string()))?;
        let child = spawn(&config)?;
        let mut server =
            Self { url: format!("http://{address}"), own: Some(Own { child, config, _folder: folder }), _turn: turn };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Ends the server in the way of `signal`. A server that was not started here is left to [`Self::start_again`].
    pub async fn stop(&mut self, signal: Signal) -> Result<()> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let pid = own.child.id().context("the server has ended by itself")?;
        let sent = Command::new("kill").args(["-s", signal.name(), &pid.to_string()]).status().await?;
        ensure!(sent.success(), "cannot signal the server");
        let status = timeout(WAIT_MAX, own.child.wait()).await.context("the server does not end")??;
        if matches!(signal, Signal::Terminate) {
            ensure!(status.success(), "the server ended with {status} after SIGTERM");
        }
        Ok(())
    }

    /// Starts the stopped server again, on the same port with the same data. For a server that was not started here the shell
    /// command of `SWIFTCHAT_TEST_RESTART` does it; it finds the name of the signal in `SIGNAL`.
    pub async fn start_again(&mut self, signal: Signal) -> Result<()> {
        match &mut self.own {
            Some(own) => own.child = spawn(&own.config)?,
            None => {
                let command = env::var("SWIFTCHAT_TEST_RESTART").context(
                    "SWIFTCHAT_TEST_SERVER is set, but SWIFTCHAT_TEST_RESTART does not say how to restart it",
                )?;
                let status = Command::new("sh").args(["-c", &command]).env("SIGNAL", signal.name()).status().await?;
                ensure!(status.success(), "`{command}` failed: {status}");
            }
        }
        self.wait_until_ready().await
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while Instant::now() < deadline {
            if let Some(own) = &mut self.own
                && let Some(status) = own.child.try_wait()?
            {
                bail!("the server ended before it answered: {status}");
            }
            if self.answers().await.unwrap_or(false) {
                return Ok(());
            }
            sleep(Duration::from_millis(10)).await;
        }
        bail!("the server at {} does not answer", self.url)
    }

    /// Asks for `/versions`, with no more HTTP than that needs.
    async fn answers(&self) -> Result<bool> {
        let authority = self.url.strip_prefix("http://").context("only plain http")?;
        let mut stream = TcpStream::connect(authority).await?;
        let request =
            format!("GET /_matrix/client/versions HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; 12];
        timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await??;
        Ok(&answer == b"HTTP/1.1 200")
    }
}

fn spawn(config: &Path) -> Result<Child> {
    let binary = env::var_os("SWIFTCHAT_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/debug/swiftchat"), PathBuf::from);
    Command::new(&binary)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        // What it logs is shown by a test that fails.
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}

fn configuration(folder: &Path, address: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = format!(
        "[server]\ndata_folder = {}\nlog = \"warn\"\n\
         [[listeners]]\naddress = {}\n\
         [accounts]\nregistration = \"open\"\n\
         [unsafe]\ncheap_password_hashing = true\nrate_limits_off = true\n",
        quoted(&folder.join("data").to_string_lossy()),
        quoted(address),
    );
    if let Ok(database) = env::var("SWIFTCHAT_TEST_DATABASE") {
        text.push_str(&format!("[storage]\ndatabase = {}\n", quoted(&database)));
    }
    text
}
