//! Records that the program has already.

use std::{fmt, ops::Range, sync::Arc};

use crate::{
    Error, Record,
    operator::narrow::Pass,
    stage::{Input, Place, Progress, Sink},
    tset::{Source, TSet},
};

/// Records pushed in one turn, between which messages are looked for.
const PUSHED_A_TURN: usize = 1024;

/// The records of `items`, of which each instance takes its share. Every process has to have the same.
///
/// ```
/// use dataflow::{collection, inline};
///
/// assert_eq!(inline(&collection(vec![1u64, 2, 3]).collect())?, [1, 2, 3]);
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn collection<T: Record + Sync>(items: Vec<T>) -> TSet<Collection<T>, Pass> {
    let name = format!("collection of {}", items.len());
    TSet::from_source(Collection(items.into()), name)
}

/// The source of [`collection`]. Clones share the records.
pub struct Collection<T>(Arc<[T]>);

impl<T> Clone for Collection<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Record + Sync> Source for Collection<T> {
    type Input = Share<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Share<T>, Error> {
        Ok(Share {
            items: self.0.clone(),
            left: share(self.0.len(), place),
            place: place.clone(),
        })
    }
}

/// The part of so many items that belongs to an instance.
fn share(len: usize, place: &Place) -> Range<usize> {
    let cut = |instance: u32| len * instance as usize / place.instances as usize;
    cut(place.instance)..cut(place.instance + 1)
}

impl<T> fmt::Debug for Collection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collection")
            .field("len", &self.0.len())
            .finish()
    }
}

/// One rank's share of a collection.
pub struct Share<T> {
    items: Arc<[T]>,
    left: Range<usize>,
    place: Place,
}

impl<T: Record> Input for Share<T> {
    type Out = T;

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let start = self.left.start;
        for item in &self.items[self.left.clone()][..PUSHED_A_TURN.min(self.left.len())] {
            if down.is_full() {
                break;
            }
            item.with_view(|view| down.push(view));
            self.left.start += 1;
        }
        self.place
            .counters
            .read((self.left.start - start) as u64, 0);
        Ok(if self.left.is_empty() {
            Progress::Done
        } else {
            Progress::Made
        })
    }

    fn again(&mut self) -> bool {
        self.left = share(self.items.len(), &self.place);
        true
    }

    fn last(&self) -> String {
        format!("item {} of the collection", self.left.start.wrapping_sub(1))
    }
}

impl<T> fmt::Debug for Share<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
