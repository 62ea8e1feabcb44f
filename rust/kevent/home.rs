// SPDX-License-Identifier: GPL-2.0

//! Where the registration of a source is, for those who have events for it.
//!
//! A registration can be moved from one queue to another while its source is active, and it can end
//! while a callback is on its way.  So a callback looks up the place, and the queue tells whether
//! the registration is there.  If not, it is on its way or has ended, and what happened is left
//! here, for whoever moves it:
//!
//! ```text
//! callback                              mover
//!
//!     find the registration gone            take the registration from the old queue
//! (H) add to `strays`, full barrier         put it in the new queue
//! (I) look whether `place` has changed  (J) store `place`, full barrier
//!     if so, take `strays` and go there (K) take `strays`, post them there
//! ```
//!
//! Store buffering: H and J are full barriers, so either the callback sees the new place at I, or
//! the mover sees the strays at K, or both, and then one of them gets the strays.  Without either
//! of the barriers both could miss the other: a lost event.

use crate::{
    events::Update,
    queue::Queue, //
};
use core::ptr;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        rcu,
        rcu_drop::{
            drop_after_grace,
            HasRcuHead,
            RcuHead, //
        },
        Arc, //
        UniqueArc,
    }, //
};

/// A registration: its queue, and its id there.
pub(crate) struct Place {
    queue: Arc<Queue>,
    id: u32,
    rcu: RcuHead<Self>,
}

impl Place {
    /// Makes the place of a registration that is still to get its id.  May sleep.
    pub(crate) fn new(queue: Arc<Queue>) -> Result<UniqueArc<Self>> {
        Ok(UniqueArc::new(
            Self {
                queue,
                id: u32::MAX,
                rcu: RcuHead::new(),
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }
}

impl HasRcuHead for Place {
    fn rcu_head(&self) -> &RcuHead<Self> {
        &self.rcu
    }
}

/// Where the registration of a source is.
///
/// # Invariants
///
/// `place` is null, or what [`Arc::into_raw`] returned for a place that this owns.  It is dropped a
/// grace period after it was replaced.
pub(crate) struct Home {
    place: Atomic<*const Place>,
    /// What happened while the registration was on its way.
    strays: Atomic<u32>,
}

impl Home {
    /// Makes one of a source that is not registered yet.
    pub(crate) fn new() -> Self {
        // INVARIANT: It is null.
        Self {
            place: Atomic::new(ptr::null()),
            strays: Atomic::new(0),
        }
    }

    /// Says that the registration is at `place`, where it has the id `id`.
    pub(crate) fn settle(&self, mut place: UniqueArc<Place>, id: u32) {
        place.id = id;

        // INVARIANT: The place is ours.  (J)
        let old = self.place.xchg(Arc::into_raw(place.into()), Full);

        if !old.is_null() {
            // SAFETY: By the invariant it was ours, and nobody finds it any more.
            drop_after_grace(unsafe { Arc::from_raw(old) });
        }
    }

    /// Takes what happened while the registration was on its way, as `like` says it.
    pub(crate) fn take_strays(&self, like: Update) -> Option<Update> {
        // (K)
        match self.strays.xchg(0, Full) {
            0 => None,
            strays => Some(like.with(strays)),
        }
    }

    /// Returns the queue in which the registration is, or was last.
    pub(crate) fn queue(&self) -> Option<Arc<Queue>> {
        let _guard = rcu::read_lock();
        let place = self.place.load(Acquire);

        // SAFETY: By the invariant it is alive in an RCU read-side critical section.
        unsafe { place.as_ref() }.map(|place| place.queue.clone())
    }

    /// Returns whether the registration is in `queue`, or was last.
    pub(crate) fn is_in(&self, queue: &Arc<Queue>) -> bool {
        self.queue().is_some_and(|here| Arc::ptr_eq(&here, queue))
    }

    /// Reports `update` for the registration, wherever it is.  Can be called in any context.
    ///
    /// Returns whether somebody was woken.
    #[inline]
    pub(crate) fn post(&self, update: Update, wake_bits: u32) -> bool {
        let _guard = rcu::read_lock();
        let mut update = update;

        loop {
            let place = self.place.load(Acquire);
            // SAFETY: By the invariant it is alive in an RCU read-side critical section.
            let Some(here) = (unsafe { place.as_ref() }) else {
                return false;
            };

            if let Some(woken) = here.queue.post(here.id, self, update, wake_bits) {
                return woken;
            }

            let mut old = self.strays.load(Relaxed);

            // (H)
            while let Err(now) = self.strays.cmpxchg(old, update.apply(old), Full) {
                old = now;
            }
            // (I)
            if ptr::eq(self.place.load(Relaxed), place) {
                return false;
            }
            match self.take_strays(update) {
                Some(strays) => update = strays,
                None => return false,
            }
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let place = self.place.load(Relaxed);

        if !place.is_null() {
            // SAFETY: By the invariant it is ours, and nobody else uses it any more.
            drop(unsafe { Arc::from_raw(place) });
        }
    }
}
