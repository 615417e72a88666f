//! What the workers print, line by line, each marked with the worker it comes from.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IsTerminal, PipeReader, Read, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd,
};
use updraft::progress::Progress;

/// How many of a worker's last lines are remembered.
const TAIL_LINES: usize = 20;

/// How much of each remembered line.
const TAIL_LINE_BYTES_MAX: usize = 4 << 10;

/// A longer line is printed in parts of this size, each as a line of its own.
const LINE_BYTES_MAX: usize = 1 << 20;

/// How much is read from one worker before the next one's turn.
const READ_BYTES_MAX: usize = 64 << 10;

/// Carries what workers print to the launcher's own streams.
#[derive(Debug)]
pub(crate) struct Pump {
    console: Console,
    tags: Vec<String>,
    tails: Vec<Tail>,
    sources: Vec<Source>,
    /// Ends when the workers have: what is in the pipes by then is all there is to print.
    drain: Option<PipeReader>,
}

impl Pump {
    /// A pump for so many workers, which still lacks their pipes.
    pub(crate) fn new(workers: u32, progress: Arc<Progress>, drain: PipeReader) -> Self {
        Self {
            console: Console::new(progress),
            tags: (0..workers).map(|worker| tag(worker, workers)).collect(),
            tails: (0..workers).map(|_| Tail::default()).collect(),
            sources: Vec::new(),
            drain: Some(drain),
        }
    }

    /// Adds a pipe of a worker, which leads to `target`.
    pub(crate) fn add(&mut self, worker: u32, pipe: impl Into<OwnedFd>, target: Target) {
        self.sources.push(Source {
            worker: worker as usize,
            pipe: File::from(pipe.into()),
            target,
            lines: Lines::default(),
        });
    }

    /// Prints until all pipes have ended, or hold nothing more after the workers have. Returns the
    /// last lines of each worker.
    pub(crate) fn run(mut self) -> Vec<Tail> {
        let mut chunk = vec![0; READ_BYTES_MAX];
        while !self.sources.is_empty() {
            let ready = self.wait();
            if !ready.contains(&true) && self.drain.is_none() {
                self.end_all();
            }
            self.read_from(&ready, &mut chunk);
            self.console.print();
        }
        self.tails
    }

    /// Waits until pipes are ready, and says which. None is when it was the workers' end that came.
    fn wait(&mut self) -> Vec<bool> {
        let timeout = match self.drain {
            Some(_) => PollTimeout::NONE,
            None => PollTimeout::ZERO,
        };
        let pipes = self.sources.iter().map(|source| source.pipe.as_fd());
        let drain = self.drain.iter().map(AsFd::as_fd);
        let mut polled: Vec<PollFd<'_>> = pipes
            .chain(drain)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // It is interrupted at times, and then nothing is ready.
        let found = poll(&mut polled, timeout);
        let mut ready: Vec<bool> = polled
            .iter()
            .map(|fd| found.is_ok() && fd.any().unwrap_or(true))
            .collect();
        if self.drain.is_some() && ready.pop() == Some(true) {
            self.drain = None;
        }
        ready
    }

    /// Takes what the ready pipes hold, and lets go of those that have ended.
    fn read_from(&mut self, ready: &[bool], chunk: &mut [u8]) {
        let mut ready = ready.iter();
        let Self {
            console,
            tags,
            tails,
            sources,
            ..
        } = self;
        sources.retain_mut(|source| {
            if ready.next() != Some(&true) {
                return true;
            }
            let page = console.page(source.target);
            let mut print = printer(page, &tags[source.worker], &mut tails[source.worker]);
            match source.pipe.read(chunk) {
                Ok(0) => {
                    source.lines.end(&mut print);
                    false
                }
                Ok(count) => {
                    source.lines.feed(&chunk[..count], &mut print);
                    true
                }
                Err(error) => error.kind() == io::ErrorKind::Interrupted,
            }
        });
    }

    /// Lets go of all pipes, though somebody may still hold their other ends.
    fn end_all(&mut self) {
        for mut source in self.sources.drain(..) {
            let page = self.console.page(source.target);
            let worker = source.worker;
            let mut print = printer(page, &self.tags[worker], &mut self.tails[worker]);
            source.lines.end(&mut print);
        }
    }
}

/// The last lines that a worker printed.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: VecDeque<Vec<u8>>,
}

impl Tail {
    /// The lines, oldest first.
    pub(crate) fn lines(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.lines.iter().map(Vec::as_slice)
    }

    fn push(&mut self, line: &[u8]) {
        let mut kept = if self.lines.len() == TAIL_LINES {
            self.lines.pop_front().unwrap_or_default()
        } else {
            Vec::new()
        };
        kept.clear();
        kept.extend_from_slice(&line[..line.len().min(TAIL_LINE_BYTES_MAX)]);
        self.lines.push_back(kept);
    }
}

/// Which of the launcher's streams something is printed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The standard output.
    Out,
    /// The standard error stream.
    Err,
}

/// The launcher's own streams, and what is about to be printed on them.
#[derive(Debug)]
pub(crate) struct Console {
    progress: Arc<Progress>,
    pages: [Page; 2],
}

impl Console {
    pub(crate) fn new(progress: Arc<Progress>) -> Self {
        Self {
            progress,
            pages: [Page::new(Target::Out), Page::new(Target::Err)],
        }
    }

    /// What is about to be printed on `target`.
    pub(crate) fn page(&mut self, target: Target) -> &mut Vec<u8> {
        &mut self.pages[target as usize].bytes
    }

    /// Prints it, beside the progress bar if there is one. A stream that nobody reads any more
    /// loses what is printed on it, and the job goes on.
    pub(crate) fn print(&mut self) {
        for page in &mut self.pages {
            if page.bytes.is_empty() {
                continue;
            }
            if page.is_terminal {
                self.progress.suspend(|| page.print());
            } else {
                page.print();
            }
        }
    }
}

#[derive(Debug)]
struct Page {
    target: Target,
    is_terminal: bool,
    is_broken: bool,
    bytes: Vec<u8>,
}

impl Page {
    fn new(target: Target) -> Self {
        Self {
            target,
            is_terminal: match target {
                Target::Out => io::stdout().is_terminal(),
                Target::Err => io::stderr().is_terminal(),
            },
            is_broken: false,
            bytes: Vec::new(),
        }
    }

    fn print(&mut self) {
        if !self.is_broken {
            self.is_broken = match self.target {
                Target::Out => write_all(io::stdout().as_fd(), &self.bytes),
                Target::Err => write_all(io::stderr().as_fd(), &self.bytes),
            }
            .is_err();
        }
        self.bytes.clear();
    }
}

/// A worker's pipe.
#[derive(Debug)]
struct Source {
    worker: usize,
    pipe: File,
    target: Target,
    lines: Lines,
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    /// The line whose end has not come yet.
    open: Vec<u8>,
}

impl Lines {
    /// Calls `print` with every line that `bytes` complete.
    fn feed(&mut self, mut bytes: &[u8], print: &mut impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.extend(&bytes[..end], print);
            print(&self.open);
            self.open.clear();
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes, print);
    }

    /// Calls `print` with the last line, if it lacks its end.
    fn end(&mut self, print: &mut impl FnMut(&[u8])) {
        if !self.open.is_empty() {
            print(&self.open);
            self.open = Vec::new();
        }
    }

    /// Adds to the open line, and prints it in parts when it is too long to keep.
    fn extend(&mut self, mut bytes: &[u8], print: &mut impl FnMut(&[u8])) {
        while self.open.len() + bytes.len() > LINE_BYTES_MAX {
            let (part, rest) = bytes.split_at(LINE_BYTES_MAX - self.open.len());
            self.open.extend_from_slice(part);
            print(&self.open);
            self.open.clear();
            bytes = rest;
        }
        self.open.extend_from_slice(bytes);
    }
}

/// Puts a line on the page, marked, and remembers it.
fn printer<'a>(page: &'a mut Vec<u8>, tag: &'a str, tail: &'a mut Tail) -> impl FnMut(&[u8]) + 'a {
    move |line| {
        page.extend_from_slice(tag.as_bytes());
        page.extend_from_slice(line);
        page.push(b'\n');
        tail.push(line);
    }
}

/// The mark of a worker's lines, as wide as that of any other worker.
fn tag(worker: u32, workers: u32) -> String {
    let width = workers.saturating_sub(1).to_string().len() + "[w] ".len();
    format!("{:<width$}", format!("[w{worker}] "))
}

/// Prints on the standard output. Where nobody reads there is nobody to tell.
pub(crate) fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Writes all of `bytes`, and waits where the stream has no room.
fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match unistd::write(stream, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut waiting = [PollFd::new(stream, PollFlags::POLLOUT)];
                // If it is interrupted, the next write tells what to do.
                let _ = poll(&mut waiting, PollTimeout::NONE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that come of these chunks.
    fn lines(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut printed = Vec::new();
        let mut lines = Lines::default();
        let mut print = |line: &[u8]| printed.push(line.to_vec());
        for chunk in chunks {
            lines.feed(chunk, &mut print);
        }
        lines.end(&mut print);
        printed
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_are_cut() {
        let text = b"one\n\ntwo\xff\nlast";
        let expected = [&b"one"[..], b"", b"two\xff", b"last"];
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let chunks = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(lines(&chunks), expected);
            }
        }
    }

    #[test]
    fn a_last_line_that_has_its_end_is_not_followed_by_an_empty_one() {
        assert_eq!(lines(&[b"one\n"]), [b"one"]);
    }

    #[test]
    fn a_line_as_long_as_allowed_is_whole_and_a_longer_one_comes_in_parts() {
        let longest = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(lines(&[&longest, b"\n"]), [&longest[..]]);
        let longer = vec![b'x'; 2 * LINE_BYTES_MAX + 1];
        let lengths: Vec<usize> = lines(&[&longer]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX, 1]);
    }

    #[test]
    fn tags_are_equally_wide() {
        assert_eq!(tag(0, 10), "[w0] ");
        assert_eq!(tag(9, 11), "[w9]  ");
        assert_eq!(tag(10, 11), "[w10] ");
    }

    #[test]
    fn a_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for number in 0..50 {
            tail.push(number.to_string().as_bytes());
        }
        let lines: Vec<&[u8]> = tail.lines().collect();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[0], b"30");
        assert_eq!(lines[TAIL_LINES - 1], b"49");
    }
}
