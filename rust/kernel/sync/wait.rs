// SPDX-License-Identifier: GPL-2.0

//! Wait queues.
//!
//! A [`CondVar`] waits for a condition under one lock, for a number of jiffies.  A
//! [`WaitQueueHead`] is for the rest: wake-ups with a key, waiters that are woken only if the key
//! is high enough, high-resolution deadlines, and wait queues that files offer to poll.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)
//!
//! [`CondVar`]: crate::sync::CondVar

use crate::{
    bindings,
    prelude::*,
    sync::LockClassKey,
    time::{
        BootTime,
        ClockSource,
        Monotonic,
        RealTime,
        Tai, //
    },
    types::Opaque, //
};
use core::{
    marker::PhantomPinned,
    ptr, //
};

/// Creates a [`WaitQueueHead`] initialiser with the given name and a newly-created lock class.
#[macro_export]
macro_rules! new_wait_queue_head {
    ($($name:literal)?) => {
        $crate::sync::wait::WaitQueueHead::new(
            $crate::optional_name!($($name)?), $crate::static_lock_class!()
        )
    };
}
pub use new_wait_queue_head;

/// When a wait ends for want of a wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// At once: the condition is looked at, and that is all.
    Now,
    /// Never.
    Never,
    /// At a time of a clock in nanoseconds, or up to `slack` nanoseconds later.
    At {
        /// The time.
        expires: i64,
        /// By how much it may be late, to save timer interrupts.
        slack: u64,
        /// The clock: one of `CLOCK_*` that an hrtimer can have.
        clock: i32,
    },
}

impl Deadline {
    /// Returns whether it is over: a wait until then would end at once.
    ///
    /// Can be called in any context but that of an NMI.
    pub fn is_over(&self) -> bool {
        match *self {
            Self::Now => true,
            Self::Never => false,
            Self::At { expires, clock, .. } => {
                expires
                    <= match clock {
                        RealTime::ID => RealTime::ktime_get(),
                        BootTime::ID => BootTime::ktime_get(),
                        Tai::ID => Tai::ktime_get(),
                        _ => Monotonic::ktime_get(),
                    }
            }
        }
    }
}

/// Which of the waiters a wake-up for one goes to, if it is enough for several of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The one that has waited for the longest time.
    Fifo,
    /// The one that came last.
    Lifo,
}

/// A waiter that is woken by keys that are not below its threshold.
#[repr(C)]
struct Waiter {
    entry: bindings::wait_queue_entry,
    threshold: usize,
}

/// Wraps the kernel's `struct wait_queue_head`.
///
/// # Examples
///
/// A gate that lets in as many as it was opened for.
///
/// ```
/// use kernel::sync::{
///     new_spinlock,
///     wait::{
///         new_wait_queue_head,
///         Deadline,
///         Order,
///         WaitQueueHead, //
///     },
///     SpinLock, //
/// };
///
/// #[pin_data]
/// struct Gate {
///     #[pin]
///     places: SpinLock<u32>,
///     #[pin]
///     waiters: WaitQueueHead,
/// }
///
/// impl Gate {
///     fn open_for(&self, more: u32) {
///         *self.places.lock() += more;
///         for _ in 0..more {
///             self.waiters.wake_one(1);
///         }
///     }
///
///     fn pass(&self, deadline: Deadline) -> Result<Option<()>> {
///         self.waiters.wait_exclusive(1, Order::Fifo, deadline, || {
///             let mut places = self.places.lock();
///
///             *places = places.checked_sub(1)?;
///             Some(())
///         })
///     }
/// }
///
/// let gate = KBox::pin_init(
///     pin_init!(Gate {
///         places <- new_spinlock!(0),
///         waiters <- new_wait_queue_head!(),
///     }),
///     GFP_KERNEL,
/// )?;
///
/// gate.open_for(1);
/// assert_eq!(gate.pass(Deadline::Never)?, Some(()));
/// assert_eq!(gate.pass(Deadline::Now)?, None);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// All entries of the queue that have `Waiter::wake` as their function are in a `Waiter`.
#[pin_data]
#[repr(transparent)]
pub struct WaitQueueHead {
    #[pin]
    inner: Opaque<bindings::wait_queue_head>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A `struct wait_queue_head` can be used on any thread.
unsafe impl Send for WaitQueueHead {}
// SAFETY: A `struct wait_queue_head` has a lock of its own.
unsafe impl Sync for WaitQueueHead {}

impl Waiter {
    /// Wakes the waiter if the key is high enough.
    ///
    /// # Safety
    ///
    /// `entry` must be the field of a [`Waiter`] that is in a wait queue, and the queue's lock must
    /// be held.
    unsafe extern "C" fn wake(
        entry: *mut bindings::wait_queue_entry,
        mode: c_uint,
        flags: c_int,
        key: *mut c_void,
    ) -> c_int {
        // CAST: The entry is the first field.
        let waiter = entry.cast::<Waiter>();

        // SAFETY: The entry is in a waiter, by the requirements; the threshold does not change
        // while it is in a queue.
        if key.addr() < unsafe { (*waiter).threshold } {
            return 0;
        }
        // SAFETY: The requirements are the same.
        unsafe { bindings::autoremove_wake_function(entry, mode, flags, key) }
    }
}

impl WaitQueueHead {
    /// Constructs a new initialiser.
    pub fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid while the closure is called and both `name` and `key` have
            // static lifetimes so they live indefinitely.
            inner <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr())
            }),
            _pin: PhantomPinned,
        })
    }

    /// Returns a raw pointer to the inner C struct.
    #[inline]
    pub fn as_ptr(&self) -> *mut bindings::wait_queue_head {
        self.inner.get()
    }

    /// Returns whether there are waiters.
    ///
    /// Whether a waiter that is not seen will see what the caller did before is for the caller to
    /// ensure; see the comment at `waitqueue_active()` in C.
    #[inline]
    pub fn is_active(&self) -> bool {
        // SAFETY: The queue is initialised and pinned.
        unsafe { bindings::waitqueue_active(self.as_ptr()) != 0 }
    }

    /// Wakes all waiters that are not exclusive, and one that is.
    ///
    /// What the key means is between those who wait and those who wake.  Returns whether an
    /// exclusive one was woken.  Can be called in any context.
    #[inline]
    pub fn wake_one(&self, key: usize) -> bool {
        self.wake(1, key) > 0
    }

    /// Wakes all waiters.  Can be called in any context.
    pub fn wake_all(&self, key: usize) {
        self.wake(0, key);
    }

    #[inline]
    fn wake(&self, exclusive: c_int, key: usize) -> c_int {
        // SAFETY: The queue is initialised and pinned; the key is not dereferenced.
        unsafe {
            bindings::__wake_up(
                self.as_ptr(),
                bindings::TASK_NORMAL,
                exclusive,
                ptr::without_provenance_mut(key),
            )
        }
    }

    /// Waits, as an exclusive waiter, until `condition` returns something.
    ///
    /// The condition is looked at first, and after each [`WaitQueueHead::wake_one`] with a key that
    /// is at least `threshold`.  It is called by a task that is about to sleep, so it must not
    /// sleep.
    ///
    /// Returns [`None`] after the deadline, and [`EINTR`] if there is a signal to handle.  Either
    /// way the caller may have used up a wake-up that somebody else could use.
    pub fn wait_exclusive<R>(
        &self,
        threshold: usize,
        order: Order,
        deadline: Deadline,
        mut condition: impl FnMut() -> Option<R>,
    ) -> Result<Option<R>> {
        let waiter = Opaque::new(Waiter {
            entry: bindings::wait_queue_entry {
                flags: bindings::WQ_FLAG_EXCLUSIVE,
                private: crate::current!().as_ptr().cast(),
                func: Some(Waiter::wake),
                entry: bindings::list_head::default(),
            },
            threshold,
        });
        let entry = waiter.get().cast::<bindings::wait_queue_entry>();
        let mut expired = deadline == Deadline::Now;

        // SAFETY: `waiter` is not moved before it is off the queue again.
        unsafe {
            let list = &raw mut (*entry).entry;

            (*list).next = list;
            (*list).prev = list;
        }

        let result = loop {
            if order == Order::Lifo {
                // SAFETY: Queue and entry are initialised; `finish_wait()` is called below.
                unsafe { self.enter_first(entry) };
            }
            // INVARIANT: The entry is in a `Waiter`.
            // SAFETY: Queue and entry are initialised; `finish_wait()` is called below.
            let signalled = unsafe {
                bindings::prepare_to_wait_event(
                    self.as_ptr(),
                    entry,
                    bindings::TASK_INTERRUPTIBLE as c_int,
                )
            } != 0;

            if let Some(value) = condition() {
                break Ok(Some(value));
            }
            if expired {
                break Ok(None);
            }
            if signalled {
                break Err(EINTR);
            }
            expired = sleep_until(deadline);
        };

        // SAFETY: Queue and entry are initialised.
        unsafe { bindings::finish_wait(self.as_ptr(), entry) };
        result
    }

    /// Puts `entry` before all others, unless it is in the queue.
    ///
    /// # Safety
    ///
    /// Queue and entry must be initialised; the entry must be that of a [`Waiter`], and must not
    /// move before it is off the queue again.
    unsafe fn enter_first(&self, entry: *mut bindings::wait_queue_entry) {
        let queue = self.as_ptr();

        // SAFETY: The queue is initialised.
        unsafe { bindings::spin_lock_irq_disable(&raw mut (*queue).lock) };
        // SAFETY: The entry is initialised, and the lock is held.
        unsafe {
            if ptr::eq((*entry).entry.next, &raw const (*entry).entry) {
                bindings::__add_wait_queue_exclusive(queue, entry);
            }
        }
        // SAFETY: The lock was taken above.
        unsafe { bindings::spin_unlock_irq_enable(&raw mut (*queue).lock) };
    }
}

/// Sleeps until the task is woken, and returns whether that was because of the deadline.
///
/// The task's state must have been set.
fn sleep_until(deadline: Deadline) -> bool {
    let (mut expires, slack, clock) = match deadline {
        Deadline::At {
            expires,
            slack,
            clock,
        } => (Some(expires), slack, clock),
        // CAST: It is a small number.
        Deadline::Now | Deadline::Never => (None, 0, bindings::CLOCK_MONOTONIC as i32),
    };
    let expires = match &mut expires {
        Some(expires) => ptr::from_mut(expires),
        None => ptr::null_mut(),
    };

    // SAFETY: `expires` is null, for a sleep without end, or points to a time.
    unsafe {
        bindings::schedule_hrtimeout_range_clock(
            expires,
            slack,
            bindings::hrtimer_mode_HRTIMER_MODE_ABS,
            clock,
        ) == 0
    }
}

#[cfg(CONFIG_RUST_WAIT_KUNIT_TEST)]
#[macros::kunit_tests(rust_wait)]
mod tests {
    use super::*;
    use crate::{
        error::from_err_ptr,
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Full,
                Relaxed,
                Release, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta,
            Instant,
            Monotonic, //
        }, //
    };

    /// A queue, and what those who wait in it do.
    #[pin_data]
    struct Room {
        #[pin]
        queue: WaitQueueHead,
        /// How often somebody has entered the queue and found that there is no ticket.
        looks: Atomic<u32>,
        /// How many may leave.
        tickets: Atomic<u32>,
        /// The numbers of those who have left, one decimal digit each.
        left: Atomic<u32>,
    }

    fn room() -> Result<Arc<Room>> {
        Arc::pin_init(
            pin_init!(Room {
                queue <- new_wait_queue_head!("kunit_room"),
                looks: Atomic::new(0),
                tickets: Atomic::new(0),
                left: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    impl Room {
        /// Takes a ticket, if there is one.
        fn take_ticket(&self) -> Option<()> {
            let mut tickets = self.tickets.load(Relaxed);

            while tickets > 0 {
                match self.tickets.cmpxchg(tickets, tickets - 1, Full) {
                    Ok(_) => return Some(()),
                    Err(now) => tickets = now,
                }
            }
            None
        }

        /// Lets somebody wait for a ticket; returns whether that is in the queue, in the end.
        fn enter(self: &Arc<Self>, number: u32, threshold: usize, order: Order) -> Result<bool> {
            let room = self.clone();
            let before = self.looks.load(Acquire);

            spawn(move || {
                let result = room
                    .queue
                    .wait_exclusive(threshold, order, Deadline::Never, || {
                        let ticket = room.take_ticket();

                        if ticket.is_none() {
                            room.looks.fetch_add(1, Release);
                        }
                        ticket
                    });

                if result == Ok(Some(())) {
                    let mut left = room.left.load(Relaxed);

                    while let Err(now) = room.left.cmpxchg(left, left * 10 + number, Full) {
                        left = now;
                    }
                }
            })?;
            Ok(eventually(|| self.looks.load(Acquire) > before))
        }

        /// Returns whether those who have left are these, in the end.
        fn have_left(&self, numbers: u32) -> bool {
            eventually(|| self.left.load(Acquire) == numbers)
        }
    }

    /// Calls `f` in a thread of its own.
    ///
    /// A thread of a work queue will not do: it may be woken once more than it was idle.
    fn spawn<F: FnOnce() + Send + 'static>(f: F) -> Result {
        unsafe extern "C" fn run<F: FnOnce()>(f: *mut c_void) -> c_int {
            // SAFETY: It was handed over below.
            let f = unsafe { KBox::<F>::from_raw(f.cast()) };

            KBox::into_inner(f)();
            0
        }

        let f = KBox::into_raw(KBox::new(f, GFP_KERNEL)?);
        // SAFETY: The thread owns the box.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(run::<F>),
                f.cast(),
                bindings::NUMA_NO_NODE,
                c"kunit".as_char_ptr(),
            )
        })
        .inspect_err(|_| {
            // SAFETY: There is no thread.
            drop(unsafe { KBox::from_raw(f) });
        })?;

        // SAFETY: The thread waits for this.
        unsafe { bindings::wake_up_process(task) };
        Ok(())
    }

    /// Waits until `condition` is so, but not for ever.
    fn eventually(mut condition: impl FnMut() -> bool) -> bool {
        (0..10_000).any(|_| {
            condition() || {
                fsleep(Delta::from_millis(1));
                false
            }
        })
    }

    fn now() -> i64 {
        Instant::<Monotonic>::now().as_nanos()
    }

    fn in_milliseconds(milliseconds: i64) -> Deadline {
        Deadline::At {
            expires: now() + milliseconds * 1_000_000,
            slack: 0,
            // CAST: It is a small number.
            clock: bindings::CLOCK_MONOTONIC as i32,
        }
    }

    #[test]
    fn does_not_wait_for_what_is_so() -> Result {
        let room = room()?;

        for deadline in [Deadline::Now, Deadline::Never, in_milliseconds(0)] {
            let result = room
                .queue
                .wait_exclusive(1, Order::Fifo, deadline, || Some(7));

            assert_eq!(result, Ok(Some(7)));
            assert!(!room.queue.is_active());
        }
        Ok(())
    }

    #[test]
    fn a_deadline_is_over_by_its_clock() {
        assert!(Deadline::Now.is_over());
        assert!(!Deadline::Never.is_over());
        for clock in [Monotonic::ID, RealTime::ID, BootTime::ID, Tai::ID] {
            for (expires, is_over) in [(0, true), (i64::MAX, false)] {
                let deadline = Deadline::At {
                    expires,
                    slack: 0,
                    clock,
                };

                assert_eq!(deadline.is_over(), is_over);
            }
        }

        // A clock that is years ahead of the time since the boot.
        let deadline = |clock| Deadline::At {
            expires: BootTime::ktime_get() + 365 * 24 * 3600 * 1_000_000_000,
            slack: 0,
            clock,
        };

        assert!(deadline(RealTime::ID).is_over());
        assert!(!deadline(Monotonic::ID).is_over());
    }

    #[test]
    fn looks_once_if_it_is_not_to_wait() -> Result {
        let room = room()?;
        let mut looks = 0;
        let result = room
            .queue
            .wait_exclusive(1, Order::Lifo, Deadline::Now, || -> Option<()> {
                looks += 1;
                None
            });

        assert_eq!(result, Ok(None));
        assert_eq!(looks, 1);
        assert!(!room.queue.is_active());
        Ok(())
    }

    #[test]
    fn a_deadline_is_not_early() -> Result {
        let room = room()?;

        for order in [Order::Fifo, Order::Lifo] {
            let start = now();
            let result =
                room.queue
                    .wait_exclusive(1, order, in_milliseconds(20), || -> Option<()> { None });

            assert_eq!(result, Ok(None));
            assert!(now() - start >= 20_000_000);
            assert!(!room.queue.is_active());
        }
        Ok(())
    }

    #[test]
    fn a_key_below_the_threshold_wakes_nobody() -> Result {
        let room = room()?;

        assert!(room.enter(1, 5, Order::Fifo)?);
        room.tickets.store(1, Release);
        assert!(!room.queue.wake_one(4));
        room.queue.wake_all(4);
        fsleep(Delta::from_millis(50));
        assert_eq!(room.left.load(Acquire), 0);
        assert!(room.queue.is_active());
        assert!(room.queue.wake_one(5));
        assert!(room.have_left(1));
        assert!(!room.queue.is_active());
        Ok(())
    }

    #[test]
    fn a_wake_up_passes_those_by_whose_threshold_is_higher() -> Result {
        let room = room()?;

        assert!(room.enter(1, 9, Order::Fifo)?);
        assert!(room.enter(2, 3, Order::Fifo)?);
        room.tickets.store(1, Release);
        assert!(room.queue.wake_one(3));
        assert!(room.have_left(2));
        room.tickets.store(1, Release);
        assert!(room.queue.wake_one(usize::MAX));
        assert!(room.have_left(21));
        Ok(())
    }

    #[test]
    fn the_first_or_the_last_is_woken_first() -> Result {
        for (order, steps) in [
            (Order::Fifo, [1, 12, 123]),
            (Order::Lifo, [3, 32, 321]), //
        ] {
            let room = room()?;

            for number in 1..=3 {
                assert!(room.enter(number, 1, order)?);
            }
            for step in steps {
                room.tickets.fetch_add(1, Release);
                assert!(room.queue.wake_one(1));
                assert!(room.have_left(step));
            }
            assert!(!room.queue.wake_one(1));
        }
        Ok(())
    }

    #[test]
    fn who_was_woken_for_nothing_waits_on() -> Result {
        let room = room()?;

        assert!(room.enter(1, 1, Order::Lifo)?);
        // There is no ticket.
        assert!(room.queue.wake_one(1));
        assert!(eventually(|| room.looks.load(Acquire) == 2));
        assert!(room.queue.is_active());
        room.tickets.store(1, Release);
        assert!(room.queue.wake_one(1));
        assert!(room.have_left(1));
        Ok(())
    }

    #[test]
    fn all_are_woken_whose_threshold_is_low_enough() -> Result {
        let room = room()?;

        for (number, threshold) in [(1, 1), (2, 8), (3, 2)] {
            assert!(room.enter(number, threshold, Order::Fifo)?);
        }
        room.tickets.store(3, Release);
        room.queue.wake_all(2);
        assert!(eventually(|| room.tickets.load(Acquire) == 1));
        fsleep(Delta::from_millis(50));
        assert_eq!(room.tickets.load(Acquire), 1);
        assert!(room.queue.is_active());
        room.queue.wake_all(usize::MAX);
        assert!(eventually(|| room.left.load(Acquire) > 100));
        assert_eq!(room.left.load(Acquire) % 10, 2);
        Ok(())
    }
}
