//! The house keeps its levels: a crate uses crates of lower rows only, and what belongs to one place stays there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The rows, lowest first. Crates of one row do not use each other.
const ROWS: &[&[&str]] = &[
    &["model"],
    &["event_bus", "outbound"],
    &["storage"],
    &["accounts"],
    &["rooms", "media"],
    &["sync", "notifications"],
    // Above its neighbors in the drawing: the one table from errors to Matrix errcodes is there.
    &["web"],
    &["client_api", "federation", "application_services", "domain_api", "admin"],
    &["swiftchat"],
    &["test_kit"],
];

/// Crates that stand for themselves and use none of the others.
const STANDALONE: &[&str] = &["bench", "client"];

/// Who may know a library; everybody may know the others.
const KNOWN_BY: &[(&str, &[&str])] = &[
    ("sqlx", &["storage"]),
    ("redis", &["event_bus"]),
    ("axum", &["web", "client_api", "federation", "application_services", "domain_api", "admin", "swiftchat"]),
    ("reqwest", &["outbound"]),
    ("rand", &["model"]),
    ("rand_chacha", &["model"]),
];

fn root() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.ancestors().find(|folder| folder.join("Cargo.lock").exists()).expect("a workspace").to_owned()
}

/// The packages of the workspace, each with the names of what its program or library uses.
fn packages() -> Vec<(String, Vec<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    packages
        .iter()
        .map(|package| {
            let uses = package["dependencies"].as_array().expect("dependencies");
            let uses = uses.iter().filter(|dependency| dependency["kind"] != "dev").map(name).collect();
            (name(package), uses)
        })
        .collect()
}

fn row(name: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&name))
}

#[test]
fn a_crate_uses_crates_of_lower_rows_only() {
    let packages = packages();
    assert!(packages.len() > 5, "{packages:?}");
    for (package, uses) in &packages {
        let ours = uses.iter().filter(|name| packages.iter().any(|(other, _)| other == *name));
        if STANDALONE.contains(&package.as_str()) {
            assert_eq!(ours.collect::<Vec<_>>(), Vec::<&String>::new(), "{package} stands for itself");
            continue;
        }
        let own = row(package).unwrap_or_else(|| panic!("{package} has no row: see ROWS"));
        for used in ours {
            let below = row(used).unwrap_or_else(|| panic!("{used} has no row: see ROWS"));
            assert!(below < own, "{package} (row {own}) must not use {used} (row {below})");
        }
    }
}

#[test]
fn only_those_who_may_know_a_library_use_it() {
    for (package, uses) in packages() {
        if package == "test_kit" || STANDALONE.contains(&package.as_str()) {
            continue;
        }
        for (library, may) in KNOWN_BY {
            let is_known = uses.iter().any(|name| name == library);
            assert!(!is_known || may.contains(&package.as_str()), "{package} must not use {library}: {may:?} may");
        }
    }
}

/// Time and chance are handed in, so that a test can set them.
#[test]
fn only_model_reads_the_clock_and_makes_randomness() {
    for row in ROWS.iter().filter(|row| !row.contains(&"model") && !row.contains(&"test_kit")) {
        for package in *row {
            let folder = if *package == "swiftchat" { root().join("src") } else { root().join(package).join("src") };
            for (file, line, text) in lines(&folder) {
                for forbidden in ["SystemTime::now", "Instant::now", "SysRng", "OsRng", "thread_rng", "rand::rng"] {
                    assert!(!text.contains(forbidden), "{}:{line} uses {forbidden}", file.display());
                }
            }
        }
    }
}

/// All SQL is in `storage`; its words in capital letters give it away.
#[test]
fn only_storage_contains_sql() {
    for package in ROWS.iter().copied().flatten().filter(|package| **package != "storage") {
        let folder = if *package == "swiftchat" { root().join("src") } else { root().join(package).join("src") };
        for (file, line, text) in lines(&folder) {
            let is_comment = text.trim_start().starts_with("//");
            for words in ["SELECT ", "INSERT INTO", "DELETE FROM", "UPDATE ", "CREATE TABLE"] {
                assert!(is_comment || !text.contains(words), "{}:{line} looks like SQL", file.display());
            }
        }
    }
}

/// The lines of all Rust files in a folder, with their file and number.
fn lines(folder: &Path) -> Vec<(PathBuf, usize, String)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("a readable folder").path()) {
        if path.is_dir() {
            found.extend(lines(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a readable file");
            found.extend(text.lines().enumerate().map(|(index, line)| (path.clone(), index + 1, line.to_owned())));
        }
    }
    found
}
