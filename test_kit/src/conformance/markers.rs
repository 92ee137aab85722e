//! Which tests show which endpoints: lines like `// shows: sendMessage, server-server:getEvent` (`#` in Python) above a test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::Table;

/// Folders with whole-server and client tests, from the root of the repository.
const FOLDERS: [&str; 2] = ["tests/it", "tests/clients"];

/// The tests that show an operation, as `file: test`, by the name of the operation.
pub type Markers = BTreeMap<String, BTreeSet<String>>;

/// Collects the markers of all tests.
///
/// # Errors
///
/// What names an operation that does not exist, or has no test below it, in words.
pub fn collect(repository: &Path, table: &Table) -> Result<Markers, String> {
    let names: BTreeSet<String> = table.operations.iter().map(super::Operation::name).collect();
    let mut files = Vec::new();
    for folder in FOLDERS {
        list(&repository.join(folder), &mut files);
    }
    files.sort();
    let mut markers = Markers::new();
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let short = file.strip_prefix(repository).unwrap_or(&file).display().to_string();
        for (operations, test, line) in of_text(&text) {
            for operation in operations {
                match &test {
                    _ if !names.contains(&operation) => {
                        wrong.push(format!("{short}:{line}: no operation is called `{operation}`"));
                    }
                    None => wrong.push(format!("{short}:{line}: no test follows")),
                    Some(test) => {
                        markers.entry(operation).or_default().insert(format!("{short}: {test}"));
                    }
                }
            }
        }
    }
    if wrong.is_empty() { Ok(markers) } else { Err(wrong.join("\n")) }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !matches!(name, "node_modules" | "target" | "__pycache__") {
            list(&path, files);
        } else if [".rs", ".py", ".mjs", ".js", ".ts"].iter().any(|ending| name.ends_with(ending)) {
            files.push(path);
        }
    }
}

/// The markers of one file: operations, the test that follows, and the line.
fn of_text(text: &str) -> Vec<(Vec<String>, Option<String>, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let line = line.trim();
        let Some(list) = line.strip_prefix("// shows:").or_else(|| line.strip_prefix("# shows:")) else { continue };
        let operations = list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        let test = lines[at + 1..].iter().take(20).find_map(|line| test_name(line.trim()));
        found.push((operations, test, at + 1));
    }
    found
}

/// The name of the test that begins on this line: a function of Rust or Python, or `test("…", …)` of JavaScript.
fn test_name(line: &str) -> Option<String> {
    let line = ["pub ", "async "].iter().fold(line, |line, word| line.strip_prefix(word).unwrap_or(line));
    if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("def ")) {
        return rest.split('(').next().map(str::to_owned);
    }
    let rest = ["test(", "scenario(", "it("].iter().find_map(|start| line.strip_prefix(start))?;
    let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\'' | '`'))?;
    rest[1..].split(quote).next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_in_all_three_languages() {
        let rust = "/// Why.\n// shows: login, server-server:getEvent\n#[tokio::test]\nasync fn one_logs_in() {";
        let python = "# shows: login\nasync def test_one_logs_in(server):";
        let script = "// shows: login\ntest('one logs in', async () => {";
        let names =
            |text| of_text(text).into_iter().map(|(list, test, _)| (list.join("+"), test.unwrap())).next().unwrap();
        assert_eq!(names(rust), ("login+server-server:getEvent".to_owned(), "one_logs_in".to_owned()));
        assert_eq!(names(python), ("login".to_owned(), "test_one_logs_in".to_owned()));
        assert_eq!(names(script), ("login".to_owned(), "one logs in".to_owned()));
    }

    #[test]
    fn a_marker_without_a_test_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("tests/it")).unwrap();
        fs::write(folder.path().join("tests/it/a.rs"), "// shows: login, logOut\n").unwrap();
        let wrong = collect(folder.path(), super::super::table()).unwrap_err();
        assert_eq!(wrong, "tests/it/a.rs:1: no test follows\ntests/it/a.rs:1: no operation is called `logOut`");
    }
}
