// SPDX-License-Identifier: GPL-2.0

//! Waiting for events and collecting them, for `kevent_getevents()`.
//!
//! [`crate::queue`] has the protocol of sleeping and waking.

use crate::{
    abi::{
        Ukevent,
        MAX_UKEVENTS, //
    },
    events::{
        Claim,
        Event,
        Find,
        Payload,
        Terms, //
    },
    fd,
    queue::{
        Queue,
        STEPS, //
    },
    source::Source,
    trace, //
};
use core::{
    mem::{
        offset_of,
        MaybeUninit, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    ptr,
    slice, //
};
use kernel::{
    bindings,
    current,
    fs::File,
    prelude::*,
    sync::{
        aref::ARef,
        wait::Deadline, //
    },
    uaccess::UserPtr,
    uapi, //
};

/// How many events are looked at, copied and claimed together.
const BATCH: usize = 8;

/// How often an event is looked at again because its source was woken meanwhile.
const LOOKS: u32 = 3;

/// How often an event is looked at again, in all; then it is left to the next call.
const MAX_LOOKS: u32 = 2 * LOOKS;

/// What to wait for, and for how long.
pub(crate) struct Wait {
    /// Where to copy the events; [`None`] to only wait.
    pub(crate) events: Option<UserPtr>,
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) deadline: Deadline,
    /// If not [`None`], how long to wait for `min` events; later on, one is enough.
    pub(crate) patience: Option<Deadline>,
}

impl Wait {
    /// Returns an error unless the numbers go together.
    pub(crate) fn check(&self) -> Result {
        // Neither one without the other, and nothing that can never be fulfilled.
        if self.events.is_some() != (self.max != 0)
            || self.max > MAX_UKEVENTS
            || self.events.is_some() && self.min > self.max
        {
            return Err(EINVAL);
        }
        Ok(())
    }
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// There are so many events, not counting further than was waited for.
    Ready(u32),
    /// All waiters were told to return.
    Woken,
    Expired,
    Interrupted,
}

/// Returns why not to wait any longer, if so.
fn over(deadline: Deadline) -> Option<Waited> {
    if deadline.is_over() {
        Some(Waited::Expired)
    } else {
        current!().signal_pending().then_some(Waited::Interrupted)
    }
}

/// What was collected.
#[derive(Default)]
struct Collected {
    /// How many events.
    events: u32,
    /// The mode flags that are among them.
    flags: u32,
}

/// What an event that was found is of.
enum Of {
    /// A file.
    File(ARef<File>),
    /// A file that is being released, and the registration with it.
    Gone,
    /// Something that the event says all of.
    Other,
}

impl Queue {
    /// Waits for events and collects them; see `kevent_getevents()`.  May sleep.
    ///
    /// Returns how many were collected, or if it only waits, how many there are.
    ///
    /// # Errors
    ///
    /// `EINTR`: a signal is to be handled, and there is nothing to collect.  `EFAULT`.
    pub(crate) fn get_events(&self, wait: &Wait) -> Result<u32> {
        let result = self.wait_and_collect(wait);

        if wait.events.is_some() && matches!(result, Ok(0) | Err(_)) {
            // Others can have found what is ready since this call began to look, so that it was
            // passed over here, and they need not collect it.  Who polls the queue comes here until
            // there is nothing more, and would not come again.
            self.tell_pollers_of_level();
        }
        self.retire();
        result
    }

    fn wait_and_collect(&self, wait: &Wait) -> Result<u32> {
        let Wait {
            events, min, max, ..
        } = *wait;
        // Only who sleeps can be told to return.
        let wakes = if min == 0 { 0 } else { self.inner.lock().wakes };
        let mut collected = Collected::default();
        let mut want = min;
        let mut until = wait.patience.unwrap_or(wait.deadline);

        loop {
            let missing = want.saturating_sub(collected.events);
            let mut waited = self.wait(missing, wakes, until);

            if waited == Waited::Expired && until != wait.deadline && collected.events == 0 {
                // From now on, one event is enough.
                want = 1;
                until = wait.deadline;
                continue;
            }

            let Some(events) = events else {
                if min == 0 {
                    // Let in what waits behind a full ring, for those who look there.
                    self.inner.lock().events.flush(STEPS);
                }
                return match waited {
                    Waited::Ready(count) => {
                        if current!().signal_pending() {
                            // Whoever has a signal to handle may never come to claim the event.
                            self.pass_on();
                        }
                        Ok(if want < min { self.count(min) } else { count })
                    }
                    Waited::Woken | Waited::Expired => Ok(self.count(min)),
                    Waited::Interrupted => match self.count(min) {
                        0 => Err(EINTR),
                        count => Ok(count),
                    },
                };
            };

            if matches!(waited, Waited::Ready(_)) && missing > 1 && !self.are_ready(missing) {
                match over(wait.deadline) {
                    Some(over) => waited = over,
                    None => continue,
                }
            }

            let before = collected.events;
            let result = self.collect(events, &mut collected, max);

            if collected.flags & uapi::KEVENT_ONESHOT != 0 {
                self.reap();
            }
            if result.is_err()
                || collected.events == max
                || collected.flags & uapi::KEVENT_LEVEL != 0
            {
                // There may be more, and what is level-triggered is still there.
                self.pass_on();
            }
            if collected.events == before && missing != 0 && matches!(waited, Waited::Ready(_)) {
                // Somebody else was faster, and can be so again and again.
                if let Some(over) = over(wait.deadline) {
                    waited = over;
                    self.pass_on();
                }
            }
            if collected.events == 0 {
                result?;
                if waited == Waited::Interrupted {
                    return Err(EINTR);
                }
            }
            // Those that are level-triggered would be reported again.
            if collected.events >= want
                || collected.flags & uapi::KEVENT_LEVEL != 0
                || result.is_err()
                || !matches!(waited, Waited::Ready(_))
                || current!().fatal_signal_pending()
            {
                return Ok(collected.events);
            }
        }
    }

    /// Waits until there are `min` events, or until the waiters were told to return more often than
    /// `wakes` times.
    fn wait(&self, min: u32, wakes: u64, deadline: Deadline) -> Waited {
        if min == 0 {
            return Waited::Ready(0);
        }

        let result = self
            .waiters
            .wait_exclusive(min as usize, self.order, deadline, || {
                // (B)
                let mut counting = None;
                let count = loop {
                    let mut inner = self.inner.lock();

                    if inner.wakes != wakes {
                        return Some(Waited::Woken);
                    }
                    if let Some(count) = inner.events.count(&mut counting, min, STEPS) {
                        break count;
                    }
                };

                if count >= min {
                    return Some(Waited::Ready(count));
                }
                // Somebody else may want fewer.
                if count > 0 && self.waiters.is_active() {
                    self.waiters.wake_one(count as usize);
                }
                None
            });
        let waited = match result {
            Ok(Some(waited)) => waited,
            Ok(None) => Waited::Expired,
            Err(_) => Waited::Interrupted,
        };

        if !matches!(waited, Waited::Ready(_)) {
            self.pass_on();
        }
        waited
    }

    /// Returns whether there are `min` events, not counting level-triggered ones that are not so
    /// any more.  Does not find out for a task that was killed.  May sleep.
    fn are_ready(&self, min: u32) -> bool {
        let scan = self.inner.lock().events.scan();
        let mut so = 0_u32;

        loop {
            if so >= min || current!().fatal_signal_pending() {
                return true;
            }

            let found = {
                let mut inner = self.inner.lock();

                inner
                    .events
                    .find_ready(&scan)
                    .map(|(event, terms, source)| {
                        // SAFETY: The registration is in the table, and the lock is held.
                        let file = unsafe { source.pin() }.flatten();

                        (event, terms.interest, file)
                    })
            };
            let Some((event, interest, file)) = found else {
                return self.count(min) >= min;
            };

            if file.is_some_and(|file| fd::look_again(&file, 0, interest) != 0) {
                so = so.saturating_add(1);
            } else {
                self.claim_all([(&event, false, true)]);
            }
        }
    }

    /// Wakes a waiter if there are events for it.
    fn pass_on(&self) {
        if self.waiters.is_active() && self.count(1) > 0 {
            let ready = self.inner.lock().events.ready_at_most();

            // Whoever wants more than there really is passes it on again.
            self.waiters.wake_one(ready as usize);
        }
    }

    /// Collects events to `buffer` until there are `max` or there are no more.
    ///
    /// An event is copied before it is claimed, so that one that cannot be copied is not lost.
    fn collect(&self, buffer: UserPtr, collected: &mut Collected, max: u32) -> Result {
        let mut scan = None;
        let mut looks = 0;

        while collected.events < max {
            // Whoever is killed will not see what is collected.
            if current!().fatal_signal_pending() {
                self.wake_for_others();
                break;
            }

            // What is looked at again is looked at alone.
            let most = if looks == 0 { BATCH as u32 } else { 1 };
            let most = most.min(max.saturating_sub(collected.events));
            let mut batch = Batch::new();
            let (scan, here, end, claimed) = {
                let mut inner = self.inner.lock();

                if inner.events.waiting() != 0 {
                    inner.events.flush(STEPS);
                }

                let scan = scan.get_or_insert_with(|| inner.events.scan());
                let here = *scan;
                let find = inner
                    .events
                    .find(scan, most, STEPS, |event, terms, source| {
                        // SAFETY: The registration is in the table, and the lock is held.
                        batch.push(unsafe { Taken::new(event, terms, source) });
                    });
                // What others change all the time can only be claimed together with its copy.
                let claimed = looks != 0
                    && batch.first_mut().is_some_and(|taken| {
                        taken.put_now(collected.end_of(buffer))
                            && inner.events.claim(&taken.event, true, false) == Claim::Done
                    });
                // What waits can find room when something is claimed.
                let end = batch.is_empty() || inner.events.waiting() == 0;

                (scan, here, end && find == Find::End, claimed)
            };

            // What was seen of a source while it was woken again may be out of date.
            let precise = looks < LOOKS;

            if claimed {
                for taken in &*batch {
                    collected.add(self, taken);
                }
            } else {
                for taken in &mut *batch {
                    taken.look(precise);
                }
                if self.deliver(&batch, buffer, collected, precise)? {
                    if looks < MAX_LOOKS {
                        scan.again(&here);
                        looks += 1;
                        continue;
                    }
                    // It is there, and whoever was woken for it may be this caller.
                    self.wake_for_others();
                }
            }
            if end {
                break;
            }
            looks = 0;
        }
        Ok(())
    }

    /// Copies and claims events that were taken, in order.
    ///
    /// Returns whether to look at those in the ring again that were not collected: one of them was
    /// claimed by somebody else, or has changed.
    fn deliver(
        &self,
        taken: &[Taken],
        buffer: UserPtr,
        collected: &mut Collected,
        precise: bool,
    ) -> Result<bool> {
        let mut rest = taken;
        let mut together = BATCH;
        let mut again = false;

        while let Some((first, others)) = rest.split_first() {
            if again && first.event.is_in_ring() {
                rest = others;
                continue;
            }

            let some = rest.get(..together).unwrap_or(rest);
            let copied = put_events(collected.end_of(buffer), some);
            let claims = some.iter().take(copied).map(|taken| {
                let untouched = precise && matches!(taken.of, Of::File(_));

                (&taken.event, taken.value() != 0, untouched)
            });
            let mut done = self.claim_all(claims);

            for taken in some.iter().take(done) {
                collected.add(self, taken);
            }
            match some.get(done) {
                Some(failed) if done < copied => {
                    // Those behind it were copied to the wrong place.
                    together = 1;
                    again |= failed.event.is_in_ring();
                    done += 1;
                }
                Some(_) => return Err(EFAULT),
                None => {}
            }
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok(again)
    }
}

/// An event on its way to a program.
struct Taken {
    event: Event,
    of: Of,
    /// What the source is looked at for.
    interest: u32,
    /// What the program gets; zero if it is not so.
    out: Ukevent,
}

impl Taken {
    /// Makes one of an event that was found.
    ///
    /// # Safety
    ///
    /// The registration must be in its queue's table, whose lock must be held.
    #[inline(always)]
    unsafe fn new(event: Event, terms: &Terms, source: &Source) -> Self {
        // SAFETY: By the requirements.
        let of = match unsafe { source.pin() } {
            Some(Some(file)) => Of::File(file),
            Some(None) => Of::Other,
            None => Of::Gone,
        };

        Self {
            event,
            of,
            interest: terms.interest,
            out: Ukevent(uapi::ukevent {
                ident: terms.payload.ident,
                source: terms.payload.source,
                flags: terms.flags,
                user_data: terms.payload.user_data,
                tag: terms.payload.tag,
                ..Default::default()
            }),
        }
    }

    /// Finds out what is so.  May sleep.
    #[inline(always)]
    fn look(&mut self, precise: bool) {
        let value = self.event.value;

        self.out.0.events = match &self.of {
            // It is nobody's any more, and has its turn like the others.
            Of::Gone => 0,
            Of::File(file) if precise || value == 0 => fd::look_again(file, value, self.interest),
            Of::File(_) | Of::Other => value,
        };
    }

    /// Copies it to `to`, if it says all of itself and the memory is there.  Does not sleep.
    ///
    /// Returns whether it did.
    #[cold]
    fn put_now(&mut self, to: UserPtr) -> bool {
        if !matches!(self.of, Of::Other) {
            return false;
        }
        self.out.0.events = self.event.value;
        // SAFETY: The event is valid, and it can be called in any context.
        unsafe {
            bindings::kevent_put_event_nofault(
                to.as_mut_ptr().cast(),
                (&raw const self.out.0).cast(),
            )
        }
    }

    /// Returns what is so.
    fn value(&self) -> u32 {
        self.out.0.events
    }

    fn payload(&self) -> Payload {
        Payload {
            user_data: self.out.0.user_data,
            ident: self.out.0.ident,
            source: self.out.0.source,
            tag: self.out.0.tag,
        }
    }
}

impl Collected {
    /// Returns where the next event goes in the buffer.
    fn end_of(&self, buffer: UserPtr) -> UserPtr {
        buffer.wrapping_byte_add(self.events as usize * size_of::<Ukevent>())
    }

    /// Counts an event that was claimed from `queue`.
    #[inline(always)]
    fn add(&mut self, queue: &Queue, taken: &Taken) {
        if taken.value() != 0 {
            self.events = self.events.wrapping_add(1);
            self.flags |= taken.out.0.flags;
            if trace::collects() {
                trace::collect(queue, &taken.payload(), taken.value());
            }
        }
    }
}

/// Events that are looked at, copied and claimed together.
///
/// # Invariants
///
/// The first `len` of `taken` are initialised.
struct Batch {
    taken: [MaybeUninit<Taken>; BATCH],
    len: usize,
}

impl Batch {
    fn new() -> Self {
        // INVARIANT: There are none.
        Self {
            taken: [const { MaybeUninit::uninit() }; BATCH],
            len: 0,
        }
    }

    /// Adds one, if there is room.
    #[inline(always)]
    fn push(&mut self, taken: Taken) {
        if let Some(room) = self.taken.get_mut(self.len) {
            room.write(taken);
            // INVARIANT: It was just written.
            self.len += 1;
        }
    }
}

impl Deref for Batch {
    type Target = [Taken];

    fn deref(&self) -> &[Taken] {
        // SAFETY: By the invariant.
        unsafe { slice::from_raw_parts(self.taken.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Batch {
    fn deref_mut(&mut self) -> &mut [Taken] {
        // SAFETY: By the invariant.
        unsafe { slice::from_raw_parts_mut(self.taken.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // SAFETY: By the invariant they are initialised, and nobody uses them any more.
        unsafe { ptr::drop_in_place(&raw mut **self) };
    }
}

/// Copies events to a program, without those that are not so.
///
/// Returns how many of them it is done with: not all, if the memory is not there.
fn put_events(to: UserPtr, taken: &[Taken]) -> usize {
    let first = taken.as_ptr().cast::<u8>();

    // SAFETY: There are so many, each with its event, so far apart.  CAST: They are few.
    unsafe {
        bindings::kevent_put_events(
            to.as_mut_ptr().cast(),
            first.add(offset_of!(Taken, out)).cast(),
            size_of::<Taken>(),
            taken.len() as u32,
        ) as usize
    }
}

#[cfg(CONFIG_KEVENT_KUNIT_TEST)]
#[kunit_tests(kevent_collect)]
mod tests {
    use super::*;
    use crate::{
        abi::{
            Op,
            SourceKind, //
        },
        change::Named,
        tests::{
            add_fd,
            close,
            install,
            make,
            of,
            Fake, //
        }, //
    };
    use kernel::sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        poll_watch::{
            mask,
            PollHandler,
            PollWatch,
            Sharing, //
        },
        Arc,
        ArcBorrow, //
    };

    /// Who polls a queue.
    struct Poller {
        woken: Atomic<u32>,
    }

    impl PollHandler for Poller {
        fn woken(&self, _: u32) -> bool {
            self.woken.fetch_add(1, Relaxed);
            true
        }
    }

    /// Registers a file that is ready, level-triggered; returns it, and its descriptor.
    fn add_ready(queue: ArcBorrow<'_, Queue>) -> Result<(Arc<Fake>, u32)> {
        let (fake, file) = Fake::new()?;
        let fd = install(file)?;
        let mut add = add_fd(fd, mask::IN);

        add.0.flags = uapi::KEVENT_LEVEL;
        fake.ready.store(mask::IN, Relaxed);
        fd::add(
            queue,
            &fd::check(&add, Op::Add)?,
            &Named::by(&add, SourceKind::Fd)?,
        )?;
        Ok((fake, fd))
    }

    #[test]
    fn a_call_without_an_event_tells_those_who_poll_of_what_may_be_ready() -> Result {
        let queue_file = make(4, 0)?;
        let queue = of(&queue_file)?;
        let poller = Arc::pin_init(
            PollWatch::new(
                Poller {
                    woken: Atomic::new(0),
                },
                Sharing::All,
            ),
            GFP_KERNEL,
        )?;
        let woken = || poller.handler().woken.load(Relaxed);
        let wait = Wait {
            // Not a program's: what is found cannot be copied.
            events: Some(UserPtr::from_addr(usize::MAX & !0xfff)),
            min: 0,
            max: 1,
            deadline: Deadline::Now,
            patience: None,
        };
        let (fake, fd) = add_ready(queue)?;

        // SAFETY: It is a new watch, and disarmed below.
        unsafe { PollWatch::arm(&poller, &queue_file, mask::IN) }?;

        assert_eq!(queue.get_events(&wait), Err(EFAULT));
        assert_eq!(woken(), 1);
        // It is not ready any more, which is news to nobody.
        fake.ready.store(0, Relaxed);
        assert!(!queue.are_ready(1));
        assert_eq!(queue.get_events(&wait), Ok(0));
        assert_eq!(woken(), 1);

        // SAFETY: It was armed above, and its file is alive.
        unsafe { PollWatch::disarm(poller) };
        close(fd);
        Ok(())
    }

    #[test]
    fn no_more_are_looked_at_than_are_waited_for() -> Result {
        let queue_file = make(4, 0)?;
        let queue = of(&queue_file)?;
        let files = [add_ready(queue)?, add_ready(queue)?, add_ready(queue)?];
        let polls = || {
            files
                .iter()
                .map(|(fake, _)| fake.polls.xchg(0, Relaxed))
                .sum::<u32>()
        };

        polls();
        assert!(queue.are_ready(2));
        assert_eq!(polls(), 2);
        assert!(!queue.are_ready(4));
        assert_eq!(polls(), 3);

        for (_, fd) in files {
            close(fd);
        }
        Ok(())
    }
}
