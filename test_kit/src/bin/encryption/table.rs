//! The page `docs/encryption.md`: written from what was played, and read again to compare.

use std::{collections::BTreeMap, fmt, fmt::Write as _, fs, path::PathBuf};

use crate::{actor::Client, cases::Case, world::Topology};

/// Where the page is, from the root of the repository.
const PAGE: &str = "docs/encryption.md";
const NOTES: &str = "## Notes";
const HEAD: &str = "\
# End-to-end encryption with other people's clients

What was tried with each pair of client libraries on each topology, and how it went. Written by `tests/run encryption -- --all --write`; a run of
`tests/run encryption` plays a part of it, another topology for each case and pair in turn, `tests/run long` all, and both fail when
something is worse than this page says. How it is played is in `test_kit/src/bin/encryption`.

*SwiftChat and Synapse* has the first person on SwiftChat and the second on Synapse, *Synapse and SwiftChat* the other way round. In each
cell the gates between the devices and their servers also looked for the texts and files that were encrypted: no server saw one. A cell is
*passed*, *failed*, or *impossible* in one of the two libraries, for the reason in the note.
";

/// One case with one pair on one topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) case: Case,
    pub(crate) first: Client,
    pub(crate) second: Client,
    pub(crate) topology: Topology,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", self.case.name(), pair(self.first, self.second), self.topology.name())
    }
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Failed(String),
    Impossible(String),
    Passed,
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Failed(_) => "failed",
            Self::Impossible(_) => "impossible",
            Self::Passed => "passed",
        }
    }

    fn why(&self) -> Option<&str> {
        match self {
            Self::Failed(why) | Self::Impossible(why) => Some(why),
            Self::Passed => None,
        }
    }

    /// From worst to best.
    fn rank(&self) -> usize {
        match self {
            Self::Failed(_) => 0,
            Self::Impossible(_) => 1,
            Self::Passed => 2,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        self.why().map_or(Ok(()), |why| write!(f, ": {why}"))
    }
}

/// What the page says, or what was played.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) cells: BTreeMap<Cell, Outcome>,
    /// The libraries, in their own words.
    pub(crate) versions: BTreeMap<Client, String>,
}

impl Page {
    /// The page as it is, empty if there is none.
    pub(crate) fn read() -> Self {
        Self::parse(&fs::read_to_string(path()).unwrap_or_default())
    }

    /// # Panics
    ///
    /// When the file cannot be written.
    pub(crate) fn write(&self) {
        fs::write(path(), self.text()).unwrap_or_else(|error| panic!("{PAGE}: {error}"));
    }

    /// The cells that were played and are worse than here, with what is here. What is not here yet must not fail.
    pub(crate) fn worse(&self, played: &Self) -> Vec<(Cell, Outcome, Outcome)> {
        let mut worse = Vec::new();
        for (cell, is) in &played.cells {
            let was = self.cells.get(cell).cloned();
            let was = was.unwrap_or_else(|| Outcome::Impossible("it was not played before".to_owned()));
            if is.rank() < was.rank() {
                worse.push((*cell, was, is.clone()));
            }
        }
        worse
    }

    /// Whether something that was played is better than here, or not here.
    pub(crate) fn is_better(&self, played: &Self) -> bool {
        played.cells.iter().any(|(cell, is)| self.cells.get(cell).is_none_or(|was| is.rank() > was.rank()))
    }

    /// Takes over what was played.
    pub(crate) fn take(&mut self, played: Self) {
        self.cells.extend(played.cells);
        self.versions.extend(played.versions);
    }

    fn text(&self) -> String {
        let mut text = String::from(HEAD);
        text.push_str("\n## Libraries\n\n");
        for (client, version) in &self.versions {
            let _ = writeln!(text, "- `{}`: {version}", client.name());
        }
        let mut notes: Vec<&str> = self.cells.values().filter_map(Outcome::why).collect();
        notes.sort_unstable();
        notes.dedup();
        for case in Case::ALL {
            let names = Topology::ALL.map(Topology::name).join(" | ");
            let _ = write!(
                text,
                "\n## {}\n\n{}\n\n| first → second | {names} |\n| --- {}|\n",
                case.name(),
                case.about(),
                "| --- ".repeat(Topology::ALL.len()),
            );
            for first in Client::ALL {
                for second in Client::ALL {
                    let cells = Topology::ALL.map(|topology| self.cell(Cell { case, first, second, topology }, &notes));
                    let _ = writeln!(text, "| {} | {} |", pair(first, second), cells.join(" | "));
                }
            }
        }
        let _ = write!(text, "\n{NOTES}\n\n");
        for (number, note) in notes.iter().enumerate() {
            let _ = writeln!(text, "{}. {note}", number + 1);
        }
        text
    }

    fn cell(&self, cell: Cell, notes: &[&str]) -> String {
        let Some(outcome) = self.cells.get(&cell) else { return "not played".to_owned() };
        let note = outcome.why().and_then(|why| notes.iter().position(|note| *note == why));
        note.map_or_else(|| outcome.word().to_owned(), |note| format!("{} ({})", outcome.word(), note + 1))
    }

    fn parse(text: &str) -> Self {
        let (tables, notes) = text.split_once(NOTES).unwrap_or((text, ""));
        let notes: BTreeMap<&str, &str> = notes.lines().filter_map(|line| line.split_once(". ")).collect();
        let mut page = Self::default();
        let mut case = None;
        for line in tables.lines() {
            if let Some(name) = line.strip_prefix("## ") {
                case = Case::ALL.into_iter().find(|case| case.name() == name);
            } else if let Some((name, version)) = line.strip_prefix("- `").and_then(|line| line.split_once("`: ")) {
                page.versions.extend(
                    Client::ALL.into_iter().find(|client| client.name() == name).map(|c| (c, version.to_owned())),
                );
            } else if let Some(case) = case {
                page.parse_row(case, line, &notes);
            }
        }
        page
    }

    fn parse_row(&mut self, case: Case, line: &str, notes: &BTreeMap<&str, &str>) {
        let columns: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let pairs = Client::ALL.into_iter().flat_map(|first| Client::ALL.map(|second| (first, second)));
        let Some((first, second)) = pairs.into_iter().find(|(first, second)| columns[0] == pair(*first, *second))
        else {
            return;
        };
        for (topology, column) in Topology::ALL.into_iter().zip(&columns[1..]) {
            let (word, note) = column.split_once(" (").unwrap_or((column, ""));
            let why = || notes.get(note.trim_end_matches(')')).copied().unwrap_or_default().to_owned();
            let outcome = match word {
                "passed" => Outcome::Passed,
                "failed" => Outcome::Failed(why()),
                "impossible" => Outcome::Impossible(why()),
                _ => continue,
            };
            self.cells.insert(Cell { case, first, second, topology }, outcome);
        }
    }
}

fn pair(first: Client, second: Client) -> String {
    format!("{} → {}", first.name(), second.name())
}

fn path() -> PathBuf {
    test_kit::conformance::repository().join(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(case: Case) -> Cell {
        Cell { case, first: Client::Ours, second: Client::MatrixNio, topology: Topology::Two }
    }

    fn page(outcomes: &[(Case, Outcome)]) -> Page {
        let cells = outcomes.iter().map(|(case, outcome)| (cell(*case), outcome.clone())).collect();
        Page { cells, versions: BTreeMap::from([(Client::MatrixNio, "matrix-nio 0.26.0".to_owned())]) }
    }

    #[test]
    fn a_page_is_read_as_it_was_written() {
        let written = page(&[
            (Case::FirstContact, Outcome::Passed),
            (Case::Backup, Outcome::Impossible("matrix-nio has no backup. None".to_owned())),
            (Case::Leaving, Outcome::Failed("it heard".to_owned())),
        ]);
        let read = Page::parse(&written.text());
        assert_eq!((&read.cells, &read.versions), (&written.cells, &written.versions));
        assert_eq!(read.text(), written.text());
    }

    /// What fails for the first time is worse than nothing; what a library cannot do is news.
    #[test]
    fn what_is_worse_than_the_page_says_is_found() {
        let failed = Outcome::Failed(String::new());
        let impossible = Outcome::Impossible(String::new());
        let known = page(&[
            (Case::FirstContact, Outcome::Passed),
            (Case::NewDevice, Outcome::Passed),
            (Case::Backup, impossible.clone()),
            (Case::Leaving, failed.clone()),
        ]);
        let played = page(&[
            (Case::FirstContact, failed.clone()),
            (Case::NewDevice, impossible.clone()),
            (Case::Backup, failed.clone()),
            (Case::Leaving, failed.clone()),
            (Case::Restart, failed),
            (Case::Attachment, impossible),
        ]);
        let worse: Vec<Case> = known.worse(&played).iter().map(|(cell, ..)| cell.case).collect();
        assert_eq!(worse, [Case::FirstContact, Case::NewDevice, Case::Backup, Case::Restart]);
    }

    #[test]
    fn what_is_better_than_the_page_says_is_found() {
        let known = page(&[(Case::Leaving, Outcome::Failed(String::new()))]);
        assert!(known.is_better(&page(&[(Case::Leaving, Outcome::Passed)])));
        assert!(known.is_better(&page(&[(Case::Backup, Outcome::Passed)])));
        assert!(!known.is_better(&page(&[(Case::Leaving, Outcome::Failed("otherwise".to_owned()))])));
    }
}
