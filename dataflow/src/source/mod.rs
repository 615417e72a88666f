//! Where records come from.

mod channel;
mod collection;
mod files;
mod generate;
mod lines;
mod records;
mod tail;

pub use self::{
    channel::{Channel, Closed, Sender, channel},
    collection::{Collection, collection},
    files::{Found, HostFile, find_files},
    generate::{Generate, Generator, generate, generate_unbounded},
    lines::{Lines, lines, lines_at, lines_of},
    records::{Records, records_at, records_of},
    tail::{Follower, Tail, tail},
};
