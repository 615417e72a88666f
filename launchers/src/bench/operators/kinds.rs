//! What can be measured: operators, and the records they are given.

use clap::ValueEnum;

use super::rows::Row;

/// An operator, in one of its variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Operator {
    ExchangeByHash,
    ExchangeByRange,
    RoundRobin,
    Rebalance,
    Direct,
    Broadcast,
    Gather,
    Union,
    Distinct,
    Sort,
    TopN,
    Take,
    Count,
    Aggregate,
    Reduce,
    AllReduce,
    CrossJoin,
    ExchangeByKey,
    ReduceByKey,
    AggregateByKey,
    GroupByKey,
    GroupByKeySorted,
    SortByKey,
    Cogroup,
    Join,
    LeftJoin,
    RightJoin,
    FullJoin,
    SemiJoin,
    AntiJoin,
    MergeJoin,
    MergeLeftJoin,
    MergeRightJoin,
    MergeFullJoin,
    MergeSemiJoin,
    MergeAntiJoin,
}

impl Operator {
    /// Whether its records have to be pairs of a key and a value.
    pub(crate) fn needs_pairs(self) -> bool {
        self >= Self::ExchangeByKey
    }

    /// Records of the second stream that it reads, beside so many of the first.
    pub(crate) fn others(self, records: u64) -> u64 {
        match self {
            Self::CrossJoin => CROSS_ROWS,
            Self::Cogroup => records / JOIN_SHARE,
            _ if self >= Self::Join => records / JOIN_SHARE,
            _ => 0,
        }
    }

    /// What the command line calls it.
    pub(crate) fn name(self) -> String {
        name(self)
    }
}

/// Rows on the right side of a cross join.
const CROSS_ROWS: u64 = 8;
/// Rows on the left side of another join, to one on the right.
const JOIN_SHARE: u64 = 10;
/// How many records the operators give that give a number of them.
pub(crate) const SOME: usize = 100;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordType {
    /// A number of 64 bits, which is the key
    U64,
    /// Two of them, a key and a value
    Pair,
    /// A text of 16 letters, which is the key, and a number
    Text,
}

impl RecordType {
    /// Bytes that a record has where it is written.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::U64 => u64::BYTES,
            Self::Pair => <(u64, u64)>::BYTES,
            Self::Text => <(String, u64)>::BYTES,
        }
    }

    pub(crate) fn name(self) -> String {
        name(self)
    }
}

fn name(value: impl ValueEnum) -> String {
    let possible = value.to_possible_value();
    possible.map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_and_cogroups_read_two_streams_of_pairs() {
        for &operator in Operator::value_variants() {
            let name = operator.name();
            let joins = name.ends_with("-join") || name == "join" || name == "cogroup";
            assert_eq!(operator.others(100) > 0, joins, "{name}");
            let pairs = name.contains("key") || joins && name != "cross-join";
            assert_eq!(operator.needs_pairs(), pairs, "{name}");
        }
    }
}
