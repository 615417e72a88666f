//! How fast messages follow one another between two threads, beside bare queues, and how quickly a loan of
//! 4 MiB changes hands, beside iceoryx2's.
//!
//! Ours go through all of the public interface: links, descriptors, events. The queues move a value and
//! nothing else, in one process. Every word is written by one thread and read by the other; both are
//! pinned. All cases take turns in batches, each with the bare hand-over of a cache line taken right before
//! and after it, and only batches at the same distance of the cores are compared. `cargo bench --bench
//! rings`; with `-- --smoke`, a few batches; with `-- --json FILE`, what `updraft bench compare` reads.

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    hint::{black_box, spin_loop},
    path::PathBuf,
    process,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use crossbeam::{channel, queue::ArrayQueue};
use iceoryx2::prelude::{LogLevel, NodeBuilder, ipc, set_log_level};
use support::measure::{Spread, machine};
use transport::{Arena, Config, Event, Fabric, Handover, Ledger, Secret, Stores};

const ROUNDS: usize = 9;
const SMOKE_ROUNDS: usize = 1;
/// Batches of each case in a round.
const BATCHES: usize = 8;
/// Values in a batch of a stream.
const VALUES: u64 = 1 << 16;
/// Values a queue holds, and values that may be on their way in ours.
const CAPACITY: usize = 1024;
/// Values after which the receiver says how far it is, where the queue does not.
const ACKNOWLEDGED: u64 = 256;
const CHUNK: usize = 64;
/// Round trips of a batch of loans.
const TRIPS: u32 = 200;
const LOAN_BYTES: usize = 4 << 20;
/// How much of a loan is written and read.
const TOUCHED: usize = 64;
const ARENA_BYTES: u64 = 64 << 20;
const HOP_TRIPS: u32 = 100;
const HOP_WARM: u32 = 10;
/// As in `updraft bench`: near below, far above, disturbed far above.
const FAR_NS: f64 = 120.0;
const DISTURBED_NS: f64 = 1000.0;

/// What both ends of a case do in a batch. The first end's time counts.
type Play = Box<dyn FnMut()>;
/// Makes such an end on the thread that is to play it.
type End = Box<dyn FnOnce(&Links) -> Play + Send>;

/// Our links, one fabric a thread.
type Links = std::rc::Rc<std::cell::RefCell<Fabric>>;

/// A way to move values.
struct Case {
    name: &'static str,
    /// The target, its part, and the point: see `launchers/src/bench/compare/targets.rs`.
    group: Group,
    /// What a batch's time is divided by.
    per: f64,
    ends: [End; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Group {
    target: &'static str,
    part: &'static str,
    point: &'static str,
}

const SINGLE: [Group; 2] = [p5("single", "8 B single"), p5("single", "64 B single")];
const BATCHED: [Group; 2] = [p5("batched", "8 B batched"), p5("batched", "64 B batched")];
const LOAN: Group = Group {
    target: "P3",
    part: "iceoryx2",
    point: "4 MiB loan",
};
const OURS: &str = "updraft";

const fn p5(part: &'static str, point: &'static str) -> Group {
    Group {
        target: "P5",
        part,
        point,
    }
}

fn main() {
    let words: Vec<String> = env::args().collect();
    let smoke = words.iter().any(|word| word == "--smoke");
    let json = words.iter().position(|word| word == "--json");
    let json = json
        .and_then(|index| words.get(index + 1))
        .map(PathBuf::from);
    set_log_level(LogLevel::Error); // That there is no file with settings is as it should be.
    let rounds = if smoke { SMOKE_ROUNDS } else { ROUNDS };
    let machine = machine(); // Before this thread is pinned, which would hide the other cores.
    let measured = measure(rounds);
    println!("{machine}; {rounds} rounds of {BATCHES} batches; ns a value, or one way");
    let rows = rows(&measured);
    for row in &rows {
        println!("{}", row.line());
    }
    if let Some(path) = json {
        let rows: Vec<String> = rows.iter().map(Row::json).collect();
        let text = format!("{{\"rows\": [\n{}\n]}}\n", rows.join(",\n"));
        fs::write(&path, text).expect("the file can be written");
    }
}

/// The batches of one case in one round: the hop beside each, and its time.
type Batches = Vec<(f64, f64)>;

/// By case: what it is, and its rounds.
type Measured = Vec<(&'static str, Group, Vec<Batches>)>;

fn measure(rounds: usize) -> Measured {
    let mut kinds = Vec::new();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for Case {
        name,
        group,
        per,
        ends: [one, other],
    } in cases()
    {
        kinds.push((name, group, per));
        first.push(one);
        second.push(other);
    }
    let secret = Secret::random().expect("the system has randomness");
    let (to_first, from_second) = mpsc::channel();
    let (to_second, from_first) = mpsc::channel();
    let mut lead = Handover::lead(0).expect("there is memory");
    let path = lead.path();
    let echo = {
        let secret = secret.clone();
        thread::spawn(move || {
            pin(1);
            let mut follow = Handover::follow(&path).expect("the first side is there");
            let fabric = fabric(1, &secret);
            to_first
                .send(fabric.address().expect("it has sockets"))
                .expect("it waits");
            let links = join(fabric, from_first.recv().expect("it says"), 1);
            let mut plays: Vec<Play> = second.into_iter().map(|end| end(&links)).collect();
            for _ in 0..=rounds {
                for play in &mut plays {
                    for _ in 0..BATCHES {
                        hop(&mut follow);
                        play();
                        flush(&links);
                        hop(&mut follow);
                    }
                }
            }
        })
    };
    pin(0);
    let fabric = fabric(0, &secret);
    to_second
        .send(fabric.address().expect("it has sockets"))
        .expect("it waits");
    let links = join(fabric, from_second.recv().expect("it says"), 0);
    let mut plays: Vec<Play> = first.into_iter().map(|end| end(&links)).collect();
    let mut measured: Measured = kinds
        .iter()
        .map(|kind| (kind.0, kind.1, Vec::new()))
        .collect();
    for round in 0..=rounds {
        for (index, play) in plays.iter_mut().enumerate() {
            let batches = (0..BATCHES).map(|_| {
                let before = hop(&mut lead);
                let start = Instant::now();
                play();
                let ns = start.elapsed().as_nanos() as f64 / kinds[index].2;
                flush(&links);
                let after = hop(&mut lead);
                (before, after, ns)
            });
            let batches: Vec<_> = batches.collect();
            // The first round warms up.
            if round > 0 {
                let calm = batches.into_iter().filter(|(before, after, _)| {
                    is_far(*before) == is_far(*after) && before.max(*after) < DISTURBED_NS
                });
                let calm = calm.map(|(before, after, ns)| (f64::midpoint(before, after), ns));
                measured[index].2.push(calm.collect());
            }
        }
    }
    echo.join().expect("the other end does not panic");
    measured
}

fn is_far(hop: f64) -> bool {
    hop >= FAR_NS
}

/// The bare hand-over of a cache line, one way, in nanoseconds.
fn hop(side: &mut Handover) -> f64 {
    side.round_trips(HOP_WARM, 0, Stores::Plain)
        .expect("the other side answers");
    let start = Instant::now();
    side.round_trips(HOP_TRIPS, 0, Stores::Plain)
        .expect("the other side answers");
    start.elapsed().as_nanos() as f64 / f64::from(2 * HOP_TRIPS)
}

fn pin(core: usize) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(&core) = cores.get(core % cores.len().max(1)) {
        core_affinity::set_for_current(core);
    }
}

fn fabric(rank: u32, secret: &Secret) -> Fabric {
    let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).expect("the arena fits");
    Fabric::new(Config::new(rank, 2, secret), arena).expect("sockets can be had")
}

fn join(mut fabric: Fabric, theirs: transport::Address, rank: u32) -> Links {
    let ours = fabric.address().expect("it has sockets");
    let book = if rank == 0 {
        [ours, theirs]
    } else {
        [theirs, ours]
    };
    fabric.join(&book).expect("two ranks");
    Links::new(fabric.into())
}

/// Has what was sent leave before nobody drives the links.
fn flush(links: &Links) {
    while !links.borrow_mut().flush().expect("the sockets work") {
        spin_loop();
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(streams::<1>(0));
    cases.extend(streams::<8>(1));
    cases.extend(loans());
    cases
}

/// The streams of values of `WORDS` words each.
fn streams<const WORDS: usize>(size: usize) -> Vec<Case> {
    let case = |name, group, ends| Case {
        name,
        group,
        per: VALUES as f64,
        ends,
    };
    let (batched, single) = (BATCHED[size], SINGLE[size]);
    vec![
        case(OURS, single, ours::<WORDS>()),
        case("rtrb", single, rtrb_single::<WORDS>()),
        case("crossbeam ArrayQueue", single, array_queue::<WORDS>()),
        case("crossbeam channel", single, bounded::<WORDS>()),
        case(OURS, batched, our_chunks::<WORDS>()),
        case("rtrb in chunks of 64", batched, rtrb_chunks::<WORDS>()),
    ]
}

/// Ends of a stream, the second of which says that it has all by a flag.
fn stream(
    send: impl FnOnce(&Links) -> Box<dyn FnMut(u64)> + Send + 'static,
    receive: impl FnOnce(&Links) -> Box<dyn FnMut(u64)> + Send + 'static,
) -> [End; 2] {
    let done = Arc::new(AtomicU64::new(0));
    let (ours, theirs) = (done.clone(), done);
    [
        Box::new(move |links| {
            let (mut send, mut batches) = (send(links), 0);
            Box::new(move || {
                send(VALUES);
                batches += 1;
                while ours.load(Ordering::Acquire) != batches {
                    spin_loop();
                }
            })
        }),
        Box::new(move |links| {
            let (mut receive, mut batches) = (receive(links), 0);
            Box::new(move || {
                receive(VALUES);
                batches += 1;
                theirs.store(batches, Ordering::Release);
            })
        }),
    ]
}

fn value<const WORDS: usize>(number: u64) -> [u64; WORDS] {
    [number; WORDS]
}

/// Reads every word, and checks the number.
fn check<const WORDS: usize>(value: &[u64; WORDS], number: u64) {
    let all = black_box(value.iter().fold(0, |all, word| all | word));
    assert_eq!(all, number, "values arrive whole and in order");
}

fn ours<const WORDS: usize>() -> [End; 2] {
    stream(
        |links| {
            let links = links.clone();
            Box::new(move |values| {
                let fabric = &mut links.borrow_mut();
                let mut acknowledged = 0;
                let mut bytes = [0u8; 64];
                for number in 0..values {
                    while number - acknowledged >= CAPACITY as u64 {
                        if receive(fabric).is_some() {
                            acknowledged += ACKNOWLEDGED;
                        }
                    }
                    for (to, word) in bytes.chunks_exact_mut(8).zip(value::<WORDS>(number)) {
                        to.copy_from_slice(&word.to_ne_bytes());
                    }
                    while !fabric
                        .send_copy(1, 0, &bytes[..8 * WORDS])
                        .expect("the peer is there")
                    {
                        spin_loop();
                    }
                }
                while acknowledged < values {
                    if receive(fabric).is_some() {
                        acknowledged += ACKNOWLEDGED;
                    }
                }
            })
        },
        |links| {
            let links = links.clone();
            Box::new(move |values| {
                let fabric = &mut links.borrow_mut();
                for number in 0..values {
                    let message = loop {
                        match receive(fabric) {
                            Some(message) => break message,
                            None => spin_loop(),
                        }
                    };
                    let mut value = [0; WORDS];
                    for (word, bytes) in value.iter_mut().zip(message.chunks_exact(8)) {
                        let mut word_bytes = [0; 8];
                        word_bytes.copy_from_slice(bytes);
                        *word = u64::from_ne_bytes(word_bytes);
                    }
                    check(&value, number);
                    if (number + 1).is_multiple_of(ACKNOWLEDGED) {
                        fabric.send_copy(0, 0, &[]).expect("the peer is there");
                    }
                }
            })
        },
    )
}

/// The same values in loans of [`CHUNK`] of them, which are written and read in place as the chunks of rtrb are.
fn our_chunks<const WORDS: usize>() -> [End; 2] {
    const BYTES: usize = 8;
    stream(
        |links| {
            let links = links.clone();
            Box::new(move |values| {
                let fabric = &mut links.borrow_mut();
                let mut acknowledged = 0;
                for first in (0..values).step_by(CHUNK) {
                    while first + CHUNK as u64 - acknowledged > CAPACITY as u64 {
                        if receive(fabric).is_some() {
                            acknowledged += ACKNOWLEDGED;
                        }
                    }
                    let loan = fabric.loan(CHUNK * WORDS * BYTES).expect("it fits");
                    let mut loan = loan.expect("there is room for all that may be on its way");
                    let places = loan.as_chunks_mut::<BYTES>().0.chunks_exact_mut(WORDS);
                    for (place, number) in places.zip(first..) {
                        place.copy_from_slice(&value::<WORDS>(number).map(u64::to_ne_bytes));
                    }
                    fabric.send(1, loan).expect("the peer is there");
                }
                while acknowledged < values {
                    if receive(fabric).is_some() {
                        acknowledged += ACKNOWLEDGED;
                    }
                }
            })
        },
        |links| {
            let links = links.clone();
            Box::new(move |values| {
                let fabric = &mut links.borrow_mut();
                let mut number = 0;
                while number < values {
                    let Some(message) = receive(fabric) else {
                        spin_loop();
                        continue;
                    };
                    for words in message.as_chunks::<BYTES>().0.as_chunks::<WORDS>().0 {
                        check(&words.map(u64::from_ne_bytes), number);
                        number += 1;
                    }
                    if number.is_multiple_of(ACKNOWLEDGED) {
                        fabric.send_copy(0, 0, &[]).expect("the peer is there");
                    }
                }
            })
        },
    )
}

fn receive(fabric: &mut Fabric) -> Option<transport::Buffer> {
    match fabric.receive().expect("the sockets work")? {
        Event::Message { buffer, .. } => Some(buffer),
        event => panic!("{event:?}"),
    }
}

fn rtrb_single<const WORDS: usize>() -> [End; 2] {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<[u64; WORDS]>::new(CAPACITY);
    stream(
        move |_| {
            Box::new(move |values| {
                for number in 0..values {
                    while producer.push(value(number)).is_err() {
                        spin_loop();
                    }
                }
            })
        },
        move |_| {
            Box::new(move |values| {
                for number in 0..values {
                    let value = loop {
                        match consumer.pop() {
                            Ok(value) => break value,
                            Err(_) => spin_loop(),
                        }
                    };
                    check(&value, number);
                }
            })
        },
    )
}

fn rtrb_chunks<const WORDS: usize>() -> [End; 2] {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<[u64; WORDS]>::new(CAPACITY);
    stream(
        move |_| {
            Box::new(move |values| {
                let mut number = 0;
                while number < values {
                    let Ok(chunk) = producer.write_chunk_uninit(CHUNK) else {
                        spin_loop();
                        continue;
                    };
                    let chunk_values = (number..number + CHUNK as u64).map(value::<WORDS>);
                    number += chunk.fill_from_iter(chunk_values) as u64;
                }
            })
        },
        move |_| {
            Box::new(move |values| {
                let mut number = 0;
                while number < values {
                    let Ok(chunk) = consumer.read_chunk(CHUNK) else {
                        spin_loop();
                        continue;
                    };
                    let (first, second) = chunk.as_slices();
                    for value in first.iter().chain(second) {
                        check(value, number);
                        number += 1;
                    }
                    chunk.commit_all();
                }
            })
        },
    )
}

fn array_queue<const WORDS: usize>() -> [End; 2] {
    let queue = Arc::new(ArrayQueue::<[u64; WORDS]>::new(CAPACITY));
    let (ours, theirs) = (queue.clone(), queue);
    stream(
        move |_| {
            Box::new(move |values| {
                for number in 0..values {
                    while ours.push(value(number)).is_err() {
                        spin_loop();
                    }
                }
            })
        },
        move |_| {
            Box::new(move |values| {
                for number in 0..values {
                    let value = loop {
                        match theirs.pop() {
                            Some(value) => break value,
                            None => spin_loop(),
                        }
                    };
                    check(&value, number);
                }
            })
        },
    )
}

fn bounded<const WORDS: usize>() -> [End; 2] {
    let (sender, receiver) = channel::bounded::<[u64; WORDS]>(CAPACITY);
    stream(
        move |_| {
            Box::new(move |values| {
                for number in 0..values {
                    while sender.try_send(value(number)).is_err() {
                        spin_loop();
                    }
                }
            })
        },
        move |_| {
            Box::new(move |values| {
                for number in 0..values {
                    let value = loop {
                        match receiver.try_recv() {
                            Ok(value) => break value,
                            Err(_) => spin_loop(),
                        }
                    };
                    check(&value, number);
                }
            })
        },
    )
}

/// 4 MiB handed over and back, of which 64 bytes are written and read.
fn loans() -> Vec<Case> {
    let case = |name, ends| Case {
        name,
        group: LOAN,
        per: f64::from(2 * TRIPS),
        ends,
    };
    vec![case(OURS, our_loans()), case("iceoryx2", iceoryx2_loans())]
}

/// Reads what is touched of a loan.
fn read(bytes: &[u8]) -> u8 {
    black_box(bytes[..TOUCHED].iter().fold(0, |all, byte| all | byte))
}

fn our_loans() -> [End; 2] {
    let send = |fabric: &mut Fabric, byte: u8| {
        let mut loan = loop {
            match fabric.loan(LOAN_BYTES).expect("it fits") {
                Some(loan) => break loan,
                None => spin_loop(),
            }
        };
        loan[..TOUCHED].fill(byte);
        let to = 1 - fabric.rank();
        fabric.send(to, loan).expect("the peer is there");
    };
    let take = |fabric: &mut Fabric| loop {
        match receive(fabric) {
            Some(message) => break read(&message),
            None => spin_loop(),
        }
    };
    [
        Box::new(move |links: &Links| {
            let links = links.clone();
            Box::new(move || {
                let fabric = &mut links.borrow_mut();
                for trip in 0..TRIPS {
                    send(fabric, trip as u8);
                    assert_eq!(take(fabric), trip as u8);
                }
            })
        }),
        Box::new(move |links: &Links| {
            let links = links.clone();
            Box::new(move || {
                let fabric = &mut links.borrow_mut();
                for _ in 0..TRIPS {
                    let byte = take(fabric);
                    send(fabric, byte);
                }
            })
        }),
    ]
}

/// One direction of iceoryx2: what sends a loan, and what receives one.
struct Ports {
    publisher: iceoryx2::port::publisher::Publisher<ipc::Service, [u8], ()>,
    subscriber: iceoryx2::port::subscriber::Subscriber<ipc::Service, [u8], ()>,
}

impl Ports {
    /// Publishes on one service and subscribes to the other.
    fn new(side: usize) -> Self {
        let node = NodeBuilder::new()
            .create::<ipc::Service>()
            .expect("a node can be had");
        let service = |side: usize| {
            let name = format!("updraft-rings-{}-{side}", process::id());
            let name = name.as_str().try_into().expect("it is a name");
            let builder = node.service_builder(&name).publish_subscribe::<[u8]>();
            builder.open_or_create().expect("a service can be had")
        };
        let (ours, theirs) = (service(side), service(1 - side));
        let publisher = ours.publisher_builder().initial_max_slice_len(LOAN_BYTES);
        Self {
            publisher: publisher.create().expect("there is memory"),
            subscriber: theirs
                .subscriber_builder()
                .create()
                .expect("there is memory"),
        }
    }

    fn send(&self, byte: u8) {
        let sample = self
            .publisher
            .loan_slice_uninit(LOAN_BYTES)
            .expect("there is memory");
        // The safe ways to such a sample, `loan_slice` and `write_from_fn`, write all 4 MiB of it: what is compared
        // here is a loan of which 64 bytes are written, as ours.
        // SAFETY: the payload is memory mapped from a file, which the system gives zeroed, and all that is ever
        // written to it are the bytes below: every byte of it has a value, and any value is a `u8`.
        let mut sample = unsafe { sample.assume_init() };
        sample.payload_mut()[..TOUCHED].fill(byte);
        sample.send().expect("the subscriber is there");
    }

    fn take(&self) -> u8 {
        loop {
            match self.subscriber.receive().expect("the publisher is there") {
                Some(sample) => break read(sample.payload()),
                None => spin_loop(),
            }
        }
    }
}

fn iceoryx2_loans() -> [End; 2] {
    // Both wait until the other is connected: what nobody subscribes to is lost.
    let here = Arc::new(Barrier::new(2));
    let there = here.clone();
    [
        Box::new(move |_: &Links| {
            let ports = Ports::new(0);
            here.wait();
            Box::new(move || {
                for trip in 0..TRIPS {
                    ports.send(trip as u8);
                    assert_eq!(ports.take(), trip as u8);
                }
            })
        }),
        Box::new(move |_: &Links| {
            let ports = Ports::new(1);
            there.wait();
            Box::new(move || {
                for _ in 0..TRIPS {
                    let byte = ports.take();
                    ports.send(byte);
                }
            })
        }),
    ]
}

/// Ours beside one peer, at one distance of the cores.
struct Row {
    group: Group,
    against: &'static str,
    far: bool,
    hop_ns: f64,
    /// Ours and theirs, in each round that has both.
    rounds: Vec<(f64, f64)>,
}

fn rows(measured: &Measured) -> Vec<Row> {
    let ours: HashMap<Group, &Vec<Batches>> = measured
        .iter()
        .filter(|(name, ..)| *name == OURS)
        .map(|(_, group, rounds)| (*group, rounds))
        .collect();
    let mut rows = BTreeMap::new();
    for (index, (against, group, theirs)) in measured.iter().enumerate() {
        if *against == OURS {
            continue;
        }
        for far in [false, true] {
            let rounds = ours[group].iter().zip(theirs).filter_map(|(ours, theirs)| {
                let middle = |batches: &Batches| {
                    let mut times = batches
                        .iter()
                        .filter(|batch| is_far(batch.0) == far)
                        .peekable();
                    times.peek()?;
                    Some(Spread::of(times.map(|batch| batch.1)).median)
                };
                Some((middle(ours)?, middle(theirs)?))
            });
            let rounds: Vec<(f64, f64)> = rounds.collect();
            if rounds.is_empty() {
                continue;
            }
            let hops = ours[group].iter().flatten().map(|batch| batch.0);
            let hop_ns = Spread::of(hops.filter(|&hop| is_far(hop) == far)).median;
            let (group, against) = (*group, *against);
            rows.insert(
                (group, index, far),
                Row {
                    group,
                    against,
                    far,
                    hop_ns,
                    rounds,
                },
            );
        }
    }
    rows.into_values().collect()
}

impl Row {
    fn cores(&self) -> &'static str {
        if self.far { "far" } else { "near" }
    }

    fn line(&self) -> String {
        let Self {
            group,
            against,
            hop_ns,
            rounds,
            ..
        } = self;
        let ours = Spread::of(rounds.iter().map(|round| round.0));
        let theirs = Spread::of(rounds.iter().map(|round| round.1));
        let ratio = Spread::of(rounds.iter().map(|round| round.0 / round.1));
        let (point, cores) = (group.point, self.cores());
        format!(
            "{point:<13} {cores:<4} hop {hop_ns:5.1}  ours {ours}  {against} {theirs}  ours/theirs {ratio}"
        )
    }

    fn json(&self) -> String {
        let Group {
            target,
            part,
            point,
        } = self.group;
        let rounds: Vec<String> = self
            .rounds
            .iter()
            .map(|(ours, theirs)| format!("[{ours:.3}, {theirs:.3}]"))
            .collect();
        format!(
            "{{\"target\": \"{target}\", \"part\": \"{part}\", \"point\": \"{point}\", \"against\": \"{}\", \
             \"cores\": \"{}\", \"hop_ns\": {:.2}, \"rounds_ns\": [{}]}}",
            self.against,
            self.cores(),
            self.hop_ns,
            rounds.join(", ")
        )
    }
}
