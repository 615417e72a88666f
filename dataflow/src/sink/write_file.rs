//! Files of text or of bytes, one an instance.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process,
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::{
    Error, Record,
    stage::{Output, Place, Push, Sink},
};

/// Bytes written at a time.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes after which the system is asked to write them to the disk, so that less is left to wait for in the end.
const HINT_BYTES: u64 = 8 << 20;

/// Writes records to a file that gets its name when every rank has finished, text as lines and bytes as they are.
/// Dropped before that, it removes the file.
pub(crate) struct WriteFile {
    file: BufWriter<File>,
    /// Where the records are until then.
    hidden: PathBuf,
    part: PathBuf,
    /// Bytes written, and those of them that are on their way to the disk.
    written: u64,
    hinted: u64,
    committed: bool,
    error: Option<Error>,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Output { path, source }
}

impl WriteFile {
    pub(crate) fn new(folder: &Path, place: &Place) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(failed(folder))?;
        for entry in fs::read_dir(folder).map_err(failed(folder))? {
            let entry = entry.map_err(failed(folder))?;
            if entry.file_name().to_string_lossy().starts_with("part-") {
                return Err(Error::OutputExists { path: entry.path() });
            }
        }
        let name = format!("part-{:05}", place.instance);
        let hidden = folder.join(format!(".{name}.{}-{}", process::id(), place.run));
        let file = File::create(&hidden).map_err(failed(&hidden))?;
        Ok(Self {
            file: BufWriter::with_capacity(WRITE_BYTES, file),
            hidden,
            part: folder.join(name),
            written: 0,
            hinted: 0,
            committed: false,
            error: None,
        })
    }
}

impl WriteFile {
    #[inline]
    fn write(&mut self, parts: &[&[u8]]) {
        for part in parts {
            if let Err(error) = self.file.write_all(part) {
                self.error.get_or_insert(failed(&self.hidden)(error));
            }
            self.written += part.len() as u64;
        }
        if self.written - self.hinted >= HINT_BYTES {
            self.hint();
        }
    }

    /// Has the system start on its own what [`finish`](Output::finish) waits for. (Linux does so with pages that
    /// are said to be needed no more.)
    #[cold]
    fn hint(&mut self) {
        let whole = self.written - self.file.buffer().len() as u64;
        let (offset, len) = (self.hinted as i64, (whole - self.hinted) as i64);
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        // Without it, all is written in the end.
        let _ = posix_fadvise(self.file.get_ref(), offset, len, advice);
        self.hinted = whole;
    }
}

impl Push<String> for WriteFile {
    #[inline]
    fn push(&mut self, line: &str) {
        self.write(&[line.as_bytes(), b"\n"]);
    }
}

impl<const N: usize> Push<[u8; N]> for WriteFile {
    #[inline]
    fn push(&mut self, record: &[u8; N]) {
        self.write(&[record]);
    }
}

impl<T: Record> Sink<T> for WriteFile
where
    Self: Push<T>,
{
    fn is_full(&self) -> bool {
        self.error.is_some()
    }
}

impl<T: Record> Output<T> for WriteFile
where
    Self: Push<T>,
{
    fn poll(&mut self) -> Result<bool, Error> {
        self.error.take().map_or(Ok(false), Err)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        <Self as Output<T>>::poll(self)?;
        self.file.flush().map_err(failed(&self.hidden))?;
        self.file
            .get_ref()
            .sync_all()
            .map_err(failed(&self.hidden))?;
        Ok(true)
    }

    fn commit(&mut self) -> Result<(), Error> {
        fs::rename(&self.hidden, &self.part).map_err(failed(&self.part))?;
        self.committed = true;
        Ok(())
    }

    fn is_lasting(&self) -> bool {
        true
    }
}

impl Drop for WriteFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.hidden);
        }
    }
}
