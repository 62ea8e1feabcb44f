// SPDX-License-Identifier: MIT
//! Unit tests: the kernel's files and the library's, one step at a time.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::Arc;

use crate::abi;
use crate::consumer::{Backend, Consumer};
use crate::events::{Full, Post};
use crate::kernel::{claim_at, whole, Kernel};

/// Claims with the library's consumer: names and values.
fn claim(consumer: &mut Consumer<Arc<Kernel>>) -> Vec<(u64, u32)> {
    consumer.claim();
    pairs(consumer.events())
}

fn pairs(events: &[kevent::Event]) -> Vec<(u64, u32)> {
    events.iter().for_each(whole);
    let pair = |event: &kevent::Event| (event.user_data, event.value);
    events.iter().map(pair).collect()
}

fn overflow(kernel: &Arc<Kernel>) -> bool {
    kernel.flags() & abi::KEVENT_RING_OVERFLOW != 0
}

#[test]
fn the_number_of_slots_is_a_power_of_two() {
    for slots in [1, 2, 64] {
        assert_eq!(Kernel::new(slots).count(9), 0);
    }
    assert!(std::panic::catch_unwind(|| Kernel::new(0)).is_err());
    assert!(std::panic::catch_unwind(|| Kernel::new(3)).is_err());
}

#[test]
fn an_event_is_posted_merged_and_claimed() {
    let kernel = Kernel::new(4);
    let mut consumer = kernel.consumer(8);
    let id = kernel.add(1).unwrap();
    assert_eq!(kernel.post(id, 1), Post::New);
    assert_eq!(kernel.post(id, 1), Post::Nothing);
    assert_eq!(kernel.post(id, 4), Post::Nothing);
    assert_eq!(kernel.count(9), 1);
    assert_eq!(claim(&mut consumer), [(1, 5)]);
    assert_eq!(kernel.count(9), 0);
    assert_eq!(kernel.post(id, 4), Post::New);
    assert_eq!(claim(&mut consumer), [(1, 4)]);
}

#[test]
fn the_words_are_as_the_header_says() {
    let kernel = Kernel::new(2);
    let id = kernel.add(1).unwrap();
    for lap in 1..5 {
        for index in 0..2 {
            kernel.post(id, 6);
            let word = kernel.memory.slot(index).word.load(Relaxed);
            assert_eq!(word, 6 << 32 | lap << 1 | 1);
            claim_at(kernel.memory.slot(index)).unwrap();
            let word = kernel.memory.slot(index).word.load(Relaxed);
            assert_eq!(word, lap << 1);
        }
    }
}

#[test]
fn bits_of_no_interest_are_nothing() {
    let kernel = Kernel::new(2);
    let id = kernel.add(1).unwrap();
    kernel.modify(id, 0x10, 1);
    assert_eq!(kernel.post(id, 0x0f), Post::Nothing);
    assert_eq!(kernel.post(id, 0x1f), Post::New);
    assert_eq!(pairs(&kernel.collect(4)), [(1, 0x10)]);
}

#[test]
fn a_slot_is_reserved_for_each_registration() {
    let kernel = Kernel::new(2);
    let mut consumer = kernel.consumer(8);
    let first = kernel.add(1).unwrap();
    let second = kernel.add(2).unwrap();
    assert_eq!(kernel.add(3), Err(Full));
    kernel.remove(second);
    let second = kernel.add(3).unwrap();
    kernel.post(first, 1);
    kernel.post(second, 1);
    // The slot of a cancelled event stays taken until it was claimed.
    assert_eq!(kernel.remove(first), Some(1));
    assert_eq!(kernel.remove(first), None);
    assert_eq!(kernel.add(4), Err(Full));
    assert_eq!(claim(&mut consumer), [(3, 1)]);
    assert!(kernel.add(4).is_ok());
}

#[test]
fn the_kernel_collects_in_order_and_up_to_the_limit() {
    let kernel = Kernel::new(8);
    let mut consumer = kernel.consumer(8);
    for name in 0..8 {
        let id = kernel.add(name).unwrap();
        kernel.post(id, 1);
    }
    assert_eq!(kernel.count(3), 3);
    assert_eq!(pairs(&kernel.collect(3)), [(0, 1), (1, 1), (2, 1)]);
    let rest: Vec<_> = (3..8).map(|name| (name, 1)).collect();
    assert_eq!(claim(&mut consumer), rest);
    assert!(kernel.collect(3).is_empty());
}

#[test]
fn an_event_waits_behind_a_slot_that_nobody_claims() {
    let kernel = Kernel::new(2);
    let mut consumer = kernel.consumer(8);
    let first = kernel.add(1).unwrap();
    let second = kernel.add(2).unwrap();
    kernel.post(first, 1);
    for _ in 0..3 {
        // Claimed out of order.
        kernel.post(second, 1);
        if !overflow(&kernel) {
            claim_at(kernel.memory.slot(1)).unwrap();
        }
    }
    assert!(overflow(&kernel));
    kernel.post(second, 2);
    assert_eq!(kernel.count(9), 2);
    assert_eq!(claim(&mut consumer), [(1, 1)]);
    consumer.poll(None).unwrap();
    assert_eq!(pairs(consumer.events()), [(2, 3)]);
    assert!(!overflow(&kernel));
}

#[test]
fn what_waits_can_be_removed() {
    let kernel = Kernel::new(4);
    let ids = [0, 1, 2, 3].map(|name| kernel.add(name).unwrap());
    for id in ids {
        kernel.post(id, 1);
    }
    for index in 1..4 {
        claim_at(kernel.memory.slot(index)).unwrap();
    }
    for id in &ids[1..] {
        assert_eq!(kernel.post(*id, 2), Post::New);
    }
    assert!(overflow(&kernel));
    kernel.remove(ids[2]);
    assert_eq!(pairs(&kernel.collect(9)), [(0, 1), (1, 2), (3, 2)]);
    assert!(!overflow(&kernel));
}

/// Whoever looks at the source between finding an event and claiming it must not
/// claim what was reported meanwhile, even if the event says it already.
#[test]
fn a_report_while_the_source_is_looked_at_is_noticed() {
    let kernel = Kernel::new(2);
    let id = kernel.add(1).unwrap();

    kernel.post(id, 1);
    let stale = kernel.find().unwrap();
    assert_eq!(kernel.post(id, 1), Post::Nothing);
    assert!(!kernel.claim(&stale, true));
    assert!(kernel.claim(&stale, false));
    assert!(kernel.find().is_none());

    kernel.post(id, 1);
    let fresh = kernel.find().unwrap();
    assert!(kernel.claim(&fresh, true));
    assert!(!kernel.claim(&fresh, true));
}

/// Programs may write what they like: nothing but their own events suffers.
#[test]
fn scribbles_are_survived() {
    let mut random = 1u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let kernel = Kernel::new(8);
    let ids: Vec<_> = (0..4).map(|name| kernel.add(name).unwrap()).collect();
    let mut consumer = kernel.consumer(4);
    for round in 0..100_000 {
        let index = next() as u32;
        let scribble = match next() % 4 {
            0 => next(),
            1 => next() & 0xf,
            2 => kernel.memory.slot(next() as u32).word.load(Relaxed),
            _ => 0,
        };
        kernel.memory.slot(index).word.store(scribble, Relaxed);
        kernel.post(ids[round % 4], 1 << (next() % 8));
        match next() % 8 {
            0 => drop(kernel.collect(3)),
            1 => drop(consumer.claim()),
            2 => drop(kernel.count(8)),
            _ => {}
        }
        assert!(kernel.count(99) <= 8);
    }
    // It works again when they are done, once the slots were used anew.
    kernel.collect(99);
    for _ in 0..4 {
        for (name, &id) in ids.iter().enumerate() {
            kernel.post(id, 1);
            assert_eq!(pairs(&kernel.collect(99)), [(name as u64, 1)]);
        }
    }
}

/// Sources report, two consumers and the kernel collect, all at once, for real.
#[test]
fn threads_race() {
    const SOURCES: u64 = 16;
    const ROUNDS: u64 = 5_000;
    let kernel = Kernel::new(16);
    let ids: Vec<_> = (0..SOURCES).map(|name| kernel.add(name).unwrap()).collect();
    let state: Vec<_> = (0..SOURCES).map(|_| AtomicU64::new(0)).collect();
    let seen: Vec<_> = (0..SOURCES).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for limit in [1, 7] {
            let (kernel, state, seen, done) = (&kernel, &state, &seen, &done);
            scope.spawn(move || {
                let mut consumer = kernel.consumer(limit);
                loop {
                    let last = done.load(SeqCst);
                    consumer.poll(None).unwrap();
                    for event in consumer.events() {
                        whole(event);
                        let name = event.user_data as usize;
                        seen[name].fetch_max(state[name].load(Relaxed), Relaxed);
                    }
                    if last && consumer.events().is_empty() {
                        break;
                    }
                }
            });
        }
        std::thread::scope(|scope| {
            for half in 0..2 {
                let (kernel, ids, state) = (&kernel, &ids, &state);
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        for name in (half..SOURCES as usize).step_by(2) {
                            state[name].store(round, Relaxed);
                            kernel.post(ids[name], 1);
                        }
                    }
                });
            }
        });
        done.store(true, SeqCst);
    });
    for seen in &seen {
        assert_eq!(seen.load(Relaxed), ROUNDS, "the last report was lost");
    }
}
