//! How messages over RDMA compare with perftest's `ib_send_lat` and `ib_write_bw` on the same two devices.
//!
//! Perftest's programs and two ranks take turns, and each turn is compared with the one before it. Where
//! there is no RDMA, a virtual machine has some: build with `cargo bench --bench rdma --no-run`, then
//!
//! ```text
//! UPDRAFT_RDMA_DEVICES=rxe0,rxe1 tests/rdma/vm -- target/release/deps/rdma-<hash> --bench
//! ```
//!
//! which `tests/rdma/bench` does. It needs perftest (Debian: perftest).

mod support;

use std::{
    env,
    process::{Command, Stdio},
    sync::{Arc, Barrier, mpsc},
    thread,
    time::{Duration, Instant},
};

use support::measure::{Spread, machine};
use transport::{
    Address, Arena, Config, Event, Fabric, Ledger, Rank, RdmaConfig, Secret, Transport,
};

const ROUNDS: usize = 5;
const ARENA_BYTES: u64 = 64 << 20;
const LATENCY_BYTES: [usize; 3] = [8, 192, 2048];
const TRIPS: usize = 1_000;
const BANDWIDTH_BYTES: [usize; 2] = [64 << 10, 1 << 20];
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
    println!("{}", machine());
    let mut met = Vec::new();
    for bytes in LATENCY_BYTES {
        let turns = [(); ROUNDS].map(|()| {
            let theirs = perftest("ib_send_lat", here, there, bytes, TRIPS, LATENCY_COLUMN);
            [latency(&devices, bytes), theirs]
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
            [bandwidth(&devices, bytes), theirs]
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
    let secret = Secret::random().unwrap();
    let make = {
        let devices = devices.to_vec();
        move |rank: Rank| {
            let config = Config {
                transport: Transport::Rdma,
                rdma: RdmaConfig {
                    devices: devices.clone(),
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

/// The median of one way, in microseconds.
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
