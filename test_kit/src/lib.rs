//! Whole servers in a test: spawn, drive, break.
