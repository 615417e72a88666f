//! The signals by which a user ends a program, as a graceful stop of its jobs.

use std::{io, thread};

use dataflow::Stop;
use nix::sys::signal::{SigSet, Signal};

use crate::Error;

/// Uses `stop` at the first SIGINT or SIGTERM; a second one ends the process, as without this. Both are blocked in the
/// calling thread and those that it starts from here on, so that no handler is needed.
pub(crate) fn stop_at_first(stop: &Stop) -> Result<(), Error> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    let failed = |error| Error::Thread(io::Error::from(error));
    signals.thread_block().map_err(failed)?;
    let stop = stop.clone();
    let wait = move || {
        if signals.wait().is_ok() {
            stop.stop();
        }
        // From here on a signal finds this thread, which does not block it.
        let _ = signals.thread_unblock();
        loop {
            thread::park();
        }
    };
    let builder = thread::Builder::new().name("signals".to_owned());
    builder.spawn(wait).map(drop).map_err(Error::Thread)
}
