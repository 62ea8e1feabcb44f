// SPDX-License-Identifier: GPL-2.0

//! Waiting for events and collecting them, for `kevent_getevents()`.
//!
//! [`crate::queue`] has the protocol of sleeping and waking.

use crate::{
    abi::Ukevent,
    events::{
        After,
        Event,
        Find,
        Trigger, //
    },
    fd,
    queue::{
        Queue,
        STEPS, //
    },
    source::Source,
    trace, //
};
use kernel::{
    current,
    fs::File,
    prelude::*,
    sync::{
        aref::ARef,
        wait::Deadline, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi, //
};

/// How many changes or events a call can be given: as many as fit in 2 GiB, so that a count of them
/// fits in what a system call returns.
pub(crate) const MAX_UKEVENTS: u32 = i32::MAX as u32 / size_of::<Ukevent>() as u32;

/// How often an event is looked at again because its source was woken meanwhile.
const LOOKS: u32 = 3;

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

/// What was collected.
#[derive(Default)]
struct Collected {
    /// How many events.
    events: u32,
    /// Whether level-triggered ones are among them.
    level: bool,
    /// Whether one-shot ones are among them.
    ended: bool,
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
    /// `EINTR`: a signal is to be handled, and there is
    /// nothing to collect.  `EFAULT`.
    pub(crate) fn get_events(&self, wait: &Wait) -> Result<u32> {
        let result = self.wait_and_collect(wait);

        self.retire();
        result
    }

    fn wait_and_collect(&self, wait: &Wait) -> Result<u32> {
        let Wait {
            events, min, max, ..
        } = *wait;
        let wakes = self.inner.lock().wakes;
        let mut collected = Collected::default();
        let mut want = min;
        let mut until = wait.patience.unwrap_or(wait.deadline);

        loop {
            let missing = want.saturating_sub(collected.events);
            let waited = self.wait(missing, wakes, until);

            if waited == Waited::Expired
                && until != wait.deadline
                && want > 1
                && collected.events == 0
            {
                // From now on, one event is enough.
                want = 1;
                until = wait.deadline;
                continue;
            }

            let Some(events) = events else {
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
                continue;
            }

            let result = self.collect(events, &mut collected, max);

            if collected.ended {
                self.reap();
            }
            if result.is_err() || collected.events == max {
                // There may be more.
                self.pass_on();
            }
            if collected.events == 0 {
                result?;
                if waited == Waited::Interrupted {
                    return Err(EINTR);
                }
            }
            // Otherwise somebody else was faster.  Those that are level-triggered would be reported
            // again.
            if collected.events >= want
                || collected.level
                || result.is_err()
                || !matches!(waited, Waited::Ready(_))
            {
                return Ok(collected.events);
            }
        }
    }

    /// Waits until there are `min` events, or until the waiters were told to return more often than
    /// `wakes` times.
    fn wait(&self, min: u32, wakes: u64, deadline: Deadline) -> Waited {
        if min == 0 {
            // Let in what waits behind a full ring, for those who look there.
            self.inner.lock().events.flush(STEPS);
            return Waited::Ready(0);
        }

        let result = self
            .waiters
            .wait_exclusive(min as usize, self.order, deadline, || {
                // (B)
                let count = {
                    let mut inner = self.inner.lock();

                    if inner.wakes != wakes {
                        return Some(Waited::Woken);
                    }
                    inner.events.count(min)
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
    /// any more.  May sleep.
    fn are_ready(&self, min: u32) -> bool {
        let scan = self.inner.lock().events.scan();

        loop {
            let (event, file) = {
                let mut inner = self.inner.lock();

                match inner.events.find_ready(&scan) {
                    // SAFETY: The registration is in the table, and the lock is held.
                    Some((event, source)) => (event, unsafe { source.pin() }.flatten()),
                    None => return inner.events.count(min) >= min,
                }
            };
            let so = file.is_some_and(|file| fd::look_again(&file, 0, event.terms.interest) != 0);

            if !so {
                self.claim(&event, false, true);
            }
        }
    }

    /// Wakes a waiter if there are events for it.
    fn pass_on(&self) {
        if self.waiters.is_active() {
            let ready = {
                let mut inner = self.inner.lock();

                if inner.events.count(1) == 0 {
                    return;
                }
                inner.events.ready_at_most()
            };

            // Whoever wants more than there really is passes it on again.
            self.waiters.wake_one(ready as usize);
        }
    }

    /// Collects events to `buffer` until there are `max` or there are no more.
    ///
    /// An event is copied before it is claimed, so that one that cannot be copied is not lost.
    fn collect(&self, buffer: UserPtr, collected: &mut Collected, max: u32) -> Result {
        let mut scan = self.inner.lock().events.scan();
        let mut looks = 0;

        while collected.events < max {
            let here = scan;
            let (event, of) = {
                let mut inner = self.inner.lock();

                inner.events.flush(STEPS);
                match inner.events.find(&mut scan, STEPS) {
                    Find::End => return Ok(()),
                    Find::More => continue,
                    Find::Event(event, Source::Fd(watch)) => {
                        // SAFETY: The registration is in the table, and the lock is held.
                        let of = match unsafe { watch.handler().pin() } {
                            Some(file) => Of::File(file),
                            None => Of::Gone,
                        };

                        (event, of)
                    }
                    Find::Event(event, Source::Timer(_) | Source::User(_)) => (event, Of::Other),
                }
            };

            // What was seen of the source while it was woken again may be out of date.
            let precise = looks < LOOKS;
            let value = match &of {
                Of::Gone => {
                    // It is nobody's any more, and has its turn like the others.
                    self.claim(&event, false, false);
                    continue;
                }
                Of::File(file) if precise || event.value == 0 => {
                    fd::look_again(file, event.value, event.terms.interest)
                }
                Of::File(_) | Of::Other => event.value,
            };
            let precise = precise && matches!(of, Of::File(_));

            if value != 0 {
                let offset = collected.events as usize * size_of::<Ukevent>();

                write_event(buffer.wrapping_byte_add(offset), &event, value)?;
            }
            if !self.claim(&event, value != 0, precise) {
                // Look at it again; if somebody else claimed it, at the next.
                scan.again(&here);
                looks += 1;
                continue;
            }
            looks = 0;
            if value != 0 {
                collected.events += 1;
                collected.level |= event.terms.trigger == Trigger::Level;
                collected.ended |= event.terms.after == After::End;
                trace::collect(self, &event.terms.payload, value);
            }
        }
        Ok(())
    }
}

/// Copies an event to a program.
fn write_event(to: UserPtr, event: &Event, value: u32) -> Result {
    let event = Ukevent(uapi::ukevent {
        ident: event.terms.payload.ident,
        source: event.terms.payload.source,
        flags: event.terms.flags,
        events: value,
        user_data: event.terms.payload.user_data,
        tag: event.terms.payload.tag,
        ..Default::default()
    });

    UserSlice::new(to, size_of::<Ukevent>())
        .writer()
        .write(&event)
}
