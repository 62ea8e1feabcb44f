// SPDX-License-Identifier: GPL-2.0

//! The memory of a ring: its header and its slots, mapped into the kernel and into programs.
//!
//! Programs can write the slots at any time, so there are no Rust references to them but those to
//! atomics: each access is one atomic operation on one word.

use crate::{
    abi::{
        kevent_ring,
        kevent_slot, //
    },
    events::Header,
    ring::{
        Payload,
        SlotMemory, //
    },
};
use core::{
    alloc::Layout,
    mem::offset_of,
    ptr::NonNull, //
};
use kernel::{
    alloc::{
        allocator::Vmalloc,
        flags::{
            __GFP_NOWARN,
            __GFP_ZERO, //
        },
        Allocator,
        Flags,
        NumaNode, //
    },
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

/// Returns how memory is allocated whose size is up to a program: that there is not so much is no
/// news for the kernel's log.
pub(crate) fn as_asked_for() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_NOWARN
}

/// Pages that programs can map.
///
/// # Invariants
///
/// `start` is the address of a [`Vmalloc`] allocation of `layout` that this owns, whole pages.
struct SharedPages {
    start: NonNull<u8>,
    layout: Layout,
}

impl SharedPages {
    /// Allocates at least `size` bytes on `node`, zeroed and charged to the caller's memory cgroup.
    fn new(size: usize, node: NumaNode) -> Result<Self> {
        let size = page_align(size).ok_or(EINVAL)?;
        let layout = Layout::from_size_align(size, PAGE_SIZE).map_err(|_| EINVAL)?;
        let pages = Vmalloc::alloc(layout, as_asked_for() | __GFP_ZERO, node)?;

        // INVARIANT: It is such an allocation.
        Ok(Self {
            start: pages.cast(),
            layout,
        })
    }

    /// Returns the number of bytes.
    fn size(&self) -> usize {
        self.layout.size()
    }

    /// Maps the pages into the program; the area must not be larger.
    fn map(&self, vma: &VmaNew) -> Result {
        let size = vma.end() - vma.start();

        if vma.flags() & flags::SHARED == 0 || size > self.size() {
            return Err(EINVAL);
        }
        // Nothing here is code, nor will it grow.
        vma.try_clear_mayexec().map_err(|_| EPERM)?;
        vma.set_dontexpand();

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
        // SAFETY: By the invariant, and nobody uses the pages any more.  Programs that still map
        // them have references to them.
        unsafe { Vmalloc::free(self.start, self.layout) };
    }
}

// SAFETY: The pages can be used on any thread.
unsafe impl Send for SharedPages {}
// SAFETY: All accesses to the pages are atomic.
unsafe impl Sync for SharedPages {}

/// The header of a ring.
pub(crate) struct RingHeader(SharedPages);

impl RingHeader {
    /// Allocates a header.  May sleep.
    pub(crate) fn new(node: NumaNode) -> Result<Self> {
        let header = Self(SharedPages::new(size_of::<kevent_ring>(), node)?);

        header
            .word(offset_of!(kevent_ring, slot_size))
            // CAST: A slot is small.
            .store(size_of::<kevent_slot>() as u32, Relaxed);
        Ok(header)
    }

    /// Returns how many bytes can be mapped.
    pub(crate) fn size(&self) -> usize {
        self.0.size()
    }

    /// Maps the header.  May sleep.
    pub(crate) fn map(&self, vma: &VmaNew) -> Result {
        vma.try_clear_maywrite().map_err(|_| EPERM)?;
        self.0.map(vma)
    }

    /// Returns what the consumers are told: `KEVENT_RING_*`.
    pub(crate) fn flags(&self) -> u32 {
        self.word(offset_of!(kevent_ring, flags)).load(Relaxed)
    }

    /// Returns the sum of the numbers of slots of all rings.
    pub(crate) fn rings(&self) -> u32 {
        self.word(offset_of!(kevent_ring, rings)).load(Relaxed)
    }

    /// Returns the 32-bit word at `offset` of the header.
    fn word(&self, offset: usize) -> &Atomic<u32> {
        // SAFETY: The header is in the first page, which is aligned, and all accesses to it are
        // atomic.
        unsafe { Atomic::from_ptr(self.0.start.add(offset).as_ptr().cast()) }
    }
}

impl Header for Arc<RingHeader> {
    fn set_flags(&self, overflow: bool, level_ready: bool) {
        let overflow = u32::from(overflow) * uapi::KEVENT_RING_OVERFLOW;
        let level_ready = u32::from(level_ready) * uapi::KEVENT_RING_LEVEL_READY;

        self.word(offset_of!(kevent_ring, flags))
            .store(overflow | level_ready, Relaxed);
    }

    fn set_rings(&self, slots: u32, rings: u32) {
        let number = self.word(offset_of!(kevent_ring, slots));

        if number.load(Relaxed) != 0 && number.load(Relaxed) != slots {
            self.word(offset_of!(kevent_ring, incompat))
                .store(uapi::KEVENT_RING_INCOMPAT_GROWN, Relaxed);
        }
        // Who sees a larger set also sees all events of the others: no more are posted there.
        self.word(offset_of!(kevent_ring, rings))
            .store(rings, Release);
        number.store(slots, Relaxed);
    }
}

/// The slots of a ring.
///
/// # Invariants
///
/// `slots` is not larger than the number of slots that fit in `pages`.
pub(crate) struct RingMemory {
    pages: SharedPages,
    slots: u32,
}

impl RingMemory {
    /// Allocates the slots of a ring.  May sleep.
    pub(crate) fn new(slots: u32, node: NumaNode) -> Result<Self> {
        let size = (slots as usize)
            .checked_mul(size_of::<kevent_slot>())
            .ok_or(EINVAL)?;

        // INVARIANT: The pages have room for that many.
        Ok(Self {
            pages: SharedPages::new(size, node)?,
            slots,
        })
    }

    /// Returns how many bytes can be mapped.
    pub(crate) fn size(&self) -> usize {
        self.pages.size()
    }

    /// Maps the slots.  May sleep.
    pub(crate) fn map(&self, vma: &VmaNew) -> Result {
        self.pages.map(vma)
    }

    /// Returns the slot `slot` as words, or [`None`] if there is none.
    #[inline(always)]
    fn slot(&self, slot: u32) -> Option<&[Atomic<u64>; SLOT_WORDS]> {
        if slot >= self.slots {
            return None;
        }

        let offset = slot as usize * size_of::<kevent_slot>();

        // SAFETY: By the invariant the slot is within the pages; slots are aligned, and all
        // accesses by the kernel are atomic.
        Some(unsafe { self.pages.start.add(offset).cast().as_ref() })
    }

    /// Returns the word of a slot.
    #[inline(always)]
    fn word(&self, slot: u32) -> Option<&Atomic<u64>> {
        self.slot(slot)
            .map(|words| &words[const { index(offset_of!(kevent_slot, word)) }])
    }
}

/// How many words there are in a slot.
const SLOT_WORDS: usize = index(size_of::<kevent_slot>());

/// Returns the number of the word at `offset` of a slot.
const fn index(offset: usize) -> usize {
    offset / size_of::<u64>()
}

impl SlotMemory for Arc<RingMemory> {
    #[inline]
    fn load_acquire(&self, slot: u32) -> u64 {
        self.word(slot).map_or(0, |word| word.load(Acquire))
    }

    #[inline]
    fn cmpxchg(&self, slot: u32, old: u64, new: u64) -> bool {
        self.word(slot)
            .is_some_and(|word| word.cmpxchg(old, new, Full).is_ok())
    }

    #[inline]
    fn publish(&self, slot: u32, payload: &Payload, word: u64) {
        let Some(words) = self.slot(slot) else {
            return;
        };
        // The fields after the ident, as one word in the order of their offsets.
        let rest = if cfg!(target_endian = "little") {
            u64::from(payload.source) | u64::from(payload.tag) << 32
        } else {
            u64::from(payload.source) << 48 | u64::from(payload.tag)
        };

        words[const { index(offset_of!(kevent_slot, user_data)) }]
            .store(payload.user_data, Relaxed);
        words[const { index(offset_of!(kevent_slot, ident)) }].store(payload.ident, Relaxed);
        words[const { index(offset_of!(kevent_slot, source)) }].store(rest, Relaxed);
        words[const { index(offset_of!(kevent_slot, word)) }].store(word, Release);
    }

    #[inline]
    fn full_barrier(&self) {
        barrier::smp_mb(barrier::Full);
    }
}
