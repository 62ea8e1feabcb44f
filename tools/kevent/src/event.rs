// SPDX-License-Identifier: MIT
//! Events, as the ring and the system call give them, and changes, as
//! `kevent_ctl()` takes them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

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
    /// [`KEVENT_FD_HINT`](abi::KEVENT_FD_HINT).
    pub value: u32,
    /// `KEVENT_SOURCE_*`.
    pub source: u16,
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

    /// Whether the source was woken without saying why: then each bit of the
    /// value is only possibly so.
    pub fn is_hint(&self) -> bool {
        self.value & abi::KEVENT_FD_HINT != 0
    }
}

impl From<&abi::Ukevent> for Event {
    fn from(raw: &abi::Ukevent) -> Self {
        Self {
            user_data: raw.user_data,
            ident: raw.ident,
            value: raw.events,
            source: raw.source,
        }
    }
}

/// One change of a batch for [`Queue::ctl`](crate::Queue::ctl).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change(abi::Ukevent);

impl Change {
    fn file(op: u16, fd: impl AsFd) -> Self {
        Self(abi::Ukevent {
            ident: fd.as_fd().as_raw_fd() as u64,
            source: abi::KEVENT_SOURCE_FD,
            op,
            ..abi::Ukevent::default()
        })
    }

    /// Reports changes of the readiness of `fd`: `events` are [`interest`]
    /// bits, and `user_data` is handed back with each event.
    ///
    /// The registration belongs to this descriptor and ends when it is closed.
    pub fn add(fd: impl AsFd, events: u32, user_data: u64) -> Self {
        let mut change = Self::file(abi::KEVENT_OP_ADD, fd);
        change.0.flags = abi::KEVENT_EDGE;
        change.0.events = events;
        change.0.user_data = user_data;
        change
    }

    /// Replaces what [`add`](Self::add) was given.
    pub fn modify(fd: impl AsFd, events: u32, user_data: u64) -> Self {
        let mut change = Self::add(fd, events, user_data);
        change.0.op = abi::KEVENT_OP_MOD;
        change
    }

    /// Ends the registration of `fd`.
    pub fn delete(fd: impl AsFd) -> Self {
        Self::file(abi::KEVENT_OP_DEL, fd)
    }

    /// What came of this change in [`Queue::ctl_each`](crate::Queue::ctl_each).
    pub fn result(&self) -> io::Result<()> {
        match self.0.result {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// The structure that the kernel gets.
    pub fn as_raw(&self) -> &abi::Ukevent {
        &self.0
    }

    pub(crate) fn clear_result(&mut self) {
        self.0.result = 0;
    }

    #[cfg(test)]
    fn set_result(&mut self, result: i32) {
        self.0.result = result;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_carry_what_the_header_wants() {
        let stdin = std::io::stdin();
        let fd = stdin.as_fd().as_raw_fd() as u64;

        let add = *Change::add(&stdin, interest::IN, 7).as_raw();
        assert_eq!((add.ident, add.source, add.op), (fd, 1, 1));
        assert_eq!((add.flags, add.events, add.user_data), (1, 1, 7));

        let modify = *Change::modify(&stdin, interest::OUT, 8).as_raw();
        assert_eq!((modify.op, modify.flags, modify.events), (2, 1, 4));

        let delete = *Change::delete(&stdin).as_raw();
        assert_eq!((delete.op, delete.flags), (3, 0));
        assert_eq!((delete.events, delete.user_data), (0, 0));
    }

    #[test]
    fn results_are_errors_of_the_system() {
        let mut change = Change::delete(std::io::stdin());
        assert!(change.result().is_ok());
        change.set_result(-libc::ENOENT);
        assert_eq!(
            change.result().unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
        change.clear_result();
        assert!(change.result().is_ok());
    }
}
