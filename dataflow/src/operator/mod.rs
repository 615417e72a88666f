//! What is done to records.

pub(crate) mod aggregate;
pub(crate) mod cross;
mod exchange;
pub(crate) mod fallible;
pub(crate) mod group;
mod index;
pub(crate) mod join;
pub(crate) mod limit;
pub(crate) mod narrow;
pub(crate) mod partition;
pub(crate) mod reduce;
pub(crate) mod sort;
pub(crate) mod statistics;
pub(crate) mod union;
pub(crate) mod variable;
