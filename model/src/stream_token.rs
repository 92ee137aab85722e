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
/// Text form: `s1_<position>`; then, each where it is not nothing, `_t<incarnation>.<position>` of typing, `_p<incarnation>.<position>` of
/// presence, `_d<position>` of messages to the device, and `_a<number>` of an answer. Numbers are in lower-case hexadecimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamToken {
    /// Everything at or below this position has been seen.
    pub position: Position,
    /// The same for typing.
    pub typing: EphemeralPosition,
    /// The same for presence.
    pub presence: EphemeralPosition,
    /// Of the messages to the device, those up to here have been seen, when there were too many for one answer.
    pub to_device: Option<Position>,
    /// The number of the last answer that told of members as they were needed.
    pub answer: Option<u32>,
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
        Self { position, typing: nothing, presence: nothing, to_device: None, answer: None }
    }
}

impl fmt::Display for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, typing, presence, to_device, answer } = self;
        write!(f, "s1_{:x}", position.0)?;
        for (letter, at) in [('t', typing), ('p', presence)] {
            if *at != EphemeralPosition::default() {
                write!(f, "_{letter}{:x}.{:x}", at.incarnation, at.position)?;
            }
        }
        if let Some(to_device) = to_device {
            write!(f, "_d{:x}", to_device.0)?;
        }
        answer.map_or(Ok(()), |answer| write!(f, "_a{answer:x}"))
    }
}

impl FromStr for StreamToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.strip_prefix("s1_").ok_or(TokenError)?.split('_');
        let mut token = Self::at(position(parts.next().unwrap_or_default())?);
        for part in parts {
            let letter = part.chars().next().ok_or(TokenError)?;
            let number = &part[letter.len_utf8()..];
            match letter {
                't' => token.typing = ephemeral(number)?,
                'p' => token.presence = ephemeral(number)?,
                'd' => token.to_device = Some(position(number)?),
                'a' => token.answer = Some(u32::from_str_radix(number, 16).map_err(|_| TokenError)?),
                _ => return Err(TokenError),
            }
        }
        // What would be written otherwise, with signs, zeros in front, or in another order, is none of ours.
        if token.to_string() == text { Ok(token) } else { Err(TokenError) }
    }
}

fn position(text: &str) -> Result<Position, TokenError> {
    let number = u64::from_str_radix(text, 16).map_err(|_| TokenError)?;
    i64::try_from(number).map(Position).map_err(|_| TokenError)
}

fn ephemeral(text: &str) -> Result<EphemeralPosition, TokenError> {
    let (incarnation, position) = text.split_once('.').ok_or(TokenError)?;
    let number = |text| u64::from_str_radix(text, 16).map_err(|_| TokenError);
    let incarnation = u32::try_from(number(incarnation)?).map_err(|_| TokenError)?;
    Ok(EphemeralPosition { incarnation, position: number(position)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form() {
        let places = [EphemeralPosition::default(), EphemeralPosition { incarnation: u32::MAX, position: u64::MAX }];
        for typing in places {
            for presence in places {
                for to_device in [None, Some(Position(0)), Some(Position(77))] {
                    for answer in [None, Some(0), Some(u32::MAX)] {
                        let token = StreamToken { position: Position(1 << 40), typing, presence, to_device, answer };
                        assert_eq!(token.to_string().parse(), Ok(token));
                    }
                }
            }
        }
        assert_eq!(StreamToken::at(Position(26)).to_string(), "s1_1a");
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        for text in [
            "",
            "s1_",
            "s2_1",
            "s1_1_",
            "s1_-1",
            "s1_+1",
            "s1_01",
            "s1_A",
            "s1_ffffffffffffffff",
            "s1_1_1_1",
            "s1_1_x1",
            "s1_1_\u{e9}1",
            "s1_1_t1",
            "s1_1_t1.",
            "s1_1_t1.1.1",
            "s1_1_t+1.1",
            "s1_1_t100000000.1",
            "s1_1_t0.0",
            "s1_1_p1.1_t1.1",
            "s1_1_t1.1_t1.1",
            "s1_1_d",
            "s1_1_d1_d1",
            "s1_1_a1_d1",
            "s1_1_a",
            "s1_1_a100000000",
            "s1_1_dffffffffffffffff",
        ] {
            assert_eq!(text.parse::<StreamToken>(), Err(TokenError), "{text}");
        }
    }
}
