//! Events as another server tells them, before anything of them is believed.
//!
//! Taken apart, an event may take a hundred times the memory of its text: of an answer with very many of them few are at the same time.

use std::iter::Peekable;

use model::{JsonShape, limits::TOLD_EVENT_BYTES_MAX};
use ruma::{CanonicalJsonObject, room_version_rules::RoomVersionRules};
use serde_json::value::RawValue;

use crate::receive::legible;

/// Most events that are taken apart at the same time, and most memory for them, in bytes.
const AT_ONCE: usize = 4_000;
const WEIGHT_AT_ONCE: usize = 32 << 20;

/// Takes apart the next of some events, as many as can be at the same time, at least one; for each, in order. What is no object, or far too
/// long to be an event, gives an empty one, which is no event.
pub(crate) fn take_apart(
    events: &mut Peekable<impl Iterator<Item = Box<RawValue>>>,
    rules: &RoomVersionRules,
) -> Vec<CanonicalJsonObject> {
    let (mut objects, mut weight) = (Vec::new(), 0);
    while objects.len() < AT_ONCE
        && let Some(event) = events.peek()
    {
        let is_too_long = event.get().len() > TOLD_EVENT_BYTES_MAX;
        weight += if is_too_long { 0 } else { JsonShape::of(event.get().as_bytes()).weight };
        if weight > WEIGHT_AT_ONCE && !objects.is_empty() {
            break;
        }
        let event = events.next().filter(|_| !is_too_long);
        objects.push(event.and_then(|event| legible(&event, rules)).unwrap_or_default());
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: String) -> Box<RawValue> {
        RawValue::from_string(json).unwrap()
    }

    #[test]
    fn each_event_is_taken_apart_once_and_few_at_the_same_time() {
        let dense = format!(r#"{{"a":[{}0]}}"#, r#"{"":0},"#.repeat(9_000));
        let long = format!(r#"{{"a":"{}"}}"#, "a".repeat(TOLD_EVENT_BYTES_MAX));
        let mut events = (0..20).map(|_| raw(dense.clone())).chain([raw(long), raw("[]".to_owned())]).peekable();
        let (mut counts, mut all) = (Vec::new(), Vec::new());
        while events.peek().is_some() {
            let objects = take_apart(&mut events, &RoomVersionRules::V11);
            counts.push(objects.len());
            all.extend(objects);
        }
        assert_eq!(all.len(), 22);
        assert!(all[..20].iter().all(|object| object.contains_key("a")));
        assert!(all[20].is_empty() && all[21].is_empty());
        assert!(counts.iter().all(|count| *count <= 6), "{counts:?}");
        let mut small = (0..AT_ONCE + 1).map(|_| raw("{}".to_owned())).peekable();
        let mut count = || take_apart(&mut small, &RoomVersionRules::V11).len();
        assert_eq!((count(), count()), (AT_ONCE, 1));
    }
}
