//! Where records go.

mod collect;
mod for_each;
mod write_text;

pub(crate) use self::{collect::Collect, for_each::ForEach, write_text::WriteText};
