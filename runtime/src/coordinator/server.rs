//! The coordinator: one a job, wherever the job's launcher is.

use std::{
    fmt, io,
    net::TcpListener,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use transport::{Acceptor, FINISH_BYTES, HELLO_BYTES, Refusal, Secret};

use super::{
    Book, COORDINATOR, Entry,
    protocol::{Malformed, Message, Order, ReadError, Report},
    stream::{Address, Link, Listener, PROOF_TIME_MAX, Stream},
};
use crate::progress::Amount;

/// Connections that may be at their proof at once, beyond one a worker.
const STRANGERS_MAX: usize = 64;

/// Stack of a thread that serves one connection, in bytes.
const STACK_BYTES: usize = 256 << 10;

/// How long to wait after a connection could not be accepted, for want of descriptors usually.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Registers a job's workers, hands out their addresses, and hears how they fare.
///
/// It runs on threads of its own. What happens is told to the function given at the start, which
/// these threads call: what concerns one worker comes in order. Dropping the coordinator ends its
/// connections, which tells the workers that it is gone, and nothing more is reported.
#[derive(Debug)]
pub struct Coordinator {
    roster: Arc<Roster>,
    listener: Arc<Listener>,
    address: Address,
}

impl Coordinator {
    /// Starts a coordinator for the processes of this machine.
    ///
    /// # Errors
    ///
    /// What the system says when it has no socket, no thread or no random bytes to give.
    pub fn start(workers: u32, events: impl Fn(Event) + Send + Sync + 'static) -> io::Result<Self> {
        Self::start_on(&Listen::Local, workers, events)
    }

    /// Starts a coordinator that listens where it is told to.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start), or that the place to listen is not to be had.
    pub fn start_on(
        listen: &Listen,
        workers: u32,
        events: impl Fn(Event) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (listener, address) = listen.bind()?;
        let coordinator = Self {
            roster: Arc::new(Roster::new(workers, Box::new(events))?),
            listener: Arc::new(listener),
            address,
        };
        let roster = Arc::clone(&coordinator.roster);
        let listener = Arc::clone(&coordinator.listener);
        spawn(move || accept_all(&listener, &roster))?;
        Ok(coordinator)
    }

    /// Where it listens, as a worker's [`Membership`](super::Membership) wants it.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What the job's processes share.
    pub fn secret(&self) -> &Secret {
        &self.roster.secret
    }

    /// Tells all workers to stop, those to come included. It does not wait for them.
    pub fn abort(&self, reason: &str) {
        self.roster.abort(reason);
    }

    /// Waits until every connection has ended and all that came over them is told, or the time is
    /// up. Returns whether it is so. It makes sense once the workers' processes have ended.
    pub fn settle(&self, time_max: Duration) -> bool {
        let connections = self.roster.connections();
        let waited =
            self.roster
                .connection_ended
                .wait_timeout_while(connections, time_max, |connections| *connections > 0);
        let (connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *connections == 0
    }

    #[cfg(test)]
    pub(super) fn seats_taken(&self) -> usize {
        self.roster.seats().links().len()
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.roster.close();
        self.listener.shutdown();
    }
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker is there. Once all are, each gets the book of addresses.
    Registered {
        /// Which.
        worker: u32,
    },
    /// A worker told how far it is.
    Progress {
        /// Which.
        worker: u32,
        /// How far.
        amount: Amount,
    },
    /// A worker cannot go on.
    Failed {
        /// Which.
        worker: u32,
        /// Why, in its own words.
        message: String,
    },
    /// A worker is done.
    Finished {
        /// Which.
        worker: u32,
        /// What it has to say about it.
        summary: String,
    },
    /// A worker wants all to end what they do, and all are told. It comes once at most.
    Cancelled {
        /// Which.
        worker: u32,
        /// Why, in its own words.
        reason: String,
    },
    /// Messages of a worker to other nodes go over TCP, though RDMA would have carried them. It comes once at most.
    FellBack {
        /// Which.
        worker: u32,
        /// Why not over RDMA.
        reason: String,
    },
    /// A worker's connection ended, and it had neither failed nor finished.
    Lost {
        /// Which.
        worker: u32,
    },
    /// A connection was turned away, or broke the protocol. The others are not affected.
    Refused {
        /// Why.
        reason: String,
    },
}

/// Where a coordinator listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Listen {
    /// On a socket of this machine, under a name nobody can guess.
    #[default]
    Local,
    /// On a TCP port of this machine.
    Tcp {
        /// The name or address by which the workers know this machine, and at which it listens. An
        /// IPv6 address is in brackets.
        host: String,
        /// The port, or 0 for any.
        port: u16,
    },
}

impl Listen {
    fn bind(&self) -> io::Result<(Listener, Address)> {
        match self {
            Self::Local => {
                let name = random_name()?;
                Ok((Listener::bind_unix(&name)?, Address::Unix(name)))
            }
            Self::Tcp { host, port } => {
                let listener = TcpListener::bind((host.trim_matches(['[', ']']), *port))?;
                let port = listener.local_addr()?.port();
                Ok((
                    Listener::Tcp(listener),
                    Address::Tcp(format!("{host}:{port}")),
                ))
            }
        }
    }
}

/// Who is in the job: what all threads of a coordinator share.
struct Roster {
    secret: Secret,
    events: Box<dyn Fn(Event) + Send + Sync>,
    seats: Mutex<Seats>,
    /// Connections that have not proved themselves yet.
    strangers: AtomicUsize,
    /// Connections that somebody still listens to.
    connections: Mutex<usize>,
    connection_ended: Condvar,
    closed: AtomicBool,
}

/// One seat a worker.
struct Seats {
    of_worker: Vec<Seat>,
    /// Why the job was given up, once it was.
    aborted: Option<String>,
    /// Whether a worker has cancelled it.
    is_cancelled: bool,
    /// Whether a worker has told that it fell back to TCP.
    has_fallen_back: bool,
}

/// A worker's place in the job. Once taken it is never given to another.
#[derive(Default)]
struct Seat {
    link: Option<Arc<Link>>,
    entry: Option<Entry>,
}

impl Roster {
    fn new(workers: u32, events: Box<dyn Fn(Event) + Send + Sync>) -> io::Result<Self> {
        Ok(Self {
            secret: Secret::random().map_err(io::Error::other)?,
            events,
            seats: Mutex::new(Seats {
                of_worker: (0..workers).map(|_| Seat::default()).collect(),
                aborted: None,
                is_cancelled: false,
                has_fallen_back: false,
            }),
            strangers: AtomicUsize::new(0),
            connections: Mutex::new(0),
            connection_ended: Condvar::new(),
            closed: AtomicBool::new(false),
        })
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, usize> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        if !self.closed.load(Ordering::Relaxed) {
            (self.events)(event);
        }
    }

    /// Gives a worker its seat, and the bad news if the job is over already.
    fn seat(&self, worker: u32, link: &Arc<Link>) -> Result<(), Rejection> {
        let mut seats = self.seats();
        if self.closed.load(Ordering::Relaxed) {
            return Err(Rejection::Closed);
        }
        let workers = seats.of_worker.len();
        let seat = seats
            .of_worker
            .get_mut(worker as usize)
            .ok_or(Rejection::NoSuchWorker { worker, workers })?;
        if seat.link.is_some() {
            return Err(Rejection::Duplicate { worker });
        }
        seat.link = Some(Arc::clone(link));
        if let Some(reason) = &seats.aborted {
            order_abort(link, reason);
        }
        Ok(())
    }

    /// Notes what a worker says of itself, and sends the book when it was the last to say so.
    fn register(&self, worker: u32, entry: Entry) -> Result<(), Malformed> {
        let mut seats = self.seats();
        let seat = &mut seats.of_worker[worker as usize];
        if seat.entry.is_some() {
            return Err(Malformed::Turn);
        }
        seat.entry = Some(entry);
        let complete = seats.book().map(|book| (book, seats.links()));
        drop(seats);
        self.tell(Event::Registered { worker });
        if let Some((book, links)) = complete {
            self.send_book(book, &links);
        }
        Ok(())
    }

    fn send_book(&self, book: Book, links: &[Arc<Link>]) {
        match Order::Book(book).frame() {
            Ok(frame) => {
                for link in links {
                    // A link that fails is cut, and its reader reports the loss.
                    let _ = link.send(&frame);
                }
            }
            Err(malformed) => self.abort(&format!("the book of addresses: {malformed}")),
        }
    }

    /// Tells all workers that one of them cancels, if it is the first.
    fn cancel(&self, worker: u32, reason: String) {
        let mut seats = self.seats();
        if std::mem::replace(&mut seats.is_cancelled, true) {
            return;
        }
        let links = seats.links();
        drop(seats);
        let order = Order::Cancel {
            worker,
            reason: reason.clone(),
        };
        if let Ok(frame) = order.frame() {
            for link in links {
                // A link that fails is cut, and its reader reports the loss.
                let _ = link.send(&frame);
            }
        }
        self.tell(Event::Cancelled { worker, reason });
    }

    fn fall_back(&self, worker: u32, reason: String) {
        let was_told = std::mem::replace(&mut self.seats().has_fallen_back, true);
        if !was_told {
            self.tell(Event::FellBack { worker, reason });
        }
    }

    fn abort(&self, reason: &str) {
        let mut seats = self.seats();
        seats.aborted.get_or_insert_with(|| reason.to_owned());
        let links = seats.links();
        drop(seats);
        for link in links {
            order_abort(&link, reason);
        }
    }

    /// Ends all connections, and the reports with them. Nobody is seated after it.
    fn close(&self) {
        let seats = self.seats();
        self.closed.store(true, Ordering::Relaxed);
        for link in seats.links() {
            link.cut();
        }
    }
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster").finish_non_exhaustive()
    }
}

impl Seats {
    /// What all say of themselves, once all have.
    fn book(&self) -> Option<Book> {
        self.of_worker
            .iter()
            .map(|seat| seat.entry.clone())
            .collect()
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.of_worker
            .iter()
            .filter_map(|seat| seat.link.clone())
            .collect()
    }
}

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
enum Rejection {
    #[error("a connection ended before it had proved itself: {0}")]
    Stream(#[from] io::Error),
    #[error("a connection was refused: {0}")]
    Proof(#[from] Refusal),
    #[error("a connection could not be checked: {0}")]
    Random(#[from] transport::Error),
    #[error("a connection was refused: too many others are at their proof")]
    Crowd,
    #[error("a connection was refused: the coordinator is closing")]
    Closed,
    #[error("worker {worker} was refused: the job has {workers} workers, from 0")]
    NoSuchWorker { worker: u32, workers: usize },
    #[error("worker {worker} was refused: it is there already")]
    Duplicate { worker: u32 },
}

fn accept_all(listener: &Listener, roster: &Arc<Roster>) {
    while !roster.closed.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok(stream) => serve_aside(stream, roster),
            Err(_) => thread::sleep(ACCEPT_PAUSE),
        }
    }
}

/// Serves one connection on a thread of its own, unless too many strangers are about.
fn serve_aside(stream: Stream, roster: &Arc<Roster>) {
    let strangers_max = STRANGERS_MAX + roster.seats().of_worker.len();
    if roster.strangers.load(Ordering::Relaxed) >= strangers_max {
        return turn_away(roster, &Rejection::Crowd);
    }
    let connection = Connection::new(Arc::clone(roster));
    if let Err(error) = spawn(move || connection.serve(stream)) {
        turn_away(roster, &Rejection::Stream(error));
    }
}

/// One connection, counted from its beginning to its end.
struct Connection {
    roster: Arc<Roster>,
    is_stranger: bool,
}

impl Connection {
    fn new(roster: Arc<Roster>) -> Self {
        roster.strangers.fetch_add(1, Ordering::Relaxed);
        *roster.connections() += 1;
        Self {
            roster,
            is_stranger: true,
        }
    }

    fn serve(mut self, stream: Stream) {
        let proved = prove(stream, &self.roster.secret);
        self.grow_familiar();
        match proved.and_then(|(worker, link)| admit(worker, link, &self.roster)) {
            Ok((worker, link)) => listen_to(worker, &link, &self.roster),
            Err(rejection) => turn_away(&self.roster, &rejection),
        }
    }

    /// The proof is over, whichever way it went.
    fn grow_familiar(&mut self) {
        if std::mem::take(&mut self.is_stranger) {
            self.roster.strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.grow_familiar();
        *self.roster.connections() -= 1;
        self.roster.connection_ended.notify_all();
    }
}

fn turn_away(roster: &Roster, rejection: &Rejection) {
    let reason = rejection.to_string();
    roster.tell(Event::Refused { reason });
}

/// Both ends prove that they know the secret. Until then 64 bytes are read, whoever sends them.
fn prove(mut stream: Stream, secret: &Secret) -> Result<(u32, Link), Rejection> {
    let deadline = Instant::now() + PROOF_TIME_MAX;
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact_by(&mut hello, deadline)?;
    let acceptor = Acceptor::new(secret, COORDINATOR, &hello)??;
    stream.write_all_by(acceptor.answer(), deadline)?;
    let mut finish = [0; FINISH_BYTES];
    stream.read_exact_by(&mut finish, deadline)?;
    let worker = acceptor.check(&finish)?;
    Ok((worker, Link::new(stream)?))
}

/// Seats a worker that has proved itself, or tells it why not.
fn admit(worker: u32, link: Link, roster: &Roster) -> Result<(u32, Arc<Link>), Rejection> {
    let link = Arc::new(link);
    if let Err(rejection) = roster.seat(worker, &link) {
        order_abort(&link, &rejection.to_string());
        link.linger();
        return Err(rejection);
    }
    Ok((worker, link))
}

/// Hears a worker out.
fn listen_to(worker: u32, link: &Link, roster: &Roster) {
    let mut ended = false;
    loop {
        let heard = match Report::read(&mut link.reader()) {
            Ok(Some(report)) => hear(worker, report, &mut ended, roster),
            Ok(None) | Err(ReadError::Stream(_)) => break,
            Err(ReadError::Malformed(malformed)) => Err(malformed),
        };
        if let Err(malformed) = heard {
            let reason = format!("worker {worker} broke the protocol: {malformed}");
            roster.tell(Event::Refused { reason });
            break;
        }
    }
    link.cut();
    if !ended {
        roster.tell(Event::Lost { worker });
    }
}

fn hear(worker: u32, report: Report, ended: &mut bool, roster: &Roster) -> Result<(), Malformed> {
    match report {
        Report::Register(entry) => return roster.register(worker, entry),
        Report::Progress(amount) => roster.tell(Event::Progress { worker, amount }),
        Report::Failed { message } => {
            *ended = true;
            roster.tell(Event::Failed { worker, message });
        }
        Report::Finished { summary } => {
            *ended = true;
            roster.tell(Event::Finished { worker, summary });
        }
        Report::Cancel { reason } => roster.cancel(worker, reason),
        Report::FellBack { reason } => roster.fall_back(worker, reason),
    }
    Ok(())
}

/// Tells a worker to stop, without waiting for it. Nothing is said to it after that.
fn order_abort(link: &Link, reason: &str) {
    let reason = reason.to_owned();
    match (Order::Abort { reason }).frame() {
        Ok(frame) => link.send_last(&frame),
        Err(_) => link.cut(), // Words are cut to fit in a frame. If they did not, the end would say it.
    }
}

fn random_name() -> io::Result<String> {
    let random = Secret::random().map_err(io::Error::other)?;
    let digits = random.as_bytes()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"));
    Ok(format!("updraft-{}", digits.collect::<String>()))
}

fn spawn(serve: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("coordinator".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(serve)
        .map(drop)
}
