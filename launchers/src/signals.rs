//! The signals that a launcher passes on to its workers.
//!
//! They are blocked in every thread and waited for in one, so that no handler is needed. What a
//! launcher was told to ignore, as by `nohup`, stays ignored.

use std::{fs, io, thread};

use nix::sys::signal::{SigSet, Signal};

use crate::Error;

/// What is passed on.
const FORWARDED: [Signal; 5] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Blocks the signals to pass on, in this thread and those it starts from here on, and calls
/// `arrived` with each, on a thread of its own.
pub(crate) fn forward(arrived: impl Fn(Signal) + Send + 'static) -> Result<(), Error> {
    let ignored = ignored().map_err(Error::io("read which signals are ignored"))?;
    let signals: SigSet = FORWARDED
        .into_iter()
        .filter(|&signal| !is_in(signal, ignored))
        .collect();
    signals
        .thread_block()
        .map_err(Error::io("block the signals to forward"))?;
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            arrived(signal);
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map(drop)
        .map_err(Error::io("start a thread"))
}

/// Undoes the blocking, in a process that inherited it.
pub(crate) fn unblock() -> Result<(), Error> {
    FORWARDED
        .into_iter()
        .collect::<SigSet>()
        .thread_unblock()
        .map_err(Error::io("unblock the forwarded signals"))
}

/// Whether a second of these is a demand to stop at once.
pub(crate) fn is_demand(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGTERM)
}

/// The signals this process ignores, one bit each.
fn ignored() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    ignored_in(&status).ok_or_else(|| io::Error::other("/proc/self/status has no SigIgn"))
}

fn ignored_in(status: &str) -> Option<u64> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn is_in(signal: Signal, mask: u64) -> bool {
    mask >> (signal as i32 - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignored_signals_are_read_from_the_status() {
        let mask = ignored_in("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n").unwrap();
        assert!(is_in(Signal::SIGHUP, mask) && is_in(Signal::SIGPIPE, mask));
        assert!(!is_in(Signal::SIGINT, mask));
    }

    #[test]
    fn this_process_has_a_status() {
        assert!(is_in(Signal::SIGPIPE, ignored().unwrap()));
    }
}
