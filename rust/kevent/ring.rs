// SPDX-License-Identifier: GPL-2.0

//! The kernel's side of the ring: who owns which slot, and what is in it.
//!
//! Plain Rust without kernel types: the file is compiled into the kernel and, unchanged, into the
//! host tests.  The other side, the consumer's, is specified in `include/uapi/linux/kevent.h`.
//!
//! # The word
//!
//! Each slot has a 64-bit word, `value:32 | generation:31 | owner:1`.  Owner 1 means that the slot
//! holds an event, which anybody who has mapped the ring may claim by exchanging the word for its
//! generation alone.  The generation is the lap of the slot, counted from 1.
//!
//! # What is trusted
//!
//! User space can write any slot at any time.  The kernel keeps a private [`Record`] of each slot
//! and draws one conclusion from the shared word: *it is still what I wrote*, so the event is
//! unclaimed; or it is not, so the event is gone.  Positions, generations, owners and payloads are
//! never read back.  Whoever scribbles over the ring can lose or repeat events of its own.
//!
//! # Locking
//!
//! All methods are called under the lock of the queue, which is what `&mut self` stands for.
//! None sleeps, allocates or touches user memory through a user address.
//!
//! # Memory ordering
//!
//! ```text
//! kernel (under the queue's lock)          consumer (no lock)
//!
//! publish:  write payload                  claim:  (C) load word, acquire
//!       (A) store word, release                        read payload
//!                                                  (D) cmpxchg word, acquire and release
//! release:                                 after a batch of claims:
//!       (B) load word, acquire                     (E) full fence
//!           the slot is nobody's                       look at the sources
//!           (next lap) write payload
//! merge:    (source changes its state)
//!       (F) full barrier
//!       (G) load word
//! ```
//!
//! - A pairs with C: who sees the word sees the payload.  Otherwise a consumer reads the payload
//!   of the lap before.
//! - D pairs with B: a payload is not overwritten before its reader has finished with it.
//!   Otherwise a consumer claims an event and hands out the payload of the next one.
//! - F pairs with E: store buffering.  The source stores its state and the kernel loads the word;
//!   the consumer stores the word and loads the state.  With both barriers one of them sees the
//!   other's store: either the kernel finds the slot claimed and posts anew, or the consumer finds
//!   the new state.  Without either of them the kernel can skip the event as already there while
//!   the consumer finds nothing: a lost event.

use core::{
    mem,
    ops::DerefMut, //
};

pub(crate) const READY: u64 = 1;
pub(crate) const GEN_SHIFT: u32 = 1;
pub(crate) const GEN_MASK: u64 = 0x7fff_ffff;
pub(crate) const VALUE_SHIFT: u32 = 32;

/// Makes the word of an unclaimed event.
fn ready_word(value: u32, gen: u64) -> u64 {
    u64::from(value) << VALUE_SHIFT | (gen & GEN_MASK) << GEN_SHIFT | READY
}

/// Returns the word that a claim leaves behind.
fn claimed_word(word: u64) -> u64 {
    word & GEN_MASK << GEN_SHIFT
}

/// Returns the value in a word.
pub(crate) fn value_of(word: u64) -> u32 {
    (word >> VALUE_SHIFT) as u32
}

/// Returns `word` with another value.
fn with_value(word: u64, value: u32) -> u64 {
    word & !(u64::from(u32::MAX) << VALUE_SHIFT) | u64::from(value) << VALUE_SHIFT
}

/// What a slot says beside its word.  It does not change while the slot is unclaimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Payload {
    /// Handed back as it was given.
    pub(crate) user_data: u64,
    /// What of the source, for example a file descriptor.
    pub(crate) ident: u64,
    /// One of `KEVENT_SOURCE_*`.
    pub(crate) source: u16,
    /// Tells registrations of one `source` and `ident` apart.
    pub(crate) tag: u32,
}

/// The bit of a value that is not part of a count.
pub(crate) const COUNT_FLAG: u32 = 1 << 31;

/// What happened, and how it adds to what an unclaimed event says already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// These bits became true.
    Bits(u32),
    /// It happened so many times more; the highest bit is a flag beside the count.
    Count(u32),
    /// This is the value now.
    Value(u32),
}

impl Update {
    /// Returns what is to be said, if `old` was said before; zero is nothing.
    pub(crate) fn apply(self, old: u32) -> u32 {
        match self {
            Self::Bits(bits) => old | bits,
            Self::Count(n) => {
                // The counts are below 2^31 each, so the sum does not overflow.
                let sum = (old & !COUNT_FLAG).wrapping_add(n & !COUNT_FLAG);

                sum.min(!COUNT_FLAG) | (old | n) & COUNT_FLAG
            }
            Self::Value(value) => value,
        }
    }

    /// Returns an update of the same kind.
    pub(crate) fn with(self, value: u32) -> Self {
        match self {
            Self::Bits(_) => Self::Bits(value),
            Self::Count(_) => Self::Count(value),
            Self::Value(_) => Self::Value(value),
        }
    }
}

/// The memory that is shared with user space.
///
/// Implementations must tolerate any content and any concurrent access, and ignore a `slot` that
/// is out of bounds.
pub(crate) trait SlotMemory {
    /// Loads the word of `slot` with acquire semantics.
    fn load_acquire(&self, slot: u32) -> u64;
    /// Replaces the word of `slot` if it is `old`; a full barrier if it is.
    fn cmpxchg(&self, slot: u32, old: u64, new: u64) -> bool;
    /// Writes everything of `slot` but its word, in any order, and then stores the word with
    /// release semantics.
    fn publish(&self, slot: u32, payload: &Payload, word: u64);
    /// Executes a full memory barrier.
    fn full_barrier(&self);
}

/// Whose event a slot holds, as far as the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Nobody's: the slot can be used.
    Nobody,
    /// That registration's, unless it has been claimed meanwhile.
    Registration(u32),
    /// A registration's that is gone; the slot is to be claimed and to be ignored.
    Cancelled,
}

/// What the kernel knows of a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// What the kernel last wrote to the slot's word.
    word: u64,
    owner: Owner,
}

impl Record {
    /// A slot that has never been used.
    pub(crate) const UNUSED: Self = Self {
        word: 0,
        owner: Owner::Nobody,
    };
}

/// What became of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merge {
    /// The unclaimed event has the new bits, or had them already.
    Merged,
    /// The event had been claimed: it takes a new slot to report the bits.
    Claimed,
}

/// What [`Ring::find`] does with cancelled events that it comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cancelled {
    /// It claims them: it is a consumer, which claims in order.
    Claim,
    /// It leaves them to the consumers: it only looks.
    Leave,
}

/// An unclaimed event found by [`Ring::find`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// Where it is.
    pub(crate) slot: u32,
    /// The word it had.
    pub(crate) word: u64,
    /// The registration that it is of.
    pub(crate) id: u32,
}

/// The ring.
///
/// # Invariants
///
/// - `records.len()` is a power of two, at most 2^31, and `mask` is one less.
/// - `head <= tail <= head + records.len()`.
/// - A record whose owner is not [`Owner::Nobody`] belongs to a position in `head..tail`.
/// - `cancelled` is the number of records whose owner is [`Owner::Cancelled`].
/// - At most one record is owned by each registration.
pub(crate) struct Ring<M, R> {
    mem: M,
    records: R,
    mask: u32,
    /// The oldest position that may be unclaimed.
    head: u64,
    /// The next position to post to.
    tail: u64,
    cancelled: u32,
}

impl<M: SlotMemory, R: DerefMut<Target = [Record]>> Ring<M, R> {
    /// Makes an empty ring, whose memory must be zero.
    ///
    /// `records` must all be [`Record::UNUSED`].  Returns [`None`] if their number is not a power
    /// of two.
    pub(crate) fn new(mem: M, records: R) -> Option<Self> {
        let slots = u32::try_from(records.len()).ok()?;

        if !slots.is_power_of_two() {
            return None;
        }
        // INVARIANT: Checked above; nothing was posted yet.
        Some(Self {
            mem,
            records,
            mask: slots - 1,
            head: 0,
            tail: 0,
            cancelled: 0,
        })
    }

    /// Returns the shared memory.
    pub(crate) fn mem(&self) -> &M {
        &self.mem
    }

    /// Returns the number of slots.
    pub(crate) fn slots(&self) -> u32 {
        self.mask.wrapping_add(1)
    }

    /// Returns how many slots are taken by events of registrations that are gone, as far as the
    /// kernel knows; see [`Ring::advance`].
    pub(crate) fn cancelled(&self) -> u32 {
        self.cancelled
    }

    /// Returns whether all events were claimed, as far as the kernel knows; see [`Ring::advance`].
    pub(crate) fn is_drained(&self) -> bool {
        self.head == self.tail
    }

    /// Returns at most how many events are unclaimed.
    pub(crate) fn unclaimed_at_most(&self) -> u64 {
        self.tail.wrapping_sub(self.head)
    }

    #[inline(always)]
    fn slot_of(&self, pos: u64) -> u32 {
        // CAST: The mask makes it fit.
        pos as u32 & self.mask
    }

    fn gen_of(&self, pos: u64) -> u64 {
        (pos >> self.slots().trailing_zeros()).wrapping_add(1)
    }

    #[inline(always)]
    fn record(&mut self, slot: u32) -> Option<&mut Record> {
        self.records.get_mut(slot as usize)
    }

    /// Returns the record of `slot` if it holds an unclaimed event.
    ///
    /// If the event was claimed, the slot becomes nobody's.
    #[inline(always)]
    fn unclaimed(&mut self, slot: u32) -> Option<Record> {
        let record = *self.record(slot)?;

        if record.owner == Owner::Nobody {
            return None;
        }
        // (B)
        if self.mem.load_acquire(slot) == record.word {
            Some(record)
        } else {
            self.release(slot);
            None
        }
    }

    /// Returns the record of `slot` if it holds an unclaimed event of the registration `id`.
    ///
    /// If the event was claimed, the slot becomes nobody's.
    #[inline(always)]
    fn owned(&mut self, slot: u32, id: u32) -> Option<Record> {
        match self.records.get_mut(slot as usize) {
            Some(record) if record.owner == Owner::Registration(id) => {
                // (B)
                if self.mem.load_acquire(slot) == record.word {
                    return Some(*record);
                }
                record.owner = Owner::Nobody;
                None
            }
            _ => None,
        }
    }

    /// Makes `slot` nobody's.
    #[inline(always)]
    fn release(&mut self, slot: u32) {
        if let Some(record) = self.record(slot) {
            if mem::replace(&mut record.owner, Owner::Nobody) == Owner::Cancelled {
                self.cancelled = self.cancelled.wrapping_sub(1);
            }
        }
    }

    /// Makes `slot` nobody's, of which a failed exchange, which orders nothing, has shown that its
    /// event was claimed.
    #[cold]
    fn lost(&mut self, slot: u32) {
        // (B)
        self.mem.load_acquire(slot);
        self.release(slot);
    }

    /// Claims the unclaimed event in `slot` for the kernel and makes the slot nobody's.
    ///
    /// Returns false if somebody else was first.
    fn take(&mut self, slot: u32, record: Record) -> bool {
        if self
            .mem
            .cmpxchg(slot, record.word, claimed_word(record.word))
        {
            self.release(slot);
            true
        } else {
            self.lost(slot);
            false
        }
    }

    /// Forgets claimed events at the old end of the ring, at most `limit` of them.
    ///
    /// Returns whether there may be more to forget.
    pub(crate) fn advance(&mut self, limit: u32) -> bool {
        for _ in 0..limit {
            if self.head == self.tail || self.unclaimed(self.slot_of(self.head)).is_some() {
                return false;
            }
            // INVARIANT: The record at `head` is nobody's, and `head < tail`.
            self.head = self.head.wrapping_add(1);
        }
        true
    }

    /// Posts an event of the registration `id`, which must have no unclaimed one.
    ///
    /// Returns the slot, or [`None`] if the next slot still holds an unclaimed event.
    #[inline(always)]
    pub(crate) fn publish(&mut self, id: u32, value: u32, payload: &Payload) -> Option<u32> {
        let pos = self.tail;
        let slot = self.slot_of(pos);

        // If it is not the slot of `head` as well, then it is nobody's.
        if self.unclaimed_at_most() > u64::from(self.mask) {
            if self.unclaimed(slot).is_some() {
                return None;
            }
            // INVARIANT: `slot` is also the slot of `head`, and it is nobody's.
            self.head = self.head.wrapping_add(1);
        }

        let word = ready_word(value, self.gen_of(pos));

        // (A)
        self.mem.publish(slot, payload, word);
        if let Some(record) = self.record(slot) {
            *record = Record {
                word,
                owner: Owner::Registration(id),
            };
        }
        self.tail = pos.wrapping_add(1);
        Some(slot)
    }

    /// Returns whether the event that the registration `id` has in `slot` is unclaimed.
    pub(crate) fn holds(&mut self, slot: u32, id: u32) -> bool {
        self.owned(slot, id).is_some()
    }

    /// Adds `update` to the event that the registration `id` has in `slot`, if it is unclaimed.
    #[inline(always)]
    pub(crate) fn merge(&mut self, slot: u32, id: u32, update: Update) -> Merge {
        // (F) The state that the source reports must be visible to a consumer whose claim is not
        // visible at (G), in `owned`.
        self.mem.full_barrier();
        let Some(record) = self.owned(slot, id) else {
            return Merge::Claimed;
        };

        let word = with_value(record.word, update.apply(value_of(record.word)));

        if word == record.word || self.replace(slot, record, word) {
            Merge::Merged
        } else {
            Merge::Claimed
        }
    }

    /// Makes the event that the registration `id` has in `slot` one to be ignored, if it is
    /// unclaimed.  No later claim yields it.
    ///
    /// Returns what it said.
    pub(crate) fn cancel(&mut self, slot: u32, id: u32) -> Option<u32> {
        let record = self.owned(slot, id)?;

        if !self.replace(slot, record, with_value(record.word, 0)) {
            return None;
        }
        if let Some(record) = self.record(slot) {
            record.owner = Owner::Cancelled;
            self.cancelled = self.cancelled.wrapping_add(1);
        }
        Some(value_of(record.word))
    }

    /// Changes the word of an unclaimed slot.
    ///
    /// Returns false, and makes the slot nobody's, if it was claimed.
    fn replace(&mut self, slot: u32, old: Record, word: u64) -> bool {
        if !self.mem.cmpxchg(slot, old.word, word) {
            self.lost(slot);
            return false;
        }
        if let Some(record) = self.record(slot) {
            record.word = word;
        }
        true
    }

    /// Claims the event that was found, for the kernel.
    ///
    /// Returns whether it was still there and still the same.
    pub(crate) fn claim(&mut self, found: &Found) -> bool {
        match self.owned(found.slot, found.id) {
            Some(record) if record.word == found.word => self.take(found.slot, record),
            _ => false,
        }
    }

    /// Finds the oldest unclaimed event at or after position `*pos`, looking at no more than
    /// `limit` slots, and leaves in `*pos` where to go on.
    ///
    /// Cancelled events are claimed on the way, or not.  [`None`] with `*pos` below [`Ring::tail`]
    /// means that the limit was reached.
    pub(crate) fn find(
        &mut self,
        pos: &mut u64,
        limit: u32,
        cancelled: Cancelled,
    ) -> Option<Found> {
        self.advance(limit);
        *pos = (*pos).max(self.head);

        for _ in 0..limit {
            if *pos >= self.tail {
                break;
            }

            let slot = self.slot_of(*pos);

            *pos = pos.wrapping_add(1);
            if let Some(record) = self.unclaimed(slot) {
                if let Owner::Registration(id) = record.owner {
                    return Some(Found {
                        slot,
                        word: record.word,
                        id,
                    });
                }
                if cancelled == Cancelled::Claim {
                    self.take(slot, record);
                }
            }
        }
        None
    }

    /// Returns the oldest position that may be unclaimed.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Returns the next position to post to.
    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }
}
