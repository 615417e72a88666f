//! What is done to records.

mod exchange;
pub(crate) mod narrow;
pub(crate) mod reduce;
pub(crate) mod union;
