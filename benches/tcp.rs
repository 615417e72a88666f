//! What a message over TCP costs beside the bare sockets it goes through: one way there and back, and in a
//! stream.
//!
//! Two threads, each on a core of its own, with a connection over the loopback. The bare sockets, busy-polled,
//! and the messages take turns in batches within one run, and each batch is compared with the
//! bare one measured just before it. `cargo bench --bench tcp`; with `-- --smoke`, a few batches.

mod support;

use std::{
    env,
    hint::{black_box, spin_loop},
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use support::measure::{Spread, machine};
use transport::{Arena, Config, Event, Fabric, Ledger, Rank, Secret, Transport};

/// Round trips in a batch.
const TRIPS: u32 = 500;
/// Messages in a batch of a stream, and their size.
const STREAM: u32 = 64;
const STREAM_BYTES: usize = 1 << 20;
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

const WORKS: [Work; 4] = [
    Work::Trips(8),
    Work::Trips(1 << 10),
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
    /// The side that takes the time.
    fn here(&mut self, work: Work);
    fn there(&mut self, work: Work);
}

fn main() {
    let smoke = env::args().any(|argument| argument == "--smoke");
    let batches = if smoke { SMOKE_BATCHES } else { BATCHES };
    let machine = machine(); // Before this thread is pinned, which would hide the other cores.
    println!("{machine}; {TRIPS} round trips or {STREAM} messages a batch, {batches} batches");
    let (mut here, there) = sides();
    let start = Arc::new(Barrier::new(2));
    let echo = {
        let start = start.clone();
        thread::spawn(move || {
            let mut there = there();
            pin(1);
            for _ in 0..=batches {
                for work in WORKS {
                    for side in &mut there {
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
        WORKS.map(|work| {
            let times = here.iter_mut().map(|side| {
                start.wait();
                let begun = Instant::now();
                side.here(work);
                work.figure(begun.elapsed())
            });
            times.collect::<Vec<f64>>()
        })
    };
    batch(); // It connects and warms up.
    let all: Vec<_> = (0..batches).map(|_| batch()).collect();
    start.wait();
    echo.join().expect("the echo does not panic");
    for (work, index) in WORKS.into_iter().zip(0..) {
        println!("{}, median (min-max):", work.name());
        for (nth, side) in here.iter().enumerate() {
            let figures = Spread::of(all.iter().map(|batch| batch[index][nth]));
            let ratio = Spread::of(all.iter().map(|batch| batch[index][nth] / batch[index][0]));
            let verdict = match side.name() {
                "updraft" => work.verdict(ratio.median),
                _ => String::new(),
            };
            println!("  {:<16} {figures}  ratio {ratio} {verdict}", side.name());
        }
    }
}

type Sides = Vec<Box<dyn Side>>;

/// The ways of this end, and what makes those of the other on its own thread.
fn sides() -> (impl FnMut() -> Sides, impl FnOnce() -> Sides + Send) {
    let (bare, bare_there) = pair();
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
            gather(Bare(bare_there), messages)
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
        gather(Bare(bare), messages)
    };
    (here, there)
}

fn gather(bare: Bare, messages: [Messages; 2]) -> Sides {
    let mut sides: Sides = vec![Box::new(bare)];
    sides.extend(messages.map(|side| Box::new(side) as Box<dyn Side>));
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

impl Side for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn here(&mut self, work: Work) {
        match work {
            Work::Trips(bytes) => {
                let mut message = vec![1; bytes];
                for _ in 0..TRIPS {
                    write_all(&self.0, &message);
                    read_all(&self.0, &mut message);
                }
            }
            Work::Stream => {
                let message = vec![1; STREAM_BYTES];
                for _ in 0..STREAM {
                    write_all(&self.0, &message);
                }
                read_all(&self.0, &mut [0]);
            }
        }
    }

    fn there(&mut self, work: Work) {
        match work {
            Work::Trips(bytes) => {
                let mut message = vec![0; bytes];
                for _ in 0..TRIPS {
                    read_all(&self.0, &mut message);
                    write_all(&self.0, &message);
                }
            }
            Work::Stream => {
                let mut message = vec![0; STREAM_BYTES];
                for _ in 0..STREAM {
                    read_all(&self.0, &mut message);
                }
                write_all(&self.0, &[1]);
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

    fn send(&mut self, bytes: usize) {
        let peer = 1 - self.fabric.rank();
        if bytes <= 48 {
            let sent = self.fabric.send_copy(peer, 0, &[1; 48][..bytes]);
            assert!(sent.expect("the peer is there"));
            return;
        }
        let loan = loop {
            match self.fabric.loan(bytes).expect("it fits") {
                Some(loan) => break loan,
                // Room is told by the peer, to who listens.
                None => assert!(self.poll().is_none()),
            }
        };
        self.fabric.send(peer, loan).expect("the peer is there");
    }

    fn poll(&mut self) -> Option<transport::Buffer> {
        match self.fabric.receive().expect("the sockets work") {
            Some(Event::Message { buffer, .. }) => Some(buffer),
            Some(event) => panic!("{event:?}"),
            None => None,
        }
    }

    fn receive(&mut self) -> transport::Buffer {
        loop {
            match self.poll() {
                Some(message) => return message,
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
                for _ in 0..TRIPS {
                    self.send(bytes);
                    black_box(self.receive());
                }
            }
            Work::Stream => {
                for _ in 0..STREAM {
                    self.send(STREAM_BYTES);
                }
                black_box(self.receive());
            }
        }
    }

    fn there(&mut self, work: Work) {
        match work {
            Work::Trips(bytes) => {
                for _ in 0..TRIPS {
                    black_box(self.receive());
                    self.send(bytes);
                }
            }
            Work::Stream => {
                for _ in 0..STREAM {
                    black_box(self.receive());
                }
                self.send(1);
            }
        }
        // The last message is on its way when the batch ends.
        while !self.fabric.flush().expect("the sockets work") {}
    }
}
