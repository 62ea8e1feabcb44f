// SPDX-License-Identifier: MIT
//! Tests of the consumer against a kernel that is played.

use crate::abi::{self, Slot, Ukevent};
use crate::consumer::{Backend, Consumer, Slots};
use crate::event::Event;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A set of slots.
struct Set(Box<[Slot]>);

const LAP: u64 = 1 << 31;

impl Set {
    fn new(slots: u32) -> Arc<Self> {
        Arc::new(Self((0..slots).map(|_| Slot::default()).collect()))
    }

    fn slot(&self, index: u32) -> &Slot {
        &self.0[index as usize % self.0.len()]
    }

    fn free(&self, position: u64) -> u64 {
        let lap = position / self.0.len() as u64;
        ((lap + 1) % LAP) << abi::KEVENT_WORD_GEN_SHIFT
    }

    fn holds_events(&self) -> bool {
        let ready = |slot: &Slot| slot.word.load(Acquire) & abi::KEVENT_WORD_READY != 0;
        self.0.iter().any(ready)
    }
}

impl Slots for Arc<Set> {
    fn count(&self) -> u32 {
        self.0.len() as u32
    }

    fn slot(&self, index: u32) -> &Slot {
        (**self).slot(index)
    }
}

/// The kernel's part: a ring, and what it keeps of it for itself.
struct Fake {
    flags: AtomicU32,
    incompat: AtomicU32,
    rings: AtomicU32,
    waits: AtomicU32,
    first: Arc<Set>,
    state: Mutex<State>,
    /// Whether larger sets cannot be mapped.
    cramped: AtomicBool,
    /// Whether what can be retired is, just before a set is mapped.
    hasty: AtomicBool,
}

#[derive(Default)]
struct State {
    /// all sets, the largest of which takes new events
    sets: BTreeMap<u32, Arc<Set>>,
    /// where the next event goes
    next: u64,
    /// what found no free slot
    overflow: VecDeque<Ukevent>,
    /// what is so, and not in the ring
    level: VecDeque<Ukevent>,
}

impl State {
    fn last(&self) -> &Arc<Set> {
        self.sets.values().last().unwrap()
    }
}

fn event(value: u32, user_data: u64) -> Ukevent {
    Ukevent {
        ident: !user_data,
        source: 1,
        events: value,
        user_data,
        tag: user_data as u32 + 1,
        ..Ukevent::default()
    }
}

impl Fake {
    fn new(slots: u32) -> Arc<Self> {
        Self::at(slots, 0)
    }

    /// A ring that is used up to a position.
    fn at(slots: u32, next: u64) -> Arc<Self> {
        let set = Set::new(slots);
        for position in next.saturating_sub(u64::from(slots))..next {
            let free = set.free(position);
            set.slot(position as u32).word.store(free, Relaxed);
        }
        Arc::new(Self {
            flags: AtomicU32::new(0),
            incompat: AtomicU32::new(0),
            rings: AtomicU32::new(slots),
            waits: AtomicU32::new(0),
            first: Arc::clone(&set),
            state: Mutex::new(State {
                sets: [(slots, set)].into(),
                next,
                ..State::default()
            }),
            cramped: AtomicBool::new(false),
            hasty: AtomicBool::new(false),
        })
    }

    /// A slot of the first set.
    fn slot(&self, index: u32) -> &Slot {
        self.first.slot(index)
    }

    fn put(&self, state: &mut State, event: &Ukevent) -> Option<u64> {
        let position = state.next;
        let set = state.last();
        let slot = set.slot(position as u32);
        if slot.word.load(Acquire) & abi::KEVENT_WORD_READY != 0 {
            return None;
        }
        slot.user_data.store(event.user_data, Relaxed);
        slot.ident.store(event.ident, Relaxed);
        slot.source.store(event.source, Relaxed);
        slot.tag.store(event.tag, Relaxed);
        let word = u64::from(event.events) << 32 | set.free(position) | 1;
        slot.word.store(word, SeqCst);
        state.next += 1;
        Some(position)
    }

    /// Posts an event; if the ring is full, it waits.
    fn post(&self, value: u32, user_data: u64) -> u64 {
        let event = event(value, user_data);
        let mut state = self.state.lock().unwrap();
        match self.put(&mut state, &event) {
            Some(position) => position,
            None => {
                state.overflow.push_back(event);
                self.flags.fetch_or(abi::KEVENT_RING_OVERFLOW, Relaxed);
                u64::MAX
            }
        }
    }

    /// Makes a level-triggered event ready.
    fn level(&self, user_data: u64) {
        let mut state = self.state.lock().unwrap();
        state.level.push_back(Ukevent {
            flags: abi::KEVENT_LEVEL,
            ..event(1, user_data)
        });
        self.flags.fetch_or(abi::KEVENT_RING_LEVEL_READY, Relaxed);
    }

    /// Changes the value of an event in the last set.
    fn change(&self, position: u64, value: impl Fn(u32) -> u32) -> bool {
        let state = self.state.lock().unwrap();
        let set = state.last();
        set.slot(position as u32)
            .word
            .fetch_update(SeqCst, SeqCst, |word| {
                let same = word & 0xffff_ffff == set.free(position) | 1;
                same.then(|| u64::from(value(abi::word_value(word))) << 32 | word & 0xffff_ffff)
            })
            .is_ok()
    }

    fn merge(&self, position: u64, value: u32) -> bool {
        self.change(position, |old| old | value)
    }

    fn cancel(&self, position: u64) -> bool {
        self.change(position, |_| 0)
    }

    /// Makes a larger set, which takes all events from now on.
    fn grow(&self, slots: u32) {
        let mut state = self.state.lock().unwrap();
        state.sets.insert(slots, Set::new(slots));
        state.next = 0;
        self.rings.fetch_or(slots, Release);
    }

    /// Takes away the sets that have no event any more.
    fn retire(&self) {
        let mut state = self.state.lock().unwrap();
        let last = state.last().count();
        state
            .sets
            .retain(|&slots, set| slots == last || set.holds_events());
        self.rings.store(state.sets.keys().sum(), Release);
    }

    fn let_in(&self, state: &mut State) {
        while let Some(event) = state.overflow.front().copied() {
            if self.put(state, &event).is_none() {
                return;
            }
            state.overflow.pop_front();
        }
        self.flags.fetch_and(!abi::KEVENT_RING_OVERFLOW, Relaxed);
    }

    /// Counts the events in the ring, or claims them.
    fn look(&self, state: &State, events: &mut [Ukevent], min: usize) -> usize {
        let mut found = 0;
        for (&slots, set) in &state.sets {
            // The older ones have no event out of order.
            let oldest = match slots == state.last().count() {
                true => state.next.saturating_sub(u64::from(slots)),
                false => 0,
            };
            for position in oldest..oldest + u64::from(slots) {
                let slot = set.slot(position as u32);
                let word = slot.word.load(Acquire);
                if word & abi::KEVENT_WORD_READY == 0 || abi::word_value(word) == 0 {
                    continue;
                }
                let claimed = abi::word_claimed(word);
                if events.is_empty() {
                    found += 1;
                    if found == min {
                        return found;
                    }
                } else if found < events.len()
                    && slot
                        .word
                        .compare_exchange(word, claimed, AcqRel, Acquire)
                        .is_ok()
                {
                    events[found] = Ukevent {
                        ident: slot.ident.load(Relaxed),
                        source: slot.source.load(Relaxed),
                        tag: slot.tag.load(Relaxed),
                        events: abi::word_value(word),
                        user_data: slot.user_data.load(Relaxed),
                        ..Ukevent::default()
                    };
                    found += 1;
                }
            }
        }
        found
    }
}

impl Backend for Arc<Fake> {
    type Slots = Arc<Set>;

    fn oldest(&self) -> Arc<Set> {
        let state = self.state.lock().unwrap();
        Arc::clone(state.sets.values().next().unwrap())
    }

    fn set(&self, count: u32) -> Option<Arc<Set>> {
        if self.cramped.load(Relaxed) {
            return None;
        }
        if self.hasty.load(Relaxed) {
            self.retire();
        }
        let state = self.state.lock().unwrap();
        state.sets.get(&count).cloned()
    }

    fn rings(&self) -> u32 {
        self.rings.load(Acquire)
    }

    fn flags(&self) -> u32 {
        self.flags.load(Relaxed)
    }

    fn incompat(&self) -> u32 {
        self.incompat.load(Relaxed)
    }

    fn getevents(
        &self,
        events: &mut [Ukevent],
        min: usize,
        _: Option<Duration>,
    ) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        self.waits.fetch_add(1, Relaxed);
        self.let_in(&mut state);
        let mut found = self.look(&state, events, min);
        self.let_in(&mut state);
        if events.is_empty() {
            return Ok((found + state.level.len()).min(min));
        }
        let mut level = 0;
        while found < events.len() && level < state.level.len() {
            events[found] = state.level[level];
            (found, level) = (found + 1, level + 1);
        }
        if level == 0 && state.level.is_empty() {
            self.flags.fetch_and(!abi::KEVENT_RING_LEVEL_READY, Relaxed);
        }
        Ok(found)
    }
}

fn names(consumer: &Consumer<Arc<Fake>>) -> Vec<u64> {
    consumer
        .events()
        .iter()
        .map(|event| event.user_data)
        .collect()
}

fn claim(consumer: &mut Consumer<Arc<Fake>>) -> Vec<u64> {
    consumer.claim();
    names(consumer)
}

fn poll(consumer: &mut Consumer<Arc<Fake>>) -> Vec<u64> {
    consumer.poll(None).unwrap();
    names(consumer)
}

const NONE: [u64; 0] = [];

#[test]
fn an_empty_ring_gives_nothing_and_needs_no_call() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    assert_eq!(claim(&mut consumer), NONE);
    assert_eq!(kernel.waits.load(Relaxed), 0);
    assert_eq!(poll(&mut consumer), NONE);
    assert_eq!(kernel.waits.load(Relaxed), 1);
}

#[test]
fn events_come_whole_and_in_order() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    kernel.post(0x11, 1);
    kernel.post(0x22, 2);
    consumer.claim();
    let expected = [(1, 0x11), (2, 0x22)].map(|(user_data, value)| Event {
        user_data,
        ident: !user_data,
        value,
        source: 1,
        tag: user_data as u32 + 1,
    });
    assert_eq!(consumer.events(), expected);
    assert_eq!(kernel.slot(0).word.load(Relaxed), kernel.first.free(0));
    assert_eq!(kernel.slot(1).word.load(Relaxed), kernel.first.free(1));
    assert_eq!(claim(&mut consumer), NONE);
    assert_eq!(kernel.waits.load(Relaxed), 0);
}

#[test]
fn every_number_of_slots_goes_around() {
    for slots in [1u32, 2, 4, 64] {
        let kernel = Fake::new(slots);
        let mut consumer = Consumer::new(kernel.clone(), 128);
        let mut sent = 0;
        for round in 0..1000 {
            let many = round % (u64::from(slots) + 1);
            let batch: Vec<_> = (sent..sent + many).collect();
            for &name in &batch {
                kernel.post(1, name);
            }
            sent += many;
            assert_eq!(claim(&mut consumer), batch);
        }
        assert_eq!(kernel.waits.load(Relaxed), 0);
    }
}

#[test]
fn the_limit_of_a_batch_holds() {
    let kernel = Fake::new(8);
    let mut consumer = Consumer::new(kernel.clone(), 3);
    for name in 0..8 {
        kernel.post(1, name);
    }
    assert_eq!(claim(&mut consumer), [0, 1, 2]);
    assert_eq!(claim(&mut consumer), [3, 4, 5]);
    assert_eq!(claim(&mut consumer), [6, 7]);
}

#[test]
fn what_was_merged_is_in_the_event() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    let position = kernel.post(1, 1);
    assert!(kernel.merge(position, 4));
    consumer.claim();
    assert_eq!(consumer.events()[0].value, 5);
    assert!(!kernel.merge(position, 8));
}

#[test]
fn the_cancelled_are_claimed_but_not_reported() {
    let kernel = Fake::new(2);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    let first = kernel.post(1, 1);
    kernel.post(1, 2);
    assert!(kernel.cancel(first));
    assert_eq!(claim(&mut consumer), [2]);
    // Both slots are free again.
    assert_eq!(kernel.post(1, 3), 2);
    assert_eq!(kernel.post(1, 4), 3);
    assert_eq!(claim(&mut consumer), [3, 4]);
}

#[test]
fn nothing_but_cancelled_is_nothing() {
    let kernel = Fake::new(2);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    let first = kernel.post(1, 1);
    assert!(kernel.cancel(first));
    assert_eq!(poll(&mut consumer), NONE);
    assert_eq!(kernel.slot(0).word.load(Relaxed), kernel.first.free(0));
}

#[test]
fn two_consumers_share_and_each_catches_up() {
    let kernel = Fake::new(4);
    let mut one = Consumer::new(kernel.clone(), 2);
    let mut two = Consumer::new(kernel.clone(), 8);
    for name in 0..4 {
        kernel.post(1, name);
    }
    assert_eq!(claim(&mut one), [0, 1]);
    assert_eq!(claim(&mut two), [2, 3]);
    // One goes on alone for many laps, the other is left behind.
    for name in 4..103 {
        kernel.post(1, name);
        assert_eq!(claim(&mut one), [name]);
    }
    for name in 103..106 {
        kernel.post(1, name);
    }
    assert_eq!(claim(&mut two), [103, 104, 105]);
    assert_eq!(claim(&mut one), NONE);
    kernel.post(1, 106);
    assert_eq!(claim(&mut one), [106]);
    assert_eq!(kernel.waits.load(Relaxed), 0);
}

#[test]
fn a_late_consumer_finds_the_oldest_first() {
    for next in 0..40 {
        let kernel = Fake::at(4, next);
        for name in 0..4 {
            kernel.post(1, name);
        }
        let mut consumer = Consumer::new(kernel.clone(), 8);
        assert_eq!(claim(&mut consumer), [0, 1, 2, 3], "at {next}");
        kernel.post(1, 4);
        assert_eq!(claim(&mut consumer), [4], "at {next}");
    }
}

#[test]
fn generations_wrap() {
    // The last two laps before the generation starts over, and the first.
    for next in 4 * (LAP - 3)..4 * (LAP + 1) {
        let kernel = Fake::at(4, next);
        let mut early = Consumer::new(kernel.clone(), 8);
        assert_eq!(claim(&mut early), NONE);
        for round in 0..12 {
            kernel.post(1, round);
            kernel.post(1, 100 + round);
            let mut late = Consumer::new(kernel.clone(), 1);
            assert_eq!(claim(&mut late), [round], "from {next}");
            assert_eq!(claim(&mut early), [100 + round], "from {next}");
        }
    }
}

#[test]
fn an_event_behind_the_cursor_is_found_by_the_kernel() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    kernel.post(1, 1);
    kernel.post(1, 2);
    // As if it had lost its way.
    consumer.cursor = 2;
    assert_eq!(claim(&mut consumer), NONE);
    assert_eq!(poll(&mut consumer), [1, 2]);
    assert_eq!(consumer.stats.collects, 1);
    assert_eq!(consumer.stats.collected, 2);
    // It found its way again: no further help is needed.
    kernel.post(1, 3);
    assert_eq!(claim(&mut consumer), [3]);
}

/// Or each of them would cost a walk over all slots.
#[test]
fn a_level_triggered_event_does_not_send_the_cursor_back() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    kernel.post(1, 7);
    assert_eq!(claim(&mut consumer), [7]);
    let cursor = consumer.cursor;
    // Ready when the consumer has looked at the flags already.
    kernel.level(8);
    kernel.flags.store(0, Relaxed);
    assert_eq!(poll(&mut consumer), [8]);
    assert_eq!(consumer.cursor, cursor);
}

#[test]
fn a_cursor_far_ahead_comes_back() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    consumer.cursor = 400;
    kernel.post(1, 1);
    // What is ready is claimed, whatever its lap.
    assert_eq!(claim(&mut consumer), [1]);
    kernel.post(1, 2);
    assert_eq!(claim(&mut consumer), NONE);
    assert_eq!(poll(&mut consumer), [2]);
    kernel.post(1, 3);
    assert_eq!(claim(&mut consumer), [3]);
}

#[test]
fn a_full_ring_lets_in_what_waits() {
    let kernel = Fake::new(2);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    for name in 0..5 {
        kernel.post(1, name);
    }
    assert_eq!(kernel.flags() & abi::KEVENT_RING_OVERFLOW, 1);
    assert_eq!(poll(&mut consumer), [0, 1]);
    assert_eq!(poll(&mut consumer), [2, 3]);
    assert_eq!(poll(&mut consumer), [4]);
    assert_eq!(kernel.flags(), 0);
}

#[test]
fn somebody_elses_skipped_slot_holds_nothing_up() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    for name in 0..4 {
        kernel.post(1, name);
    }
    // A consumer which does not keep to the order takes all but slot 1.
    for index in [0, 2, 3] {
        let word = &kernel.slot(index).word;
        word.store(abi::word_claimed(word.load(Relaxed)), Relaxed);
    }
    kernel.post(1, 4);
    kernel.post(1, 5);
    assert_eq!(kernel.flags() & abi::KEVENT_RING_OVERFLOW, 1);
    let mut late = Consumer::new(kernel.clone(), 8);
    assert_eq!(claim(&mut late), [1, 4]);
    assert_eq!(poll(&mut late), [5]);
    assert_eq!(poll(&mut consumer), NONE);
}

#[test]
fn a_ring_that_grows_is_followed_in_order() {
    let kernel = Fake::new(2);
    let mut one = Consumer::new(kernel.clone(), 2);
    let mut two = Consumer::new(kernel.clone(), 8);
    kernel.post(1, 1);
    kernel.post(1, 2);
    kernel.grow(4);
    for name in 3..7 {
        kernel.post(1, name);
    }
    // The batch is full, and the old set not known to be empty.
    assert_eq!(claim(&mut one), [1, 2]);
    assert_eq!(claim(&mut one), [3, 4]);
    kernel.grow(16);
    kernel.post(1, 7);
    assert_eq!(claim(&mut two), [5, 6, 7]);
    for name in 8..24 {
        kernel.post(1, name);
    }
    let mut late = Consumer::new(kernel.clone(), 3);
    assert_eq!(claim(&mut late), [8, 9, 10]);
    assert_eq!(claim(&mut two), (11..19).collect::<Vec<_>>());
    assert_eq!(claim(&mut one), [19, 20]);
    assert_eq!(kernel.waits.load(Relaxed), 0);
}

#[test]
fn sets_that_are_gone_are_left_out() {
    let kernel = Fake::new(1);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    let mut other = Consumer::new(kernel.clone(), 8);
    for slots in [2, 4, 8] {
        kernel.grow(slots);
        kernel.post(1, u64::from(slots));
        if slots < 8 {
            assert_eq!(claim(&mut other), [u64::from(slots)]);
        }
        kernel.retire();
    }
    assert_eq!(kernel.rings(), 8);
    assert_eq!(claim(&mut consumer), [8]);
    kernel.post(1, 9);
    assert_eq!(claim(&mut other), [9]);
    assert_eq!(kernel.waits.load(Relaxed), 0);
}

/// The set is seen in the header, but retired before it is mapped.
#[test]
fn a_set_that_goes_meanwhile_is_left_out() {
    let kernel = Fake::new(1);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    kernel.grow(2);
    kernel.grow(4);
    kernel.post(1, 1);
    kernel.hasty.store(true, Relaxed);
    assert_eq!(claim(&mut consumer), [1]);
    assert_eq!(kernel.rings(), 4);
}

#[test]
fn without_room_to_map_the_kernel_helps() {
    let kernel = Fake::new(1);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    kernel.cramped.store(true, Relaxed);
    kernel.grow(4);
    kernel.post(1, 1);
    kernel.post(1, 2);
    assert_eq!(claim(&mut consumer), NONE);
    assert_eq!(poll(&mut consumer), [1, 2]);
    assert_eq!(consumer.stats.collected, 2);
}

#[test]
fn a_ring_that_is_not_understood_any_more_is_left_to_the_kernel() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    kernel
        .incompat
        .store(abi::KEVENT_RING_INCOMPAT_GROWN, Relaxed);
    kernel.post(1, 1);
    assert_eq!(claim(&mut consumer), [1]);
    kernel.incompat.store(1 << 31, Relaxed);
    kernel.post(1, 2);
    kernel.post(1, 3);
    assert_eq!(claim(&mut consumer), NONE);
    assert_eq!(consumer.stats.waits + consumer.stats.collects, 0);
    assert_eq!(poll(&mut consumer), [2, 3]);
    assert_eq!(consumer.stats.collected, 2);
}

#[test]
fn level_triggered_events_do_not_starve_nor_starve_others() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    kernel.post(1, 1);
    assert_eq!(poll(&mut consumer), [1]);
    assert_eq!(kernel.waits.load(Relaxed), 0);
    kernel.level(100);
    for name in 2..9 {
        kernel.post(1, name);
        assert_eq!(poll(&mut consumer), [name, 100]);
    }
    assert_eq!(poll(&mut consumer), [100]);
    // Not so any more: one more call finds out.
    kernel.state.lock().unwrap().level.clear();
    kernel.post(1, 9);
    assert_eq!(poll(&mut consumer), [9]);
    assert_eq!(kernel.flags(), 0);
    let calls = kernel.waits.load(Relaxed);
    kernel.post(1, 10);
    assert_eq!(poll(&mut consumer), [10]);
    assert_eq!(kernel.waits.load(Relaxed), calls);
}

#[test]
fn claiming_is_not_for_level_triggered_events() {
    let kernel = Fake::new(4);
    let mut consumer = Consumer::new(kernel.clone(), 8);
    kernel.level(100);
    assert_eq!(claim(&mut consumer), NONE);
    assert_eq!(kernel.waits.load(Relaxed), 0);
}

/// A real race: one kernel that posts and merges, two consumers which
/// claim.  Each event arrives once, whole.
#[test]
fn threads_race() {
    const EVENTS: u64 = 20_000;
    let kernel = Fake::new(8);
    let done = AtomicBool::new(false);
    let sum = AtomicU64::new(0);
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for limit in [1, 5] {
            let kernel = kernel.clone();
            let (done, sum, count) = (&done, &sum, &count);
            scope.spawn(move || {
                let mut consumer = Consumer::new(kernel, limit);
                loop {
                    let last = done.load(SeqCst);
                    consumer.poll(None).unwrap();
                    for event in consumer.events() {
                        assert_eq!(event.ident, !event.user_data);
                        assert_eq!(event.value & 0xff, event.user_data as u32 & 0xff | 1);
                        sum.fetch_add(event.user_data, Relaxed);
                        count.fetch_add(1, Relaxed);
                    }
                    if last && consumer.events().is_empty() {
                        break;
                    }
                }
            });
        }
        for name in 0..EVENTS {
            if name % 2000 == 1999 {
                kernel.grow(16 << (name / 2000));
            }
            let position = kernel.post(name as u32 & 0xff | 1, name);
            if position != u64::MAX {
                kernel.merge(position, 0x100);
            }
        }
        done.store(true, SeqCst);
    });
    assert_eq!(count.into_inner(), EVENTS);
    assert_eq!(sum.into_inner(), EVENTS * (EVENTS - 1) / 2);
}
