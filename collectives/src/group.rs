//! Ranks that act together.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
};

use transport::{Buffer, Exposed, Rank, RegionHandle};

use crate::{
    Engine, Error, barrier,
    board::{self, BOARD_BYTES_MIN, Board},
    call::Call,
    fate::{Fate, Signature},
    hierarchy::Levels,
    plan::{Algorithm, Choices, Model, Operator, SEGMENT},
};

/// Groups that a job can make, and groups of all ranks besides: their contexts come after those.
pub(crate) const CONTEXTS: u32 = 1 << 15;
/// After so many calls that go by messages the members wait for one another, so that what a member sends ahead has a bound.
pub(crate) const CALLS_AHEAD: u32 = 128;

/// The number of the first call. Numbers wrap around, and do so early, because what happens seldom is not tested.
pub(crate) const FIRST_CALL: u32 = u32::MAX - 200;
/// The most bytes of a message before the members know of each other's arenas.
const SEGMENT_FIRST: usize = 1 << 10;
/// Segments for each member that fit in an arena at a time: more than half of it may be with others, unread, and what is
/// left in pieces.
const SEGMENTS_AT_ONCE: usize = 16;

/// Ranks that act together: a communicator, in MPI's words.
///
/// Members are numbered from 0. All have to call the same operations in the same order; calls that differ are an
/// [`Error::Mismatch`]. Operations are futures: several can be under way at a time, each beside the others,
/// as long as they begin (are first polled) in the same order everywhere; where members share memory, the eighth after one
/// waits until that one has ended, so it has to be polled meanwhile. One that is dropped before its end, and any
/// that fails, ends the group for all members.
///
/// Dropping a group is a matter of this rank alone.
pub struct Group {
    pub(crate) engine: Engine,
    pub(crate) fate: Rc<Fate>,
    calls: Cell<u32>,
    /// Those that went by messages.
    by_messages: Cell<u32>,
    board: Option<Board>,
    pub(crate) model: Rc<Model>,
    /// The most bytes of a message, so that each member finds room for some of all others at a time.
    segment: usize,
    /// The number of the node of each member: the first member that is on it.
    pub(crate) nodes: Rc<[usize]>,
    forced: Cell<Option<Algorithm>>,
    choices: Choices,
    /// The groups of an operation that goes by nodes, once there has been one.
    pub(crate) levels: RefCell<Option<Rc<Levels>>>,
}

impl Group {
    /// The group of all ranks of the job, which all have to make.
    ///
    /// # Errors
    ///
    /// [`Error::PeerLost`] and [`Error::Transport`].
    pub(crate) async fn world(engine: &Engine) -> Result<Self, Error> {
        let members = (0..engine.size()).collect();
        let number = engine.next_world();
        if number >= CONTEXTS - 1 {
            return Err(Error::TooManyGroups { limit: CONTEXTS });
        }
        let context = (CONTEXTS + number) as u16;
        let fate = Fate::new(context, members, engine.rank() as usize, None);
        let mut group = Self::settled(engine, fate, Rc::new(Model::default())).await?;
        group.model = Rc::new(Model::measure(&group).await?);
        Ok(group)
    }

    /// A group whose members all make it.
    pub(crate) async fn settled(
        engine: &Engine,
        fate: Rc<Fate>,
        model: Rc<Model>,
    ) -> Result<Self, Error> {
        engine.check()?;
        let mut group = Self::with(engine, fate, model);
        group.settle().await?;
        Ok(group)
    }

    fn with(engine: &Engine, fate: Rc<Fate>, model: Rc<Model>) -> Self {
        engine.enter(fate.context, &fate);
        Self {
            engine: engine.clone(),
            calls: Cell::new(FIRST_CALL),
            by_messages: Cell::new(0),
            board: None,
            model,
            segment: SEGMENT_FIRST,
            nodes: (0..fate.members.len()).collect(),
            forced: Cell::default(),
            choices: Choices::default(),
            levels: RefCell::default(),
            fate,
        }
    }

    /// This member's number.
    pub fn rank(&self) -> usize {
        self.fate.me
    }

    /// Members.
    pub fn size(&self) -> usize {
        self.fate.members.len()
    }

    /// The rank in the job of each member.
    pub fn members(&self) -> &[Rank] {
        &self.fate.members
    }

    /// What makes the operations go on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether all members are on one node and share memory.
    pub fn shares_memory(&self) -> bool {
        self.nodes.iter().all(|&node| node == 0)
    }

    /// The most bytes of a message of an operation. All members have the same.
    #[inline]
    pub(crate) fn segment(&self) -> usize {
        self.segment
    }

    /// The boards, if all members share memory.
    #[inline]
    pub(crate) fn board(&self) -> Option<&Board> {
        self.board.as_ref()
    }

    /// Has the calls that follow use `algorithm` where they can, instead of the one that the cost model chooses; all
    /// members have to do the same. `None` leaves the choice to the model again.
    pub fn force(&self, algorithm: Option<Algorithm>) {
        self.forced.set(algorithm);
    }

    /// The algorithm for an operation on vectors of `bytes` bytes, which all members know.
    #[inline]
    pub(crate) fn choose(&self, operation: Operator, bytes: usize, commutes: bool) -> Algorithm {
        if let Some(forced) = self.forced.get()
            && self.can(operation, forced, bytes, commutes)
        {
            return forced;
        }
        self.choices.of(self, operation, bytes, commutes)
    }

    /// The algorithm that carries `operation` out on vectors (or blocks) of `bytes` bytes, with a function that commutes.
    pub fn choice(&self, operation: Operator, bytes: usize) -> Algorithm {
        self.choose(operation, bytes, true)
    }

    /// Whether there is such an algorithm for the operation, and this group can use it.
    pub fn can(
        &self,
        operation: Operator,
        algorithm: Algorithm,
        bytes: usize,
        commutes: bool,
    ) -> bool {
        algorithm.serves(operation, commutes)
            && match algorithm {
                Algorithm::Board => {
                    self.board.is_some()
                        && operation.operand_bytes(bytes, self.size()) <= board::OPERAND_MAX
                }
                Algorithm::Rounds => self.board.is_some() && bytes > 0,
                Algorithm::Hierarchical => self.has_levels(),
                _ => true,
            }
    }

    /// Whether some members share a node and others do not.
    pub(crate) fn has_levels(&self) -> bool {
        let leaders = (self.nodes.iter().enumerate())
            .filter(|&(member, &node)| member == node)
            .count();
        leaders > 1 && leaders < self.size()
    }

    /// What it costs to send and to combine, as measured when the job began.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Why nothing can be begun in the group, if it is so.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.engine.check()?;
        self.fate.check()
    }

    /// Begins a call.
    #[inline]
    pub(crate) async fn begin(&self, signature: Signature) -> Result<Call<'_>, Error> {
        self.check()?;
        let mut number = self.calls.get();
        let by_messages = self.by_messages.get().wrapping_add(1);
        self.by_messages.set(by_messages);
        let is_held_up = by_messages.is_multiple_of(CALLS_AHEAD);
        // Taken before anything waits: others that begin meanwhile come after it, at all members.
        self.calls
            .set(number.wrapping_add(1 + u32::from(is_held_up)));
        if is_held_up {
            let meeting = Call::new(self, number, Signature::new("barrier"));
            number = number.wrapping_add(1);
            let hash = self.fate.begin(number, signature);
            Box::pin(let_others_come(meeting)).await?;
            return Ok(Call::begun(self, number, hash));
        }
        Ok(Call::new(self, number, signature))
    }

    /// Begins a call that goes by boards.
    // What it is then is compared as it is written there, and not put together first.
    #[inline(always)]
    pub(crate) fn begin_now(&self, signature: Signature) -> Result<(Call<'_>, &Board), Error> {
        self.check()?;
        let missing = || Error::Transport("the members share no memory".to_owned());
        let board = self.board.as_ref().ok_or_else(missing)?;
        let number = self.calls.get();
        self.calls.set(number.wrapping_add(1));
        let signature = signature.by(Algorithm::Board);
        Ok((Call::new(self, number, signature), board))
    }

    /// A call has ended well.
    #[inline]
    pub(crate) fn ended(&self, number: u32) {
        if let Some(board) = &self.board {
            board.leave(number);
        }
    }

    pub(crate) fn check_member(&self, call: &'static str, member: usize) -> Result<(), Error> {
        if member < self.size() {
            return Ok(());
        }
        Err(self.argument(
            call,
            format!("member {member} is not one of {}", self.size()),
        ))
    }

    pub(crate) fn argument(&self, call: &'static str, reason: impl Into<String>) -> Error {
        Error::Argument {
            call,
            reason: reason.into(),
        }
    }

    /// Has the members learn who shares memory with whom, and exchange boards.
    async fn settle(&mut self) -> Result<(), Error> {
        if self.size() == 1 {
            return Ok(());
        }
        let exposed = self.expose_board();
        let mut mine = [0; 1 + RegionHandle::BYTES];
        if let Some(exposed) = &exposed {
            mine[0] = 1;
            mine[1..].copy_from_slice(&exposed.handle().to_bytes());
        }
        let all = self.tell_all("greet", &mine).await?;
        let mut boards = Vec::new();
        let mut nodes = Vec::with_capacity(self.size());
        if self.size() <= board::MEMBERS_MAX && all.iter().all(|one| one[0] == 1) {
            for one in &all {
                let mut handle = [0; RegionHandle::BYTES];
                handle.copy_from_slice(&one[1..]);
                let handle = RegionHandle::from_bytes(&handle);
                let region = self.engine.attach(handle, &self.fate).await?;
                if region
                    .words()
                    .is_some_and(|words| words.len() * 8 >= BOARD_BYTES_MIN)
                {
                    nodes.push(boards.len());
                }
                boards.push(region);
            }
        }
        // The first member that shares memory with us names our node.
        let node = nodes.first().copied().unwrap_or(self.rank());
        let shared = u8::from(nodes.len() == self.size());
        let capacity = self.engine.fabric().borrow().arena().capacity();
        let mut mine = [shared; 17];
        mine[1..9].copy_from_slice(&(node as u64).to_le_bytes());
        mine[9..].copy_from_slice(&capacity.to_le_bytes());
        let all = self.tell_all("tell nodes", &mine).await?;
        self.nodes = all.iter().map(|one| read_u64(&one[1..]) as usize).collect();
        let least = all.iter().map(|one| read_u64(&one[9..])).min();
        let least = least.unwrap_or(capacity) as usize;
        self.engine.shares_room(least as u64);
        self.segment =
            (least / (SEGMENTS_AT_ONCE * self.size())).clamp(Buffer::INLINE_BYTES, SEGMENT);
        if all.iter().all(|one| one[0] == 1)
            && let Some(exposed) = exposed
        {
            self.board = Some(Board::new(exposed, boards, self.calls.get()));
        }
        Ok(())
    }

    /// Memory for a board, if there is some.
    fn expose_board(&self) -> Option<Exposed> {
        if self.size() > board::MEMBERS_MAX {
            return None;
        }
        let fabric = self.engine.fabric().borrow();
        let bytes = board::bytes_in(fabric.arena().capacity());
        let loan = fabric.loan(bytes).ok()??;
        let exposed = fabric.expose(loan).ok()?;
        Board::clear(&exposed);
        Some(exposed)
    }

    /// What every member has to say, in `N` bytes.
    async fn tell_all<const N: usize>(
        &self,
        call: &'static str,
        mine: &[u8; N],
    ) -> Result<Vec<[u8; N]>, Error> {
        let mut all = vec![[0; N]; self.size()];
        let call = self.begin(Signature::of::<[u8; N]>(call, Some(1))).await?;
        let result = crate::all_gather::exchange(&call, mine, &mut all).await;
        call.end(result)?;
        Ok(all)
    }

    /// Makes one group of all members with the same `color`, numbered in the order of their keys and, of equal keys, of
    /// their numbers here. `None` for a member that wants to be in none.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyGroups`]; see [`Error`].
    pub async fn split(&self, color: Option<u64>, key: i64) -> Result<Option<Self>, Error> {
        self.split_as_part(color, key, None).await
    }

    /// The same; a group that is of use only while `whole` is.
    pub(crate) async fn split_as_part(
        &self,
        color: Option<u64>,
        key: i64,
        whole: Option<Rc<Fate>>,
    ) -> Result<Option<Self>, Error> {
        let mut mine = [0; 21];
        mine[0] = u8::from(color.is_some());
        mine[1..9].copy_from_slice(&color.unwrap_or(0).to_le_bytes());
        mine[9..17].copy_from_slice(&key.to_le_bytes());
        mine[17..].copy_from_slice(&self.engine.next_context().to_le_bytes());
        let all = self.tell_all("split", &mine).await?;
        let context = all
            .iter()
            .map(|one| read_u32(&one[17..]))
            .max()
            .unwrap_or(1);
        // All members take a new number, also those in no group: it is theirs to agree on next time.
        self.engine.set_next_context(context + 1);
        if context >= CONTEXTS {
            return Err(Error::TooManyGroups { limit: CONTEXTS });
        }
        let Some(color) = color else { return Ok(None) };
        let mut members: Vec<(i64, usize)> = all
            .iter()
            .enumerate()
            .filter(|(_, one)| one[0] == 1 && read_u64(&one[1..]) == color)
            .map(|(member, one)| (read_u64(&one[9..]).cast_signed(), member))
            .collect();
        members.sort_unstable();
        let me = members
            .iter()
            .position(|&(_, member)| member == self.rank());
        let members = members
            .iter()
            .map(|&(_, member)| self.fate.members[member])
            .collect();
        let fate = Fate::new(context as u16, members, me.unwrap_or_default(), whole);
        let group = Self::settled(&self.engine, fate, self.model.clone()).await?;
        Ok(Some(group))
    }

    /// The group of some members, in this order; all members have to call this with the same `members`. `None` for those
    /// that are not among them.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when a member is named twice or does not exist; as [`split`](Self::split).
    pub async fn subgroup(&self, members: &[usize]) -> Result<Option<Self>, Error> {
        let mut places = vec![None; self.size()];
        for (place, &member) in members.iter().enumerate() {
            self.check_member("subgroup", member)?;
            if places[member].replace(place as i64).is_some() {
                return Err(self.argument("subgroup", format!("member {member} is named twice")));
            }
        }
        let place = places[self.rank()];
        self.split(place.map(|_| 0), place.unwrap_or(0)).await
    }

    /// A group of the same members whose operations do not interfere with those of this one.
    ///
    /// # Errors
    ///
    /// As [`split`](Self::split).
    pub async fn duplicate(&self) -> Result<Self, Error> {
        let copy = self.split(Some(0), self.rank() as i64).await?;
        copy.ok_or_else(|| self.argument("duplicate", "it gave no group"))
    }
}

/// Waits for the members that have not come as far. Calls that go by boards need not: each waits for its slot.
#[cold]
async fn let_others_come(call: Call<'_>) -> Result<(), Error> {
    let result = barrier::dissemination(&call).await;
    call.end(result)
}

pub(crate) fn read_u32(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

pub(crate) fn read_u64(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Drop for Group {
    fn drop(&mut self) {
        self.engine.leave(&self.fate);
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("rank", &self.rank())
            .field("members", &self.members())
            .finish_non_exhaustive()
    }
}
