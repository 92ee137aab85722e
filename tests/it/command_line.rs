//! The program itself, as a person starts it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use http_body_util::BodyExt as _;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::json;
use test_kit::{Http, eventually};
use tokio::net::TcpStream;

/// The program in `folder`, with nothing of the environment of the tests that could configure it.
fn swiftchat(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swiftchat"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SWIFTCHAT_")) {
        command.env_remove(name);
    }
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command
}

fn run(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = swiftchat(folder, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Whoever needs no input does not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What was said, and whether it went well.
fn said(output: &Output) -> (bool, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Ends with the test, also when it fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server of `folder` and waits for its welcome; gives that and the first address in it.
fn serve(folder: &Path) -> (Running, String, String) {
    serve_as(swiftchat(folder, &[]))
}

/// The same with another command that comes to it.
fn serve_as(mut command: Command) -> (Running, String, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The welcome ends with two empty lines after its last paragraph; the address comes in its first.
    let mut welcome = String::new();
    for line in lines {
        welcome.push_str(&line);
        welcome.push('\n');
        if line.trim_start().starts_with("Registration") {
            break;
        }
    }
    let start = welcome.find("http://").unwrap_or_else(|| panic!("no address in {welcome:?}"));
    let address = welcome[start..].split_whitespace().next().unwrap().to_owned();
    (Running(child), welcome, address)
}

const CONFIG: &str = "[[listeners]]\naddress = \"127.0.0.1:0\"\n[unsafe]\ncheap_password_hashing = true\n";

#[test]
fn a_wrong_configuration_stops_the_start_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), "[server]\nnmes = []\n").unwrap();
    for arguments in [&["check-config"][..], &[], &["serve"], &["user", "create", "alice"]] {
        let (went_well, text) = said(&run(folder.path(), arguments, ""));
        assert!(!went_well, "{arguments:?}");
        assert!(text.starts_with("swiftchat: config.toml:2: `server.nmes` is not an option"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let (went_well, text) = said(&run(folder.path(), &["--config", "missing.toml", "check-config"], ""));
    assert!(!went_well && text.contains("missing.toml"), "{text}");
    let mut command = swiftchat(folder.path(), &["--config", "/dev/null", "check-config"]);
    assert!(said(&command.output().unwrap()).0);
    let (went_well, text) = said(&command.env("SWIFTCHAT_SERVER__LOG_FORMAT", "xml").output().unwrap());
    assert!(!went_well && text.contains("SWIFTCHAT_SERVER__LOG_FORMAT") && text.contains("json"), "{text}");
}

#[test]
fn a_wrong_registration_file_stops_the_start_with_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let config = "[application_services]\nregistrations = [\"irc.yaml\"]\n";
    fs::write(folder.path().join("config.toml"), config).unwrap();
    fs::write(folder.path().join("irc.yaml"), "id: irc\nas_token: secret\n").unwrap();
    for arguments in [&["check-config"][..], &["serve"], &["user", "create", "alice"]] {
        let (went_well, text) = said(&run(folder.path(), arguments, ""));
        assert!(!went_well, "{arguments:?}");
        assert!(text.starts_with("swiftchat: `application_services.registrations`: irc.yaml: "), "{text}");
        assert!(!text.contains("secret") && text.lines().count() == 1, "{text}");
    }
}

// shows: login
#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_is_made_while_the_server_runs_and_can_log_in() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
    let create = ["user", "create", "--admin", "root", "--password-file", "-"];
    let (server, welcome, address) = serve(folder.path());
    assert!(welcome.contains("user create --admin") && welcome.contains("anyone on this machine"), "{welcome}");

    let (went_well, text) = said(&run(folder.path(), &create, "correct horse battery\n"));
    assert!(went_well && text.contains("@root:localhost"), "{text}");
    let (went_well, text) = said(&run(folder.path(), &create, "another password\n"));
    assert!(!went_well && text.contains("--reset"), "{text}");
    let (went_well, _) = said(&run(folder.path(), &["user", "create", "x", "--password-file", "-"], ""));
    assert!(!went_well, "an empty password");

    let identifier = json!({"type": "m.id.user", "user": "root"});
    let body = |password: &str| json!({"type": "m.login.password", "identifier": identifier, "password": password});
    let http = Http::new(&address);
    let login = "/_matrix/client/v3/login";
    http.request("POST", login, None, &body("another password")).await.is_error(403, "M_FORBIDDEN");
    let answer = http.request("POST", login, None, &body("correct horse battery")).await.ok();
    assert_eq!(answer["user_id"], "@root:localhost");
    drop(server);
}

#[test]
fn the_servers_that_share_rooms_are_listed_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
    let (went_well, text) = said(&run(folder.path(), &["destinations"], ""));
    assert!(went_well && text.contains("No rooms are shared"), "{text}");
    let (went_well, text) = said(&run(folder.path(), &["destinations", "--failing"], ""));
    assert!(went_well && text.contains("everything"), "{text}");
    let (went_well, text) = said(&run(folder.path(), &["destinations", "reset", "dead.test"], ""));
    assert!(!went_well && text.contains("dead.test") && text.lines().count() == 1, "{text}");
    let (went_well, text) = said(&run(folder.path(), &["destinations", "--help"], ""));
    assert!(went_well && text.contains("reset") && text.contains("two days"), "{text}");
}

/// SIGTERM is how a machine that goes down asks; what was acknowledged is there after the next start.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_server_in_order() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
    let (mut server, _, address) = serve(folder.path());
    let alice = test_kit::register(&Http::new(&address), "alice").await;
    let since = alice.sync(None).await["next_batch"].as_str().unwrap().to_owned();
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.sync_waiting(Some(&since), 60_000).await }
    });
    // The poll is answered at the end of the server, whether it came before the signal or during the end.
    assert!(Command::new("kill").arg(server.0.id().to_string()).status().unwrap().success());
    let status = tokio::task::spawn_blocking(move || server.0.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    drop(waiting);

    let (_server, _, address) = serve(folder.path());
    assert_eq!(alice.at(&Http::new(&address)).get("/account/whoami").await.ok()["user_id"], "@alice:localhost");
}

/// The server below a limit of open files, set with `ulimit`.
fn below_limit(folder: &Path, limit: &str) -> Command {
    let program = swiftchat(folder, &[]);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit {limit} && exec \"$0\"")).arg(program.get_program());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.current_dir(folder).stdin(Stdio::null());
    shell
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
    let (server, ..) = serve_as(below_limit(folder.path(), "-Sn 200"));
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.0.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut words = line.split_ascii_whitespace();
    let (soft, hard) = (words.next(), words.next());
    assert_eq!(soft, hard);
    assert_ne!(soft, Some("200"), "this machine has no higher limit to raise it to");
}

/// Whoever is connected is served: the database needs files too.
#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_files_do_not_hurt_those_who_are_connected() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
    let (server, _, address) = serve_as(below_limit(folder.path(), "-n 256"));
    let host = address.strip_prefix("http://").unwrap();
    let stream = TcpStream::connect(host).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(host).await.unwrap());
    }
    let files = || fs::read_dir(format!("/proc/{}/fd", server.0.id())).unwrap().count();
    eventually!(files() >= 180);
    for number in 0..10 {
        let body = json!({"username": format!("user{number}"), "password": "p", "auth": {"type": "m.login.dummy"}});
        let request = Request::post("/_matrix/client/v3/register").header("Host", host).body(body.to_string()).unwrap();
        client.ready().await.unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
    }
}
