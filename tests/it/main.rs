//! Tests of whole servers, and of the house itself.

mod levels;
