//! Canonical JSON against a writer of its own. Appendices, "Canonical JSON".

use std::collections::BTreeMap;

use model::{CanonicalError, canonical_object, limits::CONTENT_DEPTH_MAX};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, RngSeed, TestRunner},
};
use serde_json::value::RawValue;

/// The largest integer, 2^53 - 1.
const INTEGER_MAX: i64 = (1 << 53) - 1;

/// A value, and how one of many writers would write it.
#[derive(Clone, Debug)]
enum Json {
    Word(&'static str),
    Integer(i64),
    Text(String),
    Array(Vec<Json>),
    /// The keys in the order in which they are written.
    Object(Vec<(String, Json)>),
}

/// How something is written that has more than one form: each number decides one place.
struct Style<'a>(std::iter::Cycle<std::slice::Iter<'a, u8>>);

impl Style<'_> {
    fn next(&mut self) -> u8 {
        *self.0.next().unwrap()
    }

    fn space(&mut self) -> &'static str {
        ["", "", " ", "\n\t", "\r\n"][usize::from(self.next() % 5)]
    }
}

fn write_text(text: &str, mut is_escaped: impl FnMut(char) -> bool) -> String {
    let mut written = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\u{8}' => written.push_str("\\b"),
            '\t' => written.push_str("\\t"),
            '\n' => written.push_str("\\n"),
            '\u{c}' => written.push_str("\\f"),
            '\r' => written.push_str("\\r"),
            '\0'..'\u{20}' => written.push_str(&format!("\\u{:04x}", u32::from(character))),
            other if is_escaped(other) => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    written.push_str(&format!("\\u{unit:04X}"));
                }
            }
            other => written.push(other),
        }
    }
    written + "\""
}

impl Json {
    /// The one canonical form.
    fn canonical(&self) -> String {
        match self {
            Self::Word(word) => (*word).to_owned(),
            Self::Integer(number) => number.to_string(),
            Self::Text(text) => write_text(text, |_| false),
            Self::Array(values) => {
                let values: Vec<String> = values.iter().map(Self::canonical).collect();
                format!("[{}]", values.join(","))
            }
            Self::Object(entries) => {
                // By code point; of keys that come twice the later value counts.
                let sorted: BTreeMap<Vec<char>, (&str, &Self)> =
                    entries.iter().map(|(key, value)| (key.chars().collect(), (&**key, value))).collect();
                let entries = sorted.into_values();
                let entries: Vec<String> = entries
                    .map(|(key, value)| format!("{}:{}", write_text(key, |_| false), value.canonical()))
                    .collect();
                format!("{{{}}}", entries.join(","))
            }
        }
    }

    /// Some other form.
    fn loose(&self, style: &mut Style<'_>) -> String {
        let (before, after) = (style.space(), style.space());
        let written = match self {
            Self::Word(_) | Self::Integer(_) => self.canonical(),
            Self::Text(text) => write_text(text, |_| style.next().is_multiple_of(3)),
            Self::Array(values) => {
                let values: Vec<String> = values.iter().map(|value| value.loose(style)).collect();
                format!("[{}{}]", style.space(), values.join(","))
            }
            Self::Object(entries) => {
                let mut written = Vec::new();
                for (key, value) in entries {
                    let key = write_text(key, |_| style.next().is_multiple_of(3));
                    written.push(format!("{}{key}{}:{}", style.space(), style.space(), value.loose(style)));
                }
                format!("{{{}{}}}", style.space(), written.join(","))
            }
        };
        format!("{before}{written}{after}")
    }
}

/// Texts with what sorts and escapes in unlike ways: control characters, and characters beyond U+FFFF, which come before U+E000
/// by their UTF-16 units.
fn text() -> impl Strategy<Value = String> {
    let odd =
        select(vec!['\0', '\u{7}', '\u{8}', '\u{1f}', '\u{7f}', '"', '\\', '/', 'é', '\u{e000}', '\u{ffff}', '😀']);
    let character = prop_oneof![3 => proptest::char::range('a', 'c'), 2 => odd, 1 => any::<char>()];
    proptest::collection::vec(character, 0..4).prop_map(|characters| characters.into_iter().collect())
}

fn value() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        select(vec!["null", "true", "false"]).prop_map(Json::Word),
        (-INTEGER_MAX..=INTEGER_MAX).prop_map(Json::Integer),
        select(vec![0, 1, -1, INTEGER_MAX, -INTEGER_MAX]).prop_map(Json::Integer),
        text().prop_map(Json::Text),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Json::Array),
            proptest::collection::vec((text(), inner), 0..6).prop_map(Json::Object),
        ]
    })
}

fn object() -> impl Strategy<Value = Json> {
    proptest::collection::vec((text(), value()), 0..6).prop_map(Json::Object)
}

fn read(json: &str) -> Result<String, CanonicalError> {
    let object = canonical_object(&RawValue::from_string(json.trim().to_owned()).unwrap())?;
    Ok(serde_json::to_string(&object).unwrap())
}

fn runner(seed: u64, cases: u32) -> TestRunner {
    println!("seed {seed}");
    TestRunner::new(Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() })
}

/// However an object is written, it has one form; and reading that form changes nothing.
fn check_round_trip(seed: u64, cases: u32) {
    let styles = proptest::collection::vec(any::<u8>(), 1..40);
    let run = runner(seed, cases).run(&(object(), styles), |(object, style)| {
        let (canonical, loose) = (object.canonical(), object.loose(&mut Style(style.iter().cycle())));
        prop_assert_eq!(&read(&loose).unwrap(), &canonical, "{}", loose);
        prop_assert_eq!(&read(&canonical).unwrap(), &canonical);
        Ok(())
    });
    run.unwrap();
}

/// A number that has no canonical form is refused wherever it stands. Nothing else about the object matters.
fn check_numbers(seed: u64, cases: u32) {
    let number = prop_oneof![
        select(vec!["-0", "1.0", "0.1", "1e3", "1E-2", "18446744073709551616", "-9223372036854775809"])
            .prop_map(str::to_owned),
        (INTEGER_MAX + 1..=i64::MAX).prop_map(|number| number.to_string()),
        (INTEGER_MAX + 1..=i64::MAX).prop_map(|number| (-number).to_string()),
        (INTEGER_MAX as u64 + 1..=u64::MAX).prop_map(|number| number.to_string()),
        any::<f64>()
            .prop_filter("JSON has only finite ones", |number| number.is_finite())
            .prop_map(|number| format!("{number:e}")),
    ];
    let run = runner(seed, cases).run(&(object(), number, any::<u8>()), |(object, number, place)| {
        let (with, json) = (object.canonical(), number);
        let json = match place % 3 {
            0 => format!("{{\"a\":{json}}}"),
            1 => format!("{{\"a\":[{with},{json}]}}"),
            _ => format!("{{\"a\":{{\"b\":[{json}],\"c\":{with}}}}}"),
        };
        prop_assert!(matches!(read(&json), Err(CanonicalError::BadNumber)), "{}", json);
        Ok(())
    });
    run.unwrap();
}

#[test]
fn an_object_has_one_form() {
    check_round_trip(1, 500);
}

#[test]
fn numbers_without_a_canonical_form_are_refused_everywhere() {
    check_numbers(1, 500);
}

/// The same with many cases.
#[test]
fn long_an_object_has_one_form() {
    for seed in 100..110 {
        check_round_trip(seed, 20_000);
        check_numbers(seed, 20_000);
    }
}

/// Keys are sorted by code point: by UTF-16 units the emoji would come first, by length or locale others would.
#[test]
fn keys_are_sorted_by_code_point() {
    let json = "{\"\u{1f600}\":1,\"\u{ff5e}\":2,\"é\":3,\"z\":4,\"Z\":5,\"aa\":6,\"a\":7,\"\":8}";
    let sorted = "{\"\":8,\"Z\":5,\"a\":7,\"aa\":6,\"z\":4,\"é\":3,\"\u{ff5e}\":2,\"\u{1f600}\":1}";
    assert_eq!(read(json).unwrap(), sorted);
}

/// Nesting is bounded, and far too much of it is refused as well as a little.
#[test]
fn what_is_nested_too_deep_is_refused() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        // The object itself is the first level.
        let nested = |levels: usize| format!("{{\"a\":{}1{}}}", open.repeat(levels - 1), close.repeat(levels - 1));
        assert!(read(&nested(CONTENT_DEPTH_MAX)).is_ok());
        for levels in [CONTENT_DEPTH_MAX + 1, 1_000, 100_000] {
            assert!(read(&nested(levels)).is_err(), "{levels} levels of {open}");
        }
    }
}
