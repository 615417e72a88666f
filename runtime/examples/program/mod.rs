//! What the programs have in common: how they start and end, and what they say of a result that is wrong.

#![allow(dead_code, reason = "each example uses the part it needs")]

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use updraft::{Error, dataflow::spill, prelude::*};

/// How many executors a program has.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Executors {
    /// Executors in this process (default: one for each core).
    #[arg(long, global = true, value_name = "E")]
    executors: Option<u32>,
}

impl Executors {
    /// The configuration of a program with them.
    pub(crate) fn config(self) -> Config {
        Config {
            executors: self.executors,
            ..Config::default()
        }
    }

    /// Runs a program that works with graphs. Gives the exit code of the process.
    pub(crate) fn run<R>(self, program: impl FnOnce(&mut Env) -> Result<R, Error>) -> ExitCode {
        updraft::exit(updraft::run(self.config(), program).map(drop))
    }

    /// The same for one in the manner of MPI.
    pub(crate) fn bsp(
        self,
        program: impl Fn(&Group) -> Result<(), Error> + Send + Sync + 'static,
    ) -> ExitCode {
        self.run(|env| env.bsp(program))
    }
}

/// How much room a program has whose data may not fit in memory.
#[derive(Debug, Clone, Args)]
pub(crate) struct Room {
    /// The most memory that data may take, such as 512M (default: three quarters of what there is).
    #[arg(long, global = true, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,

    /// Directories for what memory has no room for (default: the one for temporary files).
    #[arg(long, global = true, value_name = "DIR")]
    spill: Vec<PathBuf>,

    #[command(flatten)]
    executors: Executors,
}

impl Room {
    /// The configuration of a program with it.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config {
            memory_bytes: self.memory,
            spill: spill::Config::default(),
            ..self.executors.config()
        };
        if !self.spill.is_empty() {
            config.spill.directories.clone_from(&self.spill);
        }
        config
    }
}

/// Reads a number of bytes: `512M`, `2G`, `65536`.
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim_end_matches("iB").trim_end_matches('B');
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more than there is anywhere".to_owned())
}

/// The error of a result that is not the same as that of a plain loop, if it is not.
pub(crate) fn check_same(is_same: bool) -> Result<(), Error> {
    match is_same {
        true => Ok(()),
        false => Err(Error::program(
            "the result differs from that of a plain loop",
        )),
    }
}
