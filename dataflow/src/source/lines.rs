//! Lines of text files, each read by one instance, however the files are cut.
//!
//! All files together are one stretch of bytes, which is cut into as many equal parts as there are
//! instances. A line belongs to the part that its first byte is in: a reader that starts inside a file
//! looks at the byte before its start, and skips to the first line that starts in its part. So no line
//! is lost or read twice, wherever the cuts fall.

use std::{fs::File, io::ErrorKind, os::unix::fs::FileExt, path::PathBuf};

use memchr::{memchr, memchr_iter, memrchr};
use transport::Reservation;

use super::files::{Files, HostFile, Part, failed, paths};
use crate::{
    Error,
    operator::narrow::Pass,
    schedule::Split,
    stage::{Input, Place, Progress, Sink},
    tset::{Source, TSet},
};

/// Bytes read at a time; more only for a line that is longer.
pub(super) const READ_BYTES: usize = 256 << 10;

/// The lines of the files that `pattern` matches (`*`, `?`, `[a-z]`, `**` for any folders), in the order of
/// their names, without their ends (`\n` or `\r\n`).
///
/// # Errors
///
/// [`Error::NoInput`], [`Error::BadPattern`], or [`Error::Input`] when a file cannot be looked at.
///
/// ```
/// use dataflow::{inline, lines};
///
/// let manifest = lines("Cargo.t?ml")?.filter(|line| line.starts_with("name")).collect();
/// assert_eq!(inline(&manifest)?[0], "name = \"updraft-dataflow\"");
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn lines(pattern: &str) -> Result<TSet<Lines, Pass>, Error> {
    let files = paths(pattern)?;
    if files.is_empty() {
        return Err(Error::NoInput {
            pattern: pattern.to_owned(),
        });
    }
    lines_of(files)
}

/// The lines of `files`, in their order.
///
/// # Errors
///
/// [`Error::Input`] when a file cannot be looked at.
///
/// ```
/// use dataflow::{inline, lines_of};
///
/// let folder = std::env::temp_dir();
/// let files = ["first", "second"].map(|name| folder.join(format!("lines-{name}-{}", std::process::id())));
/// std::fs::write(&files[0], "to be\nor not")?;
/// std::fs::write(&files[1], "to be\r\n")?;
/// let lines = inline(&lines_of(files.to_vec())?.collect())?;
/// # files.iter().try_for_each(std::fs::remove_file)?;
/// assert_eq!(lines, ["to be", "or not", "to be"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn lines_of(files: Vec<PathBuf>) -> Result<TSet<Lines, Pass>, Error> {
    Ok(lines_at(HostFile::everywhere(files)?))
}

/// The lines of files of which it is known which hosts have them: each file is read on one of these, by as many instances
/// as its host's part of all bytes is. Files come in the order of the hosts that read them.
///
/// There have to be as many instances as hosts, at least.
///
/// ```
/// use dataflow::{HostFile, lines_at, schedule::{RoundRobin, Worker}};
///
/// let file = |path: &str, bytes, host: &str| HostFile { path: path.into(), bytes, hosts: vec![host.to_owned()] };
/// let lines = lines_at(vec![file("logs/1", 4000, "a"), file("logs/2", 12_000, "b")]);
/// let worker = |rank: u32, host: &str| Worker { ranks: rank..rank + 1, host: host.to_owned(), ..Worker::default() };
/// let workers = [worker(0, "b"), worker(1, "a")];
/// let placed = lines.parallelism(4).collect().task_graph().placed(&RoundRobin, &workers)?;
/// assert!(placed.explain().contains("(4 instances, on ranks 1 0 0 0)"));
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn lines_at(files: Vec<HostFile>) -> TSet<Lines, Pass> {
    let files = Files::new(files, 1);
    let name = format!("lines of {} files, {} bytes", files.number(), files.bytes());
    TSet::from_source(Lines { files }, name)
}

/// The source of [`lines`].
#[derive(Debug)]
pub struct Lines {
    files: Files,
}

impl Source for Lines {
    type Input = LineReader;
    type Out = String;

    fn build(&self, place: &Place) -> Result<LineReader, Error> {
        let parts = self.files.parts(place.instance, place.instances);
        place
            .counters
            .expect(parts.iter().map(|part| part.end - part.start).sum());
        let reservation = place.ledger.reserve("reading lines", 0)?;
        Ok(LineReader {
            parts,
            open: None,
            buffer: Vec::new(),
            reservation,
            place: place.clone(),
        })
    }

    fn splits(&self, instances: u32) -> Vec<Split> {
        self.files.splits(instances)
    }
}

/// Reads one instance's parts.
#[derive(Debug)]
pub struct LineReader {
    parts: Vec<Part>,
    open: Option<Open>,
    buffer: Vec<u8>,
    reservation: Reservation,
    place: Place,
}

/// The part that is being read. `buffer[taken..filled]` is what was read and not yet pushed, and its
/// first byte is at `offset` of the file.
#[derive(Debug)]
struct Open {
    part: Part,
    file: File,
    offset: u64,
    taken: usize,
    filled: usize,
    at_end: bool,
    /// Whether what comes first is the rest of a line that belongs to the part before.
    skipping: bool,
    /// Where the line starts that was pushed last.
    last: u64,
}

impl Open {
    fn new(part: Part) -> Result<Self, Error> {
        let file = File::open(&part.path).map_err(failed(&part.path))?;
        let skipping = part.start > 0;
        let offset = part.start - u64::from(skipping);
        Ok(Self {
            part,
            file,
            offset,
            taken: 0,
            filled: 0,
            at_end: false,
            skipping,
            last: offset,
        })
    }

    /// Reads on, behind what is left in the buffer.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        buffer.copy_within(self.taken..self.filled, 0);
        (self.taken, self.filled) = (0, self.filled - self.taken);
        while self.filled < buffer.len() {
            match self
                .file
                .read_at(&mut buffer[self.filled..], self.offset + self.filled as u64)
            {
                Ok(0) => {
                    self.at_end = true;
                    return Ok(());
                }
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&self.part.path)(error)),
            }
        }
        Ok(())
    }

    /// Takes `bytes` from the front.
    fn take(&mut self, bytes: usize) {
        self.taken += bytes;
        self.offset += bytes as u64;
    }

    fn is_over(&self) -> bool {
        self.offset >= self.part.end || (self.at_end && self.taken == self.filled)
    }
}

impl LineReader {
    /// Opens the next part; false if there is none.
    fn open_next(&mut self) -> Result<bool, Error> {
        let Some(part) = self.parts.pop() else {
            return Ok(false);
        };
        if self.buffer.is_empty() {
            self.grow(READ_BYTES)?;
        }
        self.open = Some(Open::new(part)?);
        Ok(true)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        self.reservation.grow((bytes - self.buffer.len()) as u64)?;
        self.buffer.resize(bytes, 0);
        Ok(())
    }

    /// Pushes the whole lines that were read, as long as they are wanted and ours.
    fn push_lines<D: Sink<String>>(&mut self, down: &mut D) -> Result<(), Error> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let unread = &self.buffer[open.taken..open.filled];
        let whole = match memrchr(b'\n', unread) {
            Some(newline) if !open.at_end => newline + 1,
            None if !open.at_end => 0,
            _ => unread.len(),
        };
        let text = match std::str::from_utf8(&unread[..whole]) {
            Ok(text) => text,
            // What is skipped may start inside a character.
            Err(_) if open.skipping => "",
            Err(error) => {
                let offset = open.offset + error.valid_up_to() as u64;
                return Err(Error::NotText {
                    path: open.part.path.clone(),
                    offset,
                    line: line_at(&open.file, offset),
                });
            }
        };
        let limit = open.part.end.saturating_sub(open.offset);
        let (mut at, mut records, mut last) = (0, 0, 0);
        while at < text.len() && (at as u64) < limit && !down.is_full() {
            let end =
                memchr(b'\n', &text.as_bytes()[at..]).map_or(text.len(), |newline| at + newline);
            let line = &text[at..end];
            down.push(line.strip_suffix('\r').unwrap_or(line));
            last = at;
            records += 1;
            at = (end + 1).min(text.len());
        }
        open.last = open.offset + last as u64;
        open.take(at);
        self.place.counters.read(records, at as u64);
        Ok(())
    }

    /// Skips the rest of a line that belongs to the part before; true when it is past.
    fn skip(&mut self) -> bool {
        let Some(open) = &mut self.open else {
            return true;
        };
        let unread = &self.buffer[open.taken..open.filled];
        let newline = memchr(b'\n', unread);
        let bytes = newline.map_or(unread.len(), |newline| newline + 1);
        open.take(bytes);
        open.skipping = newline.is_none() && !open.at_end;
        !open.skipping
    }
}

impl Input for LineReader {
    type Out = String;

    fn poll<D: Sink<String>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let Some(open) = &mut self.open else {
            return Ok(if self.open_next()? {
                Progress::Made
            } else {
                Progress::Done
            });
        };
        if open.is_over() {
            self.open = None;
            return Ok(Progress::Made);
        }
        let has_line = memchr(b'\n', &self.buffer[open.taken..open.filled]).is_some();
        if !has_line && !open.at_end {
            if !open.skipping && open.filled - open.taken == self.buffer.len() {
                self.grow(2 * self.buffer.len())?;
            }
            if let Some(open) = &mut self.open {
                open.fill(&mut self.buffer)?;
            }
        }
        if self.open.as_ref().is_some_and(|open| open.skipping) && !self.skip() {
            return Ok(Progress::Made);
        }
        self.push_lines(down)?;
        Ok(Progress::Made)
    }

    fn last(&self) -> String {
        match &self.open {
            Some(Open {
                part, last, file, ..
            }) => match line_at(file, *last) {
                Some(line) => format!("line {line} of {}", part.path.display()),
                None => format!("the line at byte {last} of {}", part.path.display()),
            },
            None => "no line".to_owned(),
        }
    }
}

/// The most bytes of a file in which lines are counted.
const COUNTED_BYTES_MAX: u64 = 4 << 30;

/// The number, from 1, of the line that has the byte at `offset`: lines are counted when somebody asks for one, which is when
/// something has failed. None if the file cannot be read, or it would take too long.
#[cold]
pub(super) fn line_at(file: &File, offset: u64) -> Option<u64> {
    if offset > COUNTED_BYTES_MAX {
        return None;
    }
    let mut buffer = vec![0; READ_BYTES];
    let (mut at, mut line) = (0, 1);
    while at < offset {
        let bytes = buffer.len().min((offset - at) as usize);
        file.read_exact_at(&mut buffer[..bytes], at).ok()?;
        line += memchr_iter(b'\n', &buffer[..bytes]).count() as u64;
        at += bytes as u64;
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::simulate;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_line_is_lost_or_doubled_however_many_readers_there_are(
            texts in prop::collection::vec("([a-zé]{0,9}(\n|\r\n)?){0,12}", 1..4),
            size in 1u32..9,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut files = Vec::new();
            let mut expected = Vec::new();
            for (index, text) in texts.iter().enumerate() {
                let path = folder.path().join(index.to_string());
                fs::write(&path, text).unwrap();
                files.push(path);
                expected.extend(text.lines().map(String::from));
            }
            let job = lines_of(files).unwrap().collect();
            let found = simulate(&job, 0, size, 1).unwrap();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_line_longer_than_the_buffer_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        let long = "x".repeat(3 * READ_BYTES);
        fs::write(&path, format!("a\n{long}\nb")).unwrap();
        for size in [1, 2] {
            let job = lines_of(vec![path.clone()]).unwrap().collect();
            assert_eq!(simulate(&job, 0, size, 1).unwrap(), ["a", &long, "b"]);
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = lines_of(vec![missing.clone()]).unwrap_err();
        assert!(
            crate::one_line(&error).starts_with(&format!("cannot read {}: ", missing.display())),
            "{error}"
        );
        assert!(matches!(lines("/nowhere/*"), Err(Error::NoInput { .. })));
        assert!(matches!(
            lines("a[").map(|_| ()),
            Err(Error::BadPattern { .. })
        ));
        let binary = folder.path().join("binary");
        fs::write(&binary, b"fine\nbad \xff\n").unwrap();
        let error = simulate(&lines_of(vec![binary]).unwrap().collect(), 0, 1, 1).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("binary is not UTF-8 at byte 9, in line 2"),
            "{error}"
        );
    }
}
