//! The fuzz targets over their corpus and over mutations of it, without a fuzzer.

#[path = "../../fuzz/src/event.rs"]
mod event;

use std::{fs, path::Path};

use model::Random;

/// Pieces that make JSON strange.
const PIECES: [&[u8]; 26] = [
    b"null",
    b"true",
    b"1.5",
    b"-0",
    b"1e400",
    b"9007199254740992",
    b"-9007199254740992",
    b"18446744073709551616",
    b"\"\"",
    b"{}",
    b"[]",
    b"[[[[]]]]",
    b"\"\\ud800\"",
    b"\"\\u0000\"",
    b"\xff",
    b"\xc3\x28",
    b"\"@\"",
    b"\"!\"",
    b"\"$\"",
    b"{\"a\":{\"a\":{}}}",
    b",",
    b":",
    b"\"",
    b"}",
    b"\\",
    b"NaN",
];

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("a corpus")
        .map(|entry| entry.expect("a file").path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).expect("a file")))
        .collect();
    files.sort();
    files
}

fn below(random: &Random, end: usize) -> usize {
    usize::try_from(random.number() % end.max(1) as u64).unwrap()
}

/// Changes one to four places of `data`.
fn mutate(random: &Random, data: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=below(random, 4) {
        let at = below(random, data.len() + 1);
        match below(random, 7) {
            0 if at < data.len() => data[at] ^= 1 << below(random, 8),
            1 => data.splice(at..at, PIECES[below(random, PIECES.len())].iter().copied()).for_each(drop),
            2 => data.truncate(at),
            3 if at < other.len() => {
                let piece = &other[at..other.len().min(at + below(random, 60))];
                data.splice(at..at, piece.iter().copied()).for_each(drop);
            }
            // What stands between two marks of JSON becomes something else, so that the whole often stays JSON.
            _ => {
                let Some(start) = data.iter().skip(at).position(|byte| *byte == b':').map(|found| at + found + 1)
                else {
                    continue;
                };
                let end = data[start..].iter().position(|byte| matches!(byte, b',' | b'}')).unwrap_or(0) + start;
                data.splice(start..end, PIECES[below(random, PIECES.len())].iter().copied()).for_each(drop);
            }
        }
    }
}

/// Reads `count` mutations; panics with the text that brought it about.
fn read_mutations(seed: u64, count: usize) -> usize {
    let random = Random::seeded(seed);
    let corpus = corpus("event");
    let mut events = 0;
    for _ in 0..count {
        let mut data = corpus[below(&random, corpus.len())].1.clone();
        mutate(&random, &mut data, &corpus[below(&random, corpus.len())].1);
        let text = String::from_utf8_lossy(&data).into_owned();
        match std::panic::catch_unwind(|| event::read(&data)) {
            Ok(versions) => events += versions.min(1),
            Err(_) => panic!("with seed {seed} reading panics at {text}"),
        }
    }
    events
}

/// What is called after a room version is an event in that version; what is called after a fault is none anywhere.
#[test]
fn the_corpus_is_read_as_its_names_say() {
    for (name, data) in corpus("event") {
        let versions = event::read(&data);
        let expected = match name.as_str() {
            "message_v1.json" | "redaction_v1.json" | "create_v1.json" => 2..=12,
            "create_v12.json" => 1..=1,
            "float.json"
            | "integer_too_large.json"
            | "lone_surrogate.json"
            | "broken_utf8.json"
            | "too_deep.json"
            | "id_too_long.json"
            | "type_too_long.json"
            | "too_many_prev_events.json"
            | "depth_negative.json"
            | "content_null.json"
            | "not_an_object.json"
            | "empty.json" => 0..=0,
            _ => 0..=12,
        };
        println!("{name}: {versions} versions");
        assert!(expected.contains(&versions), "{name} is an event in {versions} room versions, not in {expected:?}");
    }
}

#[test]
fn no_bytes_make_reading_an_event_panic() {
    let events = read_mutations(1, 20_000);
    // Mutations that no parser accepts would test nothing.
    assert!(events > 500, "only {events} mutations are events");
}

/// The same with many seeds.
#[test]
fn long_no_bytes_make_reading_an_event_panic() {
    for seed in 100..200 {
        read_mutations(seed, 50_000);
    }
}
