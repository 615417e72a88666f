//! Where records come from.

mod collection;
mod generate;
mod lines;
mod records;

pub use self::{
    collection::{Collection, collection},
    generate::{Generate, Generator, generate},
    lines::{Lines, lines, lines_of},
    records::{Records, records_of},
};
