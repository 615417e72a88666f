//! Where records come from.

mod collection;
mod generate;
mod lines;

pub use self::{
    collection::{Collection, collection},
    generate::{Generate, Generator, generate},
    lines::{Lines, lines, lines_of},
};
