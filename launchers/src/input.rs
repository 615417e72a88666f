//! Passing a terminal's input on to worker 0.

use std::{
    io::{self, Read, Write},
    process::ChildStdin,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal},
};

/// Time between two attempts to read a terminal while another job is in its foreground.
const BACKGROUND_INTERVAL: Duration = Duration::from_millis(200);

/// Copies this process's input to a worker, until either ends.
pub(crate) fn relay(mut pipe: ChildStdin) {
    // In the background, a read then fails instead of stopping this process.
    let blocked = SigSet::from(Signal::SIGTTIN).thread_block().is_ok();
    let mut chunk = [0; 4096];
    loop {
        match io::stdin().read(&mut chunk) {
            Ok(0) => return,
            Ok(count) if pipe.write_all(&chunk[..count]).is_err() => return,
            Ok(_) => {}
            Err(error) if blocked && error.raw_os_error() == Some(Errno::EIO as i32) => {
                thread::sleep(BACKGROUND_INTERVAL);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
