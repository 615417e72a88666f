//! The watch of a link: the TCP connection that says goodbye, and breaks when the peer's process ends.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
};

use super::{Arriving, Rdma};
use crate::{Loss, link::End};

/// The word on the watch that ends a link in order; the number of packets follows.
const GOODBYE: u8 = 1;
const GOODBYE_BYTES: usize = 1 + 8;

/// The peer's goodbye, as far as it has been read.
#[derive(Default)]
pub(super) struct Goodbye {
    bytes: [u8; GOODBYE_BYTES],
    read: usize,
}

impl Rdma {
    /// Reads what the watch says: a goodbye, or that the peer's process is gone.
    pub(super) fn read_watch(&mut self) {
        while self.watched && self.end.is_none() {
            let Goodbye { bytes, read } = &mut self.goodbye;
            match self.watch.read(&mut bytes[*read..]) {
                Ok(0) if *read == GOODBYE_BYTES => return self.finish_when_all_is_here(),
                Ok(0) => return self.finish(End::Lost(Loss::Disconnected)),
                Ok(more) => *read += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watched = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return self.finish(End::Lost(Loss::Disconnected));
                }
                Err(error) => return self.finish(End::Lost(Loss::Connection(error.to_string()))),
            }
        }
    }

    /// The peer said goodbye: the link ends once all its packets and what it offered are here.
    fn finish_when_all_is_here(&mut self) {
        let [word, count @ ..] = self.goodbye.bytes;
        if word != GOODBYE {
            return self.finish(End::protocol("no such word on the watch"));
        }
        self.parts.adapter.poll();
        self.parts.inbox.news.set(false);
        if let Err(end) = self.take_in_completions() {
            return self.finish(end);
        }
        let all_is_here = self.packets_received == u64::from_le_bytes(count)
            && !self.arriving.iter().any(Arriving::is_reading);
        if all_is_here {
            self.finish(End::Closed);
        } else if self.parts.inbox.failed.borrow().is_some() {
            self.parts.inbox.news.set(true); // It is dealt with next.
        }
    }

    /// Says goodbye to a peer at which everything has arrived. A watch that takes no bytes has a peer that is gone.
    pub(super) fn say_goodbye(&mut self) {
        let mut goodbye = [GOODBYE; GOODBYE_BYTES];
        goodbye[1..].copy_from_slice(&self.packets_sent.to_le_bytes());
        let _ = self.watch.write(&goodbye);
    }

    /// Says that nothing more is said.
    pub(super) fn close_watch(&mut self) {
        let _ = self.watch.shutdown(Shutdown::Write); // It may be closed already.
    }
}
