// SPDX-License-Identifier: GPL-2.0

//! What a registration is of, and by what it is named.

use crate::{
    events::{
        Payload,
        Update, //
    },
    fd,
    home::Home,
    timer,
    timer::Timer,
    user, //
};
use core::ptr;
use kernel::{
    bindings,
    fs::{
        File,
        UncountedFile, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    uapi, //
};

/// What names a registration.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    source: u16,
    tag: u32,
    ident: u64,
    file: Option<UncountedFile>,
    hash: u32,
}

impl Key {
    /// Makes the key of a registration that says `payload`, and is of `file` if it is of one.
    pub(crate) fn new(payload: &Payload, file: Option<UncountedFile>) -> Self {
        Self {
            source: payload.source,
            tag: payload.tag,
            ident: payload.ident,
            file,
            hash: hash(payload),
        }
    }

    /// Returns a number that registrations of other keys hardly have.
    pub(crate) fn hash(&self) -> u32 {
        self.hash
    }

    /// Returns whether it names a registration of `source` that says `payload`.
    pub(crate) fn names(&self, payload: &Payload, source: &Source) -> bool {
        self.ident == payload.ident
            && self.tag == payload.tag
            && self.source == payload.source
            && self.file == source.file()
    }
}

/// Returns the hash for the name of a registration.
///
/// A descriptor is its own hash: descriptors are small and dense.  A program that picks them so
/// that they collide gets no more into one bucket than the square root of their limit: of `n` that
/// are registered, of `l` at most, neither more than `n` nor than `l / n` are there; times the
/// number of processes that register descriptors of their own in the same queue.  Other names are
/// up to the program, which cannot predict their hashes.
fn hash(payload: &Payload) -> u32 {
    match u32::try_from(payload.ident) {
        Ok(fd) if payload.tag == 0 && u32::from(payload.source) == uapi::KEVENT_SOURCE_FD => fd,
        // SAFETY: It can be called with any values, in any context.
        _ => unsafe { bindings::kevent_hash(payload.ident, payload.tag, payload.source.into()) },
    }
}

/// What a registration is of.
#[derive(Clone)]
pub(crate) enum Source {
    Fd(Arc<fd::Watch>),
    Timer(Arc<Timer>),
    User(user::Kind),
}

impl Source {
    /// Returns the key of a registration of this that says `payload`.
    pub(crate) fn key(&self, payload: &Payload) -> Key {
        Key::new(payload, self.file())
    }

    /// Returns the file, if it is of one.
    fn file(&self) -> Option<UncountedFile> {
        match self {
            Self::Fd(watch) => Some(watch.handler().file()),
            Self::Timer(_) => None,
            Self::User(_) => None,
        }
    }

    /// Returns where the registration is, if its source can be active by itself.
    #[inline]
    pub(crate) fn home(&self) -> Option<&Home> {
        match self {
            Self::Fd(watch) => Some(watch.handler().home()),
            Self::Timer(timer) => Some(timer.handler().home()),
            Self::User(_) => None,
        }
    }

    /// Returns whether `home` says where the registration is.
    #[inline]
    pub(crate) fn is_at(&self, home: &Home) -> bool {
        self.home().is_some_and(|here| ptr::eq(here, home))
    }

    /// Returns whether `other` is of the same registration, if that has a source that can be active
    /// by itself.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fd(one), Self::Fd(other)) => Arc::ptr_eq(one, other),
            (Self::Timer(one), Self::Timer(other)) => Arc::ptr_eq(one, other),
            (Self::User(_), Self::User(_)) => true,
            _ => false,
        }
    }

    /// Returns what says that something of `value` happened.
    pub(crate) fn update(&self, value: u32) -> Update {
        match self {
            Self::Fd(_) => Update::Bits(value),
            Self::Timer(_) => Update::Count(value),
            Self::User(kind) => kind.update(value),
        }
    }

    /// Returns whether what happened must be remembered, because the source does not know it any
    /// more.
    pub(crate) fn counts(&self) -> bool {
        !matches!(self, Self::Fd(_))
    }

    /// Returns whether the registration can be ended: nobody is still making it.
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Self::Fd(watch) => watch.handler().is_complete(),
            Self::Timer(_) => true,
            Self::User(_) => true,
        }
    }

    /// Takes a reference to the file, if it is of one.
    ///
    /// Returns [`None`] if the file is being released.
    ///
    /// # Safety
    ///
    /// The registration must be in its queue's table, whose lock must be held.
    pub(crate) unsafe fn pin(&self) -> Option<Option<ARef<File>>> {
        match self {
            // SAFETY: By the requirements.
            Self::Fd(watch) => unsafe { watch.handler().pin() }.map(Some),
            Self::Timer(_) => Some(None),
            Self::User(_) => Some(None),
        }
    }

    /// Returns whether its descriptor was closed, while it was being moved.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Fd(watch) => watch.handler().is_closed(),
            Self::Timer(_) => false,
            Self::User(_) => false,
        }
    }

    /// Ends the registration, which was just moved, if its descriptor was closed meanwhile.
    ///
    /// Its file, if it is of one, must be referenced by the caller.
    ///
    /// # Errors
    ///
    /// `EBADF`: it was closed.
    pub(crate) fn end_if_closed(&self) -> Result {
        match self {
            Self::Fd(watch) => fd::end_if_closed(watch),
            Self::Timer(_) => Ok(()),
            Self::User(_) => Ok(()),
        }
    }

    /// Makes the source of a registration that the caller took from its queue inactive.  May sleep.
    ///
    /// If it is a file, that must be valid: referenced by the caller, or in its release.
    pub(crate) fn finish(self) {
        match self {
            Self::Fd(watch) => fd::finish(watch),
            Self::Timer(timer) => timer::finish(&timer),
            Self::User(_) => {}
        }
    }
}
