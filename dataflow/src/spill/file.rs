//! A file without a name that blocks are appended to and read from.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crc32fast::Hasher;

use super::Config;
use crate::Error;

/// A file that is gone when it is closed, or the process ends in any way.
#[derive(Debug)]
pub(crate) struct File {
    file: fs::File,
    directory: PathBuf,
    /// Which operator writes it.
    holder: &'static str,
    /// Bytes written, or about to be.
    len: AtomicU64,
}

/// The files of an operator, one in each directory, to which its runs go in turn.
pub(crate) struct Files {
    spill: Rc<Config>,
    holder: &'static str,
    files: Vec<Option<Arc<File>>>,
    next: usize,
}

impl Files {
    /// Files that are made when they are needed, the first one in the directory of that number.
    pub(crate) fn new(spill: &Rc<Config>, holder: &'static str, first: usize) -> Self {
        Self {
            spill: spill.clone(),
            holder,
            files: vec![None; spill.directories.len()],
            next: first,
        }
    }

    /// The file that the next run goes to.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`].
    pub(crate) fn next(&mut self) -> Result<Arc<File>, Error> {
        let index = self.next % self.files.len();
        self.next += 1;
        if let Some(file) = &self.files[index] {
            return Ok(file.clone());
        }
        let file = Arc::new(File::new(&self.spill.directories[index], self.holder)?);
        self.files[index] = Some(file.clone());
        Ok(file)
    }

    /// Has the next runs go to other files: those before are gone when all of their runs are.
    pub(crate) fn renew(&mut self) {
        self.files.fill(None);
    }
}

/// Where a block is, and what it has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(super) offset: u64,
    pub(super) bytes: u32,
    pub(super) checksum: u32,
}

impl Extent {
    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes as usize
    }
}

impl File {
    /// Makes a file in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`].
    pub(crate) fn new(directory: &Path, holder: &'static str) -> Result<Self, Error> {
        let failed = |source| Error::Spill {
            action: "make a file",
            holder,
            directory: directory.to_owned(),
            source,
        };
        Ok(Self {
            file: tempfile::tempfile_in(directory).map_err(failed)?,
            directory: directory.to_owned(),
            holder,
            len: AtomicU64::new(0),
        })
    }

    /// A file with a name, which stays: made anew, or as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`].
    pub(crate) fn named(path: &Path, holder: &'static str, is_new: bool) -> Result<Self, Error> {
        let directory = path.parent().unwrap_or(path).to_owned();
        let mut options = fs::File::options();
        options
            .read(true)
            .write(is_new)
            .create(is_new)
            .truncate(is_new);
        let opened = options.open(path).and_then(|file| {
            let len = file.metadata()?.len();
            Ok((file, len))
        });
        let (file, len) = opened.map_err(|source| Error::Spill {
            action: if is_new { "make a file" } else { "open a file" },
            holder,
            directory: directory.clone(),
            source,
        })?;
        Ok(Self {
            file,
            directory,
            holder,
            len: AtomicU64::new(len),
        })
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Waits until all that was written is on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`].
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.file
            .sync_all()
            .map_err(|source| self.failed("write", source))
    }

    /// Reads bytes of which nothing is known.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Writes a block behind those before.
    ///
    /// # Errors
    ///
    /// [`Error::Spill`]; what was written of the block is not part of the file.
    pub(crate) fn append(&self, block: &[u8]) -> Result<Extent, Error> {
        // Nothing else follows from it, hence Relaxed.
        let offset = self.len.fetch_add(block.len() as u64, Ordering::Relaxed);
        self.file
            .write_all_at(block, offset)
            .map_err(|source| self.failed("write a block", source))?;
        Ok(Extent {
            offset,
            bytes: block.len() as u32,
            checksum: checksum(offset, block),
        })
    }

    /// Reads a block that was written, into a buffer of its size.
    ///
    /// # Errors
    ///
    /// [`Error::SpillDamaged`] when it is not what was written, [`Error::Spill`] when it cannot be read.
    pub(crate) fn read(&self, extent: &Extent, block: &mut [u8]) -> Result<(), Error> {
        match self.file.read_exact_at(block, extent.offset) {
            Ok(()) if checksum(extent.offset, block) == extent.checksum => Ok(()),
            Ok(()) => Err(self.damaged(extent, "its checksum is wrong")),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(self.damaged(extent, "the file ends before it does"))
            }
            Err(source) => Err(self.failed("read a block", source)),
        }
    }

    /// A block that is not what was written.
    pub(crate) fn damaged(&self, extent: &Extent, reason: &'static str) -> Error {
        Error::SpillDamaged {
            holder: self.holder,
            directory: self.directory.clone(),
            offset: extent.offset,
            bytes: extent.bytes.into(),
            reason,
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::Spill {
            action,
            holder: self.holder,
            directory: self.directory.clone(),
            source,
        }
    }
}

/// The checksum of a block at its place: the same bytes elsewhere are another block.
fn checksum(offset: u64, block: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&offset.to_le_bytes());
    hasher.update(block);
    hasher.finalize()
}

#[cfg(test)]
impl File {
    /// A file over one that is open already, to see what becomes of its errors.
    pub(crate) fn over(file: fs::File) -> Self {
        Self {
            file,
            directory: "/over".into(),
            holder: "a test",
            len: AtomicU64::new(0),
        }
    }

    pub(crate) fn inner(&self) -> &fs::File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use proptest::{prelude::*, sample::Index};

    use super::*;
    use crate::one_line;

    proptest! {
        #[test]
        fn blocks_come_back_and_any_damage_is_found(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..8),
            which in any::<Index>(),
            at in any::<Index>(),
            bits in 1u8..,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let file = File::new(directory.path(), "a test").unwrap();
            let extents: Vec<_> = blocks.iter().map(|block| file.append(block).unwrap()).collect();
            let read = |extent: &Extent| {
                let mut block = vec![0; extent.bytes()];
                file.read(extent, &mut block).map(|()| block)
            };
            for (block, extent) in blocks.iter().zip(&extents) {
                prop_assert_eq!(&read(extent).unwrap(), block);
            }

            let which = which.index(blocks.len());
            let byte = at.index(blocks[which].len());
            let place = extents[which].offset + byte as u64;
            file.inner().write_all_at(&[blocks[which][byte] ^ bits], place).unwrap();
            for (index, extent) in extents.iter().enumerate() {
                match read(extent) {
                    Ok(block) => prop_assert_eq!((index != which, &block), (true, &blocks[index])),
                    Err(Error::SpillDamaged { offset, .. }) => {
                        prop_assert_eq!((index, offset), (which, extents[which].offset));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    #[test]
    fn a_block_that_is_cut_off_or_another_ones_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::new(directory.path(), "a test").unwrap();
        let extents = [[7; 64], [7; 64]].map(|block| file.append(&block).unwrap());
        let elsewhere = Extent {
            offset: extents[1].offset,
            ..extents[0]
        };
        assert!(matches!(
            file.read(&elsewhere, &mut [0; 64]),
            Err(Error::SpillDamaged { offset: 64, .. })
        ));
        file.inner().set_len(100).unwrap();
        file.read(&extents[0], &mut [0; 64]).unwrap();
        let error = file.read(&extents[1], &mut [0; 64]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the 64 bytes that a test wrote at byte 64 of a file in {} are damaged: the file ends before it does",
                directory.path().display()
            )
        );
    }

    #[test]
    fn a_file_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::new(directory.path(), "a test").unwrap();
        file.append(&[1; 100]).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let opened = format!("/proc/self/fd/{}", file.inner().as_raw_fd());
        assert_eq!(fs::metadata(opened).unwrap().len(), 100);
    }

    #[test]
    fn what_the_system_refuses_names_the_directory_and_what_was_done() {
        let open = |path: &str| {
            let file = fs::File::options().read(true).write(true).open(path);
            File::over(file.unwrap())
        };
        let full = open("/dev/full").append(&[1; 100]).unwrap_err();
        assert_eq!(
            one_line(&full),
            "a test cannot write a block in /over: No space left on device (os error 28)"
        );
        // Nothing is mapped at address 0, so reading and writing it are errors of the device.
        let failing = open("/proc/self/mem").append(&[1; 100]).unwrap_err();
        assert_eq!(
            one_line(&failing),
            "a test cannot write a block in /over: Input/output error (os error 5)"
        );
        let extent = Extent {
            offset: 0,
            bytes: 8,
            checksum: 0,
        };
        let failing = File::over(fs::File::open("/proc/self/mem").unwrap());
        let error = failing.read(&extent, &mut [0; 8]).unwrap_err();
        assert_eq!(
            one_line(&error),
            "a test cannot read a block in /over: Input/output error (os error 5)"
        );
        let missing = File::new(Path::new("/no/such"), "a test").unwrap_err();
        assert!(
            one_line(&missing).starts_with("a test cannot make a file in /no/such: "),
            "{missing}"
        );
    }
}
