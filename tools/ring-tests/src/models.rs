// SPDX-License-Identifier: MIT
//! Loom models: few threads, all interleavings up to a number of preemptions.
//!
//! Each `without_...` is a model whose barrier or check was taken away, and must
//! fail: that shows that the model beside it would notice.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::Arc;

use kevent::Event;
use loom::model::Builder;
use loom::sync::atomic::AtomicU32;
use loom::thread;

use crate::events::{After, Pending, Post, Refused};
use crate::kernel::{claim_at, claim_with, level, one_shot, whole, Faults, Item, Kernel, Plan};
use crate::sync::{AtomicBool, NO_FENCE};

/// Runs a model with at most so many preemptions in each execution.
fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(preemptions);
    }
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        f();
    });
    println!("{} executions", executions.load(Relaxed));
}

/// Names of events, and how often each came.
fn tally<'a>(events: impl IntoIterator<Item = &'a Event>) -> BTreeMap<u64, u32> {
    let mut names = BTreeMap::new();
    for event in events {
        whole(event);
        *names.entry(event.user_data).or_insert(0) += 1;
    }
    names
}

fn claim(kernel: &Arc<Kernel>, limit: usize) -> Vec<Event> {
    let mut consumer = kernel.consumer(limit);
    consumer.claim();
    consumer.events().to_vec()
}

/// Two consumers and a kernel that posts meanwhile: each event is claimed once.
#[test]
fn two_consumers_and_posts() {
    model(2, || {
        let kernel = Kernel::new(2);
        let ids = [1, 2].map(|name| kernel.add(name).unwrap());
        let consumers = [(); 2].map(|()| {
            let kernel = Arc::clone(&kernel);
            thread::spawn(move || claim(&kernel, 2))
        });
        kernel.post(ids[0], 1);
        kernel.post(ids[1], 1);
        let mut events = consumers.map(|thread| thread.join().unwrap()).concat();
        events.extend(kernel.collect(4));
        assert_eq!(tally(&events), BTreeMap::from([(1, 1), (2, 1)]));
    });
}

/// A slot is used again while two consumers look at it.  Source 1 has an event
/// in slot 0; source 2's next one goes there, too.
fn slot_is_used_again(faults: Faults, order: crate::sync::Ordering) {
    model(3, move || {
        let kernel = Kernel::faulty(2, faults);
        let ids = [1, 2].map(|name| kernel.add(name).unwrap());
        kernel.post(ids[0], 1);
        kernel.post(ids[1], 1);
        let first = claim_at(kernel.slot(1)).unwrap();
        let consumers = [(); 2].map(|()| {
            let kernel = Arc::clone(&kernel);
            thread::spawn(move || claim_with(kernel.slot(0), order))
        });
        kernel.post(ids[1], 1);
        let claimed = consumers.map(|thread| thread.join().unwrap());
        let mut events: Vec<_> = claimed.into_iter().flatten().collect();
        events.push(first);
        events.extend(kernel.collect(4));
        let names = tally(&events);
        assert!(
            names == BTreeMap::from([(1, 1), (2, 2)]),
            "lost or doubled: {names:?}"
        );
    });
}

#[test]
fn a_slot_is_used_again() {
    slot_is_used_again(Faults::default(), Acquire);
}

#[test]
#[should_panic(expected = "lost or doubled")]
fn a_slot_is_used_again_without_generation() {
    let faults = Faults {
        no_generation: true,
        ..Faults::default()
    };
    slot_is_used_again(faults, Acquire);
}

/// A without its release: the payload of the lap before, or parts of it.
#[test]
#[should_panic(expected = "lost or doubled")]
fn a_slot_is_used_again_without_release() {
    let faults = Faults {
        relaxed_publish: true,
        ..Faults::default()
    };
    slot_is_used_again(faults, Acquire);
}

/// C without its acquire.
#[test]
#[should_panic(expected = "lost or doubled")]
fn a_slot_is_used_again_without_acquire() {
    slot_is_used_again(Faults::default(), Relaxed);
}

/// Whatever is merged is claimed by somebody, in the old event or in a new one.
#[test]
fn merge_and_claim() {
    model(3, || {
        let kernel = Kernel::new(2);
        let id = kernel.add(1).unwrap();
        kernel.post(id, 1);
        let consumers = [(); 2].map(|()| {
            let kernel = Arc::clone(&kernel);
            thread::spawn(move || claim(&kernel, 1))
        });
        kernel.post(id, 2);
        kernel.post(id, 4);
        let mut events = consumers.map(|thread| thread.join().unwrap()).concat();
        events.extend(kernel.collect(4));
        events.iter().for_each(whole);
        assert!(events.iter().all(|event| event.value != 0));
        let bits = events.iter().fold(0, |bits, event| bits | event.value);
        assert_eq!(bits, 7, "a bit was lost");
        let sum: u32 = events.iter().map(|event| event.value).sum();
        assert_eq!(sum, 7, "a bit came twice");
    });
}

/// Store buffering.  The source changes its state and reports it, while its last
/// event, which says the same, is being claimed.  Either the consumer sees the
/// state, or there is an event more.
fn skip_and_look(faults: Faults) {
    model(4, move || {
        let kernel = Kernel::faulty(2, faults);
        let state = Arc::new(AtomicU32::new(0));
        let id = kernel.add(1).unwrap();
        kernel.post(id, 1);
        let source = thread::spawn({
            let (kernel, state) = (Arc::clone(&kernel), Arc::clone(&state));
            move || {
                state.store(1, Relaxed);
                kernel.post(id, 1);
            }
        });
        let claimed = claim(&kernel, 1);
        assert_eq!(claimed.len(), 1);
        let seen = state.load(Relaxed);
        source.join().unwrap();
        let more = kernel.collect(4).len();
        assert!(seen == 1 || more == 1, "lost wake-up");
    });
}

#[test]
fn the_consumer_sees_the_state_or_an_event() {
    skip_and_look(Faults::default());
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn the_state_or_an_event_without_the_consumers_fence() {
    NO_FENCE.set(true);
    skip_and_look(Faults::default());
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn the_state_or_an_event_without_the_kernels_barrier() {
    skip_and_look(Faults {
        no_barrier: true,
        ..Faults::default()
    });
}

/// Once the removal has returned, no claim yields the event, not even after the
/// registration's place and the slot were used again.
#[test]
fn cancel_and_claim() {
    model(4, || {
        let kernel = Kernel::new(2);
        let removed = Arc::new(AtomicBool::new(false));
        let id = kernel.add(1).unwrap();
        kernel.post(id, 1);
        let consumer = thread::spawn({
            let (kernel, removed) = (Arc::clone(&kernel), Arc::clone(&removed));
            move || {
                let mut consumer = kernel.consumer(1);
                let mut events = Vec::new();
                for _ in 0..2 {
                    let before = removed.load(Acquire);
                    consumer.claim();
                    for event in consumer.events() {
                        assert!(!(before && event.user_data == 1), "it came after all");
                        events.push(*event);
                    }
                }
                events
            }
        });
        assert!(kernel.remove(id).is_some());
        removed.store(true, Release);
        // If it was claimed or not: there is room for one more.
        let id = kernel.add(2).unwrap();
        kernel.post(id, 1);
        let mut events = consumer.join().unwrap();
        events.extend(kernel.collect(4));
        let names = tally(&events);
        assert!(names.get(&1).is_none_or(|&count| count == 1));
        assert_eq!(names.get(&2), Some(&1));
    });
}

/// A consumer is left behind while another one and the kernel go on for laps; it
/// comes in when it likes.
#[test]
fn a_stale_cursor() {
    model(2, || {
        let kernel = Kernel::new(2);
        let ids = [1, 2].map(|name| kernel.add(name).unwrap());
        let mut stale = kernel.consumer(4);
        let late = thread::spawn(move || {
            stale.claim();
            stale.events().to_vec()
        });
        let mut consumer = kernel.consumer(4);
        let mut events = Vec::new();
        for _ in 0..2 {
            for id in ids {
                kernel.post(id, 1);
            }
            consumer.claim();
            events.extend(consumer.events().iter().copied());
        }
        events.extend(late.join().unwrap());
        // Nothing is merged, as all was claimed before each round by somebody,
        // and nobody has to call the kernel.
        consumer.claim();
        events.extend(consumer.events().iter().copied());
        assert_eq!(tally(&events), BTreeMap::from([(1, 2), (2, 2)]));
    });
}

/// Two sources report at once, under the lock, while a consumer claims.
#[test]
fn two_producers() {
    model(3, || {
        let kernel = Kernel::new(2);
        let ids = [1, 2].map(|name| kernel.add(name).unwrap());
        let producers = [(ids[0], 1), (ids[1], 2)].map(|(id, bits)| {
            let kernel = Arc::clone(&kernel);
            thread::spawn(move || {
                kernel.post(id, bits);
                kernel.post(ids[0], 4);
            })
        });
        let mut events = claim(&kernel, 2);
        for producer in producers {
            producer.join().unwrap();
        }
        events.extend(kernel.collect(4));
        events.iter().for_each(whole);
        let bits = |name| {
            let own = events.iter().filter(|event| event.user_data == name);
            own.fold(0, |bits, event| bits | event.value)
        };
        assert_eq!((bits(1), bits(2)), (5, 2), "a bit was lost");
    });
}

/// The kernel collects while a consumer claims: each event goes to one of them.
#[test]
fn the_kernel_collects_too() {
    model(4, || {
        let kernel = Kernel::new(2);
        let ids = [1, 2].map(|name| kernel.add(name).unwrap());
        kernel.post(ids[0], 1);
        kernel.post(ids[1], 1);
        let consumer = thread::spawn({
            let kernel = Arc::clone(&kernel);
            move || claim(&kernel, 2)
        });
        let mut events = kernel.collect(2);
        events.extend(consumer.join().unwrap());
        assert_eq!(tally(&events), BTreeMap::from([(1, 1), (2, 1)]));
        assert!(kernel.collect(2).is_empty());
    });
}

/// What waits behind a full ring gets in and out, whoever claims what and when.
#[test]
fn overflow() {
    model(3, || {
        let kernel = Kernel::new(2);
        let ids = [1, 2].map(|name| kernel.add(name).unwrap());
        kernel.post(ids[0], 1);
        kernel.post(ids[1], 1);
        // A consumer that does not keep to the order: slot 0 is in the way.
        let first = claim_at(kernel.slot(1)).unwrap();
        let consumer = thread::spawn({
            let kernel = Arc::clone(&kernel);
            move || {
                let mut consumer = kernel.consumer(4);
                let mut events = Vec::new();
                for _ in 0..2 {
                    consumer.poll(None).unwrap();
                    events.extend(consumer.events().iter().copied());
                }
                events
            }
        });
        kernel.post(ids[1], 1);
        let mut events = consumer.join().unwrap();
        events.push(first);
        events.extend(kernel.collect(4));
        assert_eq!(tally(&events), BTreeMap::from([(1, 1), (2, 2)]));
    });
}

/// The ring grows between two events.  The consumer finds both, in order,
/// without the kernel's help, whenever it gets to know of the larger one.
fn the_consumer_follows(faults: Faults) {
    model(3, move || {
        let plan = Plan {
            overcommit: true,
            faults,
            ..Plan::new(1)
        };
        let kernel = plan.make();
        let ids = [1, 2].map(|name| kernel.add(name).unwrap());
        let mut consumer = kernel.consumer(4);
        let thread = thread::spawn(move || {
            consumer.claim();
            let events = consumer.events().to_vec();
            (consumer, events)
        });
        kernel.post(ids[0], 1);
        assert!(kernel.grow(2));
        kernel.post(ids[1], 1);
        let (mut consumer, mut events) = thread.join().unwrap();
        consumer.claim();
        events.extend(consumer.events().iter().copied());
        let names: Vec<_> = events.iter().map(|event| event.user_data).collect();
        assert_eq!(names, [1, 2], "left behind");
        assert_eq!(kernel.retire(), 1);
    });
}

#[test]
fn a_ring_that_grows_is_followed() {
    the_consumer_follows(Faults::default());
}

#[test]
#[should_panic(expected = "left behind")]
fn a_ring_that_grows_is_followed_without_release() {
    the_consumer_follows(Faults {
        relaxed_rings: true,
        ..Faults::default()
    });
}

/// The ring grows and the old one is retired while a source reports, one
/// consumer follows the ring, and another one collects through the kernel.
#[test]
fn growing_under_fire() {
    model(2, || {
        let plan = Plan {
            overcommit: true,
            ..Plan::new(1)
        };
        let kernel = plan.make();
        let ids = [1, 2].map(|name| kernel.add(name).unwrap());
        let mut consumer = kernel.consumer(4);
        let producer = thread::spawn({
            let kernel = Arc::clone(&kernel);
            move || {
                kernel.post(ids[0], 1);
                kernel.post(ids[1], 1);
                kernel.post(ids[0], 2);
            }
        });
        let follower = thread::spawn(move || {
            consumer.claim();
            let events = consumer.events().to_vec();
            (consumer, events)
        });
        let collector = thread::spawn({
            let kernel = Arc::clone(&kernel);
            move || kernel.collect(2)
        });
        assert!(kernel.grow(2));
        kernel.retire();
        producer.join().unwrap();
        let (mut consumer, mut events) = follower.join().unwrap();
        events.extend(collector.join().unwrap());
        consumer.claim();
        events.extend(consumer.events().iter().copied());
        // Nothing waits, as there is room: the ring's consumer has found all.
        assert!(kernel.collect(4).is_empty(), "left behind");
        events.iter().for_each(whole);
        let sum = |name| {
            let own = events.iter().filter(|event| event.user_data == name);
            own.map(|event| event.value).sum::<u32>()
        };
        assert_eq!((sum(1), sum(2)), (3, 1), "lost or doubled");
        kernel.retire();
        assert_eq!(kernel.locked(|queue| queue.rings()), 2);
    });
}

/// A one-shot event is claimed from the ring or by the kernel, while its source
/// reports again and while the kernel finds out that the registration ended.
fn one_shot_is_reported_once(faults: Faults) {
    model(3, move || {
        let kernel = Kernel::faulty(1, faults);
        let id = kernel.register(one_shot(1), Item::FILE).unwrap();
        kernel.post(id, 1);
        let consumer = thread::spawn({
            let kernel = Arc::clone(&kernel);
            move || claim(&kernel, 1)
        });
        let collector = thread::spawn({
            let kernel = Arc::clone(&kernel);
            move || kernel.collect(1)
        });
        let source = thread::spawn({
            let kernel = Arc::clone(&kernel);
            move || kernel.post(id, 2)
        });
        kernel.settle_all();
        let mut events = consumer.join().unwrap();
        events.extend(collector.join().unwrap());
        let value = match source.join().unwrap() {
            Post::Merged => 3,
            Post::Ended => 1,
            post => panic!("{post:?}"),
        };
        events.extend(kernel.collect(4));
        let values: Vec<_> = events.iter().map(|event| event.value).collect();
        assert_eq!(values, [value], "not once");
        // Its slot is free, although nobody has removed it yet.
        assert_eq!(kernel.seen(id), None);
        assert!(kernel.add(2).is_ok());
        assert_eq!(kernel.reap(), [1]);
    });
}

/// A one-shot event is claimed while its registration is taken away, to be moved:
/// either the claim has it, and nothing is moved, or it goes along.
#[test]
fn one_shot_claimed_or_moved() {
    model(3, || {
        let kernel = Kernel::new(1);
        let id = kernel.register(one_shot(1), Item::FILE).unwrap();
        kernel.post(id, 1);
        let consumer = thread::spawn({
            let kernel = Arc::clone(&kernel);
            move || claim(&kernel, 1)
        });
        let taken = kernel.locked(|queue| match queue.is_live(id) {
            true => queue.remove(id).unwrap().2,
            false => Err(Refused::Ended),
        });
        let claimed = consumer.join().unwrap().len();
        match taken {
            Ok(pending) => assert_eq!((pending, claimed), (Pending::Event(1), 0)),
            Err(_) => assert_eq!(claimed, 1),
        }
    });
}

#[test]
fn one_shot_claimed_and_posted_again() {
    one_shot_is_reported_once(Faults::default());
}

#[test]
#[should_panic(expected = "not once")]
fn one_shot_claimed_and_posted_again_without_atomicity() {
    one_shot_is_reported_once(Faults {
        torn_exchange: true,
        ..Faults::default()
    });
}

/// Of two threads that collect, one gets a level-triggered event that ends, or
/// disables, its registration.
#[test]
fn level_triggered_and_for_one_collector() {
    for after in [After::End, After::Disable] {
        model(3, move || {
            let kernel = Kernel::new(1);
            let terms = crate::events::Terms { after, ..level(1) };
            let id = kernel.register(terms, Item::FILE).unwrap();
            let collectors = [(); 2].map(|()| {
                let kernel = Arc::clone(&kernel);
                thread::spawn(move || kernel.collect(2))
            });
            kernel.post(id, 1);
            let mut events = collectors.map(|thread| thread.join().unwrap()).concat();
            events.extend(kernel.collect(2));
            assert_eq!(tally(&events), BTreeMap::from([(1, 1)]));
        });
    }
}
