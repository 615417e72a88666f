//! What is done to records.

pub(crate) mod aggregate;
mod exchange;
mod index;
pub(crate) mod join;
pub(crate) mod narrow;
pub(crate) mod reduce;
pub(crate) mod union;
