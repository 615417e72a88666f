//! The `updraft` command.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use launchers::{command::Command, explain};

fn main() -> ExitCode {
    match Command::parse().run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Where nobody listens there is nobody to tell.
            let _ = writeln!(io::stderr(), "updraft: {}", explain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
