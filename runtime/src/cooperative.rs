//! Programs of more ranks than executors, which share their threads as futures.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Instant,
};

use collectives::{Engine, Group, Part, cooperate};
use transport::{Address, Arena, Fabric, Rank};

use crate::{
    Env, Error,
    env::{self, taking_part},
    executor::{Means, catching},
};

/// The least bytes of a rank's arena.
const ARENA_BYTES_MIN: u64 = 1 << 20;

impl Env {
    /// Calls `program` for `ranks` ranks on every executor of this worker, with the group of all of them on all workers,
    /// and waits until all calls are over. As [`bsp`](Self::bsp), but with more ranks than executors: those of one
    /// executor share its thread as futures, and while one awaits, the next goes on. That is much quicker
    /// than ranks that are threads or processes and share a core.
    ///
    /// A rank awaits its operations: to [wait](collectives::Operation::wait) for one is an error, because the others
    /// would not go on. Rank *r* is on executor *r* / `ranks`, and each has its own links, and its part of the arena
    /// of an executor, as long as the call lasts. Gives what this worker's ranks returned, in their order. All workers
    /// have to call this, with the same number of ranks.
    ///
    /// ```
    /// use updraft::{collectives::op::Sum, prelude::*};
    ///
    /// let sums = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     env.bsp_cooperative(4, async |world: &Group| {
    ///         let mut sum = [world.rank() as u64];
    ///         world.all_reduce(&mut sum, Sum).await?;
    ///         Ok(sum[0])
    ///     })
    /// })?;
    /// assert_eq!(sums, [28; 8]);
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What went wrong first, as far as can be told: [`Error::Config`] for no ranks, or more than the memory of an executor
    /// has room for. After an error the executors do nothing more.
    pub fn bsp_cooperative<R: Send + 'static>(
        &mut self,
        ranks: u32,
        program: impl AsyncFn(&Group) -> Result<R, Error> + Send + Sync + 'static,
    ) -> Result<Vec<R>, Error> {
        let all = ranks.checked_mul(self.ranks());
        if ranks == 0 || all.is_none() {
            let reason = format!("{ranks} ranks on each executor make no sense");
            return Err(Error::Config { reason });
        }
        self.in_groups(move |engine, means| {
            taking_part(engine, || share(engine, means, ranks, &program))
        })
    }
}

/// Runs `program` for `ranks` ranks on this thread.
fn share<R>(
    host: &Engine,
    means: &Means,
    ranks: u32,
    program: &impl AsyncFn(&Group) -> Result<R, Error>,
) -> Result<Vec<(Rank, R)>, Error> {
    let hosts = host.block_on(host.world())?;
    let engines = engines(&hosts, means, ranks)?;
    let (ended, met) = (Cell::new(0), Cell::new(Ok(())));
    let results = RefCell::new(Vec::new());
    let part = |engine: &Engine| {
        let engine = engine.clone();
        let (ended, results) = (&ended, &results);
        async move {
            let rank = engine.rank();
            let result = unwinding(rank, take_part(&engine, program)).await;
            results.borrow_mut().push((rank, result));
            ended.set(ended.get() + 1);
        }
    };
    let mut parts: Vec<(Engine, Part<'_, ()>)> = Vec::new();
    for engine in &engines {
        parts.push((engine.clone(), Box::pin(part(engine))));
    }
    // The executor's own rank goes on beside them, and has none leave before all are done everywhere: they may have to be
    // asked something.
    parts.push((
        host.clone(),
        Box::pin(async {
            poll_fn(|_| match ended.get() == ranks {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
            met.set(hosts.barrier().await);
        }),
    ));
    cooperate(parts)?;
    // What a rank says of itself goes before what the others say of it.
    let mut done = Vec::new();
    let mut failed: Option<Error> = None;
    for (rank, result) in results.into_inner() {
        match result {
            Ok(result) => done.push((rank, result)),
            Err(error) => {
                if failed.as_ref().is_none_or(Error::is_consequence) {
                    failed = Some(error);
                }
            }
        }
    }
    match failed {
        Some(error) => Err(error),
        None => {
            met.into_inner()?;
            Ok(done)
        }
    }
}

/// What makes the operations of the ranks on this thread go on, once they know where all others are.
fn engines(hosts: &Group, means: &Means, ranks: u32) -> Result<Vec<Engine>, Error> {
    let arena_bytes = (means.arena_bytes / u64::from(ranks)) & !4095;
    if arena_bytes < ARENA_BYTES_MIN {
        let reason = format!(
            "{ranks} ranks on an executor need at least {} bytes of arena, not {}",
            u64::from(ranks) * ARENA_BYTES_MIN,
            means.arena_bytes
        );
        return Err(Error::Config { reason });
    }
    let make = |index: u32| {
        let links = transport::Config {
            rank: means.links.rank * ranks + index,
            size: means.links.size * ranks,
            ..means.links.clone()
        };
        Ok(Fabric::new(links, Arena::new(&means.ledger, arena_bytes)?)?)
    };
    let mut fabrics = (0..ranks).map(make).collect::<Result<Vec<_>, Error>>()?;
    let addresses = fabrics.iter().filter_map(Fabric::address);
    let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    let all = hosts.all_gather_values(addresses).wait()?;
    let book = all.iter().flatten().map(|text| text.parse());
    let book: Vec<Address> = book.collect::<Result<_, transport::Error>>()?;
    for fabric in &mut fabrics {
        fabric.join(&book)?;
    }
    let (spin, started) = (means.links.spin, Instant::now());
    let engines = fabrics.into_iter().map(|fabric| {
        let fabric = Rc::new(RefCell::new(fabric));
        let engine = Engine::new(fabric, spin, move || started.elapsed());
        means.controller.may_end(&engine);
        engine
    });
    Ok(engines.collect())
}

/// The program of one rank.
async fn take_part<R>(
    engine: &Engine,
    program: &impl AsyncFn(&Group) -> Result<R, Error>,
) -> Result<R, Error> {
    let part = env::Part(engine);
    let result = async {
        let world = engine.world().await?;
        program(&world).await
    };
    part.end(result.await)
}

/// What `future` gives; a panic in it is an error of `rank`, and none of the others on its thread.
async fn unwinding<R>(
    rank: Rank,
    future: impl Future<Output = Result<R, Error>>,
) -> Result<R, Error> {
    let mut future = pin!(future);
    poll_fn(
        |context| match catching(rank, || Ok(future.as_mut().poll(context))) {
            Ok(poll) => poll,
            Err(error) => Poll::Ready(Err(error)),
        },
    )
    .await
}
