// SPDX-License-Identifier: GPL-2.0

//! What becomes of the events of each registration: merged, posted to the ring or kept waiting.
//!
//! Plain Rust without kernel types, like [`super::ring`], and compiled for the host too.
//!
//! # States of a registration
//!
//! ```text
//!        add          post, if the next slot is free
//!  Free -----> Idle -----------------------------------> Posted --+ post: merge
//!   ^           |  <----------------------------------   ^   ^   |
//!   |           |         claimed by anybody             |   +---+
//!   |           | post, if the ring is full              |
//!   |           v                                        | flush
//!   |          Waiting ----------------------------------+
//!   |           |   ^ post: merge
//!   +-- remove  +---+
//!    from any
//! ```
//!
//! `Posted` can be out of date: user space does not tell when it claims an event.  The ring's
//! record of the slot decides.
//!
//! # Flow control
//!
//! [`Events::add`] refuses a registration if the registrations and the cancelled slots that are
//! still unclaimed would be more than the slots.  A registration has at most one event in the ring,
//! so if consumers claim in order there is a free slot for every event.  If they do not, or if
//! [`Events::modify`] cancelled events that nobody has claimed yet, the event waits in its
//! registration, in order with the others that do, and the consumers are told by the overflow flag.
//! It takes no memory and no event is lost.
//!
//! # Locking
//!
//! As for the ring: the queue's lock is held by the caller of each method.

use super::ring::{
    value_of,
    Found,
    Merge,
    Payload,
    Ring,
    SlotMemory, //
};
use core::ops::DerefMut;

pub(crate) use super::ring::Record;

/// How many waiting events one new event may push into the ring, to bound the time under the lock.
const FLUSH_PER_POST: u32 = 2;

/// How many claimed slots an [`Events::add`] forgets to make room.
const ADVANCE_PER_ADD: u32 = 1024;

/// No entry: the end of a list.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No registration; `next` is another free entry.
    Free { next: u32 },
    /// Nothing to report.
    Idle,
    /// An event was posted to the ring's slot `slot`.
    Posted { slot: u32 },
    /// The event `value` waits for room in the ring, between two others that do.
    Waiting { value: u32, prev: u32, next: u32 },
}

/// A registration, or room for one.  `T` is what the caller keeps with it.
pub(crate) struct Entry<T> {
    state: State,
    /// The bits that are reported.
    interest: u32,
    /// Whether anything was posted since the event was last found.
    touched: bool,
    payload: Payload,
    item: Option<T>,
}

impl<T> Entry<T> {
    /// Room for a registration.
    pub(crate) const FREE: Self = Self {
        state: State::Free { next: NONE },
        interest: 0,
        touched: false,
        payload: Payload {
            user_data: 0,
            ident: 0,
            source: 0,
        },
        item: None,
    };
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Post {
    /// There is an event more to collect: waiters must be woken.
    New,
    /// It was merged into one that had not been collected yet, or is of no interest.
    Nothing,
}

/// An event that can be collected, found by [`Events::find`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    found: Found,
    pub(crate) payload: Payload,
    pub(crate) value: u32,
    /// The bits that the registration reports.
    pub(crate) interest: u32,
}

/// No slot can be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The registrations of a queue and the ring that takes their events.
///
/// # Invariants
///
/// - An entry is [`State::Free`] if and only if its `item` is [`None`].
/// - The free entries are linked from `free`, the waiting ones from `first` to `last`, oldest
///   first.
/// - `live` is the number of entries that are not free.
/// - The ring's overflow flag is set if and only if an entry is waiting.
pub(crate) struct Events<M, R, E> {
    ring: Ring<M, R>,
    entries: E,
    free: u32,
    live: u32,
    first: u32,
    last: u32,
}

impl<M, R, E, T> Events<M, R, E>
where
    M: SlotMemory,
    R: DerefMut<Target = [Record]>,
    E: DerefMut<Target = [Entry<T>]>,
{
    /// Makes the events of a queue without registrations.
    ///
    /// `mem` must be zero, the `records` [`Record::UNUSED`] and the `entries` [`Entry::FREE`], as
    /// many of both as there are slots.  Returns [`None`] if that is not a power of two.
    pub(crate) fn new(mem: M, records: R, mut entries: E) -> Option<Self> {
        if records.len() != entries.len() {
            return None;
        }
        for (i, entry) in entries.iter_mut().enumerate().skip(1) {
            entry.state = State::Free {
                next: u32::try_from(i - 1).ok()?,
            };
        }

        let free = u32::try_from(entries.len().checked_sub(1)?).ok()?;

        Some(Self {
            ring: Ring::new(mem, records)?,
            entries,
            free,
            live: 0,
            first: NONE,
            last: NONE,
        })
    }

    /// Returns the number of slots.
    pub(crate) fn slots(&self) -> u32 {
        self.ring.slots()
    }

    /// Returns at most how many events there are to collect.
    pub(crate) fn ready_at_most(&self) -> u64 {
        let waiting = u64::from(self.first != NONE);

        self.ring.unclaimed_at_most().wrapping_add(waiting)
    }

    fn entry(&mut self, id: u32) -> Option<&mut Entry<T>> {
        self.entries.get_mut(id as usize)
    }

    /// Registers `item`, to report the bits of `interest`.
    ///
    /// Returns its id, or [`Full`] if no slot can be reserved.
    pub(crate) fn add(&mut self, payload: Payload, interest: u32, item: T) -> Result<u32, Full> {
        let slots = self.ring.slots();

        if self.live.saturating_add(self.ring.cancelled()) >= slots {
            self.ring.advance(ADVANCE_PER_ADD);
            if self.live.saturating_add(self.ring.cancelled()) >= slots {
                return Err(Full);
            }
        }

        let id = self.free;
        let entry = self.entry(id).ok_or(Full)?;
        let State::Free { next } = entry.state else {
            return Err(Full);
        };

        *entry = Entry {
            state: State::Idle,
            interest,
            touched: false,
            payload,
            item: Some(item),
        };
        self.free = next;
        self.live = self.live.wrapping_add(1);
        Ok(id)
    }

    /// Ends the registration `id` and returns its item.
    ///
    /// No later claim yields an event of it.
    pub(crate) fn remove(&mut self, id: u32) -> Option<T> {
        let item = self.entry(id)?.item.take()?;

        self.cancel(id);

        let next = self.free;
        if let Some(entry) = self.entry(id) {
            entry.state = State::Free { next };
        }
        self.free = id;
        self.live = self.live.wrapping_sub(1);
        Some(item)
    }

    /// Changes what the registration `id` reports.
    ///
    /// An event that was not collected is cancelled: the caller looks at the source and posts what
    /// is so now.
    pub(crate) fn modify(&mut self, id: u32, interest: u32, user_data: u64) {
        self.cancel(id);
        if let Some(entry) = self.entry(id) {
            entry.interest = interest;
            entry.payload.user_data = user_data;
        }
    }

    /// Returns the item of the registration `id`.
    pub(crate) fn item(&self, id: u32) -> Option<&T> {
        self.entries.get(id as usize)?.item.as_ref()
    }

    /// Cancels the event of the registration `id`, which becomes idle.
    fn cancel(&mut self, id: u32) {
        let Some(entry) = self.entry(id) else {
            return;
        };

        match entry.state {
            State::Free { .. } => return,
            State::Idle => {}
            State::Posted { slot } => self.ring.cancel(slot, id),
            State::Waiting { .. } => self.unlink(id),
        }
        if let Some(entry) = self.entry(id) {
            entry.state = State::Idle;
        }
    }

    /// Reports `bits` for the registration `id`.
    ///
    /// Bits that are neither of its interest nor in `always` are ignored.
    pub(crate) fn post(&mut self, id: u32, bits: u32, always: u32) -> Post {
        let Some(entry) = self.entry(id) else {
            return Post::Nothing;
        };
        let bits = bits & (entry.interest | always);

        if bits == 0 {
            return Post::Nothing;
        }
        entry.touched = true;
        match &mut entry.state {
            State::Free { .. } => return Post::Nothing,
            State::Idle => {}
            State::Waiting { value, .. } => {
                *value |= bits;
                return Post::Nothing;
            }
            State::Posted { slot } => {
                let slot = *slot;

                if self.ring.merge(slot, id, bits) == Merge::Merged {
                    return Post::Nothing;
                }
            }
        }

        self.flush(FLUSH_PER_POST);
        if self.first != NONE || !self.publish(id, bits) {
            self.link(id, bits);
        }
        Post::New
    }

    /// Posts an event to the ring if there is room.
    fn publish(&mut self, id: u32, value: u32) -> bool {
        let Some(entry) = self.entries.get_mut(id as usize) else {
            return false;
        };

        match self.ring.publish(id, value, &entry.payload) {
            Some(slot) => {
                entry.state = State::Posted { slot };
                true
            }
            None => false,
        }
    }

    /// Posts waiting events to the ring, at most `limit` of them.
    ///
    /// Returns whether there may be more to post.
    pub(crate) fn flush(&mut self, limit: u32) -> bool {
        for _ in 0..limit {
            let id = self.first;
            let Some(entry) = self.entry(id) else {
                return false;
            };
            let State::Waiting { value, prev, next } = entry.state else {
                return false;
            };

            if !self.publish(id, value) {
                return false;
            }
            self.unlink_between(prev, next);
        }
        self.first != NONE
    }

    /// Makes the registration `id` wait for room in the ring, after all others that do.
    fn link(&mut self, id: u32, value: u32) {
        let prev = self.last;

        if let Some(entry) = self.entry(id) {
            entry.state = State::Waiting {
                value,
                prev,
                next: NONE,
            };
        }
        match self.entry(prev) {
            Some(Entry {
                state: State::Waiting { next, .. },
                ..
            }) => *next = id,
            _ => {
                self.first = id;
                self.ring.mem().set_overflow(true);
            }
        }
        self.last = id;
    }

    /// Takes the registration `id` from those that wait.
    fn unlink(&mut self, id: u32) {
        if let Some(entry) = self.entry(id) {
            if let State::Waiting { prev, next, .. } = entry.state {
                entry.state = State::Idle;
                self.unlink_between(prev, next);
            }
        }
    }

    /// Joins the neighbours of a registration that waits no more.
    fn unlink_between(&mut self, before: u32, after: u32) {
        match self.entry(before) {
            Some(Entry {
                state: State::Waiting { next, .. },
                ..
            }) => *next = after,
            _ => self.first = after,
        }
        match self.entry(after) {
            Some(Entry {
                state: State::Waiting { prev, .. },
                ..
            }) => *prev = before,
            _ => self.last = before,
        }
        if self.first == NONE {
            self.ring.mem().set_overflow(false);
        }
    }

    /// Finds the oldest event at or after position `*pos` of the ring, looking at no more than
    /// `limit` slots, and leaves in `*pos` where to go on.
    ///
    /// Zero is a position before all others.  The event is not claimed; see [`Events::claim`].
    pub(crate) fn find(&mut self, pos: &mut u64, limit: u32) -> Option<(Event, &T)> {
        let found = self.ring.find(pos, limit)?;
        let entry = self.entries.get_mut(found.id as usize)?;

        entry.touched = false;
        Some((
            Event {
                found,
                payload: entry.payload,
                value: value_of(found.word),
                interest: entry.interest,
            },
            entry.item.as_ref()?,
        ))
    }

    /// Returns whether [`Events::find`] has looked at everything in the ring.
    pub(crate) fn at_end(&self, pos: u64) -> bool {
        pos >= self.ring.tail()
    }

    /// Claims an event that was found.
    ///
    /// Returns false if it was claimed by somebody else, or if it changed.  If `untouched`, it also
    /// fails if anything was posted since the event was found, even what the event says already:
    /// what the caller knows of the source may be out of date.
    pub(crate) fn claim(&mut self, event: &Event, untouched: bool) -> bool {
        let id = event.found.id;

        match self.entry(id) {
            Some(entry) if !(untouched && entry.touched) => {}
            _ => return false,
        }
        if !self.ring.claim(&event.found) {
            return false;
        }
        if let Some(entry) = self.entry(id) {
            entry.state = State::Idle;
        }
        true
    }

    /// Counts the events to collect, no further than `limit`.
    pub(crate) fn count(&mut self, limit: u32) -> u32 {
        let slots = self.ring.slots();
        let mut pos = 0;
        let mut count = 0;

        self.flush(limit);
        while count < limit && self.ring.find(&mut pos, slots).is_some() {
            count += 1;
        }

        // What waits behind a full ring counts as well.
        let mut id = self.first;
        while count < limit {
            match self.entry(id) {
                Some(Entry {
                    state: State::Waiting { next, .. },
                    ..
                }) => id = *next,
                _ => break,
            }
            count += 1;
        }
        count
    }
}
