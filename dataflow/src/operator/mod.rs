//! What is done to records.

mod again;
pub(crate) mod aggregate;
mod aside;
pub(crate) mod blocking;
pub(crate) mod boxed;
pub(crate) mod cross;
mod exchange;
pub(crate) mod fallible;
pub(crate) mod group;
mod index;
pub(crate) mod interval;
pub(crate) mod join;
pub(crate) mod limit;
pub(crate) mod narrow;
pub(crate) mod partition;
mod passing;
pub(crate) mod reduce;
pub(crate) mod room;
pub(crate) mod running;
pub(crate) mod sort;
pub(crate) mod statistics;
mod table;
pub(crate) mod union;
pub(crate) mod variable;
pub(crate) mod watermarks;
pub(crate) mod window;
pub(crate) mod zip;
