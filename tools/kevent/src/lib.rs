// SPDX-License-Identifier: MIT
//! Linux kevent queues: sources are registered once, and their events are
//! collected from memory that is shared with the kernel.
//!
//! A loop makes a system call only when there is nothing to do:
//!
//! ```no_run
//! use kevent::{interest, Queue};
//!
//! # fn main() -> std::io::Result<()> {
//! let queue = Queue::new(1024)?;
//! let mut ring = queue.ring();
//! queue.add(std::io::stdin(), interest::IN, 1)?;
//! loop {
//!     for event in ring.poll(None)? {
//!         println!("source {} is ready: {:#x}", event.user_data, event.value);
//!     }
//! }
//! # }
//! ```
//!
//! Events tell of changes (edge-triggered): read or write until it would block.
//!
//! `<linux/kevent.h>` and `Documentation/userspace-api/kevent.rst` are the
//! contract; [`abi`] is what they define, unchanged.

#![deny(unsafe_code)]

pub mod abi;
mod consumer;
#[cfg(test)]
mod consumer_tests;
mod event;
mod map;
mod sys;

/// What the tests in `ring-tests` replace.
mod sync {
    pub(crate) use std::sync::atomic::fence;
}

use std::fmt;
use std::io;
use std::iter::Copied;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::slice;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use consumer::{Backend, Consumer};
use map::Mapping;

pub use event::{interest, Change, Event};

/// How many events a [`Ring`] claims at once, if not told otherwise.
pub const DEFAULT_BATCH: usize = 256;

/// Whether this kernel has kevent.
///
/// Does not block, and makes nothing.  False also where a sandbox forbids the
/// system calls.
pub fn available() -> bool {
    // A kernel that has it finds that the argument is too small.
    sys::probe().raw_os_error() == Some(libc::EINVAL)
}

/// An event queue: the descriptor and the mapped ring.
///
/// Changes may be made by any thread.  Dropping the queue and all of its rings
/// closes it; that ends the registrations.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

struct Shared {
    fd: OwnedFd,
    mapping: Mapping,
}

impl Queue {
    /// Makes a queue with a ring of at least `slots` slots, rounded up to a
    /// power of two, at most [`abi::KEVENT_MAX_SLOTS`].  Does not block.
    ///
    /// Each registration reserves a slot, so this also limits those.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](io::ErrorKind::Unsupported) if this kernel has no kevent,
    /// or a newer one whose ring this library does not understand;
    /// `EINVAL` if `slots` is zero or too many; else what the kernel said when
    /// it made or mapped the queue.
    pub fn new(slots: u32) -> io::Result<Self> {
        let mut params = abi::Params {
            slots,
            ..abi::Params::default()
        };
        let fd = sys::init(&mut params).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                io::Error::new(io::ErrorKind::Unsupported, "this kernel has no kevent")
            }
            _ => error,
        })?;
        let mapping = Mapping::new(fd.as_fd(), &params)?;
        Ok(Self(Arc::new(Shared { fd, mapping })))
    }

    /// How many slots there are, and so how many registrations there can be.
    pub fn slots(&self) -> u32 {
        self.0.mapping.slots()
    }

    /// A consumer of the ring.
    ///
    /// Each event is claimed by one consumer.  One is enough for one thread;
    /// several may run at once, and the kernel's own collection,
    /// [`collect`](Self::collect), beside them.
    pub fn ring(&self) -> Ring {
        self.ring_with_batch(DEFAULT_BATCH)
    }

    /// Like [`ring`](Self::ring), but it claims up to `batch` events at once (at
    /// least one).
    pub fn ring_with_batch(&self, batch: usize) -> Ring {
        Ring(Consumer::new(Arc::clone(&self.0), batch))
    }

    /// Registers `fd`: `events` are [`interest`] bits, and `user_data` is handed
    /// back with each event.  If it is ready now, there is an event at once.
    /// Does not block.
    ///
    /// The registration belongs to this descriptor and ends when it is closed.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if it is registered,
    /// `ENOSPC` ([`StorageFull`](io::ErrorKind::StorageFull)) if all slots are
    /// reserved; else what the kernel says of this descriptor.
    pub fn add(&self, fd: impl AsFd, events: u32, user_data: u64) -> io::Result<()> {
        self.ctl(&mut [Change::add(fd, events, user_data)])
            .map(|_| ())
    }

    /// Replaces what [`add`](Self::add) was given.  If the source is ready now,
    /// there is an event at once.  Does not block.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) if it is not registered.
    pub fn modify(&self, fd: impl AsFd, events: u32, user_data: u64) -> io::Result<()> {
        self.ctl(&mut [Change::modify(fd, events, user_data)])
            .map(|_| ())
    }

    /// Ends a registration.  Does not block.
    ///
    /// No event of it can be claimed once this has returned.  One that was
    /// claimed before may still be in a [`Batch`] that somebody looks through.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) if it is not registered.
    pub fn delete(&self, fd: impl AsFd) -> io::Result<()> {
        self.ctl(&mut [Change::delete(fd)]).map(|_| ())
    }

    /// Applies changes in order, up to the first that fails, and tells how many
    /// were applied.  Does not block.
    ///
    /// # Errors
    ///
    /// That of the very first change.  An error of a later one shows in the
    /// number, and as an error when the rest is tried again.
    pub fn ctl(&self, changes: &mut [Change]) -> io::Result<usize> {
        self.change(changes, 0)
    }

    /// Applies all changes in order, whether others fail or not, and tells how
    /// many were applied; [`Change::result`] tells of each.  Does not block.
    ///
    /// # Errors
    ///
    /// Only if the call as a whole makes no sense to the kernel.
    pub fn ctl_each(&self, changes: &mut [Change]) -> io::Result<usize> {
        self.change(changes, abi::KEVENT_CTL_RESULTS)
    }

    fn change(&self, changes: &mut [Change], flags: u32) -> io::Result<usize> {
        for change in changes.iter_mut() {
            change.clear_result();
        }
        sys::ctl(self.as_fd(), changes, flags)
    }

    /// Waits until at least `min` events can be collected by somebody, and
    /// collects none.  Tells how many there are, counting no further than `min`.
    ///
    /// Blocks for at most `timeout`, to the nanosecond as the kernel's timers
    /// go; None is for ever, and zero does not block.
    ///
    /// # Errors
    ///
    /// [`Interrupted`](io::ErrorKind::Interrupted) if a signal was caught;
    /// `EINVAL` if `min` is more than there are slots.  That the timeout is over
    /// is no error.
    pub fn wait(&self, min: usize, timeout: Option<Duration>) -> io::Result<usize> {
        self.0.getevents(&mut [], min, timeout)
    }

    /// Collects through the system call: waits as [`wait`](Self::wait) does,
    /// then fills `events` as far as possible and tells how far.  With no room
    /// in `events` it is [`wait`](Self::wait).
    ///
    /// [`Event::from`] turns what was collected into events.  For who has no use
    /// for the ring: a [`Ring`] calls this when it must.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), and `EINVAL` if `min` is more than there is room
    /// for in `events`.
    pub fn collect(
        &self,
        events: &mut [abi::Ukevent],
        min: usize,
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        self.0.getevents(events, min, timeout)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("fd", &self.as_raw_fd())
            .field("slots", &self.slots())
            .finish()
    }
}

impl Backend for Arc<Shared> {
    fn slots(&self) -> u32 {
        self.mapping.slots()
    }

    fn slot(&self, index: u32) -> &abi::Slot {
        self.mapping.slot(index)
    }

    fn flags(&self) -> u32 {
        self.mapping.header().flags.load(Relaxed)
    }

    fn getevents(
        &self,
        events: &mut [abi::Ukevent],
        min: usize,
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        sys::getevents(self.fd.as_fd(), events, min, timeout)
    }
}

/// A consumer of a queue's ring.  It keeps the queue open.
pub struct Ring(Consumer<Arc<Shared>>);

impl Ring {
    /// Claims the events that are there, as many as a batch holds.  Makes no
    /// system call and does not block; the batch may be empty.
    ///
    /// An event that was claimed is nobody else's: who drops the batch half-way
    /// has lost the rest of it.
    ///
    /// When it is empty, the caller owes the kernel a [`wait`](Self::wait) for at
    /// least one event sooner or later, be it with a timeout of zero: see
    /// [`overflowed`](Self::overflowed).  [`poll`](Self::poll) sees to that.
    pub fn batch(&mut self) -> Batch<'_> {
        self.0.claim();
        self.last_batch()
    }

    /// Like [`batch`](Self::batch), but when there is nothing, blocks until there
    /// is or the timeout is over; None is for ever, and zero does not block.
    ///
    /// No system call is made as long as the ring has events.  The batch may be
    /// empty: after the timeout, or when another consumer was faster.
    ///
    /// # Errors
    ///
    /// [`Interrupted`](io::ErrorKind::Interrupted) if a signal was caught while
    /// it was blocked.  No event is lost by an error.
    pub fn poll(&mut self, timeout: Option<Duration>) -> io::Result<Batch<'_>> {
        self.0.poll(timeout)?;
        Ok(self.last_batch())
    }

    fn last_batch(&self) -> Batch<'_> {
        Batch(self.0.events().iter().copied())
    }

    /// [`Queue::wait`], for who mixes it with [`batch`](Self::batch).
    ///
    /// # Errors
    ///
    /// As for [`Queue::wait`].
    pub fn wait(&mut self, min: usize, timeout: Option<Duration>) -> io::Result<usize> {
        self.0.wait(min, timeout)
    }

    /// Whether an event waits behind a full ring.  Once what is in the ring was
    /// claimed, [`wait`](Self::wait) for at least one event lets it in;
    /// [`poll`](Self::poll) does that.
    pub fn overflowed(&self) -> bool {
        self.0.backend().flags() & abi::KEVENT_RING_OVERFLOW != 0
    }

    /// What this consumer has done so far.
    pub fn stats(&self) -> RingStats {
        self.0.stats
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("fd", &self.0.backend().fd.as_raw_fd())
            .field("stats", &self.0.stats)
            .finish()
    }
}

/// Counts of what a [`Ring`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Batches which had at least one event.
    pub batches: u64,
    /// Events that were claimed from the ring.
    pub claimed: u64,
    /// Claims that were tried again, because the kernel merged something into
    /// the event or another consumer was faster.
    pub retries: u64,
    /// System calls made because the ring was empty.
    pub waits: u64,
    /// System calls made to collect what was not found in the ring.
    pub collects: u64,
    /// Events that those have given.
    pub collected: u64,
}

/// Events that were claimed, oldest first.
#[derive(Clone, Debug)]
pub struct Batch<'a>(Copied<slice::Iter<'a, Event>>);

impl Iterator for Batch<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Batch<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever kernel this runs on, the probe and the call agree.
    #[test]
    fn a_kernel_without_kevent_is_told_clearly() {
        match Queue::new(16) {
            Ok(queue) => {
                assert!(available());
                assert_eq!(queue.slots(), 16);
            }
            Err(error) if !available() => {
                if error.kind() == io::ErrorKind::Unsupported {
                    assert_eq!(error.to_string(), "this kernel has no kevent");
                }
            }
            Err(error) => panic!("there is kevent, but: {error}"),
        }
    }
}
