//! Where the next page of a space's rooms starts.

use std::{fmt, str::FromStr};

use model::{RoomNr, UserNr};
use ruma::RoomId;
use sha1::{Digest as _, Sha1};

use crate::Error;

/// A walk through the rooms of a space: who goes, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Walk {
    pub(crate) space_nr: RoomNr,
    pub(crate) user_nr: UserNr,
    pub(crate) max_depth: u32,
    pub(crate) suggested_only: bool,
}

/// The page after a room of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) walk: Walk,
    /// The mark of that room: see [`mark_of`].
    pub(crate) after: u64,
    /// Which of the walk that room was, from 0: where the page starts when it is there no more.
    pub(crate) index: usize,
}

/// By what a token knows a room: rooms of other servers have no number here.
pub(crate) fn mark_of(room_id: &RoomId) -> u64 {
    let hash = Sha1::digest(room_id.as_bytes());
    hash.iter().take(8).fold(0, |mark, byte| mark << 8 | u64::from(*byte))
}

impl Token {
    /// The token in a text, if it was made for this walk.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidParam`] for what is no token, or one of another walk.
    pub(crate) fn of(walk: &Walk, text: &str) -> Result<Self, Error> {
        let token: Self = text.parse()?;
        if token.walk == *walk {
            return Ok(token);
        }
        let message = "send the same `max_depth`, `suggested_only` and space as for the page that gave the token";
        Err(Error::InvalidParam(message.to_owned()))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Walk { space_nr, user_nr, max_depth, suggested_only } = self.walk;
        let suggested = if suggested_only { 's' } else { 'a' };
        write!(f, "h1_{space_nr}_{user_nr}_{max_depth}_{suggested}_{}_{}", self.after, self.index)
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let read = || {
            let mut parts = text.strip_prefix("h1_")?.split('_');
            let walk = Walk {
                space_nr: RoomNr(parts.next()?.parse().ok()?),
                user_nr: UserNr(parts.next()?.parse().ok()?),
                max_depth: parts.next()?.parse().ok()?,
                suggested_only: match parts.next()? {
                    "s" => true,
                    "a" => false,
                    _ => return None,
                },
            };
            let (after, index) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let token = Self { walk, after, index };
            parts.next().is_none().then_some(token)
        };
        // What would be read, but is never written, is none.
        let token = read().filter(|token| token.to_string() == text);
        token.ok_or_else(|| Error::InvalidParam("this is not a token that this server gave out".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_it_was_written() {
        for suggested_only in [true, false] {
            let (space_nr, user_nr, after) = (RoomNr(1), UserNr(2), 3);
            let walk = Walk { space_nr, user_nr, max_depth: 4, suggested_only };
            let token = Token { walk, after, index: 5 };
            assert_eq!(Token::of(&walk, &token.to_string()).unwrap(), token);
            let other = Walk { max_depth: 3, ..walk };
            assert!(matches!(Token::of(&other, &token.to_string()), Err(Error::InvalidParam(_))));
        }
        for bad in [
            "",
            "h1_",
            "h1_1_2_4_s_3",
            "h1_1_2_4_x_3_5",
            "h1_1_2_-4_s_3_5",
            "h1_1_2_4_s_3_-5",
            "h1_1_2_4_s_3_5_6",
            "d1_1_2_4_s_3_5",
            "h1_+1_2_4_s_3_5",
            "h1_01_2_4_s_3_5",
        ] {
            assert!(matches!(bad.parse::<Token>(), Err(Error::InvalidParam(_))), "{bad}");
        }
    }
}
