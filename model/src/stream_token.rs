//! The token that a client holds between two syncs.

use std::{fmt, str::FromStr};

use crate::Position;

/// Where a reader stands in the ephemeral streams, which live in memory and start anew with another incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EphemeralPosition {
    /// Which life of the ephemeral state this position belongs to.
    pub incarnation: u32,
    /// The position in it.
    pub position: u64,
}

/// Where a client stands: `next_batch`, `since`, `from`, `prev_batch`. Opaque to clients.
///
/// Text form: `s1_<position>_<incarnation>_<ephemeral position>`, each number in lower-case hexadecimal, and `_<to-device position>`
/// where that is another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamToken {
    /// Everything at or below this position has been seen.
    pub position: Position,
    /// The same for typing and presence.
    pub ephemeral: EphemeralPosition,
    /// Of the messages to the device, those up to here have been seen, when there were too many for one answer.
    pub to_device: Option<Position>,
}

/// The text is not a token of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token that this server gave out")]
pub struct TokenError;

impl StreamToken {
    /// A token at a position, with nothing said of ephemeral streams.
    #[must_use]
    pub const fn at(position: Position) -> Self {
        Self { position, ephemeral: EphemeralPosition { incarnation: 0, position: 0 }, to_device: None }
    }
}

impl fmt::Display for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, ephemeral, to_device } = self;
        write!(f, "s1_{:x}_{:x}_{:x}", position.0, ephemeral.incarnation, ephemeral.position)?;
        to_device.map_or(Ok(()), |to_device| write!(f, "_{:x}", to_device.0))
    }
}

impl FromStr for StreamToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.strip_prefix("s1_").ok_or(TokenError)?.split('_');
        let mut number = || {
            let part = parts.next().ok_or(TokenError)?;
            // `from_str_radix` takes a plus sign, which we never write.
            if part.starts_with('+') { Err(TokenError) } else { u64::from_str_radix(part, 16).map_err(|_| TokenError) }
        };
        let position = |number| i64::try_from(number).map(Position).map_err(|_| TokenError);
        let everything = position(number()?)?;
        let incarnation = u32::try_from(number()?).map_err(|_| TokenError)?;
        let ephemeral = EphemeralPosition { incarnation, position: number()? };
        let to_device = if text.matches('_').count() == 4 { Some(position(number()?)?) } else { None };
        if parts.next().is_some() { Err(TokenError) } else { Ok(Self { position: everything, ephemeral, to_device }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form() {
        for to_device in [None, Some(Position(77))] {
            let token = StreamToken {
                position: Position(1 << 40),
                ephemeral: EphemeralPosition { incarnation: 0xdead_beef, position: 9 },
                to_device,
            };
            assert_eq!(token.to_string().parse(), Ok(token));
        }
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        for text in
            ["", "s1_", "s2_1_1_1", "s1_1_1", "s1_1_1_1_1_1", "s1_-1_1_1", "s1_+1_1_1", "s1_ffffffffffffffff_0_0"]
        {
            assert_eq!(text.parse::<StreamToken>(), Err(TokenError), "{text}");
        }
    }
}
