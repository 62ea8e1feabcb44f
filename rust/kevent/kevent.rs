// SPDX-License-Identifier: GPL-2.0

//! kevent: an event queue whose events can be collected from shared memory.
//!
//! `include/uapi/linux/kevent.h` is the interface.
//!
//! The way of an event:
//!
//! ```text
//! file wakes its waiters      timer expires      program triggers
//!     fd                          timer              user
//!       `----------.     .----------'                  |
//!                  v     v                             |
//!                   home     in which queue it is      |
//!                     `-----------.       .------------'
//!                                 v       v
//!                                   queue     the lock, and who is to be woken
//!                                     events    merge, post, wait for room, or hold
//!                                       ring      slots and their words
//!                                         memory    the pages that programs map
//! ```
//!
//! The system calls come to `change`, which applies changes, and `collect`, which waits and copies.
//! `exports` is what C calls, `files` and `limits` are `glue.c` made safe, `abi` has the structures
//! of programs, `source` what a registration is of, `watched` who watches which file, `table` where
//! registrations are, and `trace` the tracepoints.
//!
//! `ring`, `table` and `events` are free of kernel types and are tested on the host as well.
//! [`queue`] has the order of the locks and what protects what, [`events`] the states of a
//! registration, [`fd`] who ends one and what keeps each two of them apart.
//!
//! The barriers have letters, which are explained where they are.  Each pair has a litmus test, and
//! a twin without it that fails:
//!
//! ```text
//! ring        A - C     who sees the word of a slot sees its payload
//!             D - B     a payload is not overwritten before it was read
//!             F - E     a source changes, or its event is claimed: one sees the other
//! queue       A - D     who waits and who posts; by the lock of the queue
//! home        H - J     what happens during a move is seen by one of the two
//! fd          L - M     so is the closing of a descriptor during a move
//! poll_watch  A - B     a wait queue that is freed while its file lives, and who leaves it
//! ```

use kernel::prelude::*;

mod abi;
mod change;
mod collect;
mod events;
mod exports;
mod fd;
mod files;
mod home;
mod limits;
mod memory;
mod queue;
mod ring;
mod source;
mod table;
#[cfg(CONFIG_KEVENT_KUNIT_TEST)]
mod tests;
mod timer;
mod trace;
mod user;
mod watched;

/// Prefix of log messages.
const __LOG_PREFIX: &[u8] = b"kevent\0";

/// What `#[vtable]` takes for the module that the code is in.
struct LocalModule;

impl kernel::ModuleMetadata for LocalModule {
    const NAME: &'static kernel::str::CStr = c"kevent";

    const THIS_MODULE: ThisModule = {
        // SAFETY: The null pointer stands for code that is built in.
        unsafe { ThisModule::from_ptr(core::ptr::null_mut()) }
    };
}
