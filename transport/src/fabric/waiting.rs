//! How a rank waits that has nothing to do: it spins while that pays, gives its core away where others need it,
//! and then sleeps.

use std::{
    ops::DerefMut,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{Contact, Fabric, POLLS_A_GLANCE, POLLS_A_LOOK, sockets::Sockets};
use crate::{Error, Rank, bell, link::Link};

/// The longest a waiting rank spins before it sleeps, in polls.
pub(super) const SPINS_MAX: u32 = 4096;
const SPINS_MIN: u32 = 32;
/// The same for a rank that shares its core, in turns given away.
const YIELDS_MAX: u32 = 32;
const YIELDS_MIN: u32 = 1;
/// A sleep that was over so soon was not worth falling asleep for.
const SHORT_SLEEP: Duration = Duration::from_micros(100);
/// Connections that are read from at every poll, when there are no other links: two such reads take no longer
/// than asking the event queue.
const PROBED_LINKS_MAX: usize = 2;
/// Polls between two looks at the sockets while every poll reads from them anyway.
const PROBES_A_LOOK: u32 = 64;
/// A poll that reads takes as long as so many that do not.
const SPINS_A_PROBE: u32 = 8;

impl Fabric {
    /// Waits until there may be something to receive, room to lend, it is time for a
    /// [`tick`](Self::tick), or `timeout` is over: it spins while that has paid lately, and then sleeps.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the system's event queue fails.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        self.wait_until(timeout, || false)
    }

    /// The same, until `ready` says true as well: for those who wait for words of exposed memory to change, which
    /// is no event. `ready` is called often, and should look at those words with acquire order and do nothing else.
    /// Who changes them has to [`ring`](Self::ring) after that.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_until(
        &mut self,
        timeout: Option<Duration>,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        match self.spin(&mut ready)? {
            true => Ok(()),
            false => self.sleep(timeout, ready),
        }
    }

    /// The first part of [`wait_until`](Self::wait_until): spins while that has paid lately, and says whether there is something.
    /// If not, [`sleep`](Self::sleep). In between there is time for what is done before a rank sleeps.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn spin(&mut self, mut ready: impl FnMut() -> bool) -> Result<bool, Error> {
        if ready() {
            return Ok(true);
        }
        self.tell_about_memory();
        self.idle();
        let is_news = self.spin_for_news(&mut ready)?;
        if is_news && let Some(sockets) = &mut self.sockets {
            sockets.forget_waking();
        }
        Ok(is_news)
    }

    /// The second part of [`wait_until`](Self::wait_until): sleeps, unless there is something by now.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn sleep(
        &mut self,
        timeout: Option<Duration>,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        if self.sockets.is_none() {
            return Ok(()); // Nobody could wake us.
        }
        let waited = self.sleep_until_news(self.until_tick(timeout), &mut ready);
        if let Some(sockets) = &mut self.sockets {
            sockets.forget_waking();
        }
        waited
    }

    /// The same for several ranks that share a thread: until there may be something for any of them. It does not spin: who
    /// polls for several ranks has done so. Ranks that have no core of their own give their turn away before they sleep.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_for_any<F: DerefMut<Target = Self>>(
        fabrics: &mut [F],
        timeout: Option<Duration>,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        let mut timeout = timeout;
        for fabric in &mut *fabrics {
            fabric.tell_about_memory();
            fabric.idle();
            timeout = fabric.until_tick(timeout);
        }
        let mut is_news =
            |fabrics: &mut [F]| ready() || fabrics.iter_mut().any(|fabric| fabric.has_news());
        let yields = match fabrics.iter().all(|fabric| fabric.spin) {
            true => 0,
            false => YIELDS_MAX,
        };
        for _ in 0..yields {
            if is_news(fabrics) {
                return Ok(());
            }
            std::thread::yield_now();
        }
        let armed = fabrics.iter().map(|fabric| fabric.arm());
        let waited = if armed.fold(true, |all, one| all & one) && !is_news(fabrics) {
            Self::sleep_all(fabrics, timeout)
        } else {
            Ok(())
        };
        for fabric in fabrics {
            fabric.arena.region().bell().disarm();
            if let Some(sockets) = &mut fabric.sockets {
                sockets.forget_waking();
            }
        }
        waited
    }

    /// Sleeps until the sockets of one of them have something to say, and takes that in.
    fn sleep_all<F: DerefMut<Target = Self>>(
        fabrics: &mut [F],
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        let queues = fabrics
            .iter()
            .filter_map(|fabric| fabric.sockets.as_ref())
            .map(|sockets| PollFd::new(sockets.queue(), PollFlags::POLLIN));
        let mut queues: Vec<PollFd<'_>> = queues.collect();
        if queues.is_empty() {
            return Ok(()); // Nobody could wake us.
        }
        let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
            // Not less than asked for, so that nobody wakes up again and again before its time.
            PollTimeout::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut queues, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::os("sleep")(errno)),
        }
        fabrics
            .iter_mut()
            .try_for_each(|fabric| fabric.look(Some(Duration::ZERO)))
    }

    /// Says that we are about to sleep; false if that cannot be said. Look once more after this.
    fn arm(&self) -> bool {
        let bell = self.arena.region().bell();
        let armed = bell.arm(self.reasons(), self.fences_all);
        if let Some(sockets) = &self.sockets {
            sockets.arm_rdma();
        }
        armed
    }

    /// Wakes `peer` if it sleeps in [`wait_until`](Self::wait_until): something has just been written into exposed
    /// memory, ours or its, that it may be waiting for. It costs next to nothing while the peer is awake, and
    /// nothing at all on paths other than shared memory, where memory cannot be waited for.
    #[inline]
    pub fn ring(&self, peer: Rank) {
        if let Some(Contact::Open(Link::Shm(link))) = self.peers.get(peer as usize) {
            link.mapping().ring(bell::MESSAGE);
        }
    }

    /// The time to sleep at most: with connections to watch, not past the next look at them.
    fn until_tick(&self, timeout: Option<Duration>) -> Option<Duration> {
        if self.sockets.as_ref().is_none_or(Sockets::is_quiet) {
            return timeout;
        }
        Some(timeout.map_or(self.look_interval, |timeout| {
            timeout.min(self.look_interval)
        }))
    }

    fn sleep_until_news(
        &mut self,
        timeout: Option<Duration>,
        ready: &mut dyn FnMut() -> bool,
    ) -> Result<(), Error> {
        let waited = if !self.arm() || self.has_news() || ready() {
            Ok(())
        } else {
            let asleep = Instant::now();
            let waited = self.look(timeout);
            if asleep.elapsed() < SHORT_SLEEP {
                self.spins = self.spins.saturating_mul(4).min(SPINS_MAX);
            }
            waited
        };
        self.arena.region().bell().disarm();
        waited
    }

    /// Spins as long as it has been worth it; whether there is news. Without a core of its own a rank gives its
    /// turn away instead: what it waits for may be another rank's, and that is quicker than to sleep and be woken.
    fn spin_for_news(&mut self, ready: &mut impl FnMut() -> bool) -> Result<bool, Error> {
        let polls_a_look = self.polls_a_look();
        let (least, most) = match (self.spin, self.probes) {
            (false, _) => (YIELDS_MIN, YIELDS_MAX),
            (true, false) => (SPINS_MIN, SPINS_MAX),
            (true, true) => (SPINS_MIN / SPINS_A_PROBE, SPINS_MAX / SPINS_A_PROBE),
        };
        for spin in 0..self.spins.clamp(least, most) {
            if ready() || self.has_news() {
                self.spins = (self.spins + spin).clamp(least, most);
                return Ok(true);
            }
            if spin % polls_a_look == polls_a_look - 1 {
                self.look(Some(Duration::ZERO))?;
            }
            self.arena.fetch_prepared();
            if self.spin {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        self.spins = (self.spins / 2).max(least);
        Ok(self.has_news())
    }

    /// Nothing arrives: there is time for what could wait.
    pub(super) fn idle(&mut self) {
        for &peer in &self.open {
            if let Contact::Open(link) = &mut self.peers[peer as usize] {
                link.idle();
            }
        }
    }

    #[inline]
    pub(super) fn polls_a_look(&self) -> u32 {
        if self.probes {
            return PROBES_A_LOOK;
        }
        let quiet = self.sockets.as_ref().is_some_and(Sockets::is_quiet);
        if quiet { POLLS_A_GLANCE } else { POLLS_A_LOOK }
    }

    /// Few connections and nothing else are best polled directly. (Beside shared memory, whose polls take
    /// nanoseconds, or other connections, a system call for each would be too much.)
    pub(super) fn decide_on_probes(&mut self) {
        let is_tcp =
            |&peer: &Rank| matches!(&self.peers[peer as usize], Contact::Open(Link::Tcp(_)));
        self.probes =
            (1..=PROBED_LINKS_MAX).contains(&self.open.len()) && self.open.iter().all(is_tcp);
    }

    fn has_news(&mut self) -> bool {
        if !self.events.is_empty() || !self.own.is_empty() {
            return true;
        }
        if self.sockets.as_ref().is_some_and(Sockets::was_woken) {
            return true; // A look that was not a wait may have taken the wake-up in.
        }
        if self.arena.is_wanted() && self.arena.has_returns() {
            return true;
        }
        let (peers, probes) = (&mut self.peers, self.probes);
        let ready = self
            .open
            .iter()
            .any(|&peer| match &mut peers[peer as usize] {
                Contact::Open(link) => {
                    if probes {
                        link.probe();
                    }
                    link.is_ready() || link.can_flush() || link.has_aside()
                }
                _ => false,
            });
        ready || (self.onesided.is_any_blocked() && self.can_any_go_on())
    }

    /// What to be woken for.
    fn reasons(&self) -> bell::Reasons {
        let waiting = self
            .open
            .iter()
            .any(|&peer| match &self.peers[peer as usize] {
                Contact::Open(link) => link.is_waiting(),
                _ => false,
            });
        if waiting || self.arena.is_wanted() {
            bell::MESSAGE | bell::ROOM
        } else {
            bell::MESSAGE
        }
    }
}
