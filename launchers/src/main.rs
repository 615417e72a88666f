//! The `updraft` command.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use launchers::command::Command;
use updraft::dataflow::one_line;

fn main() -> ExitCode {
    match Command::parse().run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Where nobody listens there is nobody to tell.
            let _ = writeln!(io::stderr(), "updraft: {}", one_line(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
