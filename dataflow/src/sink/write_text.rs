//! Text files, one an instance.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process,
};

use crate::{
    Error,
    stage::{Output, Place, Push, Sink},
};

/// Writes lines to a file that gets its name when every rank has finished. Dropped before that, it
/// removes the file.
pub(crate) struct WriteText {
    file: BufWriter<File>,
    /// Where the lines are until then.
    hidden: PathBuf,
    part: PathBuf,
    committed: bool,
    error: Option<Error>,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Output { path, source }
}

impl WriteText {
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
            file: BufWriter::with_capacity(64 << 10, file),
            hidden,
            part: folder.join(name),
            committed: false,
            error: None,
        })
    }
}

impl Push<String> for WriteText {
    #[inline]
    fn push(&mut self, line: &str) {
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.write_all(b"\n"));
        if let Err(error) = written {
            self.error.get_or_insert(failed(&self.hidden)(error));
        }
    }
}

impl Sink<String> for WriteText {
    fn is_full(&self) -> bool {
        self.error.is_some()
    }
}

impl Output<String> for WriteText {
    fn poll(&mut self) -> Result<bool, Error> {
        self.error.take().map_or(Ok(false), Err)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
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
}

impl Drop for WriteText {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.hidden);
        }
    }
}
