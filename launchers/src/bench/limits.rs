//! `updraft bench limits`: what the machine itself allows, without us.

use std::{
    hint::{black_box, spin_loop},
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};
use updraft::transport::{Handover, Stores};

use super::{
    machine::{self, Machine},
    plot::{Curve, Plot},
    rank::{HOP_TRIPS, STREAMED_FROM, clock_ns, trips_of},
    report::{Outputs, Unit, align, digits, machine_json, spread_json},
    samples::{Batch, Cores, Samples, Spread},
    sizes::{Sizes, label},
};
use crate::{Error, output::say};

/// Round trips of a batch of wake-ups, each a change of threads.
const WAKE_TRIPS: u32 = 50;
/// How long a bare socket may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Of `limits`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Bytes handed over and copied: sizes, and ranges that double, such as 8,64,1Ki..4Mi
    #[arg(long, default_value = "8,64,1Ki,8Ki,64Ki,1Mi,4Mi")]
    sizes: Sizes,

    /// Batches of each kind
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeats: u32,

    #[command(flatten)]
    outputs: Outputs,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Error> {
    arguments.outputs.check()?;
    // Before this thread is pinned, which hides the other cores.
    let machine = Machine::here();
    let limits = measure(&arguments.sizes.0, arguments.repeats)?;
    say(&format!("the limits of {}\n", machine.line()));
    say(&limits.text());
    arguments.outputs.write(
        || limits.csv(),
        || limits.json(&machine),
        || limits.plot(&machine),
    )?;
    Ok(0)
}

/// One of the machine's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A line of cache, from one core to another.
    Line,
    /// Bytes written on one core and read on another.
    Stores(Stores),
    /// A copy by one core.
    Copy,
    /// A thread woken on another core.
    WakeOther,
    /// A thread woken on the same core.
    WakeSame,
    /// A pair of TCP sockets on the loopback interface, both polled.
    Tcp,
    /// A pair of Unix sockets, both polled.
    Unix,
    /// A stream through such TCP sockets.
    TcpStream,
    /// A stream through such Unix sockets.
    UnixStream,
    /// A look at the clock.
    Clock,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Line,
        Self::Stores(Stores::Plain),
        Self::Stores(Stores::Streaming),
        Self::Copy,
        Self::WakeOther,
        Self::WakeSame,
        Self::Tcp,
        Self::Unix,
        Self::TcpStream,
        Self::UnixStream,
        Self::Clock,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Line => "cache line",
            Self::Stores(Stores::Plain) => "written here and read there",
            Self::Stores(Stores::Streaming) => "streamed here and read there",
            Self::Copy => "memcpy by one core",
            Self::WakeOther => "futex wake of another core",
            Self::WakeSame => "futex wake of the same core",
            Self::Tcp => "TCP polled at both ends",
            Self::Unix => "Unix socket polled at both ends",
            Self::TcpStream => "TCP stream",
            Self::UnixStream => "Unix stream",
            Self::Clock => "clock",
        }
    }

    /// Whether the figure is a speed in MB/s, and not a time in µs one way.
    fn is_speed(self) -> bool {
        matches!(self, Self::Copy | Self::TcpStream | Self::UnixStream)
    }

    fn unit(self) -> Unit {
        if self.is_speed() {
            Unit::Bandwidth
        } else {
            Unit::OneWay
        }
    }

    /// The sizes at which it is measured, of those asked for.
    fn sizes(self, asked: &[usize]) -> Vec<usize> {
        match self {
            Self::Line | Self::WakeOther | Self::WakeSame | Self::Clock => vec![0],
            Self::Stores(Stores::Streaming) => {
                let streamed = asked.iter().copied();
                streamed.filter(|&bytes| bytes >= STREAMED_FROM).collect()
            }
            Self::TcpStream | Self::UnixStream => vec![1 << 20],
            _ => asked.to_vec(),
        }
    }
}

/// The machine's limits.
#[derive(Debug, Default)]
struct Limits {
    rows: Vec<(Kind, Samples)>,
}

/// A row of the report: a limit, a size, a distance, and how its batches were spread.
struct Row<'a> {
    kind: Kind,
    bytes: usize,
    cores: Cores,
    batches: &'a [Batch],
    spread: Spread,
}

/// Measures all limits, in turns: a disturbance of the machine is shared by all.
fn measure(sizes: &[usize], repeats: u32) -> Result<Limits, Error> {
    let cores = machine::allowed_cores();
    let mut limits = Limits::default();
    for kind in Kind::ALL {
        limits.rows.push((kind, Samples::default()));
    }
    let largest = sizes.last().copied().unwrap_or(1).max(1 << 20);
    let mut pair = Pair::new(&cores, largest)?;
    for batch in 0..=repeats {
        for (kind, samples) in &mut limits.rows {
            for bytes in kind.sizes(sizes) {
                let before = pair.hop()?;
                let ns = pair.time(*kind, bytes)?;
                let hops = [before, pair.hop()?];
                // The first of each kind only warms up.
                if let Some(cores) = Cores::of(hops)
                    && batch > 0
                {
                    let hop_ns = f64::midpoint(hops[0], hops[1]);
                    let floor_ns = 0.0;
                    samples.add(
                        bytes,
                        cores,
                        Batch {
                            hop_ns,
                            floor_ns,
                            ns,
                        },
                    );
                }
            }
        }
    }
    Ok(limits)
}

impl Limits {
    fn all(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().flat_map(|(kind, samples)| {
            samples.series().filter_map(|series| {
                Some(Row {
                    kind: *kind,
                    bytes: series.bytes,
                    cores: series.cores,
                    batches: &series.batches,
                    spread: series.spread()?,
                })
            })
        })
    }

    fn text(&self) -> String {
        let head = [
            "cores", "bytes", "batches", "median", "min", "max", "unit", "what",
        ];
        let rows = self.all().map(|row| {
            let [median, min, max] = row.figures();
            vec![
                row.cores.name().to_owned(),
                row.size(),
                row.batches.len().to_string(),
                digits(median),
                digits(min),
                digits(max),
                row.kind.unit().name().to_owned(),
                row.kind.name().to_owned(),
            ]
        });
        align(&head, rows)
    }

    fn csv(&self) -> String {
        let mut text = "limit,unit,bytes,cores,batches,median,min,max\n".to_owned();
        for row in self.all() {
            let [median, min, max] = row.figures();
            text += &format!(
                "{},{},{},{},{},{median:.6},{min:.6},{max:.6}\n",
                row.kind.name(),
                row.kind.unit().name(),
                row.bytes,
                row.cores.name(),
                row.batches.len(),
            );
        }
        text
    }

    fn json(&self, machine: &Machine) -> Value {
        let rows = self.all().map(|row| {
            let [median, min, max] = row.figures();
            json!({
                "limit": row.kind.name(),
                "unit": row.kind.unit().name(),
                "bytes": row.bytes,
                "cores": row.cores.name(),
                "batches": row.batches.len(),
                "figure": spread_json(Spread { median, min, max }),
            })
        });
        json!({
            "bench": "limits",
            "machine": machine_json(machine),
            "rows": rows.collect::<Vec<_>>(),
        })
    }

    /// The times that depend on the size.
    fn plot(&self, machine: &Machine) -> Plot {
        let mut curves = Vec::new();
        for (colour, kind) in Kind::ALL.into_iter().enumerate() {
            for cores in [Cores::Near, Cores::Far, Cores::Unknown] {
                let rows = self
                    .all()
                    .filter(|row| (row.kind, row.cores) == (kind, cores));
                let rows = rows.filter(|row| row.bytes > 0 && !row.kind.is_speed());
                let points = rows.map(|row| (row.bytes as f64, row.figures()[0]));
                let points: Vec<_> = points.collect();
                if !points.is_empty() {
                    curves.push(Curve {
                        name: format!("{} ({})", kind.name(), cores.name()),
                        points,
                        dashed: cores == Cores::Far,
                        colour,
                    });
                }
            }
        }
        Plot {
            title: "What the machine itself takes, one way".to_owned(),
            subtitle: machine.line(),
            across: "size",
            label,
            up: Unit::OneWay.name(),
            curves,
        }
    }
}

impl Row<'_> {
    /// Median, least and greatest.
    fn figures(&self) -> [f64; 3] {
        let Spread { median, min, max } = self.spread;
        let figure = |ns| self.kind.unit().figure(self.bytes, ns);
        if self.kind.is_speed() {
            [median, max, min].map(figure)
        } else {
            [median, min, max].map(figure)
        }
    }

    fn size(&self) -> String {
        match self.bytes {
            0 => "-".to_owned(),
            bytes => label(bytes),
        }
    }
}

/// Two threads on two cores that do the same things in turns, the second at the first's word.
pub(crate) struct Pair {
    hop: Handover,
    tcp: TcpStream,
    unix: UnixStream,
    park: Arc<Park>,
    orders: std::sync::mpsc::Sender<Order>,
    echo: Option<thread::JoinHandle<Result<(), Error>>>,
    from: Vec<u8>,
    to: Vec<u8>,
}

/// What the second thread is told to take part in.
#[derive(Debug, Clone, Copy)]
struct Order {
    kind: Kind,
    bytes: usize,
}

/// Two threads that wake each other.
#[derive(Debug, Default)]
struct Park {
    turn: AtomicU32,
    threads: std::sync::Mutex<[Option<thread::Thread>; 2]>,
}

/// The ends of the second thread.
struct Echo {
    hop: Handover,
    tcp: TcpStream,
    unix: UnixStream,
    park: Arc<Park>,
    orders: std::sync::mpsc::Receiver<Order>,
    cores: [Option<usize>; 2],
    buffer: Vec<u8>,
}

impl Pair {
    /// Pins this thread, and starts the other.
    pub(crate) fn new(cores: &[usize], bytes_max: usize) -> Result<Self, Error> {
        let socket = |error| Error::io("connect two sockets")(error);
        let hop = lead(bytes_max)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(socket)?;
        let address = listener.local_addr().map_err(socket)?;
        let tcp = TcpStream::connect(address).map_err(socket)?;
        let (answering_tcp, _) = listener.accept().map_err(socket)?;
        let (unix, answering_unix) = UnixStream::pair().map_err(socket)?;
        for tcp in [&tcp, &answering_tcp] {
            tcp.set_nodelay(true).map_err(socket)?;
            tcp.set_nonblocking(true).map_err(socket)?;
        }
        for unix in [&unix, &answering_unix] {
            unix.set_nonblocking(true).map_err(socket)?;
        }
        let park = Arc::new(Park::default());
        let (orders, obeyed) = std::sync::mpsc::channel();
        let (path, their_park) = (hop.path(), park.clone());
        let core = cores.first().copied();
        let seats = [core, cores.get(1).copied().or(core)];
        let echo = thread::Builder::new()
            .name("echo".to_owned())
            .spawn(move || {
                if let Some(core) = seats[1] {
                    machine::pin(core);
                }
                let follow = Handover::follow(&path);
                let echo = Echo {
                    hop: follow.map_err(|error| failed(error.to_string()))?,
                    tcp: answering_tcp,
                    unix: answering_unix,
                    park: their_park,
                    orders: obeyed,
                    cores: seats,
                    buffer: vec![0; bytes_max],
                };
                echo.serve()
            })
            .map_err(Error::io("start a thread"))?;
        if let Some(core) = core {
            machine::pin(core);
        }
        Ok(Self {
            hop,
            tcp,
            unix,
            park,
            orders,
            echo: Some(echo),
            from: vec![1; bytes_max],
            to: vec![0; bytes_max],
        })
    }

    /// Has the other thread take part.
    fn order(&self, kind: Kind, bytes: usize) {
        // Should it have ended, it does not answer, which is noticed.
        let _ = self.orders.send(Order { kind, bytes });
    }

    /// The bare hand-over of a line, one way, in nanoseconds.
    pub(crate) fn hop(&mut self) -> Result<f64, Error> {
        self.time(Kind::Line, 0)
    }

    /// One batch; nanoseconds one way, or for one copy or message of a stream.
    pub(crate) fn time(&mut self, kind: Kind, bytes: usize) -> Result<f64, Error> {
        let trips = trips(kind, bytes);
        match kind {
            Kind::Clock => return Ok(clock_ns()),
            Kind::Copy => return Ok(self.copy(bytes)),
            _ => self.order(kind, bytes),
        }
        // The first trips wait for the other thread, and warm up.
        self.play(kind, bytes, trips / 10 + 1)?;
        let start = Instant::now();
        self.play(kind, bytes, trips)?;
        let ns = start.elapsed().as_nanos() as f64;
        Ok(match kind {
            Kind::TcpStream | Kind::UnixStream => ns / f64::from(trips),
            _ => ns / f64::from(2 * trips),
        })
    }

    fn play(&mut self, kind: Kind, bytes: usize, trips: u32) -> Result<(), Error> {
        let Self {
            hop,
            tcp,
            unix,
            park,
            from,
            to,
            ..
        } = self;
        match kind {
            Kind::Line => hand_over(hop, trips, 0, Stores::Plain),
            Kind::Stores(stores) => hand_over(hop, trips, bytes, stores),
            Kind::WakeOther | Kind::WakeSame => {
                park.sit(0);
                (0..trips).for_each(|_| park.pass_and_wait(0));
                Ok(())
            }
            Kind::Tcp => ping(tcp, &mut from[..bytes], trips),
            Kind::Unix => ping(unix, &mut from[..bytes], trips),
            Kind::TcpStream => pour(tcp, &mut from[..bytes], &mut to[..1], trips),
            Kind::UnixStream => pour(unix, &mut from[..bytes], &mut to[..1], trips),
            Kind::Copy | Kind::Clock => Ok(()),
        }
    }

    fn copy(&mut self, bytes: usize) -> f64 {
        let copies = ((16 << 20) / bytes).clamp(4, 20_000);
        let (from, to) = (&self.from[..bytes], &mut self.to[..bytes]);
        let start = Instant::now();
        for _ in 0..copies {
            to.copy_from_slice(black_box(from));
            black_box(&mut *to);
        }
        start.elapsed().as_nanos() as f64 / copies as f64
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let (orders, _) = std::sync::mpsc::channel();
        self.orders = orders; // The other thread's channel ends, and with it the thread.
        if let Some(echo) = self.echo.take() {
            // If it failed, so did we.
            let _ = echo.join();
        }
    }
}

impl Echo {
    fn serve(mut self) -> Result<(), Error> {
        while let Ok(Order { kind, bytes }) = self.next() {
            let trips = trips(kind, bytes);
            for trips in [trips / 10 + 1, trips] {
                self.answer(kind, bytes, trips)?;
            }
        }
        Ok(())
    }

    /// The next order: awaited without sleep, which would cost the first trips a wake-up.
    fn next(&self) -> Result<Order, std::sync::mpsc::RecvError> {
        for _ in 0..10_000 {
            if let Ok(order) = self.orders.try_recv() {
                return Ok(order);
            }
            spin_loop();
        }
        self.orders.recv()
    }

    fn answer(&mut self, kind: Kind, bytes: usize, trips: u32) -> Result<(), Error> {
        match kind {
            Kind::Line => hand_over(&mut self.hop, trips, 0, Stores::Plain),
            Kind::Stores(stores) => hand_over(&mut self.hop, trips, bytes, stores),
            Kind::WakeOther | Kind::WakeSame => {
                let [first, own] = self.cores;
                let seat = if kind == Kind::WakeSame { first } else { own };
                seat.into_iter().for_each(machine::pin);
                self.park.sit(1);
                (0..trips).for_each(|_| self.park.wait_and_pass(1));
                own.into_iter().for_each(machine::pin);
                Ok(())
            }
            Kind::Tcp => pong(&mut self.tcp, &mut self.buffer[..bytes], trips),
            Kind::Unix => pong(&mut self.unix, &mut self.buffer[..bytes], trips),
            Kind::TcpStream => drain(&mut self.tcp, &mut self.buffer[..bytes], trips),
            Kind::UnixStream => drain(&mut self.unix, &mut self.buffer[..bytes], trips),
            Kind::Copy | Kind::Clock => Ok(()),
        }
    }
}

fn trips(kind: Kind, bytes: usize) -> u32 {
    match kind {
        Kind::Line => HOP_TRIPS,
        Kind::WakeOther | Kind::WakeSame => WAKE_TRIPS,
        Kind::Tcp | Kind::Unix => trips_of(bytes).min(100),
        Kind::TcpStream | Kind::UnixStream => 16,
        Kind::Stores(_) => trips_of(bytes),
        Kind::Copy | Kind::Clock => 0,
    }
}

fn failed(what: String) -> Error {
    Error::io("measure the machine")(io::Error::other(what))
}

fn lead(bytes_max: usize) -> Result<Handover, Error> {
    Handover::lead(bytes_max).map_err(|error| failed(error.to_string()))
}

fn hand_over(side: &mut Handover, trips: u32, bytes: usize, stores: Stores) -> Result<(), Error> {
    let played = side.round_trips(trips, bytes, stores);
    played.map_err(|error| failed(error.to_string()))
}

impl Park {
    fn sit(&self, side: usize) {
        let mut threads = self
            .threads
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        threads[side] = Some(thread::current());
    }

    fn pass(&self, side: usize) {
        self.turn.store(1 - side as u32, Ordering::Release);
        let threads = self
            .threads
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // One who has not sat down yet has not slept either.
        if let Some(other) = &threads[1 - side] {
            other.unpark();
        }
    }

    fn wait(&self, side: usize) {
        while self.turn.load(Ordering::Acquire) != side as u32 {
            thread::park_timeout(SILENCE_MAX);
        }
    }

    fn pass_and_wait(&self, side: usize) {
        self.pass(side);
        self.wait(side);
    }

    fn wait_and_pass(&self, side: usize) {
        self.wait(side);
        self.pass(side);
    }
}

/// Sends and takes back a buffer, `trips` times.
fn ping(socket: &mut (impl Read + Write), buffer: &mut [u8], trips: u32) -> Result<(), Error> {
    for trip in 0..trips {
        buffer.fill(trip as u8);
        write_all(socket, buffer)?;
        read_exact(socket, buffer)?;
    }
    Ok(())
}

fn pong(socket: &mut (impl Read + Write), buffer: &mut [u8], trips: u32) -> Result<(), Error> {
    for _ in 0..trips {
        read_exact(socket, buffer)?;
        let all = black_box(buffer.iter().fold(0, |all, byte| all | byte));
        buffer.fill(all);
        write_all(socket, buffer)?;
    }
    Ok(())
}

/// Sends `trips` buffers, and takes one byte for them all.
fn pour(
    socket: &mut (impl Read + Write),
    buffer: &mut [u8],
    answer: &mut [u8],
    trips: u32,
) -> Result<(), Error> {
    for trip in 0..trips {
        buffer.fill(trip as u8);
        write_all(socket, buffer)?;
    }
    read_exact(socket, answer)
}

fn drain(socket: &mut (impl Read + Write), buffer: &mut [u8], trips: u32) -> Result<(), Error> {
    for _ in 0..trips {
        read_exact(socket, buffer)?;
        black_box(buffer.iter().fold(0, |all, byte| all | byte));
    }
    write_all(socket, &[1])
}

/// Writes without sleeping.
fn write_all(socket: &mut impl Write, mut bytes: &[u8]) -> Result<(), Error> {
    poll(|| {
        let count = socket.write(bytes)?;
        bytes = &bytes[count..];
        Ok(bytes.is_empty())
    })
}

/// Reads without sleeping.
fn read_exact(socket: &mut impl Read, bytes: &mut [u8]) -> Result<(), Error> {
    let mut done = 0;
    poll(|| match socket.read(&mut bytes[done..])? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        count => {
            done += count;
            Ok(done == bytes.len())
        }
    })
}

/// Tries until it is done, but not for ever.
fn poll(mut attempt: impl FnMut() -> io::Result<bool>) -> Result<(), Error> {
    let failed = |source| Error::io("use a bare socket")(source);
    let mut tries = 0u32;
    let mut deadline = None;
    loop {
        match attempt() {
            Ok(true) => return Ok(()),
            Ok(false) => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
        tries = tries.wrapping_add(1);
        if tries.is_multiple_of(4096) {
            let now = Instant::now();
            if *deadline.get_or_insert(now + SILENCE_MAX) < now {
                return Err(failed(ErrorKind::TimedOut.into()));
            }
        }
        spin_loop();
    }
}
