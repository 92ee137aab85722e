//! What is new for this user since this token.
