//! Operations that are planned once and run often: MPI's persistent collectives.

use std::{fmt, future::Future, marker::PhantomData};

use crate::{
    Algorithm, Element, Error, Group, Operation, Operator, all_gather, all_reduce, all_to_all,
    barrier, broadcast, fate::Signature, gather, op::Op, reduce, reduce_scatter, scan,
};

/// An operation that all members have agreed on, with its lengths, its root, its function and its algorithm: it can be run any
/// number of times, by all members in the same order, and after the first time it allocates nothing on the heap, unless it
/// goes by [nodes](Algorithm::Hierarchical).
///
/// ```
/// use collectives::op::Sum;
/// # use collectives::Engine;
/// # use transport::{Arena, Fabric, Ledger};
/// # let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
/// # let engine = Engine::simulated(fabric);
/// # engine.block_on(async {
/// # let group = engine.world().await?;
///
/// let residual = group.plan_all_reduce::<f64, _>(1, Sum).await?;
/// let mut sum = [1.0];
/// while sum[0] > 0.1 {
///     sum[0] /= 2.0;
///     residual.run(&mut sum).await?;
/// }
/// # Ok(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Persistent<'g, T, F> {
    group: &'g Group,
    signature: Signature,
    algorithm: Algorithm,
    /// Elements that it takes and that it leaves, where they matter.
    from: Option<usize>,
    into: Option<usize>,
    function: F,
    elements: PhantomData<fn(&mut [T])>,
}

impl<T, F: AsyncFn(&mut [T]) -> Result<(), Error>> Persistent<'_, T, F> {
    /// Runs the operation once, on `data`, as the method of the group does whose name it has.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when `data` is not as long as planned; as that method.
    pub fn run(&self, data: &mut [T]) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.group.operation(async move {
            self.check(self.into, data.len())?;
            (self.function)(data).await
        })
    }
}

impl<T, F: AsyncFn(&[T], &mut [T]) -> Result<(), Error>> Persistent<'_, T, F> {
    /// Runs the operation once, from `from` to `into`, as the method of the group does whose name it has.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when one of them is not as long as planned; as that method.
    pub fn run_into(
        &self,
        from: &[T],
        into: &mut [T],
    ) -> Operation<'_, impl Future<Output = Result<(), Error>>> {
        self.group.operation(async move {
            self.check(self.from, from.len())?;
            self.check(self.into, into.len())?;
            (self.function)(from, into).await
        })
    }
}

impl<T, F> Persistent<'_, T, F> {
    /// The algorithm that carries it out: the one that was [forced](Group::force) when it was planned, or else the one that the
    /// cost model chose.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn check(&self, planned: Option<usize>, len: usize) -> Result<(), Error> {
        match planned {
            Some(planned) if planned != len => {
                let reason = format!("{len} elements instead of the {planned} that were planned");
                Err(self.group.argument(self.signature.call, reason))
            }
            _ => Ok(()),
        }
    }
}

impl<T, F> fmt::Debug for Persistent<'_, T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Persistent")
            .field("group", self.group)
            .field("operation", &self.signature.to_string())
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Carries out a call by boards or by messages.
macro_rules! carry_out {
    ($group:expr, $signature:expr, $algorithm:expr, ($call:ident, $board:ident), $on_board:expr, $by_messages:expr) => {
        if $algorithm == Algorithm::Board {
            let (call, $board) = $group.begin_now($signature)?;
            let $call = &call;
            let result = $on_board.await;
            call.end(result)
        } else {
            let call = $group.begin($signature.by($algorithm)).await?;
            let $call = &call;
            let result = $by_messages.await;
            call.end(result)
        }
    };
}

/// What makes a plan to run a function of vectors of elements.
macro_rules! planned {
    ($element:ident, $($function:tt)+) => {
        Operation<
            '_,
            impl Future<
                Output = Result<
                    Persistent<'_, $element, impl $($function)+ -> Result<(), Error>>,
                    Error,
                >,
            >,
        >
    };
}

#[allow(
    clippy::type_complexity,
    reason = "the parts of what a plan is have no names"
)]
impl Group {
    /// Plans a [`broadcast`](Self::broadcast) of `len` elements, to be [run](Persistent::run).
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_broadcast<T: Element>(
        &self,
        root: usize,
        len: usize,
    ) -> planned!(T, AsyncFn(&mut [T])) {
        self.operation(async move {
            self.check_member("plan_broadcast", root)?;
            let signature = Signature::of::<T>("planned broadcast", Some(len)).with_root(root);
            let algorithm = self.choose(Operator::Broadcast, len * size_of::<T>(), true);
            let function = async move |data: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    broadcast::on_board(call, board, root, data),
                    broadcast::by_messages(call, algorithm, root, data)
                )
            };
            self.plan(signature, algorithm, None, Some(len), function)
                .await
        })
    }

    /// Plans a [`reduce`](Self::reduce) of `len` elements, to be [run](Persistent::run).
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_reduce<T: Element, O: Op<T>>(
        &self,
        root: usize,
        len: usize,
        op: O,
    ) -> planned!(T, AsyncFn(&mut [T])) {
        self.operation(async move {
            self.check_member("plan_reduce", root)?;
            let signature = Signature::of::<T>("planned reduce", Some(len))
                .with_root(root)
                .with_op(op.name());
            let algorithm =
                self.choose(Operator::Reduce, len * size_of::<T>(), op.is_commutative());
            let function = async move |data: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    reduce::on_board(call, board, false, root, data, &op),
                    reduce::by_messages(call, algorithm, root, data, &op)
                )
            };
            self.plan(signature, algorithm, None, Some(len), function)
                .await
        })
    }

    /// Plans an [`all_reduce`](Self::all_reduce) of `len` elements, to be [run](Persistent::run).
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_all_reduce<T: Element, O: Op<T>>(
        &self,
        len: usize,
        op: O,
    ) -> planned!(T, AsyncFn(&mut [T])) {
        self.operation(async move {
            let signature = Signature::of::<T>("planned all_reduce", Some(len)).with_op(op.name());
            let algorithm = self.choose(
                Operator::AllReduce,
                len * size_of::<T>(),
                op.is_commutative(),
            );
            let function = async move |data: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    all_reduce::on_board(call, board, false, data, &op),
                    all_reduce::by_messages(call, algorithm, data, &op)
                )
            };
            self.plan(signature, algorithm, None, Some(len), function)
                .await
        })
    }

    /// Plans a [`scan`](Self::scan) of `len` elements, to be [run](Persistent::run).
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_scan<T: Element, O: Op<T>>(
        &self,
        len: usize,
        op: O,
    ) -> planned!(T, AsyncFn(&mut [T])) {
        self.plan_prefixes("planned scan", len, op, true)
    }

    /// Plans an [`exscan`](Self::exscan) of `len` elements, to be [run](Persistent::run).
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_exscan<T: Element, O: Op<T>>(
        &self,
        len: usize,
        op: O,
    ) -> planned!(T, AsyncFn(&mut [T])) {
        self.plan_prefixes("planned exscan", len, op, false)
    }

    fn plan_prefixes<T: Element, O: Op<T>>(
        &self,
        name: &'static str,
        len: usize,
        op: O,
        with_own: bool,
    ) -> planned!(T, AsyncFn(&mut [T])) {
        self.operation(async move {
            let signature = Signature::of::<T>(name, Some(len)).with_op(op.name());
            let algorithm = self.choose(Operator::Scan, len * size_of::<T>(), op.is_commutative());
            let function = async move |data: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    scan::on_board(call, board, false, data, &op, with_own),
                    scan::by_messages(call, algorithm, data, &op, with_own)
                )
            };
            self.plan(signature, algorithm, None, Some(len), function)
                .await
        })
    }

    /// Plans a [`reduce_scatter`](Self::reduce_scatter) to blocks of `len` elements, to be [run](Persistent::run_into).
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_reduce_scatter<T: Element, O: Op<T>>(
        &self,
        len: usize,
        op: O,
    ) -> planned!(T, AsyncFn(&[T], &mut [T])) {
        self.operation(async move {
            let signature =
                Signature::of::<T>("planned reduce_scatter", Some(len)).with_op(op.name());
            let algorithm = self.choose(
                Operator::ReduceScatter,
                len * size_of::<T>(),
                op.is_commutative(),
            );
            let block = move |member: usize| member * len..(member + 1) * len;
            let function = async move |from: &[T], into: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    reduce_scatter::on_board(
                        call,
                        board,
                        false,
                        from,
                        self.rank() * len,
                        into,
                        &op
                    ),
                    reduce_scatter::by_messages(call, algorithm, from, into, &op, &block)
                )
            };
            self.plan(
                signature,
                algorithm,
                Some(len * self.size()),
                Some(len),
                function,
            )
            .await
        })
    }

    /// Plans a [`gather`](Self::gather) of blocks of `len` elements, to be [run](Persistent::run_into).
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_gather<T: Element>(
        &self,
        root: usize,
        len: usize,
    ) -> planned!(T, AsyncFn(&[T], &mut [T])) {
        self.operation(async move {
            self.check_member("plan_gather", root)?;
            let signature = Signature::of::<T>("planned gather", Some(len)).with_root(root);
            let algorithm = self.choose(Operator::Gather, len * size_of::<T>(), true);
            let all = (self.rank() == root).then_some(len * self.size());
            let function = async move |from: &[T], into: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    gather::gather_on_board(call, board, false, root, from, into),
                    gather::gather(call, algorithm, root, from, into)
                )
            };
            self.plan(signature, algorithm, Some(len), all, function)
                .await
        })
    }

    /// Plans a [`scatter`](Self::scatter) of blocks of `len` elements, to be [run](Persistent::run_into).
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_scatter<T: Element>(
        &self,
        root: usize,
        len: usize,
    ) -> planned!(T, AsyncFn(&[T], &mut [T])) {
        self.operation(async move {
            self.check_member("plan_scatter", root)?;
            let signature = Signature::of::<T>("planned scatter", Some(len)).with_root(root);
            let algorithm = self.choose(Operator::Scatter, len * size_of::<T>(), true);
            let all = (self.rank() == root).then_some(len * self.size());
            let function = async move |from: &[T], into: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    gather::scatter_on_board(call, board, root, from, into),
                    gather::scatter(call, algorithm, root, from, into)
                )
            };
            self.plan(signature, algorithm, all, Some(len), function)
                .await
        })
    }

    /// Plans an [`all_gather`](Self::all_gather) of blocks of `len` elements, to be [run](Persistent::run_into).
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_all_gather<T: Element>(&self, len: usize) -> planned!(T, AsyncFn(&[T], &mut [T])) {
        self.operation(async move {
            let signature = Signature::of::<T>("planned all_gather", Some(len));
            let algorithm = self.choose(Operator::AllGather, len * size_of::<T>(), true);
            let function = async move |from: &[T], into: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    all_gather::on_board(call, board, false, from, into),
                    all_gather::by_messages(call, algorithm, from, into)
                )
            };
            self.plan(
                signature,
                algorithm,
                Some(len),
                Some(len * self.size()),
                function,
            )
            .await
        })
    }

    /// Plans an [`all_to_all`](Self::all_to_all) of blocks of `len` elements, to be [run](Persistent::run_into).
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when members plan different operations; see [`Error`].
    pub fn plan_all_to_all<T: Element>(&self, len: usize) -> planned!(T, AsyncFn(&[T], &mut [T])) {
        self.operation(async move {
            let signature = Signature::of::<T>("planned all_to_all", Some(len));
            let algorithm = self.choose(Operator::AllToAll, len * size_of::<T>(), true);
            let function = async move |from: &[T], into: &mut [T]| {
                carry_out!(
                    self,
                    signature,
                    algorithm,
                    (call, board),
                    all_to_all::on_board(call, board, false, from, into),
                    all_to_all::by_messages(call, algorithm, from, into)
                )
            };
            self.plan(
                signature,
                algorithm,
                Some(len * self.size()),
                Some(len * self.size()),
                function,
            )
            .await
        })
    }

    /// Makes sure that all members plan the same.
    async fn plan<T, F>(
        &self,
        signature: Signature,
        algorithm: Algorithm,
        from: Option<usize>,
        into: Option<usize>,
        function: F,
    ) -> Result<Persistent<'_, T, F>, Error> {
        let call = self.begin(signature).await?;
        let result = barrier::dissemination(&call).await;
        call.end(result)?;
        Ok(Persistent {
            group: self,
            signature,
            algorithm,
            from,
            into,
            function,
            elements: PhantomData,
        })
    }
}
