//! Where records come from.

mod collection;
mod lines;

pub use self::{
    collection::{Collection, collection},
    lines::{Lines, lines, lines_of},
};
