//! The tokens that clients hand back, over a corpus and over mutations of it.

#[path = "../../fuzz/src/token.rs"]
mod token;

use std::{fs, path::Path};

use model::{Random, StreamToken};
use rooms::{DirectoryToken, TimelineToken};

/// What replaces or joins a piece of a token.
const PIECES: [&str; 22] = [
    "0",
    "1",
    "2",
    "3a",
    "9",
    "c",
    "ff",
    "_",
    ".",
    "_t",
    "_p",
    "_d",
    "-",
    "+",
    "n",
    "p",
    "s1_",
    "t1_",
    "d1_",
    "99999999999999999999",
    "é",
    "\0",
];

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/token");
    let paths = fs::read_dir(folder).expect("a corpus").map(|entry| entry.expect("a file").path());
    let mut files: Vec<_> = paths
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), fs::read(&path).expect("a file")))
        .collect();
    files.sort();
    files
}

/// As which tokens the bytes are read: of `/sync`, of `/messages`, of the directory.
fn read(data: &[u8]) -> [bool; 3] {
    [token::read::<StreamToken>(data), token::read::<TimelineToken>(data), token::read::<DirectoryToken>(data)]
}

/// Changes one to three places of `text` and reads it; gives how many times it was a token.
fn read_mutations(seed: u64, count: usize) -> usize {
    println!("seed {seed}");
    let random = Random::seeded(seed);
    let below = |end: usize| usize::try_from(random.number() % end.max(1) as u64).unwrap();
    let corpus = corpus();
    let mut tokens = 0;
    for _ in 0..count {
        let mut data = corpus[below(corpus.len())].1.clone();
        for _ in 0..=below(3) {
            let at = below(data.len() + 1);
            let end = (at + below(3)).min(data.len());
            data.splice(at..end, PIECES[below(PIECES.len())].bytes());
        }
        tokens += usize::from(read(&data).contains(&true));
    }
    tokens
}

/// The files are named after what they are, and after what is wrong with them.
#[test]
fn the_corpus_is_read_as_its_names_say() {
    for (name, data) in corpus() {
        // `/messages` takes the tokens of `/sync` too.
        let expected = match name.as_str() {
            "stream" | "stream_typing" | "stream_presence" | "stream_to_device" | "stream_answer" | "stream_both"
            | "stream_largest" => [true, true, false],
            "timeline" | "timeline_backfilled" | "timeline_largest" => [false, true, false],
            "directory_next" | "directory_previous" | "directory_largest" => [false, false, true],
            // No room has so few members: there the list ends.
            "directory_negative" => [false, false, true],
            _ => [false; 3],
        };
        assert_eq!(read(&data), expected, "{name}");
    }
}

#[test]
fn no_bytes_make_reading_a_token_panic() {
    let tokens = read_mutations(1, 20_000);
    // Mutations that are never tokens would test nothing.
    assert!(tokens > 500, "only {tokens} mutations are tokens");
}

/// The same with many seeds.
#[test]
fn long_no_bytes_make_reading_a_token_panic() {
    for seed in 100..150 {
        read_mutations(seed, 100_000);
    }
}
