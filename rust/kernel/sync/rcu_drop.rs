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
/// - `used` is true if `target` and `head` are in use: they were handed to [`drop_after_grace`].
/// - `target` is the object that this is a field of, once it is set.
#[repr(C)]
pub struct RcuHead<T> {
    head: Opaque<bindings::callback_head>,
    target: Atomic<*const T>,
    used: Atomic<bool>,
}

// SAFETY: `head` and `target` are written once, by whoever sets `used`.
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
            used: Atomic::new(false),
        }
    }
}

impl<T> Default for RcuHead<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Objects that can be dropped after a grace period.
pub trait HasRcuHead: Sized + Send + Sync {
    /// Returns the field.
    fn rcu_head(&self) -> &RcuHead<Self>;
}

/// Drops `object`, one of the references to it, after an RCU grace period.
///
/// The destructor may run in softirq context.  To be called in process context.  One reference can
/// be handed over without waiting; each further one waits for a grace period.
pub fn drop_after_grace<T: HasRcuHead>(object: Arc<T>) {
    let rcu = object.rcu_head();

    if rcu.used.xchg(true, Relaxed) {
        synchronize_rcu();
        return;
    }

    let head = rcu.head.get();

    // INVARIANT: The target is set before the callback can be called.
    rcu.target.store(&raw const *object, Relaxed);
    // The callback owns the reference now.
    core::mem::forget(object);
    // SAFETY: By the invariant of `used` nobody else uses the head, and the reference that the
    // callback owns keeps it alive.
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
