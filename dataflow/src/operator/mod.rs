//! What is done to records.

pub(crate) mod narrow;
pub(crate) mod reduce;
