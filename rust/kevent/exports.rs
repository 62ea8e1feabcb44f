// SPDX-License-Identifier: GPL-2.0

//! What C calls: the bodies of the system calls, and the hooks in the life of files.

use crate::{
    abi::kevent_params,
    fd,
    files::TableId,
    queue::Queue,
    watched, //
};
use kernel::{
    bindings,
    ffi::{
        c_int,
        c_uint, //
    },
    fs::{
        File,
        UncountedFile, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        wait::Deadline, //
    },
    uaccess::UserPtr, //
};

/// Turns a count or an error into what a system call returns.
fn to_int(result: Result<u32>) -> c_int {
    // CAST: Counts are bounded by the size of a buffer, or by the slots.
    result.map_or_else(|error| error.to_errno(), |count| count as c_int)
}

/// Called once, at boot.
///
/// # Safety
///
/// None.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_setup() -> c_int {
    to_int(watched::setup().map(|()| 0))
}

/// Makes a queue's file, or an error pointer.
///
/// # Safety
///
/// `params` must point to parameters that nobody else uses.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_create(
    params: *mut bindings::kevent_params,
) -> *mut bindings::file {
    // SAFETY: By the requirements.  CAST: Both types are made of the same C structure.
    let params = unsafe { &mut *params.cast::<kevent_params>() };

    match Queue::create(params) {
        Ok(file) => ARef::into_raw(file).as_ptr().cast(),
        Err(error) => error.to_ptr(),
    }
}

/// The body of `kevent_ctl()`.
///
/// # Safety
///
/// `kfile` must be a valid file.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_ctl(
    kfile: *mut bindings::file,
    changes: *mut bindings::ukevent,
    nr: c_uint,
    flags: c_uint,
) -> c_int {
    // SAFETY: The file is valid, and its position is not used.
    let kfile = unsafe { File::from_raw_file(kfile) };

    to_int(
        Queue::of(kfile)
            .ok_or(EINVAL)
            .and_then(|queue| queue.ctl(UserPtr::from_ptr(changes.cast()), nr, flags)),
    )
}

/// The body of `kevent_getevents()`.
///
/// # Safety
///
/// `kfile` must be a valid file, `expires` null or a time of `CLOCK_MONOTONIC`, of which zero is
/// over.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_getevents(
    kfile: *mut bindings::file,
    events: *mut bindings::ukevent,
    min_events: c_uint,
    max_events: c_uint,
    expires: *const bindings::ktime_t,
    slack: u64,
) -> c_int {
    // SAFETY: The file is valid, and its position is not used.
    let kfile = unsafe { File::from_raw_file(kfile) };
    // SAFETY: By the requirements.
    let deadline = match unsafe { expires.as_ref() } {
        None => Deadline::Never,
        Some(0) => Deadline::Now,
        Some(&expires) => Deadline::At { expires, slack },
    };

    let events = (!events.is_null()).then(|| UserPtr::from_ptr(events.cast()));

    to_int(
        Queue::of(kfile)
            .ok_or(EINVAL)
            .and_then(|queue| queue.get_events(events, min_events, max_events, deadline)),
    )
}

/// Called when the last reference to a watched file is gone.
///
/// # Safety
///
/// `file` must be a file that is being released.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_release(file: *mut bindings::file) {
    if let Some(file) = UncountedFile::from_raw(file) {
        fd::file_released(file);
    }
}

/// Called when a descriptor of a watched file was closed.
///
/// # Safety
///
/// `file` must be a valid file, and `owner`, if it is a descriptor table, alive or on its way out
/// by the caller.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_fd_closed(
    file: *mut bindings::file,
    owner: bindings::fl_owner_t,
) {
    // SAFETY: The file is valid, and its position is not used.
    let file = unsafe { File::from_raw_file(file) };

    fd::fd_closed(file, TableId::from_owner(owner));
}
