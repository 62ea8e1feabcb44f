// SPDX-License-Identifier: GPL-2.0

//! What C calls: the bodies of the system calls, and the hooks in the life of files.

use crate::{
    abi::kevent_params,
    collect::Wait,
    fd,
    files::TableId,
    queue::Queue,
    timer,
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
    let setup = || -> Result<u32> {
        watched::setup()?;
        timer::setup()?;
        Ok(0)
    };

    to_int(setup())
}

/// Called when the realtime clock was set, or the system resumed.
///
/// # Safety
///
/// None.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_clock_was_set() {
    timer::clock_was_set();
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

/// Applies changes, for `kevent_ctl()` and `kevent_getevents()`.
///
/// Returns how many were applied, if any were or if there was no error, and the error in `error`.
///
/// # Safety
///
/// `kfile` must be a valid file, `error` point to a number.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_ctl(
    kfile: *mut bindings::file,
    changes: *mut bindings::ukevent,
    nr: c_uint,
    flags: c_uint,
    error: *mut c_int,
) -> c_int {
    // SAFETY: The file is valid, and its position is not used.
    let kfile = unsafe { File::from_raw_file(kfile) };
    let (applied, result) = match Queue::of(kfile) {
        Some(queue) => queue.change_all(UserPtr::from_ptr(changes.cast()), nr, flags),
        None => (0, Err(EINVAL)),
    };

    // SAFETY: By the requirements.
    unsafe { error.write(to_int(result.map(|()| 0))) };
    to_int(if applied > 0 {
        Ok(applied)
    } else {
        result.map(|()| 0)
    })
}

/// Turns a time limit into a deadline.
fn deadline_of(limit: &bindings::kevent_limit) -> Deadline {
    match limit.expires {
        _ if limit.none => Deadline::Never,
        // A time that is over on any clock.
        ..=0 => Deadline::Now,
        expires => Deadline::At {
            expires,
            slack: limit.slack,
            clock: limit.clock,
        },
    }
}

impl From<&bindings::kevent_getargs> for Wait {
    fn from(args: &bindings::kevent_getargs) -> Self {
        Self {
            events: (!args.events.is_null()).then(|| UserPtr::from_ptr(args.events.cast())),
            min: args.min_events,
            max: args.max_events,
            deadline: deadline_of(&args.timeout),
            patience: (!args.min_wait.none).then(|| deadline_of(&args.min_wait)),
        }
    }
}

/// Returns an error unless `kfile` is a queue and `args` are valid.
///
/// # Safety
///
/// `kfile` must be a valid file, `args` initialised.
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_check(
    kfile: *mut bindings::file,
    args: *const bindings::kevent_getargs,
) -> c_int {
    // SAFETY: The file is valid, and its position is not used.
    let kfile = unsafe { File::from_raw_file(kfile) };
    // SAFETY: By the requirements.
    let wait = Wait::from(unsafe { &*args });

    match Queue::of(kfile) {
        Some(_) => to_int(wait.check().map(|()| 0)),
        None => EINVAL.to_errno(),
    }
}

/// The waiting and collecting of `kevent_getevents()`.
///
/// # Safety
///
/// `kfile` must be a valid file, `args` initialised, and found valid by [`kevent_rs_check`].
#[export]
pub(crate) unsafe extern "C" fn kevent_rs_getevents(
    kfile: *mut bindings::file,
    args: *const bindings::kevent_getargs,
) -> c_int {
    // SAFETY: The file is valid, and its position is not used.
    let kfile = unsafe { File::from_raw_file(kfile) };
    // SAFETY: By the requirements.
    let wait = Wait::from(unsafe { &*args });

    to_int(
        Queue::of(kfile)
            .ok_or(EINVAL)
            .and_then(|queue| queue.get_events(&wait)),
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
