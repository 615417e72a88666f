//! How messages over RDMA compare with perftest's `ib_send_lat` and `ib_write_bw` on the same two devices, and what is put
//! and got by the devices with `ib_write_lat`, `ib_read_lat`, and with the same by messages.
//!
//! It also prints `ib_read_bw` and `ib_read_lat` beside `ib_write_bw` and `ib_write_lat`: what the choice of READ for large messages rests on.
//!
//! Perftest's programs and two ranks take turns, and each turn is compared with the one before it. Where
//! there is no RDMA, a virtual machine has some: build with `cargo bench --bench rdma --no-run`, then
//!
//! ```text
//! UPDRAFT_RDMA_DEVICES=rxe0,rxe1 tests/rdma/vm -- target/release/deps/rdma-<hash> --bench
//! ```
//!
//! which `tests/rdma/bench` does. It needs perftest (Debian: perftest). The parts `messages`, `memory` and `verbs` can be
//! named; otherwise all are measured.

mod support;

use std::{
    env, fmt,
    process::{Command, Stdio},
    sync::{Arc, Barrier, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use support::measure::{Spread, machine};
use transport::{
    Address, Arena, Config, Event, Exposed, Fabric, Issued, Ledger, Outcome, Rank, RdmaConfig,
    RegionHandle, RemoteRegion, Secret, Transport,
};

const ROUNDS: usize = 5;
const MEMORY_ROUNDS: usize = 3;
const ARENA_BYTES: u64 = 64 << 20;
const LATENCY_BYTES: [usize; 3] = [8, 192, 2048];
const TRIPS: usize = 1_000;
const BANDWIDTH_BYTES: [usize; 2] = [64 << 10, 1 << 20];
/// Bytes that are put and got.
const MEMORY_BYTES: [usize; 3] = [8, 2048, 64 << 10];
/// Sizes at which READ and WRITE are compared.
const VERB_BYTES: [usize; 2] = [8 << 10, 1 << 20];
/// Bytes that a measurement of bandwidth moves.
const STREAM_BYTES: usize = 24 << 20;
/// Where perftest's lines of results have the typical latency, in microseconds, and the average bandwidth, in MiB/s.
const LATENCY_COLUMN: usize = 4;
const BANDWIDTH_COLUMN: usize = 3;
/// The ratios of target P9.
const LATENCY_MOST: f64 = 1.2;
const BANDWIDTH_LEAST: f64 = 0.9;

fn main() {
    let devices = env::var("UPDRAFT_RDMA_DEVICES").unwrap_or_default();
    let devices: Vec<_> = devices.split_terminator(',').map(str::to_owned).collect();
    let [here, there] = &devices[..] else {
        println!("name two devices in UPDRAFT_RDMA_DEVICES; tests/rdma/bench does it all");
        return;
    };
    let named: Vec<_> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let is_wanted = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    println!("{}", machine());
    if is_wanted("messages") {
        messages(&devices);
    }
    if is_wanted("memory") {
        memory_of_peers(&devices);
    }
    if is_wanted("verbs") {
        read_against_write(here, there);
    }
}

/// Messages, and target P9.
fn messages(devices: &[String]) {
    let [here, there] = [&devices[0], &devices[1]];
    let mut met = Vec::new();
    for bytes in LATENCY_BYTES {
        let turns = [(); ROUNDS].map(|()| {
            let theirs = perftest("ib_send_lat", here, there, bytes, TRIPS, LATENCY_COLUMN);
            [latency(devices, bytes), theirs]
        });
        let target = format!("<= {LATENCY_MOST}");
        met.push(compare(
            &format!("{bytes} B one way"),
            "us",
            &turns,
            &target,
            |ratio| ratio <= LATENCY_MOST,
        ));
    }
    for bytes in BANDWIDTH_BYTES {
        let turns = [(); ROUNDS].map(|()| {
            let count = STREAM_BYTES / bytes;
            let theirs = perftest("ib_write_bw", here, there, bytes, count, BANDWIDTH_COLUMN);
            [bandwidth(devices, bytes), theirs]
        });
        let target = format!(">= {BANDWIDTH_LEAST}");
        met.push(compare(
            &format!("{bytes} B stream"),
            "MiB/s",
            &turns,
            &target,
            |ratio| ratio >= BANDWIDTH_LEAST,
        ));
    }
    let all = met.len();
    println!(
        "{} of {all} met",
        met.into_iter().filter(|met| *met).count()
    );
}

/// Puts and gets by the devices, by messages, and by perftest.
fn memory_of_peers(devices: &[String]) {
    for bytes in MEMORY_BYTES {
        let trips = (TRIPS * 8 / (8 + bytes / 1024)).max(50);
        let theirs = |program| {
            perftest(
                program,
                &devices[0],
                &devices[1],
                bytes,
                trips,
                LATENCY_COLUMN,
            )
        };
        for (name, program, measure) in [
            ("put, one way", "ib_write_lat", put as fn(&_, _, _, _) -> _),
            ("get, both ways", "ib_read_lat", get),
        ] {
            let turns = [(); MEMORY_ROUNDS].map(|()| {
                [
                    measure(devices, bytes, trips, false),
                    measure(devices, bytes, trips, true),
                    theirs(program),
                ]
            });
            let [ours, messages, theirs] =
                [0, 1, 2].map(|place| median(turns.iter().map(|turn| turn[place])));
            let of = |place: usize| median(turns.iter().map(|turn| turn[0] / turn[place]));
            println!(
                "{bytes} B {name}: by devices {ours:.1} us, by messages {messages:.1} us, {program} {theirs:.1} us, \
                 ratios {:.2} and {:.2}",
                of(1),
                of(2)
            );
        }
    }
}

/// What perftest makes of the two verbs that can carry a large message.
fn read_against_write(here: &str, there: &str) {
    for bytes in VERB_BYTES {
        for (what, unit, column, programs) in [
            (
                "stream",
                "MiB/s",
                BANDWIDTH_COLUMN,
                ["ib_read_bw", "ib_write_bw"],
            ),
            (
                "latency",
                "us",
                LATENCY_COLUMN,
                ["ib_read_lat", "ib_write_lat"],
            ),
        ] {
            let iterations = (STREAM_BYTES / bytes).clamp(20, 200);
            let turns = [(); MEMORY_ROUNDS].map(|()| {
                programs.map(|program| perftest(program, here, there, bytes, iterations, column))
            });
            let [read, write] = [0, 1].map(|place| median(turns.iter().map(|turn| turn[place])));
            let ratio = median(turns.iter().map(|[read, write]| read / write));
            let [reads, writes] = programs;
            println!(
                "{bytes} B {what}: {reads} {read:.1} {unit}, {writes} {write:.1} {unit}, ratio {ratio:.2}"
            );
        }
    }
}

/// Waits for what an operation brings.
fn complete<T: fmt::Debug>(
    fabric: &mut Fabric,
    issued: Result<Issued<T>, transport::Error>,
) -> Outcome {
    let Ok(Issued::Pending(_)) = issued else {
        panic!("{issued:?}");
    };
    loop {
        match fabric.receive().unwrap() {
            Some(Event::Completed { completion, .. }) => return completion.outcome.unwrap(),
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
}

/// Exposes memory and tells `peer` of it.
fn expose(fabric: &mut Fabric, peer: Rank, bytes: usize) -> Exposed {
    let mut loan = fabric.loan(bytes).unwrap().unwrap();
    loan.fill(0);
    let exposed = fabric.expose(loan).unwrap();
    send(fabric, peer, &exposed.handle().to_bytes());
    exposed
}

/// Attaches to the memory that the next message tells of.
fn attach(fabric: &mut Fabric) -> RemoteRegion {
    let handle = loop {
        if let Some(Event::Message { buffer, .. }) = fabric.receive().unwrap() {
            break RegionHandle::from_bytes(buffer[..].try_into().unwrap());
        }
    };
    let issued = fabric.attach(&handle);
    match complete(fabric, issued) {
        Outcome::Attached(region) => region,
        other => panic!("{other:?}"),
    }
}

/// The median of one way, in microseconds, of bytes that each puts into the memory of the other in turns, who looks
/// there for the last word to change.
fn put(devices: &[String], bytes: usize, trips: usize, read_only: bool) -> f64 {
    let turn = move |fabric: &mut Fabric, peer: Rank| {
        let exposed = expose(fabric, peer, bytes);
        let region = attach(fabric);
        assert_eq!(region.is_direct(), !read_only);
        let mut all = false;
        let mut data = vec![7; bytes];
        let mut times = Vec::with_capacity(trips);
        let mut start = Instant::now();
        for trip in 1..=trips as u64 {
            data[bytes - 8..].copy_from_slice(&trip.to_ne_bytes());
            let mut arrives = |fabric: &mut Fabric| {
                while exposed.words()[bytes / 8 - 1].load(Ordering::Acquire) != trip {
                    all |= is_message(fabric.receive().unwrap());
                }
            };
            if peer == 0 {
                arrives(fabric);
            }
            while let Issued::NoRoom = fabric.put(&region, 0, &data).unwrap() {
                assert!(!is_message(fabric.receive().unwrap()));
            }
            if peer == 1 {
                arrives(fabric);
            }
            let end = Instant::now();
            times.push((end - start).as_secs_f64() * 1e6 / 2.0);
            start = end;
        }
        // Neither takes its memory back before the other has done.
        send(fabric, peer, b"all");
        while !all || fabric.outstanding(peer) > 0 {
            all |= is_message(fabric.receive().unwrap());
        }
        median(times)
    };
    between_with(
        devices,
        read_only,
        move |fabric| turn(fabric, 1),
        move |fabric| {
            turn(fabric, 0);
        },
    )
}

/// Whether a message has come, and not just what was put has arrived.
fn is_message(event: Option<Event>) -> bool {
    match event {
        Some(Event::Message { .. }) => true,
        Some(Event::Completed { completion, .. }) => {
            completion.outcome.unwrap();
            false
        }
        Some(other) => panic!("{other:?}"),
        None => false,
    }
}

/// The median until bytes of the memory of the other are here, in microseconds.
fn get(devices: &[String], bytes: usize, trips: usize, read_only: bool) -> f64 {
    between_with(
        devices,
        read_only,
        move |fabric| {
            let region = attach(fabric);
            assert_eq!(region.is_direct(), !read_only);
            let mut times = Vec::with_capacity(trips);
            for _ in 0..trips {
                let start = Instant::now();
                let issued = fabric.get(&region, 0, bytes);
                let got = complete(fabric, issued);
                times.push(start.elapsed().as_secs_f64() * 1e6);
                assert!(matches!(got, Outcome::Got(got) if got.len() == bytes));
            }
            send(fabric, 1, b"all");
            median(times)
        },
        move |fabric| {
            let _exposed = expose(fabric, 0, bytes);
            receive(fabric);
        },
    )
}

/// Prints what we and perftest took in each turn, in the middle, and how often one is of the other; whether that meets
/// the target.
fn compare(
    name: &str,
    unit: &str,
    turns: &[[f64; 2]],
    target: &str,
    meets: impl FnOnce(f64) -> bool,
) -> bool {
    let ours = median(turns.iter().map(|[ours, _]| *ours));
    let theirs = median(turns.iter().map(|[_, theirs]| *theirs));
    let ratio = median(turns.iter().map(|[ours, theirs]| ours / theirs));
    let met = meets(ratio);
    let word = if met { "met" } else { "missed" };
    println!(
        "P9 {name}: {ours:.1} {unit}, perftest {theirs:.1} {unit}, ratio {ratio:.2}, target {target} {word}"
    );
    met
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(values).median
}

/// Runs one of perftest's programs on both devices, and returns a column of its line of results.
fn perftest(
    program: &str,
    here: &str,
    there: &str,
    bytes: usize,
    iterations: usize,
    column: usize,
) -> f64 {
    let gid = env::var("UPDRAFT_RDMA_GID").unwrap_or_else(|_| "1".into());
    let command = |device: &str| {
        let mut command = Command::new(program);
        command
            .args(["-F", "-d", device, "-x", &gid, "-s", &bytes.to_string()])
            .args(["-n", &iterations.to_string()]);
        command
    };
    let mut server = command(there)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} (Debian: perftest): {error}"));
    let start = Instant::now();
    let results = loop {
        let output = command(here).arg("127.0.0.1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let size = bytes.to_string();
        let line = text
            .lines()
            .find(|line| line.split_whitespace().next() == Some(&size));
        if let Some(line) = line {
            break line.to_owned();
        }
        // The server may not listen yet.
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{program}: {text}"
        );
        thread::sleep(Duration::from_millis(50));
    };
    server.wait().unwrap();
    results
        .split_whitespace()
        .nth(column)
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{program} has no column {column}: {results}"))
}

/// Runs two ranks on two threads, `here` and `there`, and returns what the first does.
fn between(
    devices: &[String],
    here: impl FnOnce(&mut Fabric) -> f64,
    there: impl FnOnce(&mut Fabric) + Send + 'static,
) -> f64 {
    between_with(devices, false, here, there)
}

/// The same where devices of peers may only read.
fn between_with(
    devices: &[String],
    read_only: bool,
    here: impl FnOnce(&mut Fabric) -> f64,
    there: impl FnOnce(&mut Fabric) + Send + 'static,
) -> f64 {
    let secret = Secret::random().unwrap();
    let make = {
        let devices = devices.to_vec();
        move |rank: Rank| {
            let config = Config {
                transport: Transport::Rdma,
                rdma: RdmaConfig {
                    devices: devices.clone(),
                    read_only,
                    ..RdmaConfig::default()
                },
                ..Config::new(rank, 2, &secret)
            };
            let arena = Arena::new(&Ledger::new(ARENA_BYTES), ARENA_BYTES).unwrap();
            Fabric::new(config, arena).unwrap()
        }
    };
    let (to_there, from_here) = mpsc::channel::<Address>();
    let (to_here, from_there) = mpsc::channel::<Address>();
    let barrier = Arc::new(Barrier::new(2));
    let other = {
        let (make, barrier) = (make.clone(), barrier.clone());
        thread::spawn(move || {
            let mut fabric = make(1);
            to_here.send(fabric.address().unwrap()).unwrap();
            let book = [from_here.recv().unwrap(), fabric.address().unwrap()];
            fabric.join(&book).unwrap();
            barrier.wait();
            there(&mut fabric);
            flush(&mut fabric);
        })
    };
    let mut fabric = make(0);
    to_there.send(fabric.address().unwrap()).unwrap();
    let book = [fabric.address().unwrap(), from_there.recv().unwrap()];
    fabric.join(&book).unwrap();
    barrier.wait();
    let result = here(&mut fabric);
    flush(&mut fabric);
    drop(fabric);
    other.join().unwrap();
    result
}

fn flush(fabric: &mut Fabric) {
    while !fabric.flush().unwrap() {
        fabric.wait(Some(Duration::from_millis(10))).unwrap();
    }
}

/// Takes the next message, for which it polls, as perftest does.
fn receive(fabric: &mut Fabric) {
    loop {
        match fabric.receive().unwrap() {
            Some(Event::Message { .. }) => return,
            Some(Event::Ended { error, .. }) => panic!("{error}"), // What is left would measure nothing.
            Some(Event::Refused { .. } | Event::Completed { .. }) | None => {}
        }
    }
}

fn send(fabric: &mut Fabric, peer: Rank, bytes: &[u8]) {
    while !fabric.send_copy(peer, 0, bytes).unwrap() {
        assert!(fabric.receive().unwrap().is_none());
    }
}

/// The median of one way of messages, in microseconds.
fn latency(devices: &[String], bytes: usize) -> f64 {
    between(
        devices,
        move |fabric| {
            let message = vec![7; bytes];
            let mut times = Vec::with_capacity(TRIPS);
            let mut start = Instant::now();
            for _ in 0..TRIPS {
                send(fabric, 1, &message);
                receive(fabric);
                let end = Instant::now();
                times.push((end - start).as_secs_f64() * 1e6 / 2.0);
                start = end;
            }
            median(times)
        },
        move |fabric| {
            let message = vec![7; bytes];
            for _ in 0..TRIPS {
                receive(fabric);
                send(fabric, 0, &message);
            }
        },
    )
}

/// MiB in a second, as whoever receives them sees it.
fn bandwidth(devices: &[String], bytes: usize) -> f64 {
    let count = STREAM_BYTES / bytes;
    between(
        devices,
        move |fabric| {
            send(fabric, 1, b"go");
            receive(fabric); // The first one makes up for the connection.
            let start = Instant::now();
            for _ in 0..count {
                receive(fabric);
            }
            (count * bytes) as f64 / (1 << 20) as f64 / start.elapsed().as_secs_f64()
        },
        move |fabric| {
            receive(fabric);
            for _ in 0..=count {
                let mut loan = loop {
                    match fabric.loan(bytes).unwrap() {
                        Some(loan) => break loan,
                        None => assert!(fabric.receive().unwrap().is_none()),
                    }
                };
                loan[0] = 7;
                fabric.send(0, loan).unwrap();
                assert!(fabric.receive().unwrap().is_none());
            }
        },
    )
}
