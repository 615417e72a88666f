//! What operations allocate: those that were planned nothing, once they have been run.

#[allow(dead_code, reason = "shared with the tests of the operations")]
#[path = "collectives/harness.rs"]
mod harness;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use collectives::{Error, Group, op::Sum};
use transport::Transport;

use harness::{Program, threads};

/// Counts what the threads of a test allocate, each its own.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // A thread that ends may have lost its counters.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    let _ = BYTES.try_with(|count| count.set(count.get() + bytes));
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: what is asked of us is asked of it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: it came from there.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: it came from there, and what is asked of us is asked of it.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Elements that fit on a board, that do not, and that take several segments.
const LENGTHS: [usize; 3] = [4, 1000, 100_000];
/// Runs that are counted together, and how often that is done.
const RUNS: usize = 20;
const COUNTS: usize = 6;

/// The least allocations of so many runs of `operation`. The others may have had to make room for more messages at a time
/// than ever before, or to ask a late member what it does.
async fn allocations(
    group: &Group,
    mut operation: impl AsyncFnMut() -> Result<(), Error>,
) -> Result<usize, Error> {
    let meet = group.plan_all_reduce::<u64, _>(1, Sum).await?;
    let mut least = usize::MAX;
    for _ in 0..COUNTS {
        let before = ALLOCATIONS.get();
        for _ in 0..RUNS {
            operation().await?;
            // Nobody is further ahead in one run than in another.
            meet.run(&mut [1]).await?;
        }
        least = least.min(ALLOCATIONS.get() - before);
    }
    Ok(least)
}

macro_rules! count {
    ($counts:ident, $group:ident, $name:expr, $run:expr) => {
        let count = allocations(&$group, async || $run.await).await?;
        $counts.push(($name, count));
    };
}

fn planned(group: Group) -> Program<Vec<(&'static str, usize)>> {
    Box::pin(async move {
        let size = group.size();
        let mut counts = Vec::new();
        for len in LENGTHS {
            let mut data = vec![1.0f64; len];
            let mut all = vec![1.0f64; len * size];
            let mut into = vec![1.0f64; len * size];
            let plan = group.plan_broadcast(size - 1, len).await?;
            count!(counts, group, "broadcast", plan.run(&mut data));
            let plan = group.plan_reduce(0, len, Sum).await?;
            count!(counts, group, "reduce", plan.run(&mut data));
            let plan = group.plan_all_reduce(len, Sum).await?;
            count!(counts, group, "all_reduce", plan.run(&mut data));
            let plan = group.plan_scan(len, Sum).await?;
            count!(counts, group, "scan", plan.run(&mut data));
            let plan = group.plan_exscan(len, Sum).await?;
            count!(counts, group, "exscan", plan.run(&mut data));
            let plan = group.plan_reduce_scatter(len, Sum).await?;
            count!(
                counts,
                group,
                "reduce_scatter",
                plan.run_into(&all, &mut data)
            );
            let plan = group.plan_gather(0, len).await?;
            count!(counts, group, "gather", plan.run_into(&data, &mut all));
            let plan = group.plan_scatter(0, len).await?;
            count!(counts, group, "scatter", plan.run_into(&all, &mut data));
            let plan = group.plan_all_gather(len).await?;
            count!(counts, group, "all_gather", plan.run_into(&data, &mut all));
            let plan = group.plan_all_to_all(len).await?;
            count!(counts, group, "all_to_all", plan.run_into(&all, &mut into));
        }
        Ok(counts)
    })
}

#[test]
fn operations_that_were_planned_allocate_nothing() {
    let before = ALLOCATIONS.get();
    drop(vec![1u8]);
    assert_eq!(ALLOCATIONS.get() - before, 1, "allocations are not counted");
    for size in [2, 4] {
        for (rank, counts) in threads(Transport::Shm, size, planned)
            .into_iter()
            .enumerate()
        {
            for (index, (name, count)) in counts.unwrap().into_iter().enumerate() {
                let len = LENGTHS[index / 10];
                assert_eq!(count, 0, "{name} of {len} at rank {rank} of {size}");
            }
        }
    }
}

/// A buffer that all members see, of which none has a copy.
fn seen(group: Group) -> Program<usize> {
    Box::pin(async move {
        let bytes = 4 << 20;
        let before = BYTES.get();
        for _ in 0..4 {
            let mut loan = group.loan(bytes).await?;
            loan.fill(3);
            let all = group.all_gather_buffers(loan).await?;
            assert!(
                all.iter()
                    .all(|buffer| buffer.len() == bytes && buffer[bytes - 1] == 3)
            );
            drop(all);
            group.barrier().await?;
        }
        Ok(BYTES.get() - before)
    })
}

#[test]
fn buffers_are_not_copied_to_the_heap() {
    for bytes in threads(Transport::Shm, 3, seen) {
        assert!(bytes.unwrap() < 1 << 16);
    }
}
