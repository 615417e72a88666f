//! Lines of files that grow.
//!
//! Each file is read by one instance, the one that its name stands for; all instances look at the same files. Nothing tells
//! us of what is appended, so files are looked at, as often as a person would notice.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs::{self, File, Metadata},
    io::{self, ErrorKind},
    ops::Bound,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use memchr::{memchr, memrchr};
use transport::Reservation;

use super::{
    files::{failed, matches},
    lines::{READ_BYTES, line_at},
};
use crate::{
    Error, Key,
    graph::Extent,
    operator::narrow::Pass,
    stage::{Input, Place, Progress, Sink},
    tset::{Source, TSet},
};

/// How often files are looked at that had nothing new, and how often it is looked for other files.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const SEARCH_INTERVAL: Duration = Duration::from_millis(500);

/// The lines of the files that `pattern` matches (as for [`lines`](crate::lines)) and of those that it will match, without
/// their ends (`\n` or `\r\n`), as they are appended: those of a file in their order. The stream goes on until it is
/// [stopped](crate::Job::stopped_by), and gives then what is there. A last line that has no end yet is not given.
///
/// A file that is moved away, or removed, is read to its end; another of its name is another file. One that becomes shorter is
/// read from its start (and one that is cut and grows beyond its former size before somebody looks is read from there on). A
/// file is read by one instance, wherever it is, so all workers have to see the same files.
///
/// Lines are held on the ledger until they are pushed, 256 KiB at a time or as many as the longest line has. Files are looked at
/// 20 times a second, and searched for twice.
///
/// # Errors
///
/// [`Error::BadPattern`]. A file that cannot be read, or is not text, ends the job.
///
/// ```
/// use std::fs;
/// use dataflow::{inline, tail};
///
/// let path = std::env::temp_dir().join(format!("tail-example-{}", std::process::id()));
/// fs::write(&path, "first\nsecond\nthi")?;
/// let two = tail(path.to_str().unwrap())?.take(2).collect();
/// assert_eq!(inline(&two)?, ["first", "second"]);
/// # fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn tail(pattern: &str) -> Result<TSet<Tail, Pass>, Error> {
    matches(pattern)?;
    let source = Tail {
        pattern: pattern.to_owned(),
        from_end: false,
    };
    Ok(TSet::from_source(source, format!("tail of {pattern}")))
}

impl TSet<Tail, Pass> {
    /// Leaves out what files have when the job begins, but for those that come later.
    pub fn from_end(self) -> Self {
        let from_end = |source: &Tail| Tail {
            pattern: source.pattern.clone(),
            from_end: true,
        };
        self.with_source(from_end, " from the end")
    }
}

/// The source of [`tail`].
#[derive(Debug)]
pub struct Tail {
    pattern: String,
    from_end: bool,
}

impl Source for Tail {
    type Input = Follower;
    type Out = String;

    fn build(&self, place: &Place) -> Result<Follower, Error> {
        Ok(Follower {
            pattern: self.pattern.clone(),
            from_end: self.from_end,
            files: BTreeMap::new(),
            chunk: None,
            last: PathBuf::new(),
            last_line: 0,
            buffer: Vec::new(),
            reservation: place.ledger.reserve("reading lines", 0)?,
            search_at: Duration::ZERO,
            look_at: Duration::ZERO,
            is_stopped: false,
            is_settled: false,
            place: place.clone(),
        })
    }

    fn extent(&self) -> Extent {
        Extent::Unbounded
    }
}

/// Reads the files of one instance.
#[derive(Debug)]
pub struct Follower {
    pattern: String,
    /// Whether files that are found start at their ends: those that are found first.
    from_end: bool,
    files: BTreeMap<PathBuf, Followed>,
    /// Lines of the file that was read last.
    chunk: Option<Chunk>,
    last: PathBuf,
    /// Where the line starts in it that was pushed last.
    last_line: u64,
    buffer: Vec<u8>,
    reservation: Reservation,
    search_at: Duration,
    look_at: Duration,
    is_stopped: bool,
    /// Whether files do not grow any more for us.
    is_settled: bool,
    place: Place,
}

/// A file as far as it was read.
#[derive(Debug)]
struct Followed {
    file: File,
    id: (u64, u64),
    /// Where the next line starts.
    at: u64,
    /// How much of it was there when it was read last: what is behind `at` is the start of a line.
    seen: u64,
    /// Whether the next line began before we did.
    skips: bool,
    /// Whether another file has its name now, or none.
    is_gone: bool,
    /// Where it ends, once we are stopped.
    end: Option<u64>,
}

/// Whole lines in `buffer[taken..whole]`, which are to be pushed.
#[derive(Debug)]
struct Chunk {
    taken: usize,
    whole: usize,
}

fn id_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Followed {
    fn open(path: &Path, from_end: bool) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let at = if from_end { metadata.len() } else { 0 };
        let mut before = [b'\n'];
        if at > 0 {
            file.read_exact_at(&mut before, at - 1)?;
        }
        Ok(Self {
            file,
            id: id_of(&metadata),
            at,
            seen: at,
            skips: before != [b'\n'],
            is_gone: false,
            end: None,
        })
    }

    /// Whether there is more than was seen.
    fn has_news(&mut self) -> io::Result<bool> {
        let len = match self.end {
            Some(end) => end,
            None => self.file.metadata()?.len(),
        };
        if len < self.at {
            (self.at, self.seen, self.skips) = (0, 0, false);
        }
        Ok(len > self.seen)
    }

    /// Reads what comes next; how much that was.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.at));
        let wanted = buffer
            .len()
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        let mut filled = 0;
        while filled < wanted {
            match self
                .file
                .read_at(&mut buffer[filled..wanted], self.at + filled as u64)
            {
                Ok(0) => {
                    // It became shorter meanwhile.
                    self.seen = self.end.unwrap_or(0).max(self.at + filled as u64);
                    return Ok(filled);
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.seen = self.at + filled as u64;
        Ok(filled)
    }
}

impl Follower {
    /// Looks for files that are new, and for those that are gone.
    fn search(&mut self) -> Result<(), Error> {
        let mut gone: BTreeSet<PathBuf> = self.files.keys().cloned().collect();
        for path in matches(&self.pattern)? {
            // What cannot be looked into has nothing for us, and may have gone meanwhile.
            let Ok(path) = path else { continue };
            let hash = <String as Key>::hash(&path.to_string_lossy());
            if hash % u64::from(self.place.instances) != u64::from(self.place.instance) {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => continue,
                Ok(metadata) => metadata,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&path)(error)),
            };
            match self.files.entry(path.clone()) {
                Entry::Occupied(known) if known.get().id == id_of(&metadata) => {
                    gone.remove(&path);
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(new) => match Followed::open(&path, self.from_end) {
                    Ok(followed) => drop(new.insert(followed)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(&path)(error)),
                },
            }
        }
        for path in gone {
            if let Some(followed) = self.files.get_mut(&path) {
                followed.is_gone = true;
            }
        }
        self.from_end = false;
        Ok(())
    }

    /// Has what is there now be all.
    fn settle(&mut self) -> Result<(), Error> {
        self.search()?;
        for (path, followed) in &mut self.files {
            let metadata = followed.file.metadata().map_err(failed(path))?;
            followed.end = Some(metadata.len());
        }
        self.is_settled = true;
        Ok(())
    }

    /// Finds a file that has something new, after the one that was read last; nothing if none has.
    fn next_file(&mut self) -> Result<Option<PathBuf>, Error> {
        let mut finished = None;
        let after = (Bound::Excluded(self.last.clone()), Bound::Unbounded);
        let before = (Bound::Unbounded, Bound::Included(self.last.clone()));
        for bounds in [after, before] {
            for (path, followed) in self.files.range_mut::<PathBuf, _>(bounds) {
                if followed.has_news().map_err(failed(path))? {
                    return Ok(Some(path.clone()));
                }
                if followed.is_gone {
                    finished = Some(path.clone());
                }
            }
        }
        if let Some(path) = finished {
            self.files.remove(&path);
            self.search_at = Duration::ZERO; // There may be another of its name.
        }
        Ok(None)
    }

    /// Reads on in a file; the lines that are whole are to be pushed next.
    fn fill(&mut self, path: PathBuf) -> Result<(), Error> {
        let Some(followed) = self.files.get_mut(&path) else {
            return Ok(());
        };
        let mut bytes = self.buffer.len().max(READ_BYTES);
        let (filled, newline) = loop {
            if bytes > self.buffer.len() {
                self.reservation.grow((bytes - self.buffer.len()) as u64)?;
                self.buffer.resize(bytes, 0);
            }
            let filled = followed.read(&mut self.buffer).map_err(failed(&path))?;
            let newline = memrchr(b'\n', &self.buffer[..filled]);
            if newline.is_some() || filled < bytes {
                break (filled, newline);
            }
            bytes *= 2; // A line is longer than that.
        };
        let whole = newline.map_or(0, |newline| newline + 1);
        let mut taken = 0;
        if followed.skips && whole > 0 {
            taken = memchr(b'\n', &self.buffer[..filled]).map_or(whole, |newline| newline + 1);
            followed.skips = false;
            followed.at += taken as u64;
        }
        if let Err(error) = std::str::from_utf8(&self.buffer[taken..whole]) {
            let offset = followed.at + error.valid_up_to() as u64;
            return Err(Error::NotText {
                line: line_at(&followed.file, offset),
                path,
                offset,
            });
        }
        self.chunk = (taken < whole).then_some(Chunk { taken, whole });
        self.last = path;
        Ok(())
    }

    /// Pushes the lines that were read, as long as they are wanted; false if there are none.
    fn push_lines<D: Sink<String>>(&mut self, down: &mut D) -> bool {
        let (Some(chunk), Some(followed)) = (&mut self.chunk, self.files.get_mut(&self.last))
        else {
            return false;
        };
        // It was looked at whether it is text.
        let text = std::str::from_utf8(&self.buffer[chunk.taken..chunk.whole]).unwrap_or_default();
        let (mut at, mut records) = (0, 0);
        while at < text.len() && !down.is_full() {
            let end = memchr(b'\n', &text.as_bytes()[at..]).map_or(text.len(), |end| at + end);
            let line = &text[at..end];
            down.push(line.strip_suffix('\r').unwrap_or(line));
            self.last_line = followed.at + at as u64;
            records += 1;
            at = (end + 1).min(text.len());
        }
        chunk.taken += at;
        followed.at += at as u64;
        self.place.counters.read(records, at as u64);
        if chunk.taken == chunk.whole {
            self.chunk = None;
        }
        true
    }
}

impl Input for Follower {
    type Out = String;

    fn poll<D: Sink<String>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.push_lines(down) {
            return Ok(Progress::Made);
        }
        let now = self.place.clock.now();
        if self.is_stopped && !self.is_settled {
            self.settle()?;
        } else if now < self.look_at && !self.is_settled {
            self.place.clock.wake_at(self.look_at);
            return Ok(Progress::None);
        } else if now >= self.search_at && !self.is_settled {
            self.search()?;
            self.search_at = now + SEARCH_INTERVAL;
        }
        if let Some(path) = self.next_file()? {
            self.fill(path)?;
            return Ok(Progress::Made);
        }
        if self.is_settled {
            return Ok(Progress::Done);
        }
        self.look_at = now + LOOK_INTERVAL;
        self.place.clock.wake_at(self.look_at);
        Ok(Progress::None)
    }

    fn stop(&mut self) {
        self.is_stopped = true;
    }

    fn last(&self) -> String {
        let path = self.last.display();
        let followed = self.files.get(&self.last);
        match followed.and_then(|followed| line_at(&followed.file, self.last_line)) {
            Some(line) => format!("line {line} of {path}"),
            None => format!("the line at byte {} of {path}", self.last_line),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::mpsc, thread};

    use proptest::prelude::*;

    use super::*;
    use crate::{Stop, inline, simulate};

    fn append(path: &Path, bytes: &[u8]) {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        file.unwrap().write_all(bytes).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_line_that_is_appended_is_given_once_and_in_order(
            // How many lines each file has, and where what is written of it is cut.
            files in prop::collection::vec((0usize..60, prop::collection::vec(1usize..30, 0..40)), 1..4),
            size in 1u32..4,
            seed: u64,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let text = |file: usize, lines: usize| -> String {
                (0..lines).map(|n| format!("é{file} {n}{}", if n % 3 == 0 { "\r\n" } else { "\n" })).collect()
            };
            let stop = Stop::new();
            let job = tail(folder.path().join("*.log").to_str().unwrap()).unwrap();
            let job = job.collect().stopped_by(&stop);
            let (lengths, path) = (files.clone(), folder.path().to_owned());
            let writer = thread::spawn(move || {
                let mut left: Vec<_> = (0..).zip(files).map(|(file, (lines, cuts))| {
                    (text(file, lines).into_bytes(), cuts.into_iter())
                }).collect();
                while left.iter().any(|(text, _)| !text.is_empty()) {
                    for (file, (text, cuts)) in left.iter_mut().enumerate() {
                        let some = cuts.next().unwrap_or(usize::MAX).min(text.len());
                        append(&path.join(format!("{file}.log")), &text[..some]);
                        text.drain(..some);
                    }
                    thread::yield_now();
                }
                append(&path.join("0.log"), b"a line without an end");
                stop.stop();
            });
            let found = simulate(&job, seed, size, 1).unwrap();
            writer.join().unwrap();
            for (file, (lines, _)) in lengths.iter().enumerate() {
                let of_file: Vec<_> = found.iter().filter(|line| line.starts_with(&format!("é{file} "))).collect();
                let expected: Vec<_> = (0..*lines).map(|n| format!("é{file} {n}")).collect();
                prop_assert_eq!(of_file, expected.iter().collect::<Vec<_>>());
            }
            prop_assert_eq!(found.len(), lengths.iter().map(|(lines, _)| lines).sum::<usize>());
        }
    }

    /// Follows a file while `program` writes to it, which is given the lines as they come.
    fn follow(from_end: bool, program: impl FnOnce(&Path, &mpsc::Receiver<String>)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "before\nbeg").unwrap();
        let stop = Stop::new();
        let (sender, lines) = mpsc::channel();
        let source = tail(path.to_str().unwrap()).unwrap();
        let source = if from_end { source.from_end() } else { source };
        let tell = move |line: &str| sender.send(line.to_owned()).unwrap();
        let job = source.for_each(tell).stopped_by(&stop);
        let follower = thread::spawn(move || inline(&job));
        program(&path, &lines);
        stop.stop();
        follower.join().unwrap().unwrap();
        assert_eq!(lines.try_iter().next(), None);
    }

    #[track_caller]
    fn comes(lines: &mpsc::Receiver<String>, expected: &str) {
        let line = lines.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(line, expected);
    }

    #[test]
    fn a_file_is_followed_when_it_is_moved_replaced_cut_and_removed() {
        follow(false, |path, lines| {
            comes(lines, "before");
            append(path, b"un\n");
            comes(lines, "begun");
            let moved = path.with_extension("1");
            fs::rename(path, &moved).unwrap();
            append(&moved, b"in the moved one\n");
            comes(lines, "in the moved one");
            append(path, b"in the new one\n");
            comes(lines, "in the new one");
            fs::write(path, "short\n").unwrap();
            comes(lines, "short");
            let long = "x".repeat(3 * READ_BYTES);
            append(path, format!("{long}\n").as_bytes());
            comes(lines, &long);
            fs::remove_file(path).unwrap();
            append(path, b"again\n");
            comes(lines, "again");
        });
    }

    #[test]
    fn what_was_there_before_can_be_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "before\nbeg").unwrap();
        let mut followed = Followed::open(&path, true).unwrap();
        assert!(!followed.has_news().unwrap() && followed.skips);
        fs::write(&path, "before\n").unwrap();
        assert!(!Followed::open(&path, true).unwrap().skips);
        follow(true, |path, lines| {
            // Nobody can tell when the job has begun but by what it gives.
            let mut next = 0;
            let first = loop {
                append(path, format!("{next}\n").as_bytes());
                next += 1;
                if let Ok(line) = lines.recv_timeout(Duration::from_millis(5)) {
                    break line;
                }
            };
            assert!(first.parse::<u32>().is_ok(), "{first}");
            while lines.recv_timeout(Duration::from_millis(100)).is_ok() {}
        });
    }

    #[test]
    fn what_is_no_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, b"fine\nbad \xff\n").unwrap();
        let error = inline(&tail(path.to_str().unwrap()).unwrap().collect()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.ends_with("log is not UTF-8 at byte 9, in line 2"),
            "{text}"
        );
        assert!(matches!(
            tail("a[").map(drop),
            Err(Error::BadPattern { .. })
        ));
        let job = tail(path.to_str().unwrap())
            .unwrap()
            .try_map(|line| line.parse::<u64>());
        fs::write(&path, "1\n2\nthree\n").unwrap();
        let text = crate::one_line(&inline(&job.collect()).unwrap_err());
        assert!(text.contains("for line 3 of "), "{text}");
    }
}
