//! Who keeps the promises: two threads, two processes of one machine or of two, and the simulation.

use std::{
    cell::RefCell,
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    pin::pin,
    process::{Child, Command, Stdio},
    rc::Rc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use transport::{
    Address, Arena, Config, Event, Fabric, Interface, Ledger, Rank, RdmaConfig, Secret, Simulation,
    Transport,
};

use crate::{
    ARENA, Promise,
    end::{End, Program},
    promise,
};

pub(crate) fn arena(bytes: u64) -> Arena {
    Arena::new(&Ledger::new(bytes), bytes).unwrap()
}

/// What carries the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Shm,
    Tcp,
    Tls,
    Rdma,
}

impl Way {
    /// Those that every machine has.
    pub(crate) const EVERYWHERE: [Self; 3] = [Self::Shm, Self::Tcp, Self::Tls];

    pub(crate) fn named(name: &str) -> Self {
        match name {
            "Shm" => Self::Shm,
            "Tcp" => Self::Tcp,
            "Tls" => Self::Tls,
            "Rdma" => Self::Rdma,
            _ => panic!("no way is called {name}"),
        }
    }

    fn transport(self) -> Transport {
        match self {
            Self::Shm => Transport::Shm,
            Self::Tcp | Self::Tls => Transport::Tcp,
            Self::Rdma => Transport::Rdma,
        }
    }
}

pub(crate) fn config(rank: Rank, way: Way, secret: &Secret) -> Config {
    Config {
        transport: way.transport(),
        tls: way == Way::Tls,
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

pub(crate) fn fabric(rank: Rank, bytes: u64, way: Way, secret: &Secret) -> Fabric {
    Fabric::new(config(rank, way, secret), arena(bytes)).unwrap()
}

/// Drives one end to the end of its program.
pub(crate) fn drive(fabric: Rc<RefCell<Fabric>>, program: Program) {
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

pub(crate) fn run_end(fabric: Fabric, program: fn(End) -> Program, die: fn()) {
    let peer = 1 - fabric.rank();
    let fabric = Rc::new(RefCell::new(fabric));
    let program = program(End::new(fabric.clone(), peer, die));
    drive(fabric, program);
}

const DEATH: &str = "this thread dies as its promise says";

pub(crate) fn threads(promise: Promise, way: Way) {
    let secret = Secret::random().unwrap();
    let (to_there, from_here) = std::sync::mpsc::channel::<Address>();
    let (to_here, from_there) = std::sync::mpsc::channel::<Address>();
    let there = {
        let secret = secret.clone();
        thread::spawn(move || {
            let mut fabric = fabric(1, promise.arena, way, &secret);
            to_here.send(fabric.address().unwrap()).unwrap();
            let book = [from_here.recv().unwrap(), fabric.address().unwrap()];
            fabric.join(&book).unwrap();
            run_end(fabric, promise.there, || std::panic::panic_any(DEATH));
        })
    };
    let mut fabric = fabric(0, promise.arena, way, &secret);
    to_there.send(fabric.address().unwrap()).unwrap();
    let book = [fabric.address().unwrap(), from_there.recv().unwrap()];
    fabric.join(&book).unwrap();
    run_end(fabric, promise.here, || std::panic::panic_any(DEATH));
    if let Err(panic) = there.join() {
        assert_eq!(panic.downcast_ref(), Some(&DEATH), "the other end failed");
    }
}

pub(crate) fn processes(name: &str, way: Way) {
    let promise = promise(name);
    let mut other = OtherEnd::start(name, way);
    let secret = Secret::random().unwrap();
    let mut fabric = fabric(0, promise.arena, way, &secret);
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
/// [`the_other_machine`](crate::the_other_machine) listens, of another.
struct OtherEnd {
    child: Option<Child>,
    input: Box<dyn Write>,
    output: Box<dyn BufRead>,
}

impl OtherEnd {
    fn start(name: &str, way: Way) -> Self {
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
            writeln!(stream, "{name} {way:?}").unwrap();
            return Self {
                child: None,
                output: Box::new(BufReader::new(stream.try_clone().unwrap())),
                input: Box::new(stream),
            };
        }
        let mut child = other_process(name, &format!("{way:?}"))
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

pub(crate) fn other_process(name: &str, way: &str) -> Command {
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
        .env("WAY", way);
    command
}

/// Whether a process kept its promise, or died of it.
pub(crate) fn ends_well(child: &mut Child) -> bool {
    let status = child.wait().unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    status.success() || signal == Some(Signal::SIGKILL as i32)
}

/// Both ends take turns on this thread, for many seeds; a death is a panic that is caught here.
pub(crate) fn simulated(promise: Promise) {
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

/// Polls two fabrics until `done` says so of an event of one of them.
pub(crate) fn poll_until(fabrics: &mut [Fabric; 2], mut done: impl FnMut(usize, &Event) -> bool) {
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
