//! What an operation on the memory of a peer costs over shared memory, beside the bare access to it, and over TCP, where
//! the owner does it when asked, beside a message there and an empty one back.
//!
//! A rank attaches to what another exposes. Each operation and what it is compared with take turns in batches within
//! one run. `cargo bench --bench onesided`; with `-- --smoke`, a few batches.

mod support;

use std::{
    env,
    hint::black_box,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::measure::{Spread, machine};
use transport::{
    Arena, Config, Event, Fabric, Issued, Ledger, Outcome, Rank, RegionHandle, RemoteRegion,
    Secret, Transport,
};

const ARENA_BYTES: u64 = 64 << 20;
const REGION_BYTES: usize = 1 << 20;
const BATCHES: usize = 300;
const SMOKE_BATCHES: usize = 5;

/// The operations of a batch, of which each is one of so many bytes.
const CASES: [(&str, usize, u32); 8] = [
    ("fetch_add", 8, 20_000),
    ("compare_swap", 8, 20_000),
    ("put 8 B", 8, 20_000),
    ("get 8 B", 8, 20_000),
    ("put 64 KiB", 64 << 10, 50),
    ("get 64 KiB", 64 << 10, 50),
    ("put 1 MiB", 1 << 20, 4),
    ("get 1 MiB", 1 << 20, 4),
];

/// The same over TCP: put or get so many bytes.
const ASKED: [(&str, usize, u32); 6] = [
    ("put 8 B", 8, 200),
    ("get 8 B", 8, 200),
    ("put 2 KiB", 2 << 10, 200),
    ("get 2 KiB", 2 << 10, 200),
    ("put 64 KiB", 64 << 10, 50),
    ("get 64 KiB", 64 << 10, 50),
];

fn main() {
    let smoke = env::args().any(|argument| argument == "--smoke");
    let batches = if smoke { SMOKE_BATCHES } else { BATCHES };
    let machine = machine();
    println!("{machine}; {batches} batches; ns each, median (min-max):");
    println!("over shared memory, beside the bare access");
    // The owner has no part in what is measured.
    between(
        Transport::Shm,
        |_| false,
        |fabric, region| in_place(batches, fabric, region),
    );
    println!("over TCP, beside a message there and an empty one back");
    let answer = |fabric: &mut Fabric| {
        if let Some(Event::Message { buffer, .. }) = fabric.receive().expect("the sockets work") {
            fabric.send_copy(0, 0, &[]).expect("the peer is there");
            return !buffer.is_empty();
        }
        true
    };
    between(Transport::Tcp, answer, |fabric, region| {
        by_messages(batches, fabric, region);
    });
}

/// Has one rank expose memory and drive its fabric by `serve` while that says so, and another attach and measure.
fn between(
    transport: Transport,
    serve: impl Fn(&mut Fabric) -> bool + Sync,
    measure: impl FnOnce(&mut Fabric, &RemoteRegion),
) {
    let secret = Secret::random().expect("the system has randomness");
    let done = Barrier::new(2);
    let (to_owner, from_user) = std::sync::mpsc::channel();
    let (to_user, from_owner) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let (secret, done, serve) = (&secret, &done, &serve);
        scope.spawn(move || {
            let mut fabric = fabric(1, secret, transport);
            let own = fabric.address().expect("it has sockets");
            to_user.send(own.clone()).expect("the other side waits");
            let other = from_user.recv().expect("the other side says");
            fabric.join(&[other, own]).expect("two ranks");
            let mut loan = fabric
                .loan(REGION_BYTES)
                .expect("it fits")
                .expect("there is room");
            loan.fill(0);
            let exposed = fabric.expose(loan).expect("it is ours");
            let handle = exposed.handle().to_bytes();
            fabric.send_copy(0, 0, &handle).expect("the peer is there");
            while !matches!(fabric.receive(), Ok(Some(Event::Message { .. }))) {}
            while serve(&mut fabric) {}
            while !fabric.flush().expect("the sockets work") {}
            done.wait();
        });
        let mut fabric = fabric(0, secret, transport);
        let own = fabric.address().expect("it has sockets");
        to_owner.send(own.clone()).expect("the other side waits");
        let other = from_owner.recv().expect("the other side says");
        fabric.join(&[own, other]).expect("two ranks");
        let region = attach(&mut fabric);
        fabric
            .send_copy(1, 0, b"attached")
            .expect("the peer is there");
        while !fabric.flush().expect("the sockets work") {}
        measure(&mut fabric, &region);
        done.wait();
    });
}

fn fabric(rank: Rank, secret: &Secret, transport: Transport) -> Fabric {
    let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).expect("the arena fits");
    let config = Config {
        transport,
        ..Config::new(rank, 2, secret)
    };
    Fabric::new(config, arena).expect("sockets can be had")
}

fn attach(fabric: &mut Fabric) -> RemoteRegion {
    loop {
        match fabric.receive().expect("the sockets work") {
            Some(Event::Message { buffer, .. }) => {
                let bytes = buffer.as_slice().try_into().expect("it is a handle");
                let handle = RegionHandle::from_bytes(bytes);
                assert!(matches!(fabric.attach(&handle), Ok(Issued::Pending(_))));
            }
            Some(Event::Completed { completion, .. }) => match completion.outcome {
                Ok(Outcome::Attached(region)) => return region,
                other => panic!("{other:?}"),
            },
            _ => {}
        }
    }
}

fn in_place(batches: usize, fabric: &mut Fabric, region: &RemoteRegion) {
    let bare: Vec<AtomicU64> = (0..REGION_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
    let mut bytes = vec![0u8; REGION_BYTES];
    let mut other = vec![0u8; REGION_BYTES];
    for (index, (name, len, times)) in CASES.into_iter().enumerate() {
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..batches {
            let floor = each(times, |number| {
                access(
                    index,
                    &bare[0],
                    &mut bytes[..len],
                    &mut other[..len],
                    number,
                );
            });
            let ours_took = each(times, |number| {
                operate(index, fabric, region, &bytes[..len], number);
            });
            theirs.push(floor);
            ours.push(ours_took);
            ratios.push(ours_took / floor);
        }
        report(name, "bare", ours, theirs, ratios);
    }
}

fn report(name: &str, beside: &str, ours: Vec<f64>, theirs: Vec<f64>, ratios: Vec<f64>) {
    println!(
        "  {name:<13} {}  {beside} {}  ratio {}",
        Spread::of(ours),
        Spread::of(theirs),
        Spread::of(ratios)
    );
}

fn by_messages(batches: usize, fabric: &mut Fabric, region: &RemoteRegion) {
    let bytes = vec![7; REGION_BYTES];
    for (name, len, times) in ASKED {
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..batches {
            let floor = each(times, |_| {
                let mut loan = fabric.loan(len).expect("it fits").expect("there is room");
                loan.copy_from_slice(&bytes[..len]);
                fabric.send(1, loan).expect("the peer is there");
                assert!(matches!(next(fabric), Event::Message { .. }));
            });
            let ours_took = each(times, |_| {
                let pending = if name.starts_with("put") {
                    is_pending(fabric.put(region, 0, &bytes[..len]))
                } else {
                    is_pending(fabric.get(region, 0, len))
                };
                assert!(pending, "there is room for one");
                match next(fabric) {
                    Event::Completed { completion, .. } => {
                        black_box(completion.outcome.expect("it is exposed"));
                    }
                    event => panic!("{event:?}"),
                }
            });
            theirs.push(floor);
            ours.push(ours_took);
            ratios.push(ours_took / floor);
        }
        report(name, "messages", ours, theirs, ratios);
    }
    fabric.send_copy(1, 0, &[]).expect("the peer is there");
    assert!(matches!(next(fabric), Event::Message { .. }));
}

/// What happens next.
fn next(fabric: &mut Fabric) -> Event {
    loop {
        if let Some(event) = fabric.receive().expect("the sockets work") {
            return event;
        }
    }
}

fn is_pending<T>(issued: Result<Issued<T>, transport::Error>) -> bool {
    matches!(issued, Ok(Issued::Pending(_)))
}

/// Nanoseconds of one of `times` turns.
fn each(times: u32, mut turn: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    (0..times).for_each(|number| turn(number.into()));
    nanos(start.elapsed()) / f64::from(times)
}

fn nanos(time: Duration) -> f64 {
    time.as_nanos() as f64
}

/// What the operation comes down to: an atomic, a move, or a copy of plain memory.
#[inline(always)]
fn access(case: usize, word: &AtomicU64, bytes: &mut [u8], other: &mut [u8], number: u64) {
    match case {
        0 => {
            black_box(word.fetch_add(1, Ordering::AcqRel));
        }
        1 => {
            let swap = word.compare_exchange(number, number, Ordering::AcqRel, Ordering::Acquire);
            let _ = black_box(swap);
        }
        2 => black_box(word).store(number, Ordering::Relaxed),
        3 => {
            black_box(black_box(word).load(Ordering::Relaxed));
        }
        _ => {
            other.copy_from_slice(black_box(bytes));
            black_box(other);
        }
    }
}

#[inline(always)]
fn operate(case: usize, fabric: &mut Fabric, region: &RemoteRegion, bytes: &[u8], number: u64) {
    let done = match case {
        0 => is_done(fabric.fetch_add(region, 0, 1)),
        1 => is_done(fabric.compare_swap(region, 0, number, number)),
        2 => is_done(fabric.put(region, 0, &number.to_ne_bytes())),
        3 => is_done(fabric.get(region, 0, 8)),
        4 | 6 => is_done(fabric.put(region, 0, black_box(bytes))),
        _ => is_done(fabric.get(region, 0, bytes.len())),
    };
    assert!(done, "shared memory keeps nobody waiting");
}

#[inline(always)]
fn is_done<T>(issued: Result<Issued<T>, transport::Error>) -> bool {
    match issued {
        Ok(Issued::Done(done)) => {
            black_box(done);
            true
        }
        _ => false,
    }
}
