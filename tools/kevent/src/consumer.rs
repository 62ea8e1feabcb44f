// SPDX-License-Identifier: MIT
//! The consumer's side of the ring protocol, as `<linux/kevent.h>` has it.
//!
//! It is generic over the memory and the kernel behind it: `consumer_tests.rs`
//! plays the kernel's part, and the crate `ring-tests` includes this very file
//! and the kernel's, to run them against each other.
//!
//! The cursor is the position that is looked for next, counted from 0 and
//! modulo 2^64.  It is this consumer's own; nothing is shared with others, and
//! nothing depends on its being right but how soon an event is found.
//!
//! A ring that grows gets a larger set of slots, and the older ones get no event
//! any more.  Whoever has seen the larger one *before* a look at all of the older
//! one has seen the last event of that, and goes on to the larger one.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::time::Duration;

use crate::abi::{self, Slot, Ukevent};
use crate::event::Event;
use crate::sync::fence;
use crate::RingStats;

/// The features of `kevent_ring.incompat` that this library knows.
pub(crate) const KNOWN_INCOMPAT: u32 = abi::KEVENT_RING_INCOMPAT_GROWN;

/// How many events are collected at most when the system call must be used.
const SPILL: usize = 64;

/// A set of slots.
pub(crate) trait Slots {
    /// How many there are: a power of two.
    fn count(&self) -> u32;

    /// The slot of a position; the index is taken modulo the number of slots.
    fn slot(&self, index: u32) -> &Slot;
}

/// A ring and the kernel behind it.
pub(crate) trait Backend {
    type Slots: Slots;

    /// The slots to begin with: no smaller set has events.
    fn oldest(&self) -> Self::Slots;

    /// The set with so many slots, or None if it is not to be had.
    fn set(&self, count: u32) -> Option<Self::Slots>;

    /// `kevent_ring.rings`, with acquire semantics
    fn rings(&self) -> u32;

    /// `kevent_ring.flags`
    fn flags(&self) -> u32;

    /// `kevent_ring.incompat`
    fn incompat(&self) -> u32 {
        0
    }

    /// `kevent_getevents()`; with no room in `events` it only waits.
    fn getevents(
        &self,
        events: &mut [Ukevent],
        min: usize,
        timeout: Option<Duration>,
    ) -> io::Result<usize>;
}

/// One consumer of a ring.
pub(crate) struct Consumer<B: Backend> {
    backend: B,
    slots: B::Slots,
    /// log2 of the number of slots
    shift: u32,
    pub(crate) cursor: u64,
    /// How many events are claimed at once, at most.
    limit: usize,
    events: Vec<Event>,
    pub(crate) stats: RingStats,
}

/// How many events the kernel collected.
struct Collected {
    all: usize,
    /// Those that were in the ring.
    of_ring: usize,
}

/// What a look at one slot gave.
enum Found {
    Event(Event),
    /// No event, but the next position is worth a look.
    Skip,
    /// What the cursor looks for is not posted yet.
    Empty,
}

impl<B: Backend> Consumer<B> {
    /// A consumer which claims up to `limit` events at once.
    pub(crate) fn new(backend: B, limit: usize) -> Self {
        let slots = backend.oldest();
        let mut consumer = Self {
            backend,
            shift: slots.count().trailing_zeros(),
            slots,
            cursor: 0,
            limit: limit.max(1),
            events: Vec::with_capacity(limit.max(1)),
            stats: RingStats::default(),
        };
        consumer.resynchronise();
        consumer
    }

    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// The events of the last batch.
    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// The generation of the cursor's position.
    fn generation(&self) -> u32 {
        (self.cursor >> self.shift).wrapping_add(1) as u32 & abi::KEVENT_WORD_GEN_MASK
    }

    /// How many laps a word is ahead of the cursor, or None if it is behind.
    fn laps_ahead(&self, word: u64) -> Option<u32> {
        let laps = abi::word_gen(word).wrapping_sub(self.generation()) & abi::KEVENT_WORD_GEN_MASK;
        (laps <= abi::KEVENT_WORD_GEN_MASK / 2).then_some(laps)
    }

    /// Goes on to the next position that may hold an event, when the slot at the
    /// cursor was posted `ahead` laps later than the cursor thinks.
    ///
    /// The kernel posts in order: when it came to that slot again, everything
    /// that is a lap or more before that was gone.
    fn step(&mut self, ahead: u32) {
        let gone = u64::from(ahead.saturating_sub(1)) << self.shift;
        self.cursor = self.cursor.wrapping_add(gone + 1);
    }

    /// Puts the cursor to the oldest position that may still hold an event.
    ///
    /// Slot 0 tells the lap, and everything up to a lap before that may still
    /// be there: the search starts at slot 1 of the lap before.  If nothing has
    /// been posted at all this is before the first lap; that does no harm, as
    /// slots of generation 0 count as consumed then.
    fn resynchronise(&mut self) {
        let lap = abi::word_gen(self.slots.slot(0).word.load(Acquire)).wrapping_sub(1)
            & abi::KEVENT_WORD_GEN_MASK;
        let before = (1u64 << self.shift) - 1;
        self.cursor = (u64::from(lap) << self.shift).wrapping_sub(before);
    }

    /// Looks at the slot of the cursor, and claims what is there.
    fn look(&mut self) -> Found {
        let slot = self.slots.slot(self.cursor as u32);
        let mut word = slot.word.load(Acquire);

        loop {
            let ahead = self.laps_ahead(word);
            if let Some(ahead @ 1..) = ahead {
                // The cursor is stale.  What is here, if anything, is younger
                // than all in between, and its turn comes.
                self.step(ahead);
                return Found::Skip;
            }
            if word & abi::KEVENT_WORD_READY == 0 {
                return match ahead {
                    Some(_) => {
                        self.step(0);
                        Found::Skip
                    }
                    None => Found::Empty,
                };
            }

            let event = Event {
                user_data: slot.user_data.load(Relaxed),
                ident: slot.ident.load(Relaxed),
                value: abi::word_value(word),
                source: slot.source.load(Relaxed),
                tag: slot.tag.load(Relaxed),
            };
            // Release: the payload was read before the kernel may use the slot
            // again.  Acquire: nothing that is done about the event is moved
            // before the claim.
            let claimed = abi::word_claimed(word);
            match slot.word.compare_exchange(word, claimed, AcqRel, Acquire) {
                Ok(_) => {
                    // An event of an earlier lap, which somebody skipped, is as
                    // good as any; but the cursor's own is still to come.
                    if ahead.is_some() {
                        self.step(0);
                    }
                    // Zero: it was cancelled.
                    return if event.value == 0 {
                        Found::Skip
                    } else {
                        Found::Event(event)
                    };
                }
                Err(now) => {
                    self.stats.retries += 1;
                    word = now;
                }
            }
        }
    }

    /// Claims what is in this set, up to the limit.  Tells whether there is
    /// nothing left.
    fn drain(&mut self) -> bool {
        // Two laps catch up with everything.  In a ring that this program has
        // scribbled over it could go on for ever.
        let mut skips = 4u64 << self.shift;
        while self.events.len() < self.limit {
            match self.look() {
                Found::Event(event) => self.events.push(event),
                Found::Skip if skips > 0 => skips -= 1,
                Found::Skip => return false,
                Found::Empty => return true,
            }
        }
        false
    }

    /// Goes on to the smallest of the sets `larger`.  Tells whether another look
    /// is worth while.
    fn go_on(&mut self, larger: u32) -> bool {
        let next = larger & larger.wrapping_neg();
        match self.backend.set(next) {
            Some(slots) => {
                self.shift = slots.count().trailing_zeros();
                self.slots = slots;
                self.resynchronise();
                true
            }
            // If it is gone, all of its events were claimed.  If it is still
            // there, it cannot be mapped, and poll() collects from it.
            None => self.backend.rings() & next == 0,
        }
    }

    /// Whether the ring has no features but those that are known here.  If it has got
    /// others meanwhile, it is left alone.
    fn understood(&self) -> bool {
        self.backend.incompat() & !KNOWN_INCOMPAT == 0
    }

    /// Claims what is there, up to the limit, beside what was collected.
    fn claim_more(&mut self) {
        if !self.understood() {
            return;
        }
        let before = self.events.len();
        loop {
            // Before the look at the slots.
            let here = self.slots.count();
            let larger = self.backend.rings() & !(here | (here - 1));
            if !self.drain() || larger == 0 || !self.go_on(larger) {
                break;
            }
        }
        let claimed = self.events.len() - before;
        if claimed > 0 {
            // The claims come before any look at the sources: the kernel either
            // sees that the events were taken, and posts anew, or the caller
            // sees what the source has to say.
            fence(SeqCst);
            self.stats.batches += 1;
            self.stats.claimed += claimed as u64;
        }
    }

    /// Claims what is there, up to the limit, and tells how much it was.
    pub(crate) fn claim(&mut self) -> usize {
        self.events.clear();
        self.claim_more();
        self.events.len()
    }

    /// Waits until there are `min` events for somebody, or the timeout is over.
    pub(crate) fn wait(&mut self, min: usize, timeout: Option<Duration>) -> io::Result<usize> {
        self.stats.waits += 1;
        self.backend.getevents(&mut [], min, timeout)
    }

    /// Claims what is there; if that is nothing, waits for it.
    pub(crate) fn poll(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        self.events.clear();
        if !self.understood() {
            return Ok(self.collect(1, timeout)?.all);
        }
        // In the call, what is in the ring and what is not take turns, so that
        // neither starves.
        if self.backend.flags() & abi::KEVENT_RING_LEVEL_READY != 0 {
            self.collect(0, Some(Duration::ZERO))?;
        }
        self.claim_more();
        if !self.events.is_empty() {
            return Ok(self.events.len());
        }
        if self.backend.flags() & abi::KEVENT_RING_OVERFLOW != 0 {
            // There are events, and they are let in as others are collected.
            return Ok(self.collect(1, timeout)?.all);
        }
        if self.wait(1, timeout)? == 0 || self.claim() != 0 {
            return Ok(self.events.len());
        }
        // There was something a moment ago, but not at the cursor.  It is
        // level-triggered, or another consumer has got it, or it is at a
        // position which this cursor has left behind: the kernel knows.
        let collected = self.collect(0, Some(Duration::ZERO))?;
        if collected.of_ring != 0 {
            self.resynchronise();
        }
        Ok(collected.all)
    }

    /// Collects through the kernel.
    fn collect(&mut self, min: usize, timeout: Option<Duration>) -> io::Result<Collected> {
        let mut raw = [Ukevent::default(); SPILL];
        let room = self.limit.min(SPILL);
        self.stats.collects += 1;
        let collected = self.backend.getevents(&mut raw[..room], min, timeout)?;
        self.stats.collected += collected as u64;
        let raw = &raw[..collected];
        self.events.extend(raw.iter().map(Event::from));
        fence(SeqCst);
        Ok(Collected {
            all: collected,
            of_ring: raw
                .iter()
                .filter(|it| it.flags & abi::KEVENT_LEVEL == 0)
                .count(),
        })
    }
}
