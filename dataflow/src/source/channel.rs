//! Records that come from outside of the job: from other threads of the program, while it runs.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use transport::Reservation;

use crate::{
    Error, Record,
    graph::{Extent, Placement},
    operator::narrow::Pass,
    stage::{Input, Place, Progress, Sink},
    stop::Sleepers,
    tset::{Source, TSet},
};

/// Records that go down in one turn, between which messages are looked for.
const PUSHED_A_TURN: usize = 1024;

/// A stream, and the end at which the program puts records into it while the job runs: from any thread, and from many
/// with clones of the [`Sender`]. So what no source of ours reads, such as a socket, is read by a thread of the
/// program.
///
/// No more than `capacity` records wait to be read, at least one; who sends more waits. The stream ends when the last
/// sender is dropped, or the job is [stopped](crate::Job::stopped_by). Each process has a channel of its own, and one
/// instance that reads it.
///
/// ```
/// use std::thread;
/// use dataflow::{channel, inline};
///
/// let (sender, stream) = channel::<u64>(16);
/// let feeder = thread::spawn(move || (0..100).all(|n| sender.send(n).is_ok()));
/// let sum = inline(&stream.map(|n| 2 * n).collect())?.into_iter().sum::<u64>();
/// assert_eq!(sum, 9900);
/// assert!(feeder.join().unwrap());
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn channel<T: Record>(capacity: usize) -> (Sender<T>, TSet<Channel<T>, Pass>) {
    let queue = Arc::new(Queue {
        capacity: capacity.max(1),
        state: Mutex::new(State {
            records: VecDeque::new(),
            senders: 1,
            is_closed: false,
        }),
        has_room: Condvar::new(),
        readers: Sleepers::default(),
    });
    let stream = TSet::from_source(Channel(queue.clone()), "channel".to_owned());
    (Sender(queue), stream.placed(Placement::OnePerProcess))
}

struct Queue<T> {
    capacity: usize,
    state: Mutex<State<T>>,
    has_room: Condvar,
    readers: Sleepers,
}

struct State<T> {
    records: VecDeque<T>,
    senders: usize,
    /// Whether nobody reads any more.
    is_closed: bool,
}

impl<T> Queue<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more records; those that wait can still be read.
    fn close(&self) {
        self.state().is_closed = true;
        self.has_room.notify_all();
    }

    /// Puts a record in, if there is room; otherwise gives it back with the guard.
    fn put<'q>(
        &'q self,
        mut state: MutexGuard<'q, State<T>>,
        record: T,
    ) -> Result<(), (MutexGuard<'q, State<T>>, T)> {
        if state.records.len() >= self.capacity {
            return Err((state, record));
        }
        let was_empty = state.records.is_empty();
        state.records.push_back(record);
        drop(state);
        if was_empty {
            self.readers.wake();
        }
        Ok(())
    }
}

/// The job that reads a channel has ended, or was stopped. The record comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the job that reads the channel has ended")]
pub struct Closed<T>(pub T);

/// Puts records into a stream: see [`channel`].
pub struct Sender<T>(Arc<Queue<T>>);

impl<T> Sender<T> {
    /// Sends a record. Waits while there is no room: until the job has read some, or has ended. Before it begins nobody reads.
    ///
    /// # Errors
    ///
    /// [`Closed`] with the record, if nobody will read it.
    pub fn send(&self, record: T) -> Result<(), Closed<T>> {
        let (mut state, mut record) = (self.0.state(), record);
        loop {
            if state.is_closed {
                return Err(Closed(record));
            }
            match self.0.put(state, record) {
                Ok(()) => return Ok(()),
                Err((full, back)) => {
                    let waited = self.0.has_room.wait(full);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                    record = back;
                }
            }
        }
    }

    /// Sends a record if there is room, and gives it back if there is none.
    ///
    /// # Errors
    ///
    /// [`Closed`] with the record, if nobody will read it.
    pub fn try_send(&self, record: T) -> Result<Option<T>, Closed<T>> {
        let state = self.0.state();
        if state.is_closed {
            return Err(Closed(record));
        }
        Ok(self.0.put(state, record).err().map(|(_, record)| record))
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.senders -= 1;
        if state.senders == 0 {
            drop(state);
            self.0.readers.wake();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("waiting", &self.0.state().records.len())
            .finish_non_exhaustive()
    }
}

/// The source of [`channel`].
pub struct Channel<T>(Arc<Queue<T>>);

impl<T: Record> Source for Channel<T> {
    type Input = Inlet<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Inlet<T>, Error> {
        if let Some(waker) = &place.waker {
            self.0.readers.add(waker);
        }
        let taken = self.0.capacity.min(PUSHED_A_TURN);
        let bytes = (self.0.capacity + taken) * size_of::<T>();
        Ok(Inlet {
            queue: self.0.clone(),
            taken: VecDeque::new(),
            read: 0,
            place: place.clone(),
            _reservation: place.ledger.reserve("channel", bytes as u64)?,
        })
    }

    fn extent(&self) -> Extent {
        Extent::Unbounded
    }
}

impl<T> fmt::Debug for Channel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("capacity", &self.0.capacity)
            .finish_non_exhaustive()
    }
}

/// Takes records out of a channel. When it is given up, nobody reads any more.
pub struct Inlet<T> {
    queue: Arc<Queue<T>>,
    /// Records that are out of the queue, and still to be pushed.
    taken: VecDeque<T>,
    read: u64,
    place: Place,
    _reservation: Reservation,
}

impl<T: Record> Input for Inlet<T> {
    type Out = T;

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.taken.is_empty() {
            let mut state = self.queue.state();
            if state.records.is_empty() {
                let is_done = state.is_closed || state.senders == 0;
                return Ok(if is_done {
                    Progress::Done
                } else {
                    Progress::None
                });
            }
            let number = state.records.len().min(PUSHED_A_TURN);
            self.taken.extend(state.records.drain(..number));
            drop(state);
            self.queue.has_room.notify_all();
        }
        let mut pushed = 0;
        while !down.is_full()
            && let Some(record) = self.taken.pop_front()
        {
            record.with_view(|view| down.push(view));
            pushed += 1;
        }
        self.read += pushed;
        self.place.counters.read(pushed, 0);
        Ok(Progress::Made)
    }

    fn stop(&mut self) {
        self.queue.close();
    }

    fn last(&self) -> String {
        format!("record {} of the channel", self.read)
    }
}

impl<T> Drop for Inlet<T> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<T> fmt::Debug for Inlet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inlet")
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{Stop, inline};

    #[test]
    fn who_sends_waits_for_room_and_is_told_when_nobody_reads_any_more() {
        let (sender, stream) = channel::<u64>(2);
        assert_eq!(sender.try_send(0), Ok(None));
        assert_eq!(sender.try_send(1), Ok(None));
        assert_eq!(sender.try_send(2), Ok(Some(2)), "there is room for two");
        let feeder = thread::spawn(move || {
            let refused = (2..).find_map(|n| sender.send(n).err());
            (refused, sender.try_send(7))
        });
        assert_eq!(
            inline(&stream.take(50).collect()).unwrap(),
            (0..50).collect::<Vec<_>>()
        );
        let (refused, after) = feeder.join().unwrap();
        assert!(refused.is_some_and(|Closed(n)| n >= 50));
        assert_eq!(after, Err(Closed(7)));
    }

    #[test]
    fn what_was_sent_before_a_stop_is_read() {
        let (sender, stream) = channel::<u64>(10);
        (0..10).for_each(|n| sender.send(n).unwrap());
        let stop = Stop::new();
        stop.stop();
        let all = inline(&stream.collect().stopped_by(&stop)).unwrap();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        assert_eq!(sender.send(10), Err(Closed(10)));
    }
}
