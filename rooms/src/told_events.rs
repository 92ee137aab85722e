//! Events as another server tells them, before anything of them is believed.
//!
//! Taken apart, an event may take a hundred times the memory of its text: of an answer with very many of them few are at the same time.

use std::iter::Peekable;

use model::{JsonShape, limits::TOLD_EVENT_BYTES_MAX};
use serde_json::value::RawValue;

/// Most events that are taken apart at the same time, and most memory for them, in bytes.
const AT_ONCE: usize = 4_000;
const WEIGHT_AT_ONCE: usize = 32 << 20;

/// The next of some events, as many as may be taken apart at the same time, at least one. In the place of one that is far too long to be an
/// event stands `null`.
pub(crate) fn next_part(events: &mut Peekable<impl Iterator<Item = Box<RawValue>>>) -> Vec<Box<RawValue>> {
    let (mut part, mut weight) = (Vec::new(), 0);
    while part.len() < AT_ONCE
        && let Some(event) = events.peek()
    {
        let is_too_long = event.get().len() > TOLD_EVENT_BYTES_MAX;
        weight += if is_too_long { 0 } else { JsonShape::of(event.get().as_bytes()).weight };
        if weight > WEIGHT_AT_ONCE && !part.is_empty() {
            break;
        }
        let event = events.next().filter(|_| !is_too_long);
        part.push(event.unwrap_or_else(|| RawValue::NULL.to_owned()));
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: String) -> Box<RawValue> {
        RawValue::from_string(json).unwrap()
    }

    #[test]
    fn each_event_comes_once_and_few_at_the_same_time() {
        let dense = format!(r#"{{"a":[{}0]}}"#, r#"{"":0},"#.repeat(9_000));
        let long = format!(r#"{{"a":"{}"}}"#, "a".repeat(TOLD_EVENT_BYTES_MAX));
        let mut events = (0..20).map(|_| raw(dense.clone())).chain([raw(long), raw("[]".to_owned())]).peekable();
        let (mut counts, mut all) = (Vec::new(), Vec::new());
        while events.peek().is_some() {
            let part = next_part(&mut events);
            counts.push(part.len());
            all.extend(part);
        }
        assert_eq!(all.len(), 22);
        assert!(all[..20].iter().all(|event| event.get() == dense));
        assert_eq!((all[20].get(), all[21].get()), ("null", "[]"));
        assert!(counts.iter().all(|count| *count <= 6), "{counts:?}");
        let mut small = (0..AT_ONCE + 1).map(|_| raw("{}".to_owned())).peekable();
        assert_eq!((next_part(&mut small).len(), next_part(&mut small).len()), (AT_ONCE, 1));
    }
}
