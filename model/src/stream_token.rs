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
/// Text form: `s1_<position>_<incarnation>_<ephemeral position>`, each number in lower-case hexadecimal; then
/// `_<incarnation>_<position>` of presence, where that is not nothing; then `_<to-device position>`, where that is another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamToken {
    /// Everything at or below this position has been seen.
    pub position: Position,
    /// The same for typing.
    pub ephemeral: EphemeralPosition,
    /// The same for presence.
    pub presence: EphemeralPosition,
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
        let nothing = EphemeralPosition { incarnation: 0, position: 0 };
        Self { position, ephemeral: nothing, presence: nothing, to_device: None }
    }
}

impl fmt::Display for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, ephemeral, presence, to_device } = self;
        write!(f, "s1_{:x}_{:x}_{:x}", position.0, ephemeral.incarnation, ephemeral.position)?;
        if *presence != EphemeralPosition::default() {
            write!(f, "_{:x}_{:x}", presence.incarnation, presence.position)?;
        }
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
        let count = text.matches('_').count();
        let everything = position(number()?)?;
        let mut ephemeral = || {
            let incarnation = u32::try_from(number()?).map_err(|_| TokenError)?;
            Ok(EphemeralPosition { incarnation, position: number()? })
        };
        let typing = ephemeral()?;
        let presence = if count >= 5 { ephemeral()? } else { EphemeralPosition::default() };
        let to_device = if count.is_multiple_of(2) { Some(position(number()?)?) } else { None };
        if parts.next().is_some() {
            return Err(TokenError);
        }
        Ok(Self { position: everything, ephemeral: typing, presence, to_device })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form() {
        let presences = [EphemeralPosition::default(), EphemeralPosition { incarnation: 7, position: u64::MAX }];
        for (to_device, presence) in [None, Some(Position(77))].into_iter().flat_map(|to| presences.map(|at| (to, at)))
        {
            let token = StreamToken {
                position: Position(1 << 40),
                ephemeral: EphemeralPosition { incarnation: 0xdead_beef, position: 9 },
                presence,
                to_device,
            };
            assert_eq!(token.to_string().parse(), Ok(token));
        }
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        for text in [
            "",
            "s1_",
            "s2_1_1_1",
            "s1_1_1",
            "s1_1_1_1_1_1_1_1",
            "s1_1_1_1_",
            "s1_-1_1_1",
            "s1_+1_1_1",
            "s1_ffffffffffffffff_0_0",
        ] {
            assert_eq!(text.parse::<StreamToken>(), Err(TokenError), "{text}");
        }
    }
}
