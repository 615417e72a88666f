//! What a message over TCP costs beside the bare sockets it goes through: one way there and back, and in a
//! stream.
//!
//! Two threads, each on a core of its own, with a connection over the loopback. The bare sockets, busy-polled,
//! and the messages take turns in batches within one run, and each batch is compared with the
//! bare one measured just before it. Every byte is written before a message is sent and read when it has come, by
//! both. `cargo bench --bench tcp`; with `-- --smoke`, a few batches; with `-- --only stream`, what is so named.
//!
//! With `-- --ways`, two other ways to use bare sockets stand beside them for large messages: `MSG_ZEROCOPY`, without waiting for the
//! memory to be free again, as if there were always more of it; and two connections, with a half of each message.

mod support;

use std::{
    env,
    hint::{black_box, spin_loop},
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send, setsockopt},
};
use support::measure::{Spread, machine};
use transport::{Arena, Config, Event, Fabric, Ledger, Rank, Secret, Transport};

/// Round trips in a batch.
const TRIPS: u32 = 500;
/// Messages in a batch of a stream, and their size.
const STREAM: u32 = 64;
const STREAM_BYTES: usize = 1 << 20;
/// Messages so large can go in other ways.
const LARGE: usize = 64 << 10;
const BATCHES: usize = 60;
const SMOKE_BATCHES: usize = 3;
/// Room for a few messages of a stream: who has much more sends what no cache holds.
const ARENA_BYTES: u64 = 8 << 20;

/// What one batch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Messages of so many bytes go there and back.
    Trips(usize),
    /// Messages of 1 MiB go there, and a word comes back.
    Stream,
}

const WORKS: [Work; 5] = [
    Work::Trips(8),
    Work::Trips(1 << 10),
    Work::Trips(8 << 10),
    Work::Trips(64 << 10),
    Work::Stream,
];

impl Work {
    fn name(self) -> String {
        match self {
            Self::Trips(bytes) => format!("{bytes} B one way, us"),
            Self::Stream => "1 MiB stream, MB/s".to_owned(),
        }
    }

    /// What counts, of a batch that took so long.
    fn figure(self, time: Duration) -> f64 {
        match self {
            Self::Trips(_) => time.as_secs_f64() * 1e6 / f64::from(2 * TRIPS),
            Self::Stream => f64::from(STREAM) * STREAM_BYTES as f64 / 1e6 / time.as_secs_f64(),
        }
    }

    /// What the ratio to the bare sockets is to be, and whether `ratio` is that.
    fn verdict(self, ratio: f64) -> String {
        let (target, met) = match self {
            Self::Trips(_) => ("<= 1.15", ratio <= 1.15),
            Self::Stream => (">= 0.95", ratio >= 0.95),
        };
        format!("target {target} {}", if met { "met" } else { "missed" })
    }
}

/// One end of a way to move bytes, which both threads have.
trait Side {
    fn name(&self) -> &'static str;
    /// Whether it is a way to do this.
    fn does(&self, _work: Work) -> bool {
        true
    }
    /// The side that takes the time.
    fn here(&mut self, work: Work);
    fn there(&mut self, work: Work);
}

fn main() {
    let smoke = env::args().any(|argument| argument == "--smoke");
    let batches = if smoke { SMOKE_BATCHES } else { BATCHES };
    let machine = machine(); // Before this thread is pinned, which would hide the other cores.
    println!("{machine}; {TRIPS} round trips or {STREAM} messages a batch, {batches} batches");
    let ways = env::args().any(|argument| argument == "--ways");
    let only = env::args()
        .skip_while(|argument| argument != "--only")
        .nth(1);
    let named = |work: &Work| only.as_ref().is_none_or(|only| work.name().contains(only));
    let works: Vec<Work> = WORKS.into_iter().filter(named).collect();
    let (mut here, there) = sides(ways);
    let start = Arc::new(Barrier::new(2));
    let echo = {
        let (start, works) = (start.clone(), works.clone());
        thread::spawn(move || {
            let mut there = there();
            pin(1);
            for _ in 0..=batches {
                for &work in &works {
                    for side in there.iter_mut().filter(|side| side.does(work)) {
                        start.wait();
                        side.there(work);
                    }
                }
            }
            start.wait();
        })
    };
    let mut here = here();
    pin(0);
    let mut batch = || {
        let figures = works.iter().map(|&work| {
            let times = here.iter_mut().map(|side| {
                side.does(work).then(|| {
                    start.wait();
                    let begun = Instant::now();
                    side.here(work);
                    work.figure(begun.elapsed())
                })
            });
            times.collect::<Vec<Option<f64>>>()
        });
        figures.collect::<Vec<_>>()
    };
    batch(); // It connects and warms up.
    let all: Vec<_> = (0..batches).map(|_| batch()).collect();
    start.wait();
    echo.join().expect("the echo does not panic");
    for (index, &work) in works.iter().enumerate() {
        println!("{}, median (min-max):", work.name());
        for (nth, side) in here.iter().enumerate().filter(|(_, side)| side.does(work)) {
            let of = |nth: usize| all.iter().filter_map(move |batch| batch[index][nth]);
            let figures = Spread::of(of(nth));
            let ratio = Spread::of(of(nth).zip(of(0)).map(|(ours, bare)| ours / bare));
            let verdict = match side.name() {
                "updraft" => work.verdict(ratio.median),
                _ => String::new(),
            };
            println!("  {:<21} {figures}  ratio {ratio} {verdict}", side.name());
        }
    }
}

type Sides = Vec<Box<dyn Side>>;

/// The ways of this end, and what makes those of the other on its own thread.
fn sides(ways: bool) -> (impl FnMut() -> Sides, impl FnOnce() -> Sides + Send) {
    let (bare, bare_there) = bare_sides(ways);
    let secret = Secret::random().expect("there is randomness");
    let (to_there, from_here) = std::sync::mpsc::channel();
    let (to_here, from_there) = std::sync::mpsc::channel();
    let tls = [false, true];
    let there = {
        let secret = secret.clone();
        move || {
            let messages = tls.map(|tls| {
                let mut fabric = fabric(1, &secret, tls);
                let ours = fabric.address().expect("it listens");
                to_here.send(ours.clone()).expect("the other side waits");
                let theirs = from_here.recv().expect("the other side tells");
                fabric.join(&[theirs, ours]).expect("two ranks");
                Messages::new(fabric, tls)
            });
            gather(bare_there, messages)
        }
    };
    let mut once = Some((bare, to_there, from_there));
    let here = move || {
        let (bare, to_there, from_there) = once.take().expect("it is called once");
        let messages = tls.map(|tls| {
            let mut fabric = fabric(0, &secret, tls);
            let ours = fabric.address().expect("it listens");
            to_there.send(ours.clone()).expect("the other side waits");
            let theirs = from_there.recv().expect("the other side tells");
            fabric.join(&[ours, theirs]).expect("two ranks");
            Messages::new(fabric, tls)
        });
        gather(bare, messages)
    };
    (here, there)
}

fn gather(bare: Vec<Box<dyn Side + Send>>, messages: [Messages; 2]) -> Sides {
    let bare = bare.into_iter().map(|side| side as Box<dyn Side>);
    let messages = messages.map(|side| Box::new(side) as Box<dyn Side>);
    bare.chain(messages).collect()
}

type BareSides = Vec<Box<dyn Side + Send>>;

/// Both ends of the bare sockets.
fn bare_sides(ways: bool) -> (BareSides, BareSides) {
    let (here, there) = pair();
    let mut sides: (BareSides, BareSides) =
        (vec![Box::new(Bare(here))], vec![Box::new(Bare(there))]);
    if ways {
        let (here, there) = pair();
        sides.0.push(Box::new(ZeroCopy::new(here)));
        sides.1.push(Box::new(ZeroCopy::new(there)));
        let ((here, there), (second_here, second_there)) = (pair(), pair());
        sides.0.push(Box::new(Halves([here, second_here])));
        sides.1.push(Box::new(Halves([there, second_there])));
    }
    sides
}

fn pin(core: usize) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(&core) = cores.get(core % cores.len().max(1)) {
        core_affinity::set_for_current(core);
    }
}

/// Two ends of a connection over the loopback, that never wait.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let here = TcpStream::connect(listener.local_addr().expect("a port")).expect("a connection");
    let (there, _) = listener.accept().expect("a connection");
    for end in [&here, &there] {
        end.set_nodelay(true).expect("an option");
        end.set_nonblocking(true).expect("an option");
    }
    (here, there)
}

/// Sockets as they are, polled without a pause.
struct Bare(TcpStream);

fn write_all(mut stream: &TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn read_all(mut stream: &TcpStream, mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        match stream.read(bytes) {
            Ok(read) => bytes = &mut bytes[read..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
}

impl Pipe for Bare {
    const NAME: &str = "bare";

    fn write(&mut self, bytes: &[u8]) {
        write_all(&self.0, bytes);
    }

    fn read(&mut self, bytes: &mut [u8]) {
        read_all(&self.0, bytes);
    }
}

/// Reads every byte, as a program does.
fn read_through(message: &[u8]) {
    black_box(message.iter().fold(0, |all, byte| all | byte));
}

/// A way through bare sockets.
trait Pipe {
    const NAME: &str;

    fn write(&mut self, bytes: &[u8]);
    fn read(&mut self, bytes: &mut [u8]);
}

impl<P: Pipe> Side for P {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn does(&self, work: Work) -> bool {
        P::NAME == Bare::NAME || matches!(work, Work::Stream | Work::Trips(LARGE..))
    }

    fn here(&mut self, work: Work) {
        match work {
            Work::Trips(bytes) => {
                let mut message = vec![1; bytes];
                for trip in 0..TRIPS {
                    message.fill(trip as u8);
                    self.write(&message);
                    self.read(&mut message);
                    read_through(&message);
                }
            }
            Work::Stream => {
                let mut message = vec![1; STREAM_BYTES];
                for number in 0..STREAM {
                    message.fill(number as u8);
                    self.write(&message);
                }
                self.read(&mut [0; 2]);
            }
        }
    }

    fn there(&mut self, work: Work) {
        match work {
            Work::Trips(bytes) => {
                let mut message = vec![0; bytes];
                for trip in 0..TRIPS {
                    self.read(&mut message);
                    read_through(&message);
                    message.fill(trip as u8);
                    self.write(&message);
                }
            }
            Work::Stream => {
                let mut message = vec![0; STREAM_BYTES];
                for _ in 0..STREAM {
                    self.read(&mut message);
                    read_through(&message);
                }
                self.write(&[1; 2]);
            }
        }
    }
}

/// A socket whose kernel is asked to send from where the bytes are. It has to be told of each call, by the queue of errors,
/// when that is over; where the receiver is on the same machine, it copies after all.
struct ZeroCopy {
    stream: TcpStream,
    /// Calls that are not over.
    under_way: u32,
}

#[derive(Clone)]
struct MaySendInPlace;

nix::setsockopt_impl!(
    MaySendInPlace,
    libc::SOL_SOCKET,
    libc::SO_ZEROCOPY,
    bool,
    nix::sys::socket::sockopt::SetBool
);

impl ZeroCopy {
    fn new(stream: TcpStream) -> Self {
        setsockopt(&stream, MaySendInPlace, &true).expect("an option");
        Self {
            stream,
            under_way: 0,
        }
    }

    /// Takes in what calls are over.
    fn reap(&mut self) {
        let fd = self.stream.as_raw_fd();
        let mut space = nix::cmsg_space!([u8; 64]);
        while let Ok(message) = recvmsg::<()>(fd, &mut [], Some(&mut space), MsgFlags::MSG_ERRQUEUE)
        {
            for control in message.cmsgs().expect("there is space") {
                if let ControlMessageOwned::Ipv4RecvErr(error, _) = control {
                    self.under_way -= error.ee_data - error.ee_info + 1;
                }
            }
        }
    }
}

impl Pipe for ZeroCopy {
    const NAME: &str = "bare, MSG_ZEROCOPY";

    fn write(&mut self, mut bytes: &[u8]) {
        let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL);
        while !bytes.is_empty() {
            match send(self.stream.as_raw_fd(), bytes, flags) {
                Ok(written) => {
                    self.under_way += 1;
                    bytes = &bytes[written..];
                }
                Err(Errno::EAGAIN | Errno::ENOBUFS) => self.reap(),
                Err(error) => panic!("{error}"),
            }
        }
        self.reap();
    }

    fn read(&mut self, bytes: &mut [u8]) {
        read_all(&self.stream, bytes);
        self.reap();
    }
}

/// Two connections, over which the halves of each message go.
struct Halves([TcpStream; 2]);

impl Pipe for Halves {
    const NAME: &str = "bare, 2 connections";

    fn write(&mut self, bytes: &[u8]) {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let mut halves = [first, second];
        while halves.iter().any(|half| !half.is_empty()) {
            for (mut stream, half) in self.0.iter().zip(&mut halves) {
                match stream.write(half) {
                    Ok(written) => *half = &half[written..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => spin_loop(),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    fn read(&mut self, bytes: &mut [u8]) {
        let (first, second) = bytes.split_at_mut(bytes.len() / 2);
        let mut halves = [first, second];
        while halves.iter().any(|half| !half.is_empty()) {
            for (mut stream, half) in self.0.iter().zip(&mut halves) {
                match stream.read(half) {
                    Ok(read) => *half = &mut std::mem::take(half)[read..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => spin_loop(),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

/// Messages of two ranks, over TCP as it is or under TLS.
struct Messages {
    fabric: Fabric,
    tls: bool,
}

fn fabric(rank: Rank, secret: &Secret, tls: bool) -> Fabric {
    let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).expect("the arena fits");
    let config = Config {
        transport: Transport::Tcp,
        tls,
        ..Config::new(rank, 2, secret)
    };
    Fabric::new(config, arena).expect("sockets can be had")
}

impl Messages {
    fn new(fabric: Fabric, tls: bool) -> Self {
        Self { fabric, tls }
    }

    fn send(&mut self, bytes: usize, value: u32) {
        let peer = 1 - self.fabric.rank();
        if bytes <= 48 {
            let sent = self.fabric.send_copy(peer, 0, &[value as u8; 48][..bytes]);
            assert!(sent.expect("the peer is there"));
            return;
        }
        let mut loan = loop {
            match self.fabric.loan(bytes).expect("it fits") {
                Some(loan) => break loan,
                // Room is told by the peer, to who listens.
                None => assert!(self.poll().is_none()),
            }
        };
        loan.fill(value as u8);
        self.fabric.send(peer, loan).expect("the peer is there");
    }

    fn poll(&mut self) -> Option<transport::Buffer> {
        match self.fabric.receive().expect("the sockets work") {
            Some(Event::Message { buffer, .. }) => Some(buffer),
            Some(event) => panic!("{event:?}"),
            None => None,
        }
    }

    fn receive(&mut self) {
        loop {
            match self.poll() {
                Some(message) => return read_through(&message),
                None => spin_loop(),
            }
        }
    }
}

impl Side for Messages {
    fn name(&self) -> &'static str {
        if self.tls { "updraft, TLS" } else { "updraft" }
    }

    fn here(&mut self, work: Work) {
        match work {
            Work::Trips(bytes) => {
                for trip in 0..TRIPS {
                    self.send(bytes, trip);
                    self.receive();
                }
            }
            Work::Stream => {
                for number in 0..STREAM {
                    self.send(STREAM_BYTES, number);
                }
                self.receive();
            }
        }
    }

    fn there(&mut self, work: Work) {
        match work {
            Work::Trips(bytes) => {
                for trip in 0..TRIPS {
                    self.receive();
                    self.send(bytes, trip);
                }
            }
            Work::Stream => {
                for _ in 0..STREAM {
                    self.receive();
                }
                self.send(1, 0);
            }
        }
        // The last message is on its way when the batch ends.
        while !self.fabric.flush().expect("the sockets work") {}
    }
}
