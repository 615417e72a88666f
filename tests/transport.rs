//! What a transport promises, whoever keeps the promise: threads, processes, TCP, the simulation.
//!
//! A promise is two programs, one for each end of a link. They are futures, so that the same text
//! runs on two threads, in two processes, or in turns on one thread.

use std::{
    cell::RefCell,
    collections::VecDeque,
    env,
    future::{Future, poll_fn},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    pin::{Pin, pin},
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::mpsc::{Receiver, Sender},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, raise};
use transport::{
    Address, Arena, Buffer, Config, Error, Event, Fabric, Interface, Ledger, Loan, Loss, Path,
    Rank, RdmaConfig, Secret, Simulation, Transport,
};

/// Larger than the largest message, with room for a second one in flight.
const ARENA: u64 = 160 << 20;
const SMALL_ARENA: u64 = 1 << 20;

/// One end of a link, as a program sees it.
#[derive(Clone)]
struct End {
    fabric: Rc<RefCell<Fabric>>,
    peer: Rank,
    /// What arrived while the program waited for something else.
    arrived: Rc<RefCell<VecDeque<Result<Buffer, Error>>>>,
    die: fn(),
}

impl End {
    fn new(fabric: Rc<RefCell<Fabric>>, peer: Rank, die: fn()) -> Self {
        Self {
            fabric,
            peer,
            arrived: Rc::default(),
            die,
        }
    }

    /// Takes in what has arrived: room comes back only to those who do.
    fn take_in(&self) {
        while let Some(event) = self.fabric.borrow_mut().receive().unwrap() {
            match event {
                Event::Message { buffer, .. } => self.arrived.borrow_mut().push_back(Ok(buffer)),
                Event::Ended { error, .. } => self.arrived.borrow_mut().push_back(Err(*error)),
                Event::Refused { .. } | Event::Completed { .. } => {}
            }
        }
    }

    async fn loan(&self, bytes: usize) -> Loan {
        poll_fn(|_| {
            let loan = self.fabric.borrow().loan(bytes).unwrap();
            match loan {
                Some(loan) => Poll::Ready(loan),
                None => {
                    self.take_in();
                    Poll::Pending
                }
            }
        })
        .await
    }

    async fn send(&self, bytes: &[u8]) {
        if bytes.len() > 104 {
            let mut loan = self.loan(bytes.len()).await;
            loan.copy_from_slice(bytes);
            self.fabric.borrow_mut().send(self.peer, loan).unwrap();
        } else {
            assert!(
                self.fabric
                    .borrow_mut()
                    .send_copy(self.peer, 0, bytes)
                    .unwrap()
            );
        }
    }

    /// The next message, or how the peer ended.
    async fn receive(&self) -> Result<Buffer, Error> {
        poll_fn(|_| {
            if self.arrived.borrow().is_empty() {
                let event = self.fabric.borrow_mut().receive().unwrap();
                match event {
                    Some(Event::Message { buffer, .. }) => return Poll::Ready(Ok(buffer)),
                    Some(Event::Ended { error, .. }) => return Poll::Ready(Err(*error)),
                    Some(Event::Refused { .. } | Event::Completed { .. }) | None => {}
                }
            }
            self.arrived
                .borrow_mut()
                .pop_front()
                .map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Waits until everything sent has left this end.
    async fn flush(&self) {
        poll_fn(|_| match self.fabric.borrow_mut().flush().unwrap() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

type Program = Pin<Box<dyn Future<Output = ()>>>;

/// What both ends do.
#[derive(Clone, Copy)]
struct Promise {
    arena: u64,
    here: fn(End) -> Program,
    there: fn(End) -> Program,
}

macro_rules! promises {
    ($($name:ident in $arena:expr;)*) => {
        fn promise(name: &str) -> Promise {
            match name {
                $(stringify!($name) => Promise {
                    arena: $arena,
                    here: |end| Box::pin($name::here(end)),
                    there: |end| Box::pin($name::there(end)),
                },)*
                _ => panic!("no promise is called {name}"),
            }
        }

        mod threads_over_shared_memory { $(#[test] fn $name() {
            super::threads(super::promise(stringify!($name)), super::Transport::Shm);
        })* }
        mod threads_over_tcp { $(#[test] fn $name() {
            super::threads(super::promise(stringify!($name)), super::Transport::Tcp);
        })* }
        mod processes_over_shared_memory { $(#[test] fn $name() {
            super::processes(stringify!($name), "shm");
        })* }
        mod processes_over_tcp { $(#[test] fn $name() {
            super::processes(stringify!($name), "tcp");
        })* }
        mod threads_over_rdma { $(#[test] #[ignore = "needs RDMA: tests/rdma/run"] fn $name() {
            super::threads(super::promise(stringify!($name)), super::Transport::Rdma);
        })* }
        mod processes_over_rdma { $(#[test] #[ignore = "needs RDMA: tests/rdma/run"] fn $name() {
            super::processes(stringify!($name), "rdma");
        })* }
        mod simulation { $(#[test] fn $name() {
            super::simulated(super::promise(stringify!($name)));
        })* }
    };
}

promises! {
    delivers_in_order in ARENA;
    delivers_empty_and_huge_messages in ARENA;
    aligns_what_it_delivers in ARENA;
    makes_a_fast_sender_wait_for_a_slow_receiver in SMALL_ARENA;
    returns_every_loan in SMALL_ARENA;
    passes_on_what_another_lent in ARENA;
    tells_of_an_orderly_end_after_the_last_message in SMALL_ARENA;
    tells_of_a_death_after_the_last_message in SMALL_ARENA;
    takes_back_what_the_dead_had_not_read in SMALL_ARENA;
    connects_once_when_both_connect_at_the_same_time in SMALL_ARENA;
}

/// A message of `len` bytes that only `number` has.
fn pattern(number: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(31) ^ (at >> 11) ^ number) as u8)
        .collect()
}

mod delivers_in_order {
    use super::*;

    const MESSAGES: usize = 3_000;

    /// Empty, inline, just past inline, and large ones.
    fn length(number: usize) -> usize {
        [0, 1, 48, 49, 1_000, 104, 105, 40_000][number * 7 % 8]
    }

    pub(super) async fn here(end: End) {
        for number in 0..MESSAGES {
            end.send(&pattern(number, length(number))).await;
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(super) async fn there(end: End) {
        for number in 0..MESSAGES {
            let message = end.receive().await.unwrap();
            assert!(
                message.as_slice() == pattern(number, length(number)),
                "message {number} differs"
            );
        }
        end.send(b"all").await;
        end.flush().await;
    }
}

mod delivers_empty_and_huge_messages {
    use super::*;

    const HUGE: usize = 64 << 20;

    pub(super) async fn here(end: End) {
        for number in 0..3 {
            end.send(b"").await;
            let mut loan = end.loan(HUGE).await;
            loan.chunks_mut(4096)
                .enumerate()
                .for_each(|(page, bytes)| bytes.fill((page + number) as u8));
            loan.set_tag(u64::MAX - number as u64);
            end.fabric.borrow_mut().send(end.peer, loan).unwrap();
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(super) async fn there(end: End) {
        for number in 0..3 {
            assert!(end.receive().await.unwrap().is_empty());
            let huge = end.receive().await.unwrap();
            assert_eq!((huge.len(), huge.tag()), (HUGE, u64::MAX - number as u64));
            for (page, bytes) in huge.chunks(4096).enumerate() {
                assert!(
                    bytes.iter().all(|&byte| byte == (page + number) as u8),
                    "page {page} differs"
                );
            }
        }
        end.send(b"all").await;
        end.flush().await;
    }
}

mod aligns_what_it_delivers {
    use super::*;

    pub(super) async fn here(end: End) {
        for len in (0..500).step_by(7) {
            let loan = end.loan(len).await;
            assert_eq!(loan.as_ptr() as usize % 64, 0);
            end.fabric.borrow_mut().send(end.peer, loan).unwrap();
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(super) async fn there(end: End) {
        for len in (0..500).step_by(7) {
            let message = end.receive().await.unwrap();
            assert_eq!(message.len(), len);
            let align = if len > 104 { 64 } else { 16 };
            assert_eq!(message.as_ptr() as usize % align, 0);
        }
        end.send(b"all").await;
        end.flush().await;
    }
}

mod makes_a_fast_sender_wait_for_a_slow_receiver {
    use super::*;

    const LEN: usize = 60_000;

    pub(super) async fn here(end: End) {
        // The receiver reads nothing until it hears "go": only so much can be lent meanwhile.
        let mut sent = 0;
        let lent_out = Instant::now() + Duration::from_secs(10);
        loop {
            let loan = end.fabric.borrow().loan(LEN).unwrap();
            match loan {
                Some(loan) => {
                    end.fabric.borrow_mut().send(end.peer, loan).unwrap();
                    sent += 1;
                    end.fabric.borrow_mut().flush().unwrap();
                }
                None => break,
            }
            assert!(
                sent <= SMALL_ARENA as usize / LEN,
                "more is lent than there is"
            );
            assert!(Instant::now() < lent_out);
        }
        end.send(format!("go {sent}").as_bytes()).await;
        // As it reads, there is room again.
        for _ in 0..sent {
            end.send(&pattern(1, LEN)).await;
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
    }

    pub(super) async fn there(end: End) {
        let mut held = Vec::new();
        let sent = loop {
            let message = end.receive().await.unwrap();
            if let Some(sent) = message.strip_prefix(b"go ") {
                break std::str::from_utf8(sent).unwrap().parse().unwrap();
            }
            held.push(message);
        };
        assert_eq!(held.len(), sent);
        drop(held);
        for _ in 0..sent {
            assert!(end.receive().await.unwrap().as_slice() == pattern(1, LEN));
        }
        end.send(b"all").await;
        end.flush().await;
    }
}

mod returns_every_loan {
    use super::*;

    pub(super) async fn here(end: End) {
        for round in 0..200 {
            end.send(&pattern(round, 1 + round * 997 % 100_000)).await;
        }
        assert_eq!(end.receive().await.unwrap().as_slice(), b"all");
        drop(end.loan(SMALL_ARENA as usize / 2).await);
    }

    pub(super) async fn there(end: End) {
        for round in 0..200 {
            let message = end.receive().await.unwrap();
            let clone = message.clone();
            drop(message);
            assert!(clone.as_slice() == pattern(round, 1 + round * 997 % 100_000));
        }
        end.send(b"all").await;
        end.flush().await;
        // The other end needs us to hear that its loans came back.
        let _ = end.receive().await;
    }
}

mod passes_on_what_another_lent {
    use super::*;

    pub(super) async fn here(end: End) {
        end.send(&pattern(5, 100_000)).await;
        assert!(end.receive().await.unwrap().as_slice() == pattern(5, 100_000));
    }

    pub(super) async fn there(end: End) {
        let message = end.receive().await.unwrap();
        end.fabric.borrow_mut().send(end.peer, message).unwrap();
        end.flush().await;
        let _ = end.receive().await;
    }
}

mod tells_of_an_orderly_end_after_the_last_message {
    use super::*;

    pub(super) async fn here(end: End) {
        for number in 0..5 {
            end.send(&pattern(number, 1000)).await;
        }
        end.flush().await;
    }

    pub(super) async fn there(end: End) {
        for number in 0..5 {
            assert!(end.receive().await.unwrap().as_slice() == pattern(number, 1000));
        }
        assert!(matches!(end.receive().await, Err(Error::Closed { peer }) if peer == end.peer));
        let refused = end.fabric.borrow_mut().send_copy(end.peer, 0, b"late");
        assert!(matches!(refused, Err(Error::Closed { .. })), "{refused:?}");
    }
}

mod tells_of_a_death_after_the_last_message {
    use super::*;

    pub(super) async fn here(end: End) {
        for number in 0..5 {
            assert!(end.receive().await.unwrap().as_slice() == pattern(number, 1000));
        }
        match end.receive().await {
            Err(Error::PeerLost { peer, .. }) => assert_eq!(peer, end.peer),
            other => panic!("{other:?}"),
        }
        let refused = end.fabric.borrow_mut().send_copy(end.peer, 0, b"late");
        assert!(
            matches!(refused, Err(Error::PeerLost { .. })),
            "{refused:?}"
        );
    }

    pub(super) async fn there(end: End) {
        for number in 0..5 {
            end.send(&pattern(number, 1000)).await;
        }
        end.flush().await;
        (end.die)();
    }
}

mod takes_back_what_the_dead_had_not_read {
    use super::*;

    pub(super) async fn here(end: End) {
        for number in 0..6 {
            end.send(&pattern(number, 100_000)).await;
        }
        let died = loop {
            match end.receive().await {
                Ok(_) => {}
                Err(died) => break died,
            }
        };
        assert!(matches!(died, Error::PeerLost { .. }), "{died:?}");
        drop(end.loan(SMALL_ARENA as usize / 2).await);
    }

    pub(super) async fn there(end: End) {
        // One is held and the rest unread at death.
        let _held = end.receive().await.unwrap();
        end.send(b"dying").await;
        end.flush().await;
        (end.die)();
    }
}

mod connects_once_when_both_connect_at_the_same_time {
    use super::*;

    pub(super) async fn here(end: End) {
        for number in 0..100 {
            end.send(&pattern(number, 100)).await;
        }
        for number in 0..100 {
            assert!(end.receive().await.unwrap().as_slice() == pattern(number, 100));
        }
        end.send(b"bye").await;
        assert_eq!(end.receive().await.unwrap().as_slice(), b"bye");
        end.flush().await;
    }

    pub(super) async fn there(end: End) {
        here(end).await;
    }
}

// ---- Who keeps them ----

fn arena(bytes: u64) -> Arena {
    Arena::new(&Ledger::new(bytes), bytes).unwrap()
}

fn config(rank: Rank, transport: Transport, secret: &Secret) -> Config {
    Config {
        transport,
        rdma: rdma(),
        interface: interface(),
        spin: false,
        ..Config::new(rank, 2, secret)
    }
}

/// Where the other end reaches this one.
fn interface() -> Interface {
    match env::var("UPDRAFT_INTERFACE") {
        Ok(chosen) => Interface::find(&chosen).unwrap(),
        Err(_) => Interface::LOOPBACK,
    }
}

/// The devices that ranks take turns on, if `UPDRAFT_RDMA_DEVICES` names some.
fn rdma() -> RdmaConfig {
    let devices = env::var("UPDRAFT_RDMA_DEVICES").unwrap_or_default();
    RdmaConfig {
        devices: devices.split_terminator(',').map(str::to_owned).collect(),
        ..RdmaConfig::default()
    }
}

fn fabric(rank: Rank, bytes: u64, transport: Transport, secret: &Secret) -> Fabric {
    Fabric::new(config(rank, transport, secret), arena(bytes)).unwrap()
}

/// Drives one end to the end of its program.
fn drive(fabric: Rc<RefCell<Fabric>>, program: Program) {
    let start = Instant::now();
    let mut program = pin!(program);
    let mut context = Context::from_waker(Waker::noop());
    while program.as_mut().poll(&mut context).is_pending() {
        assert!(start.elapsed() < Duration::from_secs(60), "it hangs");
        fabric.borrow_mut().tick(start.elapsed());
        fabric
            .borrow_mut()
            .wait(Some(Duration::from_millis(20)))
            .unwrap();
    }
}

fn run_end(fabric: Fabric, program: fn(End) -> Program, die: fn()) {
    let peer = 1 - fabric.rank();
    let fabric = Rc::new(RefCell::new(fabric));
    let program = program(End::new(fabric.clone(), peer, die));
    drive(fabric, program);
}

const DEATH: &str = "this thread dies as its promise says";

fn threads(promise: Promise, transport: Transport) {
    let secret = Secret::random().unwrap();
    let (to_there, from_here) = std::sync::mpsc::channel::<Address>();
    let (to_here, from_there) = std::sync::mpsc::channel::<Address>();
    let there = {
        let secret = secret.clone();
        thread::spawn(move || {
            let mut fabric = fabric(1, promise.arena, transport, &secret);
            to_here.send(fabric.address().unwrap()).unwrap();
            let book = [from_here.recv().unwrap(), fabric.address().unwrap()];
            fabric.join(&book).unwrap();
            run_end(fabric, promise.there, || std::panic::panic_any(DEATH));
        })
    };
    let mut fabric = fabric(0, promise.arena, transport, &secret);
    to_there.send(fabric.address().unwrap()).unwrap();
    let book = [fabric.address().unwrap(), from_there.recv().unwrap()];
    fabric.join(&book).unwrap();
    run_end(fabric, promise.here, || std::panic::panic_any(DEATH));
    if let Err(panic) = there.join() {
        assert_eq!(panic.downcast_ref(), Some(&DEATH), "the other end failed");
    }
}

fn processes(name: &str, transport: &str) {
    let promise = promise(name);
    let mut other = OtherEnd::start(name, transport);
    let secret = Secret::random().unwrap();
    let mut fabric = fabric(0, promise.arena, transport_named(transport), &secret);
    let hex: String = secret
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    writeln!(other.input, "{hex} {}", fabric.address().unwrap()).unwrap();
    let there = other.word("ADDRESS=").parse().unwrap();
    fabric.join(&[fabric.address().unwrap(), there]).unwrap();
    run_end(fabric, promise.here, || {
        unreachable!("only the other end dies")
    });
    other.succeeds();
}

/// The process at the other end: one of this machine or, if `UPDRAFT_TEST_MACHINE` says where
/// [`the_other_machine`] listens, of another.
struct OtherEnd {
    child: Option<Child>,
    input: Box<dyn Write>,
    output: Box<dyn BufRead>,
}

impl OtherEnd {
    fn start(name: &str, transport: &str) -> Self {
        if let Ok(machine) = env::var("UPDRAFT_TEST_MACHINE") {
            let start = Instant::now();
            let mut stream = loop {
                match TcpStream::connect(&machine) {
                    Ok(stream) => break stream,
                    Err(_) if start.elapsed() < Duration::from_secs(60) => {
                        thread::sleep(Duration::from_millis(100));
                    }
                    Err(error) => panic!("{machine} does not start: {error}"),
                }
            };
            writeln!(stream, "{name} {transport}").unwrap();
            return Self {
                child: None,
                output: Box::new(BufReader::new(stream.try_clone().unwrap())),
                input: Box::new(stream),
            };
        }
        let mut child = other_process(name, transport)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: Box::new(child.stdin.take().unwrap()),
            output: Box::new(BufReader::new(child.stdout.take().unwrap())),
            child: Some(child),
        }
    }

    /// What it says after `key`.
    fn word(&mut self, key: &str) -> String {
        let mut lines = self.output.by_ref().lines().map(Result::unwrap);
        lines
            .find_map(|line| line.split_once(key).map(|(_, word)| word.to_owned()))
            .expect("the other process says what it is asked for")
    }

    fn succeeds(mut self) {
        let ended_well = match &mut self.child {
            Some(child) => ends_well(child),
            None => self.word("ENDED=") == "true",
        };
        assert!(ended_well, "the other end failed");
    }
}

impl Drop for OtherEnd {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn other_process(name: &str, transport: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "the_other_process",
            "--ignored",
            "--nocapture",
            "-q",
        ])
        .env("PROMISE", name)
        .env("TRANSPORT", transport);
    command
}

/// Whether a process kept its promise, or died of it.
fn ends_well(child: &mut Child) -> bool {
    let status = child.wait().unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    status.success() || signal == Some(Signal::SIGKILL as i32)
}

/// Runs the other ends of the promises of another machine, for as long as it asks for them.
#[test]
#[ignore = "the other machine of the promises that are kept between two: tests/rdma/run"]
fn the_other_machine() {
    let listener = TcpListener::bind(env::var("UPDRAFT_TEST_MACHINE").unwrap()).unwrap();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0]; // What follows is for the process.
            stream.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        let line = String::from_utf8(line).unwrap();
        let (name, transport) = line.trim().split_once(' ').unwrap();
        if name == "end" {
            return;
        }
        let stdio = || Stdio::from(OwnedFd::from(stream.try_clone().unwrap()));
        let mut child = other_process(name, transport)
            .stdin(stdio())
            .stdout(stdio())
            .spawn()
            .unwrap();
        let ended_well = ends_well(&mut child);
        let _ = writeln!(stream, "\nENDED={ended_well}");
    }
}

fn transport_named(name: &str) -> Transport {
    match name {
        "shm" => Transport::Shm,
        "rdma" => Transport::Rdma,
        _ => Transport::Tcp,
    }
}

#[test]
#[ignore = "the other end of the promises that are kept between processes"]
fn the_other_process() {
    let promise = promise(&env::var("PROMISE").unwrap());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let (hex, address) = line.trim().split_once(' ').unwrap();
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    let secret = Secret::from(<[u8; Secret::BYTES]>::try_from(bytes).unwrap());
    let transport = transport_named(&env::var("TRANSPORT").unwrap());
    let mut fabric = fabric(1, promise.arena, transport, &secret);
    println!("ADDRESS={}", fabric.address().unwrap());
    fabric
        .join(&[address.parse().unwrap(), fabric.address().unwrap()])
        .unwrap();
    run_end(fabric, promise.there, || raise(Signal::SIGKILL).unwrap());
}

/// Both ends take turns on this thread, for many seeds; a death is a panic that is caught here.
fn simulated(promise: Promise) {
    let seeds = if promise.arena == ARENA { 3 } else { 50 };
    for seed in 0..seeds {
        let network = Simulation::new(seed, 2);
        let fabrics =
            [0, 1].map(|rank| Rc::new(RefCell::new(network.fabric(rank, &arena(promise.arena)))));
        let end = |rank: usize| {
            End::new(fabrics[rank].clone(), 1 - rank as Rank, || {
                std::panic::resume_unwind(Box::new(DEATH))
            })
        };
        let mut programs = [Some((promise.here)(end(0))), Some((promise.there)(end(1)))];
        let mut fabrics = fabrics.map(Some);
        let mut context = Context::from_waker(Waker::noop());
        let mut stalled = 0;
        while programs.iter().any(Option::is_some) {
            let turn = network.draw(2) as usize;
            let Some(program) = &mut programs[turn] else {
                continue;
            };
            let poll = std::panic::AssertUnwindSafe(|| program.as_mut().poll(&mut context));
            match std::panic::catch_unwind(poll) {
                Ok(Poll::Pending) if network.advance() => stalled = 0,
                Ok(Poll::Pending) => stalled += 1,
                Ok(Poll::Ready(())) => {
                    programs[turn] = None;
                    fabrics[turn] = None;
                }
                Err(panic) => {
                    assert_eq!(panic.downcast_ref(), Some(&DEATH), "seed {seed}");
                    network.kill(turn as Rank);
                    programs[turn] = None;
                    fabrics[turn] = None;
                }
            }
            assert!(stalled < 1_000, "seed {seed} hangs");
        }
    }
}

// ---- What only some of them can be asked ----

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let ledger = Ledger::new(1 << 20);
    let fabric = Fabric::alone(Arena::new(&ledger, 1 << 20).unwrap());
    assert!(matches!(
        fabric.loan(2 << 20),
        Err(Error::MessageTooLarge {
            limit: 1_048_576,
            ..
        })
    ));
    let second = Arena::new(&ledger, 1).unwrap_err();
    assert_eq!(
        second.to_string(),
        "the arena of an executor needs 1 bytes, but 1048576 of the ledger's 1048576 are in use"
    );
}

/// Polls two fabrics until `done` says so of an event of one of them.
fn poll_until(fabrics: &mut [Fabric; 2], mut done: impl FnMut(usize, &Event) -> bool) {
    let start = Instant::now();
    loop {
        for (rank, fabric) in fabrics.iter_mut().enumerate() {
            fabric.tick(start.elapsed());
            if let Some(event) = fabric.receive().unwrap()
                && done(rank, &event)
            {
                return;
            }
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it hangs");
    }
}

#[test]
fn a_peer_with_another_secret_is_refused_by_both_sides() {
    for transport in [Transport::Shm, Transport::Tcp] {
        let secrets = [Secret::random().unwrap(), Secret::random().unwrap()];
        let mut fabrics =
            [0, 1].map(|rank| fabric(rank, 1 << 20, transport, &secrets[rank as usize]));
        let book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
        for fabric in &mut fabrics {
            fabric.join(&book).unwrap();
        }
        fabrics[0].send_copy(1, 0, b"let me in").unwrap();
        poll_until(&mut fabrics, |rank, event| match event {
            Event::Ended { peer: 1, error } => {
                rank == 0
                    && matches!(
                        &**error,
                        Error::PeerLost {
                            cause: Loss::Refused(_),
                            ..
                        }
                    )
            }
            Event::Message { .. } => panic!("a stranger was heard"),
            _ => false,
        });
    }
}

#[test]
fn strangers_on_the_port_do_not_disturb_those_who_belong() {
    let secret = Secret::random().unwrap();
    let mut fabrics = [0, 1].map(|rank| fabric(rank, 1 << 20, Transport::Tcp, &secret));
    let book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
    for fabric in &mut fabrics {
        fabric.join(&book).unwrap();
    }
    let port = book[1].to_string().rsplit_once('/').unwrap().1.to_owned();
    let strangers = thread::spawn(move || {
        let half_open: Vec<_> = (0..200)
            .map(|_| std::net::TcpStream::connect(&port).unwrap())
            .collect();
        for mut stranger in &half_open[..100] {
            stranger.write_all(&pattern(3, 64)).unwrap();
        }
        half_open
    });
    fabrics[0].send_copy(1, 0, b"hello").unwrap();
    // Which of the two is seen last depends on the scheduler.
    let (mut refused, mut heard) = (0, false);
    poll_until(&mut fabrics, |_, event| {
        refused += usize::from(matches!(event, Event::Refused { .. }));
        heard |=
            matches!(event, Event::Message { from: 0, buffer } if buffer.as_slice() == b"hello");
        heard && refused == 100
    });
    drop(strangers.join().unwrap());
}

#[test]
fn nobody_at_the_address_is_a_lost_peer() {
    for transport in [Transport::Shm, Transport::Tcp] {
        let secret = Secret::random().unwrap();
        let mut here = fabric(0, 1 << 20, transport, &secret);
        let gone = fabric(1, 1 << 20, transport, &secret).address().unwrap();
        here.join(&[here.address().unwrap(), gone]).unwrap();
        here.send_copy(1, 0, b"anyone?").unwrap();
        let start = Instant::now();
        loop {
            match here.receive().unwrap() {
                Some(Event::Ended { peer: 1, error }) => {
                    assert!(matches!(
                        *error,
                        Error::PeerLost {
                            cause: Loss::Unreachable(_),
                            ..
                        }
                    ));
                    break;
                }
                other => assert!(other.is_none(), "{other:?}"),
            }
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }
}

#[test]
fn ranks_meet_on_the_interface_that_is_chosen() {
    for chosen in ["lo", "127.0.0.2", "::1", "::1/128"] {
        let secret = Secret::random().unwrap();
        let interface = Interface::find(chosen).unwrap();
        let mut fabrics = [0, 1].map(|rank| {
            let config = Config {
                interface,
                ..config(rank, Transport::Tcp, &secret)
            };
            Fabric::new(config, arena(1 << 20)).unwrap()
        });
        let book = fabrics.each_ref().map(|fabric| fabric.address().unwrap());
        let listens = book[1].to_string().rsplit_once('/').unwrap().1.to_owned();
        let listens: std::net::SocketAddr = listens.parse().unwrap();
        assert_eq!(listens.ip(), interface.address(), "{chosen}");
        for fabric in &mut fabrics {
            fabric.join(&book).unwrap();
        }
        fabrics[0].send_copy(1, 0, b"hello").unwrap();
        poll_until(
            &mut fabrics,
            |_, event| matches!(event, Event::Message { from: 0, buffer } if buffer.as_slice() == b"hello"),
        );
        assert_eq!(fabrics[1].path(0), Some(Path::Tcp), "{chosen}");
    }
}

/// Each message is sent about when its receiver falls asleep, and a lost wake-up would cost it ten seconds.
#[test]
fn no_wake_up_is_lost_whoever_fences() {
    const MESSAGES: u64 = 20_000;
    for spin in [true, false] {
        let secret = Secret::random().unwrap();
        let (to_there, from_here) = std::sync::mpsc::channel::<Address>();
        let (to_here, from_there) = std::sync::mpsc::channel::<Address>();
        let run =
            move |rank: Rank, secret: &Secret, tell: Sender<Address>, hear: Receiver<Address>| {
                let config = Config {
                    transport: Transport::Shm,
                    spin,
                    ..Config::new(rank, 2, secret)
                };
                let mut fabric = Fabric::new(config, arena(1 << 20)).unwrap();
                tell.send(fabric.address().unwrap()).unwrap();
                let mut book = vec![fabric.address().unwrap()];
                book.insert(1 - rank as usize, hear.recv().unwrap());
                fabric.join(&book).unwrap();
                for number in 0..MESSAGES {
                    if number % 2 == u64::from(rank) {
                        for _ in 0..number * 7919 % 1_000 {
                            std::hint::spin_loop();
                        }
                        assert!(fabric.send_copy(1 - rank, number, b"wake up").unwrap());
                        continue;
                    }
                    let start = Instant::now();
                    let buffer = loop {
                        match fabric.receive().unwrap() {
                            Some(Event::Message { buffer, .. }) => break buffer,
                            Some(event) => panic!("{event:?}"),
                            None => fabric.wait(Some(Duration::from_secs(10))).unwrap(),
                        }
                    };
                    assert_eq!(buffer.tag(), number);
                    assert!(
                        start.elapsed() < Duration::from_secs(5),
                        "message {number} woke nobody"
                    );
                }
                while !fabric.flush().unwrap() {}
            };
        let there = {
            let secret = secret.clone();
            thread::spawn(move || run(1, &secret, to_here, from_here))
        };
        run(0, &secret, to_there, from_there);
        there.join().unwrap();
    }
}

#[test]
fn a_rank_that_waits_uses_no_processor() {
    let secret = Secret::random().unwrap();
    let mut fabric = fabric(0, 1 << 20, Transport::Auto, &secret);
    let cpu =
        || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    let before = cpu().user_time() + cpu().system_time();
    for _ in 0..5 {
        fabric.wait(Some(Duration::from_millis(100))).unwrap();
    }
    let used = cpu().user_time() + cpu().system_time() - before;
    let used = Duration::from_micros((used.tv_sec() * 1_000_000 + used.tv_usec()) as u64);
    assert!(
        used < Duration::from_millis(25),
        "it used {used:?} in half a second"
    );
}
