//! Where records come from.

mod channel;
mod collection;
mod generate;
mod lines;
mod records;
mod tail;

pub use self::{
    channel::{Channel, Closed, Sender, channel},
    collection::{Collection, collection},
    generate::{Generate, Generator, generate, generate_unbounded},
    lines::{Lines, lines, lines_of},
    records::{Records, records_of},
    tail::{Follower, Tail, tail},
};
