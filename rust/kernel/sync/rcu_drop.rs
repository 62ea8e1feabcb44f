// SPDX-License-Identifier: GPL-2.0

//! Dropping a reference after an RCU grace period.
//!
//! For objects that readers can still be looking at, without a reference of their own, for a grace
//! period after the object was made unreachable.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use crate::{
    bindings,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        rcu::synchronize_rcu,
        Arc, //
    },
    types::Opaque, //
};

/// The field by which an object is dropped after a grace period; wraps `struct rcu_head`.
///
/// # Invariants
///
/// `target` is null until the object was handed to [`drop_after_grace`], which uses `head` then; it
/// is the object that this is a field of from then on.
#[repr(C)]
pub struct RcuHead<T> {
    head: Opaque<bindings::callback_head>,
    target: Atomic<*const T>,
}

// SAFETY: `head` is written once, by whoever sets `target`.
unsafe impl<T: Send + Sync> Send for RcuHead<T> {}
// SAFETY: As above.
unsafe impl<T: Send + Sync> Sync for RcuHead<T> {}

impl<T> RcuHead<T> {
    /// Makes one that is not in use.
    pub const fn new() -> Self {
        // INVARIANT: Not used yet.
        Self {
            head: Opaque::uninit(),
            target: Atomic::new(core::ptr::null()),
        }
    }
}

impl<T> Default for RcuHead<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Objects that can be dropped after a grace period.
///
/// # Examples
///
/// ```
/// use kernel::sync::{
///     rcu_drop::{
///         drop_after_grace,
///         HasRcuHead,
///         RcuHead, //
///     },
///     Arc, //
/// };
///
/// struct Node {
///     value: u32,
///     rcu: RcuHead<Self>,
/// }
///
/// // SAFETY: It is a field of the object, and always the same.
/// unsafe impl HasRcuHead for Node {
///     fn rcu_head(&self) -> &RcuHead<Self> {
///         &self.rcu
///     }
/// }
///
/// let node = Arc::new(
///     Node {
///         value: 1,
///         rcu: RcuHead::new(),
///     },
///     GFP_KERNEL,
/// )?;
/// let other = node.clone();
///
/// // Readers that found it before it was taken from wherever they find it can go on.
/// drop_after_grace(node);
/// assert_eq!(other.value, 1);
/// # Ok::<(), Error>(())
/// ```
///
/// # Safety
///
/// `rcu_head` must return a field of the object, and the same one each time.
///
/// If the type or its destructor is of a module, `rcu_barrier()` must be called between the last
/// [`drop_after_grace`] of such an object and the end of the module.
pub unsafe trait HasRcuHead: Sized + Send + Sync + 'static {
    /// Returns the field.
    fn rcu_head(&self) -> &RcuHead<Self>;
}

/// Drops `object`, one of the references to it, after an RCU grace period.
///
/// The destructor may run in softirq context.  To be called in process context.  One reference can
/// be handed over without waiting; each further one waits for a grace period.
pub fn drop_after_grace<T: HasRcuHead>(object: Arc<T>) {
    let rcu = object.rcu_head();

    // INVARIANT: It is the object, and was null if this is the first time.
    if !rcu.target.xchg(Arc::as_ptr(&object), Relaxed).is_null() {
        synchronize_rcu();
        return;
    }

    let head = rcu.head.get();

    // The callback owns the reference now.
    core::mem::forget(object);
    // SAFETY: By the invariant nobody else uses the head.  It is a field of the object, which the
    // reference that the callback owns keeps alive.
    unsafe { bindings::call_rcu(head, Some(run::<T>)) }
}

/// Drops the reference that [`drop_after_grace`] handed over.
///
/// # Safety
///
/// `head` must be the field of an [`RcuHead`] whose target is set, and that target must have been
/// handed over as an [`Arc`].
unsafe extern "C" fn run<T: HasRcuHead>(head: *mut bindings::callback_head) {
    // SAFETY: By the requirements it is in an `RcuHead`, which the reference keeps alive.  CAST: It
    // is the first field.
    let target = unsafe { (*head.cast::<RcuHead<T>>()).target.load(Relaxed) };

    // SAFETY: By the requirements the target is an `Arc`'s, and the reference is ours.
    drop(unsafe { Arc::<T>::from_raw(target) });
}

#[cfg(CONFIG_RUST_RCU_DROP_KUNIT_TEST)]
#[macros::kunit_tests(rust_rcu_drop)]
mod tests {
    use super::*;
    use crate::{
        prelude::*,
        sync::{
            atomic::{
                Acquire,
                Release, //
            },
            rcu::{
                self,
                rcu_barrier, //
            }, //
        },
        time::{
            delay::fsleep,
            Delta,
            Instant,
            Monotonic, //
        },
        workqueue, //
    };

    /// Counts the drops.
    struct Counted {
        rcu: RcuHead<Self>,
        drops: Arc<Atomic<u32>>,
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.drops.fetch_add(1, Relaxed);
        }
    }

    // SAFETY: It is a field of the object, and always the same.
    unsafe impl HasRcuHead for Counted {
        fn rcu_head(&self) -> &RcuHead<Self> {
            &self.rcu
        }
    }

    /// Makes an object, and the number of its drops.
    fn counted() -> Result<(Arc<Counted>, Arc<Atomic<u32>>)> {
        let drops = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let object = Counted {
            rcu: RcuHead::default(),
            drops: drops.clone(),
        };

        Ok((Arc::new(object, GFP_KERNEL)?, drops))
    }

    /// Takes as long as a few grace periods that do not wait for the caller, without sleeping.
    fn keep_busy() {
        let start = Instant::<Monotonic>::now();

        while start.elapsed() < Delta::from_millis(100) {
            core::hint::spin_loop();
        }
    }

    /// Waits until `flag` is so, but not for ever.
    fn eventually(flag: &Atomic<bool>) -> bool {
        (0..10_000).any(|_| {
            flag.load(Acquire) || {
                fsleep(Delta::from_millis(1));
                false
            }
        })
    }

    /// What a reader and another thread tell each other.
    struct Steps {
        reading: Atomic<bool>,
        dropped: Atomic<bool>,
    }

    #[test]
    fn dropped_after_a_grace_period_and_not_before() -> Result {
        let (object, drops) = counted()?;
        let early = {
            let _guard = rcu::read_lock();

            drop_after_grace(object);
            keep_busy();
            drops.load(Relaxed)
        };

        assert_eq!(early, 0);
        rcu_barrier();
        assert_eq!(drops.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn only_the_last_reference_drops() -> Result {
        let (object, drops) = counted()?;

        drop_after_grace(object.clone());
        drop_after_grace(object.clone());
        rcu_barrier();
        assert_eq!(drops.load(Relaxed), 0);
        drop(object);
        assert_eq!(drops.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn the_second_reference_is_kept_for_a_grace_period() -> Result {
        let (object, drops) = counted()?;
        let steps = Steps {
            reading: Atomic::new(false),
            dropped: Atomic::new(false),
        };
        let steps = Arc::new(steps, GFP_KERNEL)?;
        let other = steps.clone();

        // So that the one below is the second.
        drop_after_grace(object.clone());
        rcu_barrier();
        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            eventually(&other.reading);
            drop_after_grace(object);
            other.dropped.store(true, Release);
        })?;

        let early = {
            let _guard = rcu::read_lock();

            steps.reading.store(true, Release);
            keep_busy();
            drops.load(Relaxed)
        };

        assert_eq!(early, 0);
        assert!(eventually(&steps.dropped));
        assert_eq!(drops.load(Relaxed), 1);
        Ok(())
    }
}
