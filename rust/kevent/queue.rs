// SPDX-License-Identifier: GPL-2.0

//! The queue: what a kevent file descriptor stands for.
//!
//! # Locks
//!
//! From the outermost to the innermost:
//!
//! 1. `Queue::ctl`, a mutex: one change at a time, but for triggers and `KEVENT_OP_WAKE`, which do
//!    without.  What a name stands for that is looked up twice under it can be gone the second
//!    time, or be another registration: those that have ended are removed, and those that are
//!    moved here are inserted, without it.  Held across `->poll` of the files, so nothing that a
//!    file does may take it; in particular the release of a file does not.
//! 2. The mutex of a timer; see [`crate::timer`].
//! 3. Locks of the files: the wait queues' locks are held when [`Queue::post`] is called.
//! 4. `Queue::inner`, a spinlock with interrupts disabled: the rings, the registrations and the
//!    hash of their keys.  Taken in callbacks, in any context.  Never those of two queues.
//! 5. The locks of `waiters` and `pollers`, which are taken without `inner`, but with those of 3
//!    when a file wakes.  Nobody who is called with that of `waiters` takes a lock but the
//!    scheduler's.  Those who are called with that of `pollers` can wake others in turn, and yet
//!    never a file that is watched: what watches files cannot be watched ([`is_aggregator`]), and
//!    io_uring and aio signal their eventfds from another context.  So there is no circle.
//!
//! Taken with none of these held but `ctl` or the mutex of a timer, and without any of these
//! within: the locks of [`crate::watched`] and of the table in [`crate::timer`], `file::f_lock` and
//! `files_struct::file_lock`.
//!
//! [`is_aggregator`]: crate::files::is_aggregator
//!
//! # What protects what
//!
//! `inner` is under its lock.  `waiters` and `pollers` have locks of their own.  All other fields
//! of [`Queue`] do not change.  Programs can only read the header of the ring; the kernel writes it
//! under `inner`, with atomics, once the queue is made.  The slots are as [`crate::ring`] says.
//!
//! # Sleeping and waking
//!
//! ```text
//! waiter or poller                      poster
//!
//! (A) enter the wait queue                  lock inner
//!     lock inner                        (C) post the event
//! (B) look for events                   (D) is anybody in the wait queue?
//!     unlock inner                          unlock inner
//!     sleep, if there were none             wake, if so
//! ```
//!
//! Whichever takes the lock second sees what the other did before: if it is the waiter, B finds
//! the event of C; if it is the poster, D finds the waiter of A.  So no fence is needed beside the
//! lock.
//!
//! A wake-up goes to one waiter, and it is lost if that waiter does not collect what it was woken
//! for: because of a signal, the deadline, or because it wants more events than there are.  So a
//! waiter that leaves, or goes to sleep again, while there are events passes the wake-up on to one
//! that wants no more than these.  It finds the event that it was woken for, because leaving the
//! wait queue acquires what whoever took it off released (`list_empty_careful()`).

use crate::{
    abi::{
        kevent_params,
        OFF_SLOTS, //
    },
    events::{
        Claim,
        Entry,
        Event,
        Events,
        Parts,
        Pending,
        Post,
        Record,
        Refused,
        Removed,
        Seen,
        Terms,
        Update, //
    },
    home::{
        Home,
        Left, //
    },
    limits::{
        Charge,
        User, //
    },
    memory::{
        as_asked_for,
        RingHeader,
        RingMemory, //
    },
    ring::Ring,
    source::{
        Key,
        Source, //
    },
    table::Linked,
    trace, //
};
use kernel::{
    alloc::NumaNode,
    bindings,
    fs::{
        anon_inode::{
            FileOperations,
            FileOperationsTable, //
        },
        file::flags,
        File, //
    },
    mm::virt::VmaNew,
    page::PAGE_SIZE,
    prelude::*,
    seq_file::{
        seq_print,
        SeqFile, //
    },
    sync::{
        aref::ARef,
        new_mutex,
        new_spinlock_irq,
        poll::PollTable,
        poll_watch::mask,
        rcu_drop::drop_after_grace,
        wait::{
            new_wait_queue_head,
            Order,
            WaitQueueHead, //
        },
        Arc,
        ArcBorrow,
        Mutex,
        SpinLockIrq,
        UniqueArc, //
    },
    uapi, //
};

/// How many slots are looked at, or filled, for one event, or without one, before the lock is
/// released.
pub(crate) const STEPS: u32 = 256;

/// A registration that has ended, found without the queue's mutex.
pub(crate) struct Ended {
    pub(crate) key: Key,
    pub(crate) source: Source,
    /// Its file, if it is of one.  Dropped after the source.
    _file: Option<ARef<File>>,
}

/// The file operations of queues.
static FILE_OPERATIONS: FileOperationsTable<Queue> = FileOperationsTable::new();

/// What the events of a queue are made of.
pub(crate) struct QueueParts;

impl Parts for QueueParts {
    type Header = Arc<RingHeader>;
    type Slots = Arc<RingMemory>;
    type Records = KVVec<Record>;
    type Ring = KBox<Ring<Arc<RingMemory>, KVVec<Record>>>;
    type Chunk = KVVec<Linked<Entry<Source>>>;
    type Item = Source;
}

// What each registration takes, and up to twice that, as the table doubles.
static_assert!(size_of::<Linked<Entry<Source>>>() <= 104);

/// What the queue's lock protects.
pub(crate) struct Inner {
    pub(crate) events: Events<QueueParts>,
    /// How often all waiters were told to return.
    pub(crate) wakes: u64,
}

impl Inner {
    /// Returns the id of a registration, which can be one that has ended or is on its way here.
    fn id_of(&self, key: &Key) -> Option<u32> {
        self.events.look_up(key.hash(), |terms, source| {
            key.names(&terms.payload, source)
        })
    }

    /// Returns the id of a registration that has not ended.
    fn find(&mut self, key: &Key) -> Result<u32> {
        let id = self.id_of(key).ok_or(ENOENT)?;

        if self.events.is_live(id) {
            Ok(id)
        } else {
            Err(ENOENT)
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoSlot => ENOSPC,
            Refused::NoRoom => ENOMEM,
            Refused::Ended => ENOENT,
        }
    }
}

/// An event queue.
#[pin_data]
pub(crate) struct Queue {
    header: Arc<RingHeader>,
    /// Who pays for the registrations.
    user: User,
    /// Where the memory of rings is allocated.
    node: NumaNode,
    /// Which waiter is woken first.
    pub(crate) order: Order,
    #[pin]
    pub(crate) inner: SpinLockIrq<Inner>,
    /// Held while a change is applied.
    #[pin]
    pub(crate) ctl: Mutex<()>,
    /// Those who sleep in `kevent_getevents()`.  The key of a wake-up is how many events there may
    /// be.
    #[pin]
    pub(crate) waiters: WaitQueueHead,
    /// Those who poll the queue.
    #[pin]
    pollers: WaitQueueHead,
}

/// Returns the NUMA node that `params` ask for.
fn node_of(params: &kevent_params) -> Result<NumaNode> {
    if params.flags & uapi::KEVENT_INIT_NODE == 0 {
        return match params.node {
            0 => Ok(NumaNode::NO_NODE),
            _ => Err(EINVAL),
        };
    }

    let node = NumaNode::new(params.node.try_into().map_err(|_| EINVAL)?)?;

    // SAFETY: It is the number of a possible node.
    if unsafe { bindings::kevent_node_has_memory(params.node) } {
        Ok(node)
    } else {
        Err(EINVAL)
    }
}

/// Makes a ring.  May sleep.
fn new_ring(slots: u32, node: NumaNode) -> Result<<QueueParts as Parts>::Ring> {
    let memory = Arc::new(RingMemory::new(slots, node)?, GFP_KERNEL_ACCOUNT)?;
    let records = KVVec::from_elem(Record::UNUSED, slots as usize, as_asked_for())?;

    let ring = Ring::new(memory, records).ok_or(EINVAL)?;

    Ok(KBox::new(ring, GFP_KERNEL_ACCOUNT)?)
}

/// Returns how many slots a ring gets of which `wanted` are wanted.
fn slots_for(wanted: u64) -> Result<u32> {
    match u32::try_from(wanted) {
        Ok(wanted @ 1..=uapi::KEVENT_MAX_SLOTS) => Ok(wanted.next_power_of_two()),
        _ => Err(EINVAL),
    }
}

impl Queue {
    /// Makes a queue and its file as `params` say, and completes `params`.  May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the parameters are not valid.  `ENOMEM`, `ENFILE`.
    pub(crate) fn create(params: &mut kevent_params) -> Result<ARef<File>> {
        const FLAGS: u32 =
            uapi::KEVENT_INIT_OVERCOMMIT | uapi::KEVENT_INIT_NODE | uapi::KEVENT_INIT_LIFO;

        if params.flags & !FLAGS != 0 || params.resv32 != 0 || params.resv != [0; 2] {
            return Err(EINVAL);
        }

        let slots = slots_for(params.slots.into())?;
        let node = node_of(params)?;
        let header = Arc::new(RingHeader::new(node)?, GFP_KERNEL_ACCOUNT)?;
        let ring = new_ring(slots, node)?;
        let overcommit = params.flags & uapi::KEVENT_INIT_OVERCOMMIT != 0;
        let order = if params.flags & uapi::KEVENT_INIT_LIFO != 0 {
            Order::Lifo
        } else {
            Order::Fifo
        };

        params.slots = slots;
        params.header_size = header.size() as u64;
        params.slots_size = ring.mem().size() as u64;

        let inner = Inner {
            events: Events::new(header.clone(), ring, overcommit),
            wakes: 0,
        };
        let queue = Arc::pin_init(
            pin_init!(Self {
                header,
                user: User::current(),
                node,
                order,
                inner <- new_spinlock_irq!(inner, "kevent_inner"),
                ctl <- new_mutex!((), "kevent_ctl"),
                waiters <- new_wait_queue_head!("kevent_waiters"),
                pollers <- new_wait_queue_head!("kevent_pollers"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;

        FILE_OPERATIONS.create(c"[kevent]", queue, flags::O_RDWR)
    }

    /// Returns the queue of a file, or [`None`] if it is another kind of file.
    pub(crate) fn of(file: &File) -> Option<ArcBorrow<'_, Queue>> {
        FILE_OPERATIONS.data(file)
    }

    //
    // Posting
    //

    /// Reports `update` for the registration `id`, if it is here and `is_meant` says so of its
    /// source.  Can be called in any context.
    ///
    /// `wake_bits` are passed on to those who poll the queue.  Returns [`None`] if the registration
    /// is not here.
    #[inline(always)]
    pub(crate) fn post(
        &self,
        id: u32,
        update: Update,
        wake_bits: u32,
        is_meant: impl FnOnce(&Source) -> bool,
    ) -> Option<Posted> {
        let mut inner = self.inner.lock();
        let post = inner.events.post(id, update, is_meant)?;
        let wake = self.posted(&mut inner, id, update, post);

        drop(inner);
        Some(Posted {
            post,
            woken: self.wake(wake, wake_bits),
        })
    }

    /// Reports `update` for the registration `id`.
    fn post_locked(&self, inner: &mut Inner, id: u32, update: Update) -> Option<Wake> {
        let post = inner.events.post(id, update, |_| true)?;

        self.posted(inner, id, update, post)
    }

    /// Does what is to be done with the lock held when `update` was posted; returns whom to wake,
    /// for [`Queue::wake`].
    #[inline(always)]
    fn posted(&self, inner: &mut Inner, id: u32, update: Update, post: Post) -> Option<Wake> {
        if trace::posts() {
            self.trace_post(inner, id, update, post);
        }
        if post.is_new() {
            self.whom_to_wake(inner)
        } else {
            None
        }
    }

    /// Returns whom to wake for a new event, if there is anybody.
    #[inline(always)]
    fn whom_to_wake(&self, inner: &Inner) -> Option<Wake> {
        // (D)
        let (waiters, pollers) = (self.waiters.is_active(), self.pollers.is_active());

        if !waiters && !pollers {
            return None;
        }
        Some(Wake {
            waiters,
            pollers,
            ready: inner.events.ready_at_most(),
        })
    }

    #[cold]
    fn trace_post(&self, inner: &mut Inner, id: u32, update: Update, post: Post) {
        let Some(terms) = inner.events.terms(id) else {
            return;
        };
        let value = match update {
            Update::Bits(bits) => bits & terms.interest,
            other => other.apply(0),
        };

        match post {
            Post::New => trace::post(self, &terms.payload, value),
            Post::Waits => trace::overflow(self, &terms.payload, value),
            Post::Merged => trace::merge(self, &terms.payload, value),
            Post::Nothing | Post::Ended => {}
        }
    }

    /// Wakes whoever waits for what was posted.  Must be called without the lock.
    ///
    /// Returns whether there is somebody.
    #[inline(always)]
    fn wake(&self, wake: Option<Wake>, wake_bits: u32) -> bool {
        wake.is_some_and(|wake| self.wake_them(&wake, wake_bits))
    }

    #[cold]
    fn wake_them(&self, wake: &Wake, wake_bits: u32) -> bool {
        let woken = wake.waiters && self.waiters.wake_one(wake.ready as usize);

        if wake.pollers {
            self.wake_pollers(wake_bits);
        }
        woken || wake.pollers
    }

    /// Wakes whoever waits, for an event that was looked at but not collected.
    pub(crate) fn wake_for_others(&self) {
        let wake = self.whom_to_wake(&self.inner.lock());

        self.wake(wake, 0);
    }

    /// Wakes those who poll the queue, and passes `wake_bits` on to them.
    pub(crate) fn wake_pollers(&self, wake_bits: u32) {
        self.pollers
            .wake_one((mask::IN | mask::RDNORM | wake_bits) as usize);
    }

    /// Wakes those who poll the queue if level-triggered registrations may be ready.
    pub(crate) fn tell_pollers_of_level(&self) {
        if self.header.flags() & uapi::KEVENT_RING_LEVEL_READY != 0 && self.pollers.is_active() {
            self.wake_pollers(0);
        }
    }

    /// Claims events that were found, each with whether it is so and to be untouched, until one
    /// cannot be claimed; see [`Events::claim`].
    ///
    /// Returns how many were claimed.
    pub(crate) fn claim_all<'a>(
        &self,
        events: impl IntoIterator<Item = (&'a Event, bool, bool)>,
    ) -> usize {
        let mut claimed = 0;
        let wake = {
            let mut inner = self.inner.lock();
            let mut anew = false;

            for (event, so, untouched) in events {
                match inner.events.claim(event, so, untouched) {
                    Claim::Done => {}
                    Claim::Anew => anew = true,
                    Claim::Failed => break,
                }
                claimed += 1;
            }
            if anew {
                self.whom_to_wake(&inner)
            } else {
                None
            }
        };

        self.wake(wake, 0);
        claimed
    }

    /// Reports `update` of a source that is not active by itself.
    ///
    /// # Errors
    ///
    /// What `f` says.
    pub(crate) fn trigger(
        &self,
        key: &Key,
        f: impl FnOnce(&mut Source) -> Result<Effect>,
    ) -> Result {
        let wake = {
            let mut inner = self.inner.lock();
            let id = inner.find(key)?;

            match f(inner.events.item_mut(id).ok_or(ENOENT)?)? {
                Effect::Post(update) => match inner.events.post(id, update, |_| true) {
                    // It was claimed this very moment.
                    None | Some(Post::Ended) => return Err(ENOENT),
                    Some(post) => self.posted(&mut inner, id, update, post),
                },
                Effect::Amend(update) => {
                    inner.events.amend(id, update);
                    None
                }
            }
        };

        self.wake(wake, 0);
        Ok(())
    }

    /// Makes all threads return that wait for events.
    pub(crate) fn wake_all(&self) {
        {
            let mut inner = self.inner.lock();

            inner.wakes = inner.wakes.wrapping_add(1);
        }
        if self.waiters.is_active() {
            self.waiters.wake_all(usize::MAX);
        }
    }

    //
    // Registrations
    //

    /// Makes room for one registration more, if there is none.  May sleep.
    fn make_room(&self, len: u32) -> Result {
        let mut chunk = KVVec::with_capacity(len as usize, as_asked_for())?;

        for _ in 0..len {
            chunk
                .push_within_capacity(Linked::new(Entry::FREE))
                .map_err(|_| ENOMEM)?;
        }

        // If somebody else was faster, it is not needed, and freed without the lock.
        let _unused = self.inner.lock().events.add_chunk(chunk);

        Ok(())
    }

    /// Calls `f` until it is not refused for want of something that can be had.
    fn retry<R>(&self, mut f: impl FnMut(&mut Inner) -> Result<Result<R, Refused>>) -> Result<R> {
        let mut settled = false;

        loop {
            let len = {
                let mut inner = self.inner.lock();

                match f(&mut inner)? {
                    Ok(result) => return Ok(result),
                    Err(refused) => match (refused, inner.events.next_chunk()) {
                        (Refused::NoRoom, Some(len)) => Some(len),
                        _ if settled => return Err(refused.into()),
                        _ => None,
                    },
                }
            };

            match len {
                Some(len) => self.make_room(len)?,
                None => {
                    settled = true;
                    self.settle_all();
                }
            }
        }
    }

    /// Counts one registration more.
    fn charge(&self) -> Result<Charge<'_>> {
        self.user.charge().or_else(|_| {
            self.settle_all();
            self.user.charge()
        })
    }

    /// Reserves an id, and a slot, for a registration called `key`, and does `then` with it, under
    /// the lock.
    ///
    /// # Errors
    ///
    /// `EEXIST`: it is there already.  `ENOSPC`: no slot left to reserve.  `EDQUOT`: the user has
    /// too many registrations.  `ENOMEM`.
    fn reserve_and(
        &self,
        key: &Key,
        terms: &Terms,
        mut then: impl FnMut(&mut Inner, u32),
    ) -> Result<u32> {
        let charge = self.charge()?;
        let id = self.retry(|inner| {
            if inner.id_of(key).is_some() {
                return Err(EEXIST);
            }
            Ok(inner
                .events
                .reserve(terms.trigger)
                .inspect(|&id| then(inner, id)))
        })?;

        charge.keep();
        Ok(id)
    }

    /// Reserves an id, and a slot, for a registration that is to come.
    ///
    /// # Errors
    ///
    /// As [`Queue::reserve_and`].
    pub(crate) fn reserve(&self, key: &Key, terms: &Terms, source: &Source) -> Result<u32> {
        self.reserve_and(key, terms, |inner, id| {
            inner.events.name(id, key.hash(), *terms, source.clone());
        })
    }

    /// Gives a reservation back.
    pub(crate) fn unreserve(&self, id: u32, terms: &Terms) {
        let source = self.inner.lock().events.unreserve(id, terms.trigger);

        drop(source);
        self.user.uncharge();
    }

    /// Puts a registration where an id was reserved for it, and tells its home, for which there is
    /// `room`; `pending` is what it has to say.
    ///
    /// If its descriptor was closed meanwhile, it says nothing any more; the caller ends it.
    pub(crate) fn fill(
        self: ArcBorrow<'_, Self>,
        id: u32,
        terms: Terms,
        source: &Source,
        pending: Pending,
        room: Option<UniqueArc<Left>>,
    ) {
        let ours = source.clone();
        let (_unused, left, wake) = {
            let mut inner = self.inner.lock();
            // Before anybody can take it from here, to move it on.
            let left = match (source.home(), room) {
                (Some(home), Some(room)) => Some(home.settle(self.into(), id, room)),
                _ => None,
            };
            let strays = source.home().and_then(Home::take_strays);
            let pending = match source.is_closed() {
                true => Pending::Disabled(0),
                false => pending,
            };
            let unused = inner.events.fill(id, terms, ours, pending);
            let mut wake = None;

            if let Pending::Event(value) = pending {
                wake = self.post_locked(&mut inner, id, source.update(value));
            }
            // Under the lock, so that nobody changes what is registered before it has these.
            if let Some(value) = strays {
                wake = wake.or(self.post_locked(&mut inner, id, source.update(value)));
            }

            (unused, left, wake)
        };

        if let Some(left) = left {
            drop_after_grace(left);
        }
        self.wake(wake, 0);
    }

    /// Puts a new registration in the table, which cannot be active yet.
    ///
    /// # Errors
    ///
    /// As [`Queue::reserve_and`].
    pub(crate) fn insert(&self, key: &Key, terms: &Terms, source: Source, enabled: bool) -> Result {
        let pending = match enabled {
            true => Pending::Nothing,
            false => Pending::Disabled(0),
        };
        let mut source = Some(source);

        self.reserve_and(key, terms, |inner, id| {
            if let Some(source) = source.take() {
                if let Some(home) = source.home() {
                    home.set_id(id);
                }
                inner.events.insert(id, key.hash(), terms, source, pending);
            }
        })?;
        Ok(())
    }

    /// Changes what a registration says and how, and its source to `new` if that is given.
    ///
    /// Returns what `look` finds in its old source.  What it had to say is taken back; `again` is
    /// called with what `look` found, and tells what of it is to be reported after all.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is none.  `ENOSPC`: no slot left to reserve.  What `look` says.
    pub(crate) fn modify<R>(
        &self,
        key: &Key,
        terms: &Terms,
        enabled: bool,
        new: Option<Source>,
        mut look: impl FnMut(&Source) -> Result<R>,
        again: impl Fn(&R, Pending) -> Option<Update>,
    ) -> Result<R> {
        let mut new = new;
        let (found, wake) = self.retry(|inner| {
            let id = inner.id_of(key).ok_or(ENOENT)?;

            // Whatever else is wrong, one that has ended is not there.
            if !inner.events.is_live(id) {
                return Err(ENOENT);
            }

            let found = look(inner.events.item(id).ok_or(ENOENT)?)?;
            let pending = match inner.events.modify(id, terms, enabled) {
                Ok(pending) => pending,
                Err(refused) => return Ok(Err(refused)),
            };

            if let (Some(item), Some(new)) = (inner.events.item_mut(id), new.take()) {
                *item = new;
            }
            if let Pending::Event(value) = pending {
                trace::cancel(self, &terms.payload, value);
            }

            let wake =
                again(&found, pending).and_then(|update| self.post_locked(inner, id, update));

            Ok(Ok((found, wake)))
        })?;

        self.wake(wake, 0);
        Ok(found)
    }

    /// Makes a registration report nothing.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is none.
    pub(crate) fn disable(&self, key: &Key) -> Result {
        let mut inner = self.inner.lock();
        let id = inner.find(key)?;
        let counts = inner.events.item(id).is_some_and(Source::counts);

        if let Pending::Event(value) = inner.events.disable(id, counts)? {
            if let Some(payload) = inner.events.payload(id) {
                trace::cancel(self, payload, value);
            }
        }
        Ok(())
    }

    /// Makes a registration report again, and returns how, and what it is of.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is none.
    pub(crate) fn enable(&self, key: &Key) -> Result<(Terms, Source)> {
        let (result, wake) = {
            let mut inner = self.inner.lock();
            let id = inner.find(key)?;
            let held = inner.events.enable(id)?;
            let source = inner.events.item(id).ok_or(ENOENT)?.clone();
            let terms = *inner.events.terms(id).ok_or(ENOENT)?;
            let wake = match held {
                0 => None,
                held => self.post_locked(&mut inner, id, source.update(held)),
            };

            ((terms, source), wake)
        };

        self.wake(wake, 0);
        Ok(result)
    }

    /// Returns what a registration says, how and of what.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is none.
    pub(crate) fn look_up(&self, key: &Key) -> Result<(Terms, Source)> {
        let mut inner = self.inner.lock();
        let id = inner.find(key)?;
        let (terms, source, _) = inner.events.registration(id).ok_or(ENOENT)?;

        Ok((terms, source.clone()))
    }

    /// Takes a registration from the table if `which` says so of it, and takes its event back.
    ///
    /// Whoever gets it has to finish its source.
    fn take_if(
        &self,
        key: &Key,
        which: impl FnOnce(&mut Inner, u32) -> bool,
    ) -> Option<Removed<Source>> {
        let taken = {
            let mut inner = self.inner.lock();
            let id = inner.id_of(key)?;

            if !which(&mut inner, id) {
                return None;
            }

            let taken = inner.events.remove(id)?;

            if let (terms, _, Ok(Pending::Event(value))) = &taken {
                trace::cancel(self, &terms.payload, *value);
            }
            taken
        };

        self.user.uncharge();
        Some(taken)
    }

    /// Takes a registration from the table that has not ended, if `is_meant` says so of its
    /// source.  May sleep.
    ///
    /// Its file, if it is of one, must be referenced by the caller.
    pub(crate) fn take(
        &self,
        key: &Key,
        is_meant: impl FnOnce(&Source) -> bool,
    ) -> Option<(Terms, Source, Pending)> {
        let (terms, source, pending) = self.take_if(key, |inner, id| {
            inner.events.is_live(id) && inner.events.item(id).is_some_and(is_meant)
        })?;

        match pending {
            Ok(pending) => Some((terms, source, pending)),
            Err(_) => {
                source.finish();
                None
            }
        }
    }

    /// Takes the registration from the table whose source has this `home`.  Returns whether it was
    /// there.
    pub(crate) fn take_home(&self, key: &Key, home: &Home) -> bool {
        let taken = self.take_if(key, |inner, id| {
            let source = inner.events.item(id);

            source.is_some_and(|source| source.is_at(home))
        });

        taken.is_some()
    }

    /// Removes the one-shot registrations whose event was claimed, as far as that is known.  May
    /// sleep.
    pub(crate) fn reap(&self) {
        let ended = self.inner.lock().events.nr_ended();

        for _ in 0..ended {
            if let Some(Ended { key, source, _file }) = self.next_ended() {
                self.remove_ended(&key, |found| found.is_same(&source));
            }
        }
    }

    /// Returns the next registration that has ended, if it can be removed.
    pub(crate) fn next_ended(&self) -> Option<Ended> {
        let mut inner = self.inner.lock();
        let (_, terms, source) = inner.events.next_ended()?;

        if !source.is_complete() {
            return None;
        }
        Some(Ended {
            key: source.key(&terms.payload),
            source: source.clone(),
            // If there is no reference to be had, the release of the file removes it.
            //
            // SAFETY: The registration is in the table, and the lock is held.
            _file: unsafe { source.pin() }?,
        })
    }

    /// Removes a registration if it has ended, and `is_meant` says so of its source.  May sleep.
    ///
    /// It must be complete, and its file, if it is of one, referenced by the caller.  So without
    /// the queue's mutex it has to be the one that was found so: another one of its name can have
    /// been added meanwhile, and is still being made.
    pub(crate) fn remove_ended(&self, key: &Key, is_meant: impl FnOnce(&Source) -> bool) {
        let taken = self.take_if(key, |inner, id| {
            inner.events.has_ended(id) && inner.events.item(id).is_some_and(is_meant)
        });

        if let Some((_, source, _)) = taken {
            source.finish();
        }
    }

    /// Finds out which one-shot registrations have ended, and removes them, and which slots are
    /// free again.  May sleep.
    pub(crate) fn settle_all(&self) {
        let mut left = self.inner.lock().events.shots();

        while left > 0 {
            self.inner.lock().events.settle_shots(STEPS);
            left = left.saturating_sub(STEPS);
        }
        while self.inner.lock().events.settle_slots(STEPS) {}
        self.reap();
    }

    /// Finds out whether the registration has ended, and removes it then.  May sleep.
    ///
    /// Must be called with the queue's mutex held, and with a reference to the file, if it is of
    /// one.  Returns whether there is none now.
    pub(crate) fn settle(&self, key: &Key) -> bool {
        self.remove_ended(key, |_| true);
        self.inner.lock().id_of(key).is_none()
    }

    /// Removes what is known to have ended, and rings that will have no more events.  May sleep.
    pub(crate) fn tidy(&self) {
        if self.inner.lock().events.nr_ended() != 0 {
            self.reap();
        }
        self.retire();
    }

    /// Ends all registrations, of a queue that has no file any more.  May sleep.
    fn end_all(&self) {
        let ids = self.inner.lock().events.ids();

        for id in 0..ids {
            // If there is no reference to be had, the release of the file ends the registration.
            let pinned = {
                let inner = self.inner.lock();

                inner.events.item(id).and_then(|source| {
                    let payload = inner.events.payload(id)?;
                    let key = source.key(payload);

                    // SAFETY: The registration is in the table, and the lock is held.
                    Some((key, unsafe { source.pin() }?))
                })
            };

            if let Some((key, _file)) = pinned {
                if let Some((_, source, _)) = self.take_if(&key, |_, found| found == id) {
                    source.finish();
                }
            }
        }
    }

    //
    // Rings
    //

    /// Takes rings away that will have no events any more.  May sleep.
    pub(crate) fn retire(&self) {
        if self.header.rings().is_power_of_two() {
            return;
        }
        loop {
            let retired = self.inner.lock().events.retire(STEPS);

            // Freed without the lock.
            if retired.is_none() {
                return;
            }
        }
    }

    /// Makes a ring of at least `slots` slots, which takes all events from now on.  May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there are as many already, or it is too many.  `ENOMEM`.
    pub(crate) fn grow(&self, slots: u64) -> Result {
        let slots = slots_for(slots)?;

        if slots <= self.inner.lock().events.slots() {
            return Err(EINVAL);
        }

        let ring = new_ring(slots, self.node)?;
        let result = self.inner.lock().events.grow(ring);

        // If it is not needed, it is freed without the lock.
        result.map_err(|_ring| EINVAL)?;
        while self.inner.lock().events.flush(STEPS) {}
        Ok(())
    }

    /// Counts the events, no further than `limit`.
    pub(crate) fn count(&self, limit: u32) -> u32 {
        let mut counting = None;

        loop {
            let mut inner = self.inner.lock();

            if let Some(count) = inner.events.count(&mut counting, limit, STEPS) {
                return count;
            }
        }
    }
}

/// What became of what happened.
pub(crate) struct Posted {
    pub(crate) post: Post,
    /// Whether somebody was woken.
    pub(crate) woken: bool,
}

/// Whom to wake for an event.
struct Wake {
    waiters: bool,
    pollers: bool,
    /// At most how many events there are.
    ready: u64,
}

/// What a program does to a source that it triggers.
pub(crate) enum Effect {
    /// Report this.
    Post(Update),
    /// Change an event that was not collected yet to this.
    Amend(Update),
}

#[vtable]
impl FileOperations for Queue {
    type Data = Arc<Self>;

    fn release(queue: Arc<Self>) {
        queue.end_all();
        // The last reference can be dropped after a grace period, in softirq context, where so much
        // memory should not be freed.
        let table = queue.inner.lock().events.take_table();

        drop(table);
    }

    fn poll(queue: ArcBorrow<'_, Self>, file: &File, table: PollTable<'_>) -> u32 {
        // (A)
        //
        // SAFETY: The queue lives at least as long as its file.
        unsafe { table.register_wait_queue(file, &queue.pollers) };

        // (B)
        if queue.count(1) > 0 {
            mask::IN | mask::RDNORM
        } else {
            0
        }
    }

    fn mmap(queue: ArcBorrow<'_, Self>, vma: &VmaNew, offset: usize) -> Result {
        if offset == 0 {
            return queue.header.map(vma);
        }

        let slots = offset
            .checked_mul(PAGE_SIZE)
            .filter(|bytes| bytes % OFF_SLOTS == 0)
            .and_then(|bytes| u32::try_from(bytes / OFF_SLOTS).ok())
            .ok_or(EINVAL)?;
        let memory = queue.inner.lock().events.ring_slots(slots).cloned();

        memory.ok_or(EINVAL)?.map(vma)
    }

    fn show_fdinfo(queue: ArcBorrow<'_, Self>, to: &SeqFile) {
        queue.settle_all();

        let (slots, rings, posted, waiting, level, live, ids) = {
            let inner = queue.inner.lock();
            let events = &inner.events;

            (
                events.slots(),
                events.rings(),
                events.posted_at_most(),
                events.waiting(),
                events.level_ready(),
                events.live(),
                events.ids(),
            )
        };

        seq_print!(to, "kevent-slots:\t{slots}\n");
        seq_print!(to, "kevent-rings:\t{rings}\n");
        seq_print!(to, "kevent-flags:\t{:x}\n", queue.header.flags());
        seq_print!(to, "kevent-posted:\t{posted}\n");
        seq_print!(to, "kevent-waiting:\t{waiting}\n");
        seq_print!(to, "kevent-level:\t{level}\n");
        seq_print!(to, "kevent-registrations:\t{live}\n");

        for id in 0..ids {
            let found = queue
                .inner
                .lock()
                .events
                .registration(id)
                .map(|(terms, _, seen)| (terms, seen));
            let Some((terms, seen)) = found else {
                continue;
            };
            let state = match seen {
                Seen::Idle => "idle",
                Seen::Posted => "posted",
                Seen::Waiting => "waiting",
                Seen::Ready => "ready",
                Seen::Disabled => "disabled",
            };
            let Terms {
                payload,
                interest,
                flags,
                ..
            } = terms;

            // All of it is asked for again, with a larger buffer.
            if to.has_overflowed() {
                return;
            }
            seq_print!(
                to,
                "source:{} ident:{} tag:{} events:{:x} flags:{:x} user_data:{:x} state:{}\n",
                payload.source,
                payload.ident,
                payload.tag,
                interest & !uapi::KEVENT_FD_HINT,
                flags,
                payload.user_data,
                state
            );
        }
    }
}
