//! What functions of a graph gather on the side.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt,
    ptr::addr_eq,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use transport::Rank;

use crate::{
    Error, Record,
    batch::{Builder, Memory, Page, RECORD_BYTES_MAX, Shape, page_of},
    bytes::Bytes,
};

/// Something that functions of a graph add to beside their work: how many lines made no sense, say. A clone is the same.
///
/// [`new`](Self::new) counts; [`by`](Self::by) gathers values of any [`Record`] type by a function of the program.
/// [`Job::with_total`](crate::Job::with_total) makes what all ranks have added part of what a job gives.
///
/// ```
/// use dataflow::{Accumulator, collection, inline};
///
/// let bad = Accumulator::new();
/// let count = bad.clone();
/// let numbers = collection(vec!["1".to_owned(), "x".to_owned()])
///     .flat_map(move |text, out| match text.parse::<u64>() {
///         Ok(number) => out.push(number),
///         Err(_) => count.add(1),
///     })
///     .collect()
///     .with_total(&bad);
/// assert_eq!(inline(&numbers)?, (vec![1], 1));
/// # Ok::<(), dataflow::Error>(())
/// ```
pub struct Accumulator<T = u64>(Arc<Inner<T>>);

struct Inner<T> {
    none: T,
    merge: Box<Merge<T>>,
    /// What all ranks have added in the last run that was asked for it.
    total: Mutex<T>,
}

type Merge<T> = dyn Fn(T, T) -> T + Send + Sync;

/// What has been added to an accumulator on one thread, and not been asked for since.
struct Added {
    to: Arc<dyn Gathered>,
    /// An `Rc<Cell<Option<T>>>`.
    value: Rc<dyn Any>,
}

thread_local! {
    /// There are few, so they are searched in turn.
    static ADDED: RefCell<Vec<Added>> = const { RefCell::new(Vec::new()) };
}

impl Accumulator {
    /// A count of nothing, to which numbers are added.
    pub fn new() -> Self {
        Self::by(0, |count, more| count + more)
    }
}

impl Default for Accumulator {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Record + Clone + Sync> Accumulator<T> {
    /// What is `none` when nothing was added, and otherwise what `merge` makes of all that was. It is called in no particular
    /// order on each rank, and with what ranks have in their order: so its result should not depend on the order.
    ///
    /// ```
    /// use dataflow::{Accumulator, collection, inline};
    ///
    /// dataflow::record! {
    ///     #[derive(Debug, Clone, PartialEq)]
    ///     pub struct Seen {
    ///         longest: String,
    ///         empty: u64,
    ///     }
    /// }
    ///
    /// let longer = |a: String, b: String| if b.len() > a.len() { b } else { a };
    /// let none = Seen { longest: String::new(), empty: 0 };
    /// let seen = Accumulator::by(none, move |a: Seen, b: Seen| Seen {
    ///     longest: longer(a.longest, b.longest),
    ///     empty: a.empty + b.empty,
    /// });
    /// let least = Accumulator::by(f64::INFINITY, f64::min);
    /// let sum = Accumulator::by(0i64, |a, b| a + b);
    ///
    /// let (sees, at_least, sums) = (seen.clone(), least.clone(), sum.clone());
    /// let words = ["to", "", "question"].map(String::from);
    /// let job = collection(words.into()).for_each(move |word| {
    ///     sees.add(Seen { longest: word.to_owned(), empty: word.is_empty().into() });
    ///     at_least.add(word.len() as f64 / 2.0);
    ///     sums.add(1 - word.len() as i64);
    /// });
    /// let job = job.with_total(&seen).with_total(&least).with_total(&sum);
    /// let ((((), seen), least), sum) = inline(&job)?;
    /// assert_eq!((seen.longest.as_str(), seen.empty), ("question", 1));
    /// assert_eq!((least, sum), (0.0, -7));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn by(none: T, merge: impl Fn(T, T) -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            total: Mutex::new(none.clone()),
            none,
            merge: Box::new(merge),
        }))
    }

    /// Adds to it. That takes no lock and touches no memory of other threads. What is added in a job that does not ask for the
    /// total counts with the next one that does. What is gathered is no data of the job: it is on no ledger, and should be small.
    pub fn add(&self, more: T) {
        let value = ADDED.with_borrow_mut(|all| {
            if let Some(added) = all.iter().find(|added| self.0.is(&*added.to)) {
                return added.value.clone();
            }
            let value: Rc<dyn Any> = Rc::new(Cell::new(None::<T>));
            let to = self.gathered();
            all.push(Added {
                to,
                value: value.clone(),
            });
            value
        });
        let value = cell::<T>(&*value);
        let more = match value.take() {
            Some(before) => (self.0.merge)(before, more),
            None => more,
        };
        value.set(Some(more));
    }

    /// The same without its type.
    pub(crate) fn gathered(&self) -> Arc<dyn Gathered> {
        self.0.clone()
    }

    /// What all ranks have added in the last run that was asked for it.
    pub(crate) fn total(&self) -> T {
        let total = self.0.total.lock();
        total.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn cell<T: 'static>(value: &dyn Any) -> &Cell<Option<T>> {
    value
        .downcast_ref()
        .expect("what was found by its accumulator is of its type")
}

/// An accumulator of any type.
pub(crate) trait Gathered: fmt::Debug + Send + Sync {
    /// Appends what has been added on this thread, as an archive; nothing if nothing was.
    ///
    /// # Errors
    ///
    /// [`Error::RecordTooLarge`].
    fn take_added(&self, archive: &mut Vec<u8>) -> Result<(), Error>;

    /// Takes note of what the ranks have added, in their order, in one run.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`].
    fn set_total(&self, archives: &mut dyn Iterator<Item = (Rank, &[u8])>) -> Result<(), Error>;
}

impl<T: Record + Clone + Sync> Inner<T> {
    fn is(&self, other: &dyn Gathered) -> bool {
        addr_eq(self, other)
    }

    fn read(&self, peer: Rank, archive: &[u8]) -> Result<T, Error> {
        let page = Page::<T>::checked(Bytes::copy_of(archive))
            .map_err(|source| Error::Malformed { peer, source })?;
        Ok(page
            .views(0)
            .next()
            .map_or_else(|| self.none.clone(), T::own))
    }
}

impl<T: Record + Clone + Sync> Gathered for Inner<T> {
    fn take_added(&self, archive: &mut Vec<u8>) -> Result<(), Error> {
        let added = ADDED.with_borrow_mut(|all| {
            let place = all.iter().position(|added| self.is(&*added.to))?;
            Some(all.swap_remove(place).value)
        });
        let Some(added) = added.and_then(|added| cell::<T>(&*added).take()) else {
            return Ok(());
        };
        // What is small travels in the descriptor of a message.
        let mut builder = Builder::<T>::new(Memory::own(SMALL_BYTES), Shape::FLAT);
        let page = match builder.push(&added) {
            Ok(()) => Ok(builder.into_page()),
            Err(_) => page_of(&added),
        };
        let page = page.map_err(|_| Error::RecordTooLarge {
            record: std::any::type_name::<T>(),
            limit: RECORD_BYTES_MAX,
        })?;
        archive.extend_from_slice(page.bytes());
        Ok(())
    }

    fn set_total(&self, archives: &mut dyn Iterator<Item = (Rank, &[u8])>) -> Result<(), Error> {
        let mut total: Option<T> = None;
        for (peer, archive) in archives.filter(|(_, archive)| !archive.is_empty()) {
            let more = self.read(peer, archive)?;
            total = Some(match total {
                Some(before) => (self.merge)(before, more),
                None => more,
            });
        }
        let total = total.unwrap_or_else(|| self.none.clone());
        *self.total.lock().unwrap_or_else(PoisonError::into_inner) = total;
        Ok(())
    }
}

/// Bytes that are tried first.
const SMALL_BYTES: usize = 64;

impl<T> Clone for Accumulator<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Inner<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accumulator")
    }
}

impl<T> fmt::Debug for Accumulator<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
