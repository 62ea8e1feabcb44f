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
/// # Invariants
///
/// All entries of the queue that have [`Waiter::wake`] as their function are in a [`Waiter`].
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
