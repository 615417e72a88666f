//! What each rank of a measurement does.
//!
//! Ranks play in pairs, each even one with the one after it. The even rank begins, takes the times and writes
//! them down; the odd one answers. Both walk through the same sizes and batches, so they never have to
//! agree on what comes next.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs::File,
    hint::{black_box, spin_loop},
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeValLike,
};
use updraft::{
    Config, Env,
    collectives::{Algorithm, Operator},
    transport::{Buffer, Event, Fabric, Handover, Rank, Stores},
};

use super::{
    collectives,
    samples::{Cores, Line, trips},
    sizes::Sizes,
};

/// Numbers of the messages that are no payload.
const HELLO: u64 = 1 << 60;
const GO: u64 = HELLO + 1;
const PLACE: u64 = HELLO + 2;
/// Time between two greetings of a rank that is not answered.
const GREETING_INTERVAL: Duration = Duration::from_millis(1);
/// Looks for a message after which a rank with a core of its own asks the system to wake it.
const LOOKS_MAX: u32 = 20_000;
/// How long a rank may wait for one message.
const STALL_TIME_MAX: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_millis(100);
/// Round trips by which the distance between two cores is taken.
pub(crate) const HOP_TRIPS: u32 = 100;
/// Round trips before them, which wait for the other rank.
pub(crate) const HOP_WARM: u32 = 10;
/// Bytes from which streaming stores may be the better ones.
pub(crate) const STREAMED_FROM: usize = 1024;
/// Bytes of a payload that a loan handed over untouched carries all the same: enough to tell it by.
const MARKED: usize = 64;
/// How long an executor is watched doing nothing: what it uses in that time is the figure.
const IDLE_TIME: Duration = Duration::from_secs(2);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measure {
    /// Half of a round trip.
    Latency,
    /// A stream of messages, answered once a window.
    Stream,
    /// How much processor time ranks use that have nothing to do.
    Idle,
    Barrier,
    Broadcast,
    Reduce,
    AllReduce,
    ReduceScatter,
    Scan,
    Gather,
    Scatter,
    AllGather,
    AllToAll,
}

impl Measure {
    /// Those of operators of a group.
    pub(crate) const OPERATORS: [Self; 10] = [
        Self::Barrier,
        Self::Broadcast,
        Self::Reduce,
        Self::AllReduce,
        Self::ReduceScatter,
        Self::Scan,
        Self::Gather,
        Self::Scatter,
        Self::AllGather,
        Self::AllToAll,
    ];

    /// The operator of a group that is measured, if it is one.
    pub(crate) fn operator(self) -> Option<Operator> {
        Some(match self {
            Self::Latency | Self::Stream | Self::Idle => return None,
            Self::Barrier => Operator::Barrier,
            Self::Broadcast => Operator::Broadcast,
            Self::Reduce => Operator::Reduce,
            Self::AllReduce => Operator::AllReduce,
            Self::ReduceScatter => Operator::ReduceScatter,
            Self::Scan => Operator::Scan,
            Self::Gather => Operator::Gather,
            Self::Scatter => Operator::Scatter,
            Self::AllGather => Operator::AllGather,
            Self::AllToAll => Operator::AllToAll,
        })
    }
}

/// What the hidden subcommand is told.
#[derive(Debug, Args)]
pub struct Arguments {
    #[arg(long, value_enum)]
    pub(crate) measure: Measure,
    #[arg(long)]
    pub(crate) sizes: Sizes,
    /// Batches that count, of each size.
    #[arg(long)]
    pub(crate) repeats: u32,
    /// Batches before them that do not.
    #[arg(long)]
    pub(crate) warmup: u32,
    /// Whether every byte is written and read, or only the first 64.
    #[arg(long)]
    pub(crate) touch: bool,
    /// Whether messages are also timed one by one.
    #[arg(long)]
    pub(crate) one_by_one: bool,
    /// Whether to measure the bare hand-over of the same size beside each batch.
    #[arg(long)]
    pub(crate) floor: bool,
    /// The algorithm of an operator, if not the one that the model chooses.
    #[arg(long)]
    pub(crate) algorithm: Option<Algorithm>,
    /// So many ranks on each executor, as futures that share its thread.
    #[arg(long)]
    pub(crate) cooperative: Option<u32>,
    /// Where the results go.
    #[arg(long)]
    pub(crate) results: PathBuf,
}

impl Arguments {
    /// The words that say the same again.
    pub(crate) fn words(&self) -> Vec<String> {
        let measure = self.measure.to_possible_value();
        let measure = measure.map_or_else(String::new, |value| value.get_name().to_owned());
        let mut words = vec![
            format!("--measure={measure}"),
            format!("--sizes={}", self.sizes),
            format!("--repeats={}", self.repeats),
            format!("--warmup={}", self.warmup),
            format!("--results={}", self.results.display()),
        ];
        let flags = [
            ("--touch", self.touch),
            ("--one-by-one", self.one_by_one),
            ("--floor", self.floor),
        ];
        words.extend(
            self.algorithm
                .map(|algorithm| format!("--algorithm={algorithm}")),
        );
        words.extend(
            self.cooperative
                .map(|ranks| format!("--cooperative={ranks}")),
        );
        words.extend(
            flags
                .into_iter()
                .filter(|flag| flag.1)
                .map(|flag| flag.0.to_owned()),
        );
        words
    }
}

/// Is a worker of the job that measures.
pub(crate) fn run(arguments: Arguments) -> Result<(), updraft::Error> {
    // The launcher's word on executors, transport and memory goes before this.
    updraft::run(Config::default(), |env| measure(env, arguments))
}

fn measure(env: &mut Env, arguments: Arguments) -> Result<(), updraft::Error> {
    if let Some(ranks) = arguments.cooperative {
        return collectives::measure_cooperative(env, arguments, ranks);
    }
    if let Some(operator) = arguments.measure.operator() {
        return collectives::measure(env, arguments, operator);
    }
    // Seen from a thread that is not pinned.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let spin = env.ranks() as usize <= cores;
    let (results, idle) = (
        arguments.results.clone(),
        arguments.measure == Measure::Idle,
    );
    env.on_executors(move |fabric| {
        let played = Player::new(fabric, spin, &arguments).and_then(|mut player| player.play());
        played.map_err(updraft::Error::Transport)
    })?;
    if idle {
        let share = idle_share(env).map_err(failed("measure an idle executor"))?;
        write(&results, &Line::Idle { share }.to_string()).map_err(failed("write the results"))?;
    }
    Ok(())
}

/// The share of a core that each executor of this worker uses while there is nothing to do.
fn idle_share(env: &Env) -> io::Result<f64> {
    let used = |usage: Usage| (usage.user_time() + usage.system_time()).num_microseconds() as f64;
    let (start, before) = (Instant::now(), getrusage(UsageWho::RUSAGE_SELF)?);
    thread::sleep(IDLE_TIME);
    let (time, after) = (start.elapsed(), getrusage(UsageWho::RUSAGE_SELF)?);
    let executors = f64::from(env.ranks() / env.workers());
    Ok((used(after) - used(before)) / time.as_micros() as f64 / executors)
}

/// Adds lines to a file in one piece.
pub(crate) fn write(path: &Path, lines: &str) -> io::Result<()> {
    let mut file = File::options().append(true).open(path)?;
    file.write_all(lines.as_bytes())
}

pub(crate) fn failed(action: &'static str) -> impl FnOnce(io::Error) -> updraft::Error {
    move |source| updraft::Error::Transport(problem(action, source))
}

fn problem(action: &'static str, source: io::Error) -> Error {
    updraft::transport::Error::Io { action, source }
}

type Error = updraft::transport::Error;

/// Round trips in a batch: a few hundred of short messages, a few of long ones.
pub(crate) fn trips_of(bytes: usize) -> u32 {
    ((512 << 10) / bytes).clamp(4, 500) as u32
}

/// Messages in a window, which fit in an arena together, and windows in a batch.
pub(crate) fn windows_of(bytes: usize) -> (u32, u32) {
    let window = ((32 << 20) / bytes).clamp(4, 64);
    let windows = ((2 << 20) / (bytes * window)).clamp(1, 16);
    (window as u32, windows as u32)
}

/// One rank of a pair.
struct Player<'a> {
    fabric: &'a mut Fabric,
    peer: Rank,
    /// Whether this rank has a core for itself.
    spin: bool,
    arguments: &'a Arguments,
    /// What came before everyone was there.
    early: VecDeque<Buffer>,
    /// Takes the distance between the cores, if there is a core for each.
    hop: Option<Handover>,
    /// What reading the clock takes, in nanoseconds.
    clock_ns: f64,
    started: Instant,
    out: String,
}

impl<'a> Player<'a> {
    fn new(fabric: &'a mut Fabric, spin: bool, arguments: &'a Arguments) -> Result<Self, Error> {
        let mut player = Self {
            peer: fabric.rank() ^ 1,
            fabric,
            spin,
            arguments,
            early: VecDeque::new(),
            hop: None,
            clock_ns: clock_ns(),
            started: Instant::now(),
            out: String::new(),
        };
        player.gather()?;
        player.meet()?;
        Ok(player)
    }

    fn begins(&self) -> bool {
        self.fabric.rank().is_multiple_of(2)
    }

    /// Waits until every rank is there, and listens.
    fn gather(&mut self) -> Result<(), Error> {
        let size = self.fabric.size();
        if self.fabric.rank() != 0 {
            return self.greet();
        }
        let mut here = vec![false; size as usize];
        here[0] = true;
        let deadline = Instant::now() + STALL_TIME_MAX;
        while here.contains(&false) {
            match self.fabric.receive()? {
                Some(Event::Message { from, buffer }) if buffer.tag() == HELLO => {
                    here[from as usize] = true;
                }
                Some(event) => self.keep(event)?,
                None => self.pause(GREETING_INTERVAL, deadline)?,
            }
        }
        for peer in 1..size {
            while !self.fabric.send_copy(peer, GO, &[])? {
                self.pause(GREETING_INTERVAL, deadline)?;
            }
        }
        Ok(())
    }

    /// Says hello to rank 0 until it says that all are there.
    fn greet(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + STALL_TIME_MAX;
        let mut greeted: Option<Instant> = None;
        loop {
            if greeted.is_none_or(|then| then.elapsed() > GREETING_INTERVAL) {
                // If there is no room, what was sent before is on its way.
                self.fabric.send_copy(0, HELLO, &[])?;
                greeted = Some(Instant::now());
            }
            match self.fabric.receive()? {
                Some(Event::Message { buffer, .. }) if buffer.tag() == GO => return Ok(()),
                Some(event) => self.keep(event)?,
                None => self.pause(GREETING_INTERVAL, deadline)?,
            }
        }
    }

    fn keep(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Message { buffer, .. } if buffer.tag() != HELLO => self.early.push_back(buffer),
            Event::Ended { error, .. } => return Err(*error),
            Event::Message { .. } | Event::Refused { .. } | Event::Completed { .. } => {}
        }
        Ok(())
    }

    /// Waits for news, and fails after the deadline.
    fn pause(&mut self, time: Duration, deadline: Instant) -> Result<(), Error> {
        self.fabric.tick(self.started.elapsed());
        self.fabric.wait(Some(time))?;
        if Instant::now() < deadline {
            return Ok(());
        }
        let action = "hear from a rank that measures with this one";
        Err(problem(action, io::ErrorKind::TimedOut.into()))
    }

    /// Shares memory with the other rank in which to take the distance.
    fn meet(&mut self) -> Result<(), Error> {
        if !self.begins() {
            let place = self.receive()?;
            let path = PathBuf::from(String::from_utf8_lossy(&place).into_owned());
            // A rank elsewhere has no such memory: then there is no distance to take.
            self.hop = Some(path)
                .filter(|_| !place.is_empty())
                .and_then(|path| Handover::follow(&path).ok());
            return self.send(PLACE, &[u8::from(self.hop.is_some())]);
        }
        let largest = self.arguments.sizes.0.last().copied().unwrap_or(0);
        let lead = Handover::lead(if self.arguments.floor { largest } else { 0 });
        self.hop = lead.ok().filter(|_| self.spin);
        let path = self.hop.as_ref().map(Handover::path).unwrap_or_default();
        self.send(PLACE, path.as_os_str().as_encoded_bytes())?;
        if self.receive()?[..] != [1] {
            self.hop = None;
        }
        Ok(())
    }

    fn play(&mut self) -> Result<(), Error> {
        let sizes = &self.arguments.sizes.0;
        for &bytes in sizes {
            self.play_size(bytes)?;
        }
        if self.begins() {
            let route = self.fabric.path(self.peer);
            let name = route.map_or("unknown".to_owned(), |route| format!("{route:?}"));
            let line = Line::Path {
                name: name.to_lowercase(),
            };
            let _ = write!(self.out, "{line}"); // A string takes all.
            write(&self.arguments.results, &self.out)
                .map_err(|source| problem("write the results", source))?;
        }
        Ok(())
    }

    fn play_size(&mut self, bytes: usize) -> Result<(), Error> {
        let mut by_cores: Vec<(Cores, Histogram<u64>)> = Vec::new();
        let batches = self.arguments.warmup + self.arguments.repeats;
        for batch in 0..batches {
            let before = self.take_hop()?;
            let floor_ns = self.take_floor(bytes)?;
            let ns = match self.arguments.measure {
                Measure::Stream => self.stream(bytes)?,
                _ => self.bounce(bytes, None)?,
            };
            let mut one_by_one = trips();
            if self.arguments.one_by_one {
                self.bounce(bytes, Some(&mut one_by_one))?;
            }
            let hops = [before, self.take_hop()?];
            if !self.begins() || batch < self.arguments.warmup {
                continue;
            }
            let line = Line::Batch {
                bytes,
                hops,
                floor_ns,
                ns,
            };
            let _ = write!(self.out, "{line}");
            let Some(cores) = Cores::of(hops) else {
                continue;
            };
            match by_cores.iter_mut().find(|entry| entry.0 == cores) {
                // They have the same bounds.
                Some((_, all)) => drop(all.add(&one_by_one)),
                None => by_cores.push((cores, one_by_one)),
            }
        }
        for (cores, trips) in by_cores {
            for step in trips.iter_recorded() {
                let (ns, count) = (step.value_iterated_to(), step.count_at_value());
                let _ = write!(
                    self.out,
                    "{}",
                    Line::Trips {
                        bytes,
                        cores,
                        ns,
                        count
                    }
                );
            }
        }
        Ok(())
    }

    /// Has what was sent leave: nobody drives the links while the distance is taken.
    fn settle(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + STALL_TIME_MAX;
        while !self.fabric.flush()? {
            self.pause(GREETING_INTERVAL, deadline)?;
        }
        Ok(())
    }

    /// The bare hand-over of a line, one way, in nanoseconds.
    fn take_hop(&mut self) -> Result<f64, Error> {
        self.settle()?;
        let Some(handover) = &mut self.hop else {
            return Ok(0.0);
        };
        handover.round_trips(HOP_WARM, 0, Stores::Plain)?;
        timed(HOP_TRIPS, || {
            handover.round_trips(HOP_TRIPS, 0, Stores::Plain)
        })
    }

    /// The bare hand-over of so many bytes, by the kind of stores that is the quicker one now.
    fn take_floor(&mut self, bytes: usize) -> Result<f64, Error> {
        let Some(handover) = self.hop.as_mut().filter(|_| self.arguments.floor) else {
            return Ok(0.0);
        };
        let trips = trips_of(bytes);
        let mut best = f64::INFINITY;
        for stores in [Stores::Plain, Stores::Streaming] {
            if stores == Stores::Plain || bytes >= STREAMED_FROM {
                let warm = trips / 10 + 1;
                handover.round_trips(warm, bytes, stores)?;
                let ns = timed(trips, || handover.round_trips(trips, bytes, stores))?;
                best = best.min(ns);
            }
        }
        Ok(best)
    }

    /// A batch of round trips; nanoseconds one way. Those of a histogram are timed one by one.
    fn bounce(
        &mut self,
        bytes: usize,
        one_by_one: Option<&mut Histogram<u64>>,
    ) -> Result<f64, Error> {
        let trips = trips_of(bytes);
        let warm = trips / 10 + 1;
        if !self.begins() {
            for _ in 0..warm + trips {
                let value = self.take(bytes)?;
                self.give(bytes, value)?;
            }
            return Ok(0.0);
        }
        for trip in 0..warm {
            self.round_trip(bytes, trip)?;
        }
        let start = Instant::now();
        match one_by_one {
            None => {
                for trip in 0..trips {
                    self.round_trip(bytes, trip)?;
                }
            }
            Some(histogram) => {
                let mut before = start;
                for trip in 0..trips {
                    self.round_trip(bytes, trip)?;
                    let now = Instant::now();
                    let ns = (now - before).as_nanos() as f64 - self.clock_ns;
                    histogram.saturating_record((ns / 2.0).max(1.0) as u64);
                    before = now;
                }
            }
        }
        Ok(start.elapsed().as_nanos() as f64 / f64::from(2 * trips))
    }

    fn round_trip(&mut self, bytes: usize, trip: u32) -> Result<(), Error> {
        let value = trip as u8 | 1;
        self.give(bytes, value)?;
        let answer = self.take(bytes)?;
        self.check(answer, value)
    }

    fn check(&self, read: u8, written: u8) -> Result<(), Error> {
        if read == written {
            return Ok(());
        }
        let reason = format!("{read} was read where {written} was written");
        Err(problem("check a message", io::Error::other(reason)))
    }

    /// Some windows of messages, each answered by a short one; nanoseconds a message.
    fn stream(&mut self, bytes: usize) -> Result<f64, Error> {
        let (window, windows) = windows_of(bytes);
        let start = Instant::now();
        for number in 0..windows {
            let value = number as u8 | 1;
            if self.begins() {
                for _ in 0..window {
                    self.give(bytes, value)?;
                }
                let answer = self.receive()?;
                self.check(answer.first().copied().unwrap_or(0), value)?;
            } else {
                let mut all = 0;
                for _ in 0..window {
                    all |= self.take(bytes)?;
                }
                self.send(0, &[all; 4])?;
            }
        }
        Ok(start.elapsed().as_nanos() as f64 / f64::from(window * windows))
    }

    /// Sends one message, every byte of it written.
    #[inline]
    fn give(&mut self, bytes: usize, value: u8) -> Result<(), Error> {
        // What fits beside a descriptor is built on the stack, by a program that cares.
        let mut short = [0u8; Buffer::INLINE_BYTES];
        if let Some(short) = short.get_mut(..bytes) {
            short.fill(value);
            return self.send(0, short);
        }
        let mut loan = loop {
            match self.fabric.loan(bytes)? {
                Some(loan) => break loan,
                None => self.make_room()?,
            }
        };
        let touched = if self.arguments.touch {
            bytes
        } else {
            bytes.min(MARKED)
        };
        loan[..touched].fill(value);
        self.fabric.send(self.peer, loan)
    }

    /// Waits for one message, and reads every byte of it.
    #[inline]
    fn take(&mut self, bytes: usize) -> Result<u8, Error> {
        let message = self.receive()?;
        let touched = if self.arguments.touch {
            bytes
        } else {
            bytes.min(MARKED)
        };
        let Some(touched) = message.get(..touched) else {
            let reason = format!("it has {} bytes instead of {bytes}", message.len());
            return Err(problem("read a message", io::Error::other(reason)));
        };
        Ok(black_box(touched.iter().fold(0, |all, byte| all | byte)))
    }

    fn send(&mut self, tag: u64, bytes: &[u8]) -> Result<(), Error> {
        while !self.fabric.send_copy(self.peer, tag, bytes)? {
            self.make_room()?;
        }
        Ok(())
    }

    /// All memory is on its way: looks whether some has come back.
    #[cold]
    fn make_room(&mut self) -> Result<(), Error> {
        match self.fabric.receive()? {
            Some(event) => self.keep(event),
            None if self.spin => {
                spin_loop();
                Ok(())
            }
            None => self.fabric.wait(Some(WAIT)),
        }
    }

    #[inline]
    fn receive(&mut self) -> Result<Buffer, Error> {
        if let Some(buffer) = self.early.pop_front() {
            return Ok(buffer);
        }
        let mut looks = 0;
        let mut deadline = None;
        loop {
            match self.fabric.receive()? {
                Some(Event::Message { buffer, .. }) if buffer.tag() != HELLO => return Ok(buffer),
                Some(Event::Ended { peer, error }) if peer == self.peer => return Err(*error),
                // A late greeting, or a pair that has finished.
                Some(_) => {}
                None if self.spin && looks < LOOKS_MAX => {
                    looks += 1;
                    spin_loop();
                }
                // As an executor waits that has nothing else to do.
                None => {
                    let deadline = deadline.get_or_insert_with(|| Instant::now() + STALL_TIME_MAX);
                    self.pause(WAIT, *deadline)?;
                }
            }
        }
    }
}

/// Nanoseconds one way, of `trips` round trips.
fn timed(trips: u32, play: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let start = Instant::now();
    play()?;
    Ok(start.elapsed().as_nanos() as f64 / f64::from(2 * trips))
}

/// What reading the clock takes: the least of many times, as nothing makes it quicker.
pub(crate) fn clock_ns() -> f64 {
    let read = || {
        let start = Instant::now();
        for _ in 0..100 {
            black_box(Instant::now());
        }
        start.elapsed().as_nanos() as f64 / 101.0
    };
    (0..10).map(|_| read()).fold(f64::INFINITY, f64::min)
}
