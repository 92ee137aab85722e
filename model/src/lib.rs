//! The vocabulary of the house: identifiers, limits, events, clock and randomness; no I/O.
