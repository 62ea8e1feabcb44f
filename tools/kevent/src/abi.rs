// SPDX-License-Identifier: MIT
//! What `<linux/kevent.h>` defines: numbers, flags and structures, as they are.
//!
//! The header is the contract. The assertions at the end of this file fix the
//! layout; the tests compare the numbers with the header.

#![allow(missing_docs, reason = "documented in <linux/kevent.h>")]

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

pub const SYS_KEVENT_INIT: i64 = 473;
pub const SYS_KEVENT_CTL: i64 = 474;
pub const SYS_KEVENT_GETEVENTS: i64 = 475;

pub const KEVENT_INIT_OVERCOMMIT: u32 = 1 << 0;
pub const KEVENT_INIT_NODE: u32 = 1 << 1;
pub const KEVENT_INIT_LIFO: u32 = 1 << 2;

pub const KEVENT_MAX_SLOTS: u32 = 1 << 16;
pub const KEVENT_OFF_HEADER: u64 = 0;

/// `KEVENT_OFF_SLOTS()`: where a set with that many slots is mapped.
pub const fn off_slots(slots: u32) -> u64 {
    0x1_0000 * slots as u64
}

pub const KEVENT_RING_OVERFLOW: u32 = 1 << 0;
pub const KEVENT_RING_LEVEL_READY: u32 = 1 << 1;
pub const KEVENT_RING_INCOMPAT_GROWN: u32 = 1 << 0;

pub const KEVENT_WORD_READY: u64 = 1;
pub const KEVENT_WORD_GEN_SHIFT: u32 = 1;
pub const KEVENT_WORD_GEN_MASK: u32 = 0x7fff_ffff;
pub const KEVENT_WORD_VALUE_SHIFT: u32 = 32;

pub const KEVENT_SOURCE_QUEUE: u16 = 0;
pub const KEVENT_SOURCE_FD: u16 = 1;
pub const KEVENT_SOURCE_TIMER: u16 = 2;
pub const KEVENT_SOURCE_USER: u16 = 3;

pub const KEVENT_FD_HINT: u32 = 1 << 31;

pub const KEVENT_TIMER_CLOCK: u32 = 0xff;
pub const KEVENT_TIMER_ABS: u32 = 1 << 8;
pub const KEVENT_TIMER_CANCEL_ON_SET: u32 = 1 << 9;
pub const KEVENT_TIMER_CANCELED: u32 = 1 << 31;

pub const KEVENT_USER_COUNT: u32 = 1 << 0;
pub const KEVENT_USER_FLAGS: u32 = 1 << 1;

pub const KEVENT_NOTE_FFLAGS: u32 = 0x00ff_ffff;
pub const KEVENT_NOTE_TRIGGER: u32 = 0x0100_0000;
pub const KEVENT_NOTE_FFNOP: u32 = 0x0000_0000;
pub const KEVENT_NOTE_FFAND: u32 = 0x4000_0000;
pub const KEVENT_NOTE_FFOR: u32 = 0x8000_0000;
pub const KEVENT_NOTE_FFCOPY: u32 = 0xc000_0000;
pub const KEVENT_NOTE_FFCTRL: u32 = 0xc000_0000;

pub const KEVENT_COUNT_MAX: u32 = 0x7fff_ffff;

pub const KEVENT_OP_ADD: u16 = 1;
pub const KEVENT_OP_MOD: u16 = 2;
pub const KEVENT_OP_DEL: u16 = 3;
pub const KEVENT_OP_SET: u16 = 4;
pub const KEVENT_OP_ENABLE: u16 = 5;
pub const KEVENT_OP_DISABLE: u16 = 6;
pub const KEVENT_OP_TRIGGER: u16 = 7;
pub const KEVENT_OP_MOVE: u16 = 8;
pub const KEVENT_OP_GROW: u16 = 9;
pub const KEVENT_OP_WAKE: u16 = 10;

pub const KEVENT_EDGE: u32 = 1 << 0;
pub const KEVENT_LEVEL: u32 = 1 << 1;
pub const KEVENT_ONESHOT: u32 = 1 << 2;
pub const KEVENT_DISPATCH: u32 = 1 << 3;
pub const KEVENT_DISABLED: u32 = 1 << 4;
pub const KEVENT_EXCLUSIVE: u32 = 1 << 5;
pub const KEVENT_ROUND_ROBIN: u32 = 1 << 6;
pub const KEVENT_ALWAYS_READY: u32 = 1 << 7;

pub const KEVENT_CTL_RESULTS: u32 = 1 << 0;

pub const KEVENT_GET_ABSTIME: u32 = 1 << 0;

/// `struct kevent_params`: argument of `kevent_init()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    pub flags: u32,
    pub slots: u32,
    pub header_size: u64,
    pub slots_size: u64,
    pub node: u32,
    pub resv32: u32,
    pub resv: [u64; 2],
}

/// `struct ukevent`: a change for `kevent_ctl()`, an event of
/// `kevent_getevents()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ukevent {
    pub ident: u64,
    pub source: u16,
    pub op: u16,
    pub flags: u32,
    pub events: u32,
    pub result: i32,
    pub user_data: u64,
    pub data: u64,
    pub fflags: u32,
    pub tag: u32,
    pub interval: u64,
    pub resv: u64,
}

/// `struct kevent_getopts`: options of `kevent_getevents()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetOpts {
    pub size: u32,
    pub flags: u32,
    pub sigmask: u64,
    pub sigsetsize: u32,
    pub clock: u32,
    pub min_wait: u64,
    pub changes: u64,
    pub nr_changes: u32,
    pub change_flags: u32,
    pub resv: [u64; 2],
}

/// `struct kevent_ring`: the header of the ring, which the kernel writes.
///
/// Atomics all through, so that a reference to it may be held while the kernel
/// writes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct RingHeader {
    pub compat: AtomicU32,
    pub incompat: AtomicU32,
    pub slots: AtomicU32,
    pub slot_size: AtomicU32,
    pub flags: AtomicU32,
    pub rings: AtomicU32,
    pub resv: [AtomicU32; 10],
}

/// `struct kevent_slot`: an event in the ring.
///
/// Atomics all through, because the kernel and other consumers write it at any
/// time; what was read from it means something only after the word was claimed.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Slot {
    pub word: AtomicU64,
    pub user_data: AtomicU64,
    pub ident: AtomicU64,
    pub source: AtomicU16,
    pub flags: AtomicU16,
    pub tag: AtomicU32,
}

/// The value of an event: `KEVENT_WORD_VALUE()`.
pub const fn word_value(word: u64) -> u32 {
    (word >> KEVENT_WORD_VALUE_SHIFT) as u32
}

/// The lap in which the slot was posted, modulo 2^31: `KEVENT_WORD_GEN()`.
pub const fn word_gen(word: u64) -> u32 {
    (word >> KEVENT_WORD_GEN_SHIFT) as u32 & KEVENT_WORD_GEN_MASK
}

/// What a consumer writes to claim a word: `KEVENT_WORD_CLAIMED()`.
pub const fn word_claimed(word: u64) -> u64 {
    word & ((KEVENT_WORD_GEN_MASK as u64) << KEVENT_WORD_GEN_SHIFT)
}

macro_rules! assert_layout {
    ($type:ty, $size:literal, $($field:ident: $offset:literal),+ $(,)?) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(offset_of!($type, $field) == $offset);)+
        };
    };
}

assert_layout!(Params, 48,
    flags: 0, slots: 4, header_size: 8, slots_size: 16, node: 24, resv32: 28, resv: 32);
assert_layout!(Ukevent, 64,
    ident: 0, source: 8, op: 10, flags: 12, events: 16, result: 20, user_data: 24, data: 32,
    fflags: 40, tag: 44, interval: 48, resv: 56);
assert_layout!(GetOpts, 64,
    size: 0, flags: 4, sigmask: 8, sigsetsize: 16, clock: 20, min_wait: 24, changes: 32,
    nr_changes: 40, change_flags: 44, resv: 48);
assert_layout!(RingHeader, 64,
    compat: 0, incompat: 4, slots: 8, slot_size: 12, flags: 16, rings: 20, resv: 24);
assert_layout!(Slot, 32,
    word: 0, user_data: 8, ident: 16, source: 24, flags: 26, tag: 28);
