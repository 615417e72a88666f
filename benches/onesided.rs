//! What an operation on the memory of a peer costs over shared memory, beside the bare access to it.
//!
//! A rank attaches to what another exposes. Each operation and the bare access it is compared with, on memory
//! of the same kind, take turns in batches within one run. `cargo bench --bench onesided`; with `-- --smoke`,
//! a few batches.

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
    Arena, Config, Event, Fabric, Issued, Ledger, Outcome, Rank, RegionHandle, RemoteRegion, Secret,
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

fn main() {
    let smoke = env::args().any(|argument| argument == "--smoke");
    let batches = if smoke { SMOKE_BATCHES } else { BATCHES };
    let machine = machine();
    let secret = Secret::random().expect("the system has randomness");
    let done = Barrier::new(2);
    let (to_owner, from_user) = std::sync::mpsc::channel();
    let (to_user, from_owner) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let (secret, done) = (&secret, &done);
        scope.spawn(move || {
            let mut fabric = fabric(1, secret);
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
            done.wait(); // It has no part in what is measured.
        });
        let mut fabric = fabric(0, secret);
        let own = fabric.address().expect("it has sockets");
        to_owner.send(own.clone()).expect("the other side waits");
        let other = from_owner.recv().expect("the other side says");
        fabric.join(&[own, other]).expect("two ranks");
        let region = attach(&mut fabric);
        fabric
            .send_copy(1, 0, b"attached")
            .expect("the peer is there");
        report(&machine, batches, &mut fabric, &region);
        done.wait();
    });
}

fn fabric(rank: Rank, secret: &Secret) -> Fabric {
    let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).expect("the arena fits");
    Fabric::new(Config::new(rank, 2, secret), arena).expect("sockets can be had")
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

fn report(machine: &str, batches: usize, fabric: &mut Fabric, region: &RemoteRegion) {
    let bare: Vec<AtomicU64> = (0..REGION_BYTES / 8).map(|_| AtomicU64::new(0)).collect();
    let mut bytes = vec![0u8; REGION_BYTES];
    let mut other = vec![0u8; REGION_BYTES];
    println!("{machine}; {batches} batches; ns each, median (min-max):");
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
        println!(
            "  {name:<13} {}  bare {}  ratio {}",
            Spread::of(ours),
            Spread::of(theirs),
            Spread::of(ratios)
        );
    }
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
