// SPDX-License-Identifier: GPL-2.0

//! The structures that are shared with user space.
//!
//! `include/uapi/linux/kevent.h` defines and explains them.  Their layout is for ever, so each
//! field is asserted here.

use crate::{
    events::{
        After,
        Payload,
        Terms,
        Trigger, //
    },
    ring, //
};
use kernel::{
    bindings,
    prelude::*,
    uaccess::UserPtr,
    uapi, //
};

pub(crate) use uapi::{
    kevent_params,
    kevent_ring,
    kevent_slot, //
};

macro_rules! assert_layout {
    ($type:ty, $size:literal, $($field:ident: $offset:literal),+ $(,)?) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(core::mem::offset_of!($type, $field) == $offset);)+
        };
    };
}

assert_layout!(kevent_params, 48,
    flags: 0, slots: 4, header_size: 8, slots_size: 16, node: 24, resv32: 28, resv: 32);
assert_layout!(kevent_ring, 64,
    compat: 0, incompat: 4, slots: 8, slot_size: 12, flags: 16, rings: 20, resv: 24);
assert_layout!(kevent_slot, 32,
    word: 0, user_data: 8, ident: 16, source: 24, flags: 26, tag: 28);
assert_layout!(uapi::ukevent, 64,
    ident: 0, source: 8, op: 10, flags: 12, events: 16, result: 20, user_data: 24,
    data: 32, fflags: 40, tag: 44, interval: 48, resv: 56);
assert_layout!(uapi::kevent_getopts, 64,
    size: 0, flags: 4, sigmask: 8, sigsetsize: 16, clock: 20, min_wait: 24, changes: 32,
    nr_changes: 40, change_flags: 44, resv: 48);

// `ring.rs` makes the words without the kernel's headers.
static_assert!(ring::READY == uapi::KEVENT_WORD_READY as u64);
static_assert!(ring::GEN_SHIFT == uapi::KEVENT_WORD_GEN_SHIFT);
static_assert!(ring::GEN_MASK == uapi::KEVENT_WORD_GEN_MASK as u64);
static_assert!(ring::VALUE_SHIFT == uapi::KEVENT_WORD_VALUE_SHIFT);
static_assert!(ring::COUNT_FLAG == !uapi::KEVENT_COUNT_MAX);

/// A change or an event, `struct ukevent`.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Ukevent(pub(crate) uapi::ukevent);

/// How many changes or events a call can be given: as many as fit in 2 GiB, so that a count of them
/// fits in what a system call returns.
pub(crate) const MAX_UKEVENTS: u32 = i32::MAX as u32 / size_of::<Ukevent>() as u32;

/// The fields that say what to report, beside the name of the registration; a set of them.
pub(crate) mod field {
    pub(crate) const NONE: u32 = 0;
    pub(crate) const FLAGS: u32 = 1;
    pub(crate) const EVENTS: u32 = 1 << 1;
    pub(crate) const USER_DATA: u32 = 1 << 2;
    pub(crate) const DATA: u32 = 1 << 3;
    pub(crate) const FFLAGS: u32 = 1 << 4;
    pub(crate) const INTERVAL: u32 = 1 << 5;
    /// Those that no change uses.
    pub(super) const RESULT: u32 = 1 << 6;
    pub(super) const RESV: u32 = 1 << 7;
}

impl Ukevent {
    /// Copies a change from a program.  May sleep.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub(crate) fn copy_from(from: UserPtr) -> Result<Self> {
        let mut change = Self::default();

        // SAFETY: There is room for it.
        if unsafe {
            bindings::kevent_get_change((&raw mut change.0).cast(), from.as_const_ptr().cast())
        } {
            Ok(change)
        } else {
            Err(EFAULT)
        }
    }

    /// Returns whether it is a change that adds, changes and removes nothing.
    pub(crate) fn only_posts(&self) -> bool {
        matches!(
            u32::from(self.0.op),
            uapi::KEVENT_OP_TRIGGER | uapi::KEVENT_OP_WAKE
        )
    }

    /// Returns an error unless all fields are zero but those that are `used` and the name.
    #[inline]
    pub(crate) fn only(&self, used: u32) -> Result {
        let change = &self.0;
        let set = |set: bool, field: u32| u32::from(set) * field;
        let set = set(change.flags != 0, field::FLAGS)
            | set(change.events != 0, field::EVENTS)
            | set(change.user_data != 0, field::USER_DATA)
            | set(change.data != 0, field::DATA)
            | set(change.fflags != 0, field::FFLAGS)
            | set(change.interval != 0, field::INTERVAL)
            | set(change.result != 0, field::RESULT)
            | set(change.resv != 0, field::RESV);

        if set & !used == 0 {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// Returns what the registration that the change asks for says and how, and whether it is
    /// enabled, if all mode flags are `known`.
    pub(crate) fn terms(&self, known: u32, interest: u32) -> Result<Asked> {
        const ONESHOT: u32 = uapi::KEVENT_ONESHOT;
        const DISPATCH: u32 = uapi::KEVENT_DISPATCH;
        const BOTH: u32 = ONESHOT | DISPATCH;

        let flags = self.0.flags;

        if flags & !known != 0 {
            return Err(EINVAL);
        }

        let terms = Terms {
            payload: Payload {
                user_data: self.0.user_data,
                ident: self.0.ident,
                source: self.0.source,
                tag: self.0.tag,
            },
            interest,
            trigger: match flags & (uapi::KEVENT_EDGE | uapi::KEVENT_LEVEL) {
                uapi::KEVENT_EDGE => Trigger::Edge,
                uapi::KEVENT_LEVEL => Trigger::Level,
                _ => return Err(EINVAL),
            },
            after: match flags & BOTH {
                0 => After::Stay,
                DISPATCH => After::Disable,
                ONESHOT => After::End,
                _ => return Err(EINVAL),
            },
            flags: flags & !uapi::KEVENT_DISABLED,
        };

        Ok((terms, flags & uapi::KEVENT_DISABLED == 0))
    }
}

/// What a registration is to say and how, and whether it is to be enabled.
pub(crate) type Asked = (Terms, bool);

/// The mode flags of sources whose events are all in the ring.
pub(crate) const EDGE_FLAGS: u32 =
    uapi::KEVENT_EDGE | uapi::KEVENT_ONESHOT | uapi::KEVENT_DISPATCH | uapi::KEVENT_DISABLED;

/// What a change asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Add,
    Modify,
    Delete,
    Set,
    Enable,
    Disable,
    Trigger,
    Move,
    Grow,
    Wake,
}

impl TryFrom<u16> for Op {
    type Error = Error;

    fn try_from(op: u16) -> Result<Self> {
        match u32::from(op) {
            uapi::KEVENT_OP_ADD => Ok(Self::Add),
            uapi::KEVENT_OP_MOD => Ok(Self::Modify),
            uapi::KEVENT_OP_DEL => Ok(Self::Delete),
            uapi::KEVENT_OP_SET => Ok(Self::Set),
            uapi::KEVENT_OP_ENABLE => Ok(Self::Enable),
            uapi::KEVENT_OP_DISABLE => Ok(Self::Disable),
            uapi::KEVENT_OP_TRIGGER => Ok(Self::Trigger),
            uapi::KEVENT_OP_MOVE => Ok(Self::Move),
            uapi::KEVENT_OP_GROW => Ok(Self::Grow),
            uapi::KEVENT_OP_WAKE => Ok(Self::Wake),
            _ => Err(EINVAL),
        }
    }
}

/// What a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    Queue,
    Fd,
    Timer,
    User,
}

impl TryFrom<u16> for SourceKind {
    type Error = Error;

    fn try_from(source: u16) -> Result<Self> {
        match u32::from(source) {
            uapi::KEVENT_SOURCE_QUEUE => Ok(Self::Queue),
            uapi::KEVENT_SOURCE_FD => Ok(Self::Fd),
            uapi::KEVENT_SOURCE_TIMER => Ok(Self::Timer),
            uapi::KEVENT_SOURCE_USER => Ok(Self::User),
            _ => Err(EINVAL),
        }
    }
}

/// `KEVENT_OFF_SLOTS(1)`: where the slots of a ring with one slot are mapped, in bytes; the place
/// of others is that many times further.
pub(crate) const OFF_SLOTS: usize = 0x1_0000;
