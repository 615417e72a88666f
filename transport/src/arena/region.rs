//! The memory of an arena: one sealed `memfd`, mapped by its owner and by every peer on the node.
//!
//! ```text
//! 0      header     magic, version, geometry          written once, before anyone else sees it
//! 128    bell       whether the owner sleeps          see `bell`
//! 256    returned   blocks given back                 see `count`
//! 384    wanted     whether the owner waits for them  a hint, so any order will do
//! 4096   counts     a line for each block             see `count`
//! data   blocks     what is lent
//! ```
//!
//! A `memfd` has no name, so nothing remains of it after `kill -9`; it is not part of `/dev/shm`, so
//! the size of that does not matter; and its seals forbid resizing, so no peer can make us touch
//! memory that is no longer there.

use std::{
    collections::HashMap,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    ptr::NonNull,
    slice,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use memmap2::{MmapOptions, MmapRaw};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        resource::{Resource, getrlimit},
        stat::fstat,
    },
    unistd::ftruncate,
};

use super::count::{Count, Returned};
use crate::{Error, bell::Bell, sync::AtomicU32};

/// Starts every arena; the last byte is the version of the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"arena\0\0\x01");
const BELL_AT: usize = 128;
const RETURNED_AT: usize = 256;
const WANTED_AT: usize = 384;
const COUNTS_AT: usize = 4096;
/// Data starts on a huge page, so that it can be made of huge pages.
const HUGE_PAGE: u64 = 2 << 20;

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SEAL);

/// Where things are in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) blocks: u32,
    pub(crate) data_bytes: u64,
}

impl Geometry {
    fn data_at(self) -> u64 {
        let counts = u64::from(self.blocks) * size_of::<Count>() as u64;
        (COUNTS_AT as u64 + counts).next_multiple_of(HUGE_PAGE)
    }

    fn bytes(self) -> u64 {
        self.data_at() + self.data_bytes
    }

    fn to_header(self) -> [u8; 24] {
        let mut header = [0; 24];
        header[..8].copy_from_slice(&MAGIC.to_le_bytes());
        header[8..16].copy_from_slice(&u64::from(self.blocks).to_le_bytes());
        header[16..].copy_from_slice(&self.data_bytes.to_le_bytes());
        header
    }

    fn from_header(header: [u8; 24]) -> Option<Self> {
        let word = |index: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[8 * index..8 * index + 8]);
            u64::from_le_bytes(bytes)
        };
        let geometry = Self {
            blocks: u32::try_from(word(1)).ok()?,
            data_bytes: word(2),
        };
        (word(0) == MAGIC && geometry.data_bytes < 1 << 46).then_some(geometry)
    }
}

/// A mapped arena, ours or a peer's.
#[derive(Debug)]
pub(crate) struct Region {
    map: MmapRaw,
    fd: OwnedFd,
    /// Checked once: what the header says later does not matter.
    geometry: Geometry,
    /// Where the data begin in the mapping.
    data: NonNull<u8>,
}

/// Device and inode, which tell one memfd from another.
type Identity = (u64, u64);

/// Has this processor fetch the line at an address, which is soon to be read. It may be any address.
#[inline]
pub fn prefetch_read(line: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch changes nothing that a program can see, whatever the address.
    unsafe {
        std::arch::asm!("prefetcht0 [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    };
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = line;
}

/// Has this processor fetch the line at an address for writing: it was last with whoever read it, and what is
/// soon written there arrives earlier.
#[inline]
pub fn prefetch_write(line: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch changes nothing that a program can see, whatever the address.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags));
    };
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = line;
}

// SAFETY: `data` points into `map`, which may be used by any thread; what is in there is shared with other
// processes anyway, and every access to it is argued where it is made.
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

/// The regions this process has mapped, so that threads of one process share a mapping.
static MAPPED: Mutex<Option<HashMap<Identity, Weak<Region>>>> = Mutex::new(None);

impl Region {
    /// Makes a region. Its pages are the kernel's until somebody touches them.
    pub(crate) fn create(geometry: Geometry) -> Result<Arc<Self>, Error> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"updraft-arena", flags).map_err(Error::os("create an arena"))?;
        // Beyond this limit the kernel does not only refuse, it kills (SIGXFSZ).
        let (limit, _) =
            getrlimit(Resource::RLIMIT_FSIZE).map_err(Error::os("read the limit on files"))?;
        if geometry.bytes() > limit {
            let bytes = geometry.bytes();
            let reason = format!("it takes {bytes} bytes, and RLIMIT_FSIZE (ulimit -f) is {limit}");
            return Err(Error::io("size an arena")(std::io::Error::other(reason)));
        }
        let bytes = geometry.bytes().try_into().unwrap_or(i64::MAX);
        ftruncate(&fd, bytes).map_err(Error::os("size an arena"))?;
        let file = File::from(fd);
        file.write_all_at(&geometry.to_header(), 0)
            .map_err(Error::io("write an arena's header"))?;
        let fd = OwnedFd::from(file);
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SEALS)).map_err(Error::os("seal an arena"))?;
        Self::map(fd, geometry)
    }

    /// Maps the region of a peer, or finds it mapped already. Nothing in it is believed but a
    /// header that fits the file, and the seals that keep the file as it is.
    pub(crate) fn import(fd: OwnedFd) -> Result<Arc<Self>, Error> {
        let bad = |reason| Error::Io {
            action: "import a peer's arena",
            source: std::io::Error::other(reason),
        };
        let seals =
            fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(Error::os("read an arena's seals"))?;
        if !SealFlag::from_bits_truncate(seals).contains(SEALS) {
            return Err(bad("it is not sealed"));
        }
        let mut header = [0; 24];
        let file = File::from(fd);
        file.read_exact_at(&mut header, 0)
            .map_err(Error::io("read an arena's header"))?;
        let geometry =
            Geometry::from_header(header).ok_or_else(|| bad("it has no valid header"))?;
        let fd = OwnedFd::from(file);
        let bytes = fstat(&fd).map_err(Error::os("inspect an arena"))?.st_size;
        if u64::try_from(bytes) != Ok(geometry.bytes()) {
            return Err(bad("its size is not what its header says"));
        }
        Self::map(fd, geometry)
    }

    fn map(fd: OwnedFd, geometry: Geometry) -> Result<Arc<Self>, Error> {
        let stat = fstat(&fd).map_err(Error::os("inspect an arena"))?;
        let identity = (stat.st_dev, stat.st_ino);
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        let mapped = mapped.get_or_insert_default();
        if let Some(region) = mapped.get(&identity).and_then(Weak::upgrade) {
            return Ok(region);
        }
        let bytes = usize::try_from(geometry.bytes()).unwrap_or(usize::MAX);
        let map = MmapOptions::new()
            .len(bytes)
            .map_raw(&fd)
            .map_err(Error::io("map an arena"))?;
        // Huge pages are a wish: where the kernel has none for shared memory, small ones serve.
        let _ = map.advise(memmap2::Advice::HugePage);
        let data = map.as_mut_ptr().wrapping_add(geometry.data_at() as usize);
        let Some(data) = NonNull::new(data) else {
            return Err(Error::Io {
                action: "map an arena",
                source: std::io::ErrorKind::InvalidInput.into(),
            });
        };
        let region = Arc::new(Self {
            map,
            fd,
            geometry,
            data,
        });
        mapped.retain(|_, region| region.strong_count() > 0);
        mapped.insert(identity, Arc::downgrade(&region));
        Ok(region)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether two handles are the same memory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) // A process maps a region once.
    }

    fn at<T>(&self, offset: usize) -> *const T {
        debug_assert!(offset + size_of::<T>() <= self.map.len());
        self.map.as_ptr().wrapping_add(offset).cast()
    }

    pub(crate) fn bell(&self) -> &Bell {
        let bell = self.at::<Bell>(BELL_AT);
        // SAFETY: every region is longer than its fixed parts and stays mapped while we live; the
        // offset is a multiple of the alignment, and a `Bell` is one atomic, valid for any bits.
        unsafe { &*bell }
    }

    pub(crate) fn returned(&self) -> &Returned {
        let returned = self.at::<Returned>(RETURNED_AT);
        // SAFETY: as in `bell`; a `Returned` is one atomic.
        unsafe { &*returned }
    }

    /// Whether the owner waits for blocks to come back.
    pub(crate) fn wanted(&self) -> &AtomicU32 {
        let wanted = self.at::<AtomicU32>(WANTED_AT);
        // SAFETY: as in `bell`; it is one atomic.
        unsafe { &*wanted }
    }

    #[inline]
    pub(crate) fn counts(&self) -> &[Count] {
        let counts = self.at::<Count>(COUNTS_AT);
        // SAFETY: the geometry was checked against the size of the mapping, the offset is a
        // multiple of the alignment, and a `Count` consists of atomics.
        unsafe { slice::from_raw_parts(counts, self.geometry.blocks as usize) }
    }

    /// Has this processor fetch the line at `offset` of the data, which is soon to be written.
    #[inline]
    pub(crate) fn prefetch_write(&self, offset: u64) {
        if let Some(line) = self.data(offset, 64) {
            prefetch_write(line.as_ptr());
        }
    }

    /// Has this processor fetch the line at `offset` of the data, which is soon to be read.
    #[inline]
    pub(crate) fn prefetch_read(&self, offset: u64) {
        if let Some(line) = self.data(offset, 64) {
            prefetch_read(line.as_ptr());
        }
    }

    /// Where an address of the data is.
    #[inline]
    pub(crate) fn offset_of(&self, at: NonNull<u8>) -> u64 {
        (at.addr().get() - self.data.addr().get()) as u64
    }

    /// The address of `bytes` bytes of data from `offset` on, if the region has them.
    #[inline]
    pub(crate) fn data(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes)?;
        if end > self.geometry.data_bytes {
            return None;
        }
        // SAFETY: the mapping is as long as the geometry says, and the offset is inside its data.
        Some(unsafe { self.data.add(offset as usize) })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SMALL: Geometry = Geometry {
        blocks: 16,
        data_bytes: 1 << 16,
    };

    #[test]
    fn a_peer_of_this_process_finds_the_region_mapped_already() {
        let region = Region::create(SMALL).unwrap();
        let again = Region::import(region.fd().try_clone_to_owned().unwrap()).unwrap();
        assert!(Arc::ptr_eq(&region, &again));
    }

    #[test]
    fn what_is_not_a_sealed_arena_of_the_right_size_is_refused() {
        let import = |file: &File| {
            Region::import(file.try_clone().unwrap().into())
                .unwrap_err()
                .to_string()
        };
        let with_source = |error: String| error;
        let plain = memfd_create(c"plain", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let file = File::from(plain);
        file.write_all_at(&SMALL.to_header(), 0).unwrap();
        assert_eq!(
            with_source(import(&file)),
            "could not import a peer's arena"
        );
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).unwrap();
        assert_eq!(
            with_source(import(&file)),
            "could not import a peer's arena",
            "too short"
        );
    }

    #[test]
    fn only_bytes_inside_the_region_have_an_address() {
        let region = Region::create(SMALL).unwrap();
        assert!(region.data(0, 1 << 16).is_some());
        assert!(region.data(1, 1 << 16).is_none());
        assert!(region.data(u64::MAX, 2).is_none());
    }
}
