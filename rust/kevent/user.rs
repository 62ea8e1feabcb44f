// SPDX-License-Identifier: GPL-2.0

//! The source `KEVENT_SOURCE_USER`: events that programs trigger.

use crate::{
    abi::{
        field,
        Asked,
        SourceKind,
        Ukevent,
        EDGE_FLAGS, //
    },
    change::Named,
    events::{
        Pending,
        Update, //
    },
    queue::{
        Effect,
        Queue, //
    },
    source::Source, //
};
use kernel::{
    prelude::*,
    sync::ArcBorrow,
    uapi, //
};

/// What the value of an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// How much was triggered.
    Count,
    /// These flags.
    Flags(u32),
}

impl Kind {
    /// Returns the kind that a change asks for.
    fn of(change: &Ukevent) -> Result<Self> {
        match (change.0.events, change.0.fflags) {
            (uapi::KEVENT_USER_COUNT, 0) => Ok(Self::Count),
            (uapi::KEVENT_USER_FLAGS, flags) if flags & !uapi::KEVENT_NOTE_FFLAGS == 0 => {
                Ok(Self::Flags(flags))
            }
            _ => Err(EINVAL),
        }
    }

    /// Returns what says that something of `value` happened.
    pub(crate) fn update(self, value: u32) -> Update {
        match self {
            Self::Count => Update::Count(value),
            Self::Flags(_) => Update::Value(value),
        }
    }

    /// Does what `change` triggers.
    fn trigger(&mut self, change: &Ukevent) -> Result<Effect> {
        const TRIGGER: u32 = uapi::KEVENT_NOTE_TRIGGER;

        match (self, change.0.data, change.0.fflags) {
            (Self::Count, 1.., 0) => {
                // CAST: The bound is.
                let n = change.0.data.min(uapi::KEVENT_COUNT_MAX.into()) as u32;

                Ok(Effect::Post(Update::Count(n)))
            }
            (Self::Flags(flags), 0, what) => {
                let operand = what & uapi::KEVENT_NOTE_FFLAGS;
                let control = what & uapi::KEVENT_NOTE_FFCTRL;

                if what & !TRIGGER != operand | control {
                    return Err(EINVAL);
                }
                *flags = match control {
                    uapi::KEVENT_NOTE_FFAND => *flags & operand,
                    uapi::KEVENT_NOTE_FFOR => *flags | operand,
                    uapi::KEVENT_NOTE_FFCOPY => operand,
                    _ => *flags,
                };

                // Never zero, which would be no event.
                let update = Update::Value(*flags | TRIGGER);

                Ok(if what & TRIGGER != 0 {
                    Effect::Post(update)
                } else {
                    Effect::Amend(update)
                })
            }
            _ => Err(EINVAL),
        }
    }
}

/// Returns an error unless the fields of a change are valid.
///
/// Returns what it asks for.
pub(crate) fn check(change: &Ukevent) -> Result<(Asked, Kind)> {
    change.only(field::FLAGS | field::EVENTS | field::USER_DATA | field::FFLAGS)?;
    Ok((
        change.terms(EDGE_FLAGS, change.0.events)?,
        Kind::of(change)?,
    ))
}

/// Registers an event.
///
/// # Errors
///
/// Those of [`Queue::insert`].
pub(crate) fn add(
    queue: ArcBorrow<'_, Queue>,
    (terms, enabled): &Asked,
    kind: Kind,
    named: &Named,
) -> Result {
    queue.insert(&named.key, terms, Source::User(kind), *enabled)
}

/// Changes a registration.  What was triggered is reported anew, unless it is of the other kind.
///
/// # Errors
///
/// `ENOENT`: not registered.
pub(crate) fn modify(
    queue: ArcBorrow<'_, Queue>,
    (terms, enabled): &Asked,
    kind: Kind,
    named: &Named,
) -> Result {
    queue.modify(
        &named.key,
        terms,
        *enabled,
        Some(Source::User(kind)),
        |source| match source {
            Source::User(old) => Ok(*old),
            _ => Err(EINVAL),
        },
        |old, pending| match (pending, old, kind) {
            (Pending::Nothing | Pending::Disabled(0), _, _) => None,
            (Pending::Event(value) | Pending::Disabled(value), Kind::Count, Kind::Count) => {
                Some(Update::Count(value))
            }
            (_, Kind::Flags(_), Kind::Flags(flags)) => {
                Some(Update::Value(flags | uapi::KEVENT_NOTE_TRIGGER))
            }
            _ => None,
        },
    )?;
    Ok(())
}

/// Triggers the event that `change` names.  Does not sleep.
///
/// # Errors
///
/// `ENOENT`: not registered.  `EINVAL`: the fields are not those of its kind.
pub(crate) fn trigger(queue: ArcBorrow<'_, Queue>, change: &Ukevent) -> Result {
    change.only(field::DATA | field::FFLAGS)?;

    let named = Named::by(change, SourceKind::User)?;

    queue.trigger(&named.key, |source| match source {
        Source::User(kind) => kind.trigger(change),
        _ => Err(EINVAL),
    })
}
