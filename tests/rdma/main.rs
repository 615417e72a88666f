//! What RDMA promises beyond what every transport does. All of it runs on Soft-RoCE devices, in the virtual machines
//! that `tests/rdma/run` starts, which also keeps the promises of `tests/transport` there.

use std::{
    env,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{UsageWho, getrusage};
use transport::{
    Address, Arena, Config, Error, Event, Fabric, Interface, Ledger, Loss, Path, Rank, RdmaConfig,
    Secret, Transport, Unusable,
};

const ARENA: u64 = 16 << 20;
/// The silence of a machine that is gone ends after so much, by default.
const LOST_WITHIN: Duration = Duration::from_secs(2);
/// What an emulated machine may take longer.
const SLACK: Duration = Duration::from_secs(1);

fn config(rank: Rank, transport: Transport, secret: &Secret) -> Config {
    let devices = env::var("UPDRAFT_RDMA_DEVICES").unwrap_or_default();
    Config {
        transport,
        rdma: RdmaConfig {
            devices: devices.split_terminator(',').map(str::to_owned).collect(),
            ..RdmaConfig::default()
        },
        spin: false,
        ..Config::new(rank, 2, secret)
    }
}

fn arena() -> Arena {
    Arena::new(&Ledger::new(ARENA), ARENA).unwrap()
}

fn fabric(rank: Rank, transport: Transport, secret: &Secret) -> Fabric {
    Fabric::new(config(rank, transport, secret), arena()).unwrap()
}

/// An address as if it were of another node.
fn elsewhere(address: &Address) -> Address {
    let text = address.to_string();
    let (_, rest) = text.split_once('/').unwrap();
    format!("elsewhere/{rest}").parse().unwrap()
}

/// Two fabrics that each take the other for one of another node.
fn strangers(transport: Transport) -> [Fabric; 2] {
    let secret = Secret::random().unwrap();
    let mut fabrics = [0, 1].map(|rank| fabric(rank, transport, &secret));
    let [here, there] = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
    fabrics[0].join(&[here.clone(), elsewhere(&there)]).unwrap();
    fabrics[1].join(&[elsewhere(&here), there]).unwrap();
    fabrics
}

/// Polls two fabrics in turns until `done` says so of an event of one of them.
fn poll_until(fabrics: &mut [Fabric; 2], mut done: impl FnMut(usize, Event) -> bool) {
    let start = Instant::now();
    loop {
        for (rank, fabric) in fabrics.iter_mut().enumerate() {
            fabric.tick(start.elapsed());
            if let Some(event) = fabric.receive().unwrap()
                && done(rank, event)
            {
                return;
            }
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it hangs");
    }
}

/// Sends a message each way, and so makes the link.
fn connect(fabrics: &mut [Fabric; 2]) {
    fabrics[0].send_copy(1, 0, b"hello").unwrap();
    poll_until(
        fabrics,
        |rank, event| matches!(event, Event::Message { from: 0, .. } if rank == 1),
    );
    fabrics[1].send_copy(0, 0, b"hello").unwrap();
    poll_until(
        fabrics,
        |rank, event| matches!(event, Event::Message { from: 1, .. } if rank == 0),
    );
}

/// Has a thread run rank 1 with `program`, while `here` runs rank 0; both know where the other is.
fn between_threads<T>(program: fn(Fabric), here: impl FnOnce(&mut Fabric) -> T) -> T {
    let secret = Secret::random().unwrap();
    let (to_there, from_here) = mpsc::channel::<Address>();
    let (to_here, from_there) = mpsc::channel::<Address>();
    let there = {
        let secret = secret.clone();
        thread::spawn(move || {
            let mut fabric = fabric(1, Transport::Rdma, &secret);
            to_here.send(fabric.address().unwrap()).unwrap();
            let book = [from_here.recv().unwrap(), fabric.address().unwrap()];
            fabric.join(&book).unwrap();
            program(fabric);
        })
    };
    let mut fabric = fabric(0, Transport::Rdma, &secret);
    to_there.send(fabric.address().unwrap()).unwrap();
    let book = [fabric.address().unwrap(), from_there.recv().unwrap()];
    fabric.join(&book).unwrap();
    let result = here(&mut fabric);
    drop(fabric);
    there.join().unwrap();
    result
}

/// The next message, waiting for it as a program does.
fn next(fabric: &mut Fabric, start: Instant) -> Result<Vec<u8>, Box<Error>> {
    loop {
        fabric.tick(start.elapsed());
        match fabric.receive().unwrap() {
            Some(Event::Message { buffer, .. }) => return Ok(buffer.to_vec()),
            Some(Event::Ended { error, .. }) => return Err(error),
            Some(Event::Refused { .. } | Event::Completed { .. }) => {}
            None => fabric.wait(Some(Duration::from_millis(100))).unwrap(),
        }
        assert!(start.elapsed() < Duration::from_secs(60), "it hangs");
    }
}

/// Waits until everything has arrived at the other end.
fn flush(fabric: &mut Fabric) {
    let start = Instant::now();
    while !fabric.flush().unwrap() {
        fabric.tick(start.elapsed());
        fabric.wait(Some(Duration::from_millis(20))).unwrap();
        assert!(start.elapsed() < Duration::from_secs(60), "it hangs");
    }
}

fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let used = usage.user_time() + usage.system_time();
    Duration::from_micros((used.tv_sec() * 1_000_000 + used.tv_usec()) as u64)
}

// ---- On any machine ----

#[test]
fn between_nodes_rdma_carries_or_tcp_does_and_it_is_known_why() {
    let mut fabrics = strangers(Transport::Auto);
    connect(&mut fabrics);
    for rank in [0, 1] {
        let path = fabrics[rank].path(1 - rank as Rank);
        match fabrics[rank].why_not_rdma() {
            None => assert_eq!(path, Some(Path::Rdma)),
            Some(_) => assert_eq!(path, Some(Path::Tcp)),
        }
    }
}

#[test]
fn where_there_is_no_rdma_a_fabric_of_nothing_else_is_refused() {
    let secret = Secret::random().unwrap();
    let mut config = config(0, Transport::Rdma, &secret);
    config.rdma.devices = vec!["no-such-0".to_owned()];
    match Fabric::new(config, arena()) {
        Err(Error::Rdma(Unusable::Device { wanted, .. })) => {
            assert_eq!(wanted.as_deref(), Some("no-such-0"));
        }
        Err(Error::Rdma(Unusable::Library(_) | Unusable::Kernel)) => {}
        other => panic!("{other:?}"),
    }
}

// ---- Where there are two devices ----

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn two_nodes_with_devices_use_them() {
    let mut fabrics = strangers(Transport::Auto);
    connect(&mut fabrics);
    assert_eq!(fabrics[0].path(1), Some(Path::Rdma));
    assert_eq!(fabrics[1].path(0), Some(Path::Rdma));
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn a_peer_that_wants_tcp_gets_it() {
    let secret = Secret::random().unwrap();
    for transports in [
        [Transport::Auto, Transport::Tcp],
        [Transport::Tcp, Transport::Auto],
    ] {
        let mut fabrics = [0, 1].map(|rank| fabric(rank, transports[rank as usize], &secret));
        let [here, there] = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
        fabrics[0].join(&[here.clone(), elsewhere(&there)]).unwrap();
        fabrics[1].join(&[elsewhere(&here), there]).unwrap();
        connect(&mut fabrics);
        assert_eq!(fabrics[0].path(1), Some(Path::Tcp), "{transports:?}");
        let auto = transports
            .iter()
            .position(|transport| *transport == Transport::Auto)
            .unwrap();
        let why = fabrics[auto].why_not_rdma();
        assert!(matches!(why, Some(Unusable::Peer(_))), "{why:?}");
    }
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn a_receiver_that_does_not_look_is_never_overrun() {
    const MESSAGES: usize = 3_000;
    let received = between_threads(
        |mut fabric| {
            // More packets than there are slots, by far, and as fast as it can.
            for number in 0..MESSAGES {
                let size = [8, 150, 3_000, 6_000][number % 4];
                while !fabric
                    .send_copy(0, number as u64, &vec![number as u8; size])
                    .unwrap()
                {
                    assert!(fabric.receive().unwrap().is_none());
                    fabric.wait(Some(Duration::from_millis(20))).unwrap();
                }
            }
            flush(&mut fabric);
        },
        |fabric| {
            let start = Instant::now();
            let mut received = 0;
            while received < MESSAGES {
                if received % 500 == 1 {
                    thread::sleep(Duration::from_millis(300));
                }
                let message = next(fabric, start).unwrap();
                let size = [8, 150, 3_000, 6_000][received % 4];
                assert_eq!(message, vec![received as u8; size]);
                received += 1;
            }
            received
        },
    );
    assert_eq!(received, MESSAGES);
}

/// Ranks of a job do not hear at the same time where the others are.
#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn a_rank_that_is_reached_before_it_joins_keeps_its_link() {
    let secret = Secret::random().unwrap();
    let mut fabrics = [0, 1].map(|rank| fabric(rank, Transport::Rdma, &secret));
    let book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
    fabrics[0].join(&book).unwrap();
    for number in 0..200 {
        let to = if number == 0 { 1 } else { number % 2 };
        fabrics[1 - to].send_copy(to as Rank, 0, b"hello").unwrap();
        poll_until(&mut fabrics, |rank, event| match event {
            Event::Message { .. } => rank == to,
            event => panic!("message {number}: {event:?}"),
        });
        if number == 0 {
            fabrics[1].join(&book).unwrap();
        }
    }
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn a_rank_that_waits_sleeps_and_is_woken() {
    between_threads(
        |mut fabric| {
            let start = Instant::now();
            assert_eq!(next(&mut fabric, start).unwrap(), b"hello");
            for _ in 0..3 {
                thread::sleep(Duration::from_millis(400));
                fabric.send_copy(0, 0, b"wake up").unwrap();
                flush(&mut fabric);
            }
            let _ = next(&mut fabric, start);
        },
        |fabric| {
            fabric.send_copy(1, 0, b"hello").unwrap();
            let start = Instant::now();
            assert_eq!(next(fabric, start).unwrap(), b"wake up");
            let before = processor_time();
            for _ in 0..2 {
                assert_eq!(next(fabric, start).unwrap(), b"wake up");
            }
            let used = processor_time() - before;
            // An emulated processor takes milliseconds for a system call.
            assert!(
                used < Duration::from_millis(200),
                "it used {used:?} in 0.8 s"
            );
        },
    );
}

/// What is wrong with the network until this is dropped.
struct Cut(fn());

impl Cut {
    /// Cuts the virtual cable: what is sent gets lost.
    fn cable() -> Self {
        for interface in ["roce0", "roce1"] {
            run(
                "tc",
                &format!("qdisc replace dev {interface} root netem loss 100%"),
            );
        }
        Self(|| {
            for interface in ["roce0", "roce1"] {
                run("tc", &format!("qdisc del dev {interface} root"));
            }
        })
    }

    /// Has the port of the first device go down, which its driver tells by an event.
    fn port() -> Self {
        run("ip", "link set roce0 down");
        Self(|| {
            run("ip", "link set roce0 up");
            // The route goes with the interface. `tests/rdma/vm-guest` has made it.
            run("ip", "route replace 192.0.2.2 dev roce0 table 101");
        })
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "{program} {arguments}");
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn a_peer_behind_a_cut_cable_is_lost_whether_one_sends_or_waits() {
    for sends in [true, false] {
        let cause = cause_of_loss(Cut::cable, sends);
        assert!(cause.contains("did not answer"), "{cause}");
    }
}

#[test]
#[ignore = "needs RDMA: tests/rdma/run"]
fn a_peer_is_lost_when_the_port_of_our_device_goes_down_and_that_is_told() {
    let cause = cause_of_loss(Cut::port, true);
    let down = "the port of our device rxe0 is down";
    assert!(cause.ends_with(down), "{cause}");
}

/// Why rank 0 loses its peer behind what is `cut`, which it does in time.
fn cause_of_loss(cut: fn() -> Cut, sends: bool) -> String {
    let mut fabrics = strangers(Transport::Rdma);
    connect(&mut fabrics);
    let _cut = cut();
    let start = Instant::now();
    if sends {
        fabrics[0].send_copy(1, 0, b"is anyone there?").unwrap();
    }
    let mut cause = String::new();
    poll_until(&mut fabrics, |rank, event| match event {
        Event::Ended { error, .. } if rank == 0 => {
            let Error::PeerLost {
                peer: 1,
                cause: Loss::Connection(told),
            } = *error
            else {
                panic!("{error:?}");
            };
            cause = told;
            true
        }
        _ => false,
    });
    let took = start.elapsed();
    assert!(took < LOST_WITHIN + SLACK, "{took:?}");
    cause
}

/// Run with a tiny limit of locked memory, and without the right to pass it.
#[test]
#[ignore = "needs RDMA and a limit: tests/rdma/run"]
fn a_small_limit_of_locked_memory_is_told_with_its_fix() {
    let secret = Secret::random().unwrap();
    let refused = Fabric::new(config(0, Transport::Rdma, &secret), arena()).unwrap_err();
    let Error::Rdma(
        why @ Unusable::LockedMemory {
            bytes: ARENA,
            limit,
            ..
        },
    ) = refused
    else {
        panic!("{refused:?}");
    };
    assert!(limit < ARENA);
    assert!(why.to_string().contains("ulimit -l unlimited"), "{why}");

    let mut fabrics = strangers(Transport::Auto);
    connect(&mut fabrics);
    assert_eq!(fabrics[0].path(1), Some(Path::Tcp));
    let why = fabrics[0].why_not_rdma();
    assert!(
        matches!(why, Some(Unusable::LockedMemory { .. })),
        "{why:?}"
    );
}

// ---- Between two machines ----

/// One of two machines, each a rank. Rank 1's machine is killed once `UPDRAFT_TEST_FILE` is there.
#[test]
#[ignore = "needs two machines: tests/rdma/run"]
fn a_machine_that_vanishes_is_lost() {
    const SECRET: [u8; Secret::BYTES] = [7; Secret::BYTES];
    let rank: Rank = env::var("UPDRAFT_TEST_RANK").unwrap().parse().unwrap();
    let meeting = env::var("UPDRAFT_TEST_MEETING").unwrap();
    let config = Config {
        interface: Interface::find(&env::var("UPDRAFT_INTERFACE").unwrap()).unwrap(),
        ..config(rank, Transport::Auto, &Secret::from(SECRET))
    };
    let mut fabric = Fabric::new(config, arena()).unwrap();
    let ours = fabric.address().unwrap();
    let theirs = meet(rank, &meeting, &ours);
    let book = if rank == 0 {
        [ours, theirs]
    } else {
        [theirs, ours]
    };
    fabric.join(&book).unwrap();

    let start = Instant::now();
    let peer = 1 - rank;
    let (mut heard, mut sent, mut messages) = (Instant::now(), Instant::now(), 0);
    fabric.send_copy(peer, 0, b"hello").unwrap();
    loop {
        fabric.tick(start.elapsed());
        match fabric.receive().unwrap() {
            Some(Event::Message { .. }) => {
                heard = Instant::now();
                messages += 1;
                if messages == 20 && rank == 0 {
                    assert_eq!(fabric.path(peer), Some(Path::Rdma));
                    std::fs::write(env::var("UPDRAFT_TEST_FILE").unwrap(), "now").unwrap();
                }
            }
            Some(Event::Ended { error, .. }) => {
                let after = heard.elapsed();
                println!("after {after:?}: {error}");
                assert!(matches!(*error, Error::PeerLost { .. }), "{error:?}");
                assert!(after < LOST_WITHIN + SLACK, "{after:?}");
                return;
            }
            Some(Event::Refused { .. } | Event::Completed { .. }) => {}
            None => fabric.wait(Some(Duration::from_millis(20))).unwrap(),
        }
        if sent.elapsed() > Duration::from_millis(50) {
            sent = Instant::now();
            let _ = fabric.send_copy(peer, 0, b"still here");
        }
        assert!(start.elapsed() < Duration::from_secs(60), "it hangs");
    }
}

/// Exchanges addresses with the other machine: rank 1 listens at `meeting`.
fn meet(rank: Rank, meeting: &str, ours: &Address) -> Address {
    use std::io::{BufRead, BufReader, Write};
    let start = Instant::now();
    let mut stream = if rank == 1 {
        std::net::TcpListener::bind(meeting)
            .unwrap()
            .accept()
            .unwrap()
            .0
    } else {
        loop {
            match std::net::TcpStream::connect(meeting) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < Duration::from_secs(60), "{error}"),
            }
            thread::sleep(Duration::from_millis(100));
        }
    };
    writeln!(stream, "{ours}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim().parse().unwrap()
}
