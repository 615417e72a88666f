//! Memory beyond the ledger: records on disk, written once and read once.
//!
//! An operator that is refused more memory writes what it has as a *run*: batches, as they would travel,
//! one block after another. A run is read back one block at a time, in place, so reading `k` of them takes the
//! memory of `k` blocks. [`LoserTree`] merges sorted ones.
//!
//! A file is unlinked before anything is written to it, so nothing is left behind, however the process ends.
//! What was written of each block (where, how many bytes, their checksum) is kept in memory: so a block that is
//! torn, damaged, or not the one that was written is never taken for it, and no number that was read from a
//! disk is trusted.

mod file;
mod run;
mod tree;

use std::{env, path::PathBuf};

pub(crate) use self::{
    file::{File, Files},
    run::{Cut, INDEX_BYTES, Reader, Run, Writer},
    tree::LoserTree,
};

/// Where and how records are kept that memory has no room for.
///
/// ```
/// use dataflow::spill;
///
/// let config = spill::Config { directories: vec!["/tmp".into()], ..spill::Config::default() };
/// assert_eq!(config.compression, spill::Compression::WhenSmall);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The directories that files are made in, one after the other: best one for each disk. By default the one
    /// for temporary files. It has to exist.
    pub directories: Vec<PathBuf>,
    /// Whether blocks are compressed.
    pub compression: Compression,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            directories: vec![env::temp_dir()],
            compression: Compression::WhenSmall,
        }
    }
}

/// Whether blocks are compressed, by LZ4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Never.
    Never,
    /// When the first blocks of a run come out at less than 3/8 of their size. To compress a byte and expand it
    /// again takes a core 2.5 ns; to write it to a disk of 600 MB/s and read it back, 3.3 ns, shared by the
    /// cores that wait for it. So a run has to shrink a lot before that is won back.
    WhenSmall,
    /// Always, for disks that are slow or small.
    Always,
}
