//! The memory of a kernel map, mapped into this process: read and written without a system call,
//! a word at a time, while the program does the same.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::AtomicU64,
};

/// What the mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Looking only.
    Read,
    /// Writing too.
    Write,
}

/// The words of an array map that was made with `BPF_F_MMAPABLE` (since 5.5).
#[derive(Debug)]
pub struct SharedWords {
    first: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: it is plain memory, of which only atomic words are ever handed out, and it belongs to no
// thread.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps so many words.
    pub fn map(map: BorrowedFd<'_>, count: usize, access: Access) -> io::Result<Self> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: the kernel chooses a free place, so nothing that this process uses is replaced.
        let place = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes(count),
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(place.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { first, count })
    }

    /// All of them. Where the mapping is for reading, storing ends the process.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has so many words, starts at a page, and lasts as long as `self`; the
        // kernel and other mappings change the words only while they are atomic for us.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), bytes(self.count)) };
    }
}

/// Of so many words; a map's memory is whole pages, and the kernel rounds up.
fn bytes(count: usize) -> usize {
    count.saturating_mul(size_of::<u64>())
}
