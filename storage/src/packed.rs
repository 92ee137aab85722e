//! Lists of numbers as bytes: LEB128, each as the difference to the one before.

use model::EventNr;

/// Appends a number, seven bits a byte, lowest first.
pub(crate) fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number off the front; nothing when the bytes end early or it does not fit.
pub(crate) fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Packs event numbers, in their order.
pub(crate) fn pack_events(events: &[EventNr]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(events.len() * 4);
    let mut previous = 0i64;
    for event in events {
        let difference = event.0.wrapping_sub(previous);
        // Zigzag: small differences of either sign stay short.
        push_number(&mut bytes, ((difference << 1) ^ (difference >> 63)) as u64);
        previous = event.0;
    }
    bytes
}

/// The event numbers that [`pack_events`] packed; nothing when the bytes are damaged.
pub(crate) fn unpack_events(mut bytes: &[u8]) -> Option<Vec<EventNr>> {
    let mut events = Vec::new();
    let mut previous = 0i64;
    while !bytes.is_empty() {
        let zigzag = take_number(&mut bytes)?;
        let difference = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        previous = previous.wrapping_add(difference);
        events.push(EventNr(previous));
    }
    Some(events)
}

/// The bytes that a database gave as hexadecimal digits; nothing when they are none.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngSeed};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn packed_events_come_back(numbers in proptest::collection::vec(any::<i64>(), 0..30)) {
            let events: Vec<EventNr> = numbers.into_iter().map(EventNr).collect();
            prop_assert_eq!(unpack_events(&pack_events(&events)), Some(events));
        }

        #[test]
        fn digits_come_back_as_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..30)) {
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(from_hex(&text), Some(bytes.clone()));
            prop_assert_eq!(from_hex(&text.to_uppercase()), Some(bytes));
            prop_assert_eq!(from_hex(&format!("{text}a")), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = unpack_events(&bytes);
        }
    }
}
