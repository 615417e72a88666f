//! A network in memory whose delays and deaths follow from a seed.
//!
//! All ranks of a simulated job run on one thread and take turns; messages between them wait for a
//! time drawn from the seed, in the order of each channel, as on a real network. So whatever goes
//! wrong for a seed goes wrong again, as in FoundationDB's and TigerBeetle's simulators.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, mem,
    rc::Rc,
};

use crate::{Arena, Buffer, Endpoint, Error, Fabric, Loan, Loss, Rank, link::End};

/// The longest a message travels, in ticks of the simulated clock.
const DELAY_MAX: u64 = 100;

/// A simulated network of a fixed number of ranks. Cloning gives another handle on it.
///
/// ```
/// use transport::{Event, Ledger, Simulation, Arena};
///
/// let network = Simulation::new(7, 2);
/// let [mut here, mut there] = [0, 1].map(|rank| {
///     network.fabric(rank, &Arena::new(&Ledger::new(1 << 20), 1 << 20).unwrap())
/// });
/// here.send_copy(1, 42, b"hello")?;
/// while network.advance() {}
/// let Some(Event::Message { from: 0, buffer }) = there.receive()? else { panic!("nothing came") };
/// assert_eq!((buffer.tag(), &buffer[..]), (42, &b"hello"[..]));
/// # Ok::<(), transport::Error>(())
/// ```
#[derive(Clone)]
pub struct Simulation(Rc<RefCell<State>>);

struct State {
    random: u64,
    now: u64,
    size: u32,
    /// What is on its way, by receiver and then sender.
    channels: Vec<BTreeMap<Rank, VecDeque<Sent>>>,
    /// Who something arrives at, by when.
    arrivals: BTreeMap<u64, Vec<Rank>>,
    /// Who something has arrived at since that was last asked for.
    arrived: BTreeSet<Rank>,
    ended: Vec<Option<End>>,
    /// The ranks that have ended, so that nobody has to look at all.
    gone: Vec<Rank>,
    /// How many messages more each rank sends before it dies, if that is settled.
    left: Vec<Option<u64>>,
}

/// What is on its way.
struct Sent {
    /// When it arrives.
    at: u64,
    /// Whether it is a message, and not beside them.
    is_message: bool,
    buffer: Buffer,
}

impl Simulation {
    /// A network of `size` ranks that behaves as `seed` says.
    pub fn new(seed: u64, size: u32) -> Self {
        Self(Rc::new(RefCell::new(State {
            random: seed,
            now: 0,
            size,
            channels: (0..size).map(|_| BTreeMap::new()).collect(),
            arrivals: BTreeMap::new(),
            arrived: BTreeSet::new(),
            ended: vec![None; size as usize],
            gone: Vec::new(),
            left: vec![None; size as usize],
        })))
    }

    /// The fabric of `rank`, whose messages are lent by `arena`.
    pub fn fabric(&self, rank: Rank, arena: &Arena) -> Fabric {
        let size = self.0.borrow().size;
        let port = |peer| Port {
            network: self.clone(),
            rank,
            peer,
            arena: arena.clone(),
            asides: VecDeque::new(),
        };
        Fabric::simulated(rank, size, arena.clone(), self.clone(), port)
    }

    /// Lets time pass until the next message arrives; false when none is on its way.
    pub fn advance(&self) -> bool {
        let mut state = self.0.borrow_mut();
        let Some((next, receivers)) = state.arrivals.pop_first() else {
            return false;
        };
        state.now = next;
        state.arrived.extend(receivers);
        true
    }

    /// The ranks at which something has arrived since this was last asked, in order: the
    /// others have nothing new to do, which counts where there are thousands.
    pub fn take_arrived(&self) -> BTreeSet<Rank> {
        mem::take(&mut self.0.borrow_mut().arrived)
    }

    /// The peers of whom a rank has something to receive, in turns: a message, or that they are gone.
    pub(crate) fn ready(&self, rank: Rank) -> Vec<Rank> {
        let state = self.0.borrow();
        let channels = &state.channels[rank as usize];
        let has_arrived =
            |channel: &VecDeque<Sent>| channel.front().map(|sent| sent.at <= state.now);
        let senders = channels
            .iter()
            .filter(|(_, channel)| has_arrived(channel) == Some(true));
        let gone = state.gone.iter().filter(|peer| {
            let channel = channels.get(peer);
            channel.and_then(has_arrived).is_none()
        });
        let mut ready: Vec<Rank> = senders
            .map(|(&peer, _)| peer)
            .chain(gone.copied())
            .collect();
        if !ready.is_empty() {
            let first = state.now as usize % ready.len();
            ready.rotate_left(first);
        }
        ready
    }

    /// Kills a rank: what it sent still arrives, then its peers learn that it is lost.
    pub fn kill(&self, rank: Rank) {
        self.end(rank, End::Lost(Loss::Simulated));
    }

    /// Kills a rank once it has sent so many messages more: in the midst of whatever it does then.
    pub fn kill_after(&self, rank: Rank, messages: u64) {
        self.0.borrow_mut().left[rank as usize] = Some(messages);
    }

    /// Whether a rank was killed.
    pub fn is_dead(&self, rank: Rank) -> bool {
        matches!(self.0.borrow().ended[rank as usize], Some(End::Lost(_)))
    }

    /// A number below `bound` drawn from the seed, for who runs a simulation.
    pub fn draw(&self, bound: u64) -> u64 {
        self.0.borrow_mut().draw(bound)
    }

    fn end(&self, rank: Rank, end: End) {
        let mut state = self.0.borrow_mut();
        if state.ended[rank as usize].is_none() {
            state.ended[rank as usize] = Some(end);
            state.gone.push(rank);
        }
        let unread = mem::take(&mut state.channels[rank as usize]);
        drop(state);
        drop(unread); // Their drop returns loans, which must not find the network borrowed.
    }
}

impl State {
    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    fn draw(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * u128::from(bound)) >> 64) as u64
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.borrow();
        f.debug_struct("Simulation")
            .field("size", &state.size)
            .field("now", &state.now)
            .finish_non_exhaustive()
    }
}

/// One end of a simulated link.
pub(crate) struct Port {
    network: Simulation,
    rank: Rank,
    peer: Rank,
    arena: Arena,
    asides: VecDeque<Buffer>,
}

impl Port {
    pub(crate) fn is_ready(&self) -> bool {
        let state = self.network.0.borrow();
        let channel = state.channels[self.rank as usize].get(&self.peer);
        match channel.and_then(VecDeque::front) {
            Some(sent) => sent.at <= state.now,
            None => state.ended[self.peer as usize].is_some(),
        }
    }

    pub(crate) fn close(&self) {
        self.network.end(self.rank, End::Closed);
    }

    pub(crate) fn send_aside(&self, aside: Buffer) {
        // A peer that is gone is told of when we receive from it.
        let _ = self.send_as(aside, false);
    }

    pub(crate) fn has_aside(&self) -> bool {
        !self.asides.is_empty()
    }

    pub(crate) fn take_aside(&mut self) -> Option<Buffer> {
        self.asides.pop_front()
    }

    fn send_as(&self, buffer: Buffer, is_message: bool) -> Result<(), Error> {
        let dies = match &mut self.network.0.borrow_mut().left[self.rank as usize] {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if dies {
            self.network.kill(self.rank);
        }
        let mut state = self.network.0.borrow_mut();
        if let Some(end) = &state.ended[self.peer as usize] {
            return Err(end.error(self.peer));
        }
        if state.ended[self.rank as usize].is_some() {
            return Ok(()); // The dead may speak, but nobody hears them.
        }
        let delay = state.draw(DELAY_MAX);
        let now = state.now;
        let channel = state.channels[self.peer as usize]
            .entry(self.rank)
            .or_default();
        let last = channel.back().map_or(0, |sent| sent.at);
        let at = last.max(now + delay);
        channel.push_back(Sent {
            at,
            is_message,
            buffer,
        });
        if at > now {
            state.arrivals.entry(at).or_default().push(self.peer);
        } else {
            state.arrived.insert(self.peer);
        }
        Ok(())
    }
}

impl Endpoint for Port {
    fn peer(&self) -> Rank {
        self.peer
    }

    fn loan(&mut self, bytes: usize) -> Result<Option<Loan>, Error> {
        self.arena.loan(bytes)
    }

    fn send(&mut self, message: Buffer) -> Result<(), Error> {
        self.send_as(message, true)
    }

    fn receive(&mut self) -> Result<Option<Buffer>, Error> {
        let mut state = self.network.0.borrow_mut();
        let now = state.now;
        let channel = state.channels[self.rank as usize].get_mut(&self.peer);
        let next = channel.and_then(|channel| match channel.front()?.at <= now {
            true => channel.pop_front().map(Some),
            false => Some(None),
        });
        match next {
            Some(Some(sent)) if !sent.is_message => {
                self.asides.push_back(sent.buffer);
                Ok(None)
            }
            Some(sent) => Ok(sent.map(|sent| sent.buffer)),
            None => match &state.ended[self.peer as usize] {
                Some(end) => Err(end.error(self.peer)),
                None => Ok(None),
            },
        }
    }
}
