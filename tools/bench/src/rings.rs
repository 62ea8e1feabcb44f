// SPDX-License-Identifier: MIT
//! The rings that are compared: the kernel's, from its very file, in which each
//! entry says who owns it; rings with a head and a tail, in one cache line as in
//! Linux AIO, or in two; and one as io_uring's completion queue, whose kernel side
//! looks at the head only when it must, and whose consumers need a lock of their
//! own.
//!
//! Producers are what the kernel does under the lock of its queue, without the
//! lock: there is one of them, so it would cost all rings the same.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{fence, AtomicBool, AtomicU64};
use std::sync::Arc;

use crate::ring::{Payload, Record, Ring, SlotMemory};

/// How many events a consumer takes at once, at most.
pub const BATCH: u64 = 64;

const WORDS_PER_LINE: usize = 8;

/// A cache line of the shared memory.
#[repr(align(64))]
#[derive(Default)]
struct Line([AtomicU64; WORDS_PER_LINE]);

/// Shared entries, each of so many words of 64 bits.
struct Memory<const WORDS: usize> {
    lines: Box<[Line]>,
}

impl<const WORDS: usize> Memory<WORDS> {
    fn new(entries: u32) -> Self {
        let lines = entries as usize * WORDS / WORDS_PER_LINE;
        Self {
            lines: (0..lines).map(|_| Line::default()).collect(),
        }
    }

    #[inline(always)]
    fn word(&self, entry: u32, word: usize) -> &AtomicU64 {
        let at = entry as usize * WORDS + word;
        &self.lines[at / WORDS_PER_LINE].0[at % WORDS_PER_LINE]
    }

    /// Writes what an event says, beside its first word, as far as there is room.
    #[inline(always)]
    fn write(&self, entry: u32, number: u64) {
        self.word(entry, 1).store(number, Relaxed);
        if WORDS >= 4 {
            self.word(entry, 2).store(number, Relaxed);
            self.word(entry, 3).store(1, Relaxed);
        }
    }

    /// Reads the same.
    #[inline(always)]
    fn read(&self, entry: u32) -> u64 {
        if WORDS >= 4 {
            std::hint::black_box((
                self.word(entry, 2).load(Relaxed),
                self.word(entry, 3).load(Relaxed),
            ));
        }
        self.word(entry, 1).load(Relaxed)
    }
}

/// The side that posts events.
pub trait Producer: Send {
    /// Posts an event; false if the ring is full.
    fn post(&mut self, number: u64) -> bool;
}

/// A side that takes them.
pub trait Consumer: Send {
    /// Takes up to [`BATCH`] events; gives how many, and the sum of their numbers.
    fn take(&mut self) -> (u64, u64);
}

/// A ring that was made: its producer, and its consumers.
pub type Sides = (Box<dyn Producer>, Vec<Box<dyn Consumer>>);

//
// Each entry says who owns it
//

const READY: u64 = 1;
const GEN: u64 = 0xffff_fffe;

impl<const WORDS: usize> SlotMemory for Arc<Memory<WORDS>> {
    #[inline(always)]
    fn load_acquire(&self, slot: u32) -> u64 {
        self.word(slot, 0).load(Acquire)
    }

    #[inline(always)]
    fn cmpxchg(&self, slot: u32, old: u64, new: u64) -> bool {
        self.word(slot, 0)
            .compare_exchange(old, new, AcqRel, Relaxed)
            .is_ok()
    }

    #[inline(always)]
    fn publish(&self, slot: u32, payload: &Payload, word: u64) {
        self.write(slot, payload.user_data);
        self.word(slot, 0).store(word, Release);
    }

    #[inline(always)]
    fn full_barrier(&self) {
        fence(SeqCst);
    }
}

struct OwnerProducer<const WORDS: usize> {
    ring: Ring<Arc<Memory<WORDS>>, Box<[Record]>>,
    mask: u64,
}

impl<const WORDS: usize> Producer for OwnerProducer<WORDS> {
    #[inline]
    fn post(&mut self, number: u64) -> bool {
        let payload = Payload {
            user_data: number,
            ident: number,
            source: 1,
            tag: 0,
        };
        // As many registrations as slots, which become ready in turn.
        let id = (self.ring.tail() & self.mask) as u32;
        self.ring.publish(id, 1, &payload).is_some()
    }
}

/// As `<linux/kevent.h>` has it; the cursor is each consumer's own.
struct OwnerConsumer<const WORDS: usize> {
    memory: Arc<Memory<WORDS>>,
    slots: u32,
    cursor: u64,
}

impl<const WORDS: usize> Consumer for OwnerConsumer<WORDS> {
    #[inline]
    fn take(&mut self) -> (u64, u64) {
        let (mut taken, mut sum) = (0, 0);
        let shift = self.slots.trailing_zeros();

        while taken < BATCH {
            let slot = self.cursor as u32 & (self.slots - 1);
            let lap = (self.cursor >> shift) + 1;
            let word = self.memory.word(slot, 0);
            let seen = word.load(Acquire);
            let laps_ahead = ((seen & GEN) >> 1).wrapping_sub(lap) as i64;

            if laps_ahead > 0 {
                // What is between was taken by others.
                self.cursor += (laps_ahead as u64 - 1) << shift;
                self.cursor += 1;
                continue;
            }
            if laps_ahead < 0 {
                break;
            }
            if seen & READY != 0 {
                let number = self.memory.read(slot);
                if word
                    .compare_exchange(seen, seen & GEN, AcqRel, Relaxed)
                    .is_ok()
                {
                    taken += 1;
                    sum += number;
                }
            }
            self.cursor += 1;
        }
        if taken > 0 {
            fence(SeqCst);
        }
        (taken, sum)
    }
}

/// The kernel's ring, with slots of so many words.
pub fn owner<const WORDS: usize>(slots: u32, consumers: usize) -> Sides {
    let memory = Arc::new(Memory::<WORDS>::new(slots));
    let records = (0..slots).map(|_| Record::UNUSED).collect();
    let ring = Ring::new(Arc::clone(&memory), records).expect("a power of two");
    let consumer = |_| {
        Box::new(OwnerConsumer {
            memory: Arc::clone(&memory),
            slots,
            cursor: 0,
        }) as Box<dyn Consumer>
    };
    let producer = OwnerProducer {
        ring,
        mask: u64::from(slots - 1),
    };
    (Box::new(producer), (0..consumers).map(consumer).collect())
}

//
// Head and tail
//

/// The line that has the tail; and the head, unless that has one of its own.
#[derive(Default)]
struct Ends {
    first: Line,
    second: Line,
}

struct Indexed<const WORDS: usize, const LINES: usize> {
    ends: Ends,
    memory: Memory<WORDS>,
    slots: u32,
    /// Of the consumers, if they need one.
    lock: AtomicBool,
}

impl<const WORDS: usize, const LINES: usize> Indexed<WORDS, LINES> {
    fn new(slots: u32) -> Arc<Self> {
        Arc::new(Self {
            ends: Ends::default(),
            memory: Memory::new(slots),
            slots,
            lock: AtomicBool::new(false),
        })
    }

    #[inline(always)]
    fn head(&self) -> &AtomicU64 {
        if LINES == 1 {
            &self.ends.first.0[1]
        } else {
            &self.ends.second.0[0]
        }
    }

    #[inline(always)]
    fn tail(&self) -> &AtomicU64 {
        &self.ends.first.0[0]
    }

    #[inline(always)]
    fn entry(&self, position: u64) -> u32 {
        position as u32 & (self.slots - 1)
    }

    /// The sum of the numbers in `from..to`.
    #[inline(always)]
    fn sum(&self, from: u64, to: u64) -> u64 {
        (from..to)
            .map(|position| {
                let entry = self.entry(position);
                std::hint::black_box(self.memory.word(entry, 0).load(Relaxed));
                self.memory.read(entry)
            })
            .sum()
    }
}

struct IndexedProducer<const WORDS: usize, const LINES: usize> {
    ring: Arc<Indexed<WORDS, LINES>>,
    tail: u64,
    /// The head, as it was when it was last looked at.
    head: u64,
    /// Looks at the head for every event.
    always_looks: bool,
}

impl<const WORDS: usize, const LINES: usize> Producer for IndexedProducer<WORDS, LINES> {
    #[inline]
    fn post(&mut self, number: u64) -> bool {
        let ring = &*self.ring;
        let full = self.tail - self.head == u64::from(ring.slots);

        if full || self.always_looks {
            self.head = ring.head().load(Acquire);
            if self.tail - self.head == u64::from(ring.slots) {
                return false;
            }
        }
        let entry = ring.entry(self.tail);
        ring.memory.write(entry, number);
        ring.memory.word(entry, 0).store(1, Relaxed);
        self.tail += 1;
        ring.tail().store(self.tail, Release);
        true
    }
}

struct IndexedConsumer<const WORDS: usize, const LINES: usize> {
    ring: Arc<Indexed<WORDS, LINES>>,
    /// Whether there are others.
    shared: bool,
    /// Whether it takes a lock then; otherwise it exchanges the head.
    locks: bool,
}

impl<const WORDS: usize, const LINES: usize> Consumer for IndexedConsumer<WORDS, LINES> {
    #[inline]
    fn take(&mut self) -> (u64, u64) {
        let ring = &*self.ring;
        let lock = self.shared && self.locks;

        if lock {
            // Somebody else is at it already.
            if ring.lock.load(Relaxed) || ring.lock.swap(true, Acquire) {
                return (0, 0);
            }
        }
        let head = ring.head().load(Acquire);
        let end = ring.tail().load(Acquire).min(head + BATCH);
        let mut taken = (0, 0);
        if head < end {
            taken = (end - head, ring.sum(head, end));
            if self.shared && !self.locks {
                // What was read is good if nobody else was first.
                if ring
                    .head()
                    .compare_exchange(head, end, AcqRel, Relaxed)
                    .is_err()
                {
                    taken = (0, 0);
                }
            } else {
                ring.head().store(end, Release);
            }
        }
        if lock {
            ring.lock.store(false, Release);
        }
        taken
    }
}

fn indexed<const WORDS: usize, const LINES: usize>(
    slots: u32,
    consumers: usize,
    always_looks: bool,
    locks: bool,
) -> Sides {
    let ring = Indexed::<WORDS, LINES>::new(slots);
    let consumer = |_| {
        Box::new(IndexedConsumer {
            ring: Arc::clone(&ring),
            shared: consumers > 1,
            locks,
        }) as Box<dyn Consumer>
    };
    let producer = IndexedProducer {
        ring: Arc::clone(&ring),
        tail: 0,
        head: 0,
        always_looks,
    };
    (Box::new(producer), (0..consumers).map(consumer).collect())
}

/// Head and tail in `LINES` cache lines.  Several consumers exchange the head.
pub fn head_tail<const WORDS: usize, const LINES: usize>(slots: u32, consumers: usize) -> Sides {
    indexed::<WORDS, LINES>(slots, consumers, true, false)
}

/// As io_uring's.  Several consumers take a lock.
pub fn completion<const WORDS: usize>(slots: u32, consumers: usize) -> Sides {
    indexed::<WORDS, 1>(slots, consumers, false, true)
}
