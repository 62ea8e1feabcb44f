// SPDX-License-Identifier: MIT
//! The ways for the server to learn of events: the ring of a kevent queue, and
//! epoll, edge- and level-triggered.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use kevent::{interest, Queue, Ring};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::Timespec;

/// How many events are collected at once, at most, by each back-end.
pub const BATCH: usize = 64;

/// Which back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The ring of a kevent queue.
    Kevent,
    /// epoll, edge-triggered.
    EpollEdge,
    /// epoll, level-triggered.
    EpollLevel,
}

impl Kind {
    /// As it is called in the table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kevent => "kevent ring",
            Kind::EpollEdge => "epoll edge",
            Kind::EpollLevel => "epoll level",
        }
    }
}

/// An event, as the server wants it.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// What was given at registration.
    pub token: u64,
    /// A read should be tried.
    pub readable: bool,
    /// A write should be tried.
    pub writable: bool,
}

/// System calls made to collect events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// All of them.
    pub all: u64,
    /// Those made although the ring was not known to be empty.  With epoll
    /// there is nothing to look at: all of them.
    pub blind: u64,
}

/// A source of events.
pub trait Backend {
    /// Watches a stream, or a listening socket.
    fn add(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()>;

    /// Says whether the server is waiting to write to a stream, and so does not
    /// want to read from it.
    fn want_write(&mut self, fd: BorrowedFd<'_>, token: u64, on: bool) -> io::Result<()>;

    /// Waits up to the timeout for events and hands out up to [`BATCH`].
    fn poll(&mut self, timeout: Duration, ready: &mut Vec<Ready>) -> io::Result<()>;

    /// The collecting system calls so far.
    fn calls(&self) -> Calls;
}

/// The ring of a kevent queue.
pub struct KeventRing {
    queue: Queue,
    ring: Ring,
}

impl KeventRing {
    /// With room for so many registrations.
    pub fn new(sources: u32) -> io::Result<Self> {
        let queue = Queue::new(sources)?;
        let ring = queue.ring_with_batch(BATCH);
        Ok(Self { queue, ring })
    }
}

impl Backend for KeventRing {
    fn add(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let events = interest::IN | interest::OUT | interest::RDHUP;
        self.queue.add(&fd, events, token)
    }

    fn want_write(&mut self, _: BorrowedFd<'_>, _: u64, _: bool) -> io::Result<()> {
        Ok(()) // Changes of both are reported anyway.
    }

    fn poll(&mut self, timeout: Duration, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        ready.extend(self.ring.poll(Some(timeout))?.map(|event| Ready {
            token: event.user_data,
            readable: event.readable(),
            writable: event.writable(),
        }));
        Ok(())
    }

    fn calls(&self) -> Calls {
        let stats = self.ring.stats();
        Calls {
            all: stats.waits + stats.collects,
            blind: stats.collects,
        }
    }
}

/// epoll.
pub struct Epoll {
    epoll: OwnedFd,
    level: bool,
    buffer: Vec<epoll::Event>,
    calls: u64,
}

impl Epoll {
    /// Level-triggered or edge-triggered.
    pub fn new(level: bool) -> io::Result<Self> {
        let none = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            level,
            buffer: vec![none; BATCH],
            calls: 0,
        })
    }
}

impl Backend for Epoll {
    fn add(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let events = if self.level {
            EventFlags::IN | EventFlags::RDHUP
        } else {
            EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET
        };
        epoll::add(&self.epoll, fd, EventData::new_u64(token), events)?;
        Ok(())
    }

    fn want_write(&mut self, fd: BorrowedFd<'_>, token: u64, on: bool) -> io::Result<()> {
        if self.level {
            let events = if on {
                EventFlags::OUT
            } else {
                EventFlags::IN | EventFlags::RDHUP
            };
            epoll::modify(&self.epoll, fd, EventData::new_u64(token), events)?;
        }
        Ok(())
    }

    fn poll(&mut self, timeout: Duration, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        self.calls += 1;
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let count = epoll::wait(&self.epoll, &mut self.buffer[..], Some(&timeout))?;
        ready.extend(self.buffer[..count].iter().map(|event| {
            let flags = event.flags;
            let broken = EventFlags::HUP | EventFlags::ERR;
            Ready {
                token: event.data.u64(),
                readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | broken),
                writable: flags.intersects(EventFlags::OUT | broken),
            }
        }));
        Ok(())
    }

    fn calls(&self) -> Calls {
        Calls {
            all: self.calls,
            blind: self.calls,
        }
    }
}
