// SPDX-License-Identifier: GPL-2.0

//! The source `KEVENT_SOURCE_TIMER`: timers.
//!
//! # Locks
//!
//! The mutex of a timer is taken to start and to cancel it, with or without the queue's `ctl`, and
//! with no other lock of this file.  [`CANCELED_ON_SET`] is innermost.

use crate::{
    abi::{
        field,
        Asked,
        Ukevent,
        EDGE_FLAGS, //
    },
    change::Named,
    events::{
        Post,
        Update, //
    },
    home::Home,
    queue::{
        Posted,
        Queue, //
    },
    source::{
        Key,
        Source, //
    },
};
use kernel::{
    bindings,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_spinlock,
        Arc,
        ArcBorrow,
        SetOnce,
        SpinLock, //
    },
    time::dyn_timer::{
        Clock,
        DynTimer,
        Expired,
        Expires,
        Next,
        TimerHandler, //
    },
    uapi, //
};

/// Timers by their address.
type Tree = RBTree<usize, Arc<Timer>>;

/// The shortest time between two calls for a periodic timer, in nanoseconds: nothing but the
/// program's interval bounds how often there are softirqs for it otherwise.
const SHORTEST: i64 = 100_000;

/// The timers that are to be cancelled when the clock is set.
static CANCELED_ON_SET: SetOnce<Pin<KBox<SpinLock<Tree>>>> = SetOnce::new();

/// The timer of a registration.
pub(crate) type Timer = DynTimer<TimerSource>;

/// A registration of a timer.
pub(crate) struct TimerSource {
    home: Home,
    /// The time from one expiry to the next; zero if it does not expire again.  Changed while the
    /// timer is not started.
    interval: Atomic<i64>,
    /// Whether it has expired since it was started.  Used by the callback, and while the timer is
    /// not started.
    expired: Atomic<bool>,
    /// How far the realtime clock was ahead of the monotonic one when the timer was started.
    /// Used with the mutex of the timer held.
    offset: Atomic<i64>,
    /// When it is to expire, if that is a time of the clock.  Used with the mutex of the timer
    /// held.
    at: Atomic<i64>,
    /// Whether it was cancelled because the clock was set.  Used with the mutex of the timer held.
    cancelled: Atomic<bool>,
}

impl TimerHandler for TimerSource {
    fn expired(&self, timer: &mut Expired<'_>) -> Next {
        let (times, next) = match self.interval.load(Relaxed) {
            interval @ 1.. => (self.again(timer, interval), Next::Again),
            _ => (1, Next::Stop),
        };
        // CAST: The bound is.
        let times = times.min(uapi::KEVENT_COUNT_MAX.into()) as u32;

        match self.home.post(Update::Count(times), 0) {
            // It was one-shot.  Without this it would run until somebody removes it.
            Some(Posted {
                post: Post::Ended, ..
            }) => Next::Stop,
            _ => next,
        }
    }
}

impl TimerSource {
    /// Returns where the registration is.
    #[inline]
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Sets the next expiry of a periodic timer.  Returns how often it has expired since the last.
    ///
    /// Of intervals that are shorter than [`SHORTEST`] several pass from one call to the next.
    fn again(&self, timer: &mut Expired<'_>, interval: i64) -> u64 {
        let more = SHORTEST.wrapping_sub(1).checked_div(interval).unwrap_or(0);
        let together = more.wrapping_add(1);
        let calls = timer.forward(interval.saturating_mul(together));
        let times = calls.saturating_mul(together.unsigned_abs());

        // None if the clock was set back.
        if calls == 0 || self.expired.load(Relaxed) {
            return times;
        }
        self.expired.store(true, Relaxed);
        // When it expired first, none of the others had passed.
        times.saturating_sub(more.unsigned_abs())
    }
}

/// When a timer expires.
pub(crate) struct Setting {
    clock: Clock,
    expires: Expires,
    interval: i64,
    cancel_on_set: bool,
}

/// Returns a time that a program gave, in nanoseconds.  What is too large is never.
fn time_of(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

impl Setting {
    /// Returns what a change asks for.
    fn of(change: &Ukevent) -> Result<Self> {
        const ABS: u32 = uapi::KEVENT_TIMER_ABS;
        const CANCEL: u32 = uapi::KEVENT_TIMER_CANCEL_ON_SET;

        let flags = change.0.fflags;
        let clock = Clock::from_id(flags & uapi::KEVENT_TIMER_CLOCK).ok_or(EINVAL)?;
        let time = time_of(change.0.data);
        // SAFETY: It only computes.
        let at = || Expires::At(unsafe { bindings::kevent_time_to_host(clock.id(), time) });
        let (expires, cancel_on_set) = match (flags & !uapi::KEVENT_TIMER_CLOCK, clock) {
            (0, _) => (Expires::In(time), false),
            (ABS, _) => (at(), false),
            (flags, Clock::Realtime) if flags == ABS | CANCEL => (at(), true),
            _ => return Err(EINVAL),
        };

        Ok(Self {
            clock,
            expires,
            interval: match change.0.interval {
                0 => 0,
                // SAFETY: It only tells a number.
                ns => time_of(ns).max(unsafe { bindings::kevent_timer_resolution() }),
            },
            cancel_on_set,
        })
    }
}

/// Makes the table of the timers that are cancelled when the clock is set, once, at boot.
pub(crate) fn setup() -> Result {
    let table = KBox::pin_init(new_spinlock!(RBTree::new(), "kevent_timers"), GFP_KERNEL)?;

    if CANCELED_ON_SET.populate(table) {
        Ok(())
    } else {
        Err(EEXIST)
    }
}

fn address(timer: &Timer) -> usize {
    core::ptr::from_ref(timer).addr()
}

/// Takes a timer from those that are cancelled when the clock is set; returns whether it was there.
///
/// Must be called with the mutex of the timer held.
fn forget(timer: &Timer) -> bool {
    let node = CANCELED_ON_SET
        .as_ref()
        .and_then(|table| table.lock().remove_node(&address(timer)));

    // Freed without the lock.
    node.is_some()
}

/// Cancels the timer until it is started.  May sleep.
fn stop(timer: &Timer) {
    let mut control = timer.control();

    control.cancel();
    forget(timer);
}

/// Cancels the timer of a registration that was taken from its queue, for good.  May sleep.
pub(crate) fn finish(timer: &Timer) {
    let mut control = timer.control();

    control.shut_down();
    forget(timer);
}

/// What it takes to start a timer again that was cancelled because the clock was set.
struct Restart {
    setting: Setting,
    room: Room,
}

impl Restart {
    /// Allocates it, if the timer was cancelled.  May sleep.
    fn new(timer: &Timer) -> Result<Option<Self>> {
        let source = timer.handler();
        let setting = {
            let _control = timer.control();

            if !source.cancelled.load(Relaxed) {
                return Ok(None);
            }
            Setting {
                clock: Clock::Realtime,
                expires: Expires::At(source.at.load(Relaxed)),
                interval: source.interval.load(Relaxed),
                cancel_on_set: true,
            }
        };
        let room = prepare(&setting)?;

        Ok(Some(Self { setting, room }))
    }

    /// Starts the timer.
    ///
    /// Must be called with the queue's mutex held since this was made.  May sleep.
    fn start(self, timer: &Arc<Timer>) {
        start(timer, &self.setting, self.room);
    }
}

/// Room in the table of timers that are cancelled when the clock is set.
type Room = Option<RBTreeNodeReservation<usize, Arc<Timer>>>;

/// Allocates what it takes to start a timer.  May sleep.
fn prepare(setting: &Setting) -> Result<Room> {
    match setting.cancel_on_set {
        true => {
            // It could not be made at boot: nobody would find the timer.
            CANCELED_ON_SET.as_ref().ok_or(ENOMEM)?;
            Ok(Some(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
        }
        false => Ok(None),
    }
}

/// Starts a timer that is new, or stopped, or that was cancelled because the clock was set, unless
/// its registration has ended meanwhile.
///
/// Must be called with the queue's mutex held.  May sleep.
fn start(timer: &Arc<Timer>, setting: &Setting, room: Room) {
    let mut control = timer.control();
    let source = timer.handler();

    if control.is_shut_down() {
        return;
    }
    if let (Some(room), Some(table)) = (room, CANCELED_ON_SET.as_ref()) {
        table
            .lock()
            .insert(room.into_node(address(timer), timer.clone()));
    }
    // Whoever sets the clock after this finds the timer in the table.
    source.offset.store(realtime_offset(), Relaxed);
    source.interval.store(setting.interval, Relaxed);
    source.expired.store(false, Relaxed);
    source.cancelled.store(false, Relaxed);
    if let Expires::At(at) = setting.expires {
        source.at.store(at, Relaxed);
    }
    control.start(setting.clock, setting.expires);
}

/// Returns how far the realtime clock is ahead of the monotonic one.
fn realtime_offset() -> i64 {
    // SAFETY: It only reads the time.
    unsafe { bindings::kevent_realtime_offset() }
}

/// Cancels the timers that are to be cancelled when the clock is set.  May sleep.
pub(crate) fn clock_was_set() {
    let Some(table) = CANCELED_ON_SET.as_ref() else {
        return;
    };
    let mut from = 0;

    loop {
        let timer = {
            let tree = table.lock();

            match tree.cursor_lower_bound(&from).as_ref().map(|c| c.current()) {
                Some((&address, timer)) => {
                    from = address.wrapping_add(1);
                    timer.clone()
                }
                None => return,
            }
        };
        let source = timer.handler();
        let mut control = timer.control();

        // It can have been changed since it was found, and not be one of these any more.
        if source.offset.load(Relaxed) != realtime_offset() && forget(&timer) && control.cancel() {
            source.cancelled.store(true, Relaxed);
            source
                .home
                .post(Update::Count(uapi::KEVENT_TIMER_CANCELED), 0);
        }
    }
}

/// Returns an error unless the fields of a change are valid.
///
/// Returns what it asks for.
pub(crate) fn check(change: &Ukevent) -> Result<(Asked, Setting)> {
    change.only(field::FLAGS | field::USER_DATA | field::DATA | field::FFLAGS | field::INTERVAL)?;
    Ok((change.terms(EDGE_FLAGS, 0)?, Setting::of(change)?))
}

/// Registers a timer.  May sleep.
///
/// # Errors
///
/// Those of [`Queue::insert`].
pub(crate) fn add(
    queue: ArcBorrow<'_, Queue>,
    (terms, enabled): &Asked,
    setting: &Setting,
    named: &Named,
) -> Result {
    let timer = Arc::pin_init(
        DynTimer::new(TimerSource {
            home: Home::new(queue.into()),
            interval: Atomic::new(0),
            expired: Atomic::new(false),
            offset: Atomic::new(0),
            at: Atomic::new(0),
            cancelled: Atomic::new(false),
        }),
        GFP_KERNEL_ACCOUNT,
    )?;
    let room = prepare(setting)?;

    queue.insert(&named.key, terms, Source::Timer(timer.clone()), *enabled)?;
    start(&timer, setting, room);
    Ok(())
}

/// Changes a timer, and starts it anew.  May sleep.
///
/// # Errors
///
/// `ENOENT`: not registered.
pub(crate) fn modify(
    queue: ArcBorrow<'_, Queue>,
    (terms, enabled): &Asked,
    setting: &Setting,
    named: &Named,
) -> Result {
    let (_, Source::Timer(timer)) = queue.look_up(&named.key)? else {
        return Err(EINVAL);
    };

    let room = prepare(setting)?;

    // So that no expiry of before counts for what it is from now on.
    stop(&timer);
    queue.modify(
        &named.key,
        terms,
        *enabled,
        None,
        |source| match source {
            Source::Timer(found) if Arc::ptr_eq(found, &timer) => Ok(()),
            // It has ended, and then another one of its name was moved here.
            _ => Err(ENOENT),
        },
        |(), _| None,
    )?;
    start(&timer, setting, room);
    Ok(())
}

/// Makes a timer report again, and starts it if it was cancelled because the clock was set.  May
/// sleep.
///
/// # Errors
///
/// `ENOENT`: not registered.  `ENOMEM`.
pub(crate) fn enable(queue: &Queue, key: &Key) -> Result {
    loop {
        let (_, Source::Timer(timer)) = queue.look_up(key)? else {
            return Err(EINVAL);
        };
        // Before anything is changed.
        let restart = Restart::new(&timer)?;

        match queue.enable(key)? {
            (_, Source::Timer(enabled)) if Arc::ptr_eq(&enabled, &timer) => {
                if let Some(restart) = restart {
                    restart.start(&timer);
                }
                return Ok(());
            }
            // It has ended, and then another one of its name was moved here.
            _ => {}
        }
    }
}

#[cfg(CONFIG_KEVENT_KUNIT_TEST)]
#[kunit_tests(kevent_timer)]
mod tests {
    use super::*;
    use crate::tests::{
        add_timer,
        key,
        make,
        of,
        timer_in, //
    };

    #[test]
    fn of_a_registration_that_has_ended_is_not_started() -> Result {
        let file = make(4, 0)?;
        let queue = of(&file)?;
        let key = key(uapi::KEVENT_SOURCE_TIMER, 7)?;
        let setting = Setting {
            clock: Clock::Realtime,
            expires: Expires::At(i64::MAX),
            interval: 0,
            cancel_on_set: true,
        };

        for ends in [false, true] {
            add_timer(queue, 7, 0)?;

            // As a change does; what another thread can do meanwhile is between these.
            let timer = timer_in(&queue, 7)?;
            let room = prepare(&setting)?;

            stop(&timer);
            if ends {
                let (_, source, _) = queue.take(&key, |_| true).ok_or(ENOENT)?;

                source.finish();
            }
            start(&timer, &setting, room);

            let table = CANCELED_ON_SET.as_ref().ok_or(ENOENT)?;
            let is_in_table = table.lock().get(&address(&timer)).is_some();

            assert_eq!(is_in_table, !ends);
            assert_eq!(timer.control().cancel(), !ends);
            if let Some((_, source, _)) = queue.take(&key, |_| true) {
                source.finish();
            }
        }
        Ok(())
    }
}
