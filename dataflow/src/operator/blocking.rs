//! Functions that take long, called by helpers so that the executor is not kept.
//!
//! This crate starts no threads: who drives a run says who [helps](Helpers).

use std::{
    any::Any,
    collections::VecDeque,
    error, fmt,
    marker::PhantomData,
    panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
};

use transport::{Buffer, Rank, Reservation};

use crate::{
    Encode, Error, Record,
    batch::{Page, RECORD_BYTES_MAX, page_of},
    graph::Extent,
    operator::{
        boxed::{AnyInput, AnySource, Boxed, Erased},
        narrow::Pass,
    },
    schedule::Split,
    stage::{Fused, Input, Narrow, Place, Progress, Push, Sink},
    time::Watermark,
    tset::{BETWEEN, Source, TSet},
};

/// What a function of the program may fail with.
type Cause = Box<dyn error::Error + Send + Sync>;

/// Who does what would keep a rank too long.
pub trait Helpers: fmt::Debug {
    /// Has this done, at some time, by whatever thread, and then the rank polled again.
    fn help(&self, work: Box<dyn FnOnce() + Send>);
}

/// Nobody else: it is done at once.
impl Helpers for () {
    fn help(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}

impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// As [`map`](Self::map), by a function that takes long or waits for something: it is called by helper threads, of which
    /// each instance has so many at a time, while the executor goes on with other work, such as answering its peers. The records
    /// keep their order.
    ///
    /// Each call costs some microseconds; for functions that take less, use `map`. There is no such form of other operators, since
    /// this one stands before them: a function that keeps some records gives an `Option`, one that makes several a `Vec`, and one
    /// that only does something nothing. In [`inline`](crate::inline) the function
    /// is called on the calling thread.
    ///
    /// ```
    /// use std::{thread::sleep, time::Duration};
    /// use dataflow::{collection, inline};
    ///
    /// let answers = collection(vec![3u64, 1, 2]).map_blocking(2, |n| {
    ///     sleep(Duration::from_millis(n));
    ///     n * 10
    /// });
    /// assert_eq!(inline(&answers.collect())?, [30, 10, 20]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    ///
    /// To keep, to make several, and to do:
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let folder = std::env::temp_dir().join(format!("map-blocking-{}", std::process::id()));
    /// std::fs::create_dir(&folder)?;
    /// let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    /// let (there, missing) = (path("there"), path("missing"));
    ///
    /// let written = collection(vec![there.clone()])
    ///     .try_map_blocking(2, |path| std::fs::write(path, "to be\nor not"))
    ///     .for_each(|()| ());
    /// inline(&written)?;
    ///
    /// let paths = || collection(vec![there.clone(), missing.clone()]);
    /// let readable = paths()
    ///     .map_blocking(2, |path| std::fs::exists(path).is_ok_and(|is_there| is_there).then(|| path.to_owned()))
    ///     .flat_map(|path, out| path.into_iter().for_each(|path| out.push(path)));
    /// let lines = readable
    ///     .try_map_blocking(2, |path| {
    ///         let text = std::fs::read_to_string(path)?;
    ///         Ok::<_, std::io::Error>(text.lines().map(str::to_owned).collect::<Vec<_>>())
    ///     })
    ///     .flat_map(|lines, out| lines.iter().for_each(|line| out.push(line)));
    /// assert_eq!(inline(&lines.collect())?, ["to be", "or not"]);
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn map_blocking<E, F>(self, threads: usize, mut function: F) -> TSet<Boxed<E::Record>, Pass>
    where
        E: Encode,
        F: FnMut(T::View<'_>) -> E + Clone + Send + Sync + 'static,
    {
        let call = move |view: T::View<'_>| page_of(&function(view)).map_err(Cause::from);
        self.blocking(threads, "map_blocking", call)
    }

    /// As [`map_blocking`](Self::map_blocking), by a function that can fail. The failure of the first record that has one ends
    /// the job, with [`Error::Function`](crate::Error::Function); functions may have been called for some records behind it.
    ///
    /// ```
    /// use dataflow::{collection, inline, one_line};
    ///
    /// let texts = ["1", "two", "3"].map(String::from);
    /// let numbers = collection(texts.into()).try_map_blocking(2, |text| text.parse::<u64>());
    /// let error = one_line(&inline(&numbers.collect()).unwrap_err());
    /// assert!(error.contains("record 1 of those that came to it: invalid digit found in string"), "{error}");
    /// ```
    #[track_caller]
    pub fn try_map_blocking<E, X, F>(
        self,
        threads: usize,
        mut function: F,
    ) -> TSet<Boxed<E::Record>, Pass>
    where
        E: Encode,
        X: Into<Cause>,
        F: FnMut(T::View<'_>) -> Result<E, X> + Clone + Send + Sync + 'static,
    {
        let call = move |view: T::View<'_>| {
            let value = function(view).map_err(Into::into)?;
            page_of(&value).map_err(Cause::from)
        };
        self.blocking(threads, "try_map_blocking", call)
    }

    #[track_caller]
    fn blocking<U, F>(self, threads: usize, name: &str, call: F) -> TSet<Boxed<U>, Pass>
    where
        U: Record,
        F: FnMut(T::View<'_>) -> Result<Page<U>, Cause> + Clone + Send + Sync + 'static,
    {
        let operator = format!("{name} at {}", Location::caller());
        let suffix = format!("{BETWEEN}{name}");
        self.fused(&suffix, |source, narrow| {
            Boxed::of(Offloaded {
                source,
                narrow,
                threads: threads.max(1),
                operator,
                call,
                record: PhantomData,
            })
        })
    }
}

/// A chain of operators, and a function that helpers call with what comes out of it.
struct Offloaded<S, N, F, U> {
    source: Arc<S>,
    narrow: N,
    threads: usize,
    operator: String,
    call: F,
    record: PhantomData<fn() -> U>,
}

impl<S, N, T, U, F> AnySource<U> for Offloaded<S, N, F, U>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
    U: Record,
    F: FnMut(T::View<'_>) -> Result<Page<U>, Cause> + Clone + Send + Sync + 'static,
{
    fn build(&self, place: &Place) -> Result<Box<dyn AnyInput<U>>, Error> {
        let input = self.source.build(place)?;
        let (sender, receiver) = mpsc::channel();
        Ok(Box::new(Erased(Helped {
            input: Fused::new(input, self.narrow.clone(), place),
            is_over: false,
            threads: self.threads,
            operator: self.operator.clone(),
            call: self.call.clone(),
            idle: Vec::new(),
            waiting: VecDeque::new(),
            calls: VecDeque::new(),
            running: 0,
            first: 0,
            sender,
            receiver,
            reservation: place.ledger.reserve("calls that block", 0)?,
            marks: VecDeque::new(),
            passed: Watermark::UNKNOWN,
            place: place.clone(),
        })))
    }

    fn extent(&self) -> Extent {
        self.source.extent()
    }

    fn gives_time(&self) -> bool {
        self.source.gives_time() || self.narrow.gives_time()
    }

    fn aligns(&self) -> bool {
        self.source.aligns()
    }

    fn splits(&self, instances: u32) -> Vec<Split> {
        Source::splits(&*self.source, instances)
    }
}

/// What became of a call.
type Outcome<U> = Result<Page<U>, Failed>;

enum Failed {
    Function(Cause),
    Panic(Box<dyn Any + Send>),
}

/// What a helper has to tell: which call it was, the function for another, and what became of it.
type Answer<F, U> = (u64, F, Outcome<U>);

/// Records that wait for helpers, calls that were made, and what has become of them.
struct Helped<I, N, T, U, F> {
    input: Fused<I, N>,
    is_over: bool,
    threads: usize,
    operator: String,
    call: F,
    /// Functions that no helper has.
    idle: Vec<F>,
    waiting: VecDeque<Page<T>>,
    /// The calls that were made and whose records were not passed on, in order, with what became of them, and the bytes that
    /// the record took.
    calls: VecDeque<(Option<Outcome<U>>, u64)>,
    running: usize,
    /// The number of the first of these.
    first: u64,
    sender: Sender<Answer<F, U>>,
    receiver: Receiver<Answer<F, U>>,
    reservation: Reservation,
    /// How far event time is behind so many records, and how far it is in those that were passed on.
    marks: VecDeque<(u64, Watermark)>,
    passed: Watermark,
    place: Place,
}

/// Takes records, each into a page of its own.
struct Taking<'a, T> {
    waiting: &'a mut VecDeque<Page<T>>,
    limit: usize,
    bytes: u64,
    /// Whether one is too large for any page.
    is_unfit: bool,
}

impl<T: Record> Push<T> for Taking<'_, T> {
    fn push(&mut self, view: T::View<'_>) {
        match page_of(&view) {
            Ok(page) => {
                self.bytes += page.capacity() as u64;
                self.waiting.push_back(page);
            }
            Err(_) => self.is_unfit = true,
        }
    }
}

impl<T: Record> Sink<T> for Taking<'_, T> {
    fn is_full(&self) -> bool {
        self.waiting.len() >= self.limit || self.is_unfit
    }
}

impl<I, N, T, U, F> Helped<I, N, T, U, F>
where
    I: Input,
    N: Narrow<I::Out, Out = T>,
    T: Record,
    U: Record,
    F: FnMut(T::View<'_>) -> Result<Page<U>, Cause> + Clone + Send + Sync + 'static,
{
    /// Takes in what helpers have done; whether there was anything.
    fn take_answers(&mut self) -> bool {
        let mut moved = false;
        while let Ok((number, call, outcome)) = self.receiver.try_recv() {
            self.idle.push(call);
            self.running -= 1;
            if let Some((place, _)) = self.calls.get_mut((number - self.first) as usize) {
                *place = Some(outcome);
            }
            moved = true;
        }
        moved
    }

    /// Passes on what is done, in order; whether there was anything.
    fn pass_on<D: Sink<U>>(&mut self, down: &mut D) -> Result<bool, Error> {
        let mut moved = false;
        while !down.is_full() && self.calls.front().is_some_and(|(done, _)| done.is_some()) {
            let Some((Some(outcome), bytes)) = self.calls.pop_front() else {
                break;
            };
            self.first += 1;
            moved = true;
            let left = self.reservation.bytes().saturating_sub(bytes);
            self.reservation.shrink_to(left);
            match outcome {
                Ok(page) => page.views(0).for_each(|view| down.push(view)),
                Err(Failed::Panic(panic)) => resume_unwind(panic),
                Err(Failed::Function(source)) => {
                    let record = format!("record {} of those that came to it", self.first - 1);
                    return Err(self.place.failure(&self.operator, record, source));
                }
            }
        }
        Ok(moved)
    }

    /// Takes in records to wait for helpers; whether there is something new.
    fn take_in(&mut self) -> Result<bool, Error> {
        if self.is_over || self.waiting.len() + self.calls.len() >= 2 * self.threads {
            return Ok(false);
        }
        let mut taking = Taking {
            limit: self.threads,
            waiting: &mut self.waiting,
            bytes: 0,
            is_unfit: false,
        };
        let progress = self.input.poll(&mut taking)?;
        if taking.is_unfit {
            return Err(Error::RecordTooLarge {
                record: std::any::type_name::<T>(),
                limit: RECORD_BYTES_MAX,
            });
        }
        self.reservation.grow(taking.bytes)?;
        self.is_over = progress == Progress::Done;
        Ok(progress != Progress::None)
    }

    /// Gives records to helpers that have nothing to do; whether there were any.
    fn call_helpers(&mut self) -> bool {
        let mut moved = false;
        while self.running < self.threads
            && let Some(page) = self.waiting.pop_front()
        {
            let mut call = self.idle.pop().unwrap_or_else(|| self.call.clone());
            let number = self.first + self.calls.len() as u64;
            self.calls.push_back((None, page.capacity() as u64));
            self.running += 1;
            moved = true;
            let sender = self.sender.clone();
            self.place.helpers.help(Box::new(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| call(page.view(0))));
                let outcome = match outcome {
                    Ok(outcome) => outcome.map_err(Failed::Function),
                    Err(panic) => Err(Failed::Panic(panic)),
                };
                // Nobody waits for it if the run has failed.
                let _ = sender.send((number, call, outcome));
            }));
        }
        moved
    }
}

impl<I, N, T, U, F> Input for Helped<I, N, T, U, F>
where
    I: Input,
    N: Narrow<I::Out, Out = T>,
    T: Record,
    U: Record,
    F: FnMut(T::View<'_>) -> Result<Page<U>, Cause> + Clone + Send + Sync + 'static,
{
    type Out = U;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.input.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.input.ended(port, from);
    }

    fn poll<D: Sink<U>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let mut moved = self.take_answers();
        moved |= self.pass_on(down)?;
        moved |= self.take_in()?;
        moved |= self.call_helpers();
        Ok(match moved {
            true => Progress::Made,
            false if self.is_over && self.waiting.is_empty() && self.calls.is_empty() => {
                Progress::Done
            }
            false => Progress::None,
        })
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        self.input.advance(port, sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        let taken = self.first + (self.calls.len() + self.waiting.len()) as u64;
        let watermark = self.input.watermark();
        if self.marks.back().map_or(self.passed, |(_, last)| *last) != watermark {
            self.marks.push_back((taken, watermark));
        }
        while let Some(&(behind, watermark)) = self.marks.front()
            && behind <= self.first
        {
            self.passed = watermark;
            self.marks.pop_front();
        }
        self.passed
    }

    fn stop(&mut self) {
        self.input.stop();
    }

    fn is_reading(&self) -> bool {
        self.input.is_reading()
    }

    fn last(&self) -> String {
        format!(
            "the record made of record {} of those that came",
            self.first.wrapping_sub(1)
        )
    }
}
