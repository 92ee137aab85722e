//! The token that a client of sliding sync holds between two requests.

use std::{fmt, str::FromStr};

use crate::{StreamToken, TokenError};

/// Where a connection of sliding sync stands: `pos`. Opaque to clients.
///
/// Text form: `p1_<version>_`, the number in lower-case hexadecimal, before that of the [`StreamToken`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlidingToken {
    /// The version of the connection's state that the answer left behind. No other connection has it.
    pub version: u64,
    /// How far the answer went in the streams.
    pub stream: StreamToken,
}

impl fmt::Display for SlidingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p1_{:x}_{}", self.version, self.stream)
    }
}

impl FromStr for SlidingToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let rest = text.strip_prefix("p1_").ok_or(TokenError)?;
        let (version, stream) = rest.split_once('_').ok_or(TokenError)?;
        // `from_str_radix` takes a plus sign, which we never write.
        if version.starts_with('+') {
            return Err(TokenError);
        }
        Ok(Self { version: u64::from_str_radix(version, 16).map_err(|_| TokenError)?, stream: stream.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Position;

    #[test]
    fn a_token_survives_its_text_form() {
        let token = SlidingToken { version: u64::MAX, stream: StreamToken::at(Position(9)) };
        assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        for text in [
            "",
            "p1_",
            "s1_1",
            "p1_1",
            "p1_s1_1",
            "p1_+1_s1_1",
            "p1_1_1_s1_1",
            "p1_10000000000000000_s1_1",
            "p2_1_s1_1",
        ] {
            assert_eq!(text.parse::<SlidingToken>(), Err(TokenError), "{text}");
        }
    }
}
