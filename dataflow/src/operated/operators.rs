//! The operators of a rank that its program drives.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    rc::{Rc, Weak},
    sync::Arc,
    time::Instant,
};

use collectives::{Attend, Engine, Error as Groups};
use transport::{Buffer, Ledger, Rank};

use crate::{
    Error,
    graph::{Graph, TaskGraph},
    inline::Nobody,
    one_line,
    run::{self, Run, Site, run_of, tag},
    stage::{Handoff, Progress},
};

/// Operators that can be open at a time and each be sure of its share of the arena.
const AT_A_TIME: u64 = 8;
/// How often each operator gets its turn before messages are looked for.
const TURNS_MAX: u32 = 16;

/// The operators of a rank that its program drives. It [attends](Engine::attend) the rank's engine: so they go on while the
/// rank waits for an operation of a group.
pub struct Operators {
    site: Site,
    open: RefCell<Vec<Weak<RefCell<Driven>>>>,
    /// How many were made.
    made: Cell<u32>,
    /// Messages of operators that were not made yet.
    early: RefCell<VecDeque<(Rank, Buffer)>>,
    /// Ranks that are gone, with how they went.
    gone: RefCell<Vec<(Rank, Groups)>>,
}

impl Operators {
    /// Operators that run on this site.
    pub fn new(site: Site) -> Self {
        Self {
            site,
            open: RefCell::default(),
            made: Cell::new(0),
            early: RefCell::default(),
            gone: RefCell::default(),
        }
    }

    /// Operators of ranks that are each a process of its own and have all the memory they like: for tests and simulations.
    pub fn alone(engine: &Engine) -> Self {
        Self::new(Site {
            fabric: engine.fabric().clone(),
            executors: 1,
            ledger: Ledger::new(u64::MAX >> 1),
            counters: Rc::new(Nobody),
            spill: Rc::default(),
            helpers: Rc::new(()),
        })
    }

    /// Begins to run a graph.
    pub(super) fn open(
        &self,
        graph: Arc<Graph>,
        handoff: Handoff,
    ) -> Result<Rc<RefCell<Driven>>, Error> {
        let number = run::of_operator(self.made.replace(self.made.get().wrapping_add(1)));
        let graph = TaskGraph {
            graph,
            schedule: None,
        };
        let mut driven = match Run::with(&graph, number, &self.site, AT_A_TIME, handoff, false) {
            Ok(run) => Driven::new(run),
            Err(error) => {
                run::tell_failure(&mut self.site.fabric.borrow_mut(), number, &error);
                return Err(error);
            }
        };
        for (peer, error) in &*self.gone.borrow() {
            driven.lost(*peer, error);
        }
        let (its, others) = std::mem::take(&mut *self.early.borrow_mut())
            .into_iter()
            .partition(|(_, message)| run::same_operator(run_of(message.tag()), number));
        *self.early.borrow_mut() = others;
        driven.early = its;
        driven.take_early();
        let driven = Rc::new(RefCell::new(driven));
        self.open.borrow_mut().push(Rc::downgrade(&driven));
        Ok(driven)
    }

    /// Forgets an operator. If others may still need this rank for it, they learn that it is gone.
    pub(super) fn close(&self, driven: &Rc<RefCell<Driven>>) {
        let is_other = |open: &Weak<_>| !std::ptr::eq(open.as_ptr(), Rc::as_ptr(driven));
        self.open.borrow_mut().retain(is_other);
        let driven = driven.borrow();
        if driven.failed.is_none() {
            let mut fabric = self.site.fabric.borrow_mut();
            run::tell_end(
                &mut fabric,
                driven.run.number(),
                "it has closed an operator",
            );
        }
    }
}

impl Attend for Operators {
    fn receive(&self, from: Rank, message: Buffer) -> Option<Buffer> {
        let number = run_of(message.tag());
        if !run::is_operators(number) {
            return Some(message);
        }
        let open = self.open.borrow();
        let mut open = open.iter().filter_map(Weak::upgrade);
        let its =
            |driven: &Rc<RefCell<Driven>>| run::same_operator(driven.borrow().run.number(), number);
        if let Some(driven) = open.find(its) {
            driven.borrow_mut().receive(from, message);
        } else if run::is_to_come(number, self.made.get()) {
            self.early.borrow_mut().push_back((from, message));
        } // Otherwise it was closed.
        None
    }

    fn lost(&self, peer: Rank, error: &Groups) {
        for driven in self.open.borrow().iter().filter_map(Weak::upgrade) {
            driven.borrow_mut().lost(peer, error);
        }
        self.gone.borrow_mut().push((peer, error.clone()));
    }

    fn turn(&self) -> bool {
        let mut busy = false;
        for open in &*self.open.borrow() {
            if let Some(driven) = open.upgrade() {
                busy |= driven.borrow_mut().turn();
            }
        }
        busy
    }
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operators")
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

/// An operator on a rank: its graph, run again and again.
pub(super) struct Driven {
    run: Run,
    began: Instant,
    /// Whether this rank takes part in the round, so that it needs the others, and whether the round is over here.
    is_begun: bool,
    is_done: bool,
    /// What came for the next round.
    early: VecDeque<(Rank, Buffer)>,
    /// Ranks that take part no more, which matters if they are needed.
    gone: Vec<(Rank, Groups)>,
    /// What went wrong and was not said yet, and then what it was.
    error: Option<Error>,
    failed: Option<String>,
}

impl Driven {
    fn new(mut run: Run) -> Self {
        run.go_ahead();
        Self {
            run,
            began: Instant::now(),
            is_begun: false,
            is_done: false,
            early: VecDeque::new(),
            gone: Vec::new(),
            error: None,
            failed: None,
        }
    }

    /// Takes in a message.
    fn receive(&mut self, from: Rank, message: Buffer) {
        if !self.run.wants(message.tag()) {
            return self.early.push_back((from, message));
        }
        let (_, kind, _) = tag::parts(message.tag());
        if kind == tag::FAILED {
            let reason = String::from_utf8_lossy(&message).into_owned();
            return self.lost(from, &Groups::GaveUp { peer: from, reason });
        }
        if let Err(error) = self.run.receive(from, message) {
            self.fail(error);
        }
    }

    fn take_early(&mut self) {
        for _ in 0..self.early.len() {
            if let Some((from, message)) = self.early.pop_front() {
                self.receive(from, message);
            }
        }
    }

    /// Takes note that a rank takes part no more. It matters once it is needed in this round.
    fn lost(&mut self, peer: Rank, error: &Groups) {
        self.gone.push((peer, error.clone()));
        if self.is_begun {
            self.begin();
        }
    }

    /// This rank takes part in the round.
    pub(super) fn begin(&mut self) {
        self.is_begun = true;
        let mut gone = self.gone.iter();
        let needed = gone.find(|(peer, _)| !self.run.has_told(*peer));
        if let Some(error) = needed.map(|(_, error)| error.clone()) {
            self.fail(error.into());
        }
    }

    fn fail(&mut self, error: Error) {
        if self.failed.is_some() {
            return;
        }
        use Groups::{Closed, GaveUp, PeerLost};
        let is_consequence = matches!(
            error,
            Error::Collectives(GaveUp { .. } | PeerLost { .. } | Closed { .. })
        );
        if !is_consequence {
            self.run.fail(&error);
        }
        self.failed = Some(one_line(&error));
        self.error = Some(error);
    }

    /// Goes on; true if it can do so at once.
    fn turn(&mut self) -> bool {
        for _ in 0..TURNS_MAX {
            if self.failed.is_some() {
                return false;
            }
            if self.run.is_live() {
                self.run.tick(self.began.elapsed());
            }
            match self.run.poll() {
                Ok(Progress::Made) => {}
                Ok(Progress::None) => return false,
                Ok(Progress::Done) => {
                    self.is_done = true;
                    return false;
                }
                Err(error) => self.fail(error),
            }
        }
        true
    }

    /// Whether the round is over on this rank.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Whether the next round may begin.
    pub(super) fn may_go_on(&self) -> bool {
        self.is_done && self.run.may_go_on()
    }

    /// Begins the next round.
    pub(super) fn again(&mut self) -> Result<(), Error> {
        (self.is_begun, self.is_done) = (false, false);
        if let Err(error) = self.run.again() {
            self.fail(error);
        }
        self.take_early();
        self.check()
    }

    /// What went wrong.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        match (self.error.take(), &self.failed) {
            (Some(error), _) => Err(error),
            (None, Some(reason)) => Err(Error::Collectives(Groups::GaveUp {
                peer: self.run.rank(),
                reason: reason.clone(),
            })),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Debug for Driven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driven")
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}
