// SPDX-License-Identifier: MIT
//! Unit tests: the kernel's files and the library's, one step at a time.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::Arc;

use crate::abi;
use crate::consumer::{Backend, Consumer, Slots};
use crate::events::{After, Claim, Pending, Post, Refused, Seen, Terms, Trigger, Update};
use crate::kernel::{claim_at, level, one_shot, terms, whole, Found, Item, Kernel, Plan};

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

fn level_ready(kernel: &Arc<Kernel>) -> bool {
    kernel.flags() & abi::KEVENT_RING_LEVEL_READY != 0
}

/// A queue that does not reserve slots.
fn overcommitted(slots: u32) -> Arc<Kernel> {
    let plan = Plan {
        overcommit: true,
        ..Plan::new(slots)
    };
    plan.make()
}

/// Of a source whose events are counts or values.
const COUNTER: Item = Item {
    so: true,
    counts: true,
};

fn set_so(kernel: &Arc<Kernel>, id: u32, so: bool) {
    kernel.locked(|queue| queue.item_mut(id).unwrap().so = so);
}

/// Claims what the kernel found, after a look that says whether it is `so`.
fn claim_level(kernel: &Kernel, event: &Found, so: bool) -> Claim {
    kernel.locked(|queue| queue.claim(event, so, true))
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
    assert_eq!(kernel.post(id, 1), Post::Merged);
    assert_eq!(kernel.post(id, 4), Post::Merged);
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
            let word = kernel.slot(index).word.load(Relaxed);
            assert_eq!(word, 6 << 32 | lap << 1 | 1);
            claim_at(kernel.slot(index)).unwrap();
            let word = kernel.slot(index).word.load(Relaxed);
            assert_eq!(word, lap << 1);
        }
    }
}

#[test]
fn bits_of_no_interest_are_nothing() {
    let kernel = Kernel::new(2);
    let id = kernel.add(1).unwrap();
    let narrow = Terms {
        interest: 0x10,
        ..terms(1)
    };
    assert_eq!(kernel.modify(id, narrow, true), Ok(Pending::Nothing));
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
    assert_eq!(kernel.add(3), Err(Refused::NoSlot));
    kernel.remove(second);
    let second = kernel.add(3).unwrap();
    kernel.post(first, 1);
    kernel.post(second, 1);
    // The slot of a cancelled event stays taken until it was claimed.
    assert_eq!(kernel.remove(first), Some(Pending::Event(1)));
    assert_eq!(kernel.remove(first), None);
    assert_eq!(kernel.add(4), Err(Refused::NoSlot));
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
fn a_count_goes_on_where_it_was_left() {
    let kernel = Kernel::new(64);
    for name in 0..60 {
        let id = kernel.add(name).unwrap();
        kernel.post(id, 1);
        if name % 10 != 9 {
            kernel.remove(id);
        }
    }
    let mut counting = None;
    let mut count = |limit| kernel.locked(|queue| queue.count(&mut counting, limit, 16));
    // Cancelled ones are looked at, too, and not counted.
    assert_eq!([count(9), count(9), count(9)], [None; 3]);
    assert_eq!(count(9), Some(6));
    // What was claimed meanwhile can be counted, and what is new is.
    kernel.collect(3);
    let id = kernel.add(60).unwrap();
    kernel.post(id, 1);
    let mut count = |limit| kernel.locked(|queue| queue.count(&mut counting, limit, 16));
    assert_eq!(count(7), Some(7));
    assert_eq!(kernel.count(9), 4);
}

#[test]
fn the_table_is_given_away_when_it_is_empty() {
    let kernel = Kernel::new(4);
    let first = kernel.add(1).unwrap();
    let second = kernel.locked(|queue| queue.reserve(Trigger::Edge)).unwrap();
    assert!(kernel.locked(|queue| queue.take_table()).is_none());
    kernel.remove(first);
    assert!(kernel.locked(|queue| queue.take_table()).is_none());
    kernel.locked(|queue| queue.unreserve(second, Trigger::Edge));
    assert!(kernel.locked(|queue| queue.take_table()).is_some());
    assert_eq!(kernel.locked(|queue| queue.ids()), 0);
    assert!(kernel.add(1).is_ok());
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
            claim_at(kernel.slot(1)).unwrap();
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
        claim_at(kernel.slot(index)).unwrap();
    }
    for id in &ids[1..] {
        assert_eq!(kernel.post(*id, 2), Post::Waits);
    }
    assert!(overflow(&kernel));
    assert_eq!(kernel.remove(ids[2]), Some(Pending::Event(2)));
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
    assert_eq!(kernel.post(id, 1), Post::Merged);
    assert!(!kernel.claim(&stale, true, true));
    assert!(kernel.claim(&stale, true, false));
    assert!(kernel.find().is_none());

    kernel.post(id, 1);
    let fresh = kernel.find().unwrap();
    assert!(kernel.claim(&fresh, true, true));
    assert!(!kernel.claim(&fresh, true, true));
}

/// Nor what was added to it, even if nobody has to look at the source.
#[test]
fn what_is_merged_after_an_event_was_found_is_not_lost() {
    let kernel = Kernel::new(2);
    let id = kernel.register(terms(1), COUNTER).unwrap();
    kernel.report(id, Update::Count(1));
    let stale = kernel.find().unwrap();
    kernel.report(id, Update::Count(2));
    assert!(!kernel.claim(&stale, true, false));
    assert_eq!(pairs(&kernel.collect(9)), [(1, 3)]);
    // Nor is another event that came to the same slot.
    kernel.report(id, Update::Count(1));
    let stale = kernel.find().unwrap();
    assert_eq!(kernel.collect(9).len(), 1);
    for _ in 0..2 {
        kernel.report(id, Update::Count(1));
        assert!(!kernel.claim(&stale, true, false));
        assert_eq!(kernel.collect(9).len(), 1);
    }
}

/// What the kernel claims while it counts must be what is next in turn, or the
/// slot behind an older event would be promised twice.
#[test]
fn counting_keeps_the_reservations() {
    let kernel = Kernel::new(2);
    let first = kernel.add(1).unwrap();
    let second = kernel.add(2).unwrap();
    kernel.post(first, 1);
    kernel.post(second, 1);
    kernel.remove(second);
    assert_eq!(kernel.count(9), 1);
    assert_eq!(kernel.add(3), Err(Refused::NoSlot));
    assert_eq!(pairs(&kernel.collect(9)), [(1, 1)]);
    let third = kernel.add(3).unwrap();
    assert_eq!(kernel.post(first, 1), Post::New);
    assert_eq!(kernel.post(third, 1), Post::New);
}

#[test]
fn counts_are_added_and_stop() {
    let max = abi::KEVENT_COUNT_MAX;
    let flag = abi::KEVENT_TIMER_CANCELED;
    for (old, update, new) in [
        (0, Update::Bits(6), 6),
        (1, Update::Bits(6), 7),
        (0, Update::Count(1), 1),
        (3, Update::Count(4), 7),
        (max - 1, Update::Count(1), max),
        (max, Update::Count(1), max),
        (max, Update::Count(max), max),
        (3, Update::Count(flag), 3 | flag),
        (3 | flag, Update::Count(4), 7 | flag),
        (max | flag, Update::Count(max | flag), max | flag),
        (7, Update::Value(9), 9),
    ] {
        assert_eq!(update.apply(old), new, "{old} {update:?}");
    }
    assert_eq!(Update::Count(1).with(9), Update::Count(9));
}

#[test]
fn counts_and_values_are_merged_in_the_ring_and_behind_it() {
    let kernel = overcommitted(1);
    let [first, counter, value] =
        [1, 2, 3].map(|name| kernel.register(terms(name), COUNTER).unwrap());
    kernel.report(first, Update::Count(1));
    kernel.report(first, Update::Count(2));
    assert_eq!(kernel.report(counter, Update::Count(3)), Post::Waits);
    assert_eq!(kernel.report(counter, Update::Count(4)), Post::Merged);
    assert_eq!(kernel.report(value, Update::Value(5)), Post::Waits);
    kernel.locked(|queue| queue.amend(value, Update::Value(6)));
    kernel.locked(|queue| queue.amend(first, Update::Count(10)));
    assert_eq!(pairs(&kernel.collect(9)), [(1, 13), (2, 7), (3, 6)]);
    // There is nothing to be amended, and nothing is no event.
    kernel.locked(|queue| queue.amend(value, Update::Value(7)));
    assert_eq!(kernel.report(counter, Update::Count(0)), Post::Nothing);
    assert!(kernel.collect(9).is_empty());
}

#[test]
fn a_one_shot_registration_ends_when_its_event_is_claimed() {
    let kernel = Kernel::new(1);
    let mut consumer = kernel.consumer(8);
    let id = kernel.register(one_shot(1), Item::FILE).unwrap();
    assert_eq!(kernel.post(id, 1), Post::New);
    assert_eq!(kernel.post(id, 2), Post::Merged);
    assert_eq!(kernel.add(2), Err(Refused::NoSlot));
    assert_eq!(claim(&mut consumer), [(1, 3)]);
    assert_eq!(kernel.post(id, 4), Post::Ended);
    assert_eq!(kernel.seen(id), None);
    assert_eq!(kernel.locked(|queue| queue.live()), 0);
    // Its slot is free again even before it is removed.
    let second = kernel.register(one_shot(2), Item::FILE).unwrap();
    kernel.post(second, 1);
    assert_eq!(pairs(&kernel.collect(9)), [(2, 1)]);
    assert_eq!(kernel.reap(), [1, 2]);
    assert_eq!(kernel.remove(id), None);
    assert_eq!(kernel.locked(|queue| queue.shots()), 0);
}

#[test]
fn a_one_shot_event_that_was_not_claimed_is_taken_back() {
    let kernel = Kernel::new(1);
    let mut consumer = kernel.consumer(8);
    let id = kernel.register(one_shot(1), Item::FILE).unwrap();
    kernel.post(id, 1);
    assert_eq!(kernel.remove(id), Some(Pending::Event(1)));
    assert_eq!(claim(&mut consumer), []);
    // Nor is it claimed by a kernel that finds that nothing is so.
    let id = kernel.register(one_shot(2), Item::FILE).unwrap();
    set_so(&kernel, id, false);
    kernel.post(id, 1);
    assert!(kernel.collect(9).is_empty());
    assert_eq!(kernel.seen(id), Some(Seen::Idle));
    assert_eq!(kernel.post(id, 1), Post::New);
    assert_eq!(claim(&mut consumer), [(2, 1)]);
    kernel.settle_all();
    assert_eq!(kernel.reap(), [2]);
}

#[test]
fn a_dispatched_registration_is_disabled_when_its_event_is_claimed() {
    let dispatch = |name| Terms {
        after: After::Disable,
        ..terms(name)
    };
    let kernel = Kernel::new(2);
    let mut consumer = kernel.consumer(8);
    let file = kernel.register(dispatch(1), Item::FILE).unwrap();
    let counter = kernel.register(dispatch(2), COUNTER).unwrap();
    kernel.post(file, 1);
    kernel.report(counter, Update::Count(1));
    assert_eq!(claim(&mut consumer), [(1, 1), (2, 1)]);
    assert_eq!(kernel.post(file, 1), Post::Nothing);
    assert_eq!(kernel.report(counter, Update::Count(2)), Post::Nothing);
    assert_eq!(kernel.report(counter, Update::Count(3)), Post::Nothing);
    assert_eq!(kernel.seen(file), Some(Seen::Disabled));
    assert_eq!(kernel.count(9), 0);
    // What a file has to say is found out anew; what was counted is held.
    assert_eq!(kernel.enable(file), Ok(0));
    assert_eq!(kernel.enable(counter), Ok(5));
    assert_eq!(kernel.enable(counter), Ok(0));
    assert_eq!(kernel.post(file, 4), Post::New);
    assert_eq!(claim(&mut consumer), [(1, 4)]);
}

#[test]
fn what_is_disabled_is_taken_back() {
    let kernel = Kernel::new(2);
    let mut consumer = kernel.consumer(8);
    let file = kernel.add(1).unwrap();
    let counter = kernel.register(terms(2), COUNTER).unwrap();
    kernel.post(file, 1);
    kernel.report(counter, Update::Count(1));
    assert_eq!(kernel.disable(file), Ok(Pending::Event(1)));
    assert_eq!(kernel.disable(counter), Ok(Pending::Event(1)));
    assert_eq!(kernel.disable(counter), Ok(Pending::Disabled(1)));
    assert_eq!(claim(&mut consumer), []);
    kernel.report(counter, Update::Count(2));
    assert_eq!(kernel.remove(counter), Some(Pending::Disabled(3)));
    let disabled = kernel.modify(file, terms(3), false);
    assert_eq!(disabled, Ok(Pending::Disabled(0)));
    assert_eq!(kernel.post(file, 1), Post::Nothing);
    assert_eq!(
        kernel.modify(file, terms(4), true),
        Ok(Pending::Disabled(0))
    );
    assert_eq!(kernel.post(file, 1), Post::New);
    assert_eq!(claim(&mut consumer), [(4, 1)]);
}

#[test]
fn a_level_triggered_registration_needs_no_slot() {
    let kernel = Kernel::new(1);
    let edge = kernel.add(0).unwrap();
    let ids: Vec<_> = (1..5000)
        .map(|name| kernel.register(level(name), Item::FILE).unwrap())
        .collect();
    assert_eq!(kernel.add(1), Err(Refused::NoSlot));
    for &id in &ids {
        assert_eq!(kernel.post(id, 1), Post::New);
        assert_eq!(kernel.post(id, 1), Post::Merged);
    }
    let names =
        |events: &[kevent::Event]| -> Vec<_> { events.iter().map(|it| it.user_data).collect() };
    // Each of them once in a call.
    assert_eq!(names(&kernel.collect(9999)), (1..5000).collect::<Vec<_>>());
    // To be edge-triggered it takes a slot, and without one it stays as it is.
    assert_eq!(kernel.modify(ids[0], terms(1), true), Err(Refused::NoSlot));
    kernel.remove(edge);
    assert_eq!(kernel.collect(9999).len(), 4999);
    assert_eq!(
        kernel.modify(ids[0], terms(1), true),
        Ok(Pending::Event(0xffff))
    );
    assert_eq!(kernel.collect(9999).len(), 4998);
    assert_eq!(kernel.add(1), Err(Refused::NoSlot));
    assert_eq!(kernel.modify(ids[0], level(1), true), Ok(Pending::Nothing));
    assert!(kernel.add(1).is_ok());
}

#[test]
fn level_triggered_events_are_looked_at_and_told_of() {
    let kernel = Kernel::new(1);
    let id = kernel.register(level(1), Item::FILE).unwrap();
    let mut consumer = kernel.consumer(8);
    assert!(!level_ready(&kernel));
    kernel.post(id, 1);
    assert!(level_ready(&kernel));
    assert_eq!(claim(&mut consumer), []);
    assert_eq!(kernel.count(9), 1);
    for _ in 0..3 {
        assert_eq!(pairs(&kernel.collect(9)), [(1, 0xffff)]);
        consumer.poll(None).unwrap();
        assert_eq!(pairs(consumer.events()), [(1, 0xffff)]);
        assert!(level_ready(&kernel));
    }
    set_so(&kernel, id, false);
    assert!(kernel.collect(9).is_empty());
    assert!(!level_ready(&kernel));
    assert_eq!(kernel.count(9), 0);

    // A report while the kernel looks is noticed, and is news to those who poll the queue: the
    // call goes on without it.
    kernel.post(id, 1);
    let stale = kernel.find().unwrap();
    assert_eq!(kernel.post(id, 1), Post::Merged);
    assert_eq!(claim_level(&kernel, &stale, false), Claim::Anew);
    assert!(level_ready(&kernel));
    let fresh = kernel.find().unwrap();
    let last = kernel.find().unwrap();
    // Whoever has found it last: or two that find it in turn would go on for ever.
    assert_eq!(claim_level(&kernel, &fresh, false), Claim::Done);
    assert_eq!(claim_level(&kernel, &last, false), Claim::Failed);
    assert!(!level_ready(&kernel));
}

/// To look at some files takes away what there is to see: one of those who look
/// has seen it, and nobody will again.
#[test]
fn who_has_seen_a_level_triggered_event_delivers_it_whoever_looked_later() {
    for after in [After::Stay, After::Disable, After::End] {
        for forgotten in [false, true] {
            let kernel = Kernel::new(1);
            let terms = Terms { after, ..level(1) };
            let id = kernel.register(terms, Item::FILE).unwrap();
            kernel.post(id, 1);
            let [first, second, third] = [(); 3].map(|()| kernel.find().unwrap());
            if forgotten {
                assert!(kernel.claim(&first, false, true));
                assert!(!kernel.claim(&third, false, true));
                assert!(!level_ready(&kernel));
            }
            let stays = after == After::Stay;
            // News to those who poll the queue, if it is ready again.
            let again = match stays && forgotten {
                true => Claim::Anew,
                false => Claim::Done,
            };
            assert_eq!(claim_level(&kernel, &second, true), again);
            assert_eq!(level_ready(&kernel), stays);
            assert_eq!(kernel.seen(id).is_none(), after == After::End);
            // Whoever else has seen it, unless it was for one.
            assert_eq!(kernel.claim(&first, true, true), stays);
            assert_eq!(kernel.claim(&third, true, true), stays);
            assert_eq!(kernel.count(9), stays.into());
        }
    }
}

/// The second has seen what came after the first had delivered.
#[test]
fn what_is_delivered_by_one_does_not_hide_what_another_has_seen_later() {
    let kernel = Kernel::new(1);
    let id = kernel.register(level(1), Item::FILE).unwrap();
    kernel.post(id, 1);
    let [first, second] = [(); 2].map(|()| kernel.find().unwrap());
    assert!(kernel.claim(&first, true, true));
    assert_eq!(kernel.post(id, 1), Post::Merged);
    assert_eq!(claim_level(&kernel, &second, false), Claim::Anew);
    assert_eq!(claim_level(&kernel, &second, true), Claim::Done);
}

#[test]
fn what_was_seen_of_a_level_triggered_registration_before_it_changed_is_not_delivered() {
    let change: [fn(&Kernel, u32); 3] = [
        |kernel, id| {
            kernel.modify(id, level(2), true).unwrap();
        },
        |kernel, id| {
            kernel.disable(id).unwrap();
            kernel.enable(id).unwrap();
        },
        |kernel, id| {
            kernel.remove(id);
            assert_eq!(kernel.register(level(3), Item::FILE), Ok(id));
        },
    ];
    for change in change {
        let kernel = Kernel::new(1);
        let id = kernel.register(level(1), Item::FILE).unwrap();
        kernel.post(id, 1);
        let stale = kernel.find().unwrap();
        change(&kernel, id);
        assert!(!kernel.claim(&stale, true, true));
        kernel.post(id, 1);
        assert!(!kernel.claim(&stale, true, true));
        assert!(!kernel.claim(&stale, false, true));
        assert!(kernel.claim(&kernel.find().unwrap(), true, true));
    }
}

/// Somebody else has found it later, and has begun to look later.
#[test]
fn who_looked_before_a_post_is_told_of_it_whoever_found_it_later() {
    let kernel = Kernel::new(1);
    let id = kernel.register(level(1), Item::FILE).unwrap();
    kernel.post(id, 1);
    let first = kernel.find().unwrap();
    assert_eq!(kernel.post(id, 1), Post::Merged);
    let second = kernel.find().unwrap();
    assert_eq!(claim_level(&kernel, &first, false), Claim::Anew);
    assert_eq!(claim_level(&kernel, &second, false), Claim::Done);
    assert_eq!(claim_level(&kernel, &first, false), Claim::Failed);
}

#[test]
fn who_looks_later_does_not_hide_a_post_from_who_looked_before() {
    let kernel = Kernel::new(4);
    let id = kernel.add(1).unwrap();
    kernel.post(id, 1);
    let first = kernel.find().unwrap();
    assert_eq!(kernel.post(id, 1), Post::Merged);
    let second = kernel.find().unwrap();
    // The first saw the source before it was posted again, and would forget the event.
    assert!(!kernel.claim(&first, false, true));
    assert!(kernel.claim(&second, true, true));
}

#[test]
fn level_triggered_events_take_turns() {
    let kernel = Kernel::new(4);
    let mut edges = Vec::new();
    for name in 0..3 {
        let id = kernel.register(level(10 + name), Item::FILE).unwrap();
        kernel.post(id, 1);
        edges.push(kernel.add(name).unwrap());
    }
    let one = || kernel.collect(1)[0].user_data;
    let names: Vec<_> = (0..6).map(|_| one()).collect();
    assert_eq!(names, [10, 11, 12, 10, 11, 12]);
    for &id in &edges {
        kernel.post(id, 1);
    }
    // Neither kind starves, in one call or several.
    let names: Vec<_> = (0..4).map(|_| one()).collect();
    assert_eq!(names, [0, 10, 1, 11]);
    kernel.post(edges[0], 1);
    let names: Vec<_> = kernel.collect(9).iter().map(|it| it.user_data).collect();
    assert_eq!(names, [2, 12, 0, 10, 11]);
}

#[test]
fn a_level_triggered_event_can_end_or_disable_its_registration() {
    let kernel = Kernel::new(1);
    let [ends, stops] = [After::End, After::Disable].map(|after| {
        let terms = Terms { after, ..level(1) };
        let id = kernel.register(terms, Item::FILE).unwrap();
        kernel.post(id, 1);
        // Two threads find it, and one of them gets it.
        let first = kernel.find().unwrap();
        let second = kernel.find().unwrap();
        assert!(kernel.claim(&first, true, true));
        assert!(!kernel.claim(&second, true, true));
        assert!(!level_ready(&kernel));
        let post = kernel.post(id, 1);
        assert_eq!(post == Post::Ended, after == After::End);
        assert_eq!(post == Post::Nothing, after == After::Disable);
        id
    });
    assert_eq!(kernel.seen(ends), None);
    assert_eq!(kernel.reap(), [1]);
    assert_eq!(kernel.enable(stops), Ok(0));
    kernel.post(stops, 1);
    assert_eq!(kernel.collect(9).len(), 1);
}

/// A ring of one slot, and 10,000 sources.
#[test]
fn an_overcommitted_queue_loses_nothing_and_keeps_the_order() {
    const SOURCES: u64 = 10_000;
    let kernel = overcommitted(1);
    let mut consumer = kernel.consumer(64);
    let ids: Vec<_> = (0..SOURCES).map(|name| kernel.add(name).unwrap()).collect();
    for round in 1..3 {
        for &id in &ids {
            kernel.post(id, round);
        }
        assert!(overflow(&kernel));
        let mut next = 0;
        while next < SOURCES {
            consumer.poll(None).unwrap();
            for event in consumer.events() {
                assert_eq!((event.user_data, event.value), (next, round));
                next += 1;
            }
        }
        assert!(!overflow(&kernel));
    }
    // Many of them in each call.
    assert_eq!(consumer.stats.waits, 0);
    assert!(consumer.stats.collects < 2 * SOURCES / 50);
}

#[test]
fn what_waits_gets_in_with_later_events() {
    let kernel = overcommitted(4);
    let mut consumer = kernel.consumer(8);
    let ids: Vec<_> = (0..8).map(|name| kernel.add(name).unwrap()).collect();
    for &id in &ids[..7] {
        kernel.post(id, 1);
    }
    assert_eq!(claim(&mut consumer).len(), 4);
    // Two for one, and not before those that came earlier.
    assert_eq!(kernel.post(ids[7], 1), Post::Waits);
    assert_eq!(claim(&mut consumer), [(4, 1), (5, 1)]);
    assert_eq!(kernel.post(ids[0], 1), Post::New);
    assert!(!overflow(&kernel));
    assert_eq!(claim(&mut consumer), [(6, 1), (7, 1), (0, 1)]);
}

#[test]
fn a_ring_grows_in_place() {
    let kernel = Kernel::new(1);
    let mut consumer = kernel.consumer(8);
    let first = kernel.add(1).unwrap();
    kernel.post(first, 1);
    assert!(!kernel.grow(1));
    assert!(kernel.grow(4));
    assert_eq!(kernel.rings(), 5);
    assert_eq!(kernel.locked(|queue| queue.slots()), 4);
    let more: Vec<_> = (2..5).map(|name| kernel.add(name).unwrap()).collect();
    assert_eq!(kernel.add(5), Err(Refused::NoSlot));
    // What is in the old slots is merged there, and comes first.
    assert_eq!(kernel.post(first, 2), Post::Merged);
    for &id in &more {
        assert_eq!(kernel.post(id, 1), Post::New);
    }
    assert_eq!(kernel.retire(), 0);
    let mut late = kernel.consumer(2);
    assert_eq!(claim(&mut late), [(1, 3), (2, 1)]);
    assert_eq!(kernel.post(first, 4), Post::New);
    assert_eq!(claim(&mut consumer), [(3, 1), (4, 1), (1, 4)]);
    assert_eq!(kernel.set(4).unwrap().slot(0).word.load(Relaxed), 1 << 1);
    assert_eq!(kernel.retire(), 1);
    assert_eq!(kernel.rings(), 4);
    assert!(kernel.set(1).is_none() && kernel.set(2).is_none() && kernel.set(8).is_none());
    // Those that were not there meanwhile find the way, and need no help.
    assert!(kernel.grow(16) && kernel.grow(64));
    kernel.post(first, 1);
    assert_eq!(kernel.retire(), 2);
    assert_eq!(claim(&mut consumer), [(1, 1)]);
    assert_eq!(consumer.stats.waits, 0);
}

#[test]
fn a_ring_that_grows_lets_in_what_waits_and_keeps_the_order() {
    let kernel = overcommitted(2);
    let mut consumer = kernel.consumer(8);
    let ids: Vec<_> = (0..6).map(|name| kernel.add(name).unwrap()).collect();
    for &id in &ids {
        kernel.post(id, 1);
    }
    assert!(overflow(&kernel));
    assert!(kernel.grow(8));
    assert!(!overflow(&kernel));
    // Cancelled in the old slots, and posted again to the new ones.
    assert_eq!(kernel.modify(ids[0], terms(9), true), Ok(Pending::Event(1)));
    kernel.post(ids[0], 2);
    assert_eq!(kernel.count(9), 6);
    let expected: Vec<_> = (1..6).map(|name| (name, 1)).chain([(9, 2)]).collect();
    assert_eq!(claim(&mut consumer), expected);
    assert_eq!(kernel.retire(), 1);
}

/// Registrations whose events were claimed from a ring that is gone.
#[test]
fn what_was_claimed_from_a_retired_ring_is_known() {
    let kernel = Kernel::new(2);
    let mut consumer = kernel.consumer(8);
    let stays = kernel.add(1).unwrap();
    let ends = kernel.register(one_shot(2), Item::FILE).unwrap();
    kernel.post(stays, 1);
    kernel.post(ends, 1);
    assert!(kernel.grow(4));
    assert_eq!(claim(&mut consumer), [(1, 1), (2, 1)]);
    assert_eq!(kernel.retire(), 1);
    assert_eq!(kernel.post(ends, 1), Post::Ended);
    assert_eq!(kernel.reap(), [2]);
    assert_eq!(kernel.remove(stays), Some(Pending::Nothing));
}

#[test]
fn a_registration_is_moved_with_what_it_has_to_say() {
    let move_to = |from: &Arc<Kernel>, id: u32, to: &Arc<Kernel>| {
        let new = to.reserve(Trigger::Edge)?;
        let (terms, item, pending) = from.locked(|queue| queue.remove(id)).unwrap();
        let pending = pending.unwrap();
        to.locked(|queue| queue.fill(new, terms, item, pending));
        if let Pending::Event(value) = pending {
            to.report(new, Update::Count(value));
        }
        Ok((new, pending))
    };
    let [here, there] = [Kernel::new(2), Kernel::new(1)];
    let mut consumer = here.consumer(8);
    let id = here.register(terms(1), COUNTER).unwrap();
    here.report(id, Update::Count(7));
    let other = there.add(2).unwrap();
    assert_eq!(move_to(&here, id, &there), Err(Refused::NoSlot));
    assert_eq!(here.count(9), 1);
    there.remove(other);
    let (id, pending) = move_to(&here, id, &there).unwrap();
    assert_eq!(pending, Pending::Event(7));
    assert_eq!(claim(&mut consumer), []);
    there.report(id, Update::Count(1));
    assert_eq!(pairs(&there.collect(9)), [(1, 8)]);

    there.disable(id).unwrap();
    there.report(id, Update::Count(5));
    let (id, pending) = move_to(&there, id, &here).unwrap();
    assert_eq!(pending, Pending::Disabled(5));
    here.report(id, Update::Count(1));
    assert_eq!(here.enable(id), Ok(6));
    assert_eq!(claim(&mut consumer), []);
}

#[test]
fn a_reservation_can_be_given_back() {
    let kernel = Kernel::new(1);
    let id = kernel.reserve(Trigger::Edge).unwrap();
    assert_eq!(kernel.post(id, 1), Post::Nothing);
    assert_eq!(kernel.remove(id), None);
    assert_eq!(kernel.seen(id), None);
    assert_eq!(kernel.add(1), Err(Refused::NoSlot));
    kernel.locked(|queue| queue.unreserve(id, Trigger::Edge));
    let again = kernel.add(1).unwrap();
    // It is not reserved any more.
    kernel.locked(|queue| queue.unreserve(id, Trigger::Edge));
    assert_eq!(kernel.post(again, 1), Post::New);
    assert_eq!(kernel.locked(|queue| queue.live()), 1);
}

/// The names and numbers of the header are those of the library.
#[test]
fn the_library_has_the_numbers_of_the_header() {
    const HEADER: &str = include_str!("../../../rust/include/uapi/linux/kevent.h");
    const ABI: &str = include_str!("../../kevent/src/abi.rs");
    let number = |text: &str| -> u64 {
        let text = text.trim_matches(['(', ')']).to_lowercase();
        let text = text.replace('_', "");
        let (base, shift) = text.split_once("<<").unwrap_or((&text, "0"));
        let base = base.trim().trim_end_matches(['u', 'l']);
        let value = match base.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => base.parse(),
        };
        value.unwrap() << shift.trim().parse::<u32>().unwrap()
    };
    let mut compared = 0;
    for line in HEADER.lines() {
        let Some(define) = line.strip_prefix("#define KEVENT_") else {
            continue;
        };
        let mut words = define.splitn(2, char::is_whitespace);
        let (name, value) = (words.next().unwrap(), words.next().unwrap().trim());
        // Macros are functions there, and sizes are those of the structures.
        if name.contains('(') || name.ends_with("_VER0") {
            continue;
        }
        let start = format!("pub const KEVENT_{name}: ");
        let ours = ABI.lines().find_map(|line| line.strip_prefix(&start));
        let ours = ours.unwrap_or_else(|| panic!("there is no KEVENT_{name}"));
        let ours = ours.split_once('=').unwrap().1;
        let ours = ours.trim().trim_end_matches(';');
        assert_eq!(number(ours), number(value), "KEVENT_{name}");
        compared += 1;
    }
    assert!(compared > 50);
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
    let kernel = overcommitted(8);
    let mut sets = vec![kernel.set(8).unwrap()];
    let ids: Vec<_> = (0..4).map(|name| kernel.add(name).unwrap()).collect();
    let mut shots: Vec<_> = (0..4)
        .map(|_| kernel.register(one_shot(9), Item::FILE).unwrap())
        .collect();
    let mut consumer = kernel.consumer(4);
    for round in 0..100_000 {
        let index = next() as u32;
        let scribble = match next() % 4 {
            0 => next(),
            1 => next() & 0xf,
            2 => kernel.slot(next() as u32).word.load(Relaxed),
            _ => 0,
        };
        sets[round % sets.len()]
            .slot(index)
            .word
            .store(scribble, Relaxed);
        kernel.post(ids[round % 4], 1 << (next() % 8));
        kernel.post(shots[round % 4], 1);
        match next() % 16 {
            0 => drop(kernel.collect(3)),
            1 => drop(consumer.claim()),
            2 => drop(kernel.count(8)),
            3 => drop(kernel.disable(ids[round % 4])),
            4 => drop(kernel.enable(ids[round % 4])),
            5 => drop(kernel.modify(ids[round % 4], terms(round as u64 % 4), true)),
            6 => {
                let shot = round % 4;
                kernel.settle_all();
                kernel.reap();
                if kernel.seen(shots[shot]).is_none() {
                    shots[shot] = kernel.register(one_shot(9), Item::FILE).unwrap();
                }
            }
            7 => drop(kernel.retire()),
            8 if round % 25_000 < 16 && sets.len() < 4 => {
                let slots = 2 * kernel.locked(|queue| queue.slots());
                assert!(kernel.grow(slots));
                sets.push(kernel.set(slots).unwrap());
            }
            _ => {}
        }
        assert!(kernel.count(99) <= 8);
    }
    for (&id, &shot) in ids.iter().zip(&shots) {
        kernel.enable(id).unwrap();
        kernel.remove(shot);
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

/// Sources report, two consumers collect and the ring grows, all at once, for
/// real.
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
            scope.spawn(|| {
                for slots in [32, 64, 128, 256] {
                    while state[0].load(Relaxed) < ROUNDS / 256 * slots {
                        std::thread::yield_now();
                    }
                    assert!(kernel.grow(slots as u32));
                    kernel.retire();
                }
            });
        });
        done.store(true, SeqCst);
    });
    kernel.retire();
    assert_eq!(kernel.rings(), 256);
    for seen in &seen {
        assert_eq!(seen.load(Relaxed), ROUNDS, "the last report was lost");
    }
}
