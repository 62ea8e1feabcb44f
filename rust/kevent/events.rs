// SPDX-License-Identifier: GPL-2.0

//! What becomes of the events of each registration: merged, posted to the ring, kept waiting, or
//! held until the registration is enabled.
//!
//! Plain Rust without kernel types, like [`super::ring`], and compiled for the host too.
//!
//! # States of a registration
//!
//! Edge-triggered:
//!
//! ```text
//!       begin         post, if the next slot is free
//!  Free -----> Idle -----------------------------------> Posted --+ post: merge
//!   ^           |  <----------------------------------   ^   ^   |
//!   |           |   claimed by anybody: After::Stay      |   +---+
//!   |           | post, if the ring is full              |
//!   |           v                                        | flush
//!   |          Waiting ----------------------------------+
//!   |           |   ^ post: merge
//!   +-- remove  +---+
//!    from any
//! ```
//!
//! Between `Free` and `Idle` it is `Reserved`: its id is taken, and nothing can fail any more.
//!
//! Level-triggered:
//!
//! ```text
//!               post                          collected: After::Stay
//!  Idle -----------------------------> Ready --+
//!       <-----------------------------   ^     |
//!         collect: nothing is so         +-----+
//! ```
//!
//! Several calls can have found it, and look at its source at once.  Any that has seen nothing
//! makes it `Idle`, unless something was posted since it was found.  Any that has seen that it is
//! so delivers an event, even from `Idle`: to look can take away what there is to see.  The
//! registration is `Ready` again then.  `Entry::epoch` tells when what was seen ceases to count.
//!
//! Either becomes `Disabled` by [`Events::disable`], or when its event is claimed and the mode says
//! so ([`After::Disable`]), and `Idle` again by [`Events::enable`].  A one-shot registration
//! ([`After::End`]) becomes `Ended` when its event is claimed: to programs it does not exist any
//! more, and it is removed as soon as a task comes by that can.
//!
//! `Posted` can be out of date: user space does not tell when it claims an event.  The ring's
//! record of the slot decides; see [`Events::settle`].
//!
//! # Flow control
//!
//! [`Events::reserve`] refuses an edge-triggered registration if these and the cancelled slots that
//! are still unclaimed would be more than the slots.  A registration has at most one event in the
//! ring, so if consumers claim in order there is a free slot for every event.  If they do not, or
//! if events were cancelled and posted anew, or if the queue may have more registrations than
//! slots, the event waits in its registration, in order with the others that do, and the consumers
//! are told by the overflow flag.  It takes no memory and no event is lost.
//!
//! # Growing
//!
//! A ring is not moved.  [`Events::grow`] adds a larger one, which takes all events from then on.
//! Events in the older ones are merged, cancelled and claimed there, and come first when the kernel
//! collects.  When the last of them is claimed, the ring is taken away.
//!
//! # Locking
//!
//! As for the ring: the queue's lock is held by the caller of each method.

use super::{
    ring::{
        value_of,
        Cancelled,
        Found,
        Merge,
        Ring,
        SlotMemory, //
    },
    table::{
        Linked,
        List,
        Table, //
    },
};
use core::{
    mem,
    ops::DerefMut, //
};

pub(crate) use super::ring::{
    Payload,
    Record,
    Update, //
};

/// How many waiting events one new event may push into the ring, to bound the time under the lock.
const FLUSH_PER_POST: u32 = 2;

/// How many waiting events are let into the ring when events are counted.
const FLUSH_PER_COUNT: u32 = 256;

/// How many claimed slots are forgotten to make room for an edge-triggered registration.
const ADVANCE_PER_ADD: u32 = 1024;

/// As many rings as there are numbers of slots, up to 2^16.
const RINGS: usize = 17;

/// What an [`Events`] is made of.
pub(crate) trait Parts {
    /// The header of the ring.
    type Header: Header;
    /// The slots of a ring.
    type Slots: SlotMemory;
    /// What the kernel knows of the slots of a ring.
    type Records: DerefMut<Target = [Record]>;
    /// A ring, somewhere else: there is room for many.
    type Ring: DerefMut<Target = Ring<Self::Slots, Self::Records>>;
    /// A part of the table of registrations.
    type Chunk: DerefMut<Target = [Linked<Entry<Self::Item>>]>;
    /// What the caller keeps with a registration.
    type Item;
}

/// What consumers are told beside the events.
pub(crate) trait Header {
    /// Tells whether events wait behind a full ring, and whether level-triggered ones may be ready.
    fn set_flags(&self, overflow: bool, level_ready: bool);
    /// Tells the number of slots of the ring that takes new events, and the sum of the numbers of
    /// slots of all that there are.
    fn set_rings(&self, slots: u32, rings: u32);
}

/// How the events of a registration are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// When something happens, through the ring.
    Edge,
    /// While something is so, to those who ask the kernel.
    Level,
}

/// What becomes of a registration when its event was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It goes on.
    Stay,
    /// It is disabled.
    Disable,
    /// It ends.
    End,
}

/// What a registration says and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) payload: Payload,
    /// The bits that are reported.
    pub(crate) interest: u32,
    pub(crate) trigger: Trigger,
    pub(crate) after: After,
    /// The flags that the program sees.
    pub(crate) flags: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No registration; in the list of those.
    Free,
    /// Taken by a registration that is to come, which may be named already.
    Reserved,
    /// Nothing to report.
    Idle,
    /// An event was posted to the slot `slot` of the ring with 2^`ring` slots.  A one-shot
    /// registration is in the list of those.
    Posted { ring: u8, slot: u32 },
    /// The event `value` waits for room in the ring; in the list of those that do.
    Waiting { value: u32 },
    /// Level-triggered, and something may be so; in the list of those, and in it since `ticket`.
    Ready { ticket: u64 },
    /// To report nothing, but to remember what was counted.
    Disabled { held: u32 },
    /// A one-shot registration whose event was claimed; in the list of those.
    Ended,
}

/// What a program is told of the state of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Idle,
    Posted,
    Waiting,
    Ready,
    Disabled,
}

/// A registration, or room for one.
///
/// # Invariants
///
/// `registration` is [`None`] if `state` is [`State::Free`], and never in the states after
/// [`State::Reserved`].
pub(crate) struct Entry<T> {
    state: State,
    /// How often anything was posted, or changed.
    posts: u32,
    /// How often it was changed, disabled, ended or removed, by a program or by the delivery of its
    /// level-triggered event.  Whoever has looked at its source before has looked for something
    /// else.
    epoch: u32,
    registration: Option<(Terms, T)>,
}

impl<T> Entry<T> {
    /// Room for a registration.
    pub(crate) const FREE: Self = Self {
        state: State::Free,
        posts: 0,
        epoch: 0,
        registration: None,
    };

    /// Returns the registration unless it is still to come.
    fn registered(&self) -> Option<&(Terms, T)> {
        match self.state {
            State::Reserved => None,
            _ => self.registration.as_ref(),
        }
    }

    fn terms(&self) -> Option<&Terms> {
        self.registered().map(|(terms, _)| terms)
    }

    /// Returns whether it is level-triggered, and may be ready since before `ticket`.
    #[inline]
    fn is_ready(&self, ticket: u64) -> bool {
        matches!(self.state, State::Ready { ticket: since } if since < ticket)
    }

    /// Begins where an id was reserved: disabled, if `pending` says so.  Returns whether one was.
    #[inline]
    fn begin(&mut self, pending: Pending) -> bool {
        if self.state != State::Reserved {
            return false;
        }
        self.state = match pending {
            Pending::Disabled(held) => State::Disabled { held },
            Pending::Nothing | Pending::Event(_) => State::Idle,
        };
        true
    }

    /// Changes the terms of a registration that has nothing to report.
    #[inline]
    fn set(&mut self, terms: &Terms, enabled: bool) {
        self.state = if enabled {
            State::Idle
        } else {
            State::Disabled { held: 0 }
        };
        self.posts = self.posts.wrapping_add(1);
        self.epoch = self.epoch.wrapping_add(1);
        if let Some((old, _)) = &mut self.registration {
            *old = *terms;
        }
    }

    /// Says that this, which has the id `id`, was found ready, and is so since `ticket` from now
    /// on.
    #[inline]
    fn found_ready(&mut self, id: u32, ticket: u64) -> Option<(Event, &Terms, &T)> {
        let event = Event {
            origin: Origin::Level {
                id,
                epoch: self.epoch,
            },
            value: 0,
            posts: self.posts,
        };
        let (terms, item) = self.registration.as_ref()?;

        self.state = State::Ready { ticket };
        Some((event, terms, item))
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Post {
    /// There is an event more to collect: waiters must be woken.
    New,
    /// As [`Post::New`], but it waits behind a full ring.
    Waits,
    /// It was merged into one that had not been collected yet.
    Merged,
    /// It is of no interest, or not now.
    Nothing,
    /// The last event was claimed, and there are no more of this registration.
    Ended,
}

impl Post {
    /// Returns whether there is an event more.
    pub(crate) fn is_new(self) -> bool {
        matches!(self, Self::New | Self::Waits)
    }
}

/// What a registration had to say when it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Nothing.
    Nothing,
    /// An event of this value had not been claimed.
    Event(u32),
    /// It was disabled, and had counted so much.
    Disabled(u32),
}

/// Where [`Events::find`] goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan {
    /// The ring, and the position in it.
    ring: u8,
    pos: u64,
    /// Level-triggered registrations that became ready, or were collected, later are not for this
    /// scan.
    ticket: u64,
    /// Which kind of event is to be found next if there are both.
    turn: Trigger,
}

impl Scan {
    /// Goes back to where a registration in a ring was found.  Level-triggered ones that were found
    /// since are not found again.
    pub(crate) fn again(&mut self, here: &Self) {
        (self.ring, self.pos, self.turn) = (here.ring, here.pos, here.turn);
    }
}

/// Where the event that was found comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Ring { ring: u8, found: Found },
    Level { id: u32, epoch: u32 },
}

/// An event that can be collected, found by [`Events::find`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    origin: Origin,
    /// What it says; nothing, zero, if it is level-triggered.
    pub(crate) value: u32,
    /// What [`Entry::posts`] was when it was found.
    posts: u32,
}

impl Event {
    /// Returns whether it is in a ring, where [`Scan::again`] comes by once more.
    pub(crate) fn is_in_ring(&self) -> bool {
        matches!(self.origin, Origin::Ring { .. })
    }
}

/// A count that is under way; see [`Events::count`].
pub(crate) struct Counting {
    scan: Scan,
    /// How many events were found in the rings.
    posted: u32,
}

/// Whether [`Events::find`] is to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Find {
    /// There may be more: one of its limits was reached.
    More,
    /// There is nothing more.
    End,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The event was claimed.
    Done,
    /// As [`Claim::Done`], but something was posted meanwhile, or the registration is ready again:
    /// there is a new one, and waiters must be woken.
    Anew,
    /// The event was claimed by somebody else, or it changed.
    Failed,
}

/// Why a registration is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No slot can be reserved.
    NoSlot,
    /// The table has to grow first, see [`Events::next_chunk`].
    NoRoom,
    /// There is no such registration any more.
    Ended,
}

/// What was removed: what it said and how, its item, and what it had to say, unless it had ended.
pub(crate) type Removed<T> = (Terms, T, Result<Pending, Refused>);

/// The registrations of a queue and the rings that take their events.
///
/// # Invariants
///
/// - The ring with 2^k slots is `rings[k]`; the first one is that of `oldest`, the last one that of
///   `current`.
/// - The entries that are in a list are those whose state says so.
/// - `live` is the number of registrations that have not ended, `edges` of those of them that are
///   edge-triggered.
/// - The header says whether there are waiting and ready entries, and which rings there are.
pub(crate) struct Events<P: Parts> {
    header: P::Header,
    rings: [Option<P::Ring>; RINGS],
    oldest: u8,
    current: u8,
    /// Whether there can be more edge-triggered registrations than slots.
    overcommit: bool,
    table: Table<P::Chunk>,
    live: u32,
    edges: u32,
    free: List,
    /// How many entries were ever used; no list of free ones has to be made for a new chunk.
    used: u32,
    waiting: List,
    ready: List,
    /// One-shot registrations that are [`State::Posted`].
    shots: List,
    ended: List,
    /// The next ticket.
    ticket: u64,
    /// Which kind of event is to be collected next if there are both.
    turn: Trigger,
}

fn slots_bit(ring: u8) -> u32 {
    1_u32.checked_shl(ring.into()).unwrap_or(0)
}

impl<P: Parts> Events<P> {
    /// Makes the events of a queue without registrations.
    pub(crate) fn new(header: P::Header, ring: P::Ring, overcommit: bool) -> Self {
        let mut events = Self {
            header,
            rings: [const { None }; RINGS],
            oldest: RINGS as u8,
            current: 0,
            overcommit,
            table: Table::new(),
            live: 0,
            edges: 0,
            free: List::new(),
            used: 0,
            waiting: List::new(),
            ready: List::new(),
            shots: List::new(),
            ended: List::new(),
            ticket: 1,
            turn: Trigger::Edge,
        };

        events.add_ring(ring);
        events
    }

    /// Returns the number of slots of the ring that takes new events.
    pub(crate) fn slots(&self) -> u32 {
        slots_bit(self.current)
    }

    /// Returns the sum of the numbers of slots of all rings.
    pub(crate) fn rings(&self) -> u32 {
        (0..)
            .zip(&self.rings)
            .filter(|(_, ring)| ring.is_some())
            .fold(0, |sum, (k, _)| sum | slots_bit(k))
    }

    /// Returns the slots of the ring with that number of slots.
    pub(crate) fn ring_slots(&self, slots: u32) -> Option<&P::Slots> {
        if !slots.is_power_of_two() {
            return None;
        }

        let index = slots.trailing_zeros();

        Some(self.rings.get(index as usize)?.as_ref()?.mem())
    }

    /// Returns the number of registrations.
    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    /// Returns how many events wait behind a full ring.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.len()
    }

    /// Returns how many level-triggered registrations may be ready.
    pub(crate) fn level_ready(&self) -> u32 {
        self.ready.len()
    }

    /// Returns at most how many events there are in the rings.
    #[inline]
    pub(crate) fn posted_at_most(&self) -> u64 {
        self.rings
            .get(usize::from(self.oldest)..=usize::from(self.current))
            .into_iter()
            .flatten()
            .flatten()
            .fold(0, |sum, ring| ring.unclaimed_at_most().wrapping_add(sum))
    }

    /// Returns at most how many events there are to collect.
    pub(crate) fn ready_at_most(&self) -> u64 {
        self.posted_at_most()
            .wrapping_add(self.waiting.len().into())
            .wrapping_add(self.ready.len().into())
    }

    /// Returns one more than the largest id that was ever used.
    pub(crate) fn ids(&self) -> u32 {
        self.used
    }

    fn ring(&mut self, ring: u8) -> Option<&mut P::Ring> {
        self.rings.get_mut(usize::from(ring))?.as_mut()
    }

    fn entry(&mut self, id: u32) -> Option<&mut Entry<P::Item>> {
        self.table.get_mut(id)
    }

    fn state(&self, id: u32) -> State {
        self.table.get(id).map_or(State::Free, |entry| entry.state)
    }

    fn set_state(&mut self, id: u32, state: State) {
        if let Some(entry) = self.entry(id) {
            entry.state = state;
        }
    }

    /// Returns what the registration `id` says beside its value.
    #[inline]
    pub(crate) fn payload(&self, id: u32) -> Option<&Payload> {
        self.terms(id).map(|terms| &terms.payload)
    }

    /// Returns what the registration `id` says and how.
    pub(crate) fn terms(&self, id: u32) -> Option<&Terms> {
        self.table.get(id)?.terms()
    }

    fn is_one_shot(&self, id: u32) -> bool {
        self.terms(id)
            .is_some_and(|terms| terms.after == After::End)
    }

    /// Tells the consumers what they have to ask the kernel for.
    fn announce(&self) {
        self.header
            .set_flags(!self.waiting.is_empty(), !self.ready.is_empty());
    }

    //
    // Rings
    //

    fn add_ring(&mut self, ring: P::Ring) {
        // CAST: Less than 32.
        let index = ring.slots().trailing_zeros() as u8;

        if let Some(room) = self.rings.get_mut(usize::from(index)) {
            *room = Some(ring);
            self.current = index;
            self.oldest = self.oldest.min(index);
        }
        self.header.set_rings(self.slots(), self.rings());
    }

    /// Adds a ring, which takes all events from now on; gives it back if it is not larger than the
    /// one that there is.
    pub(crate) fn grow(&mut self, ring: P::Ring) -> Result<(), P::Ring> {
        if ring.slots() <= self.slots() {
            return Err(ring);
        }
        self.add_ring(ring);
        Ok(())
    }

    /// Takes a ring away that will never have an event again, looking at no more than `limit` slots
    /// of each.
    pub(crate) fn retire(&mut self, limit: u32) -> Option<P::Ring> {
        let old = self.rings.iter_mut().take(self.current.into());
        let retired = old
            .filter_map(|room| {
                room.as_mut()?.advance(limit);
                room.take_if(|ring| ring.is_drained())
            })
            .next()?;

        while self.oldest < self.current && self.ring(self.oldest).is_none() {
            self.oldest = self.oldest.wrapping_add(1);
        }
        self.header.set_rings(self.slots(), self.rings());
        Some(retired)
    }

    //
    // Registrations
    //

    /// Returns how many entries the next chunk of the table has to have; [`None`] if it has all.
    pub(crate) fn next_chunk(&self) -> Option<u32> {
        self.table.next_chunk()
    }

    /// Adds a chunk of [`Entry::FREE`] to the table; gives it back if it is not of the right size.
    pub(crate) fn add_chunk(&mut self, chunk: P::Chunk) -> Result<(), P::Chunk> {
        self.table.grow(chunk)
    }

    /// Finds out which slots are free again, looking at no more than `limit`.
    ///
    /// Returns whether there may be more.
    pub(crate) fn settle_slots(&mut self, limit: u32) -> bool {
        let current = self.current;

        self.ring(current).is_some_and(|ring| ring.advance(limit))
    }

    /// Returns whether a slot can be reserved for one more edge-triggered registration.
    fn can_reserve(&mut self) -> bool {
        let slots = self.slots();
        let edges = self.edges;
        let current = self.current;

        if self.overcommit {
            return true;
        }
        self.ring(current).is_some_and(|ring| {
            if edges.saturating_add(ring.cancelled()) >= slots {
                ring.advance(ADVANCE_PER_ADD);
            }
            edges.saturating_add(ring.cancelled()) < slots
        })
    }

    /// Counts a registration that comes or goes.
    fn count_in(&mut self, trigger: Trigger) {
        self.live = self.live.wrapping_add(1);
        self.edges = self.edges.wrapping_add((trigger == Trigger::Edge).into());
    }

    fn count_out(&mut self, trigger: Trigger) {
        self.live = self.live.wrapping_sub(1);
        self.edges = self.edges.wrapping_sub((trigger == Trigger::Edge).into());
    }

    /// Reserves an id, and a slot if it is to be edge-triggered, for a registration to come.
    pub(crate) fn reserve(&mut self, trigger: Trigger) -> Result<u32, Refused> {
        if trigger == Trigger::Edge && !self.can_reserve() {
            return Err(Refused::NoSlot);
        }

        let id = match self.free.first() {
            Some(id) => {
                self.table.unlink(&mut self.free, id);
                id
            }
            None if self.used < self.table.size() => {
                let id = self.used;

                self.used = id.wrapping_add(1);
                id
            }
            None => return Err(Refused::NoRoom),
        };

        self.set_state(id, State::Reserved);
        self.count_in(trigger);
        Ok(id)
    }

    /// Says what the registration is that comes to `id`, which was reserved, so that
    /// [`Events::look_up`] finds it by `hash` from now on.
    pub(crate) fn name(&mut self, id: u32, hash: u32, terms: Terms, item: P::Item) {
        match self.table.get_mut(id) {
            Some(entry) if entry.state == State::Reserved => {
                entry.registration = Some((terms, item));
                self.table.add(id, hash);
            }
            _ => {}
        }
    }

    /// Returns the id that was named with `hash`, and of which `is_it` says so; its registration
    /// can be one that is still to come, or that has ended.
    pub(crate) fn look_up(
        &self,
        hash: u32,
        mut is_it: impl FnMut(&Terms, &P::Item) -> bool,
    ) -> Option<u32> {
        self.table.find(hash, |entry| match &entry.registration {
            Some((terms, item)) => is_it(terms, item),
            None => false,
        })
    }

    /// Gives back what was reserved for a registration that does not come.  Returns its item, to be
    /// dropped without the lock.
    pub(crate) fn unreserve(&mut self, id: u32, trigger: Trigger) -> Option<P::Item> {
        if self.state(id) != State::Reserved {
            return None;
        }
        self.count_out(trigger);
        self.free(id).map(|(_, item)| item)
    }

    /// Makes the entry `id`, which must be in no list, free.
    fn free(&mut self, id: u32) -> Option<(Terms, P::Item)> {
        self.table.forget(id);
        self.table.push(&mut self.free, id);

        let entry = self.entry(id)?;

        entry.state = State::Free;
        entry.epoch = entry.epoch.wrapping_add(1);
        entry.registration.take()
    }

    /// Registers `item` where an id was reserved for it, but not named yet, so that
    /// [`Events::look_up`] finds it by `hash`; disabled, or not.
    pub(crate) fn insert(
        &mut self,
        id: u32,
        hash: u32,
        terms: &Terms,
        item: P::Item,
        pending: Pending,
    ) {
        if let Some(entry) = self.table.get_mut(id) {
            if entry.begin(pending) {
                entry.registration = Some((*terms, item));
                self.table.add(id, hash);
            }
        }
    }

    /// Registers `item` where an id was reserved for it.
    ///
    /// It is disabled if `pending` says so.  To post what else is pending is up to the caller.
    /// Returns what is to be dropped without the lock.
    pub(crate) fn fill(
        &mut self,
        id: u32,
        terms: Terms,
        item: P::Item,
        pending: Pending,
    ) -> Option<P::Item> {
        let entry = self.entry(id)?;

        if !entry.begin(pending) {
            return Some(item);
        }
        entry
            .registration
            .replace((terms, item))
            .map(|(_, item)| item)
    }

    /// Ends the registration `id`; returns its item and what it had to say, or that it had ended.
    ///
    /// No later claim yields an event of it.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Removed<P::Item>> {
        let pending = self.withdraw(id);
        let trigger = self.terms(id)?.trigger;

        match pending {
            Ok(_) => self.count_out(trigger),
            Err(_) => self.table.unlink(&mut self.ended, id),
        }

        let (terms, item) = self.free(id)?;

        Some((terms, item, pending))
    }

    /// Changes what the registration `id` says and how, and whether it is enabled.
    ///
    /// An event that was not collected is taken back, and returned.
    pub(crate) fn modify(
        &mut self,
        id: u32,
        terms: &Terms,
        enabled: bool,
    ) -> Result<Pending, Refused> {
        let entry = self.table.get_mut(id).ok_or(Refused::Ended)?;
        let old = entry.terms().ok_or(Refused::Ended)?.trigger;

        if entry.state == State::Idle && old == terms.trigger {
            entry.set(terms, enabled);
            return Ok(Pending::Nothing);
        }

        let pending = self.withdraw_for(id, old, terms.trigger)?;

        if let Some(entry) = self.entry(id) {
            entry.set(terms, enabled);
        }
        Ok(pending)
    }

    /// Takes back the event of the registration `id`, whose trigger is to be `new`, not `old`.
    fn withdraw_for(&mut self, id: u32, old: Trigger, new: Trigger) -> Result<Pending, Refused> {
        if self.has_ended(id) {
            return Err(Refused::Ended);
        }
        if (old, new) == (Trigger::Level, Trigger::Edge) && !self.can_reserve() {
            return Err(Refused::NoSlot);
        }

        let pending = self.withdraw(id)?;

        self.count_out(old);
        self.count_in(new);
        Ok(pending)
    }

    /// Makes the registration `id` report nothing.  Its unclaimed event is taken back, and held if
    /// it is a count.
    ///
    /// Returns the event.
    pub(crate) fn disable(&mut self, id: u32, counts: bool) -> Result<Pending, Refused> {
        let pending = self.withdraw(id)?;
        let held = match pending {
            Pending::Event(value) if counts => value,
            Pending::Disabled(held) => held,
            _ => 0,
        };

        if let Some(entry) = self.entry(id) {
            entry.state = State::Disabled { held };
            entry.epoch = entry.epoch.wrapping_add(1);
        }
        Ok(pending)
    }

    /// Makes the registration `id` report again, if it does not, and returns what was held.
    pub(crate) fn enable(&mut self, id: u32) -> Result<u32, Refused> {
        match self.settle(id) {
            State::Disabled { held } => {
                self.set_state(id, State::Idle);
                Ok(held)
            }
            State::Ended => Err(Refused::Ended),
            _ => Ok(0),
        }
    }

    /// Returns the item of the registration `id`.
    #[inline]
    pub(crate) fn item(&self, id: u32) -> Option<&P::Item> {
        let (_, item) = self.table.get(id)?.registered()?;

        Some(item)
    }

    /// Returns the item of the registration `id`, to be changed.
    pub(crate) fn item_mut(&mut self, id: u32) -> Option<&mut P::Item> {
        let entry = self.entry(id)?;

        match entry.state {
            State::Reserved => None,
            _ => entry.registration.as_mut().map(|(_, item)| item),
        }
    }

    /// Returns what the registration `id` says and how, if it has not ended.
    pub(crate) fn registration(&mut self, id: u32) -> Option<(Terms, &P::Item, Seen)> {
        self.settle(id);

        let entry = self.table.get(id)?;
        let (terms, item) = entry.registration.as_ref()?;
        let seen = match entry.state {
            State::Free | State::Reserved | State::Ended => return None,
            State::Idle => Seen::Idle,
            State::Posted { .. } => Seen::Posted,
            State::Waiting { .. } => Seen::Waiting,
            State::Ready { .. } => Seen::Ready,
            State::Disabled { .. } => Seen::Disabled,
        };

        Some((*terms, item, seen))
    }

    /// Returns whether there is a registration `id` that has not ended.
    pub(crate) fn is_live(&mut self, id: u32) -> bool {
        let state = self.settle(id);

        !matches!(state, State::Free | State::Reserved | State::Ended)
    }

    /// Returns whether there is a registration `id` that has ended.
    pub(crate) fn has_ended(&mut self, id: u32) -> bool {
        self.settle(id) == State::Ended
    }

    /// Takes back the event of the registration `id`, which becomes idle, or stays disabled.
    ///
    /// Refused if it has ended, which it can have this very moment: programs claim without the
    /// queue's lock.
    fn withdraw(&mut self, id: u32) -> Result<Pending, Refused> {
        let mut state = self.state(id);

        if let State::Posted { ring, slot } = state {
            if let Some(value) = self.ring(ring).and_then(|ring| ring.cancel(slot, id)) {
                self.leave_shots(id);
                self.set_state(id, State::Idle);
                return Ok(Pending::Event(value));
            }
            self.collected(id);
            state = self.state(id);
        }
        match state {
            State::Free | State::Reserved | State::Idle | State::Posted { .. } => {
                Ok(Pending::Nothing)
            }
            State::Ended => Err(Refused::Ended),
            State::Disabled { held } => Ok(Pending::Disabled(held)),
            State::Waiting { value } => {
                self.table.unlink(&mut self.waiting, id);
                self.set_state(id, State::Idle);
                if self.waiting.is_empty() {
                    self.announce();
                }
                Ok(Pending::Event(value))
            }
            State::Ready { .. } => {
                self.leave_ready(id);
                self.set_state(id, State::Idle);
                // Any of it may be so.
                let interest = self.terms(id).map_or(0, |terms| terms.interest);

                Ok(Pending::Event(interest))
            }
        }
    }

    /// Takes the registration `id` from the level-triggered ones that may be ready.
    fn leave_ready(&mut self, id: u32) {
        self.table.unlink(&mut self.ready, id);
        if self.ready.is_empty() {
            self.announce();
        }
    }

    fn leave_shots(&mut self, id: u32) {
        if self.is_one_shot(id) {
            self.table.unlink(&mut self.shots, id);
        }
    }

    /// Does what is due to the registration `id`, which is [`State::Posted`], or was when it was
    /// found, now that its event was claimed.
    fn collected(&mut self, id: u32) {
        let Some(&Terms { after, trigger, .. }) = self.terms(id) else {
            return;
        };

        match after {
            After::Stay => self.set_state(id, State::Idle),
            After::Disable => self.set_state(id, State::Disabled { held: 0 }),
            After::End => {
                match trigger {
                    Trigger::Edge => self.table.unlink(&mut self.shots, id),
                    Trigger::Level => {}
                }
                self.set_state(id, State::Ended);
                self.table.push(&mut self.ended, id);
                self.count_out(trigger);
            }
        }
    }

    /// Finds out whether the event of the registration `id` was claimed; returns its state.
    #[inline]
    fn settle(&mut self, id: u32) -> State {
        match self.state(id) {
            State::Posted { ring, slot } => {
                self.settle_posted(id, ring, slot);
                self.state(id)
            }
            state => state,
        }
    }

    fn settle_posted(&mut self, id: u32, ring: u8, slot: u32) {
        if !self.ring(ring).is_some_and(|ring| ring.holds(slot, id)) {
            self.collected(id);
        }
    }

    /// Finds out which one-shot events were claimed, looking at no more than `limit`.
    pub(crate) fn settle_shots(&mut self, limit: u32) {
        for _ in 0..limit.min(self.shots.len()) {
            let Some(id) = self.shots.first() else {
                return;
            };

            // If it is still there, it is looked at last next time.
            self.table.unlink(&mut self.shots, id);
            self.table.push(&mut self.shots, id);
            self.settle(id);
        }
    }

    /// Returns how many one-shot registrations have an event that may be unclaimed.
    pub(crate) fn shots(&self) -> u32 {
        self.shots.len()
    }

    /// Returns how many registrations are known to have ended, and are to be removed.
    pub(crate) fn nr_ended(&self) -> u32 {
        self.ended.len()
    }

    /// Returns a registration that has ended and is to be removed.  It is put behind the others, so
    /// that one that cannot be removed yet does not stop them.
    pub(crate) fn next_ended(&mut self) -> Option<(u32, &Terms, &P::Item)> {
        let id = self.ended.first()?;

        self.table.unlink(&mut self.ended, id);
        self.table.push(&mut self.ended, id);

        let (terms, item) = self.table.get(id)?.registration.as_ref()?;

        Some((id, terms, item))
    }

    //
    // Posting
    //

    /// Reports `update` for the registration `id`, if `is_meant` says so of its item.
    ///
    /// Bits that are not of its interest are ignored.  Returns [`None`] if it is not meant.
    #[inline(always)]
    pub(crate) fn post(
        &mut self,
        id: u32,
        update: Update,
        is_meant: impl FnOnce(&P::Item) -> bool,
    ) -> Option<Post> {
        let entry = self.table.get_mut(id)?;
        let (terms, item) = entry.registration.as_ref()?;

        if entry.state == State::Reserved || !is_meant(item) {
            return None;
        }

        let update = match update {
            Update::Bits(bits) => match bits & terms.interest {
                0 => return Some(Post::Nothing),
                bits => Update::Bits(bits),
            },
            // It did not happen after all: the clock was set back.
            Update::Count(0) => return Some(Post::Nothing),
            other => other,
        };

        entry.posts = entry.posts.wrapping_add(1);
        if let State::Posted { ring, slot } = entry.state {
            // A ring that was taken away had no unclaimed event any more.
            let ring = self.rings.get_mut(usize::from(ring));
            let merge = ring
                .and_then(Option::as_mut)
                .map(|ring| ring.merge(slot, id, update));

            if merge == Some(Merge::Merged) {
                self.flush_some();
                return Some(Post::Merged);
            }
            if terms.after != After::Stay {
                self.collected(id);
                return Some(self.post_unposted(id, update));
            }
            entry.state = State::Idle;
        }
        // What most posts come to, without looking the entry up again.
        if entry.state == State::Idle
            && terms.trigger == Trigger::Edge
            && terms.after != After::End
            && self.waiting.is_empty()
        {
            let index = self.current;
            let ring = self.rings.get_mut(usize::from(index))?.as_mut()?;

            if let Some(slot) = ring.publish(id, update.apply(0), &terms.payload) {
                entry.state = State::Posted { ring: index, slot };
                return Some(Post::New);
            }
        }
        Some(self.post_unposted(id, update))
    }

    /// Reports `update` for the registration `id`, which has no event in the ring.
    fn post_unposted(&mut self, id: u32, update: Update) -> Post {
        let Some(entry) = self.table.get_mut(id) else {
            return Post::Nothing;
        };

        match &mut entry.state {
            State::Free | State::Reserved | State::Posted { .. } => Post::Nothing,
            State::Ended => Post::Ended,
            State::Disabled { held } => {
                // What is so is found out when it is enabled; what is counted is not.
                if !matches!(update, Update::Bits(_)) {
                    *held = update.apply(*held);
                }
                Post::Nothing
            }
            State::Waiting { value } => {
                *value = update.apply(*value);
                self.flush_some();
                Post::Merged
            }
            State::Ready { .. } => Post::Merged,
            State::Idle => match entry.terms().map(|terms| terms.trigger) {
                None => Post::Nothing,
                Some(Trigger::Edge) => {
                    self.flush_some();
                    if self.waiting.is_empty() && self.publish(id, update.apply(0)) {
                        return Post::New;
                    }
                    self.wait(id, update.apply(0));
                    Post::Waits
                }
                Some(Trigger::Level) => {
                    self.make_ready(id);
                    Post::New
                }
            },
        }
    }

    /// Changes the event of the registration `id` to `update`, if there is one.
    pub(crate) fn amend(&mut self, id: u32, update: Update) {
        match self.state(id) {
            State::Posted { ring, slot } => {
                if let Some(ring) = self.ring(ring) {
                    ring.merge(slot, id, update);
                }
            }
            State::Waiting { value } => self.set_state(
                id,
                State::Waiting {
                    value: update.apply(value),
                },
            ),
            State::Disabled { held } if held != 0 => self.set_state(
                id,
                State::Disabled {
                    held: update.apply(held),
                },
            ),
            _ => {}
        }
    }

    /// Posts an event to the ring if there is room.
    fn publish(&mut self, id: u32, value: u32) -> bool {
        let index = self.current;
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return false;
        };
        let (Some(ring), Some(entry)) = (ring.as_mut(), self.table.get_mut(id)) else {
            return false;
        };
        let Some((terms, _)) = &entry.registration else {
            return false;
        };

        match ring.publish(id, value, &terms.payload) {
            Some(slot) => {
                entry.state = State::Posted { ring: index, slot };
                if terms.after == After::End {
                    self.table.push(&mut self.shots, id);
                }
                true
            }
            None => false,
        }
    }

    /// Posts some of the waiting events to the ring, on behalf of a new one.
    #[inline]
    fn flush_some(&mut self) {
        if !self.waiting.is_empty() {
            self.flush(FLUSH_PER_POST);
        }
    }

    /// Posts waiting events to the ring, at most `limit` of them.
    ///
    /// Returns whether there may be more to post.
    pub(crate) fn flush(&mut self, limit: u32) -> bool {
        for _ in 0..limit {
            let Some(id) = self.waiting.first() else {
                return false;
            };
            let State::Waiting { value } = self.state(id) else {
                return false;
            };

            // A list that it may be put in comes after.
            self.table.unlink(&mut self.waiting, id);
            if !self.publish(id, value) {
                self.table.push_front(&mut self.waiting, id);
                return false;
            }
            if self.waiting.is_empty() {
                self.announce();
            }
        }
        !self.waiting.is_empty()
    }

    /// Posts waiting events to the ring, at most `limit` of them, and returns whether there was any
    /// that could be posted.
    fn let_in(&mut self, limit: u32) -> bool {
        let before = self.waiting.len();

        self.flush(limit);
        self.waiting.len() < before
    }

    /// Makes the event `value` of the registration `id` wait for room in the ring, after all others
    /// that do.
    fn wait(&mut self, id: u32, value: u32) {
        self.set_state(id, State::Waiting { value });
        self.table.push(&mut self.waiting, id);
        if self.waiting.len() == 1 {
            self.announce();
        }
    }

    /// Puts the level-triggered registration `id` behind all others that may be ready.
    fn make_ready(&mut self, id: u32) {
        let ticket = self.ticket;

        self.ticket = ticket.wrapping_add(1);
        self.set_state(id, State::Ready { ticket });
        self.table.push(&mut self.ready, id);
        if self.ready.len() == 1 {
            self.announce();
        }
    }

    //
    // Collecting
    //

    /// Begins to look for events.
    pub(crate) fn scan(&self) -> Scan {
        Scan {
            ring: self.oldest,
            pos: 0,
            ticket: self.ticket,
            turn: self.turn,
        }
    }

    /// Finds events, `max` at most, looking at no more than `limit` slots for each, and leaves in
    /// `scan` where to go on.
    ///
    /// `f` is called for each with what its registration says.  While there are events of both
    /// kinds, they take turns.  They are not claimed; see [`Events::claim`].
    #[inline]
    pub(crate) fn find(
        &mut self,
        scan: &mut Scan,
        max: u32,
        limit: u32,
        mut f: impl FnMut(Event, &Terms, &P::Item),
    ) -> Find {
        // Level-triggered registrations that are found are put behind all others, together, with a
        // ticket that no scan that is under way will find.
        let ticket = self.ticket;
        let mut ready = self.ready.first();
        let mut in_rings = true;
        let mut left = max;

        self.ticket = ticket.wrapping_add(1);

        let end = loop {
            if left == 0 {
                break Find::More;
            }

            if scan.turn == Trigger::Level || !in_rings {
                let level = ready.and_then(|id| self.table.get_next(id));

                if let (Some(id), Some((entry, next))) = (ready, level) {
                    if entry.is_ready(scan.ticket) {
                        if let Some((event, terms, item)) = entry.found_ready(id, ticket) {
                            f(event, terms, item);
                            left = left.wrapping_sub(1);
                        }
                        ready = next;
                        scan.turn = Trigger::Edge;
                        continue;
                    }
                }
                if !in_rings {
                    // A slot can have become free on the way here.
                    break if self.let_in(limit) {
                        Find::More
                    } else {
                        Find::End
                    };
                }
            }
            match self.find_posted(scan, limit, Cancelled::Claim) {
                Some((ring, found)) => {
                    if let Some(entry) = self.table.get(found.id) {
                        if let Some((terms, item)) = &entry.registration {
                            let event = Event {
                                origin: Origin::Ring { ring, found },
                                value: value_of(found.word),
                                posts: entry.posts,
                            };

                            f(event, terms, item);
                            left = left.wrapping_sub(1);
                        }
                    }
                    scan.turn = Trigger::Level;
                }
                None if self.at_end(scan) => in_rings = false,
                None => break Find::More,
            }
        };

        if ready != self.ready.first() {
            self.table.turn(&mut self.ready, ready);
        }
        end
    }

    /// Finds a level-triggered registration that may be ready, and puts it behind all others;
    /// [`None`] if there are no more.
    pub(crate) fn find_ready(&mut self, scan: &Scan) -> Option<(Event, &Terms, &P::Item)> {
        let ticket = self.ticket;
        let id = self.ready.first()?;
        let (entry, next) = self.table.get_next(id)?;

        if !entry.is_ready(scan.ticket) {
            return None;
        }
        self.ticket = ticket.wrapping_add(1);
        self.table.turn(&mut self.ready, next);

        self.table.get_mut(id)?.found_ready(id, ticket)
    }

    /// Finds the oldest unclaimed event in the rings that `scan` has not come to.
    fn find_posted(
        &mut self,
        scan: &mut Scan,
        limit: u32,
        cancelled: Cancelled,
    ) -> Option<(u8, Found)> {
        let last = self.current;

        loop {
            let index = scan.ring;

            if let Some(ring) = self.ring(index) {
                if let Some(found) = ring.find(&mut scan.pos, limit, cancelled) {
                    return Some((index, found));
                }
                if scan.pos < ring.tail() {
                    return None;
                }
            }
            if index >= last {
                return None;
            }
            scan.ring = index.wrapping_add(1);
            scan.pos = 0;
        }
    }

    /// Returns whether `scan` has come to the end of the rings.
    fn at_end(&mut self, scan: &Scan) -> bool {
        scan.ring >= self.current
            && self
                .ring(scan.ring)
                .is_none_or(|ring| scan.pos >= ring.tail())
    }

    /// Claims an event that was found.  If it is `so`, it counts as delivered, else it is
    /// forgotten.
    ///
    /// If `untouched`, it also fails if anything was posted to the ring since the event was found,
    /// even what the event says already: what the caller knows of the source may be out of date.
    pub(crate) fn claim(&mut self, event: &Event, so: bool, untouched: bool) -> Claim {
        match event.origin {
            Origin::Ring { ring, found } => {
                let posts = untouched.then_some(event.posts);

                if self.claim_posted(ring, &found, so, posts) {
                    Claim::Done
                } else {
                    Claim::Failed
                }
            }
            Origin::Level { id, epoch } => {
                // Otherwise it is not what was found any more.
                match self.table.get_mut(id) {
                    Some(entry) if entry.epoch == epoch => {}
                    _ => return Claim::Failed,
                }
                if so {
                    self.deliver_level(id)
                } else {
                    self.forget_level(id, event.posts)
                }
            }
        }
    }

    /// As [`Events::claim`]; `posts` is what it still has to be, if the event is to be untouched.
    fn claim_posted(&mut self, index: u8, found: &Found, so: bool, posts: Option<u32>) -> bool {
        let (id, slot) = (found.id, found.slot);
        let Some(entry) = self.table.get_mut(id) else {
            return false;
        };
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return false;
        };

        if entry.state != (State::Posted { ring: index, slot })
            || posts.is_some_and(|posts| entry.posts != posts)
            || !ring.as_mut().is_some_and(|ring| ring.claim(found))
        {
            return false;
        }
        if so {
            self.turn = Trigger::Level;
            self.collected(id);
        } else {
            self.leave_shots(id);
            self.set_state(id, State::Idle);
        }
        true
    }

    /// Does what is due to the level-triggered registration `id`, which was seen to be ready, even
    /// if somebody else has looked later and seen nothing.
    #[inline]
    fn deliver_level(&mut self, id: u32) -> Claim {
        let Some(entry) = self.table.get_mut(id) else {
            return Claim::Failed;
        };
        let Some((terms, _)) = &entry.registration else {
            return Claim::Failed;
        };
        let stays = terms.after == After::Stay;
        let is_ready = match entry.state {
            State::Ready { .. } => true,
            State::Idle if terms.trigger == Trigger::Level => false,
            // With the epoch of before: it has gone around.
            _ => return Claim::Failed,
        };

        self.turn = Trigger::Edge;
        match (stays, is_ready) {
            (true, true) => Claim::Done,
            (true, false) => {
                self.make_ready(id);
                Claim::Anew
            }
            (false, _) => {
                entry.epoch = entry.epoch.wrapping_add(1);
                if is_ready {
                    self.leave_ready(id);
                }
                self.collected(id);
                Claim::Done
            }
        }
    }

    /// Forgets that the level-triggered registration `id`, which was found with `posts`, may be
    /// ready.
    ///
    /// It does not matter who has found it last: if that were to decide, two that find it in turn
    /// would never forget it.
    fn forget_level(&mut self, id: u32, posts: u32) -> Claim {
        match self.table.get(id).map(|entry| (entry.state, entry.posts)) {
            // As if it had been posted right after the claim.  This scan does not come by again,
            // and who polls the queue has to learn that it is ready again.
            Some((State::Ready { .. }, now)) if now != posts => Claim::Anew,
            Some((State::Ready { .. }, _)) => {
                self.leave_ready(id);
                self.set_state(id, State::Idle);
                Claim::Done
            }
            _ => Claim::Failed,
        }
    }

    /// Counts the events to collect, no further than `limit`, looking at about `steps` slots.
    ///
    /// `counting` is [`None`] at first.  If the count takes more steps, the result is [`None`], and
    /// this is to be called again, perhaps after the lock was released: what was posted meanwhile
    /// is counted, what was claimed meanwhile can be.
    pub(crate) fn count(
        &mut self,
        counting: &mut Option<Counting>,
        limit: u32,
        steps: u32,
    ) -> Option<u32> {
        if counting.is_none() {
            self.flush(FLUSH_PER_COUNT);
        }

        let others = self.waiting.len().saturating_add(self.ready.len());
        let Counting { scan, posted } = counting.get_or_insert_with(|| Counting {
            scan: self.scan(),
            posted: 0,
        });
        let ring = scan.ring;
        let end = self.ring(ring).map_or(0, |ring| {
            ring.head().max(scan.pos).saturating_add(steps.into())
        });

        loop {
            let count = others.saturating_add(*posted);

            if count >= limit {
                return Some(limit);
            }
            // A slot that is taken out of order would be free before its turn.
            match self.find_posted(scan, steps, Cancelled::Leave) {
                Some(_) => *posted = posted.wrapping_add(1),
                None if self.at_end(scan) => return Some(count),
                None => return None,
            }
            if scan.ring != ring || scan.pos >= end {
                return None;
            }
        }
    }

    /// Takes the table of registrations away, if there are none and will not be any.
    pub(crate) fn take_table(&mut self) -> Option<Table<P::Chunk>> {
        if self.live != 0 || !self.ended.is_empty() {
            return None;
        }
        self.free = List::new();
        self.used = 0;
        Some(mem::replace(&mut self.table, Table::new()))
    }
}
