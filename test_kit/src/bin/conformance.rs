//! Writes or checks the conformance page and the advertised releases.
//!
//! ```text
//! cargo run -p test_kit --bin conformance -- --write      writes both files
//! cargo run -p test_kit --bin conformance -- --check      fails when one is stale
//! cargo run -p test_kit --bin conformance -- --url URL    prints the page for another server
//! ```

use std::{fs, process::ExitCode};

use test_kit::{
    Http,
    conformance::{PAGE, generate, probe, probed, repository, table},
};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (write, check, url) = match arguments.as_slice() {
        ["--write"] => (true, false, None),
        ["--check"] => (false, true, None),
        ["--url", url] => (false, false, Some(*url)),
        _ => {
            eprintln!("usage: conformance --write | --check | --url URL");
            return ExitCode::FAILURE;
        }
    };
    let probes = match url {
        Some(url) => probe(&Http::new(url), table()).await,
        None => {
            let federation = Box::pin(probed()).await;
            probe(federation.server("hs1").http(), table()).await
        }
    };
    let files = match generate(&probes) {
        Ok(files) => files,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::FAILURE;
        }
    };
    let mut stale = false;
    for (file, text) in files {
        let path = repository().join(file);
        if write {
            if let Err(error) = fs::write(&path, text) {
                eprintln!("{file}: {error}");
                return ExitCode::FAILURE;
            }
        } else if check {
            if fs::read_to_string(&path).unwrap_or_default() != text {
                eprintln!("{file} is stale: run `cargo run -p test_kit --bin conformance -- --write`");
                stale = true;
            }
        } else if file == PAGE {
            println!("{text}");
        }
    }
    if stale { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
