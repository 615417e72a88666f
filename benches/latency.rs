//! How long a message over shared memory takes one way, beside the bare hand-over of a cache line.
//!
//! Two threads, each on a core of its own, play ping-pong. The bare hand-over and the messages take turns
//! in batches within one run, and each batch is compared with the hand-over measured just before it,
//! because a virtual machine's cores move apart and together while it runs. `cargo bench --bench latency`;
//! with `-- --smoke`, a few batches.
//!
//! Both sides pause before they send, for a few nanoseconds at random, which are taken off again. Without that they
//! fall into step: each looks every so often while it waits, and in a fixed rhythm it is chance, and stays so
//! for the whole run, whether a line arrives just before a look or just after, or is taken away by a look while it
//! is being written. The bare line still differs between runs, since a processor may fetch it for writing
//! during the pause.

mod support;

use std::{
    env,
    hint::{black_box, spin_loop},
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::measure::{Spread, machine};
use transport::{Arena, Config, Event, Fabric, Ledger, Rank, Secret, Transport};

/// Round trips in a batch.
const TRIPS: u32 = 500;
const BATCHES: usize = 400;
const SMOKE_BATCHES: usize = 5;
const ARENA_BYTES: u64 = 256 << 20;
/// Hand-overs quicker than this are between near cores, slower ones between far ones.
const FAR: Duration = Duration::from_nanos(120);
/// A batch that took so many times the median of its kind waited for a thread that had lost its core.
const DISTURBED: u32 = 4;

/// The longest pause before a message, in steps of one or two nanoseconds: more than the time between two looks.
const PAUSE_MAX: u32 = 32;
/// Pauses until they repeat themselves.
const PAUSES: usize = 4093;

/// What is sent.
#[derive(Debug, Clone, Copy)]
enum What {
    /// So many bytes by value, beside the descriptor, all written and read.
    Inline(usize),
    /// A loan of so many bytes, handed over as it is.
    Handed(usize),
    /// A loan of so many bytes, of which the first 64 are written and read.
    Touched(usize),
}

/// What a case is compared with.
#[derive(Debug, Clone, Copy)]
enum Floor {
    /// The bare hand-over of a line.
    Line,
    /// The bare hand-over of a line that names another one, which is then read: what it takes at the least when
    /// a payload has been written elsewhere.
    Named,
}

const MIB_4: usize = 4 << 20;

const CASES: [(&str, What, Floor, f64); 6] = [
    ("8 B inline", What::Inline(8), Floor::Line, 1.3),
    ("64 B inline", What::Inline(64), Floor::Line, 1.3),
    ("64 B loaned", What::Handed(64), Floor::Line, 2.0),
    ("4 MiB loaned", What::Handed(MIB_4), Floor::Line, 2.0),
    ("64 B touched", What::Touched(64), Floor::Named, 1.5),
    ("4 MiB touched", What::Touched(MIB_4), Floor::Named, 1.5),
];
/// The places in `CASES` of pairs that should take the same time: what is small and what is large.
const ALIKE: [(usize, usize); 2] = [(2, 3), (4, 5)];

/// A line that one side writes and the other waits for.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// The pauses of one side.
struct Pauses {
    steps: Vec<u32>,
    next: usize,
}

impl Pauses {
    fn new(seed: u64) -> Self {
        let random = std::iter::successors(Some(seed), |seed| {
            let seed = seed ^ (seed << 13);
            let seed = seed ^ (seed >> 7);
            Some(seed ^ (seed << 17))
        });
        let steps = random
            .skip(8)
            .map(|random| (random >> 32) as u32 % PAUSE_MAX);
        Self {
            steps: steps.take(PAUSES).collect(),
            next: 0,
        }
    }

    fn pass(&mut self) {
        let mut left = self.steps[self.next];
        while left > 0 {
            left = black_box(left - 1);
        }
        self.next = (self.next + 1) % PAUSES;
    }

    /// The time that `count` of them take, mostly.
    fn time(&mut self, count: u32) -> Duration {
        let mut times = [(); 101].map(|()| {
            let start = Instant::now();
            (0..count).for_each(|_| self.pass());
            start.elapsed()
        });
        times.sort();
        times[times.len() / 2]
    }
}

/// What two sides share: the line of each, and the payload lines of each.
struct Shared {
    lines: [Line; 2],
    payloads: [[Payload; PAYLOADS]; 2],
}

/// Lines that a payload may be in, on a page each: if there were one, the processor would soon guess it.
const PAYLOADS: usize = 16;

/// A line of payload, written before the other line and read after it.
#[repr(align(4096))]
#[derive(Default)]
struct Payload([AtomicU64; 8]);

impl Payload {
    fn write(&self, value: u64) {
        self.0
            .iter()
            .for_each(|word| word.store(value, Ordering::Relaxed));
    }

    fn read(&self) -> u64 {
        black_box(
            self.0
                .iter()
                .fold(0, |all, word| all | word.load(Ordering::Relaxed)),
        )
    }
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            lines: Default::default(),
            payloads: Default::default(),
        })
    }
}

fn main() {
    let smoke = env::args().any(|argument| argument == "--smoke");
    let batches = if smoke { SMOKE_BATCHES } else { BATCHES };
    let machine = machine(); // Before this thread is pinned, which would hide the other cores.
    let samples = measure(batches);
    let all = samples.len();
    let samples = undisturbed(samples);
    let disturbed = all - samples.len();
    println!(
        "{machine}; {TRIPS} round trips a batch, {all} batches, {disturbed} of them disturbed",
    );
    for (state, near) in [("near", true), ("far", false)] {
        let samples: Vec<_> = samples
            .iter()
            .filter(|sample| (sample.lines[0] < FAR) == near)
            .collect();
        if samples.len() * 20 > all {
            report(state, &samples);
        }
    }
}

/// One way, in one batch of each kind.
#[derive(Debug)]
struct Sample {
    /// The bare hand-over before each case.
    lines: [Duration; CASES.len()],
    /// The same with a payload line that is named.
    named: [Duration; CASES.len()],
    cases: [Duration; CASES.len()],
}

impl Sample {
    fn times(&self) -> impl Iterator<Item = Duration> {
        let Self {
            lines,
            named,
            cases,
        } = self;
        [lines, named, cases].into_iter().flatten().copied()
    }
}

/// Leaves out the batches during which a thread lost its core.
fn undisturbed(samples: Vec<Sample>) -> Vec<Sample> {
    let medians: Vec<_> = (0..3 * CASES.len())
        .map(|place| {
            let mut times: Vec<_> = samples
                .iter()
                .filter_map(|sample| sample.times().nth(place))
                .collect();
            times.sort();
            times[times.len() / 2]
        })
        .collect();
    let is_undisturbed = |sample: &Sample| {
        let mut times = sample.times().zip(&medians);
        times.all(|(time, &median)| time < median * DISTURBED)
    };
    samples.into_iter().filter(is_undisturbed).collect()
}

fn report(state: &str, samples: &[&Sample]) {
    let nanos = |time: Duration| time.as_nanos() as f64;
    let spread = |of: &dyn Fn(&Sample) -> f64| Spread::of(samples.iter().map(|sample| of(sample)));
    println!(
        "{state} cores, {} batches; ns one way, median (min-max):",
        samples.len()
    );
    println!(
        "  {:<13} {}",
        "bare line",
        spread(&|sample| nanos(sample.lines[0]))
    );
    println!(
        "  {:<13} {}  ratio to the bare line {}",
        "line it names",
        spread(&|sample| nanos(sample.named[0])),
        spread(&|sample| nanos(sample.named[0]) / nanos(sample.lines[0]))
    );
    for (index, (name, _, floor, target)) in CASES.iter().enumerate() {
        let times = spread(&|sample| nanos(sample.cases[index]));
        let to_line = spread(&|sample| nanos(sample.cases[index]) / nanos(sample.lines[index]));
        let to_named = spread(&|sample| nanos(sample.cases[index]) / nanos(sample.named[index]));
        let (against, ratio) = match floor {
            Floor::Line => ("the bare line", &to_line),
            Floor::Named => ("the line it names", &to_named),
        };
        let met = if ratio.median <= *target {
            "met"
        } else {
            "missed"
        };
        println!("  {name:<13} {times}  ratio to {against} {ratio} target <= {target:.2} {met}");
        if let Floor::Named = floor {
            println!("  {:<13} (to the bare line {to_line})", "");
        }
    }
    for (small, large) in ALIKE {
        let ratio = spread(&|sample| nanos(sample.cases[large]) / nanos(sample.cases[small]));
        let met = if ratio.median <= 1.1 { "met" } else { "missed" };
        let (small, large) = (CASES[small].0, CASES[large].0);
        println!("  {large} / {small} {ratio} target <= 1.10 {met}");
    }
}

fn measure(batches: usize) -> Vec<Sample> {
    let shared = Shared::new();
    let secret = Secret::random().expect("the system has randomness");
    let start = Arc::new(Barrier::new(2));
    let (to_echo, from_ping) = std::sync::mpsc::channel();
    let (to_ping, from_echo) = std::sync::mpsc::channel();
    let echo = {
        let (shared, secret, start) = (shared.clone(), secret.clone(), start.clone());
        thread::spawn(move || {
            pin(1);
            let mut fabric = fabric(1, &secret);
            let own = fabric.address().expect("it has sockets");
            to_ping.send(own.clone()).expect("the other side waits");
            fabric
                .join(&[from_ping.recv().expect("the other side says"), own])
                .expect("two ranks");
            let mut pauses = Pauses::new(2);
            start.wait();
            for _ in 0..batches {
                for (_, what, ..) in CASES {
                    echo_lines(&shared, &mut pauses, false);
                    echo_lines(&shared, &mut pauses, true);
                    (0..TRIPS).for_each(|_| echo_message(&mut fabric, &mut pauses, what));
                }
            }
            start.wait();
        })
    };
    pin(0);
    let mut fabric = fabric(0, &secret);
    let own = fabric.address().expect("it has sockets");
    to_echo.send(own.clone()).expect("the other side waits");
    fabric
        .join(&[own, from_echo.recv().expect("the other side says")])
        .expect("two ranks");
    let mut pauses = Pauses::new(1);
    // Those of the other side take as long.
    let paused = pauses.time(2 * TRIPS);
    let one_way = |elapsed: Duration| elapsed.saturating_sub(paused) / (2 * TRIPS);
    start.wait();
    let samples = (0..batches).map(|_| {
        let all = CASES.map(|(_, what, ..)| {
            (
                one_way(ping_lines(&shared, &mut pauses, false)),
                one_way(ping_lines(&shared, &mut pauses, true)),
                one_way(ping_messages(&mut fabric, &mut pauses, what)),
            )
        });
        Sample {
            lines: all.map(|(line, ..)| line),
            named: all.map(|(_, named, _)| named),
            cases: all.map(|(.., case)| case),
        }
    });
    let samples = samples.collect();
    start.wait();
    echo.join().expect("the echo does not panic");
    samples
}

fn pin(core: usize) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(&core) = cores.get(core % cores.len().max(1)) {
        core_affinity::set_for_current(core);
    }
}

fn fabric(rank: Rank, secret: &Secret) -> Fabric {
    let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).expect("the arena fits");
    let config = Config {
        transport: Transport::Shm,
        ..Config::new(rank, 2, secret)
    };
    Fabric::new(config, arena).expect("sockets can be had")
}

/// Waits for a line to change, and says what it says.
fn await_line(line: &Line, seen: u64) -> u64 {
    loop {
        let now = line.0.load(Ordering::Acquire);
        if now != seen {
            return now;
        }
        spin_loop();
    }
}

/// The payload line of a trip.
fn place_of(trip: u64) -> usize {
    (trip * 7 % PAYLOADS as u64) as usize
}

fn ping_lines(shared: &Shared, pauses: &mut Pauses, with_payload: bool) -> Duration {
    let [ours, theirs] = &shared.lines;
    let first = ours.0.load(Ordering::Relaxed);
    let start = Instant::now();
    for trip in first + 1..=first + u64::from(TRIPS) {
        pauses.pass();
        if with_payload {
            shared.payloads[0][place_of(trip)].write(trip);
        }
        ours.0.store(trip, Ordering::Release);
        let said = await_line(theirs, trip - 1);
        if with_payload {
            assert_eq!(shared.payloads[1][place_of(said)].read(), trip);
        }
    }
    start.elapsed()
}

fn echo_lines(shared: &Shared, pauses: &mut Pauses, with_payload: bool) {
    let [theirs, ours] = &shared.lines;
    for _ in 0..TRIPS {
        let now = await_line(theirs, ours.0.load(Ordering::Relaxed));
        pauses.pass();
        if with_payload {
            let value = shared.payloads[0][place_of(now)].read();
            shared.payloads[1][place_of(now)].write(value);
        }
        ours.0.store(now, Ordering::Release);
    }
}

/// Sends one message, with what is to be written of it written.
fn send(fabric: &mut Fabric, what: What, byte: u8) {
    let to = 1 - fabric.rank();
    match what {
        What::Inline(bytes) => {
            let payload = [byte; 64];
            fabric
                .send_copy(to, 0, &payload[..bytes])
                .expect("the peer is there");
        }
        What::Handed(bytes) | What::Touched(bytes) => {
            let mut loan = loop {
                match fabric.loan(bytes).expect("it fits") {
                    Some(loan) => break loan,
                    None => spin_loop(),
                }
            };
            if let What::Touched(_) = what {
                loan[..64].fill(byte);
            }
            fabric.send(to, loan).expect("the peer is there");
        }
    }
}

/// Waits for a message, and reads every byte of its first line, if it was written: as words, as the bare payload
/// is read.
fn receive(fabric: &mut Fabric, what: What) -> u8 {
    loop {
        match fabric.receive().expect("the sockets work") {
            Some(Event::Message { buffer, .. }) => {
                if let What::Handed(bytes) = what {
                    assert_eq!(black_box(&buffer[..]).len(), bytes);
                    return 0;
                }
                let (words, _) = buffer[..buffer.len().min(64)].as_chunks::<8>();
                let all = words
                    .iter()
                    .fold(0, |all, &word| all | u64::from_ne_bytes(word));
                return black_box(all) as u8;
            }
            Some(event) => panic!("{event:?}"),
            None => spin_loop(),
        }
    }
}

fn ping_messages(fabric: &mut Fabric, pauses: &mut Pauses, what: What) -> Duration {
    let start = Instant::now();
    for trip in 0..TRIPS {
        let byte = match what {
            What::Handed(_) => 0,
            _ => trip as u8,
        };
        pauses.pass();
        send(fabric, what, byte);
        assert_eq!(receive(fabric, what), byte);
    }
    start.elapsed()
}

fn echo_message(fabric: &mut Fabric, pauses: &mut Pauses, what: What) {
    let byte = receive(fabric, what);
    pauses.pass();
    send(fabric, what, byte);
}
