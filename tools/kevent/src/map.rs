// SPDX-License-Identifier: MIT
//! The memory of a ring, mapped.  One of the two modules that contain `unsafe`.
//!
//! The kernel and other consumers write this memory while we look at it, so it
//! is only ever seen as atomics.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::Relaxed;

use crate::abi::{Params, RingHeader, Slot, KEVENT_OFF_HEADER, KEVENT_OFF_SLOTS};

/// The features of `kevent_ring.incompat` that this library knows.
const KNOWN_INCOMPAT: u32 = 0;

/// A mapping that is unmapped when it is dropped.
struct Area {
    start: NonNull<u8>,
    len: usize,
}

impl Area {
    fn new(fd: BorrowedFd<'_>, offset: u64, len: u64, prot: i32) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| bad("the ring does not fit in memory"))?;
        // SAFETY: the kernel chooses a free place for the mapping, so that no
        // memory of this program is touched.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                prot,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset as libc::off_t,
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

/// Both parts of a ring.
pub(crate) struct Mapping {
    header: Area,
    slots: Area,
    mask: u32,
    slot_size: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: what it points to is accessed through atomics only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the ring of `fd` and checks that this library understands it.
    pub(crate) fn new(fd: BorrowedFd<'_>, params: &Params) -> io::Result<Self> {
        if params.header_size < size_of::<RingHeader>() as u64 {
            return Err(bad("the header of the ring is too small"));
        }
        let read = libc::PROT_READ;
        let header = Area::new(fd, KEVENT_OFF_HEADER, params.header_size, read)?;
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let slots = Area::new(fd, KEVENT_OFF_SLOTS, params.slots_size, write)?;

        let mut mapping = Self {
            header,
            slots,
            mask: 0,
            slot_size: 0,
        };
        let header = mapping.header();
        check_incompat(header.incompat.load(Relaxed))?;
        let count = header.slots.load(Relaxed);
        let slot_size = header.slot_size.load(Relaxed) as usize;
        check_layout(count, slot_size, mapping.slots.len)?;
        mapping.mask = count - 1;
        mapping.slot_size = slot_size;
        Ok(mapping)
    }

    /// The header.  The mapping is read-only: loads alone, and relaxed ones.
    pub(crate) fn header(&self) -> &RingHeader {
        // SAFETY: new() checked that the mapping, which is aligned to a page,
        // has room for the structure, and it lives as long as self.  Relaxed
        // atomic loads of 32 bits are allowed in read-only memory.
        unsafe { self.header.start.cast().as_ref() }
    }

    /// How many slots there are, a power of two.
    pub(crate) fn slots(&self) -> u32 {
        self.mask + 1
    }

    /// The slot of a position: the index is taken modulo the number of slots.
    pub(crate) fn slot(&self, index: u32) -> &Slot {
        let offset = (index & self.mask) as usize * self.slot_size;
        // SAFETY: check_layout() made sure that each index up to the mask is
        // inside of the mapping, with room for a slot, and aligned.  The
        // mapping lives as long as self.
        unsafe { self.slots.start.add(offset).cast().as_ref() }
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

fn check_layout(count: u32, slot_size: usize, len: usize) -> io::Result<()> {
    if !count.is_power_of_two() {
        return Err(bad("the number of slots is not a power of two"));
    }
    if slot_size < size_of::<Slot>() || slot_size % align_of::<Slot>() != 0 {
        return Err(bad("the size of a slot makes no sense"));
    }
    if slot_size
        .checked_mul(count as usize)
        .is_none_or(|size| size > len)
    {
        return Err(bad("the slots are larger than their mapping"));
    }
    Ok(())
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
        let error = check_incompat(0x10).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("0x10"));
    }

    #[test]
    fn layouts_that_leave_the_mapping_are_refused() {
        assert!(check_layout(8, 32, 256).is_ok());
        assert!(check_layout(8, 64, 512).is_ok());
        assert!(check_layout(0, 32, 256).is_err());
        assert!(check_layout(6, 32, 256).is_err());
        assert!(check_layout(8, 24, 256).is_err());
        assert!(check_layout(8, 36, 512).is_err());
        assert!(check_layout(8, 32, 255).is_err());
        assert!(check_layout(1 << 31, usize::MAX & !7, 256).is_err());
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
        for field in [0u32, 0, 4, 64, 1] {
            file.write_all(&field.to_ne_bytes()).unwrap();
        }
        file.set_len(KEVENT_OFF_SLOTS + 4096).unwrap();

        let params = Params {
            slots: 4,
            header_size: 4096,
            slots_size: 256,
            ..Params::default()
        };
        let mapping = Mapping::new(file.as_fd(), &params).unwrap();
        assert_eq!(mapping.slots(), 4);
        assert_eq!(mapping.header().flags.load(Relaxed), 1);
        mapping.slot(5).word.store(7, Relaxed);
        assert_eq!(mapping.slot(1).word.load(Relaxed), 7);
        let apart =
            ptr::from_ref(mapping.slot(1)) as usize - ptr::from_ref(mapping.slot(0)) as usize;
        assert_eq!(apart, 64);
    }
}
