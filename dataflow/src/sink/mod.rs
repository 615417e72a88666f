//! Where records go.

mod collect;
mod for_each;
mod write_file;

pub(crate) use self::{collect::Collect, for_each::ForEach, write_file::WriteFile};
