// SPDX-License-Identifier: MIT
//! A stand-in for the kernel around `events.rs`, `ring.rs` and `table.rs`: the
//! memory, the queue's lock, and `kevent_getevents()` without its sleep.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::Arc;
use std::time::Duration;

use kevent::Event;

use crate::abi::{self, Slot, Ukevent};
use crate::consumer::{Backend, Consumer, Slots};
use crate::events::{
    After, Claim, Entry, Events, Find, Header, Parts, Payload, Pending, Post, Record, Refused,
    Seen, Terms, Trigger, Update,
};
use crate::ring::{Ring, SlotMemory};
use crate::sync::{AtomicU32, AtomicU64, Mutex};
use crate::table::Linked;

/// What is wrong with the kernel, to see that a test would notice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// F of `ring.rs` is missing.
    pub(crate) no_barrier: bool,
    /// A has no release semantics.
    pub(crate) relaxed_publish: bool,
    /// The words say nothing of the lap.
    pub(crate) no_generation: bool,
    /// The kernel compares and exchanges in two steps.
    pub(crate) torn_exchange: bool,
    /// That there is a larger ring is told without release semantics.
    pub(crate) relaxed_rings: bool,
}

const GEN: u64 = (abi::KEVENT_WORD_GEN_MASK as u64) << abi::KEVENT_WORD_GEN_SHIFT;

/// The memory of a set of slots.
pub(crate) struct Memory {
    slots: Box<[Slot]>,
    faults: Faults,
    /// The generations that the words would have, if they are left out.
    kept: Box<[AtomicU64]>,
}

impl Memory {
    fn new(slots: u32, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            faults,
            kept: (0..slots).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    fn shown(&self, word: u64) -> u64 {
        if self.faults.no_generation {
            word & !GEN
        } else {
            word
        }
    }
}

impl Slots for Arc<Memory> {
    fn count(&self) -> u32 {
        self.slots.len() as u32
    }

    fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize % self.slots.len()]
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

    fn publish(&self, slot: u32, payload: &Payload, word: u64) {
        if self.faults.no_generation {
            self.kept[slot as usize].store(word & GEN, Relaxed);
        }
        let order = if self.faults.relaxed_publish {
            Relaxed
        } else {
            Release
        };
        let slot = &self.slots[slot as usize];
        slot.user_data.store(payload.user_data, Relaxed);
        slot.ident.store(payload.ident, Relaxed);
        slot.source.store(payload.source, Relaxed);
        slot.tag.store(payload.tag, Relaxed);
        slot.word.store(self.shown(word), order);
    }

    // Weaker than in the kernel, where it is a full barrier on both sides if it
    // succeeds.
    fn cmpxchg(&self, slot: u32, old: u64, new: u64) -> bool {
        let (word, old, new) = (
            &self.slots[slot as usize].word,
            self.shown(old),
            self.shown(new),
        );
        if self.faults.torn_exchange {
            let same = word.load(Acquire) == old;
            if same {
                word.store(new, Release);
            }
            return same;
        }
        word.compare_exchange(old, new, AcqRel, Relaxed).is_ok()
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
}

/// The header of the ring.
pub(crate) struct Board {
    flags: AtomicU32,
    rings: AtomicU32,
    faults: Faults,
}

impl Header for Arc<Board> {
    fn set_flags(&self, overflow: bool, level_ready: bool) {
        let mut flags = 0;
        if overflow {
            flags |= abi::KEVENT_RING_OVERFLOW;
        }
        if level_ready {
            flags |= abi::KEVENT_RING_LEVEL_READY;
        }
        self.flags.store(flags, Relaxed);
    }

    fn set_rings(&self, slots: u32, rings: u32) {
        assert!(slots <= rings && rings < 2 * slots);
        let order = if self.faults.relaxed_rings {
            Relaxed
        } else {
            Release
        };
        self.rings.store(rings, order);
    }
}

/// What the kernel knows of a source, beside what it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Whether what it reports is so when the kernel looks again.
    pub(crate) so: bool,
    /// Whether what happened must be remembered.
    pub(crate) counts: bool,
}

impl Item {
    /// Of a file that stays ready.
    pub(crate) const FILE: Self = Self {
        so: true,
        counts: false,
    };
}

/// What the events of the stand-in are made of.
pub(crate) struct Host;

impl Parts for Host {
    type Header = Arc<Board>;
    type Slots = Arc<Memory>;
    type Records = Box<[Record]>;
    type Ring = Box<Ring<Arc<Memory>, Box<[Record]>>>;
    type Chunk = Box<[Linked<Entry<Item>>]>;
    type Item = Item;
}

pub(crate) type Queue = Events<Host>;

/// An event that was found.
pub(crate) type Found = crate::events::Event;

fn ring(slots: u32, faults: Faults) -> Option<<Host as Parts>::Ring> {
    let records = (0..slots).map(|_| Record::UNUSED).collect();
    Ring::new(Memory::new(slots, faults), records).map(Box::new)
}

/// What a registration says that is called `name`; all of it follows from that.
pub(crate) fn terms(name: u64) -> Terms {
    Terms {
        payload: Payload {
            user_data: name,
            ident: !name,
            source: name as u16,
            tag: name as u32 ^ 0x5555_5555,
        },
        interest: 0xffff,
        trigger: Trigger::Edge,
        after: After::Stay,
        flags: abi::KEVENT_EDGE,
    }
}

/// [`terms`] of a level-triggered registration.
pub(crate) fn level(name: u64) -> Terms {
    Terms {
        trigger: Trigger::Level,
        flags: abi::KEVENT_LEVEL,
        ..terms(name)
    }
}

/// [`terms`] of one that ends.
pub(crate) fn one_shot(name: u64) -> Terms {
    Terms {
        after: After::End,
        ..terms(name)
    }
}

/// Panics if the parts of an event are not those of one registration.
pub(crate) fn whole(event: &Event) {
    let payload = terms(event.user_data).payload;
    assert!(
        (event.ident, event.source, event.tag) == (payload.ident, payload.source, payload.tag),
        "torn: {event:?}"
    );
}

/// How a queue is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) slots: u32,
    pub(crate) overcommit: bool,
    /// How many slots are looked at, or filled, without releasing the lock.
    pub(crate) steps: u32,
    pub(crate) faults: Faults,
}

impl Plan {
    pub(crate) fn new(slots: u32) -> Self {
        Self {
            slots,
            overcommit: false,
            steps: 256,
            faults: Faults::default(),
        }
    }

    pub(crate) fn make(self) -> Arc<Kernel> {
        let board = Arc::new(Board {
            flags: AtomicU32::new(0),
            rings: AtomicU32::new(0),
            faults: self.faults,
        });
        let ring = ring(self.slots, self.faults).unwrap();
        let memory = Arc::clone(ring.mem());
        let queue = Events::new(Arc::clone(&board), ring, self.overcommit);
        let kernel = Kernel {
            board,
            memory,
            plan: self,
            queue: Mutex::new(queue),
        };
        kernel.make_room();
        Arc::new(kernel)
    }
}

/// A queue.
pub(crate) struct Kernel {
    pub(crate) board: Arc<Board>,
    /// The slots that there were first.
    pub(crate) memory: Arc<Memory>,
    plan: Plan,
    queue: Mutex<Queue>,
}

impl Kernel {
    /// A queue without registrations.
    pub(crate) fn new(slots: u32) -> Arc<Self> {
        Plan::new(slots).make()
    }

    /// One that has faults.
    #[cfg(loom)]
    pub(crate) fn faulty(slots: u32, faults: Faults) -> Arc<Self> {
        Plan {
            faults,
            ..Plan::new(slots)
        }
        .make()
    }

    pub(crate) fn locked<T>(&self, f: impl FnOnce(&mut Queue) -> T) -> T {
        f(&mut self.queue.lock().unwrap())
    }

    /// A slot of the first set.
    pub(crate) fn slot(&self, index: u32) -> &Slot {
        self.memory.slot(index)
    }

    //
    // Registrations
    //

    fn make_room(&self) {
        self.locked(|queue| {
            let chunk = (0..queue.next_chunk().unwrap())
                .map(|_| Linked::new(Entry::FREE))
                .collect();
            assert!(queue.add_chunk(chunk).is_ok());
        });
    }

    /// Finds out what is free again, as the kernel does before it refuses.
    pub(crate) fn settle_all(&self) {
        let steps = self.plan.steps;
        let mut left = self.locked(|queue| queue.shots());
        while left > 0 {
            self.locked(|queue| queue.settle_shots(steps.min(left)));
            left = left.saturating_sub(steps);
        }
        while self.locked(|queue| queue.settle_slots(steps)) {}
    }

    /// Calls `f` until it is not refused for want of something that can be had.
    fn retry<T>(&self, mut f: impl FnMut(&mut Queue) -> Result<T, Refused>) -> Result<T, Refused> {
        let mut settled = false;
        loop {
            match self.locked(&mut f) {
                Err(Refused::NoRoom) => self.make_room(),
                Err(Refused::NoSlot) if !settled => {
                    self.settle_all();
                    settled = true;
                }
                result => return result,
            }
        }
    }

    pub(crate) fn reserve(&self, trigger: Trigger) -> Result<u32, Refused> {
        self.retry(|queue| queue.reserve(trigger))
    }

    /// Registers a source that is called `name`.
    pub(crate) fn add(&self, name: u64) -> Result<u32, Refused> {
        self.register(terms(name), Item::FILE)
    }

    pub(crate) fn register(&self, terms: Terms, item: Item) -> Result<u32, Refused> {
        let id = self.reserve(terms.trigger)?;
        self.locked(|queue| queue.fill(id, terms, item, Pending::Nothing));
        Ok(id)
    }

    /// Ends a registration; tells what it had to say, unless it had ended.
    pub(crate) fn remove(&self, id: u32) -> Option<Pending> {
        self.locked(|queue| queue.remove(id))
            .and_then(|(_, _, pending)| pending.ok())
    }

    pub(crate) fn modify(&self, id: u32, terms: Terms, enabled: bool) -> Result<Pending, Refused> {
        self.retry(|queue| queue.modify(id, &terms, enabled))
    }

    pub(crate) fn disable(&self, id: u32) -> Result<Pending, Refused> {
        self.locked(|queue| {
            let counts = queue.item(id).is_some_and(|item| item.counts);
            queue.disable(id, counts)
        })
    }

    pub(crate) fn enable(&self, id: u32) -> Result<u32, Refused> {
        self.locked(|queue| queue.enable(id))
    }

    /// How the registration is, or None if there is none, or no more.
    pub(crate) fn seen(&self, id: u32) -> Option<Seen> {
        self.locked(|queue| queue.registration(id).map(|(_, _, seen)| seen))
    }

    /// Removes the registrations that have ended; tells their names.
    pub(crate) fn reap(&self) -> Vec<u64> {
        self.locked(|queue| {
            let mut names = Vec::new();
            while let Some((id, terms, _)) = queue.next_ended() {
                names.push(terms.payload.user_data);
                let (_, _, pending) = queue.remove(id).unwrap();
                assert_eq!(pending, Err(Refused::Ended));
            }
            names
        })
    }

    //
    // Events
    //

    pub(crate) fn report(&self, id: u32, update: Update) -> Post {
        self.locked(|queue| queue.post(id, update, |_| true))
            .unwrap_or(Post::Nothing)
    }

    pub(crate) fn post(&self, id: u32, bits: u32) -> Post {
        self.report(id, Update::Bits(bits))
    }

    /// Makes the ring larger.
    pub(crate) fn grow(&self, slots: u32) -> bool {
        let ring = ring(slots, self.plan.faults).unwrap();
        if self.locked(|queue| queue.grow(ring)).is_err() {
            return false;
        }
        while self.locked(|queue| queue.flush(self.plan.steps)) {}
        true
    }

    /// Takes rings away that have no events; tells how many.
    pub(crate) fn retire(&self) -> usize {
        let one = || self.locked(|queue| queue.retire(self.plan.steps));
        std::iter::from_fn(one).count()
    }

    /// Collects through the kernel.
    pub(crate) fn collect(self: &Arc<Self>, max: usize) -> Vec<Event> {
        let mut raw = vec![Ukevent::default(); max];
        let count = self.getevents(&mut raw, 0, None).unwrap();
        raw[..count].iter().map(Event::from).collect()
    }

    /// How many events there are, counting no further than `limit`.
    pub(crate) fn count(&self, limit: u32) -> u32 {
        let mut counting = None;
        loop {
            let count = self.locked(|queue| queue.count(&mut counting, limit, self.plan.steps));
            if let Some(count) = count {
                return count;
            }
        }
    }

    /// The next event, unclaimed.
    pub(crate) fn find(&self) -> Option<Found> {
        self.locked(|queue| {
            let mut scan = queue.scan();
            let mut found = None;
            queue.find(&mut scan, 1, 99, |event, _, _| found = Some(event));
            found
        })
    }

    pub(crate) fn claim(&self, event: &Found, so: bool, untouched: bool) -> bool {
        self.locked(|queue| queue.claim(event, so, untouched)) != Claim::Failed
    }

    /// A consumer, the library's.
    pub(crate) fn consumer(self: &Arc<Self>, limit: usize) -> Consumer<Arc<Self>> {
        Consumer::new(Arc::clone(self), limit)
    }
}

impl Backend for Arc<Kernel> {
    type Slots = Arc<Memory>;

    fn oldest(&self) -> Arc<Memory> {
        self.locked(|queue| {
            let rings = queue.rings();
            Arc::clone(queue.ring_slots(rings & rings.wrapping_neg()).unwrap())
        })
    }

    fn set(&self, count: u32) -> Option<Arc<Memory>> {
        self.locked(|queue| queue.ring_slots(count).cloned())
    }

    fn rings(&self) -> u32 {
        self.board.rings.load(Acquire)
    }

    fn flags(&self) -> u32 {
        self.board.flags.load(Relaxed)
    }

    fn getevents(
        &self,
        events: &mut [Ukevent],
        min: usize,
        _: Option<Duration>,
    ) -> io::Result<usize> {
        let steps = self.plan.steps;
        if events.is_empty() {
            self.locked(|queue| queue.flush(steps));
            return Ok(self.count(min as u32) as usize);
        }
        let mut count = 0;
        let mut looks = 0;
        let mut scan = self.locked(|queue| queue.scan());
        while count < events.len() {
            let here = scan;
            let found = self.locked(|queue| {
                queue.flush(steps);
                let mut found = None;
                let find = queue.find(&mut scan, 1, steps, |event, terms, item| {
                    found = Some((event, *terms, *item));
                });
                (found, find)
            });
            let (event, terms, item) = match found {
                (Some(found), _) => found,
                (None, Find::More) => continue,
                (None, Find::End) => break,
            };
            let value = match event.value {
                _ if !item.so => 0,
                0 => terms.interest,
                value => value,
            };
            if !self.claim(&event, value != 0, looks < 3 && !item.counts) {
                scan.again(&here);
                looks += 1;
                continue;
            }
            looks = 0;
            if value != 0 {
                let payload = &terms.payload;
                events[count] = Ukevent {
                    ident: payload.ident,
                    source: payload.source,
                    tag: payload.tag,
                    flags: terms.flags,
                    events: value,
                    user_data: payload.user_data,
                    ..Ukevent::default()
                };
                count += 1;
            }
        }
        Ok(count)
    }
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
            tag: slot.tag.load(Relaxed),
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
