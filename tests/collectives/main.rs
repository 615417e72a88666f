//! What the operations of groups promise: the same as a plain loop over the operands of all members, whatever the
//! algorithm, the number of members, the length and the network.

mod buffers;
mod cooperative;
mod exact;
mod failure;
mod flight;
mod harness;
#[path = "../support/long.rs"]
mod long;
#[path = "../support/machines.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod machines;
mod messages;
mod operations;
mod partition;
mod plans;
mod processes;
#[path = "../support/skip.rs"]
mod skip;
mod tables;
mod together;
mod topology;
mod values;
