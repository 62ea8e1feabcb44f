// SPDX-License-Identifier: MIT
//! The three system calls, with safe signatures.  One of the two modules that
//! contain `unsafe`.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_long, c_uint};

use crate::abi::{self, GetOpts, Params, Ukevent};
use crate::change::{nanoseconds, Change};
use crate::wait::Wait;

/// `struct __kernel_timespec`
#[repr(C)]
struct KernelTimespec {
    sec: i64,
    nsec: i64,
}

impl From<Duration> for KernelTimespec {
    fn from(time: Duration) -> Self {
        Self {
            sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            nsec: i64::from(time.subsec_nanos()),
        }
    }
}

fn check(ret: c_long) -> io::Result<c_long> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

fn count(len: usize) -> c_uint {
    c_uint::try_from(len).unwrap_or(c_uint::MAX)
}

/// An address, as a structure of the kernel has it.
fn address<T>(to: *const T) -> u64 {
    to.expose_provenance() as u64
}

/// `kevent_init()`
pub(crate) fn init(params: &mut Params) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads and writes at most the size given, which is that
    // of the structure, and keeps no pointer.
    let fd = check(unsafe {
        libc::syscall(
            abi::SYS_KEVENT_INIT as c_long,
            ptr::from_mut(params),
            size_of::<Params>(),
        )
    })?;
    // SAFETY: the kernel has just made this descriptor for us, and a descriptor
    // fits in a RawFd.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// `kevent_init()` with an argument that no kernel accepts: the error that it
/// gives tells whether there is such a call.
pub(crate) fn probe() -> io::Error {
    let none = ptr::null_mut::<Params>();
    // SAFETY: a size of zero gives the kernel nothing to read or write.
    match check(unsafe { libc::syscall(abi::SYS_KEVENT_INIT as c_long, none, 0usize) }) {
        Err(error) => error,
        // Another call has this number: whatever it did, it is not ours.
        Ok(_) => io::Error::from_raw_os_error(libc::ENOSYS),
    }
}

/// `kevent_ctl()`
pub(crate) fn ctl(fd: BorrowedFd<'_>, changes: &mut [Change], flags: u32) -> io::Result<usize> {
    // SAFETY: a Change is a struct ukevent.  The kernel reads and writes at most
    // that many of them, plain integers all through, and keeps no pointer.
    let done = check(unsafe {
        libc::syscall(
            abi::SYS_KEVENT_CTL as c_long,
            fd.as_raw_fd() as c_int,
            changes.as_mut_ptr(),
            count(changes.len()),
            flags as c_uint,
        )
    })?;
    Ok(done as usize)
}

/// `kevent_getevents()`; `events` of length zero collects nothing.
pub(crate) fn getevents(
    fd: BorrowedFd<'_>,
    events: &mut [Ukevent],
    wait: &mut Wait<'_>,
) -> io::Result<usize> {
    let timeout = wait.time.map(KernelTimespec::from);
    let buffer = if events.is_empty() {
        ptr::null_mut()
    } else {
        events.as_mut_ptr()
    };

    let mut opts = GetOpts {
        size: size_of::<GetOpts>() as u32,
        min_wait: wait.min_wait.map_or(0, nanoseconds),
        ..GetOpts::default()
    };
    if let Some(clock) = wait.clock {
        opts.flags = abi::KEVENT_GET_ABSTIME;
        opts.clock = clock.id();
    }
    if let Some(mask) = &wait.signal_mask {
        opts.sigmask = address(mask);
        opts.sigsetsize = size_of_val(mask) as u32;
    }
    if !wait.changes.is_empty() {
        opts.changes = address(wait.changes.as_mut_ptr());
        opts.nr_changes = count(wait.changes.len());
        opts.change_flags = wait.change_flags;
    }

    // SAFETY: the kernel writes at most that many structures to the buffer, and
    // writes at most that many of the changes, plain integers all through.  It
    // reads the timeout, the options and the mask, if there are any, which all
    // live until it returns.  It keeps no pointer.
    let collected = check(unsafe {
        libc::syscall(
            abi::SYS_KEVENT_GETEVENTS as c_long,
            fd.as_raw_fd() as c_int,
            buffer,
            count(wait.min),
            count(events.len()),
            timeout.as_ref().map_or(ptr::null(), ptr::from_ref),
            if wait.is_plain() {
                ptr::null()
            } else {
                ptr::from_ref(&opts)
            },
        )
    })?;
    Ok(collected as usize)
}
