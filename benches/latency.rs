//! How long a message over shared memory takes one way, beside the bare hand-over of a cache line.
//!
//! Two threads, each on a core of its own, play ping-pong. The bare hand-over and the messages take turns
//! in batches within one run, and each batch is compared with the hand-over measured just before it,
//! because a virtual machine's cores move apart and together while it runs. `cargo bench --bench latency`;
//! with `-- --smoke`, a few batches.

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
/// A hand-over slower than this waited for a thread that had lost its core.
const DISTURBED: Duration = Duration::from_nanos(600);

/// What is sent.
#[derive(Debug, Clone, Copy)]
enum What {
    /// Eight bytes, in the descriptor.
    Inline,
    /// A loan of so many bytes, of which the first 64 are written and read.
    Loan(usize),
}

const CASES: [(&str, What); 3] = [
    ("8 B inline", What::Inline),
    ("64 B loaned", What::Loan(64)),
    ("4 MiB loaned", What::Loan(4 << 20)),
];

/// A line that one side writes and the other waits for.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// What two sides share: the line of each, and the payload line of each.
#[derive(Default)]
struct Shared {
    lines: [Line; 2],
    payloads: [Payload; 2],
}

/// A line of payload, written before the other line and read after it: what a message in a loan needs to
/// travel at the least.
#[repr(align(128))]
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

fn main() {
    let smoke = env::args().any(|argument| argument == "--smoke");
    let batches = if smoke { SMOKE_BATCHES } else { BATCHES };
    let machine = machine(); // Before this thread is pinned, which would hide the other cores.
    let samples = measure(batches);
    let all = samples.len();
    let samples: Vec<_> = samples.into_iter().filter(Sample::is_undisturbed).collect();
    let disturbed = all - samples.len();
    println!(
        "{machine}; {TRIPS} round trips a batch, {all} batches, {disturbed} of them disturbed",
    );
    for (state, near) in [("near", true), ("far", false)] {
        let samples: Vec<_> = samples
            .iter()
            .filter(|sample| (sample.hops[0] < FAR) == near)
            .collect();
        if !samples.is_empty() {
            report(state, &samples);
        }
    }
}

/// One way, in one batch of each kind.
#[derive(Debug)]
struct Sample {
    /// The bare hand-over before each case.
    hops: [Duration; CASES.len()],
    /// The same with a line of payload.
    payloads: [Duration; CASES.len()],
    cases: [Duration; CASES.len()],
}

impl Sample {
    fn is_undisturbed(&self) -> bool {
        self.hops.iter().all(|hop| *hop < DISTURBED)
    }
}

fn report(state: &str, samples: &[&Sample]) {
    let nanos = |time: Duration| time.as_nanos() as f64;
    println!(
        "{state} cores, {} batches; ns one way, median (min-max):",
        samples.len()
    );
    println!(
        "  {:<13} {}",
        "bare line",
        Spread::of(samples.iter().map(|sample| nanos(sample.hops[0])))
    );
    let payloads = Spread::of(samples.iter().map(|sample| nanos(sample.payloads[0])));
    let floor = samples
        .iter()
        .map(|sample| nanos(sample.payloads[0]) / nanos(sample.hops[0]));
    println!(
        "  bare + 64 B   {payloads}  ratio to the bare line {}",
        Spread::of(floor)
    );
    for (index, (name, _)) in CASES.iter().enumerate() {
        let times = Spread::of(samples.iter().map(|sample| nanos(sample.cases[index])));
        let ratios = samples
            .iter()
            .map(|sample| nanos(sample.cases[index]) / nanos(sample.hops[index]));
        let ratio = Spread::of(ratios);
        let met = if ratio.median <= 2.0 { "met" } else { "missed" };
        println!("  {name:<13} {times}  ratio to the bare line {ratio} target <= 2.00 {met}");
    }
    let sizes = samples
        .iter()
        .map(|sample| nanos(sample.cases[2]) / nanos(sample.cases[1]));
    let ratio = Spread::of(sizes);
    let met = if ratio.median <= 1.1 { "met" } else { "missed" };
    println!("  4 MiB / 64 B  {ratio} target <= 1.10 {met}");
}

fn measure(batches: usize) -> Vec<Sample> {
    let shared = Arc::new(Shared::default());
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
            start.wait();
            for _ in 0..batches {
                for (_, what) in CASES {
                    echo_lines(&shared, false);
                    echo_lines(&shared, true);
                    (0..TRIPS).for_each(|_| echo_message(&mut fabric, what));
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
    start.wait();
    let samples = (0..batches).map(|_| {
        let all = CASES.map(|(_, what)| {
            (
                ping_lines(&shared, false),
                ping_lines(&shared, true),
                ping_messages(&mut fabric, what),
            )
        });
        Sample {
            hops: all.map(|(hop, ..)| hop),
            payloads: all.map(|(_, payload, _)| payload),
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
        rank,
        size: 2,
        transport: Transport::Shm,
        interface: [127, 0, 0, 1].into(),
        secret: secret.clone(),
        spin: true,
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

fn ping_lines(shared: &Shared, with_payload: bool) -> Duration {
    let [ours, theirs] = &shared.lines;
    let first = ours.0.load(Ordering::Relaxed);
    let start = Instant::now();
    for trip in 1..=u64::from(TRIPS) {
        if with_payload {
            shared.payloads[0].write(trip);
        }
        ours.0.store(first + trip, Ordering::Release);
        await_line(theirs, first + trip - 1);
        if with_payload {
            assert_eq!(shared.payloads[1].read(), trip);
        }
    }
    start.elapsed() / (2 * TRIPS)
}

fn echo_lines(shared: &Shared, with_payload: bool) {
    let [theirs, ours] = &shared.lines;
    for _ in 0..TRIPS {
        let now = await_line(theirs, ours.0.load(Ordering::Relaxed));
        if with_payload {
            let value = shared.payloads[0].read();
            shared.payloads[1].write(value);
        }
        ours.0.store(now, Ordering::Release);
    }
}

/// Sends one message, every byte of its first line written.
fn send(fabric: &mut Fabric, what: What, byte: u8) {
    let to = 1 - fabric.rank();
    match what {
        What::Inline => {
            fabric
                .send_copy(to, 0, &[byte; 8])
                .expect("the peer is there");
        }
        What::Loan(bytes) => {
            let mut loan = loop {
                match fabric.loan(bytes).expect("it fits") {
                    Some(loan) => break loan,
                    None => spin_loop(),
                }
            };
            loan[..64].fill(byte);
            fabric.send(to, loan).expect("the peer is there");
        }
    }
}

/// Waits for a message, and reads every byte of its first line.
fn receive(fabric: &mut Fabric) -> u8 {
    loop {
        match fabric.receive().expect("the sockets work") {
            Some(Event::Message { buffer, .. }) => {
                let line = &buffer[..buffer.len().min(64)];
                return black_box(line.iter().fold(0, |all, byte| all | byte));
            }
            Some(event) => panic!("{event:?}"),
            None => spin_loop(),
        }
    }
}

fn ping_messages(fabric: &mut Fabric, what: What) -> Duration {
    let start = Instant::now();
    for trip in 0..TRIPS {
        send(fabric, what, trip as u8);
        assert_eq!(receive(fabric), trip as u8);
    }
    start.elapsed() / (2 * TRIPS)
}

fn echo_message(fabric: &mut Fabric, what: What) {
    let byte = receive(fabric);
    send(fabric, what, byte);
}
