//! What is to be reached, as a table: a target joins with one entry.

use super::super::{limits::Kind, rank::Measure};

/// How much faster, or at most how much slower, than what it is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// Our time divided by theirs.
    AtMost(f64),
    /// Our speed divided by theirs.
    AtLeast(f64),
}

impl Bound {
    /// The ratio of two times a message takes, as this bound counts.
    pub(crate) fn ratio(self, ours_ns: f64, theirs_ns: f64) -> f64 {
        match self {
            Self::AtMost(_) => ours_ns / theirs_ns,
            Self::AtLeast(_) => theirs_ns / ours_ns,
        }
    }

    pub(crate) fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }

    /// Whether the first ratio is further from being met.
    pub(crate) fn is_worse(self, ratio: f64, than: f64) -> bool {
        match self {
            Self::AtMost(_) => ratio > than,
            Self::AtLeast(_) => ratio < than,
        }
    }

    /// Decimal places of a ratio that show on which side of the bound it is.
    pub(crate) fn places(self, ratio: f64) -> usize {
        let (Self::AtMost(bound) | Self::AtLeast(bound)) = self;
        match (ratio - bound).abs() {
            _ if ratio < 0.01 => 4,
            distance if distance < 0.005 => 4,
            _ => 2,
        }
    }

    pub(crate) fn text(self) -> String {
        let (sign, bound) = match self {
            Self::AtMost(most) => ("<=", most),
            Self::AtLeast(least) => (">=", least),
        };
        // One that is a small share of something needs more digits.
        if bound < 0.01 {
            format!("{sign} {bound:.3}")
        } else {
            format!("{sign} {bound:.2}")
        }
    }
}

/// How many ranks there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ranks {
    /// A pair, each on a core of its own.
    Two,
    /// So many for each core.
    PerCore(u32),
    /// The same; ours share one thread on each core as futures.
    Cooperative(u32),
}

impl Ranks {
    /// How many of ours are on one thread, if they are futures.
    pub(crate) fn cooperative(self) -> Option<u32> {
        match self {
            Self::Cooperative(ranks) => Some(ranks),
            _ => None,
        }
    }
}

/// One way to measure. Targets that share it share its runs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trial {
    /// What plots call it.
    pub(crate) name: &'static str,
    pub(crate) measure: Measure,
    pub(crate) ranks: Ranks,
    /// What `--transport` is.
    pub(crate) transport: &'static str,
    pub(crate) touch: bool,
    /// Whether the bare hand-over of each size is measured as well.
    pub(crate) floor: bool,
    pub(crate) sizes: &'static [usize],
}

/// What ours is compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Against {
    /// The best of the MPI libraries that are installed, at each size; where there are more ranks than cores,
    /// of those that can be told to yield.
    Mpi,
    /// The best of those and of `ucx_perftest`, which does not touch what it sends.
    MpiAndUcx,
    /// The bare hand-over of a cache line beside it.
    Hop,
    /// The bare hand-over of as many bytes beside it.
    Floor,
    /// Ours, with messages of so many bytes.
    Size(usize),
    /// Bare sockets.
    Bare(Kind),
    /// `ib_send_lat` or `ib_write_bw` over the same device.
    Perftest(&'static str),
    /// Peers that are crates, systems or programs of several processes, by what a bench of the sources found.
    Bench(&'static str),
    /// Nothing: the figure itself is bounded.
    Itself,
}

/// One target, or one of its parts.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) trial: &'static Trial,
    /// The sizes that count, of those the trial measures.
    pub(crate) sizes: &'static [usize],
    pub(crate) against: Against,
    pub(crate) bound: Bound,
    /// What tells its points from those of another part; where a bench measures, what it calls them.
    pub(crate) part: &'static str,
}

impl Target {
    /// Whether `text` names it, or its part: `P10`, or `P10:all_reduce`.
    pub(crate) fn is_called(&self, text: &str) -> bool {
        match text.split_once(':') {
            Some((name, part)) => name == self.name && part == self.part,
            None => text == self.name,
        }
    }
}

const KI: usize = 1 << 10;
const MI: usize = 1 << 20;
/// A small message that is a loan: 64 bytes travel beside the descriptor, which is another path.
const SMALL_LOAN: usize = 128;
const ALL_SIZES: &[usize] = &[8, 64, KI, 8 * KI, 64 * KI, MI, 4 * MI];

const LATENCY: Trial = Trial {
    name: "latency",
    measure: Measure::Latency,
    ranks: Ranks::Two,
    transport: "shm",
    touch: true,
    floor: true,
    sizes: ALL_SIZES,
};
const LOAN: Trial = Trial {
    name: "loan",
    touch: false,
    floor: false,
    sizes: &[SMALL_LOAN, 4 * MI],
    ..LATENCY
};
const RATE: Trial = Trial {
    name: "rate",
    measure: Measure::Stream,
    floor: false,
    sizes: &[64, KI],
    ..LATENCY
};
const CROWD_OF_2: Trial = Trial {
    name: "crowd-of-2",
    ranks: Ranks::PerCore(2),
    floor: false,
    sizes: &[8],
    ..LATENCY
};
const CROWD_OF_4: Trial = Trial {
    name: "crowd-of-4",
    ranks: Ranks::PerCore(4),
    ..CROWD_OF_2
};
const FUTURES_OF_2: Trial = Trial {
    name: "futures-of-2",
    ranks: Ranks::Cooperative(2),
    ..CROWD_OF_2
};
const FUTURES_OF_4: Trial = Trial {
    name: "futures-of-4",
    ranks: Ranks::Cooperative(4),
    ..CROWD_OF_2
};
const IDLE: Trial = Trial {
    name: "idle",
    measure: Measure::Idle,
    floor: false,
    sizes: &[8],
    ..LATENCY
};
const TCP: Trial = Trial {
    name: "tcp",
    transport: "tcp",
    floor: false,
    sizes: &[8, 64, KI, 8 * KI, 64 * KI, MI],
    ..LATENCY
};
const TCP_STREAM: Trial = Trial {
    name: "tcp-stream",
    measure: Measure::Stream,
    sizes: &[MI],
    ..TCP
};
const RDMA: Trial = Trial {
    name: "rdma",
    transport: "rdma",
    sizes: &[8, 64, KI],
    ..TCP
};
const RDMA_STREAM: Trial = Trial {
    name: "rdma-stream",
    measure: Measure::Stream,
    sizes: &[64 * KI, MI],
    ..RDMA
};

/// Stands where a bench measures.
const BENCH: Trial = Trial {
    name: "bench",
    measure: Measure::Idle,
    ranks: Ranks::Two,
    transport: "shm",
    touch: true,
    floor: false,
    sizes: &[],
};

/// The trials of an operator: two ranks, and so many for each core.
struct Operators {
    pair: Trial,
    crowd_of_2: Trial,
    crowd_of_4: Trial,
    futures_of_2: Trial,
    futures_of_4: Trial,
}

macro_rules! operator {
    ($measure:ident, $name:literal, $pair:expr, $crowd:expr) => {
        Operators {
            pair: Trial {
                name: $name,
                measure: Measure::$measure,
                sizes: $pair,
                ..LATENCY
            },
            crowd_of_2: Trial {
                name: concat!($name, "-crowd-of-2"),
                measure: Measure::$measure,
                sizes: $crowd,
                ..CROWD_OF_2
            },
            crowd_of_4: Trial {
                name: concat!($name, "-crowd-of-4"),
                measure: Measure::$measure,
                sizes: $crowd,
                ..CROWD_OF_4
            },
            futures_of_2: Trial {
                name: concat!($name, "-futures-of-2"),
                measure: Measure::$measure,
                ..FUTURES_OF_2
            },
            futures_of_4: Trial {
                name: concat!($name, "-futures-of-4"),
                measure: Measure::$measure,
                ..FUTURES_OF_4
            },
        }
    };
}

/// Sizes at which an operator has to take half of what it takes elsewhere, and the others.
const HALVED: &[usize] = &[8, 64, 64 * KI, MI, 4 * MI];
const LESSENED: &[usize] = &[KI, 8 * KI];
const CROWD_HALVED: &[usize] = &[8, 64, 64 * KI, MI];
const CROWD_SIZES: &[usize] = &[8, 64, KI, 8 * KI, 64 * KI, MI];
const BARRIER: Operators = operator!(Barrier, "barrier", &[8], &[8]);
const BROADCAST: Operators = operator!(Broadcast, "broadcast", ALL_SIZES, CROWD_SIZES);
const REDUCE: Operators = operator!(Reduce, "reduce", ALL_SIZES, CROWD_SIZES);
const ALL_REDUCE: Operators = operator!(AllReduce, "all_reduce", ALL_SIZES, CROWD_SIZES);
const REDUCE_SCATTER: Operators =
    operator!(ReduceScatter, "reduce_scatter", ALL_SIZES, CROWD_SIZES);
const SCAN: Operators = operator!(Scan, "scan", ALL_SIZES, CROWD_SIZES);
const GATHER: Operators = operator!(Gather, "gather", ALL_SIZES, CROWD_SIZES);
const ALL_GATHER: Operators = operator!(AllGather, "all_gather", ALL_SIZES, CROWD_SIZES);
const ALL_TO_ALL: Operators = operator!(AllToAll, "all_to_all", ALL_SIZES, CROWD_SIZES);

macro_rules! target {
    ($name:literal $part:literal, $trial:ident $(. $ranks:ident)? $sizes:expr, $against:expr, $bound:expr) => {
        Target {
            name: $name,
            part: $part,
            trial: &$trial $(. $ranks)?,
            sizes: $sizes,
            against: $against,
            bound: $bound,
        }
    };
}

/// All targets, in the order in which they are printed.
pub(crate) const TARGETS: &[Target] = {
    use Against::{Bare, Bench, Floor, Hop, Itself, Mpi, MpiAndUcx, Perftest, Size};
    use Bound::{AtLeast, AtMost};
    &[
        target!("P1" "", LATENCY &[8, 64], Hop, AtMost(1.3)),
        target!("P2" "", LATENCY ALL_SIZES, Mpi, AtMost(0.7)),
        target!("P2" "bare", LATENCY ALL_SIZES, Floor, AtMost(1.2)),
        target!("P3" "loan", LOAN &[4 * MI], Size(SMALL_LOAN), AtMost(1.1)),
        target!("P3" "iceoryx2", BENCH &[], Bench("rings"), AtMost(0.4)),
        target!("P4" "", RATE &[64, KI], MpiAndUcx, AtLeast(1.5)),
        target!("P5" "single", BENCH &[], Bench("rings"), AtLeast(1.0)),
        target!("P5" "batched", BENCH &[], Bench("rings"), AtLeast(1.5)),
        target!("P6" "2 ranks a core", CROWD_OF_2 &[8], Mpi, AtMost(0.5)),
        target!("P6" "4 ranks a core", CROWD_OF_4 &[8], Mpi, AtMost(0.5)),
        target!("P6" "barrier, 2 ranks a core", BARRIER.crowd_of_2 &[8], Mpi, AtMost(0.5)),
        target!("P6" "barrier, 4 ranks a core", BARRIER.crowd_of_4 &[8], Mpi, AtMost(0.5)),
        target!("P6" "all_reduce, 2 ranks a core", ALL_REDUCE.crowd_of_2 &[8], Mpi, AtMost(0.5)),
        target!("P6" "all_reduce, 4 ranks a core", ALL_REDUCE.crowd_of_4 &[8], Mpi, AtMost(0.5)),
        target!("P6" "2 futures a core", FUTURES_OF_2 &[8], Mpi, AtMost(0.05)),
        target!("P6" "4 futures a core", FUTURES_OF_4 &[8], Mpi, AtMost(0.05)),
        target!("P6" "barrier by 2 futures a core", BARRIER.futures_of_2 &[8], Mpi, AtMost(0.05)),
        target!("P6" "barrier by 4 futures a core", BARRIER.futures_of_4 &[8], Mpi, AtMost(0.05)),
        target!("P6" "all_reduce by 2 futures a core", ALL_REDUCE.futures_of_2 &[8], Mpi, AtMost(0.05)),
        target!("P6" "all_reduce by 4 futures a core", ALL_REDUCE.futures_of_4 &[8], Mpi, AtMost(0.05)),
        target!("P7" "idle executor", IDLE &[], Itself, AtMost(0.005)),
        target!("P8" "", TCP TCP.sizes, Bare(Kind::Tcp), AtMost(1.15)),
        target!("P8" "stream", TCP_STREAM &[MI], Bare(Kind::TcpStream), AtLeast(0.95)),
        target!("P9" "", RDMA RDMA.sizes, Perftest("ib_send_lat"), AtMost(1.2)),
        target!("P9" "stream", RDMA_STREAM RDMA_STREAM.sizes, Perftest("ib_write_bw"), AtLeast(0.9)),
        target!("P10" "barrier", BARRIER.pair &[8], Mpi, AtMost(0.5)),
        target!("P10" "broadcast", BROADCAST.pair HALVED, Mpi, AtMost(0.5)),
        target!("P10" "broadcast", BROADCAST.pair LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "reduce", REDUCE.pair HALVED, Mpi, AtMost(0.5)),
        target!("P10" "reduce", REDUCE.pair LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_reduce", ALL_REDUCE.pair HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_reduce", ALL_REDUCE.pair LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "reduce_scatter", REDUCE_SCATTER.pair HALVED, Mpi, AtMost(0.5)),
        target!("P10" "reduce_scatter", REDUCE_SCATTER.pair LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "scan", SCAN.pair HALVED, Mpi, AtMost(0.5)),
        target!("P10" "scan", SCAN.pair LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "gather", GATHER.pair HALVED, Mpi, AtMost(0.5)),
        target!("P10" "gather", GATHER.pair LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_gather", ALL_GATHER.pair HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_gather", ALL_GATHER.pair LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_to_all", ALL_TO_ALL.pair HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_to_all", ALL_TO_ALL.pair LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "barrier, 2 ranks a core", BARRIER.crowd_of_2 &[8], Mpi, AtMost(0.5)),
        target!("P10" "broadcast, 2 ranks a core", BROADCAST.crowd_of_2 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "broadcast, 2 ranks a core", BROADCAST.crowd_of_2 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "reduce, 2 ranks a core", REDUCE.crowd_of_2 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "reduce, 2 ranks a core", REDUCE.crowd_of_2 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_reduce, 2 ranks a core", ALL_REDUCE.crowd_of_2 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_reduce, 2 ranks a core", ALL_REDUCE.crowd_of_2 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "reduce_scatter, 2 ranks a core", REDUCE_SCATTER.crowd_of_2 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "reduce_scatter, 2 ranks a core", REDUCE_SCATTER.crowd_of_2 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "scan, 2 ranks a core", SCAN.crowd_of_2 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "scan, 2 ranks a core", SCAN.crowd_of_2 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "gather, 2 ranks a core", GATHER.crowd_of_2 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "gather, 2 ranks a core", GATHER.crowd_of_2 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_gather, 2 ranks a core", ALL_GATHER.crowd_of_2 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_gather, 2 ranks a core", ALL_GATHER.crowd_of_2 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_to_all, 2 ranks a core", ALL_TO_ALL.crowd_of_2 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_to_all, 2 ranks a core", ALL_TO_ALL.crowd_of_2 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "barrier, 4 ranks a core", BARRIER.crowd_of_4 &[8], Mpi, AtMost(0.5)),
        target!("P10" "broadcast, 4 ranks a core", BROADCAST.crowd_of_4 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "broadcast, 4 ranks a core", BROADCAST.crowd_of_4 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "reduce, 4 ranks a core", REDUCE.crowd_of_4 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "reduce, 4 ranks a core", REDUCE.crowd_of_4 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_reduce, 4 ranks a core", ALL_REDUCE.crowd_of_4 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_reduce, 4 ranks a core", ALL_REDUCE.crowd_of_4 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "reduce_scatter, 4 ranks a core", REDUCE_SCATTER.crowd_of_4 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "reduce_scatter, 4 ranks a core", REDUCE_SCATTER.crowd_of_4 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "scan, 4 ranks a core", SCAN.crowd_of_4 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "scan, 4 ranks a core", SCAN.crowd_of_4 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "gather, 4 ranks a core", GATHER.crowd_of_4 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "gather, 4 ranks a core", GATHER.crowd_of_4 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_gather, 4 ranks a core", ALL_GATHER.crowd_of_4 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_gather, 4 ranks a core", ALL_GATHER.crowd_of_4 LESSENED, Mpi, AtMost(0.8)),
        target!("P10" "all_to_all, 4 ranks a core", ALL_TO_ALL.crowd_of_4 CROWD_HALVED, Mpi, AtMost(0.5)),
        target!("P10" "all_to_all, 4 ranks a core", ALL_TO_ALL.crowd_of_4 LESSENED, Mpi, AtMost(0.8)),
        target!("P11" "exchange", BENCH &[], Bench("operators"), AtLeast(1.5)),
        target!("P11" "exchange-processes", BENCH &[], Bench("operators"), AtLeast(3.0)),
        target!("P12" "", BENCH &[], Bench("rounds"), AtMost(0.3)),
        target!("P12" "over tcp", BENCH &[], Bench("rounds"), AtMost(0.5)),
        target!("P12" "again", BENCH &[], Bench("rounds"), AtMost(0.3)),
        target!("P13" "reduce", BENCH &[], Bench("operators"), AtLeast(2.0)),
        target!("P14" "systems", BENCH &[], Bench("wordcount"), AtMost(0.5)),
        target!("P14" "hand-written", BENCH &[], Bench("wordcount"), AtMost(1.15)),
        target!("P15" "in memory", BENCH &[], Bench("terasort"), AtMost(1.0)),
        target!("P15" "external, systems", BENCH &[], Bench("terasort"), AtMost(1.0)),
        target!("P15" "external", BENCH &[], Bench("terasort"), AtMost(1.25)),
        target!("P16" "join", BENCH &[], Bench("operators"), AtLeast(1.0)),
        target!("P16" "csv-join", BENCH &[], Bench("operators"), AtLeast(2.0)),
        target!("P16" "csv-group", BENCH &[], Bench("operators"), AtLeast(2.0)),
        target!("P17" "by hand", BENCH &[], Bench("loops"), AtMost(1.05)),
        target!("P17" "tset", BENCH &[], Bench("loops"), AtMost(1.05)),
        target!("P17" "MPI in C", BENCH &[], Bench("loops"), AtMost(1.0)),
        target!("P18" "tset-exchange", BENCH &[], Bench("operators"), AtMost(1.05)),
        target!("P18" "tset-reduce", BENCH &[], Bench("operators"), AtMost(1.05)),
        target!("P21" "one machine", BENCH &[], Bench("starting"), AtMost(0.05)),
        target!("P21" "256 workers", BENCH &[], Bench("starting"), AtMost(5.0)),
        target!("P21" "peers", BENCH &[], Bench("rounds"), AtMost(1.0)),
        target!("P22" "", BENCH &[], Bench("growth"), AtMost(1.15)),
        target!("P22" "program", BENCH &[], Bench("growth"), AtMost(1.15)),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_counts_only_what_its_trial_measures() {
        for target in TARGETS {
            for size in target.sizes {
                assert!(target.trial.sizes.contains(size), "{} {size}", target.name);
            }
            if let Against::Size(size) = target.against {
                assert!(target.trial.sizes.contains(&size));
            }
            assert!(target.against != Against::Floor || target.trial.floor);
        }
    }

    #[test]
    fn trials_of_one_name_are_one_trial() {
        for (one, other) in TARGETS
            .iter()
            .flat_map(|one| TARGETS.iter().map(move |other| (one, other)))
        {
            assert_eq!(one.trial == other.trial, one.trial.name == other.trial.name);
        }
    }

    #[test]
    fn a_bound_is_met_from_its_own_side() {
        let (most, least) = (Bound::AtMost(0.7), Bound::AtLeast(1.5));
        assert!(most.is_met(most.ratio(70.0, 100.0)) && !most.is_met(most.ratio(71.0, 100.0)));
        assert!(
            least.is_met(least.ratio(100.0, 150.0)) && !least.is_met(least.ratio(100.0, 149.0))
        );
        assert!(most.is_worse(0.8, 0.7) && least.is_worse(1.0, 1.5));
        assert_eq!(
            [most.text(), Bound::AtMost(0.005).text()],
            ["<= 0.70", "<= 0.005"]
        );
    }
}
