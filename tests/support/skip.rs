//! Tests that cannot be run where they are.

use std::{
    fmt::Display,
    io::{self, Write},
    thread,
};

/// Says that the test which calls this is left out, and why.
pub(crate) fn skipped(reason: impl Display) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // The harness keeps to itself what a test prints that passes; what is written past it is seen.
    let line = format!("skipped: {test}: {reason}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}
