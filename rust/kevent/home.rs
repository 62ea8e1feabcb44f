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
//! (H) add to `strays`, full barrier         lock the new queue, store `queue`
//! (I) look whether `at` has changed     (J) store `at`, full barrier
//!     if so, take `strays` and go there (K) take `strays`
//!                                           put it there, post them, unlock the new queue
//! ```
//!
//! Whoever moves it on takes it under the lock of the new queue, and so stores its `queue` and `at`
//! after those of the first move.
//!
//! Store buffering: H and J are full barriers, so either the callback sees the new `at` at I, or
//! the mover sees the strays at K, or both, and then one of them gets the strays.  Without either
//! of the barriers both could miss the other: a lost event.  `at` counts the moves, so that there
//! and back again is a change as well.
//!
//! J also pairs with the acquire by which [`Home::post`] loads `at` before `queue`: who has the new
//! `at` has the new queue.  Otherwise it could look in the old one, and at I find no change.

use crate::{
    events::Update,
    queue::{
        Posted,
        Queue, //
    },
    source::Source,
    table::NONE, //
};
use core::ptr;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        rcu,
        rcu_drop::{
            HasRcuHead,
            RcuHead, //
        },
        Arc,
        ArcBorrow,
        UniqueArc, //
    }, //
};

/// A queue that a registration has left, kept for callbacks that have found it.
pub(crate) struct Left {
    _queue: Option<Arc<Queue>>,
    rcu: RcuHead<Self>,
}

impl Left {
    /// Makes room for a queue to be left.  May sleep.
    pub(crate) fn new() -> Result<UniqueArc<Self>> {
        Ok(UniqueArc::new(
            Self {
                _queue: None,
                rcu: RcuHead::new(),
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }
}

// SAFETY: It is a field of the object, and always the same.
unsafe impl HasRcuHead for Left {
    fn rcu_head(&self) -> &RcuHead<Self> {
        &self.rcu
    }
}

/// Where the registration of a source is.
///
/// # Invariants
///
/// `queue` is what [`Arc::into_raw`] returned for a queue that this owns a reference to.  The
/// reference is dropped a grace period after it was replaced.
pub(crate) struct Home {
    queue: Atomic<*const Queue>,
    /// `moves:32 | id:32`: how often it was moved, and its id in the queue.
    at: Atomic<u64>,
    /// What happened while the registration was on its way.
    strays: Atomic<u32>,
}

const MOVE: u64 = 1 << 32;

impl Home {
    /// Makes one of a source that is to be registered in `queue`.
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        // INVARIANT: The reference is ours.
        Self {
            queue: Atomic::new(Arc::into_raw(queue)),
            // Nowhere yet.
            at: Atomic::new(NONE.into()),
            strays: Atomic::new(0),
        }
    }

    /// Says that the registration has the id `id`.  Nothing must have been posted yet.
    pub(crate) fn set_id(&self, id: u32) {
        self.at.store(id.into(), Release);
    }

    /// Says that the registration was moved to `queue`, where it has the id `id`, and returns the
    /// queue that it has left, which is to be dropped after a grace period.
    ///
    /// Must be called under the lock of `queue` under which the registration is put there: whoever
    /// moves it on takes it under that lock, so one is settled after the other.
    #[must_use]
    pub(crate) fn settle(
        &self,
        queue: Arc<Queue>,
        id: u32,
        mut room: UniqueArc<Left>,
    ) -> Arc<Left> {
        // INVARIANT: The reference is ours.
        let old = self.queue.xchg(Arc::into_raw(queue), Full);
        let moves = self.at.load(Relaxed).wrapping_add(MOVE) & !u64::from(u32::MAX);

        // (J)
        self.at.xchg(moves | u64::from(id), Full);
        // SAFETY: By the invariant it was ours, and nobody finds it any more.
        room._queue = Some(unsafe { Arc::from_raw(old) });
        room.into()
    }

    /// Takes the value of what happened while the registration was on its way, for whoever has told
    /// where it is.
    pub(crate) fn take_strays(&self) -> Option<u32> {
        // (K)
        match self.strays.xchg(0, Full) {
            0 => None,
            strays => Some(strays),
        }
    }

    /// Returns the queue in which the registration is, or was last.
    pub(crate) fn queue(&self) -> Arc<Queue> {
        let _guard = rcu::read_lock();

        // SAFETY: By the invariant it is alive in an RCU read-side critical section.
        unsafe { ArcBorrow::from_raw(self.queue.load(Acquire)) }.into()
    }

    /// Returns whether the registration is in `queue`, or was last.
    pub(crate) fn is_in(&self, queue: &Arc<Queue>) -> bool {
        ptr::eq(self.queue.load(Relaxed), Arc::as_ptr(queue))
    }

    /// Reports `update` for the registration, wherever it is.  Can be called in any context.
    ///
    /// Returns [`None`] if it is on its way.
    pub(crate) fn post(&self, update: Update, wake_bits: u32) -> Option<Posted> {
        let _guard = rcu::read_lock();

        // SAFETY: We hold the RCU read lock.
        unsafe { self.post_in_rcu(update, wake_bits, |source| source.is_at(self)) }
    }

    /// As [`Home::post`]; `is_meant` tells the source of the registration from others.
    ///
    /// # Safety
    ///
    /// Must be called in an RCU read-side critical section.
    #[inline(always)]
    pub(crate) unsafe fn post_in_rcu(
        &self,
        update: Update,
        wake_bits: u32,
        is_meant: impl Fn(&Source) -> bool,
    ) -> Option<Posted> {
        let mut update = update;

        loop {
            let at = self.at.load(Acquire);
            // SAFETY: By the invariant it is alive in an RCU read-side critical section.
            let queue = unsafe { &*self.queue.load(Acquire) };

            // CAST: The id is in the lower half.
            if let Some(posted) = queue.post(at as u32, update, wake_bits, &is_meant) {
                return Some(posted);
            }
            update = update.with(self.stray(at, update)?);
        }
    }

    /// Keeps `update` for whoever moves the registration, which was not found where `at` said.
    ///
    /// Returns what is to be posted after all, because it has a new place.
    #[cold]
    fn stray(&self, at: u64, update: Update) -> Option<u32> {
        let mut old = self.strays.load(Relaxed);

        // (H)
        while let Err(now) = self.strays.cmpxchg(old, update.apply(old), Full) {
            old = now;
        }
        // (I)
        if self.at.load(Relaxed) == at {
            return None;
        }
        self.take_strays()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // SAFETY: By the invariant the reference is ours, and nobody else uses it any more.
        drop(unsafe { Arc::from_raw(self.queue.load(Relaxed)) });
    }
}
