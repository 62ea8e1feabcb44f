// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the core: the ring in the memory that programs map, and registrations that are
//! moved while something happens to them.
//!
//! A program is played by [`claim`], the sources by calls of their homes.  What races with a move
//! is done between its steps here; `change.rs` has the races of threads.

use crate::{
    abi::{
        kevent_params,
        Op,
        SourceKind,
        Ukevent, //
    },
    change::Named,
    events::{
        Claim,
        Find,
        Pending,
        Seen,
        Update, //
    },
    fd,
    home::{
        Home,
        Left, //
    },
    memory::RingMemory,
    queue::{
        Queue,
        STEPS, //
    },
    ring::SlotMemory,
    source::{
        Key,
        Source, //
    },
    timer,
    user, //
};
use kernel::{
    bindings,
    fs::{
        anon_inode::{
            FileOperations,
            FileOperationsTable, //
        },
        file::FileDescriptorReservation,
        File, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        poll::PollTable,
        poll_watch::mask,
        wait::{
            new_wait_queue_head,
            WaitQueueHead, //
        },
        Arc,
        ArcBorrow, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
    uapi, //
};

/// Waits until `condition` is so, but not for ever.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::<Monotonic>::now();

    while start.elapsed() < Delta::from_secs(10) {
        for _ in 0..1000 {
            if condition() {
                return true;
            }
            core::hint::spin_loop();
        }
        // In case that there is one processor only.
        fsleep(Delta::from_micros(50));
    }
    false
}

//
// Queues
//

/// Makes a queue.
pub(crate) fn make(slots: u32, flags: u32) -> Result<ARef<File>> {
    Queue::create(&mut kevent_params {
        slots,
        flags,
        ..Default::default()
    })
}

/// Returns the queue of a file.
pub(crate) fn of(file: &File) -> Result<ArcBorrow<'_, Queue>> {
    Queue::of(file).ok_or(EBADF)
}

/// Collects all events as `kevent_getevents()` does; returns how many, and the sum of their values.
pub(crate) fn collect(queue: &Queue) -> (u32, u32) {
    let mut inner = queue.inner.lock();
    let mut scan = inner.events.scan();
    let (mut events, mut sum) = (0, 0_u32);

    loop {
        let mut found = None;
        let find = inner
            .events
            .find(&mut scan, 1, STEPS, |event, _, _| found = Some(event));
        let event = match (found, find) {
            (Some(event), _) => event,
            (None, Find::More) => continue,
            (None, Find::End) => return (events, sum),
        };

        if inner.events.claim(&event, true, false) != Claim::Failed {
            events += 1;
            sum = sum.wrapping_add(event.value);
        }
    }
}

/// Returns how many registrations there are.
pub(crate) fn live(queue: &Queue) -> u32 {
    queue.inner.lock().events.live()
}

/// Returns the slots of the ring with that number of slots.
fn slots(queue: &Queue, slots: u32) -> Result<Arc<RingMemory>> {
    let memory = queue.inner.lock().events.ring_slots(slots).cloned();

    memory.ok_or(ENOENT)
}

/// Makes the word of an event in a slot.
fn word(value: u32, generation: u64) -> u64 {
    u64::from(value) << 32 | generation << 1 | 1
}

/// Claims the event in a slot as a program does, and returns its value.
fn claim(memory: &Arc<RingMemory>, slot: u32) -> Option<u32> {
    let word = memory.load_acquire(slot);

    // CAST: The value is the upper half.
    (word & 1 != 0 && memory.cmpxchg(slot, word, word & 0xffff_fffe)).then_some((word >> 32) as u32)
}

/// Writes a word of a slot as a program can at any time.
fn scribble(memory: &Arc<RingMemory>, slot: u32, word: u64) {
    while !memory.cmpxchg(slot, memory.load_acquire(slot), word) {}
}

//
// Changes
//

/// Makes a change.
pub(crate) fn change(op: u32, source: u32, ident: u64) -> Ukevent {
    Ukevent(uapi::ukevent {
        // CAST: They are small numbers.
        op: op as u16,
        source: source as u16,
        ident,
        ..Default::default()
    })
}

/// Adds a count that is triggered, with more flags.
fn add_user(queue: ArcBorrow<'_, Queue>, ident: u64, flags: u32) -> Result {
    let mut add = change(uapi::KEVENT_OP_ADD, uapi::KEVENT_SOURCE_USER, ident);

    add.0.flags = uapi::KEVENT_EDGE | flags;
    add.0.events = uapi::KEVENT_USER_COUNT;

    let (asked, kind) = user::check(&add)?;

    user::add(queue, &asked, kind, &named(&add)?)
}

fn trigger(queue: ArcBorrow<'_, Queue>, ident: u64, count: u32) -> Result {
    let mut trigger = change(uapi::KEVENT_OP_TRIGGER, uapi::KEVENT_SOURCE_USER, ident);

    trigger.0.data = count.into();
    user::trigger(queue, &trigger)
}

/// Adds a timer that never expires by itself, with more flags.
pub(crate) fn add_timer(queue: ArcBorrow<'_, Queue>, ident: u64, flags: u32) -> Result {
    let mut add = change(uapi::KEVENT_OP_ADD, uapi::KEVENT_SOURCE_TIMER, ident);

    add.0.flags = uapi::KEVENT_EDGE | flags;
    add.0.fflags = bindings::CLOCK_MONOTONIC;
    add.0.data = u64::MAX;

    let (asked, setting) = timer::check(&add)?;

    timer::add(queue, &asked, &setting, &named(&add)?)
}

/// Returns what adds a descriptor.
pub(crate) fn add_fd(fd: u32, events: u32) -> Ukevent {
    let mut add = change(uapi::KEVENT_OP_ADD, uapi::KEVENT_SOURCE_FD, fd.into());

    add.0.flags = uapi::KEVENT_EDGE;
    add.0.events = events;
    add
}

/// Returns what a change names.
fn named(change: &Ukevent) -> Result<Named> {
    Named::by(change, SourceKind::try_from(change.0.source)?)
}

/// Returns the key of a registration.
pub(crate) fn key(source: u32, ident: u64) -> Result<Key> {
    Ok(named(&change(uapi::KEVENT_OP_DEL, source, ident))?.key)
}

/// Returns the timer that is registered in `queue`.
pub(crate) fn timer_in(queue: &Queue, ident: u64) -> Result<Arc<timer::Timer>> {
    match queue.look_up(&key(uapi::KEVENT_SOURCE_TIMER, ident)?)? {
        (_, Source::Timer(timer)) => Ok(timer),
        _ => Err(EINVAL),
    }
}

//
// Files
//

/// A file with a wait queue.
#[pin_data]
pub(crate) struct Fake {
    #[pin]
    queue: WaitQueueHead,
    /// What it is ready for.
    pub(crate) ready: Atomic<u32>,
    /// How often it was asked.
    pub(crate) polls: Atomic<u32>,
    released: Atomic<bool>,
}

#[vtable]
impl FileOperations for Fake {
    type Data = Arc<Fake>;

    fn release(fake: Arc<Fake>) {
        fake.released.store(true, Release);
    }

    fn poll(fake: ArcBorrow<'_, Fake>, file: &File, table: PollTable<'_>) -> u32 {
        // SAFETY: The queue lives as long as the file.
        unsafe { table.register_wait_queue(file, &fake.queue) };
        fake.polls.fetch_add(1, Relaxed);
        fake.ready.load(Relaxed)
    }
}

static FAKE: FileOperationsTable<Fake> = FileOperationsTable::new();

impl Fake {
    pub(crate) fn new() -> Result<(Arc<Self>, ARef<File>)> {
        let fake = Arc::pin_init(
            pin_init!(Self {
                queue <- new_wait_queue_head!("kunit_fake"),
                ready: Atomic::new(0),
                polls: Atomic::new(0),
                released: Atomic::new(false),
            }),
            GFP_KERNEL,
        )?;
        let file = FAKE.create(c"[kunit]", fake.clone(), 0)?;

        Ok((fake, file))
    }

    /// Returns whether the last reference to the file is gone, in the end.
    pub(crate) fn is_released(&self) -> bool {
        eventually(|| self.released.load(Acquire))
    }
}

/// Gives `file` a descriptor of this thread.
pub(crate) fn install(file: ARef<File>) -> Result<u32> {
    let reservation = FileDescriptorReservation::get_unused_fd_flags(0)?;
    let fd = reservation.reserved_fd();

    reservation.fd_install(file);
    Ok(fd)
}

pub(crate) fn close(fd: u32) {
    // SAFETY: It only closes the descriptor, which nobody borrows.
    unsafe { bindings::close_fd(fd) };
}

#[kunit_tests(kevent_ring)]
mod ring {
    use super::*;

    #[test]
    fn an_event_is_in_a_slot_until_it_is_claimed() -> Result {
        let file = make(4, 0)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 4)?;

        add_user(queue, 1, 0)?;
        assert_eq!(queue.count(9), 0);
        trigger(queue, 1, 3)?;
        assert_eq!(memory.load_acquire(0), word(3, 1));
        // Merged.
        trigger(queue, 1, 4)?;
        assert_eq!(memory.load_acquire(0), word(7, 1));
        assert_eq!(memory.load_acquire(1), 0);
        assert_eq!(queue.count(9), 1);
        assert_eq!(claim(&memory, 0), Some(7));
        assert_eq!(queue.count(9), 0);
        assert_eq!(collect(&queue), (0, 0));
        trigger(queue, 1, 2)?;
        assert_eq!(memory.load_acquire(1), word(2, 1));
        assert_eq!(memory.load_acquire(0), 2);
        Ok(())
    }

    #[test]
    fn the_generation_counts_the_laps() -> Result {
        let file = make(2, 0)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 2)?;

        add_user(queue, 1, 0)?;
        for (lap, slot) in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)] {
            trigger(queue, 1, 5)?;
            assert_eq!(memory.load_acquire(slot), word(5, lap));
            assert_eq!(claim(&memory, slot), Some(5));
            assert_eq!(claim(&memory, slot), None);
        }
        Ok(())
    }

    #[test]
    fn the_kernel_collects_what_programs_have_not_claimed() -> Result {
        let file = make(4, 0)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 4)?;

        for ident in 1..=3 {
            add_user(queue, ident, 0)?;
            trigger(queue, ident, 10 * ident as u32)?;
        }
        assert_eq!(claim(&memory, 1), Some(20));
        assert_eq!(collect(&queue), (2, 40));
        for slot in 0..3 {
            assert_eq!(memory.load_acquire(slot), 2);
        }
        Ok(())
    }

    #[test]
    fn a_cancelled_event_says_nothing() -> Result {
        let file = make(2, 0)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 2)?;
        let key = key(uapi::KEVENT_SOURCE_USER, 1)?;

        add_user(queue, 1, 0)?;
        trigger(queue, 1, 6)?;

        let (_, _, pending) = queue.take(&key, |_| true).ok_or(ENOENT)?;

        assert_eq!(pending, Pending::Event(6));
        assert_eq!(memory.load_acquire(0), word(0, 1));
        assert_eq!(queue.count(9), 0);
        assert!(queue.take(&key, |_| true).is_none());
        assert_eq!(trigger(queue, 1, 1), Err(ENOENT));
        Ok(())
    }

    #[test]
    fn no_more_sources_than_slots_that_are_free() -> Result {
        let file = make(2, 0)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 2)?;

        add_user(queue, 1, 0)?;
        assert_eq!(add_user(queue, 1, 0), Err(EEXIST));
        add_user(queue, 2, 0)?;
        assert_eq!(add_user(queue, 3, 0), Err(ENOSPC));
        trigger(queue, 1, 1)?;
        queue
            .take(&key(uapi::KEVENT_SOURCE_USER, 1)?, |_| true)
            .ok_or(ENOENT)?;
        // What was cancelled is still in the slot.
        assert_eq!(add_user(queue, 3, 0), Err(ENOSPC));
        assert_eq!(claim(&memory, 0), Some(0));
        add_user(queue, 3, 0)?;
        assert_eq!(live(&queue), 2);
        Ok(())
    }

    #[test]
    fn events_wait_behind_a_full_ring_in_order() -> Result {
        let file = make(1, uapi::KEVENT_INIT_OVERCOMMIT)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 1)?;

        for ident in 1..=3 {
            add_user(queue, ident, 0)?;
            trigger(queue, ident, ident as u32)?;
        }
        // Merged while it waits.
        trigger(queue, 3, 10)?;
        assert_eq!(queue.inner.lock().events.waiting(), 2);
        for (value, lap) in [(1, 1), (2, 2), (13, 3)] {
            assert_eq!(memory.load_acquire(0), word(value, lap));
            assert_eq!(claim(&memory, 0), Some(value));
            queue.count(9);
        }
        assert_eq!(queue.inner.lock().events.waiting(), 0);
        assert_eq!(queue.count(9), 0);
        Ok(())
    }

    #[test]
    fn a_ring_that_grows_loses_nothing() -> Result {
        let file = make(1, 0)?;
        let queue = of(&file)?;
        let old = slots(&queue, 1)?;

        add_user(queue, 1, 0)?;
        trigger(queue, 1, 5)?;
        queue.grow(3)?;
        assert_eq!(queue.grow(4), Err(EINVAL));
        assert_eq!(queue.inner.lock().events.rings(), 5);

        let new = slots(&queue, 4)?;

        add_user(queue, 2, 0)?;
        trigger(queue, 2, 7)?;
        assert_eq!(new.load_acquire(0), word(7, 1));
        // Where it is.
        trigger(queue, 1, 1)?;
        assert_eq!(old.load_acquire(0), word(6, 1));
        assert_eq!(collect(&queue), (2, 13));
        queue.retire();
        assert_eq!(queue.inner.lock().events.rings(), 4);
        assert!(slots(&queue, 1).is_err());
        trigger(queue, 1, 2)?;
        assert_eq!(new.load_acquire(1), word(2, 1));
        Ok(())
    }

    #[test]
    fn a_one_shot_ends_with_its_claim() -> Result {
        let file = make(1, 0)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 1)?;
        let key = key(uapi::KEVENT_SOURCE_USER, 1)?;

        add_user(queue, 1, uapi::KEVENT_ONESHOT)?;
        trigger(queue, 1, 1)?;
        assert!(queue.look_up(&key).is_ok());
        assert_eq!(claim(&memory, 0), Some(1));
        assert!(queue.look_up(&key).is_err());
        assert!(queue.settle(&key));
        assert_eq!(live(&queue), 0);
        add_user(queue, 1, 0)
    }

    #[test]
    fn only_the_one_that_was_found_to_have_ended_is_removed() -> Result {
        let file = make(1, 0)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 1)?;
        let key = key(uapi::KEVENT_SOURCE_TIMER, 1)?;
        let end_one = || -> Result {
            add_timer(queue, 1, uapi::KEVENT_ONESHOT)?;
            timer_in(&queue, 1)?
                .handler()
                .home()
                .post(Update::Count(1), 0);
            assert_eq!(claim(&memory, 0), Some(1));
            assert!(queue.look_up(&key).is_err());
            Ok(())
        };

        end_one()?;

        let found = queue.next_ended().ok_or(ENOENT)?;

        assert!(queue.settle(&found.key));
        end_one()?;
        queue.remove_ended(&found.key, |other| other.is_same(&found.source));
        assert_eq!(queue.inner.lock().events.nr_ended(), 1);
        queue.reap();
        assert_eq!(queue.inner.lock().events.nr_ended(), 0);
        Ok(())
    }

    #[test]
    fn what_programs_write_is_not_believed() -> Result {
        let file = make(4, 0)?;
        let other = make(4, 0)?;
        let (queue, undisturbed) = (of(&file)?, of(&other)?);
        let memory = slots(&queue, 4)?;

        add_user(queue, 1, 0)?;
        add_user(undisturbed, 1, 0)?;
        trigger(undisturbed, 1, 9)?;
        for garbage in [0, u64::MAX, word(1, 7), word(0, 1), 1 << 63] {
            trigger(queue, 1, 1)?;
            for slot in 0..4 {
                scribble(&memory, slot, garbage);
            }
            // Lost by the program's own doing, or not: no more than one.
            assert!(queue.count(9) <= 1);
            assert!(collect(&queue).0 <= 1);
        }
        // What comes after is reported.
        for slot in 0..4 {
            scribble(&memory, slot, 0);
        }
        assert_eq!(collect(&queue), (0, 0));
        trigger(queue, 1, 3)?;
        assert_eq!(collect(&queue), (1, 3));
        assert_eq!(collect(&undisturbed), (1, 9));
        Ok(())
    }
}

/// Between which steps of a move something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The new place is reserved.
    Reserved,
    /// The registration has left the old queue.
    Taken,
    /// It is in the new queue, and its home knows.
    Arrived,
}

/// Moves a registration as `Queue::move_to` does, and calls `f` between the steps.
fn move_by_hand(
    from: ArcBorrow<'_, Queue>,
    to: ArcBorrow<'_, Queue>,
    key: &Key,
    mut f: impl FnMut(Step, &Home),
) -> Result {
    let (terms, source) = from.look_up(key)?;
    let room = Left::new()?;
    let home = source.home().ok_or(EINVAL)?;
    let id = to.reserve(key, &terms, &source)?;

    f(Step::Reserved, home);

    let same = |found: &Source| found.is_same(&source);
    let Some((terms, source, pending)) = from.take(key, same) else {
        to.unreserve(id, &terms);
        return Err(ENOENT);
    };

    f(Step::Taken, home);
    to.fill(id, terms, &source, pending, Some(room));
    f(Step::Arrived, home);
    source.end_if_closed()
}

/// Adds a new file to `queue`; returns it with its descriptor and its name there.
fn add_fake(queue: ArcBorrow<'_, Queue>, events: u32) -> Result<(Arc<Fake>, u32, Named)> {
    let (fake, file) = Fake::new()?;
    let fd = install(file)?;
    let add = add_fd(fd, events);
    let name = named(&add)?;

    fd::add(queue, &fd::check(&add, Op::Add)?, &name)?;
    Ok((fake, fd, name))
}

#[kunit_tests(kevent_home)]
mod home {
    use super::*;

    #[test]
    fn a_source_is_reported_where_it_is() -> Result {
        let (one, two) = (make(1, 0)?, make(1, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);

        add_timer(from, 1, 0)?;

        let timer = timer_in(&from, 1)?;
        let home = timer.handler().home();

        home.post(Update::Count(2), 0);
        assert_eq!(collect(&from), (1, 2));
        move_by_hand(from, to, &key(uapi::KEVENT_SOURCE_TIMER, 1)?, |_, _| {})?;
        home.post(Update::Count(3), 0);
        assert_eq!(collect(&from), (0, 0));
        assert_eq!(collect(&to), (1, 3));
        assert_eq!((live(&from), live(&to)), (0, 1));
        Ok(())
    }

    #[test]
    fn what_happens_on_the_way_arrives() -> Result {
        let (one, two) = (make(1, 0)?, make(1, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);

        add_timer(from, 1, 0)?;
        timer_in(&from, 1)?
            .handler()
            .home()
            .post(Update::Count(10_000), 0);
        move_by_hand(
            from,
            to,
            &key(uapi::KEVENT_SOURCE_TIMER, 1)?,
            |step, home| match step {
                Step::Reserved => {
                    home.post(Update::Count(1000), 0);
                }
                Step::Taken => {
                    home.post(Update::Count(100), 0);
                    home.post(Update::Count(100), 0);
                }
                Step::Arrived => {
                    home.post(Update::Count(10), 0);
                }
            },
        )?;
        // All of it is one event.
        assert_eq!(collect(&from), (0, 0));
        assert_eq!(collect(&to), (1, 11_210));
        Ok(())
    }

    #[test]
    fn only_what_happened_on_the_way_is_an_event_too() -> Result {
        for when in [Step::Taken, Step::Arrived] {
            let (one, two) = (make(1, 0)?, make(1, 0)?);
            let (from, to) = (of(&one)?, of(&two)?);

            add_timer(from, 1, 0)?;
            move_by_hand(
                from,
                to,
                &key(uapi::KEVENT_SOURCE_TIMER, 1)?,
                |step, home| {
                    if step == when {
                        home.post(Update::Count(4), 0);
                    }
                },
            )?;
            assert_eq!(collect(&to), (1, 4));
        }
        Ok(())
    }

    #[test]
    fn the_flag_beside_a_count_arrives() -> Result {
        let (one, two) = (make(1, 0)?, make(1, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);

        add_timer(from, 1, 0)?;
        move_by_hand(
            from,
            to,
            &key(uapi::KEVENT_SOURCE_TIMER, 1)?,
            |step, home| {
                if step == Step::Taken {
                    home.post(Update::Count(uapi::KEVENT_TIMER_CANCELED), 0);
                    home.post(Update::Count(2), 0);
                    home.post(Update::Count(i32::MAX as u32), 0);
                }
            },
        )?;
        assert_eq!(
            collect(&to),
            (1, uapi::KEVENT_TIMER_CANCELED | uapi::KEVENT_COUNT_MAX)
        );
        Ok(())
    }

    #[test]
    fn who_has_got_its_id_is_not_taken_for_it() -> Result {
        let (one, two) = (make(2, 0)?, make(2, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);
        let mut added = Ok(());

        add_timer(from, 1, 0)?;
        move_by_hand(
            from,
            to,
            &key(uapi::KEVENT_SOURCE_TIMER, 1)?,
            |step, home| {
                if step == Step::Taken {
                    added = add_timer(from, 2, 0);
                    home.post(Update::Count(5), 0);
                }
            },
        )?;
        added?;
        // It has the same id, as no other was ever used.
        assert_eq!(from.inner.lock().events.ids(), 1);
        assert_eq!(collect(&from), (0, 0));
        assert_eq!(collect(&to), (1, 5));
        Ok(())
    }

    #[test]
    fn what_is_disabled_counts_on_the_way() -> Result {
        let (one, two) = (make(1, 0)?, make(1, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);
        let key = key(uapi::KEVENT_SOURCE_TIMER, 1)?;

        add_timer(from, 1, uapi::KEVENT_DISABLED)?;
        timer_in(&from, 1)?
            .handler()
            .home()
            .post(Update::Count(3), 0);
        move_by_hand(from, to, &key, |step, home| {
            if step != Step::Reserved {
                home.post(Update::Count(10), 0);
            }
        })?;
        assert_eq!(collect(&to), (0, 0));
        to.enable(&key)?;
        assert_eq!(collect(&to), (1, 23));
        Ok(())
    }

    #[test]
    fn there_and_back_again() -> Result {
        let (one, two) = (make(32, 0)?, make(32, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);
        let key = key(uapi::KEVENT_SOURCE_TIMER, 1)?;

        add_timer(from, 1, 0)?;
        for _ in 0..10 {
            for (from, to) in [(from, to), (to, from)] {
                move_by_hand(from, to, &key, |step, home| {
                    if step == Step::Taken {
                        home.post(Update::Count(1), 0);
                    }
                })?;
            }
        }
        assert_eq!(collect(&to), (0, 0));
        assert_eq!(collect(&from), (1, 20));
        Ok(())
    }

    #[test]
    fn one_move_right_after_the_other_is_the_last_word() -> Result {
        let (one, two, three) = (make(1, 0)?, make(1, 0)?, make(1, 0)?);
        let (from, to, last) = (of(&one)?, of(&two)?, of(&three)?);
        let (fake, fd, named) = add_fake(from, mask::IN)?;
        let mut on = Err(EAGAIN);

        move_by_hand(from, to, &named.key, |step, _| {
            if step == Step::Arrived {
                on = move_by_hand(to, last, &named.key, |_, _| {});
            }
        })?;
        on?;
        fake.queue.wake_all(mask::IN as usize);
        assert_eq!(collect(&to), (0, 0));
        assert_eq!(collect(&last), (1, mask::IN));
        drop(named);
        close(fd);
        assert!(fake.is_released());
        assert_eq!((live(&from), live(&to), live(&last)), (0, 0, 0));
        assert!(!fake.queue.is_active());
        Ok(())
    }

    #[test]
    fn what_has_ended_is_reported_nowhere() -> Result {
        let file = make(1, 0)?;
        let queue = of(&file)?;

        add_timer(queue, 1, 0)?;

        let timer = timer_in(&queue, 1)?;
        let (_, source, _) = queue
            .take(&key(uapi::KEVENT_SOURCE_TIMER, 1)?, |_| true)
            .ok_or(ENOENT)?;

        assert!(timer.handler().home().post(Update::Count(1), 0).is_none());
        source.finish();
        add_timer(queue, 2, 0)?;
        assert!(timer.handler().home().post(Update::Count(1), 0).is_none());
        assert_eq!(collect(&queue), (0, 0));
        Ok(())
    }

    #[test]
    fn a_periodic_timer_stops_when_its_registration_has_ended() -> Result {
        let file = make(1, 0)?;
        let queue = of(&file)?;
        let memory = slots(&queue, 1)?;
        let mut add = change(uapi::KEVENT_OP_ADD, uapi::KEVENT_SOURCE_TIMER, 1);

        add.0.flags = uapi::KEVENT_EDGE | uapi::KEVENT_ONESHOT;
        add.0.fflags = bindings::CLOCK_MONOTONIC;
        add.0.data = 1;
        add.0.interval = 100_000;

        let (asked, setting) = timer::check(&add)?;

        timer::add(queue, &asked, &setting, &named(&add)?)?;

        let timer = timer_in(&queue, 1)?;

        assert!(eventually(|| claim(&memory, 0).is_some()));
        // The next expiry finds out.
        assert!(eventually(|| queue.inner.lock().events.nr_ended() == 1));
        assert!(!timer.control().cancel());
        queue.reap();
        assert_eq!(live(&queue), 0);
        Ok(())
    }

    #[test]
    fn a_queue_that_was_left_can_be_gone() -> Result {
        let two = make(1, 0)?;
        let to = of(&two)?;
        let timer = {
            let one = make(1, 0)?;
            let from = of(&one)?;

            add_timer(from, 1, 0)?;
            move_by_hand(from, to, &key(uapi::KEVENT_SOURCE_TIMER, 1)?, |_, _| {})?;
            timer_in(&to, 1)?
        };

        // Its memory is freed a grace period later.
        fsleep(Delta::from_millis(100));
        timer.handler().home().post(Update::Count(8), 0);
        assert_eq!(collect(&to), (1, 8));
        Ok(())
    }

    #[test]
    fn the_bits_of_a_file_arrive() -> Result {
        let (one, two) = (make(1, 0)?, make(1, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);
        let (fake, fd, named) = add_fake(from, mask::IN | mask::OUT)?;

        move_by_hand(from, to, &named.key, |step, _| match step {
            Step::Reserved => {}
            // By the way that all wake-ups take.
            Step::Taken => fake.queue.wake_all((mask::IN | mask::RDNORM) as usize),
            Step::Arrived => fake.queue.wake_all((mask::OUT | mask::HUP) as usize),
        })?;
        assert_eq!(collect(&from), (0, 0));
        // What it did not ask for is left out, but for what is always reported.
        assert_eq!(collect(&to), (1, mask::IN | mask::OUT | mask::HUP));
        drop(named);
        close(fd);
        assert!(fake.is_released());
        assert_eq!(live(&to), 0);
        Ok(())
    }

    #[test]
    fn a_descriptor_that_is_closed_on_the_way_ends_it() -> Result {
        for (when, result) in [
            (Step::Reserved, ENOENT),
            (Step::Taken, EBADF),
            (Step::Arrived, EBADF),
        ] {
            let (one, two) = (make(1, 0)?, make(1, 0)?);
            let (from, to) = (of(&one)?, of(&two)?);
            let (fake, fd, named) = add_fake(from, mask::IN)?;
            let moved = move_by_hand(from, to, &named.key, |step, _| {
                if step == when {
                    close(fd);
                }
            });

            assert_eq!(moved, Err(result));
            assert_eq!((live(&from), live(&to)), (0, 0));
            assert!(!fake.queue.is_active());
            fake.queue.wake_all(mask::IN as usize);
            assert_eq!(collect(&to), (0, 0));
            drop(named);
            assert!(fake.is_released());
        }
        Ok(())
    }

    #[test]
    fn what_is_closed_on_the_way_reports_nothing_where_it_arrives() -> Result {
        for woken in [Step::Reserved, Step::Taken] {
            let (one, two) = (make(1, 0)?, make(1, 0)?);
            let (from, to) = (of(&one)?, of(&two)?);
            let (fake, fd, named) = add_fake(from, mask::IN)?;
            let mut arrived = None;
            let moved = move_by_hand(from, to, &named.key, |step, _| {
                if step == woken {
                    fake.queue.wake_all(mask::IN as usize);
                }
                match step {
                    Step::Reserved => {}
                    Step::Taken => close(fd),
                    Step::Arrived => arrived = Some(collect(&to)),
                }
            });

            assert_eq!(moved, Err(EBADF));
            assert_eq!(arrived, Some((0, 0)));
        }
        Ok(())
    }

    #[test]
    fn what_happens_on_the_way_is_there_when_it_can_be_changed() -> Result {
        let (one, two) = (make(1, 0)?, make(1, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);
        let mut arrived = None;

        add_timer(from, 1, 0)?;
        move_by_hand(
            from,
            to,
            &key(uapi::KEVENT_SOURCE_TIMER, 1)?,
            |step, home| match step {
                Step::Reserved => {}
                Step::Taken => {
                    home.post(Update::Count(4), 0);
                }
                Step::Arrived => arrived = Some(collect(&to)),
            },
        )?;
        assert_eq!(arrived, Some((1, 4)));
        assert_eq!(collect(&to), (0, 0));
        Ok(())
    }

    #[test]
    fn another_one_of_its_name_is_not_taken() -> Result {
        let (one, two) = (make(1, 0)?, make(1, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);
        let key = key(uapi::KEVENT_SOURCE_TIMER, 1)?;
        let mut added = Err(EAGAIN);

        add_timer(from, 1, 0)?;

        let result = move_by_hand(from, to, &key, |step, _| {
            if step == Step::Reserved {
                if let Some((_, source, _)) = from.take(&key, |_| true) {
                    source.finish();
                }
                added = add_timer(from, 1, 0);
            }
        });

        assert_eq!((result, added), (Err(ENOENT), Ok(())));
        assert_eq!((live(&from), live(&to)), (1, 0));
        Ok(())
    }

    #[test]
    fn a_move_that_fails_changes_nothing() -> Result {
        let (one, two) = (make(2, 0)?, make(1, 0)?);
        let (from, to) = (of(&one)?, of(&two)?);
        let key = key(uapi::KEVENT_SOURCE_TIMER, 1)?;

        add_timer(from, 1, 0)?;
        add_timer(to, 2, 0)?;
        timer_in(&from, 1)?
            .handler()
            .home()
            .post(Update::Count(6), 0);
        assert_eq!(move_by_hand(from, to, &key, |_, _| {}), Err(ENOSPC));

        let seen = {
            let mut inner = from.inner.lock();

            inner.events.registration(0).map(|(_, _, seen)| seen)
        };

        assert_eq!(seen, Some(Seen::Posted));
        assert_eq!((live(&from), live(&to)), (1, 1));
        assert_eq!(collect(&from), (1, 6));
        Ok(())
    }
}
