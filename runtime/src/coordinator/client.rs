//! A worker's end of the control plane.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use transport::{ANSWER_BYTES, Connector};

use super::{
    Book, COORDINATOR, Entry, Error, Malformed, Membership,
    protocol::{Message, Order, ReadError, Report},
    stream::{Address, Link, PROOF_TIME_MAX, Stream},
};
use crate::progress::Amount;

/// A worker's connection to its coordinator. Dropping it ends the connection.
///
/// The order is: [`connect`](Self::connect), [`register`](Self::register), then
/// [`watch`](Self::watch), and from there on reports, from any thread.
#[derive(Debug)]
pub struct Client {
    worker: u32,
    address: String,
    link: Arc<Link>,
    /// Set when this end ends the connection itself.
    closing: Arc<AtomicBool>,
}

impl Client {
    /// Connects to the coordinator, and has each end prove to the other that it knows the secret.
    ///
    /// # Errors
    ///
    /// [`Error::BadAddress`], [`Error::Unreachable`], or what was wrong with the proof.
    pub fn connect(membership: &Membership) -> Result<Self, Error> {
        let address: Address = membership.coordinator.parse()?;
        let stream = address.connect().map_err(|source| Error::Unreachable {
            worker: membership.worker,
            address: membership.coordinator.clone(),
            source,
        })?;
        let link = prove(stream, membership)?;
        Ok(Self {
            worker: membership.worker,
            address: membership.coordinator.clone(),
            link: Arc::new(link),
            closing: Arc::default(),
        })
    }

    /// Tells where this worker's executors listen and what it is like, and waits until all workers have done so.
    /// Returns what all have told, by worker.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] or [`Error::Gone`] when the job ends before it starts; [`Error::Malformed`] for more
    /// addresses than a frame of 1 MiB holds; [`Error::Connection`] when the connection has failed.
    pub fn register(&self, entry: &Entry) -> Result<Book, Error> {
        self.send(&Report::Register(entry.clone()))?;
        match self.next_order()? {
            Order::Book(book) => Ok(book),
            Order::Abort { reason } | Order::Cancel { reason, .. } => Err(Error::Aborted {
                worker: self.worker,
                address: self.address.clone(),
                reason,
            }),
        }
    }

    /// The address from which this worker reached its coordinator, if that is not on a Unix socket.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.link.reader().local_address()
    }

    /// Calls `on_abort` with the reason, on a thread of its own, when the coordinator gives the job
    /// up or its process ends. It is called once at most, and not for the drop of this client. Before that, `on_cancel` is
    /// called with the worker that has [cancelled](Self::cancel) and its reason.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] when the system has no thread to give.
    pub fn watch(
        &self,
        on_cancel: impl Fn(u32, &str) + Send + 'static,
        on_abort: impl FnOnce(String) + Send + 'static,
    ) -> Result<(), Error> {
        let link = Arc::clone(&self.link);
        let closing = Arc::clone(&self.closing);
        let watch = move || {
            let reason = wait_for_abort(&link, on_cancel);
            if !closing.load(Ordering::Relaxed) {
                on_abort(reason);
            }
        };
        thread::Builder::new()
            .name("coordinator".to_owned())
            .spawn(watch)
            .map(drop)
            .map_err(|source| self.connection_error("watch", source))
    }

    /// Tells how far this worker is.
    ///
    /// It does not wait: a report for which there is no room is left out, as the next says more.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] when the connection has failed.
    pub fn progress(&self, amount: &Amount) -> Result<(), Error> {
        let frame = self.frame(&Report::Progress(*amount))?;
        self.link
            .send_now(&frame)
            .map(drop)
            .map_err(|source| self.connection_error("report to", source))
    }

    /// Tells that this worker cannot go on, and why. The coordinator will stop the others.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] when the connection has failed, or has no room for a second.
    pub fn failed(&self, message: &str) -> Result<(), Error> {
        let message = message.to_owned();
        self.send(&Report::Failed { message })
    }

    /// Has all workers end what they do, this one among them: each is told who wants so and why, by the functions they have
    /// [watch](Self::watch). Of several workers that want so, the first counts for all.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] when the connection has failed, or has no room for a second.
    pub fn cancel(&self, reason: &str) -> Result<(), Error> {
        let reason = reason.to_owned();
        self.send(&Report::Cancel { reason })
    }

    /// Tells that messages of this worker to other nodes go over TCP, and why they do not over RDMA. The first worker to say so is
    /// heard.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] when the connection has failed, or has no room for a second.
    pub fn fell_back(&self, reason: &str) -> Result<(), Error> {
        let reason = reason.to_owned();
        self.send(&Report::FellBack { reason })
    }

    /// Tells that this worker is done. Worker 0's `summary` is shown to the user.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] when the connection has failed, or has no room for a second.
    pub fn finished(&self, summary: &str) -> Result<(), Error> {
        let summary = summary.to_owned();
        self.send(&Report::Finished { summary })
    }

    #[cfg(test)]
    pub(super) fn send_bytes(&self, bytes: &[u8]) {
        self.link.send(bytes).expect("the coordinator is there");
    }

    fn send(&self, report: &Report) -> Result<(), Error> {
        let frame = self.frame(report)?;
        self.link
            .send(&frame)
            .map_err(|source| self.connection_error("report to", source))
    }

    fn frame(&self, report: &Report) -> Result<Vec<u8>, Error> {
        report.frame().map_err(|source| self.malformed(source))
    }

    fn next_order(&self) -> Result<Order, Error> {
        match Order::read(&mut self.link.reader()) {
            Ok(Some(order)) => Ok(order),
            Ok(None) => Err(Error::Gone {
                worker: self.worker,
                address: self.address.clone(),
            }),
            Err(ReadError::Stream(source)) => Err(self.connection_error("hear", source)),
            Err(ReadError::Malformed(source)) => Err(self.malformed(source)),
        }
    }

    fn malformed(&self, source: Malformed) -> Error {
        Error::Malformed {
            worker: self.worker,
            address: self.address.clone(),
            source,
        }
    }

    fn connection_error(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Connection {
            worker: self.worker,
            address: self.address.clone(),
            action,
            source,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        self.link.cut();
    }
}

/// Waits until the job is to end, and says why.
fn wait_for_abort(link: &Link, on_cancel: impl Fn(u32, &str)) -> String {
    loop {
        return match Order::read(&mut link.reader()) {
            Ok(Some(Order::Cancel { worker, reason })) => {
                on_cancel(worker, &reason);
                continue;
            }
            Ok(Some(Order::Abort { reason })) => reason,
            Ok(Some(Order::Book(_))) => "the coordinator broke the protocol".to_owned(),
            Err(ReadError::Malformed(malformed)) => {
                format!("the coordinator broke the protocol: {malformed}")
            }
            Ok(None) | Err(ReadError::Stream(_)) => "the launcher is gone".to_owned(),
        };
    }
}

/// Both ends prove that they know the secret.
fn prove(mut stream: Stream, membership: &Membership) -> Result<Link, Error> {
    let connector = Connector::new(&membership.secret, membership.worker, COORDINATOR)
        .map_err(|source| Error::Proof { source })?;
    let deadline = Instant::now() + PROOF_TIME_MAX;
    let failed = |source| Error::Connection {
        worker: membership.worker,
        address: membership.coordinator.clone(),
        action: "exchange proofs with",
        source,
    };
    stream
        .write_all_by(connector.hello(), deadline)
        .map_err(failed)?;
    let mut answer = [0; ANSWER_BYTES];
    stream
        .read_exact_by(&mut answer, deadline)
        .map_err(failed)?;
    let finish = connector
        .finish(&answer)
        .map_err(|source| Error::Untrusted {
            worker: membership.worker,
            address: membership.coordinator.clone(),
            source,
        })?;
    stream.write_all_by(&finish, deadline).map_err(failed)?;
    Link::new(stream).map_err(failed)
}
