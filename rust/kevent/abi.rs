// SPDX-License-Identifier: GPL-2.0

//! The structures that are shared with user space.
//!
//! `include/uapi/linux/kevent.h` defines and explains them.  Their layout is for ever, so each
//! field is asserted here.

use kernel::{
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
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
    flags: 0, slots: 4, header_size: 8, slots_size: 16, resv: 24);
assert_layout!(kevent_ring, 64,
    compat: 0, incompat: 4, slots: 8, slot_size: 12, flags: 16, resv: 20);
assert_layout!(kevent_slot, 32,
    word: 0, user_data: 8, ident: 16, source: 24, flags: 26, data: 28);
assert_layout!(uapi::ukevent, 64,
    ident: 0, source: 8, op: 10, flags: 12, events: 16, result: 20, user_data: 24,
    data: 32, fflags: 40, resv32: 44, resv: 48);

/// A change or an event, `struct ukevent`.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Ukevent(pub(crate) uapi::ukevent);

// SAFETY: All fields are integers, so any bytes will do.
unsafe impl FromBytes for Ukevent {}
// SAFETY: The fields leave no hole, as their offsets and the size show.
unsafe impl AsBytes for Ukevent {}

impl Ukevent {
    /// Returns whether the fields that no operation uses yet are zero.
    pub(crate) fn reserved_is_zero(&self) -> bool {
        let change = &self.0;

        change.result == 0
            && change.data == 0
            && change.fflags == 0
            && change.resv32 == 0
            && change.resv == [0; 2]
    }
}

/// What a change asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Add,
    Modify,
    Delete,
}

impl TryFrom<u16> for Op {
    type Error = Error;

    fn try_from(op: u16) -> Result<Self> {
        match u32::from(op) {
            uapi::KEVENT_OP_ADD => Ok(Self::Add),
            uapi::KEVENT_OP_MOD => Ok(Self::Modify),
            uapi::KEVENT_OP_DEL => Ok(Self::Delete),
            _ => Err(EINVAL),
        }
    }
}

/// `KEVENT_FD_HINT`: the value is a guess.
pub(crate) const FD_HINT: u32 = 1 << 31;

/// `KEVENT_OFF_SLOTS`: where the slots are mapped, in bytes.
pub(crate) const OFF_SLOTS: usize = 0x1000_0000;
