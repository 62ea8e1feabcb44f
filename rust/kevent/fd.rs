// SPDX-License-Identifier: GPL-2.0

//! The source `KEVENT_SOURCE_FD`: readiness of files.
//!
//! # Who ends a registration
//!
//! A registration does not hold its file.  It ends by `kevent_ctl()`, by the claim of its only
//! event, if it is one-shot, by the closing of its descriptor, by the release of its file or by the
//! release of its queue, and these can race.  The first to take it from the queue's table, under
//! the queue's lock, has to disarm the watch; to the others it is gone.  Disarming takes locks in
//! the file, so the file must be valid meanwhile:
//!
//! - `kevent_ctl()` and the closing of a descriptor have a reference to the file;
//! - the release of the queue, and whoever removes one-shot registrations that have ended, take
//!   one, and if they cannot, because the last one is gone, leave the registration to the release
//!   of the file;
//! - the release of the file thus runs when none of the others is in the middle of it.
//!
//! A watch is put in the table of [`crate::watched`] after it was armed, so whoever finds it there
//! may disarm it.
//!
//! Each pair, and what keeps one from doing what the other does, or from missing it:
//!
//! ```text
//! any two of those that end it            the queue's lock: the second does not find it
//! release of the queue, and ctl, move     these have a reference to the queue
//! release of the file, and ctl, move      these have a reference to the file
//! release of the file, and release of     a reference to the file, taken under the lock; who gets
//!   the queue, end of a one-shot            none leaves it to the release of the file
//! add, and ctl, move                      the queue's mutex
//! add, and end of a one-shot, release     `complete`: the one-shot is left for later; and add has
//!   of the queue                            a reference to the queue
//! add, and closing, release of the file   add marks the file, then looks whether its descriptor is
//!                                           still there; and it has a reference to the file
//! move, and closing                       L and M
//! ```
//!
//! While a registration is moved to another queue it is in neither.  The closing of its descriptor
//! then finds nothing to take; it leaves word in `closed`, which whoever moves it looks at when the
//! registration has its new place:
//!
//! ```text
//! close                                 mover
//!
//! (L) store `closed`, full barrier          lock the new queue
//!     look for it at its place          (M) store where it is, full barrier
//!                                           look at `closed`
//!                                           put it there, disabled if it is closed
//!                                           unlock the new queue, end it if it is closed
//! ```
//!
//! Store buffering: one of the two ends it, and the closing waits for that, or the registration
//! reports nothing in its new place.  Without either of the barriers both could miss the other, and
//! the registration would outlive its descriptor, and its file.

use crate::{
    abi::{
        field,
        Asked,
        Op,
        Ukevent, //
    },
    change::Named,
    events::{
        Payload,
        Update, //
    },
    files,
    files::TableId,
    home::Home,
    queue::Queue,
    source::{
        Key,
        Source, //
    },
    watched, //
};
use core::ptr;
use kernel::{
    fs::{
        File,
        UncountedFile, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        poll_watch::{
            can_poll,
            mask,
            poll,
            PollHandler,
            PollWatch,
            Sharing, //
        },
        Arc,
        ArcBorrow, //
    },
    uapi, //
};

/// What is reported whether asked for or not.
const ALWAYS: u32 = mask::ERR | mask::HUP;

/// What a registration is interested in beside what it asked for.
const REPORTED: u32 = ALWAYS | uapi::KEVENT_FD_HINT;

/// The mode flags of registrations of files.
const FLAGS: u32 = uapi::KEVENT_EDGE
    | uapi::KEVENT_LEVEL
    | uapi::KEVENT_ONESHOT
    | uapi::KEVENT_DISPATCH
    | uapi::KEVENT_DISABLED
    | uapi::KEVENT_EXCLUSIVE
    | uapi::KEVENT_ROUND_ROBIN
    | uapi::KEVENT_ALWAYS_READY;

/// What an exclusive registration can ask for.
const EXCLUSIVE_BITS: u32 = mask::IN | mask::OUT | mask::ERR | mask::HUP;

/// The watch on the file of a registration.
pub(crate) type Watch = PollWatch<FdSource>;

// With the count of its references, in a slab of three cache lines.
static_assert!(size_of::<Watch>() <= 192 - size_of::<usize>());

/// A registration of a file.
pub(crate) struct FdSource {
    home: Home,
    fd: u32,
    tag: u32,
    file: UncountedFile,
    sharing: Sharing,
    table: TableId,
    /// Whether the watch is in the table of watches, so that the registration can be ended.
    complete: Atomic<bool>,
    /// Whether the descriptor was closed, or the file is being released.
    closed: Atomic<bool>,
}

impl PollHandler for FdSource {
    #[inline]
    fn woken(&self, events: u32) -> bool {
        let bits = match events {
            // It does not say what happened: anything can have.  Errors are not made up.
            0 => !ALWAYS,
            events => events & mask::ALL,
        };

        // SAFETY: The lock of a wait queue is held, a spinlock.
        let posted = unsafe {
            self.home.post_in_rcu(
                Update::Bits(bits),
                events & mask::URING_WAKE,
                |source| matches!(source, Source::Fd(watch) if ptr::eq(watch.handler(), self)),
            )
        };

        posted.is_some_and(|posted| posted.woken)
    }
}

impl FdSource {
    /// Returns the file.
    pub(crate) fn file(&self) -> UncountedFile {
        self.file
    }

    /// Returns the table of the descriptor.
    pub(crate) fn table(&self) -> TableId {
        self.table
    }

    /// Returns where the registration is.
    #[inline]
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Returns whether [`add`] is done with the watch, so that it can be disarmed.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Acquire)
    }

    /// Returns whether the descriptor was closed; see (M).
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Takes a reference to the file, unless it is being released.
    ///
    /// # Safety
    ///
    /// The registration must be in its queue's table, whose lock must be held.
    pub(crate) unsafe fn pin(&self) -> Option<ARef<File>> {
        // SAFETY: The release of the file takes the registration from the table before it is over.
        // All that is done with the file is to poll it.
        unsafe { self.file.pin() }
    }

    fn key(&self) -> Key {
        let payload = Payload {
            user_data: 0,
            ident: self.fd.into(),
            // CAST: It is a small number.
            source: uapi::KEVENT_SOURCE_FD as u16,
            tag: self.tag,
        };

        Key::new(&payload, Some(self.file))
    }
}

/// Returns an error unless the fields of a change by `op` are valid.
///
/// Returns what it asks for.
pub(crate) fn check(change: &Ukevent, op: Op) -> Result<Asked> {
    const EXCLUSIVE: u32 = uapi::KEVENT_EXCLUSIVE;
    const TURNS: u32 = uapi::KEVENT_ROUND_ROBIN;
    const BOTH: u32 = EXCLUSIVE | TURNS;

    change.only(field::FLAGS | field::EVENTS | field::USER_DATA)?;

    let asked = change.terms(FLAGS, change.0.events | REPORTED)?;

    if change.0.events & !mask::ALL != 0 {
        return Err(EINVAL);
    }
    match change.0.flags & BOTH {
        0 => Ok(asked),
        EXCLUSIVE | BOTH if op == Op::Add && change.0.events & !EXCLUSIVE_BITS == 0 => Ok(asked),
        _ => Err(EINVAL),
    }
}

/// Returns what `events` of the registration of `file` are so now.
///
/// A hint is made precise if it can be.  May sleep.
pub(crate) fn look_again(file: &File, events: u32, interest: u32) -> u32 {
    match poll(file, interest & mask::ALL) & interest {
        // Signalfds look at the signals of whoever polls, who need not be the one who registered.
        0 if events & uapi::KEVENT_FD_HINT != 0 => events,
        ready => ready,
    }
}

/// Reports what `file` is ready for.  May sleep.
pub(crate) fn look(watch: &Watch, file: &File, interest: u32) {
    report(watch, poll(file, interest & mask::ALL), interest);
}

/// Reports what of `ready` is of interest, if anything is.
fn report(watch: &Watch, ready: u32, interest: u32) {
    match ready & interest & mask::ALL {
        0 => {}
        ready => {
            watch.handler().home.post(Update::Bits(ready), 0);
        }
    }
}

/// Registers a descriptor.
///
/// Must be called with the queue's mutex held.  May sleep.
///
/// # Errors
///
/// `ELOOP`: an event queue.  `EPERM`: a file that cannot be polled.  `EBADF`: the descriptor was
/// closed.  Those of [`Queue::insert`].
pub(crate) fn add(queue: ArcBorrow<'_, Queue>, asked: &Asked, named: &Named) -> Result {
    let (terms, enabled) = asked;
    let fd = u32::try_from(terms.payload.ident).map_err(|_| EBADF)?;
    let file = named.file.as_deref().ok_or(EBADF)?;

    if Queue::of(file).is_some() || files::is_aggregator(file) {
        return Err(ELOOP);
    }
    if !can_poll(file) && terms.flags & uapi::KEVENT_ALWAYS_READY == 0 {
        return Err(EPERM);
    }

    let sharing = if terms.flags & uapi::KEVENT_EXCLUSIVE == 0 {
        Sharing::All
    } else if terms.flags & uapi::KEVENT_ROUND_ROBIN == 0 {
        Sharing::First
    } else {
        Sharing::Turns
    };
    let room = watched::Reservation::new()?;
    let watch = Arc::pin_init(
        PollWatch::new(
            FdSource {
                home: Home::new(queue.into()),
                fd,
                tag: terms.payload.tag,
                file: UncountedFile::new(file),
                sharing,
                table: TableId::current(),
                complete: Atomic::new(false),
                closed: Atomic::new(false),
            },
            sharing,
        ),
        GFP_KERNEL_ACCOUNT,
    )?;

    queue.insert(&named.key, terms, Source::Fd(watch.clone()), *enabled)?;

    // SAFETY: It is a new watch.  It is disarmed by whoever takes it from the queue's table; see
    // the top of this file.  Until it is complete that can only be this function: the mutex is
    // held, and a one-shot registration whose event is claimed already is left to end later.
    let ready = match unsafe { PollWatch::arm(&watch, file, terms.interest & mask::ALL) } {
        Ok(ready) => ready,
        Err(error) => {
            queue.take_home(&named.key, &watch.handler().home);
            // SAFETY: The file is referenced, and nobody else has found the watch.
            unsafe { PollWatch::disarm(watch) };
            return Err(error);
        }
    };

    room.insert(watch.clone());
    watch.handler().complete.store(true, Release);
    files::mark_watched(file);

    // The descriptor can have been closed before the file was marked.
    //
    // SAFETY: It is the table of the current task.
    if !unsafe { watch.handler().table.refers_to(fd, file) } {
        end(&watch);
        return Err(EBADF);
    }
    report(&watch, ready, terms.interest);
    Ok(())
}

/// Changes the registration of a descriptor.
///
/// Must be called with the queue's mutex held.  May sleep.
///
/// # Errors
///
/// `ENOENT`: not registered.  `ENOSPC`: no slot left to reserve.  `EINVAL`: it is exclusive.
pub(crate) fn modify(queue: ArcBorrow<'_, Queue>, asked: &Asked, named: &Named) -> Result {
    let (terms, enabled) = asked;
    let file = named.file.as_deref().ok_or(EBADF)?;
    let watch = queue.modify(
        &named.key,
        terms,
        *enabled,
        None,
        |source| match source {
            Source::Fd(watch) if watch.handler().sharing == Sharing::All => Ok(watch.clone()),
            _ => Err(EINVAL),
        },
        |_, _| None,
    )?;

    // What happened before is found here; what happens from now on finds the new interest, which
    // was set under the lock that the callback takes.
    look(&watch, file, terms.interest);
    Ok(())
}

/// Ends a registration if nobody else has.
///
/// The file must be valid: referenced by the caller, or in its release.
pub(crate) fn end(watch: &Arc<Watch>) {
    let source = watch.handler();
    let key = source.key();

    // (L)
    source.closed.xchg(true, Full);
    loop {
        let queue = source.home.queue();

        if queue.take_home(&key, &source.home) {
            return finish(watch.clone());
        }
        // Unless it was moved, somebody else has ended it, or whoever moves it will.
        if source.home.is_in(&queue) {
            return;
        }
    }
}

/// Ends the registration of `watch`, which was just moved, if its descriptor was closed meanwhile.
///
/// The file must be referenced by the caller.
///
/// # Errors
///
/// `EBADF`: it was closed.
pub(crate) fn end_if_closed(watch: &Arc<Watch>) -> Result {
    // (M) was the full barrier of `Home::settle`.
    if watch.handler().is_closed() {
        end(watch);
        return Err(EBADF);
    }
    Ok(())
}

/// Disarms the watch of a registration that the caller took from its queue.
///
/// The file must be valid: referenced by the caller, or in its release.
pub(crate) fn finish(watch: Arc<Watch>) {
    watched::remove(&watch);
    // SAFETY: The watch was armed before it could be found.  The caller alone took it from the
    // queue.
    unsafe { PollWatch::disarm(watch) };
}

/// Ends the registrations of a file that is being released.
pub(crate) fn file_released(file: UncountedFile) {
    watched::for_each(file, None, |watch| end(&watch));
}

/// Ends the registrations of those descriptors of `file` in `table` that do not refer to it any
/// more.
pub(crate) fn fd_closed(file: &File, table: TableId) {
    watched::for_each(UncountedFile::new(file), Some(table), |watch| {
        // SAFETY: The table is the one in which a descriptor was just closed.
        if !unsafe { table.refers_to(watch.handler().fd, file) } {
            end(&watch);
        }
    });
}
