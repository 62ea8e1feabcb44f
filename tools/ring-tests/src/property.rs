// SPDX-License-Identifier: MIT
//! Property tests: random changes, reports and collections against a queue that
//! is simple enough to be right.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use kevent::Event;
use proptest::prelude::*;

use crate::abi;
use crate::consumer::{Backend, Consumer};
use crate::events::Post;
use crate::kernel::{whole, Kernel};

/// A step.  Sources are taken modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Add,
    Remove(usize),
    /// Gets a new name; what was reported is forgotten.
    Modify(usize),
    Post(usize, u32),
    /// One of two consumers claims, up to its limit.
    Claim(usize),
    /// One of them claims, or calls the kernel if there is nothing.
    Poll(usize),
    /// Collects through the kernel.
    Collect(usize),
    Count(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let bits = prop_oneof![Just(1), Just(2), Just(4), 1u32..0x1_0000];
    prop_oneof![
        2 => Just(Step::Add),
        1 => any::<usize>().prop_map(Step::Remove),
        1 => any::<usize>().prop_map(Step::Modify),
        8 => (any::<usize>(), bits).prop_map(|(source, bits)| Step::Post(source, bits)),
        2 => (0..2usize).prop_map(Step::Claim),
        2 => (0..2usize).prop_map(Step::Poll),
        1 => (1..5usize).prop_map(Step::Collect),
        1 => (0..9u32).prop_map(Step::Count),
    ]
}

/// What is to come, in order: name and value.
#[derive(Default)]
struct Reference {
    /// id and name of the sources
    sources: Vec<(u32, u64)>,
    pending: VecDeque<(u64, u32)>,
    names: u64,
}

impl Reference {
    fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    fn forget(&mut self, name: u64) {
        self.pending.retain(|&(pending, _)| pending != name);
    }

    /// Takes what was collected.
    fn collected(&mut self, events: &[Event]) {
        for event in events {
            whole(event);
            let got = Some((event.user_data, event.value));
            assert_eq!(self.pending.pop_front(), got);
        }
    }
}

struct Test {
    kernel: Arc<Kernel>,
    consumers: [Consumer<Arc<Kernel>>; 2],
    reference: Reference,
}

impl Test {
    fn new(slots: u32) -> Self {
        let kernel = Kernel::new(slots);
        Self {
            consumers: [2, 64].map(|limit| kernel.consumer(limit)),
            kernel,
            reference: Reference::default(),
        }
    }

    fn source(&self, number: usize) -> Option<usize> {
        number.checked_rem(self.reference.sources.len())
    }

    fn overflow(&self) -> bool {
        self.kernel.flags() & abi::KEVENT_RING_OVERFLOW != 0
    }

    /// Whether each slot is reserved or holds a cancelled event.
    fn may_be_full(&self) -> bool {
        let slots = self.kernel.slots();
        let cancelled = |index: &u32| {
            let word = self.kernel.memory.slot(*index).word.load(Relaxed);
            word & abi::KEVENT_WORD_READY != 0 && abi::word_value(word) == 0
        };
        let cancelled = (0..slots).filter(cancelled).count();
        self.reference.sources.len() + cancelled >= slots as usize
    }

    /// What one batch held, and whether that is all that it must hold.
    fn took(&mut self, which: usize, limit: usize) {
        let events = self.consumers[which].events();
        let enough = events.len() == limit;
        self.reference.collected(events);
        assert!(enough || self.reference.pending.is_empty() || self.overflow());
    }

    fn step(&mut self, step: &Step) {
        let limits = [2, 64];
        match *step {
            Step::Add => {
                let name = self.reference.name();
                match self.kernel.add(name) {
                    Ok(id) => self.reference.sources.push((id, name)),
                    Err(_) => assert!(self.may_be_full()),
                }
            }
            Step::Remove(number) => {
                if let Some(index) = self.source(number) {
                    let (id, name) = self.reference.sources.swap_remove(index);
                    self.reference.forget(name);
                    assert!(self.kernel.remove(id).is_some());
                }
            }
            Step::Modify(number) => {
                if let Some(index) = self.source(number) {
                    let (id, old) = self.reference.sources[index];
                    self.reference.forget(old);
                    // ident and source stay what they were, so the name does.
                    self.kernel.modify(id, 0xffff, old);
                }
            }
            Step::Post(number, bits) => {
                if let Some(index) = self.source(number) {
                    let (id, name) = self.reference.sources[index];
                    let pending = &mut self.reference.pending;
                    let old = pending.iter_mut().find(|(pending, _)| *pending == name);
                    let expected = match old {
                        Some((_, value)) => {
                            *value |= bits;
                            Post::Nothing
                        }
                        None => {
                            pending.push_back((name, bits));
                            Post::New
                        }
                    };
                    assert_eq!(self.kernel.post(id, bits), expected);
                }
            }
            Step::Claim(which) => {
                self.consumers[which].claim();
                self.took(which, limits[which]);
            }
            Step::Poll(which) => {
                self.consumers[which].poll(None).unwrap();
                // After a call to the kernel, there is something if there can be.
                let events = self.consumers[which].events();
                assert!(!events.is_empty() || self.reference.pending.is_empty());
                self.took(which, limits[which]);
            }
            Step::Collect(max) => {
                let due = self.reference.pending.len().min(max);
                let events = self.kernel.collect(max);
                self.reference.collected(&events);
                assert!(events.len() == due || self.overflow());
            }
            Step::Count(limit) => {
                let due = self.reference.pending.len() as u32;
                assert_eq!(self.kernel.count(limit), due.min(limit));
            }
        }
    }

    fn finish(mut self) {
        while !self.reference.pending.is_empty() {
            self.step(&Step::Poll(0));
        }
        assert!(self.kernel.collect(9).is_empty());
        assert_eq!(self.kernel.count(9), 0);
        // The library never needed the kernel's help to find an event.
        for consumer in &self.consumers {
            assert_eq!(consumer.stats.collects, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_queue_does_what_the_reference_does(
        log in 0..4u32,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut test = Test::new(1 << log);
        for step in &steps {
            test.step(step);
        }
        test.finish();
    }
}
