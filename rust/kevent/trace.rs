// SPDX-License-Identifier: GPL-2.0

//! The tracepoints, `include/trace/events/kevent.h`.

use crate::ring::Payload;
use kernel::{
    ffi::c_void,
    tracepoint::declare_trace, //
};

declare_trace! {
    /// # Safety
    ///
    /// None.
    unsafe fn kevent_post(queue: *const c_void, source: u16, ident: u64, value: u32);
    /// # Safety
    ///
    /// None.
    unsafe fn kevent_merge(queue: *const c_void, source: u16, ident: u64, value: u32);
    /// # Safety
    ///
    /// None.
    unsafe fn kevent_overflow(queue: *const c_void, source: u16, ident: u64, value: u32);
    /// # Safety
    ///
    /// None.
    unsafe fn kevent_cancel(queue: *const c_void, source: u16, ident: u64, value: u32);
    /// # Safety
    ///
    /// None.
    unsafe fn kevent_collect(queue: *const c_void, source: u16, ident: u64, value: u32);
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident: $trace:ident;)+) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub(crate) fn $name<Q>(queue: &Q, payload: &Payload, value: u32) {
                let queue = core::ptr::from_ref(queue).cast();

                // SAFETY: The tracepoint takes any values; the pointer is not followed.
                unsafe { $trace(queue, payload.source, payload.ident, value) };
            }
        )+
    };
}

events! {
    /// There is an event more to collect.
    post: kevent_post;
    /// What happened was added to an event that had not been collected.
    merge: kevent_merge;
    /// An event found no room in the ring and waits behind it.
    overflow: kevent_overflow;
    /// An event was taken back before it was collected.
    cancel: kevent_cancel;
    /// An event was collected by `kevent_getevents()`.
    collect: kevent_collect;
}

macro_rules! is_on {
    ($tracepoint:ident) => {{
        #[cfg(CONFIG_TRACEPOINTS)]
        {
            // SAFETY: It is the static key of a tracepoint.
            unsafe {
                kernel::jump_label::static_branch_unlikely!(
                    kernel::bindings::$tracepoint,
                    kernel::bindings::tracepoint,
                    key
                )
            }
        }
        #[cfg(not(CONFIG_TRACEPOINTS))]
        {
            false
        }
    }};
}

/// Returns whether anybody traces what becomes of new events.
#[inline(always)]
pub(crate) fn posts() -> bool {
    is_on!(__tracepoint_kevent_post)
        || is_on!(__tracepoint_kevent_merge)
        || is_on!(__tracepoint_kevent_overflow)
}

/// Returns whether anybody traces what is collected.
#[inline(always)]
pub(crate) fn collects() -> bool {
    is_on!(__tracepoint_kevent_collect)
}
