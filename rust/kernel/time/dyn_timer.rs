// SPDX-License-Identifier: GPL-2.0

//! Timers whose clock is chosen when they are started.
//!
//! In [`hrtimer`] the clock and the mode of a timer are part of its type, and whoever starts it
//! gets a handle that must not be dropped in the callback.  A [`DynTimer`] is for those who are
//! told by a program which clock to use, and is started anew with another.
//!
//! C header: [`include/linux/hrtimer.h`](srctree/include/linux/hrtimer.h)
//!
//! [`hrtimer`]: crate::time::hrtimer

use crate::{
    bindings,
    container_of,
    prelude::*,
    sync::{
        new_mutex,
        Mutex,
        MutexGuard, //
    },
    types::Opaque, //
};
use core::marker::PhantomData;

/// The mode of a timer that expires when so much time has passed.
const RELATIVE: bindings::hrtimer_mode = bindings::hrtimer_mode_HRTIMER_MODE_REL_SOFT;

/// The mode of a timer that expires at a time of its clock.
const ABSOLUTE: bindings::hrtimer_mode = bindings::hrtimer_mode_HRTIMER_MODE_ABS_SOFT;

/// A clock that timers can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_REALTIME`.
    Realtime,
    /// `CLOCK_BOOTTIME`.
    Boottime,
    /// `CLOCK_TAI`.
    Tai,
}

impl Clock {
    /// Returns the number of the clock, `CLOCK_*`.
    pub const fn id(self) -> bindings::clockid_t {
        // CAST: They are small numbers.
        (match self {
            Self::Monotonic => bindings::CLOCK_MONOTONIC,
            Self::Realtime => bindings::CLOCK_REALTIME,
            Self::Boottime => bindings::CLOCK_BOOTTIME,
            Self::Tai => bindings::CLOCK_TAI,
        }) as bindings::clockid_t
    }

    /// Returns the clock with that number.
    pub const fn from_id(id: u32) -> Option<Self> {
        match id {
            bindings::CLOCK_MONOTONIC => Some(Self::Monotonic),
            bindings::CLOCK_REALTIME => Some(Self::Realtime),
            bindings::CLOCK_BOOTTIME => Some(Self::Boottime),
            bindings::CLOCK_TAI => Some(Self::Tai),
            _ => None,
        }
    }
}

/// When a timer expires, in nanoseconds that are not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expires {
    /// When the clock shows this.
    At(i64),
    /// When so much time has passed.  A time too far away is one that never comes.
    In(i64),
}

/// What becomes of a timer that has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is over until it is started again.
    Stop,
    /// It expires again at the time that [`Expired::forward`] has set.
    Again,
}

/// What is called when a timer expires.
pub trait TimerHandler: Send + Sync {
    /// The timer has expired.
    ///
    /// Called in softirq context.  It must not control the timer, nor drop the last reference to
    /// it.
    fn expired(&self, timer: &mut Expired<'_>) -> Next;
}

/// A timer that has expired, while its handler runs.
pub struct Expired<'a> {
    timer: *mut bindings::hrtimer,
    _handler: PhantomData<&'a ()>,
}

impl Expired<'_> {
    /// Sets the next expiry, a multiple of `interval` nanoseconds after the last, so that it is in
    /// the future.  Returns how many intervals that is.
    ///
    /// `interval` must be positive.
    pub fn forward(&mut self, interval: i64) -> u64 {
        // SAFETY: The timer is running its callback, which is when it can be forwarded.
        unsafe {
            bindings::hrtimer_forward(
                self.timer,
                bindings::hrtimer_cb_get_time(self.timer),
                interval,
            )
        }
    }
}

/// A timer.
///
/// # Invariants
///
/// `timer` is initialised.  It is started and cancelled with `control` held.
#[pin_data(PinnedDrop)]
pub struct DynTimer<H: TimerHandler> {
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    #[pin]
    control: Mutex<()>,
    handler: H,
}

// SAFETY: A timer can be used on any thread; handlers are `Send` and `Sync`.
unsafe impl<H: TimerHandler> Send for DynTimer<H> {}
// SAFETY: As above; what changes the timer is done under a lock.
unsafe impl<H: TimerHandler> Sync for DynTimer<H> {}

impl<H: TimerHandler> DynTimer<H> {
    /// Constructs a timer that is not started.
    pub fn new(handler: H) -> impl PinInit<Self> {
        // INVARIANT: The timer is initialised here.
        pin_init!(Self {
            timer <- Opaque::ffi_init(|timer: *mut bindings::hrtimer| {
                // SAFETY: It is the memory of a timer.
                unsafe { Self::setup(timer, Clock::Monotonic, RELATIVE) }
            }),
            control <- new_mutex!((), "DynTimer::control"),
            handler,
        })
    }

    /// Initialises `timer`.
    ///
    /// # Safety
    ///
    /// `timer` must be the field of a [`DynTimer`], not started and used by nobody else.
    unsafe fn setup(timer: *mut bindings::hrtimer, clock: Clock, mode: bindings::hrtimer_mode) {
        // SAFETY: By the requirements.
        unsafe { bindings::hrtimer_setup(timer, Some(Self::run), clock.id(), mode) };
    }

    /// Returns the handler.
    #[inline]
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// Waits for the right to start and to cancel the timer.  May sleep.
    pub fn control(&self) -> Control<'_, H> {
        Control {
            timer: self,
            _guard: self.control.lock(),
        }
    }

    /// Called when the timer expires.
    ///
    /// # Safety
    ///
    /// `timer` must be the field of a [`DynTimer`].
    unsafe extern "C" fn run(timer: *mut bindings::hrtimer) -> bindings::hrtimer_restart {
        // SAFETY: By the requirements.  The timer is cancelled before it is dropped, which waits
        // for this.
        let this = unsafe { &*container_of!(Opaque::cast_from(timer), Self, timer) };
        let mut expired = Expired {
            timer,
            _handler: PhantomData,
        };

        match this.handler.expired(&mut expired) {
            Next::Stop => bindings::hrtimer_restart::HRTIMER_NORESTART,
            Next::Again => bindings::hrtimer_restart::HRTIMER_RESTART,
        }
    }
}

#[pinned_drop]
impl<H: TimerHandler> PinnedDrop for DynTimer<H> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The timer is initialised, and its handler does not drop it.
        unsafe { bindings::hrtimer_cancel(self.timer.get()) };
    }
}

/// The right to start and to cancel a timer.
pub struct Control<'a, H: TimerHandler> {
    timer: &'a DynTimer<H>,
    _guard: MutexGuard<'a, ()>,
}

impl<H: TimerHandler> Control<'_, H> {
    /// Starts the timer anew.
    ///
    /// A time from now does not change when the clock is set.
    pub fn start(&mut self, clock: Clock, expires: Expires) {
        let timer = self.timer.timer.get();
        let (clock, mode, time) = match (clock, expires) {
            (clock, Expires::At(time)) => (clock, ABSOLUTE, time),
            // A relative time of the realtime clock would change with it.
            (Clock::Realtime | Clock::Tai, Expires::In(time)) => (Clock::Monotonic, RELATIVE, time),
            (clock, Expires::In(time)) => (clock, RELATIVE, time),
        };

        self.cancel();
        // SAFETY: The timer is not started, and nobody else starts it while the lock is held.
        unsafe {
            DynTimer::<H>::setup(timer, clock, mode);
            bindings::hrtimer_start_range_ns(timer, time.max(0), 0, mode);
        }
    }

    /// Cancels the timer: its handler is not running when this returns.
    ///
    /// Returns whether it was still to expire.
    pub fn cancel(&mut self) -> bool {
        // SAFETY: The timer is initialised.  Its handler takes no locks that the caller holds, as
        // those who hold a mutex hold no lock of softirq context.
        unsafe { bindings::hrtimer_cancel(self.timer.timer.get()) != 0 }
    }
}
