//! Private keys in the form that people keep on paper. Appendices, "Cryptographic key representation".

use zeroize::Zeroizing;

use crate::Error;

/// What each of them starts with.
const PREFIX: [u8; 2] = [0x8b, 0x01];
/// Prefix, key and parity.
const BYTES: usize = PREFIX.len() + 32 + 1;

/// Writes a key in groups of four letters.
#[must_use]
pub fn encode(key: &[u8; 32]) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; BYTES]);
    bytes[..2].copy_from_slice(&PREFIX);
    bytes[2..34].copy_from_slice(key);
    bytes[34] = parity(&bytes[..34]);
    let letters = Zeroizing::new(bs58::encode(&bytes[..]).into_string());
    // Of its final size at once: a string that grows leaves copies behind.
    let mut grouped = Zeroizing::new(String::with_capacity(letters.len() * 5 / 4 + 1));
    for (at, letter) in letters.chars().enumerate() {
        if at > 0 && at % 4 == 0 {
            grouped.push(' ');
        }
        grouped.push(letter);
    }
    grouped
}

/// Reads what a person typed; white space does not matter.
///
/// # Errors
///
/// [`Error::MistypedKey`] when letters are wrong, missing or too many.
pub fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, Error> {
    let malformed = || Error::MistypedKey;
    let mut letters = Zeroizing::new(String::with_capacity(text.len()));
    letters.extend(text.chars().filter(|letter| !letter.is_whitespace()));
    let mut bytes = Zeroizing::new([0; BYTES]);
    let length = bs58::decode(letters.as_bytes()).onto(&mut bytes[..]).map_err(|_| malformed())?;
    if length != BYTES || bytes[..2] != PREFIX || parity(&bytes[..]) != 0 {
        return Err(malformed());
    }
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(&bytes[2..34]);
    Ok(key)
}

fn parity(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |parity, byte| parity ^ byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand from the steps of the specification, with another implementation of base58.
    const KNOWN: &str = "EsSz ykH7 LCZx 7Cae cmKD wcmY JRXi Ybtu 8iQ3 t8Ez nRwK pUY1";

    #[test]
    fn a_known_key_has_its_known_form() {
        let key = std::array::from_fn(|n| n as u8);
        assert_eq!(&*encode(&key), KNOWN);
        assert_eq!(*decode(KNOWN).expect("it is read"), key);
    }

    #[test]
    fn white_space_does_not_matter() {
        let spread: String = KNOWN.chars().map(|letter| format!("{letter}\n ")).collect();
        assert_eq!(decode(&spread).expect("it is read"), decode(KNOWN).expect("it is read"));
    }

    #[test]
    fn every_wrong_letter_is_noticed() {
        let letters: Vec<char> = KNOWN.chars().filter(|letter| *letter != ' ').collect();
        for at in 0..letters.len() {
            let mut wrong = letters.clone();
            wrong[at] = if wrong[at] == '2' { '3' } else { '2' };
            let wrong: String = wrong.into_iter().collect();
            // The parity has eight bits: one in 256 slips through it, and is caught by the check of the key itself.
            if let Ok(key) = decode(&wrong) {
                assert_ne!(key, decode(KNOWN).expect("it is read"), "{wrong}");
            }
            assert!(decode(&letters[..at].iter().collect::<String>()).is_err(), "the first {at} letters");
        }
        for text in ["", "0OIl", "E", &"z".repeat(500), "ü"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }
}
