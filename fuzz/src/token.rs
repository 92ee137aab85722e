//! Reads bytes as a token that a client hands back, and checks what must hold of those that are one.

use std::{
    fmt::{Debug, Display},
    str::FromStr,
};

/// Reads `data`; whether it is a token. What is read is the same when it is written and read again.
pub(crate) fn read<Token: FromStr + Display + PartialEq + Debug>(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(token) = text.parse::<Token>() else { return false };
    let Ok(again) = token.to_string().parse::<Token>() else { panic!("{token:?} is not read again") };
    assert_eq!(again, token);
    true
}
