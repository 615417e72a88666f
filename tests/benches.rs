//! Runs the tests of what the benches share: benches have no test harness of their own.

#[path = "../benches/support/mod.rs"]
mod support;
