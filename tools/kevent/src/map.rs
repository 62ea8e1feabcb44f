// SPDX-License-Identifier: MIT
//! The memory of a ring, mapped.  One of the two modules that contain `unsafe`.
//!
//! The kernel and other consumers write this memory while we look at it, so it
//! is only ever seen as atomics.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::fence;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::abi::{off_slots, RingHeader, Slot, KEVENT_OFF_HEADER};
use crate::consumer::KNOWN_INCOMPAT;

/// A mapping that is unmapped when it is dropped.
struct Area {
    start: NonNull<u8>,
    len: usize,
}

impl Area {
    fn new(fd: BorrowedFd<'_>, offset: u64, len: usize, prot: i32) -> io::Result<Self> {
        // SAFETY: the kernel chooses a free place for the mapping, so that no
        // memory of this program is touched.
        let start = unsafe {
            libc::mmap64(
                ptr::null_mut(),
                len,
                prot,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset as libc::off64_t,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| bad("the ring was mapped at 0"))?;
        Ok(Self { start, len })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: this is our mapping, as made in new(), and references into it
        // borrow from self.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

// SAFETY: the mapping belongs to the process and not to a thread.
unsafe impl Send for Area {}
// SAFETY: what it points to is accessed through atomics only.
unsafe impl Sync for Area {}

/// The header of a ring.
pub(crate) struct Header(Area);

impl Header {
    /// Maps the header of the ring of `fd`, and checks that this library
    /// understands that ring.
    pub(crate) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let len = size_of::<RingHeader>();
        let header = Self(Area::new(fd, KEVENT_OFF_HEADER, len, libc::PROT_READ)?);
        check_incompat(header.get().incompat.load(Relaxed))?;
        Ok(header)
    }

    /// The header.  The mapping is read-only: loads alone, and relaxed ones.
    pub(crate) fn get(&self) -> &RingHeader {
        // SAFETY: the mapping, which is aligned to a page, has room for the
        // structure, and it lives as long as self.  Relaxed atomic loads of 32
        // bits are allowed in read-only memory.
        unsafe { self.0.start.cast().as_ref() }
    }

    /// Which sets of slots there are, with acquire semantics.
    pub(crate) fn rings(&self) -> u32 {
        let rings = self.get().rings.load(Relaxed);
        // A load that acquires may not be used on memory that is read-only.
        fence(Acquire);
        rings
    }
}

/// A set of slots.
pub(crate) struct Slots {
    area: Area,
    mask: u32,
    slot_size: usize,
}

impl Slots {
    /// Maps the set with `count` slots of the ring of `fd`.
    pub(crate) fn new(fd: BorrowedFd<'_>, header: &Header, count: u32) -> io::Result<Self> {
        let slot_size = header.get().slot_size.load(Relaxed) as usize;
        let len = set_size(count, slot_size)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        Ok(Self {
            area: Area::new(fd, off_slots(count), len, prot)?,
            mask: count - 1,
            slot_size,
        })
    }

    /// How many slots there are, a power of two.
    pub(crate) fn count(&self) -> u32 {
        self.mask + 1
    }

    /// The slot of a position: the index is taken modulo the number of slots.
    pub(crate) fn slot(&self, index: u32) -> &Slot {
        let offset = (index & self.mask) as usize * self.slot_size;
        // SAFETY: set_size() made sure that each index up to the mask is inside
        // of the mapping, with room for a slot, and aligned.  The mapping lives
        // as long as self.
        unsafe { self.area.start.add(offset).cast().as_ref() }
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn check_incompat(incompat: u32) -> io::Result<()> {
    match incompat & !KNOWN_INCOMPAT {
        0 => Ok(()),
        unknown => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the ring has features that this library does not know: {unknown:#x}"),
        )),
    }
}

/// How many bytes a set of slots has.
fn set_size(count: u32, slot_size: usize) -> io::Result<usize> {
    if !count.is_power_of_two() {
        return Err(bad("the number of slots is not a power of two"));
    }
    if slot_size < size_of::<Slot>() || slot_size % align_of::<Slot>() != 0 {
        return Err(bad("the size of a slot makes no sense"));
    }
    slot_size
        .checked_mul(count as usize)
        .filter(|&size| size <= isize::MAX as usize)
        .ok_or_else(|| bad("the ring does not fit in memory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn unknown_incompat_bits_are_refused() {
        assert!(check_incompat(0).is_ok());
        assert!(check_incompat(crate::abi::KEVENT_RING_INCOMPAT_GROWN).is_ok());
        let error = check_incompat(0x11).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("0x10"));
    }

    #[test]
    fn layouts_that_make_no_sense_are_refused() {
        assert_eq!(set_size(8, 32).unwrap(), 256);
        assert_eq!(set_size(8, 64).unwrap(), 512);
        assert!(set_size(0, 32).is_err());
        assert!(set_size(6, 32).is_err());
        assert!(set_size(8, 24).is_err());
        assert!(set_size(8, 36).is_err());
        assert!(set_size(1 << 31, usize::MAX & !7).is_err());
    }

    /// A plain file stands in for the queue: the mapping code cannot tell.
    #[test]
    fn a_ring_is_mapped_with_its_stride() {
        let path = std::env::temp_dir().join(format!("kevent-map-test-{}", std::process::id()));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        for field in [0u32, 1, 8, 64, 1, 12] {
            file.write_all(&field.to_ne_bytes()).unwrap();
        }
        file.set_len(off_slots(8) + 4096).unwrap();

        let header = Header::new(file.as_fd()).unwrap();
        assert_eq!(header.get().flags.load(Relaxed), 1);
        assert_eq!(header.get().rings.load(Relaxed), 12);
        let [small, large] = [4, 8].map(|count| Slots::new(file.as_fd(), &header, count).unwrap());
        assert_eq!((small.count(), large.count()), (4, 8));
        small.slot(5).word.store(7, Relaxed);
        assert_eq!(small.slot(1).word.load(Relaxed), 7);
        assert_eq!(large.slot(1).word.load(Relaxed), 0);
        let apart = ptr::from_ref(small.slot(1)) as usize - ptr::from_ref(small.slot(0)) as usize;
        assert_eq!(apart, 64);
    }
}
