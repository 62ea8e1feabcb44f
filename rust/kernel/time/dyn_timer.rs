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
pub trait TimerHandler: Send + Sync + 'static {
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

/// Whether a timer can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It can be started.
    Open,
    /// Not any more.
    ShutDown,
}

/// A timer.
///
/// # Examples
///
/// ```
/// use kernel::{
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         Arc, //
///     },
///     time::dyn_timer::{
///         Clock,
///         DynTimer,
///         Expired,
///         Expires,
///         Next,
///         TimerHandler, //
///     }, //
/// };
///
/// struct Ticks(Atomic<u64>);
///
/// impl TimerHandler for Ticks {
///     fn expired(&self, timer: &mut Expired<'_>) -> Next {
///         // Every millisecond; those that were missed count, too.
///         self.0.fetch_add(timer.forward(1_000_000), Relaxed);
///         Next::Again
///     }
/// }
///
/// let timer = Arc::pin_init(DynTimer::new(Ticks(Atomic::new(0))), GFP_KERNEL)?;
///
/// timer.control().start(Clock::Boottime, Expires::In(1_000_000));
/// assert!(timer.control().cancel());
/// // From now on the handler does not run.
/// let ticks = timer.handler().0.load(Relaxed);
/// assert_eq!(timer.handler().0.load(Relaxed), ticks);
/// # Ok::<(), Error>(())
/// ```
///
/// Dropping it cancels it, so what [`Control::cancel`] demands of its caller holds for whoever
/// drops the last reference, too.
///
/// # Invariants
///
/// `timer` is initialised.  It is started and cancelled with `control` held.
#[pin_data(PinnedDrop)]
pub struct DynTimer<H: TimerHandler> {
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    #[pin]
    control: Mutex<Use>,
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
            control <- new_mutex!(Use::Open, "DynTimer::control"),
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
            usage: self.control.lock(),
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
        // SAFETY: The timer is initialised.
        unsafe { bindings::hrtimer_cancel(self.timer.get()) };
    }
}

/// The right to start and to cancel a timer.
pub struct Control<'a, H: TimerHandler> {
    timer: &'a DynTimer<H>,
    usage: MutexGuard<'a, Use>,
}

impl<H: TimerHandler> Control<'_, H> {
    /// Starts the timer anew, unless it was shut down.  Cancels it first; see [`Control::cancel`].
    ///
    /// A time from now does not change when the clock is set.
    pub fn start(&mut self, clock: Clock, expires: Expires) {
        if self.is_shut_down() {
            return;
        }

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
    /// Waits for the handler if it is running, so the caller must hold no lock that the handler
    /// takes, nor keep softirqs from running on the CPU that runs it.
    ///
    /// Returns whether it was still to expire.
    pub fn cancel(&mut self) -> bool {
        // SAFETY: The timer is initialised.
        unsafe { bindings::hrtimer_cancel(self.timer.timer.get()) != 0 }
    }

    /// Cancels the timer for good, as [`Control::cancel`] does: it cannot be started any more.
    pub fn shut_down(&mut self) {
        *self.usage = Use::ShutDown;
        self.cancel();
    }

    /// Returns whether it was shut down.
    pub fn is_shut_down(&self) -> bool {
        *self.usage == Use::ShutDown
    }
}

#[cfg(CONFIG_RUST_DYN_TIMER_KUNIT_TEST)]
#[macros::kunit_tests(rust_dyn_timer)]
mod tests {
    use super::*;
    use crate::{
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Relaxed,
                Release, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            BootTime,
            Delta,
            Instant,
            Monotonic,
            RealTime,
            Tai, //
        },
        workqueue, //
    };

    const MILLISECOND: i64 = 1_000_000;
    const HOUR: i64 = 3_600_000 * MILLISECOND;

    /// What is left of a timer when it is gone.
    struct Traces {
        /// How often the handler was called.
        calls: Atomic<u32>,
        /// How often it returned.
        returns: Atomic<u32>,
        /// When it was called last.
        at: Atomic<i64>,
        /// How many intervals have passed, as it was told.
        intervals: Atomic<u64>,
        /// Whether whoever started it elsewhere has let go of it.
        alone: Atomic<bool>,
        /// Whether it was dropped, and whether the handler was called later.
        dropped: Atomic<bool>,
        late: Atomic<bool>,
    }

    struct Recorder {
        traces: Arc<Traces>,
        /// How often the timer expires before it stops by itself.
        limit: u32,
        interval: i64,
        /// How many milliseconds the handler takes.
        takes: i64,
    }

    impl TimerHandler for Recorder {
        fn expired(&self, timer: &mut Expired<'_>) -> Next {
            let traces = &self.traces;

            traces.at.store(now(), Relaxed);
            if traces.dropped.load(Acquire) {
                traces.late.store(true, Relaxed);
            }

            let calls = traces.calls.fetch_add(1, Release) + 1;

            while now() - traces.at.load(Relaxed) < self.takes * MILLISECOND {
                core::hint::spin_loop();
            }

            let next = if calls < self.limit {
                let passed = timer.forward(self.interval);

                traces.intervals.fetch_add(passed, Relaxed);
                Next::Again
            } else {
                Next::Stop
            };

            traces.returns.fetch_add(1, Release);
            next
        }
    }

    fn now() -> i64 {
        Instant::<Monotonic>::now().as_nanos()
    }

    fn now_of(clock: Clock) -> i64 {
        match clock {
            Clock::Monotonic => now(),
            Clock::Realtime => Instant::<RealTime>::now().as_nanos(),
            Clock::Boottime => Instant::<BootTime>::now().as_nanos(),
            Clock::Tai => Instant::<Tai>::now().as_nanos(),
        }
    }

    /// Makes a timer that expires `limit` times, and whose handler takes `takes` milliseconds.
    fn timer(limit: u32, takes: i64) -> Result<(Arc<DynTimer<Recorder>>, Arc<Traces>)> {
        let traces = Traces {
            calls: Atomic::new(0),
            returns: Atomic::new(0),
            at: Atomic::new(0),
            intervals: Atomic::new(0),
            alone: Atomic::new(false),
            dropped: Atomic::new(false),
            late: Atomic::new(false),
        };
        let traces = Arc::new(traces, GFP_KERNEL)?;
        let recorder = Recorder {
            traces: traces.clone(),
            limit,
            interval: MILLISECOND,
            takes,
        };

        Ok((Arc::pin_init(DynTimer::new(recorder), GFP_KERNEL)?, traces))
    }

    /// Waits until the handler has returned `times` times, but not for ever.
    fn returned(traces: &Traces, times: u32) -> bool {
        (0..10_000).any(|_| {
            traces.returns.load(Acquire) >= times || {
                fsleep(Delta::from_millis(1));
                false
            }
        })
    }

    /// Waits until the handler is called of a timer that was started elsewhere.
    ///
    /// This processor is kept busy, so that it is called on another one, but not for ever.
    fn called(traces: &Traces) -> bool {
        let start = now();
        let is_so = || traces.calls.load(Acquire) > 0 && traces.alone.load(Acquire);

        while !is_so() && now() - start < 1000 * MILLISECOND {
            core::hint::spin_loop();
        }
        (0..10_000).any(|_| {
            is_so() || {
                fsleep(Delta::from_millis(1));
                false
            }
        })
    }

    /// Starts `timer` on another processor, if there is one that is idle.
    fn start_elsewhere(timer: &Arc<DynTimer<Recorder>>) -> Result {
        let timer = timer.clone();

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            let traces = timer.handler().traces.clone();

            timer
                .control()
                .start(Clock::Monotonic, Expires::In(MILLISECOND));
            drop(timer);
            traces.alone.store(true, Release);
        })?;
        Ok(())
    }

    #[test]
    fn expires_once_and_not_early_on_each_clock() -> Result {
        const TIME: i64 = 2 * MILLISECOND;

        for clock in [
            Clock::Monotonic,
            Clock::Realtime,
            Clock::Boottime,
            Clock::Tai,
        ] {
            for absolute in [false, true] {
                let (timer, traces) = timer(1, 0)?;
                let start = now();
                let expires = if absolute {
                    Expires::At(now_of(clock) + TIME)
                } else {
                    Expires::In(TIME)
                };

                timer.control().start(clock, expires);
                assert!(returned(&traces, 1));
                assert!(traces.at.load(Relaxed) >= start + TIME);
                fsleep(Delta::from_millis(5));
                assert_eq!(traces.calls.load(Relaxed), 1);
                assert!(!timer.control().cancel());
            }
        }
        Ok(())
    }

    #[test]
    fn a_time_that_is_over_expires_at_once() -> Result {
        for expires in [
            Expires::At(0),
            Expires::At(-1),
            Expires::In(0),
            Expires::In(i64::MIN),
        ] {
            let (timer, traces) = timer(1, 0)?;

            timer.control().start(Clock::Realtime, expires);
            assert!(returned(&traces, 1));
        }
        Ok(())
    }

    #[test]
    fn a_time_too_far_away_never_comes() -> Result {
        for expires in [Expires::At(i64::MAX), Expires::In(i64::MAX)] {
            let (timer, traces) = timer(1, 0)?;

            timer.control().start(Clock::Boottime, expires);
            fsleep(Delta::from_millis(10));
            assert_eq!(traces.calls.load(Acquire), 0);
            assert!(timer.control().cancel());
            assert!(!timer.control().cancel());
        }
        Ok(())
    }

    #[test]
    fn expires_again_until_its_handler_stops_it() -> Result {
        let (timer, traces) = timer(5, 0)?;
        let start = now();

        timer
            .control()
            .start(Clock::Monotonic, Expires::In(MILLISECOND));
        assert!(returned(&traces, 5));
        fsleep(Delta::from_millis(10));
        assert_eq!(traces.calls.load(Relaxed), 5);
        assert!(!timer.control().cancel());
        // The first interval, and what the four other calls were told.
        assert!(traces.intervals.load(Relaxed) >= 4);
        assert!(traces.at.load(Relaxed) - start >= 5 * MILLISECOND);
        Ok(())
    }

    #[test]
    fn forward_counts_the_intervals_that_were_missed() -> Result {
        // The handler takes ten intervals before it forwards the timer.
        let (timer, traces) = timer(2, 10)?;

        timer
            .control()
            .start(Clock::Monotonic, Expires::In(MILLISECOND));
        assert!(returned(&traces, 2));
        assert!(traces.intervals.load(Relaxed) >= 10);
        Ok(())
    }

    #[test]
    fn cancel_ends_a_periodic_timer() -> Result {
        let (timer, traces) = timer(u32::MAX, 0)?;

        timer
            .control()
            .start(Clock::Monotonic, Expires::In(MILLISECOND));
        assert!(returned(&traces, 3));
        assert!(timer.control().cancel());

        let calls = traces.calls.load(Acquire);

        fsleep(Delta::from_millis(20));
        assert_eq!(traces.calls.load(Acquire), calls);
        Ok(())
    }

    #[test]
    fn cancel_waits_for_the_handler() -> Result {
        let mut met = 0;

        for _ in 0..20 {
            // It wants to expire again.
            let (timer, traces) = timer(2, 5)?;

            start_elsewhere(&timer)?;
            assert!(called(&traces));
            met += u32::from(traces.returns.load(Acquire) == 0);
            timer.control().cancel();

            let (calls, returns) = (traces.calls.load(Acquire), traces.returns.load(Acquire));

            assert_eq!(calls, returns);
            fsleep(Delta::from_millis(3));
            assert_eq!(traces.calls.load(Acquire), calls);
        }
        pr_info!("cancelled while the handler ran: {met} of 20\n");
        Ok(())
    }

    #[test]
    fn start_replaces_the_time_and_the_clock() -> Result {
        let (timer, traces) = timer(1, 0)?;

        timer.control().start(Clock::Monotonic, Expires::In(HOUR));
        timer
            .control()
            .start(Clock::Tai, Expires::At(now_of(Clock::Tai) + MILLISECOND));
        assert!(returned(&traces, 1));
        assert!(!timer.control().cancel());

        // And the other way round.
        timer
            .control()
            .start(Clock::Realtime, Expires::In(100 * MILLISECOND));
        timer.control().start(Clock::Boottime, Expires::In(HOUR));
        fsleep(Delta::from_millis(200));
        assert_eq!(traces.calls.load(Acquire), 1);
        assert!(timer.control().cancel());
        Ok(())
    }

    #[test]
    fn a_timer_that_was_shut_down_is_not_started() -> Result {
        let (timer, traces) = timer(u32::MAX, 0)?;

        timer
            .control()
            .start(Clock::Monotonic, Expires::In(MILLISECOND));
        assert!(returned(&traces, 1));
        assert!(!timer.control().is_shut_down());
        timer.control().shut_down();

        let calls = traces.calls.load(Acquire);

        timer.control().start(Clock::Monotonic, Expires::In(0));
        fsleep(Delta::from_millis(20));
        assert_eq!(traces.calls.load(Acquire), calls);
        assert!(timer.control().is_shut_down());
        assert!(!timer.control().cancel());
        Ok(())
    }

    #[test]
    fn a_timer_that_is_dropped_does_not_expire() -> Result {
        let (timer, traces) = timer(1, 0)?;

        timer
            .control()
            .start(Clock::Monotonic, Expires::In(20 * MILLISECOND));
        drop(timer);
        fsleep(Delta::from_millis(50));
        assert_eq!(traces.calls.load(Acquire), 0);
        Ok(())
    }

    #[test]
    fn drop_waits_for_the_handler() -> Result {
        let mut met = 0;

        for _ in 0..20 {
            let (timer, traces) = timer(2, 5)?;

            start_elsewhere(&timer)?;
            assert!(called(&traces));
            met += u32::from(traces.returns.load(Acquire) == 0);
            drop(timer);
            traces.dropped.store(true, Release);
            assert_eq!(traces.calls.load(Acquire), traces.returns.load(Acquire));
            fsleep(Delta::from_millis(3));
            assert!(!traces.late.load(Relaxed));
        }
        pr_info!("dropped while the handler ran: {met} of 20\n");
        Ok(())
    }
}
