//! The numbers of runs.

/// The run that a message belongs to. Runs are numbered alike on all ranks.
pub fn run_of(tag: u64) -> u32 {
    (tag >> 32) as u32
}

/// The number of the run that is so many after that of this number. The highest bits are left to messages that are no
/// run's.
pub fn run_after(number: u32, runs: u32) -> u32 {
    let counted = if is_operators(number) { ROUNDS } else { RUNS };
    number & !counted | number.wrapping_add(runs) & counted
}

/// The numbers of runs of jobs.
const RUNS: u32 = u32::MAX >> 2;

/// Tells the runs of operators that a program drives from those of jobs.
const OPERATORS: u32 = RUNS + 1;

/// Rounds of an operator that can be told apart; what is above them says which operator.
const ROUNDS: u32 = 0xff;

/// The first run of an operator that a program drives, by its number.
pub(crate) fn of_operator(number: u32) -> u32 {
    OPERATORS | number.wrapping_mul(ROUNDS + 1) & RUNS
}

/// Whether a run is of an operator that a program drives.
pub(crate) fn is_operators(run: u32) -> bool {
    run & OPERATORS != 0
}

/// Whether two runs are of the same operator.
pub(crate) fn same_operator(one: u32, other: u32) -> bool {
    (one ^ other) & !ROUNDS == 0
}

/// Whether the operator of a run comes after the first `made`.
pub(crate) fn is_to_come(run: u32, made: u32) -> bool {
    run.wrapping_sub(of_operator(made)) & RUNS <= RUNS / 2
}
