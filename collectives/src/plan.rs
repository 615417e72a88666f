//! Which algorithm an operation uses: the one that should cost least, by a model whose constants are measured when the
//! job begins.
//!
//! The model is Hockney's ("The communication challenge for MPP", 1994): a message of *n* bytes takes `message +
//! n * byte`; to that come the cost of combining a byte and that of a look at a board. Thakur, Rabenseifner and Gropp
//! ("Optimization of collective communication operations in MPICH", 2005) give the formulas of most
//! algorithms; thresholds copied from elsewhere are wrong on other machines, above all on virtual ones.

use std::{cell::Cell, fmt, str::FromStr, time::Duration};

use crate::{
    Error, Group, board,
    call::Call,
    fate::Signature,
    rounds::{LARGE_PIECE, PIECE},
};

/// An operation of which there are several algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operator {
    /// [`Group::barrier`].
    Barrier,
    /// [`Group::broadcast`].
    Broadcast,
    /// [`Group::reduce`].
    Reduce,
    /// [`Group::all_reduce`].
    AllReduce,
    /// [`Group::reduce_scatter`].
    ReduceScatter,
    /// [`Group::scan`] and [`Group::exscan`].
    Scan,
    /// [`Group::gather`].
    Gather,
    /// [`Group::scatter`].
    Scatter,
    /// [`Group::all_gather`].
    AllGather,
    /// [`Group::all_to_all`].
    AllToAll,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 10] = [
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

    /// Its name, as a method of a group has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Broadcast => "broadcast",
            Self::Reduce => "reduce",
            Self::AllReduce => "all_reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::Scan => "scan",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::AllGather => "all_gather",
            Self::AllToAll => "all_to_all",
        }
    }

    /// The most bytes that a member writes to its board, where `bytes` are those of one member's vector or block.
    pub(crate) fn operand_bytes(self, bytes: usize, size: usize) -> usize {
        match self {
            Self::Scatter | Self::AllToAll | Self::ReduceScatter => bytes * size,
            _ => bytes,
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A way to carry out an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// Operands beside flags in shared memory: one hop. Small operands of members on one node.
    Board,
    /// Operands piece by piece in shared memory, read there while the next is written, and combined where they lie. Larger
    /// operands of members on one node.
    Rounds,
    /// Every member that has something for another sends it there at once.
    Flat,
    /// Each member combines a slice of all operands, and sends it to those who need it.
    Slices,
    /// A binomial tree.
    Tree,
    /// From member to member, in segments.
    Chain,
    /// The operand is scattered and then gathered by all (van de Geijn's broadcast).
    ScatterAllGather,
    /// Pairs at a distance that doubles exchange all they have.
    RecursiveDoubling,
    /// Recursive halving and then doubling (Rabenseifner, "Optimization of collective reduction operations", 2004).
    Rabenseifner,
    /// Around a ring, a part at a time (Patarasuk, Yuan: "Bandwidth optimal all-reduce algorithms", 2009).
    Ring,
    /// Blocks travel by the bits of their distance (Bruck and others: "Efficient algorithms for all-to-all
    /// communications", 1997).
    Bruck,
    /// One partner after another.
    Pairwise,
    /// Rounds at a distance that doubles (Hensgen, Finkel, Manber: "Two algorithms for barrier synchronization", 1988).
    Dissemination,
    /// Within each node, among one member of each, and within each node again.
    Hierarchical,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Board,
        Self::Rounds,
        Self::Flat,
        Self::Slices,
        Self::Tree,
        Self::Chain,
        Self::ScatterAllGather,
        Self::RecursiveDoubling,
        Self::Rabenseifner,
        Self::Ring,
        Self::Bruck,
        Self::Pairwise,
        Self::Dissemination,
        Self::Hierarchical,
    ];

    /// Its name, as it is printed and read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Board => "board",
            Self::Rounds => "rounds",
            Self::Flat => "flat",
            Self::Slices => "slices",
            Self::Tree => "tree",
            Self::Chain => "chain",
            Self::ScatterAllGather => "scatter-all-gather",
            Self::RecursiveDoubling => "recursive-doubling",
            Self::Rabenseifner => "rabenseifner",
            Self::Ring => "ring",
            Self::Bruck => "bruck",
            Self::Pairwise => "pairwise",
            Self::Dissemination => "dissemination",
            Self::Hierarchical => "hierarchical",
        }
    }

    /// Whether there is such an algorithm for `operation`, whose function commutes or not.
    pub fn serves(self, operation: Operator, commutes: bool) -> bool {
        use Operator as On;
        match self {
            Self::Board => true,
            Self::Rounds => !matches!(operation, On::Barrier),
            Self::Flat => !matches!(operation, On::Barrier),
            Self::Slices => matches!(operation, On::Reduce | On::AllReduce),
            Self::Tree => matches!(
                operation,
                On::Broadcast | On::Reduce | On::Gather | On::Scatter
            ),
            Self::Chain => matches!(operation, On::Broadcast | On::Scan),
            Self::ScatterAllGather => matches!(operation, On::Broadcast),
            Self::RecursiveDoubling => matches!(operation, On::AllReduce | On::Scan),
            Self::Rabenseifner => commutes && matches!(operation, On::AllReduce),
            Self::Ring => {
                matches!(operation, On::AllGather)
                    || commutes && matches!(operation, On::AllReduce | On::ReduceScatter)
            }
            Self::Bruck => matches!(operation, On::AllGather | On::AllToAll),
            Self::Pairwise => matches!(operation, On::AllToAll | On::ReduceScatter),
            Self::Dissemination => matches!(operation, On::Barrier),
            Self::Hierarchical => {
                matches!(operation, On::Barrier | On::Broadcast)
                    || commutes && matches!(operation, On::Reduce | On::AllReduce)
            }
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|algorithm| algorithm.name()).collect();
            format!("{text:?} is none of {}", names.join(", "))
        })
    }
}

/// What it costs to send and to combine, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Model {
    /// A look at another member's board, once it has written.
    pub hop: f64,
    /// A byte written to a board, or read from one.
    pub board_byte: f64,
    /// An operation in rounds that moves next to nothing.
    pub rounds: f64,
    /// A small message from one member to another, on the node if they share one.
    pub message: f64,
    /// A byte of a large message, copied in by the sender and out by the receiver.
    pub byte: f64,
    /// What each message costs the sender and the receiver themselves.
    pub overhead: f64,
    /// A byte combined.
    pub combined_byte: f64,
}

impl Default for Model {
    /// What one virtual machine showed, for groups that are made before anything was measured.
    fn default() -> Self {
        Self {
            hop: 80.0,
            board_byte: 0.05,
            rounds: 500.0,
            message: 200.0,
            byte: 0.15,
            overhead: 60.0,
            combined_byte: 0.1,
        }
    }
}

/// What a look at a board costs, of which several are on their way at a time, in hops.
const LOOK: f64 = 0.25;
/// Rounds of a measurement, and those before it that do not count.
const ROUNDS: usize = 15;
const WARM_ROUNDS: usize = 20;
/// Bytes of an operand that shows what a byte costs on boards.
const PIECE_MEASURED: usize = 8 << 10;
/// Bytes of a message that shows what a byte costs.
const LARGE: usize = 64 << 10;

impl Model {
    /// Measures between the first two members, and tells all.
    pub(crate) async fn measure(group: &Group) -> Result<Self, Error> {
        let mut model = Self::default();
        if group.size() == 1 || !group.engine.has_clock() {
            return Ok(model);
        }
        let boards = Self::measure_boards(group).await?;
        let call = group.begin(Signature::new("measure")).await?;
        let result = Self::measure_between(&call, boards).await;
        let measured = call.end(result)?;
        let mut constants = measured.unwrap_or(model).to_array();
        let call = group
            .begin(Signature::of::<f64>("tell the model", Some(7)))
            .await?;
        let result = crate::broadcast::tree(&call, 0, &mut constants).await;
        call.end(result)?;
        model = Self::from_array(constants);
        Ok(model)
    }

    fn to_array(self) -> [f64; 7] {
        [
            self.hop,
            self.board_byte,
            self.rounds,
            self.message,
            self.byte,
            self.overhead,
            self.combined_byte,
        ]
    }

    fn from_array(constants: [f64; 7]) -> Self {
        let [
            hop,
            board_byte,
            rounds,
            message,
            byte,
            overhead,
            combined_byte,
        ] = constants;
        Self {
            hop,
            board_byte,
            rounds,
            message,
            byte,
            overhead,
            combined_byte,
        }
    }

    /// What a barrier takes by boards, and what it takes in rounds that all give all next to nothing, and a piece, if there are
    /// boards.
    async fn measure_boards(group: &Group) -> Result<Option<[f64; 3]>, Error> {
        if group.board().is_none() {
            return Ok(None);
        }
        group.force(Some(Algorithm::Board));
        let mut times = Vec::new();
        for _ in 0..WARM_ROUNDS + ROUNDS {
            let start = group.engine.clock();
            group.barrier().await?;
            times.push(group.engine.clock() - start);
        }
        let barrier = least(&times);
        group.force(Some(Algorithm::Rounds));
        let mut pieces = [0.0; 2];
        for (least_time, len) in pieces.iter_mut().zip([1, PIECE_MEASURED / 8]) {
            let (mine, mut all) = (vec![1u64; len], vec![0; len * group.size()]);
            times.clear();
            for _ in 0..2 * ROUNDS {
                let start = group.engine.clock();
                group.all_gather(&mine, &mut all).await?;
                times.push(group.engine.clock() - start);
            }
            *least_time = least(&times);
        }
        group.force(None);
        Ok(Some([barrier, pieces[0], pieces[1]]))
    }

    async fn measure_between(
        call: &Call<'_>,
        boards: Option<[f64; 3]>,
    ) -> Result<Option<Self>, Error> {
        let (me, peer) = match call.me() {
            0 => (0, 1),
            1 => (1, 0),
            _ => return Ok(None),
        };
        let clock = || call.group.engine.clock();
        let mut large = vec![0u64; LARGE / 8];
        let mut copy = vec![1u64; LARGE / 8];
        let (mut small_times, mut large_times) = (Vec::new(), Vec::new());
        let (mut send_times, mut combine_times) = (Vec::new(), Vec::new());
        for round in 0..WARM_ROUNDS + ROUNDS {
            if round == WARM_ROUNDS {
                small_times.clear();
            }
            let start = clock();
            if me == 0 {
                call.send(peer, 0, &[round as u64]).await?;
                call.receive(peer).await?;
            } else {
                call.receive(peer).await?;
                call.send(peer, 0, &[round as u64]).await?;
            }
            small_times.push(clock() - start);
            if round < WARM_ROUNDS {
                continue;
            }
            let start = clock();
            call.send(peer, 0, &[round as u64]).await?;
            send_times.push(clock() - start);
            call.receive(peer).await?;
            let start = clock();
            if me == 0 {
                call.send(peer, 0, &large).await?;
                call.receive_into(peer, &mut large).await?;
            } else {
                call.receive_into(peer, &mut large).await?;
                call.send(peer, 0, &large).await?;
            }
            large_times.push(clock() - start);
            let start = clock();
            for (left, right) in copy.iter_mut().zip(&large) {
                *left = left.wrapping_add(*right);
            }
            combine_times.push(clock() - start);
            std::hint::black_box(&copy);
        }
        let message = least(&small_times) / 2.0;
        let byte = ((least(&large_times) / 2.0 - message) / LARGE as f64).max(0.01);
        let overhead = least(&send_times).min(message);
        // A barrier is a hop, and a look at every other board.
        let others = (call.size() - 1) as f64;
        let [hop, rounds, piece] = match boards {
            Some([barrier, rounds, piece]) => [barrier / (1.0 + others * LOOK), rounds, piece],
            None => [message; 3],
        };
        // Written once and read by all others; ours is copied as well, which costs as much.
        let moved = (PIECE_MEASURED * (call.size() + 1)) as f64;
        Ok(Some(Self {
            hop,
            board_byte: ((piece - rounds) / moved).max(0.01),
            rounds,
            message,
            byte,
            overhead,
            combined_byte: (least(&combine_times) / LARGE as f64).max(0.01),
        }))
    }

    /// Nanoseconds that `operation` should take among `size` members by `algorithm`, on vectors (or blocks) of
    /// `bytes` bytes.
    pub fn cost(
        &self,
        operation: Operator,
        algorithm: Algorithm,
        size: usize,
        bytes: usize,
    ) -> f64 {
        use Operator as On;
        let (p, n) = (size as f64, bytes as f64);
        let others = p - 1.0;
        let levels = (size.max(1) as f64).log2().ceil();
        let Self {
            hop,
            board_byte,
            rounds,
            message,
            byte,
            overhead,
            combined_byte,
        } = *self;
        let send = |bytes: f64| message + bytes * byte;
        // Who sends and receives at a time copies twice what one does who only sends, while another receives.
        let whole = 2.0 * byte;
        let send_whole = |bytes: f64| message + bytes * whole;
        // What a copy costs that is not sent.
        let copy = byte / 2.0;
        let reduces = matches!(
            operation,
            On::Reduce | On::AllReduce | On::ReduceScatter | On::Scan
        );
        let combining = if reduces { combined_byte } else { 0.0 };
        match algorithm {
            Algorithm::Board => {
                let readers = match operation {
                    On::Broadcast | On::Scatter => 1.0,
                    _ => others,
                };
                hop + readers * (hop * LOOK + n * (board_byte + combining)) + n * board_byte
            }
            Algorithm::Rounds => {
                let more = |piece: usize| (n / piece as f64).ceil().max(1.0) - 1.0;
                // Pieces are written while those before them are read.
                let ahead = n.min(PIECE as f64) * board_byte;
                rounds
                    + match operation {
                        On::Broadcast => hop * LOOK * more(PIECE) + n * board_byte + ahead,
                        On::AllReduce => {
                            hop * (1.0 + 2.0 * more(LARGE_PIECE))
                                + n * others / p * (3.0 * board_byte + combining)
                        }
                        On::Scatter => {
                            let more = (n * others / PIECE as f64).ceil().max(1.0) - 1.0;
                            hop * LOOK * more + others * n * board_byte + ahead
                        }
                        On::AllToAll | On::ReduceScatter => {
                            let more = (n * others / LARGE_PIECE as f64).ceil().max(1.0) - 1.0;
                            hop * more + others * n * (2.0 * board_byte + combining)
                        }
                        On::AllGather => hop * more(LARGE_PIECE) + p * n * board_byte + n * copy,
                        _ => {
                            hop * LOOK * more(PIECE) + others * n * (board_byte + combining) + ahead
                        }
                    }
            }
            Algorithm::Flat => match operation {
                On::Broadcast => others * overhead + send(n),
                On::Scatter => others * (overhead + n * byte) + message,
                On::Gather => message + others * (2.0 * overhead + n * byte),
                On::AllToAll | On::AllGather | On::ReduceScatter => {
                    message + others * (2.0 * overhead + n * (whole + combining)) + n * copy
                }
                _ => message + others * (2.0 * overhead + n * (byte + combining)),
            },
            Algorithm::Slices => {
                let part = n / p;
                2.0 * message
                    + others * (4.0 * overhead + part * (2.0 * byte + combining))
                    + part * byte
            }
            Algorithm::Tree => match operation {
                On::Gather | On::Scatter => levels * message + others * n * byte + p * n * copy,
                _ => levels * (send(n) + n * combining),
            },
            Algorithm::Chain => {
                let segments = (n / SEGMENT as f64).ceil().max(1.0);
                (others + segments - 1.0) * (send(n / segments) + n / segments * combining)
            }
            Algorithm::ScatterAllGather => {
                (others + levels) * message + 2.0 * n * byte * others / p
            }
            Algorithm::RecursiveDoubling => levels * (send_whole(n) + n * combining),
            Algorithm::Rabenseifner => {
                2.0 * levels * message + (2.0 * whole + combining) * n * others / p
            }
            Algorithm::Ring => match operation {
                On::AllGather => others * send_whole(n) + n * copy,
                On::ReduceScatter => others * (send_whole(n) + n * combining) + p * n * copy,
                _ => 2.0 * others * message + (2.0 * byte + combining) * n * others / p,
            },
            Algorithm::Bruck => match operation {
                On::AllGather => levels * message + others * n * whole + (p + 1.0) * n * copy,
                _ => levels * (message + n * p / 2.0 * byte * 2.0),
            },
            Algorithm::Pairwise => match operation {
                On::ReduceScatter => others * (send_whole(n) + n * combining),
                _ => others * (send_whole(n) + overhead) + n * copy,
            },
            Algorithm::Dissemination => levels * message,
            // Chosen by who has nodes, not by this.
            Algorithm::Hierarchical => 0.0,
        }
    }

    /// The algorithm that should cost least, of those that the group can use.
    pub fn best(
        &self,
        group: &Group,
        operation: Operator,
        bytes: usize,
        commutes: bool,
    ) -> Algorithm {
        let cost = |algorithm: &Algorithm| self.cost(operation, *algorithm, group.size(), bytes);
        let candidates = Algorithm::ALL
            .into_iter()
            .filter(|&algorithm| group.can(operation, algorithm, bytes, commutes));
        let best = candidates.min_by(|one, other| cost(one).total_cmp(&cost(other)));
        best.unwrap_or(Algorithm::Flat)
    }
}

/// The least, in nanoseconds: what disturbs a measurement makes it longer.
fn least(times: &[Duration]) -> f64 {
    times
        .iter()
        .min()
        .map_or(0.0, |time| time.as_nanos() as f64)
}

/// Bytes of a segment of a large vector: what is copied while the next is on its way.
pub(crate) const SEGMENT: usize = 64 << 10;

/// Powers of two that a length can be of.
const CLASSES: usize = 48;

/// What was chosen for each operation, by the power of two of the length.
pub(crate) struct Choices([[[Cell<Option<Algorithm>>; CLASSES]; 2]; Operator::ALL.len()]);

impl Default for Choices {
    fn default() -> Self {
        Self(std::array::from_fn(|_| {
            std::array::from_fn(|_| std::array::from_fn(|_| Cell::new(None)))
        }))
    }
}

impl Choices {
    #[inline]
    pub(crate) fn of(
        &self,
        group: &Group,
        operation: Operator,
        bytes: usize,
        commutes: bool,
    ) -> Algorithm {
        let class = ((usize::BITS - bytes.leading_zeros()) as usize).min(CLASSES - 1);
        let place = &self.0[operation as usize][usize::from(commutes)][class];
        let chosen = place.get().unwrap_or_else(|| {
            // The least of its class stands for the others.
            let least = if class == 0 { 0 } else { 1 << (class - 1) };
            let best = group.model.best(group, operation, least, commutes);
            place.set(Some(best));
            best
        });
        if chosen == Algorithm::Board
            && operation.operand_bytes(bytes, group.size()) > board::OPERAND_MAX
        {
            return group.model.best(group, operation, bytes, commutes);
        }
        chosen
    }
}
