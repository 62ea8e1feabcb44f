// SPDX-License-Identifier: GPL-2.0

//! The source `KEVENT_SOURCE_FD`: readiness of files.
//!
//! # Who ends a registration
//!
//! A registration does not hold its file.  It ends by `kevent_ctl()`, by the closing of its
//! descriptor, by the release of its file or by the release of its queue, and these can race.  The
//! first to take it from the queue's table, under the queue's lock, has to disarm the watch; to the
//! others it is gone.  Disarming takes locks in the file, so the file must be valid meanwhile:
//!
//! - `kevent_ctl()` and the closing of a descriptor have a reference to the file;
//! - the release of the queue takes one, and if it cannot, because the last one is gone, leaves the
//!   registration to the release of the file;
//! - the release of the file thus runs when none of the others is in the middle of it.
//!
//! A watch is put in the table of [`crate::watched`] after it was armed, so whoever finds it there
//! may disarm it.

use crate::{
    abi::{
        Ukevent, //
        FD_HINT,
    },
    files,
    files::TableId,
    queue::{
        Key,
        Queue, //
    },
    ring::Payload,
    watched, //
};
use kernel::{
    fs::{
        File,
        LocalFile,
        UncountedFile, //
    },
    prelude::*,
    rbtree::RBTreeNodeReservation,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        poll_watch::{
            can_poll,
            mask,
            poll,
            PollHandler,
            PollWatch, //
        },
        Arc,
        ArcBorrow, //
    },
    uapi, //
};

/// What is reported whether asked for or not.
pub(crate) const ALWAYS: u32 = mask::ERR | mask::HUP;

/// The watch on the file of a registration.
pub(crate) type Watch = PollWatch<FdSource>;

/// A registration of a file.
pub(crate) struct FdSource {
    queue: Arc<Queue>,
    /// The registration's id in the queue; set before the watch is armed.
    id: Atomic<u32>,
    file: UncountedFile,
    fd: u32,
    table: TableId,
}

impl PollHandler for FdSource {
    #[inline]
    fn woken(&self, events: u32) {
        let bits = match events {
            // It does not say what happened: anything can have.  Errors are not made up.
            0 => !ALWAYS,
            events => events & mask::ALL,
        };

        self.queue
            .post(self.id.load(Relaxed), bits, events & mask::URING_WAKE);
    }
}

impl FdSource {
    /// Returns the file.
    pub(crate) fn file(&self) -> UncountedFile {
        self.file
    }

    /// Sets the registration's id.
    pub(crate) fn set_id(&self, id: u32) {
        self.id.store(id, Relaxed);
    }

    /// Takes a reference to the file, unless it is being released.
    ///
    /// # Safety
    ///
    /// The registration must be in its queue's table, whose lock must be held.
    pub(crate) unsafe fn pin(&self) -> Option<ARef<File>> {
        // SAFETY: The release of the file takes the registration from the table before it is over.
        unsafe { self.file.pin() }
    }

    fn key(&self) -> Key {
        Key::new(uapi::KEVENT_SOURCE_FD, self.fd.into(), self.file)
    }
}

/// Returns the file of the descriptor that a change is about.
fn file_of(change: &Ukevent) -> Result<(u32, ARef<File>)> {
    let fd = u32::try_from(change.0.ident).map_err(|_| EBADF)?;
    let file = LocalFile::fget(fd)?;

    // SAFETY: The system calls of kevent do not call `fdget_pos()`.
    Ok((fd, unsafe { LocalFile::assume_no_fdget_pos(file) }))
}

/// Returns the mask of what a change asks to report.
fn interest_of(change: &Ukevent) -> Result<u32> {
    if change.0.flags != uapi::KEVENT_EDGE || change.0.events & !mask::ALL != 0 {
        return Err(EINVAL);
    }
    Ok(change.0.events | ALWAYS)
}

/// Returns what `events` of the registration of `file` are so now.
///
/// A hint is made precise if it can be.  May sleep.
pub(crate) fn look_again(file: &File, events: u32, interest: u32) -> u32 {
    match poll(file, interest) & interest {
        // Signalfds look at the signals of whoever polls, who need not be the one who registered.
        0 if events & FD_HINT != 0 => events,
        ready => ready,
    }
}

/// Registers the descriptor that `change` names.
///
/// Must be called with the queue's mutex held.  May sleep.
///
/// # Errors
///
/// `EBADF`: not an open descriptor.  `ELOOP`: an event queue.  `EPERM`: a file that cannot be
/// polled.  `EEXIST`: already registered.  `ENOSPC`: no slot left to reserve.  `EINVAL`, `ENOMEM`.
pub(crate) fn add(queue: ArcBorrow<'_, Queue>, change: &Ukevent) -> Result {
    let interest = interest_of(change)?;
    let (fd, file) = file_of(change)?;

    if Queue::of(&file).is_some() || files::is_aggregator(&file) {
        return Err(ELOOP);
    }
    if !can_poll(&file) {
        return Err(EPERM);
    }

    let node = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
    let room = watched::Reservation::new()?;
    let watch = Arc::pin_init(
        PollWatch::new(FdSource {
            queue: queue.into(),
            id: Atomic::new(u32::MAX),
            file: UncountedFile::new(&file),
            fd,
            table: TableId::current(),
        }),
        GFP_KERNEL_ACCOUNT,
    )?;
    let key = watch.handler().key();
    let payload = Payload {
        user_data: change.0.user_data,
        ident: fd.into(),
        source: change.0.source,
    };
    let id = queue.insert(key, payload, interest, watch.clone(), node)?;

    // SAFETY: It is a new watch.  It is disarmed by whoever takes it from the queue's table; see
    // the top of this file.  Until it is in the table of watches that can only be this function.
    let ready = match unsafe { PollWatch::arm(&watch, &file, interest) } {
        Ok(ready) => ready,
        Err(error) => {
            queue.take(key);
            // SAFETY: The file is referenced, and nobody else has found the watch.
            unsafe { PollWatch::disarm(watch) };
            return Err(error);
        }
    };

    room.insert(watch.clone());
    files::mark_watched(&file);

    // The descriptor can have been closed before the file was marked.
    //
    // SAFETY: It is the table of the current task.
    if !unsafe { watch.handler().table.refers_to(fd, &file) } {
        end(&watch);
        return Err(EBADF);
    }
    queue.post(id, ready & mask::ALL, 0);
    Ok(())
}

/// Changes the registration of the descriptor that `change` names.
///
/// Must be called with the queue's mutex held.  May sleep.
///
/// # Errors
///
/// `EBADF`: not an open descriptor.  `ENOENT`: not registered.  `EINVAL`.
pub(crate) fn modify(queue: ArcBorrow<'_, Queue>, change: &Ukevent) -> Result {
    let interest = interest_of(change)?;
    let (fd, file) = file_of(change)?;
    let key = Key::new(uapi::KEVENT_SOURCE_FD, fd.into(), UncountedFile::new(&file));
    let id = queue.modify(key, interest, change.0.user_data)?;

    // What happened before is found here; what happens from now on finds the new interest, which
    // was set under the lock that the callback takes.
    queue.post(id, poll(&file, interest) & mask::ALL, 0);
    Ok(())
}

/// Ends the registration of the descriptor that `change` names.
///
/// # Errors
///
/// `EBADF`: not an open descriptor.  `ENOENT`: not registered.  `EINVAL`.
pub(crate) fn delete(queue: ArcBorrow<'_, Queue>, change: &Ukevent) -> Result {
    if change.0.flags != 0 || change.0.events != 0 || change.0.user_data != 0 {
        return Err(EINVAL);
    }

    let (fd, file) = file_of(change)?;
    let key = Key::new(uapi::KEVENT_SOURCE_FD, fd.into(), UncountedFile::new(&file));
    let watch = queue.take(key).ok_or(ENOENT)?;

    // The file is referenced.
    finish(watch);
    Ok(())
}

/// Ends a registration if nobody else has.
///
/// The file must be valid: referenced by the caller, or in its release.
pub(crate) fn end(watch: &Arc<Watch>) {
    let source = watch.handler();

    if source.queue.take_watch(source.key(), watch) {
        finish(watch.clone());
    }
}

/// Disarms the watch of a registration that the caller took from its queue.
///
/// The file must be valid: referenced by the caller, or in its release.
fn finish(watch: Arc<Watch>) {
    watched::remove(&watch);
    // SAFETY: The watch was armed before it could be found.  The caller alone took it from the
    // queue.
    unsafe { PollWatch::disarm(watch) };
}

/// Ends the registrations of a file that is being released.
pub(crate) fn file_released(file: UncountedFile) {
    watched::for_each(file, |watch| end(&watch));
}

/// Ends the registrations of those descriptors of `file` in `table` that do not refer to it any
/// more.
pub(crate) fn fd_closed(file: &File, table: TableId) {
    watched::for_each(UncountedFile::new(file), |watch| {
        let source = watch.handler();

        // SAFETY: The table is the one in which a descriptor was just closed.
        if source.table == table && !unsafe { table.refers_to(source.fd, file) } {
            end(&watch);
        }
    });
}
