//! The first task: takes records in, and tells what it has seen.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::{
    OrderBy,
    sample::Told,
    store::{HOLDER, Sizes, Store},
};
use crate::{
    Error, Record,
    exchange::Outbox,
    stage::{Output, Place, Push, Sink},
};

/// What the tasks of a sort have in common on a rank.
pub(crate) struct Shared<T: Record, O: OrderBy<T>> {
    pub(crate) store: RefCell<Store<T, O>>,
    /// Instances that still put records in.
    open: Cell<u32>,
}

impl<T: Record, O: OrderBy<T>> Shared<T, O> {
    pub(crate) fn new(place: &Place, order: O) -> Result<Self, Error> {
        let store = Store::new(place, order, Sizes::of(place), HOLDER)?;
        Ok(Self {
            store: RefCell::new(store.with_samples()?),
            open: Cell::new(0),
        })
    }
}

/// Takes records into the [`Store`] of its rank.
pub(crate) struct Collect<T: Record, O: OrderBy<T>> {
    /// Until it has no more for it.
    shared: Option<Rc<Shared<T, O>>>,
    error: Option<Error>,
    samples: Option<Told<O::Key>>,
    outbox: Outbox<(u64, O::Key)>,
}

impl<T: Record, O: OrderBy<T>> Collect<T, O> {
    pub(crate) fn new(place: &Place, shared: Rc<Shared<T, O>>) -> Result<Self, Error> {
        if place.wiring.reading > 1 {
            return Err(Error::SortedTwice {
                task: place.wiring.name.clone(),
            });
        }
        shared.open.set(shared.open.get() + 1);
        Ok(Self {
            shared: Some(shared),
            error: None,
            samples: None,
            outbox: Outbox::to_all(place)?,
        })
    }

    /// Takes note that this instance has no more records. The last one on the rank tells the sample of all.
    fn end(&mut self) -> Result<(), Error> {
        let Some(shared) = self.shared.take() else {
            return Ok(());
        };
        shared.open.set(shared.open.get() - 1);
        if shared.open.get() == 0 {
            let mut store = shared.store.borrow_mut();
            store.end()?;
            self.samples = store.take_samples();
        }
        Ok(())
    }

    fn is_spilling(&self) -> bool {
        let spilling = |shared: &Rc<Shared<T, O>>| shared.store.borrow().is_spilling();
        self.shared.as_ref().is_some_and(spilling)
    }
}

impl<T: Record, O: OrderBy<T>> Push<T> for Collect<T, O> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        if let Some(shared) = &self.shared
            && let Err(error) = shared.store.borrow_mut().push(view)
        {
            self.error.get_or_insert(error);
        }
    }
}

impl<T: Record, O: OrderBy<T>> Sink<T> for Collect<T, O> {
    #[inline]
    fn is_full(&self) -> bool {
        self.error.is_some() || self.is_spilling()
    }
}

impl<T: Record, O: OrderBy<T>> Output<T> for Collect<T, O> {
    fn poll(&mut self) -> Result<bool, Error> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        match &self.shared {
            Some(shared) if self.is_spilling() => {
                shared.store.borrow_mut().spill_on()?;
                Ok(true)
            }
            Some(_) => Ok(false),
            None => self.outbox.poll(),
        }
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        if self.is_spilling() {
            return Ok(false);
        }
        self.end()?;
        if let Some(samples) = &mut self.samples {
            while let Some((records, key)) = samples.first() {
                if self.outbox.is_full() {
                    return Ok(false);
                }
                self.outbox.push_to(0, &(records, key));
                samples.advance();
            }
            self.samples = None;
        }
        self.outbox.finish()
    }

    fn stopped(&mut self, reader: u32) {
        self.outbox.stopped(reader);
    }

    fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }
}
