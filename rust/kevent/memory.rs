// SPDX-License-Identifier: GPL-2.0

//! The memory of a ring: its header and its slots, mapped into the kernel and into programs.
//!
//! Programs can write the slots at any time, so there are no Rust references to them: each access
//! is one atomic operation on one word.

use crate::{
    abi::{
        kevent_ring,
        kevent_slot,
        OFF_SLOTS, //
    },
    ring::{
        Payload,
        SlotMemory, //
    },
};
use core::{
    mem::offset_of,
    ptr::NonNull, //
};
use kernel::{
    alloc::allocator::Vmalloc,
    mm::virt::{
        flags,
        VmaNew, //
    },
    page::{
        page_align,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        barrier,
        Arc, //
    },
    uapi, //
};

/// Pages that programs can map.
///
/// # Invariants
///
/// `start` is the address of `size` bytes of a [`Vmalloc`] allocation that this owns, whole pages,
/// of which `capacity` were allocated.
struct SharedPages {
    start: NonNull<u8>,
    size: usize,
    capacity: usize,
}

impl SharedPages {
    /// Allocates at least `size` bytes, zeroed and charged to the caller's memory cgroup.
    fn new(size: usize) -> Result<Self> {
        let size = page_align(size).ok_or(EINVAL)?;
        let pages = VVec::<u8>::zeroed(size, GFP_KERNEL_ACCOUNT)?;
        let (start, size, capacity) = pages.into_raw_parts();

        // INVARIANT: These are the parts of such an allocation.
        Ok(Self {
            start: NonNull::new(start).ok_or(ENOMEM)?,
            size,
            capacity,
        })
    }

    /// Maps the pages into the program; the area must not be larger.
    fn map(&self, vma: &VmaNew) -> Result {
        let size = vma.end() - vma.start();

        if size > self.size {
            return Err(EINVAL);
        }

        let area = vma.set_mixedmap();

        for offset in (0..size).step_by(PAGE_SIZE) {
            // SAFETY: The offset is within the allocation, which outlives the page that is borrowed
            // here.
            let page = unsafe { Vmalloc::to_page(self.start.add(offset)) };

            area.vm_insert_page(vma.start() + offset, &page)?;
        }
        Ok(())
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: The parts are those that `into_raw_parts` gave, and nobody uses them any more.
        // Programs that still map the pages have references to them.
        drop(unsafe { VVec::from_raw_parts(self.start.as_ptr(), self.size, self.capacity) });
    }
}

// SAFETY: The pages can be used on any thread.
unsafe impl Send for SharedPages {}
// SAFETY: All accesses to the pages are atomic.
unsafe impl Sync for SharedPages {}

/// The memory of a ring.
///
/// # Invariants
///
/// `slots` is not larger than the number of slots that fit in `slot_pages`.
pub(crate) struct RingMemory {
    slot_pages: SharedPages,
    slots: u32,
    header_pages: SharedPages,
}

impl RingMemory {
    /// Allocates the memory of a ring.  May sleep.
    pub(crate) fn new(slots: u32) -> Result<Self> {
        let size = (slots as usize)
            .checked_mul(size_of::<kevent_slot>())
            .ok_or(EINVAL)?;
        // INVARIANT: The pages have room for that many.
        let memory = Self {
            slot_pages: SharedPages::new(size)?,
            slots,
            header_pages: SharedPages::new(size_of::<kevent_ring>())?,
        };

        memory
            .header_word(offset_of!(kevent_ring, slots))
            .store(slots, Relaxed);
        memory
            .header_word(offset_of!(kevent_ring, slot_size))
            // CAST: A slot is small.
            .store(size_of::<kevent_slot>() as u32, Relaxed);
        Ok(memory)
    }

    /// Returns how many bytes of the header can be mapped.
    pub(crate) fn header_size(&self) -> usize {
        self.header_pages.size
    }

    /// Returns how many bytes of slots can be mapped.
    pub(crate) fn slots_size(&self) -> usize {
        self.slot_pages.size
    }

    /// Maps the part of the ring that begins `offset` pages into the file.  May sleep.
    pub(crate) fn map(&self, vma: &VmaNew, offset: usize) -> Result {
        const SLOTS: usize = OFF_SLOTS / PAGE_SIZE;

        if vma.flags() & flags::SHARED == 0 {
            return Err(EINVAL);
        }
        // Nothing here is code, nor will it grow.
        vma.try_clear_mayexec().map_err(|_| EPERM)?;
        vma.set_dontexpand();

        match offset {
            0 => {
                vma.try_clear_maywrite().map_err(|_| EPERM)?;
                self.header_pages.map(vma)
            }
            SLOTS => self.slot_pages.map(vma),
            _ => Err(EINVAL),
        }
    }

    /// Returns the 32-bit word at `offset` of the header.
    fn header_word(&self, offset: usize) -> &Atomic<u32> {
        // SAFETY: The header is in the first page, which is aligned, and all accesses to it are
        // atomic.
        unsafe { Atomic::from_ptr(self.header_pages.start.add(offset).as_ptr().cast()) }
    }

    /// Returns the `u64` at `offset` of a slot, or [`None`] if there is no such slot.
    #[inline(always)]
    fn slot_word(&self, slot: u32, offset: usize) -> Option<&Atomic<u64>> {
        if slot >= self.slots {
            return None;
        }

        let offset = slot as usize * size_of::<kevent_slot>() + offset;

        // SAFETY: By the invariant the slot is within the pages; slots are aligned, and all
        // accesses by the kernel are atomic.
        Some(unsafe { Atomic::from_ptr(self.slot_pages.start.add(offset).as_ptr().cast()) })
    }
}

impl SlotMemory for Arc<RingMemory> {
    #[inline]
    fn load_acquire(&self, slot: u32) -> u64 {
        self.slot_word(slot, offset_of!(kevent_slot, word))
            .map_or(0, |word| word.load(Acquire))
    }

    #[inline]
    fn store_release(&self, slot: u32, value: u64) {
        if let Some(word) = self.slot_word(slot, offset_of!(kevent_slot, word)) {
            word.store(value, Release);
        }
    }

    #[inline]
    fn cmpxchg(&self, slot: u32, old: u64, new: u64) -> bool {
        self.slot_word(slot, offset_of!(kevent_slot, word))
            .is_some_and(|word| word.cmpxchg(old, new, Full).is_ok())
    }

    #[inline]
    fn write_payload(&self, slot: u32, payload: &Payload) {
        // The fields after the ident, as one word in the order of their offsets.
        let rest = if cfg!(target_endian = "little") {
            u64::from(payload.source)
        } else {
            u64::from(payload.source) << 48
        };

        for (offset, value) in [
            (offset_of!(kevent_slot, user_data), payload.user_data),
            (offset_of!(kevent_slot, ident), payload.ident),
            (offset_of!(kevent_slot, source), rest),
        ] {
            if let Some(word) = self.slot_word(slot, offset) {
                word.store(value, Relaxed);
            }
        }
    }

    #[inline]
    fn full_barrier(&self) {
        barrier::smp_mb(barrier::Full);
    }

    fn set_overflow(&self, on: bool) {
        let flags = if on { uapi::KEVENT_RING_OVERFLOW } else { 0 };

        self.header_word(offset_of!(kevent_ring, flags))
            .store(flags, Relaxed);
    }
}
