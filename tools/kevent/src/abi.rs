// SPDX-License-Identifier: MIT
//! What `<linux/kevent.h>` defines: numbers, flags and structures, as they are.
//!
//! The header is the contract; the assertions at the end of this file stop the
//! build when a structure differs from it.

#![allow(missing_docs, reason = "documented in <linux/kevent.h>")]

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

pub const SYS_KEVENT_INIT: i64 = 473;
pub const SYS_KEVENT_CTL: i64 = 474;
pub const SYS_KEVENT_GETEVENTS: i64 = 475;

pub const KEVENT_MAX_SLOTS: u32 = 1 << 16;
pub const KEVENT_OFF_HEADER: u64 = 0;
pub const KEVENT_OFF_SLOTS: u64 = 0x1000_0000;

pub const KEVENT_RING_OVERFLOW: u32 = 1 << 0;

pub const KEVENT_WORD_READY: u64 = 1;
pub const KEVENT_WORD_GEN_SHIFT: u32 = 1;
pub const KEVENT_WORD_GEN_MASK: u32 = 0x7fff_ffff;
pub const KEVENT_WORD_VALUE_SHIFT: u32 = 32;

pub const KEVENT_SOURCE_FD: u16 = 1;
pub const KEVENT_FD_HINT: u32 = 1 << 31;

pub const KEVENT_OP_ADD: u16 = 1;
pub const KEVENT_OP_MOD: u16 = 2;
pub const KEVENT_OP_DEL: u16 = 3;

pub const KEVENT_EDGE: u32 = 1 << 0;
pub const KEVENT_CTL_RESULTS: u32 = 1 << 0;

/// `struct kevent_params`: argument of `kevent_init()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    pub flags: u32,
    pub slots: u32,
    pub header_size: u64,
    pub slots_size: u64,
    pub resv: [u64; 3],
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
    pub resv32: u32,
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
    pub resv: [AtomicU32; 11],
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
    pub data: AtomicU32,
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

const _: () = {
    assert!(size_of::<Params>() == 48);
    assert!(offset_of!(Params, flags) == 0);
    assert!(offset_of!(Params, slots) == 4);
    assert!(offset_of!(Params, header_size) == 8);
    assert!(offset_of!(Params, slots_size) == 16);
    assert!(offset_of!(Params, resv) == 24);

    assert!(size_of::<Ukevent>() == 64);
    assert!(offset_of!(Ukevent, ident) == 0);
    assert!(offset_of!(Ukevent, source) == 8);
    assert!(offset_of!(Ukevent, op) == 10);
    assert!(offset_of!(Ukevent, flags) == 12);
    assert!(offset_of!(Ukevent, events) == 16);
    assert!(offset_of!(Ukevent, result) == 20);
    assert!(offset_of!(Ukevent, user_data) == 24);
    assert!(offset_of!(Ukevent, data) == 32);
    assert!(offset_of!(Ukevent, fflags) == 40);
    assert!(offset_of!(Ukevent, resv32) == 44);
    assert!(offset_of!(Ukevent, resv) == 48);

    assert!(size_of::<RingHeader>() == 64);
    assert!(offset_of!(RingHeader, compat) == 0);
    assert!(offset_of!(RingHeader, incompat) == 4);
    assert!(offset_of!(RingHeader, slots) == 8);
    assert!(offset_of!(RingHeader, slot_size) == 12);
    assert!(offset_of!(RingHeader, flags) == 16);
    assert!(offset_of!(RingHeader, resv) == 20);

    assert!(size_of::<Slot>() == 32);
    assert!(offset_of!(Slot, word) == 0);
    assert!(offset_of!(Slot, user_data) == 8);
    assert!(offset_of!(Slot, ident) == 16);
    assert!(offset_of!(Slot, source) == 24);
    assert!(offset_of!(Slot, flags) == 26);
    assert!(offset_of!(Slot, data) == 28);
};
