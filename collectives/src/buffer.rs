//! Collectives over whole buffers, which are written once, in memory lent by the group, and read in place: between
//! members that share memory nothing is copied.
//!
//! Every member may have as many bytes as it likes, and they may mean anything. So these are also MPI's operations over
//! vectors of different types and lengths, `MPI_Alltoallw` among them.

use transport::{Buffer, Loan};

use crate::{Error, Group, Operation, call::Call, fate::Signature, tag};

impl Group {
    /// Lends `bytes` bytes to write what is to be sent into, once there is room. Dropping the loan gives them back.
    ///
    /// ```
    /// # use collectives::Engine;
    /// # use transport::{Arena, Fabric, Ledger};
    /// # let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
    /// # let engine = Engine::simulated(fabric);
    /// # engine.block_on(async {
    /// # let group = engine.world().await?;
    /// let mut loan = group.loan(5).await?;
    /// loan.copy_from_slice(b"hello");
    /// let buffer = group.broadcast_buffer(0, Some(loan)).await?;
    /// assert_eq!(&buffer[..], b"hello");
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Transport`] for more than there is memory for messages; see [`Error`].
    pub fn loan(&self, bytes: usize) -> Operation<'_, impl Future<Output = Result<Loan, Error>>> {
        self.operation(async move {
            self.check()?;
            self.engine.loan(bytes, &self.fate).await
        })
    }

    /// Gives all members what member `root` has written; the others give `None`. Its memory comes back to the root when
    /// all have dropped it.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member or has nothing; see [`Error`].
    pub fn broadcast_buffer(
        &self,
        root: usize,
        loan: Option<Loan>,
    ) -> Operation<'_, impl Future<Output = Result<Buffer, Error>>> {
        self.operation(async move {
            self.check_member("broadcast_buffer", root)?;
            self.check_root("broadcast_buffer", root, loan.is_some())?;
            let signature = Signature::new("broadcast_buffer").with_root(root);
            let call = self.begin(signature).await?;
            let mine = loan.map(|loan| call.seal(loan));
            let result = broadcast(&call, root, mine).await;
            call.end(result)
        })
    }

    /// Gives member `root` what each has written, in the order of the members. `None` for all others.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member; see [`Error`].
    pub fn gather_buffers(
        &self,
        root: usize,
        mine: Loan,
    ) -> Operation<'_, impl Future<Output = Result<Option<Vec<Buffer>>, Error>>> {
        self.operation(async move {
            self.check_member("gather_buffers", root)?;
            let signature = Signature::new("gather_buffers").with_root(root);
            let call = self.begin(signature).await?;
            let mine = call.seal(mine);
            let result = gather(&call, root, mine).await;
            call.end(result)
        })
    }

    /// Gives all members what each has written, in the order of the members.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn all_gather_buffers(
        &self,
        mine: Loan,
    ) -> Operation<'_, impl Future<Output = Result<Vec<Buffer>, Error>>> {
        self.operation(async move {
            let call = self.begin(Signature::new("all_gather_buffers")).await?;
            let mine = call.seal(mine);
            let result = all_gather(&call, mine).await;
            call.end(result)
        })
    }

    /// Gives each member the one of the loans of member `root` that is at its place; the others give `None`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a root that is no member or has not one loan for each member; see [`Error`].
    pub fn scatter_buffers(
        &self,
        root: usize,
        loans: Option<Vec<Loan>>,
    ) -> Operation<'_, impl Future<Output = Result<Buffer, Error>>> {
        self.operation(async move {
            self.check_member("scatter_buffers", root)?;
            if self.rank() == root {
                let count = loans.as_ref().map_or(0, Vec::len);
                self.check_one_for_each("scatter_buffers", count)?;
            }
            let signature = Signature::new("scatter_buffers").with_root(root);
            let call = self.begin(signature).await?;
            let parts = loans.unwrap_or_default().into_iter();
            let parts = parts.map(|loan| call.seal(loan)).collect();
            let result = scatter(&call, root, parts).await;
            call.end(result)
        })
    }

    /// Gives each member the one of each member's loans that is at its place, in the order of the members.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] when there is not one loan for each member; see [`Error`].
    pub fn all_to_all_buffers(
        &self,
        loans: Vec<Loan>,
    ) -> Operation<'_, impl Future<Output = Result<Vec<Buffer>, Error>>> {
        self.operation(async move {
            self.check_one_for_each("all_to_all_buffers", loans.len())?;
            let call = self.begin(Signature::new("all_to_all_buffers")).await?;
            let parts = loans.into_iter().map(|loan| call.seal(loan)).collect();
            let result = all_to_all(&call, parts).await;
            call.end(result)
        })
    }

    /// That the root has something to give, or this member is another.
    pub(crate) fn check_root(
        &self,
        call: &'static str,
        root: usize,
        has_some: bool,
    ) -> Result<(), Error> {
        if self.rank() == root && !has_some {
            return Err(self.argument(call, "the root is to give something"));
        }
        Ok(())
    }

    pub(crate) fn check_one_for_each(&self, call: &'static str, count: usize) -> Result<(), Error> {
        if count == self.size() {
            return Ok(());
        }
        let reason = format!("{count} are not one for each of {} members", self.size());
        Err(self.argument(call, reason))
    }
}

impl Call<'_> {
    /// A message of this call that holds what a loan does. All its messages have the same tag, so that whoever gets one
    /// can pass it on.
    pub(crate) fn seal(&self, mut loan: Loan) -> Buffer {
        loan.set_tag(tag::of_kept(self.tag(0)));
        loan.freeze()
    }
}

/// The root tells all where memory is shared: there it costs the same as to tell one. Otherwise those that know tell others,
/// along a binomial tree.
pub(crate) async fn broadcast(
    call: &Call<'_>,
    root: usize,
    mine: Option<Buffer>,
) -> Result<Buffer, Error> {
    let (me, size) = (call.me(), call.size());
    let place = (me + size - root) % size;
    let is_flat = call.group.shares_memory();
    let lowest = match place {
        0 => size.next_power_of_two(),
        _ => 1 << place.trailing_zeros(),
    };
    let message = match mine {
        Some(mine) if place == 0 => mine,
        _ if is_flat => call.receive(root).await?,
        _ => call.receive((place - lowest + root) % size).await?,
    };
    let give = |place: usize| call.give((place + root) % size, message.clone());
    if is_flat {
        (1..size).filter(|_| place == 0).try_for_each(give)?;
    } else {
        let bits = std::iter::successors(Some(lowest / 2), |bit| Some(bit / 2));
        bits.take_while(|&bit| bit > 0)
            .map(|bit| place + bit)
            .filter(|&below| below < size)
            .try_for_each(give)?;
    }
    Ok(message)
}

pub(crate) async fn gather(
    call: &Call<'_>,
    root: usize,
    mine: Buffer,
) -> Result<Option<Vec<Buffer>>, Error> {
    if call.me() != root {
        call.give(root, mine)?;
        return Ok(None);
    }
    from_all(call, mine).await.map(Some)
}

pub(crate) async fn all_gather(call: &Call<'_>, mine: Buffer) -> Result<Vec<Buffer>, Error> {
    let (me, size) = (call.me(), call.size());
    for to in (me + 1..size).chain(0..me) {
        call.give(to, mine.clone())?;
    }
    from_all(call, mine).await
}

/// `parts` are the root's; the others have none.
pub(crate) async fn scatter(
    call: &Call<'_>,
    root: usize,
    parts: Vec<Buffer>,
) -> Result<Buffer, Error> {
    if call.me() != root {
        return call.receive(root).await;
    }
    let own = give_each(call, parts)?;
    own.ok_or_else(|| {
        call.group
            .argument("scatter_buffers", "the root has no part")
    })
}

pub(crate) async fn all_to_all(call: &Call<'_>, parts: Vec<Buffer>) -> Result<Vec<Buffer>, Error> {
    match give_each(call, parts)? {
        Some(own) => from_all(call, own).await,
        None => Err(call
            .group
            .argument("all_to_all_buffers", "there is no part")),
    }
}

/// Gives each other member its part; what is left is ours.
fn give_each(call: &Call<'_>, parts: Vec<Buffer>) -> Result<Option<Buffer>, Error> {
    let mut own = None;
    for (to, part) in parts.into_iter().enumerate() {
        if to == call.me() {
            own = Some(part);
        } else {
            call.give(to, part)?;
        }
    }
    Ok(own)
}

/// The next message of each member, in their order; `mine` at our place.
async fn from_all(call: &Call<'_>, mine: Buffer) -> Result<Vec<Buffer>, Error> {
    let mut all = Vec::with_capacity(call.size());
    for from in 0..call.size() {
        all.push(if from == call.me() {
            mine.clone()
        } else {
            call.receive(from).await?
        });
    }
    Ok(all)
}
