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
//! queue.add(&std::io::stdin(), interest::IN, 1)?;
//! loop {
//!     // A signal, or the end of a stop, interrupts it.
//!     let events = match ring.poll(None) {
//!         Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
//!         events => events?,
//!     };
//!     for event in events {
//!         println!("source {} is ready: {:#x}", event.user_data, event.value);
//!     }
//! }
//! # }
//! ```
//!
//! Events of files tell of changes (edge-triggered): read or write until it would
//! block.  [`Registration`] has other modes, timers and events that programs
//! trigger; [`Change`] is what can be done with them, one by one
//! ([`Queue::apply`]) or many at once ([`Queue::ctl`]):
//!
//! ```no_run
//! use kevent::{interest, Change, Name, Queue, Registration, Timer};
//! use std::time::Duration;
//!
//! # fn main() -> std::io::Result<()> {
//! # let queue = Queue::new(1024)?;
//! let second = Timer::every(Duration::from_secs(1));
//! for what in [
//!     Registration::file(&std::io::stdin(), interest::IN).level(),
//!     Registration::timer(0, second).user_data(2),
//!     Registration::counter(0).one_shot().user_data(3),
//! ] {
//!     queue.apply(Change::add(what))?;
//! }
//! queue.apply(Change::count(Name::user(0), 42))?;
//! # Ok(())
//! # }
//! ```
//!
//! `<linux/kevent.h>` and `Documentation/userspace-api/kevent.rst` are the
//! contract; [`abi`] is what they define, unchanged.

#![deny(unsafe_code)]

pub mod abi;
mod change;
mod consumer;
#[cfg(test)]
mod consumer_tests;
mod event;
mod map;
mod sys;
mod wait;

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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consumer::{Backend, Consumer};
use map::{Header, Slots};

pub use change::{Change, Clock, Flags, Name, Registration, Timer};
pub use event::{interest, Event};
pub use wait::Wait;

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

/// How a queue is to be made; see [`Queue::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Builder(abi::Params);

impl Builder {
    /// Does not reserve slots: there can be more registrations than slots.  An
    /// event that finds the ring full waits, see [`Ring::overflowed`].
    pub fn overcommit(mut self) -> Self {
        self.0.flags |= abi::KEVENT_INIT_OVERCOMMIT;
        self
    }

    /// Takes the ring's memory from this NUMA node.
    pub fn node(mut self, node: u32) -> Self {
        self.0.flags |= abi::KEVENT_INIT_NODE;
        self.0.node = node;
        self
    }

    /// Of the threads that wait, wakes the one that came last, whose caches are
    /// warm.  Otherwise they take turns.
    pub fn lifo(mut self) -> Self {
        self.0.flags |= abi::KEVENT_INIT_LIFO;
        self
    }

    /// Makes the queue.  Does not block.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](io::ErrorKind::Unsupported) if this kernel has no kevent,
    /// or a newer one whose ring this library does not understand;
    /// `EINVAL` if there are no slots or too many, or no such node; else what the
    /// kernel said when it made or mapped the queue.
    pub fn build(mut self) -> io::Result<Queue> {
        let fd = sys::init(&mut self.0).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                io::Error::new(io::ErrorKind::Unsupported, "this kernel has no kevent")
            }
            _ => error,
        })?;
        Queue::try_from(fd)
    }
}

/// An event queue: the descriptor and the mapped ring.
///
/// Changes may be made by any thread.  Dropping the queue and all of its rings
/// closes it; that ends the registrations.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

struct Shared {
    fd: OwnedFd,
    header: Header,
    /// The sets of slots that are mapped, from the smallest to the largest.  No
    /// set that is smaller than all of them has events.
    slots: Mutex<Vec<Arc<Slots>>>,
}

impl Shared {
    /// The set with so many slots, mapped now if it was not.
    fn mapped(&self, count: u32) -> io::Result<Arc<Slots>> {
        let mut mapped = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = mapped.iter().find(|slots| slots.count() == count) {
            return Ok(Arc::clone(slots));
        }
        let slots = Arc::new(Slots::new(self.fd.as_fd(), &self.header, count)?);
        let live = self.header.get().rings.load(Relaxed);
        mapped.retain(|slots| live & slots.count() != 0);
        mapped.push(Arc::clone(&slots));
        mapped.sort_by_key(|slots| slots.count());
        Ok(slots)
    }
}

impl Queue {
    /// Makes a queue with a ring of at least `slots` slots, rounded up to a
    /// power of two, at most [`abi::KEVENT_MAX_SLOTS`].  Does not block.
    ///
    /// Each edge-triggered registration reserves a slot, so this also limits
    /// those; [`Builder::overcommit`] is the other way, and the ring can
    /// [`grow`](Self::grow).
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new(slots: u32) -> io::Result<Self> {
        Self::builder(slots).build()
    }

    /// For a queue that is not as [`new`](Self::new) makes it.
    pub fn builder(slots: u32) -> Builder {
        Builder(abi::Params {
            slots,
            ..abi::Params::default()
        })
    }

    /// How many slots there are, and so how many edge-triggered registrations
    /// there can be.
    pub fn slots(&self) -> u32 {
        self.0.header.get().slots.load(Relaxed)
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
        Ring(Consumer::new(self.clone(), batch))
    }

    /// Registers `fd`: `events` are [`interest`] bits, and `user_data` is handed
    /// back with each event.  If it is ready now, there is an event at once.
    /// Does not block.
    ///
    /// The registration belongs to this descriptor and ends when it is closed.
    /// [`Registration`] has all that can be registered.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if it is registered,
    /// `ENOSPC` ([`StorageFull`](io::ErrorKind::StorageFull)) if all slots are
    /// reserved; else what the kernel says of this descriptor.
    pub fn add(&self, fd: &impl AsFd, events: u32, user_data: u64) -> io::Result<()> {
        let what = Registration::file(fd, events).user_data(user_data);
        self.apply(Change::add(what))
    }

    /// Replaces what [`add`](Self::add) was given.  If the source is ready now,
    /// there is an event at once.  Does not block.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) if it is not registered.
    pub fn modify(&self, fd: &impl AsFd, events: u32, user_data: u64) -> io::Result<()> {
        let what = Registration::file(fd, events).user_data(user_data);
        self.apply(Change::modify(what))
    }

    /// Ends a registration.  Does not block.
    ///
    /// No event of it can be claimed once this has returned.  One that was
    /// claimed before may still be in a [`Batch`] that somebody looks through.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) if it is not registered.
    pub fn delete(&self, fd: &impl AsFd) -> io::Result<()> {
        self.apply(Change::delete(Name::file(fd)))
    }

    /// Makes at least `slots` slots of the ring, which must be more than there
    /// are, while it is used.  Does not block.
    ///
    /// Nothing is lost, and each [`Ring`] follows by itself.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are as many already, or if it is too many.
    pub fn grow(&self, slots: u32) -> io::Result<()> {
        self.apply(Change::grow(slots))
    }

    /// Lets every thread that waits for events return, with what there is, be it
    /// nothing.  One that calls later is not concerned: to tell a loop that there is
    /// something to do, trigger an event.  Does not block.
    ///
    /// # Errors
    ///
    /// None, if the queue is one.
    pub fn wake(&self) -> io::Result<()> {
        self.apply(Change::wake())
    }

    /// Applies one change.  Does not block.
    ///
    /// # Errors
    ///
    /// What the kernel says of it.
    pub fn apply(&self, change: Change) -> io::Result<()> {
        self.ctl(&mut [change]).map(|_| ())
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
    /// [`Interrupted`](io::ErrorKind::Interrupted) if a signal was caught.  That
    /// the timeout is over is no error.
    pub fn wait(&self, min: usize, timeout: Option<Duration>) -> io::Result<usize> {
        self.collect(&mut [], min, timeout)
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
        self.collect_with(events, Wait::new(min).timeout(timeout))
    }

    /// [`collect`](Self::collect) with all that [`Wait`] has.
    ///
    /// # Errors
    ///
    /// As [`collect`](Self::collect), and those of the changes.
    pub fn collect_with(
        &self,
        events: &mut [abi::Ukevent],
        mut wait: Wait<'_>,
    ) -> io::Result<usize> {
        wait.changes.iter_mut().for_each(Change::clear_result);
        sys::getevents(self.as_fd(), events, &mut wait)
    }
}

/// A queue that there is already, for example one that came from another process.
///
/// # Errors
///
/// [`Unsupported`](io::ErrorKind::Unsupported) if this library does not understand its
/// ring; else what the kernel said when the ring was mapped.
impl TryFrom<OwnedFd> for Queue {
    type Error = io::Error;

    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let header = Header::new(fd.as_fd())?;
        let slots = loop {
            // The oldest set; if it is gone meanwhile, look again.
            let rings = header.rings();
            match Slots::new(fd.as_fd(), &header, rings & rings.wrapping_neg()) {
                Err(_) if header.rings() != rings => {}
                slots => break slots?,
            }
        };
        Ok(Self(Arc::new(Shared {
            fd,
            header,
            slots: Mutex::new(vec![Arc::new(slots)]),
        })))
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

impl consumer::Slots for Arc<Slots> {
    fn count(&self) -> u32 {
        (**self).count()
    }

    fn slot(&self, index: u32) -> &abi::Slot {
        (**self).slot(index)
    }
}

impl Backend for Queue {
    type Slots = Arc<Slots>;

    fn oldest(&self) -> Arc<Slots> {
        let mapped = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // There always is one.
        Arc::clone(&mapped[0])
    }

    fn set(&self, count: u32) -> Option<Arc<Slots>> {
        self.0.mapped(count).ok()
    }

    fn rings(&self) -> u32 {
        self.0.header.rings()
    }

    fn flags(&self) -> u32 {
        self.0.header.get().flags.load(Relaxed)
    }

    fn incompat(&self) -> u32 {
        self.0.header.get().incompat.load(Relaxed)
    }

    fn getevents(
        &self,
        events: &mut [abi::Ukevent],
        min: usize,
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        self.collect(events, min, timeout)
    }
}

/// A consumer of a queue's ring.  It keeps the queue open.
pub struct Ring(Consumer<Queue>);

impl Ring {
    /// Claims the events that are there, as many as a batch holds.  Makes no
    /// system call and does not block; the batch may be empty.
    ///
    /// An event that was claimed is nobody else's: who drops the batch half-way
    /// has lost the rest of it.
    ///
    /// When it is empty, the caller owes the kernel a [`wait`](Self::wait) for at
    /// least one event sooner or later, be it with a timeout of zero: see
    /// [`overflowed`](Self::overflowed).  And what is level-triggered is never
    /// here: see [`level_ready`](Self::level_ready).  [`poll`](Self::poll) sees to
    /// both.
    pub fn batch(&mut self) -> Batch<'_> {
        self.0.claim();
        self.last_batch()
    }

    /// Like [`batch`](Self::batch), but when there is nothing, blocks until there
    /// is or the timeout is over; None is for ever, and zero does not block.
    ///
    /// No system call is made as long as the ring has events and nothing is
    /// [`level_ready`](Self::level_ready).  The batch may be empty: after the
    /// timeout, when another consumer was faster, when what there was is so no
    /// longer, or when it was told to return.
    ///
    /// # Errors
    ///
    /// [`Interrupted`](io::ErrorKind::Interrupted) if a signal was caught, or the
    /// process went on after it was stopped, while it was blocked.  No event is
    /// lost by an error.
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

    /// Whether there may be level-triggered events.  They are not in the ring:
    /// [`Queue::collect`] collects them, and [`poll`](Self::poll) does.
    pub fn level_ready(&self) -> bool {
        self.0.backend().flags() & abi::KEVENT_RING_LEVEL_READY != 0
    }

    /// What this consumer has done so far.
    pub fn stats(&self) -> RingStats {
        self.0.stats
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("queue", self.0.backend())
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
    /// System calls made to collect what is not in the ring, or was not found.
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
