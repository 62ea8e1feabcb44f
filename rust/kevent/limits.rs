// SPDX-License-Identifier: GPL-2.0

//! How many registrations a user may have, `fs.kevent.max_user_registrations`.

use kernel::{
    bindings,
    prelude::*, //
};

/// The user who made a queue, who pays for its registrations.
///
/// # Invariants
///
/// The pointer is to a user that this has a reference to.
pub(crate) struct User(*mut bindings::user_struct);

// SAFETY: A user can be used on any thread.
unsafe impl Send for User {}
// SAFETY: The counter of a user is atomic.
unsafe impl Sync for User {}

impl User {
    /// Returns the user of the current task.
    pub(crate) fn current() -> Self {
        // INVARIANT: The reference was taken for us.
        // SAFETY: The current task has a user.
        Self(unsafe { bindings::kevent_get_user() })
    }

    /// Counts one more registration.
    ///
    /// # Errors
    ///
    /// `EDQUOT`: the user has too many.
    pub(crate) fn charge(&self) -> Result<Charge<'_>> {
        // SAFETY: By the invariant.
        if unsafe { bindings::kevent_charge_user(self.0) } {
            Ok(Charge(self))
        } else {
            Err(EDQUOT)
        }
    }

    /// Counts one registration less, of which the [`Charge`] was kept.
    pub(crate) fn uncharge(&self) {
        // SAFETY: By the invariant.
        unsafe { bindings::kevent_uncharge_user(self.0) };
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // SAFETY: By the invariant.
        unsafe { bindings::free_uid(self.0) };
    }
}

/// One registration that was counted; given back unless it is kept.
pub(crate) struct Charge<'a>(&'a User);

impl Charge<'_> {
    /// Counts the registration for good.
    pub(crate) fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.0.uncharge();
    }
}
