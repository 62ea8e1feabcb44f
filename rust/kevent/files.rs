// SPDX-License-Identifier: GPL-2.0

//! What kevent needs to know of files and descriptor tables; `glue.c`, made safe.

use core::ptr;
use kernel::{
    bindings,
    current,
    fs::File, //
};

/// Which descriptor table a descriptor belongs to.
///
/// It is only an address, and a table can be freed.  It is not followed unless the caller knows
/// that the table is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TableId(*mut bindings::files_struct);

// SAFETY: It is only an address.
unsafe impl Send for TableId {}
// SAFETY: As above.
unsafe impl Sync for TableId {}

impl TableId {
    /// No table; before all others in their order.
    pub(crate) const NONE: Self = Self(ptr::null_mut());

    /// Returns the descriptor table of the current task.
    pub(crate) fn current() -> Self {
        // SAFETY: The current task is alive, and only it changes its table.
        Self(unsafe { (*current!().as_ptr()).files })
    }

    /// Makes one of what `->flush()` of a file is called with.
    pub(crate) fn from_owner(owner: bindings::fl_owner_t) -> Self {
        Self(owner.cast())
    }

    /// Returns whether `fd` refers to `file`.  False if the table is on its way out.
    ///
    /// # Safety
    ///
    /// The table must be alive, or on its way out by the caller.
    pub(crate) unsafe fn refers_to(self, fd: u32, file: &File) -> bool {
        // SAFETY: By the requirements.
        unsafe { bindings::kevent_fd_refers_to(self.0, fd, file.as_ptr()) }
    }
}

/// Returns whether `file` is an event queue of epoll or io_uring.
pub(crate) fn is_aggregator(file: &File) -> bool {
    // SAFETY: The file is valid.
    unsafe { bindings::kevent_is_aggregator(file.as_ptr()) }
}

/// Lets the release of `file` and the closing of its descriptors be noticed, from now on.
pub(crate) fn mark_watched(file: &File) {
    // SAFETY: The file is valid.
    unsafe { bindings::kevent_mark_watched(file.as_ptr()) }
}
