// SPDX-License-Identifier: MIT
//! Events, as the ring and the system call give them.

use crate::abi;

/// What to watch for on a file, and what an event says of it: `EPOLL*` bits.
pub mod interest {
    /// There is something to read.
    pub const IN: u32 = libc::EPOLLIN as u32;
    /// There is urgent data.
    pub const PRI: u32 = libc::EPOLLPRI as u32;
    /// There is room to write.
    pub const OUT: u32 = libc::EPOLLOUT as u32;
    /// An error; reported whether asked for or not.
    pub const ERR: u32 = libc::EPOLLERR as u32;
    /// Hung up; reported whether asked for or not.
    pub const HUP: u32 = libc::EPOLLHUP as u32;
    /// The peer will send no more.
    pub const RDHUP: u32 = libc::EPOLLRDHUP as u32;
}

/// An event that was collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What was given at registration.
    pub user_data: u64,
    /// What of the source, for a file its descriptor.
    pub ident: u64,
    /// What the source reports: for a file [`interest`] bits and
    /// [`KEVENT_FD_HINT`](abi::KEVENT_FD_HINT), for others see
    /// [`count`](Self::count) and [`user_flags`](Self::user_flags).
    pub value: u32,
    /// `KEVENT_SOURCE_*`.
    pub source: u16,
    /// The tag that was given at registration.
    pub tag: u32,
}

impl Event {
    /// Whether a read should be tried: there is data, the end of it, or an
    /// error which a read will tell.
    pub fn readable(&self) -> bool {
        use interest::{ERR, HUP, IN, RDHUP};
        self.value & (IN | RDHUP | HUP | ERR) != 0
    }

    /// Whether a write should be tried: there is room, or an error which a
    /// write will tell.
    pub fn writable(&self) -> bool {
        use interest::{ERR, HUP, OUT};
        self.value & (OUT | HUP | ERR) != 0
    }

    /// Whether the file was woken without saying why: then each bit of the
    /// value is only possibly so.
    pub fn is_hint(&self) -> bool {
        self.value & abi::KEVENT_FD_HINT != 0
    }

    /// How often a timer expired, or what was added to a counter, since the last
    /// event; it stops at [`KEVENT_COUNT_MAX`](abi::KEVENT_COUNT_MAX).
    pub fn count(&self) -> u32 {
        self.value & abi::KEVENT_COUNT_MAX
    }

    /// Whether a timer ended because its clock was set; see
    /// [`Timer::cancel_on_set`](crate::Timer::cancel_on_set).
    pub fn timer_canceled(&self) -> bool {
        self.value & abi::KEVENT_TIMER_CANCELED != 0
    }

    /// The flags of a user event.
    pub fn user_flags(&self) -> u32 {
        self.value & abi::KEVENT_NOTE_FFLAGS
    }
}

impl From<&abi::Ukevent> for Event {
    fn from(raw: &abi::Ukevent) -> Self {
        Self {
            user_data: raw.user_data,
            ident: raw.ident,
            value: raw.events,
            source: raw.source,
            tag: raw.tag,
        }
    }
}
