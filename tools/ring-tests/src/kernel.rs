// SPDX-License-Identifier: MIT
//! A stand-in for the kernel around `events.rs` and `ring.rs`: the memory, the
//! queue's lock, and `kevent_getevents()` without its sleep.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::Arc;
use std::time::Duration;

use kevent::Event;

use crate::abi::{self, Slot, Ukevent};
use crate::consumer::{Backend, Consumer};
use crate::events::{Entry, Events, Full, Post, Record};
use crate::ring::{Payload, SlotMemory};
use crate::sync::{AtomicBool, AtomicU64, Mutex};

/// What is wrong with the kernel, to see that a test would notice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// F of `ring.rs` is missing.
    pub(crate) no_barrier: bool,
    /// A has no release semantics.
    pub(crate) relaxed_publish: bool,
    /// The words say nothing of the lap.
    pub(crate) no_generation: bool,
}

const GEN: u64 = (abi::KEVENT_WORD_GEN_MASK as u64) << abi::KEVENT_WORD_GEN_SHIFT;

/// The memory of a ring.
pub(crate) struct Memory {
    slots: Box<[Slot]>,
    overflow: AtomicBool,
    faults: Faults,
    /// The generations that the words would have, if they are left out.
    kept: Box<[AtomicU64]>,
}

impl Memory {
    fn new(slots: u32, faults: Faults) -> Self {
        Self {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            overflow: AtomicBool::new(false),
            faults,
            kept: (0..slots).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The slot, modulo the number of slots.
    pub(crate) fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize % self.slots.len()]
    }

    fn shown(&self, word: u64) -> u64 {
        if self.faults.no_generation {
            word & !GEN
        } else {
            word
        }
    }
}

impl SlotMemory for Arc<Memory> {
    fn load_acquire(&self, slot: u32) -> u64 {
        let word = self.slots[slot as usize].word.load(Acquire);
        if self.faults.no_generation {
            word | self.kept[slot as usize].load(Relaxed)
        } else {
            word
        }
    }

    fn store_release(&self, slot: u32, word: u64) {
        if self.faults.no_generation {
            self.kept[slot as usize].store(word & GEN, Relaxed);
        }
        let order = if self.faults.relaxed_publish {
            Relaxed
        } else {
            Release
        };
        self.slots[slot as usize]
            .word
            .store(self.shown(word), order);
    }

    // Weaker than in the kernel, where it is a full barrier on both sides if it
    // succeeds.
    fn cmpxchg(&self, slot: u32, old: u64, new: u64) -> bool {
        self.slots[slot as usize]
            .word
            .compare_exchange(self.shown(old), self.shown(new), AcqRel, Relaxed)
            .is_ok()
    }

    fn write_payload(&self, slot: u32, payload: &Payload) {
        let slot = &self.slots[slot as usize];
        slot.user_data.store(payload.user_data, Relaxed);
        slot.ident.store(payload.ident, Relaxed);
        slot.source.store(payload.source, Relaxed);
    }

    fn full_barrier(&self) {
        if self.faults.no_barrier {
            return;
        }
        #[cfg(loom)]
        loom::sync::atomic::fence(SeqCst);
        #[cfg(not(loom))]
        std::sync::atomic::fence(SeqCst);
    }

    fn set_overflow(&self, on: bool) {
        self.overflow.store(on, Relaxed);
    }
}

type Queue = Events<Arc<Memory>, Box<[Record]>, Box<[Entry<u64>]>>;

/// A queue.
pub(crate) struct Kernel {
    pub(crate) memory: Arc<Memory>,
    queue: Mutex<Queue>,
}

impl Kernel {
    /// A queue without registrations.
    pub(crate) fn new(slots: u32) -> Arc<Self> {
        Self::faulty(slots, Faults::default())
    }

    /// One that has faults.
    pub(crate) fn faulty(slots: u32, faults: Faults) -> Arc<Self> {
        let memory = Arc::new(Memory::new(slots, faults));
        let records = (0..slots).map(|_| Record::UNUSED).collect();
        let entries = (0..slots).map(|_| Entry::FREE).collect();
        let queue = Events::new(Arc::clone(&memory), records, entries).unwrap();
        Arc::new(Self {
            memory,
            queue: Mutex::new(queue),
        })
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Queue) -> T) -> T {
        f(&mut self.queue.lock().unwrap())
    }

    /// Registers a source that is called `name`; its other data follow from it.
    pub(crate) fn add(&self, name: u64) -> Result<u32, Full> {
        let payload = Payload {
            user_data: name,
            ident: !name,
            source: name as u16,
        };
        self.locked(|queue| queue.add(payload, 0xffff, name))
    }

    pub(crate) fn post(&self, id: u32, bits: u32) -> Post {
        self.locked(|queue| queue.post(id, bits, 0))
    }

    /// Ends a registration and tells the name that it was added with.
    pub(crate) fn remove(&self, id: u32) -> Option<u64> {
        self.locked(|queue| queue.remove(id))
    }

    #[cfg(not(loom))]
    pub(crate) fn modify(&self, id: u32, interest: u32, name: u64) {
        self.locked(|queue| queue.modify(id, interest, name));
    }

    /// Collects, and checks that what comes is whole.
    pub(crate) fn collect(self: &Arc<Self>, max: usize) -> Vec<Event> {
        let mut raw = vec![Ukevent::default(); max];
        let count = self.getevents(&mut raw, 0, None).unwrap();
        raw[..count].iter().map(Event::from).collect()
    }

    /// How many events there are, counting no further than `limit`.
    #[cfg(not(loom))]
    pub(crate) fn count(&self, limit: u32) -> u32 {
        self.locked(|queue| queue.count(limit))
    }

    /// The oldest event, unclaimed.
    #[cfg(not(loom))]
    pub(crate) fn find(&self) -> Option<crate::events::Event> {
        self.locked(|queue| queue.find(&mut 0, 99).map(|(event, _)| event))
    }

    #[cfg(not(loom))]
    pub(crate) fn claim(&self, event: &crate::events::Event, untouched: bool) -> bool {
        self.locked(|queue| queue.claim(event, untouched))
    }

    /// A consumer, the library's.
    pub(crate) fn consumer(self: &Arc<Self>, limit: usize) -> Consumer<Arc<Self>> {
        Consumer::new(Arc::clone(self), limit)
    }
}

impl Backend for Arc<Kernel> {
    fn slots(&self) -> u32 {
        self.memory.slots.len() as u32
    }

    fn slot(&self, index: u32) -> &Slot {
        self.memory.slot(index)
    }

    fn flags(&self) -> u32 {
        if self.memory.overflow.load(Relaxed) {
            abi::KEVENT_RING_OVERFLOW
        } else {
            0
        }
    }

    fn getevents(
        &self,
        events: &mut [Ukevent],
        min: usize,
        _: Option<Duration>,
    ) -> io::Result<usize> {
        let slots = self.slots();
        self.locked(|queue| {
            if events.is_empty() {
                return Ok(queue.count(min as u32) as usize);
            }
            let mut count = 0;
            let mut pos = 0;
            queue.flush(slots);
            while count < events.len() {
                let Some((event, _)) = queue.find(&mut pos, slots) else {
                    break;
                };
                if queue.claim(&event, false) {
                    events[count] = Ukevent {
                        ident: event.payload.ident,
                        source: event.payload.source,
                        events: event.value,
                        user_data: event.payload.user_data,
                        ..Ukevent::default()
                    };
                    count += 1;
                }
                queue.flush(slots);
            }
            Ok(count)
        })
    }
}

/// Panics if the parts of an event are not those of one registration.
pub(crate) fn whole(event: &Event) {
    let name = event.user_data;
    assert!(
        event.ident == !name && event.source == name as u16,
        "torn: {event:?}"
    );
}

/// Claims what is in a slot as `<linux/kevent.h>` says, without a cursor.
pub(crate) fn claim_at(slot: &Slot) -> Option<Event> {
    claim_with(slot, Acquire)
}

/// [`claim_at`] with C of `ring.rs` as weak as is asked for.
pub(crate) fn claim_with(slot: &Slot, order: crate::sync::Ordering) -> Option<Event> {
    loop {
        let word = slot.word.load(order);
        if word & abi::KEVENT_WORD_READY == 0 {
            return None;
        }
        let event = Event {
            user_data: slot.user_data.load(Relaxed),
            ident: slot.ident.load(Relaxed),
            value: abi::word_value(word),
            source: slot.source.load(Relaxed),
        };
        let claimed = abi::word_claimed(word);
        let success = if order == Relaxed { Release } else { AcqRel };
        if slot
            .word
            .compare_exchange(word, claimed, success, Relaxed)
            .is_ok()
        {
            return (event.value != 0).then_some(event);
        }
    }
}
