//! One end of a link, and what its program is made of.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use transport::{
    Buffer, Error, Event, Exposed, Fabric, Issued, Loan, Operation, Outcome, Rank, RegionHandle,
    RemoteRegion,
};

/// One end of a link, as a program sees it.
#[derive(Clone)]
pub(crate) struct End {
    pub(crate) fabric: Rc<RefCell<Fabric>>,
    pub(crate) peer: Rank,
    /// What arrived while the program waited for something else.
    pub(crate) arrived: Rc<RefCell<VecDeque<Result<Buffer, Error>>>>,
    completed: Rc<RefCell<HashMap<Operation, Result<Outcome, Error>>>>,
    pub(crate) die: fn(),
}

impl End {
    pub(crate) fn new(fabric: Rc<RefCell<Fabric>>, peer: Rank, die: fn()) -> Self {
        Self {
            fabric,
            peer,
            arrived: Rc::default(),
            completed: Rc::default(),
            die,
        }
    }

    /// Takes in what has arrived: room comes back only to those who do.
    pub(crate) fn take_in(&self) {
        loop {
            let event = self.fabric.borrow_mut().receive().unwrap();
            match event {
                Some(event) => self.take(event),
                None => return,
            }
        }
    }

    fn take(&self, event: Event) {
        match event {
            Event::Message { buffer, .. } => self.arrived.borrow_mut().push_back(Ok(buffer)),
            Event::Ended { error, .. } => self.arrived.borrow_mut().push_back(Err(*error)),
            Event::Completed { peer, completion } => {
                assert_eq!(peer, self.peer);
                let completion = *completion;
                let mut completed = self.completed.borrow_mut();
                let twice = completed.insert(completion.operation, completion.outcome);
                assert!(twice.is_none());
            }
            Event::Refused { .. } => {}
        }
    }

    pub(crate) async fn loan(&self, bytes: usize) -> Loan {
        poll_fn(|_| {
            let loan = self.fabric.borrow().loan(bytes).unwrap();
            match loan {
                Some(loan) => Poll::Ready(loan),
                None => {
                    self.take_in();
                    Poll::Pending
                }
            }
        })
        .await
    }

    pub(crate) async fn send(&self, bytes: &[u8]) {
        if bytes.len() > 104 {
            let mut loan = self.loan(bytes.len()).await;
            loan.copy_from_slice(bytes);
            self.fabric.borrow_mut().send(self.peer, loan).unwrap();
        } else {
            assert!(
                self.fabric
                    .borrow_mut()
                    .send_copy(self.peer, 0, bytes)
                    .unwrap()
            );
        }
    }

    /// The next message, or how the peer ended.
    pub(crate) async fn receive(&self) -> Result<Buffer, Error> {
        poll_fn(|_| {
            if self.arrived.borrow().is_empty() {
                let event = self.fabric.borrow_mut().receive().unwrap();
                event.into_iter().for_each(|event| self.take(event));
            }
            self.arrived
                .borrow_mut()
                .pop_front()
                .map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Issues an operation, trying again while there is no room.
    pub(crate) async fn issue<T>(
        &self,
        mut issue: impl FnMut(&mut Fabric) -> Result<Issued<T>, Error>,
    ) -> Result<Issued<T>, Error> {
        poll_fn(|_| {
            let issued = issue(&mut self.fabric.borrow_mut());
            match issued {
                Ok(Issued::NoRoom) => {
                    self.take_in();
                    Poll::Pending
                }
                issued => Poll::Ready(issued),
            }
        })
        .await
    }

    /// Waits until an operation is complete.
    pub(crate) async fn complete(&self, operation: Operation) -> Result<Outcome, Error> {
        poll_fn(|_| {
            self.take_in();
            let outcome = self.completed.borrow_mut().remove(&operation);
            outcome.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    pub(crate) async fn attach(&self, handle: RegionHandle) -> Result<RemoteRegion, Error> {
        match self.issue(|fabric| fabric.attach(&handle)).await? {
            Issued::Pending(operation) => match self.complete(operation).await? {
                Outcome::Attached(region) => Ok(region),
                other => panic!("{other:?}"),
            },
            issued => panic!("{issued:?}"),
        }
    }

    pub(crate) async fn put(
        &self,
        region: &RemoteRegion,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Error> {
        match self
            .issue(|fabric| fabric.put(region, offset, bytes))
            .await?
        {
            Issued::Pending(operation) => match self.complete(operation).await? {
                Outcome::Put => Ok(()),
                other => panic!("{other:?}"),
            },
            _ => Ok(()),
        }
    }

    pub(crate) async fn get(
        &self,
        region: &RemoteRegion,
        offset: u64,
        bytes: usize,
    ) -> Result<Buffer, Error> {
        match self
            .issue(|fabric| fabric.get(region, offset, bytes))
            .await?
        {
            Issued::Done(buffer) => Ok(buffer),
            Issued::Pending(operation) => match self.complete(operation).await? {
                Outcome::Got(buffer) => Ok(buffer),
                other => panic!("{other:?}"),
            },
            Issued::NoRoom => unreachable!(),
        }
    }

    /// What the word was, of an operation on it.
    pub(crate) async fn old(
        &self,
        issue: impl FnMut(&mut Fabric) -> Result<Issued<u64>, Error>,
    ) -> Result<u64, Error> {
        match self.issue(issue).await? {
            Issued::Done(old) => Ok(old),
            Issued::Pending(operation) => match self.complete(operation).await? {
                Outcome::Old(old) => Ok(old),
                other => panic!("{other:?}"),
            },
            Issued::NoRoom => unreachable!(),
        }
    }

    /// Exposes memory that holds `bytes`, and sends its handle.
    pub(crate) async fn expose(&self, bytes: &[u8]) -> Exposed {
        let mut loan = self.loan(bytes.len()).await;
        loan.copy_from_slice(bytes);
        let exposed = self.fabric.borrow().expose(loan).unwrap();
        self.send(&exposed.handle().to_bytes()).await;
        exposed
    }

    /// The handle that the peer sends.
    pub(crate) async fn handle(&self) -> RegionHandle {
        let message = self.receive().await.unwrap();
        RegionHandle::from_bytes(message.as_slice().try_into().unwrap())
    }

    /// Waits until everything sent has left this end.
    pub(crate) async fn flush(&self) {
        poll_fn(|_| match self.fabric.borrow_mut().flush().unwrap() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

pub(crate) type Program = Pin<Box<dyn Future<Output = ()>>>;

/// Lets the other end have its turn.
#[derive(Default)]
pub(crate) struct YieldOnce(bool);

impl Future for YieldOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match std::mem::replace(&mut self.0, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

/// A message of `len` bytes that only `number` has.
pub(crate) fn pattern(number: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(31) ^ (at >> 11) ^ number) as u8)
        .collect()
}
