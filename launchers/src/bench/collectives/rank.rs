//! What each rank of a measurement of collectives does.
//!
//! Operands are written before each operation and results read after it, every byte. Short operations are timed many
//! at a time, with that; of long ones only the operation itself is timed, after a barrier, and the slowest rank
//! counts. The root of an operation that has one is another rank each time, so that none can run ahead. `peer.c` does
//! the same.

use std::{
    hint::black_box,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use updraft::{
    Env,
    collectives::{
        Error, Group, Operator,
        op::{Max, Sum},
    },
    transport::{Handover, Stores},
};

use super::super::{
    rank::{Arguments, HOP_TRIPS, HOP_WARM, failed, trips_of, write},
    samples::Line,
};

/// From so many bytes on, operations are timed one by one.
const LONG: usize = 4096;
/// Bytes of a path that one rank tells another.
const PATH_BYTES: usize = 64;

/// Measures one operator, on the executors of a job.
pub(crate) fn measure(
    env: &mut Env,
    arguments: Arguments,
    operator: Operator,
) -> Result<(), updraft::Error> {
    // Seen from a thread that is not pinned.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let spin = env.ranks() as usize <= cores;
    env.bsp(move |world| {
        world.force(arguments.algorithm);
        let lines = Player::new(world, &arguments, operator, spin)?.play()?;
        if world.rank() == 0 {
            write(&arguments.results, &lines).map_err(failed("write the results"))?;
        }
        Ok(())
    })
    .map(drop)
}

/// Measures an operator, or messages between pairs, among ranks that share the threads of executors.
pub(crate) fn measure_cooperative(
    env: &mut Env,
    arguments: Arguments,
    ranks: u32,
) -> Result<(), updraft::Error> {
    env.bsp_cooperative(ranks, async move |world: &Group| {
        let mut lines = String::new();
        for &bytes in &arguments.sizes.0 {
            for batch in 0..arguments.warmup + arguments.repeats {
                let ns = match arguments.measure.operator() {
                    Some(operator) => {
                        let player = Player {
                            world,
                            arguments: &arguments,
                            operator,
                            hop: None,
                        };
                        player.await_batch(bytes, &mut player.operands(bytes)).await
                    }
                    None => bounce(world, bytes).await,
                };
                let ns = ns?;
                if batch >= arguments.warmup {
                    lines += &Line::Batch {
                        bytes,
                        hops: [0.0; 2],
                        floor_ns: 0.0,
                        ns,
                    }
                    .to_string();
                }
            }
        }
        // Of messages each pair has its own times.
        let is_operator = arguments.measure.operator().is_some();
        if world.rank() == 0 || !is_operator && world.rank().is_multiple_of(2) {
            write(&arguments.results, &lines).map_err(failed("write the results"))?;
        }
        Ok(())
    })
    .map(drop)
}

/// A batch of round trips between the two ranks of a pair, all pairs at the same time; nanoseconds one way.
async fn bounce(world: &Group, bytes: usize) -> Result<f64, Error> {
    let peer = world.rank() ^ 1;
    let trips = trips_of(bytes);
    let mut buffer = vec![0u8; bytes];
    let mut start = Instant::now();
    let warm = trips / 10 + 1;
    for trip in 0..warm + trips {
        if trip == warm {
            start = Instant::now();
        }
        let value = (trip | 1) as u8;
        if world.rank().is_multiple_of(2) {
            buffer.fill(value);
            world.send(peer, 0, &buffer).await?;
        }
        let message = world.receive::<u8>(Some(peer), Some(0)).await?;
        let all = message.iter().fold(0, |all, byte| all | byte);
        if all != value {
            return Err(Error::Argument {
                call: "receive",
                reason: format!("{all} was found where {value} should be"),
            });
        }
        if !world.rank().is_multiple_of(2) {
            drop(message);
            buffer.fill(all);
            world.send(peer, 0, &buffer).await?;
        }
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(2 * trips))
}

/// Operations in a batch.
fn rounds_of(bytes: usize, size: usize) -> u32 {
    let most = if size > 2 { 100 } else { 500 };
    ((1 << 20) / bytes.max(1) / size).clamp(3, most) as u32
}

struct Player<'a> {
    world: &'a Group,
    arguments: &'a Arguments,
    operator: Operator,
    /// Takes the distance between the cores, if there are two ranks with a core each.
    hop: Option<Handover>,
}

/// The operands of an operator for one size.
struct Operands {
    /// Elements of a vector, or of a block.
    len: usize,
    given: Vec<f64>,
    taken: Vec<f64>,
}

/// Carries the operator of a player out, and waits for it, or awaits it.
macro_rules! carry_out {
    ($player:expr, $operands:expr, $round:expr, $($end:tt)+) => {{
        let Operands { given, taken, .. } = $operands;
        let (world, root) = ($player.world, $player.root($round));
        match $player.operator {
            Operator::Broadcast => world.broadcast(root, taken).$($end)+,
            Operator::Reduce => world.reduce(root, taken, Sum).$($end)+,
            Operator::AllReduce => world.all_reduce(taken, Sum).$($end)+,
            Operator::ReduceScatter => world.reduce_scatter(given, taken, Sum).$($end)+,
            Operator::Scan => world.scan(taken, Sum).$($end)+,
            Operator::Gather => world.gather(root, given, taken).$($end)+,
            Operator::Scatter => world.scatter(root, given, taken).$($end)+,
            Operator::AllGather => world.all_gather(given, taken).$($end)+,
            Operator::AllToAll => world.all_to_all(given, taken).$($end)+,
            _ => world.barrier().$($end)+,
        }
    }};
}

impl<'a> Player<'a> {
    fn new(
        world: &'a Group,
        arguments: &'a Arguments,
        operator: Operator,
        spin: bool,
    ) -> Result<Self, Error> {
        let mut player = Self {
            world,
            arguments,
            operator,
            hop: None,
        };
        if world.size() == 2 && spin {
            player.meet()?;
        }
        Ok(player)
    }

    /// Shares memory with the other rank in which to take the distance.
    fn meet(&mut self) -> Result<(), Error> {
        let mut place = [0u8; PATH_BYTES];
        if self.world.rank() == 0 {
            let largest = self.arguments.sizes.0.last().copied();
            let largest = largest.filter(|_| self.arguments.floor);
            self.hop = Handover::lead(largest.unwrap_or(0)).ok();
            let path = self.hop.as_ref().map(Handover::path).unwrap_or_default();
            let path = path.as_os_str().as_encoded_bytes();
            if let Some(start) = place.get_mut(..path.len()) {
                start.copy_from_slice(path);
            }
        }
        self.world.broadcast(0, &mut place).wait()?;
        if self.world.rank() == 1 {
            let end = place
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(PATH_BYTES);
            let path = PathBuf::from(String::from_utf8_lossy(&place[..end]).into_owned());
            self.hop = Handover::follow(&path).ok();
        }
        let mut met = [u8::from(self.hop.is_some())];
        self.world
            .all_reduce(&mut met, updraft::collectives::op::Min)
            .wait()?;
        if met == [0] {
            self.hop = None;
        }
        Ok(())
    }

    fn play(&mut self) -> Result<String, Error> {
        let mut lines = String::new();
        for &bytes in &self.arguments.sizes.0 {
            let mut operands = self.operands(bytes);
            for batch in 0..self.arguments.warmup + self.arguments.repeats {
                let before = self.take_hop();
                let floor_ns = self.take_floor(bytes);
                let ns = self.batch(bytes, &mut operands)?;
                let hops = [before, self.take_hop()];
                if batch >= self.arguments.warmup {
                    lines += &Line::Batch {
                        bytes,
                        hops,
                        floor_ns,
                        ns,
                    }
                    .to_string();
                }
            }
            let chosen = self.world.choice(self.operator, operands.len * 8);
            lines += &Line::Choice {
                bytes,
                name: chosen.name().to_owned(),
                ns: self.world.model().cost(
                    self.operator,
                    chosen,
                    self.world.size(),
                    operands.len * 8,
                ),
            }
            .to_string();
        }
        Ok(lines)
    }

    /// The least that any operation of two ranks takes, in nanoseconds, if that is asked for: the bare hand-over of the
    /// bytes, one way, where operands are written and results read in that time, and otherwise the bare copy of what
    /// the other rank has just written.
    fn take_floor(&mut self, bytes: usize) -> f64 {
        let leads = self.world.rank() == 0;
        let Some(handover) = self.hop.as_mut().filter(|_| self.arguments.floor) else {
            return 0.0;
        };
        if bytes < LONG {
            let mut trips = |trips| handover.round_trips(trips, bytes, Stores::Plain);
            if trips(HOP_WARM).is_err() {
                return 0.0;
            }
            let start = Instant::now();
            return match trips(HOP_TRIPS) {
                Ok(()) => start.elapsed().as_nanos() as f64 / f64::from(2 * HOP_TRIPS),
                Err(_) => 0.0,
            };
        }
        let rounds = rounds_of(bytes, 2);
        let mut copy = vec![0; bytes];
        let mut inside = Duration::ZERO;
        for _ in 0..rounds {
            let asked = if leads {
                handover.ask()
            } else {
                handover.serve(bytes)
            };
            if asked.is_err() {
                return 0.0;
            }
            if leads {
                let start = Instant::now();
                handover.copy(&mut copy);
                black_box(&copy);
                inside += start.elapsed();
            }
        }
        inside.as_nanos() as f64 / f64::from(rounds)
    }

    /// The bare hand-over of a line, one way, in nanoseconds.
    fn take_hop(&mut self) -> f64 {
        let Some(handover) = &mut self.hop else {
            return 0.0;
        };
        let mut trips = |trips| handover.round_trips(trips, 0, Stores::Plain);
        if trips(HOP_WARM).is_err() {
            return 0.0;
        }
        let start = Instant::now();
        match trips(HOP_TRIPS) {
            Ok(()) => start.elapsed().as_nanos() as f64 / f64::from(2 * HOP_TRIPS),
            Err(_) => 0.0,
        }
    }

    fn operands(&self, bytes: usize) -> Operands {
        let size = self.world.size();
        let len = match self.operator {
            Operator::Barrier => 0,
            _ => bytes.div_ceil(size_of::<f64>()),
        };
        let (given, taken) = match self.operator {
            Operator::Gather | Operator::AllGather => (len, len * size),
            Operator::Scatter | Operator::ReduceScatter => (len * size, len),
            Operator::AllToAll => (len * size, len * size),
            _ => (0, len),
        };
        Operands {
            len,
            given: vec![0.0; given],
            taken: vec![0.0; taken],
        }
    }

    /// A batch of operations; nanoseconds for each.
    fn batch(&self, bytes: usize, operands: &mut Operands) -> Result<f64, Error> {
        let rounds = rounds_of(bytes, self.world.size());
        self.world.barrier().wait()?;
        let start = Instant::now();
        let mut inside = Duration::ZERO;
        for round in 0..rounds {
            self.write(operands, round);
            if bytes < LONG {
                self.carry_out(operands, round)?;
            } else {
                self.world.barrier().wait()?;
                let start = Instant::now();
                self.carry_out(operands, round)?;
                inside += start.elapsed();
            }
            self.read(operands, round)?;
        }
        let time = if bytes < LONG {
            start.elapsed()
        } else {
            inside
        };
        let mut slowest = [time.as_nanos() as f64 / f64::from(rounds)];
        self.world.all_reduce(&mut slowest, Max).wait()?;
        Ok(slowest[0])
    }

    fn root(&self, round: u32) -> usize {
        round as usize % self.world.size()
    }

    /// What a rank gives in a round.
    fn value(rank: usize, round: u32) -> f64 {
        f64::from(round % 7 + 1) + rank as f64
    }

    fn write(&self, operands: &mut Operands, round: u32) {
        let value = Self::value(self.world.rank(), round);
        let gives = match self.operator {
            Operator::Broadcast | Operator::Scatter => self.world.rank() == self.root(round),
            _ => true,
        };
        if !gives {
            return;
        }
        if operands.given.is_empty() {
            operands.taken.fill(value);
        } else {
            operands.given.fill(value);
        }
    }

    #[inline]
    fn carry_out(&self, operands: &mut Operands, round: u32) -> Result<(), Error> {
        carry_out!(self, operands, round, wait())
    }

    /// A batch of short operations of a rank that shares its thread with others; nanoseconds for each.
    async fn await_batch(&self, bytes: usize, operands: &mut Operands) -> Result<f64, Error> {
        let rounds = rounds_of(bytes, self.world.size());
        self.world.barrier().await?;
        let start = Instant::now();
        for round in 0..rounds {
            self.write(operands, round);
            carry_out!(self, &mut *operands, round, await)?;
            self.read(operands, round)?;
        }
        let mut slowest = [start.elapsed().as_nanos() as f64 / f64::from(rounds)];
        self.world.all_reduce(&mut slowest, Max).await?;
        Ok(slowest[0])
    }

    /// Reads every byte of the result, which has to be what the ranks gave.
    fn read(&self, operands: &Operands, round: u32) -> Result<(), Error> {
        let (me, size, root) = (self.world.rank(), self.world.size(), self.root(round));
        let sum_to = |end: usize| (0..end).map(|rank| Self::value(rank, round)).sum::<f64>();
        let len = operands.len as f64;
        let expected = match self.operator {
            Operator::Broadcast | Operator::Scatter => len * Self::value(root, round),
            Operator::Reduce | Operator::Gather if me != root => return Ok(()),
            Operator::Scan => len * sum_to(me + 1),
            _ => len * sum_to(size),
        };
        let found: f64 = black_box(&operands.taken).iter().sum();
        if found == expected {
            return Ok(());
        }
        Err(Error::Argument {
            call: self.operator.name(),
            reason: format!("{found} was found where {expected} should be"),
        })
    }
}
