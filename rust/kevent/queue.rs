// SPDX-License-Identifier: GPL-2.0

//! The queue: what a kevent file descriptor stands for.
//!
//! # Locks
//!
//! From the outermost to the innermost:
//!
//! 1. `Queue::ctl`, a mutex: one change at a time.  Held across `->poll` of the files, so nothing
//!    that a file does may take it; in particular the release of a file does not.
//! 2. Locks of the files: the wait queues' locks are held when [`Queue::post`] is called.
//! 3. `Queue::inner`, a spinlock with interrupts disabled: the ring, the registrations and the
//!    table of their keys.  Taken in callbacks, in any context.
//!
//! The wait queues `waiters` and `pollers` are woken, and entered, without `inner`.  The locks of
//! [`crate::watched`] are taken with none of these held but `ctl`.
//!
//! # Sleeping and waking
//!
//! ```text
//! waiter or poller                      poster
//!
//! (A) enter the wait queue                  lock inner
//!     lock inner                        (C) post the event
//! (B) look for events                       unlock inner
//!     unlock inner                      (D) is anybody in the wait queue?
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
//! that wants no more than these.

use crate::{
    abi::{
        kevent_params,
        Op,
        Ukevent,
        FD_HINT, //
    },
    events::{
        Entry,
        Event,
        Events,
        Post,
        Record, //
    },
    fd,
    fd::Watch,
    memory::RingMemory,
    ring::Payload, //
};
use kernel::{
    current,
    fs::{
        anon_inode::{
            FileOperations,
            FileOperationsTable, //
        },
        file::flags,
        File,
        UncountedFile, //
    },
    mm::virt::VmaNew,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        aref::ARef,
        new_mutex,
        new_spinlock_irq,
        poll::PollTable,
        poll_watch::mask,
        wait::{
            new_wait_queue_head,
            Deadline,
            WaitQueueHead, //
        },
        Arc,
        ArcBorrow,
        Mutex,
        SpinLockIrq, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi, //
};

/// How many slots are looked at, or filled, without releasing the lock.
const STEPS: u32 = 256;

/// How many changes or events a call can be given: as many as fit in 2 GiB, so that a count of them
/// fits in what a system call returns.
const MAX_UKEVENTS: u32 = i32::MAX as u32 / size_of::<Ukevent>() as u32;

/// How often an event is looked at again because its source was woken meanwhile.
const LOOKS: u32 = 3;

/// The file operations of queues.
static FILE_OPERATIONS: FileOperationsTable<Queue> = FileOperationsTable::new();

/// What names a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    source: u32,
    ident: u64,
    file: UncountedFile,
}

impl Key {
    /// Makes the key of a registration with `source`, one of `KEVENT_SOURCE_*`.
    pub(crate) fn new(source: u32, ident: u64, file: UncountedFile) -> Self {
        Self {
            source,
            ident,
            file,
        }
    }
}

/// What the queue's lock protects.
///
/// # Invariants
///
/// `keys` has the keys of the registrations in `events`, and their ids.
struct Inner {
    events: Events<Arc<RingMemory>, KVVec<Record>, KVVec<Entry<Arc<Watch>>>>,
    keys: RBTree<Key, u32>,
}

/// An event queue.
#[pin_data]
pub(crate) struct Queue {
    memory: Arc<RingMemory>,
    #[pin]
    inner: SpinLockIrq<Inner>,
    /// Held while a change is applied.
    #[pin]
    ctl: Mutex<()>,
    /// Those who sleep in `kevent_getevents()`.  The key of a wake-up is how many events there may
    /// be.
    #[pin]
    waiters: WaitQueueHead,
    /// Those who poll the queue.
    #[pin]
    pollers: WaitQueueHead,
}

impl Queue {
    /// Makes a queue and its file as `params` say, and completes `params`.  May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the parameters are not valid.  `ENOMEM`, `ENFILE`.
    pub(crate) fn create(params: &mut kevent_params) -> Result<ARef<File>> {
        if params.flags != 0 || params.resv != [0; 3] {
            return Err(EINVAL);
        }
        if params.slots == 0 || params.slots > uapi::KEVENT_MAX_SLOTS {
            return Err(EINVAL);
        }

        let slots = params.slots.next_power_of_two();
        let count = slots as usize;
        let memory = Arc::new(RingMemory::new(slots)?, GFP_KERNEL_ACCOUNT)?;
        let mut entries = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;

        for _ in 0..count {
            entries
                .push_within_capacity(Entry::FREE)
                .map_err(|_| ENOMEM)?;
        }

        let records = KVVec::from_elem(Record::UNUSED, count, GFP_KERNEL_ACCOUNT)?;
        let inner = Inner {
            events: Events::new(memory.clone(), records, entries).ok_or(EINVAL)?,
            keys: RBTree::new(),
        };

        params.slots = slots;
        params.header_size = memory.header_size() as u64;
        params.slots_size = memory.slots_size() as u64;

        let queue = Arc::pin_init(
            pin_init!(Self {
                memory,
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

    /// Reports `bits` for the registration `id`.  Can be called in any context.
    ///
    /// `wake_bits` are passed on to those who poll the queue.
    pub(crate) fn post(&self, id: u32, bits: u32, wake_bits: u32) {
        let ready = {
            let mut inner = self.inner.lock();

            match inner.events.post(id, bits, fd::ALWAYS | FD_HINT) {
                Post::New => inner.events.ready_at_most(),
                Post::Nothing => return,
            }
        };

        // (D)
        if self.waiters.is_active() {
            self.waiters.wake_one(ready as usize);
        }
        if self.pollers.is_active() {
            self.pollers
                .wake_one((mask::IN | mask::RDNORM | wake_bits) as usize);
        }
    }

    /// Puts a registration in the table.
    ///
    /// # Errors
    ///
    /// `EEXIST`: it is there already.  `ENOSPC`: no slot left to reserve.
    pub(crate) fn insert(
        &self,
        key: Key,
        payload: Payload,
        interest: u32,
        watch: Arc<Watch>,
        node: RBTreeNodeReservation<Key, u32>,
    ) -> Result<u32> {
        let mut inner = self.inner.lock();

        if inner.keys.get(&key).is_some() {
            return Err(EEXIST);
        }

        let id = inner
            .events
            .add(payload, interest, watch.clone())
            .map_err(|_| ENOSPC)?;

        watch.handler().set_id(id);
        inner.keys.insert(node.into_node(key, id));
        Ok(id)
    }

    /// Changes what a registration reports, and returns its id.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is none.
    pub(crate) fn modify(&self, key: Key, interest: u32, user_data: u64) -> Result<u32> {
        let mut inner = self.inner.lock();
        let id = *inner.keys.get(&key).ok_or(ENOENT)?;

        inner.events.modify(id, interest, user_data);
        Ok(id)
    }

    /// Takes a registration from the table and cancels its event.
    ///
    /// Whoever gets the watch has to disarm it.
    pub(crate) fn take(&self, key: Key) -> Option<Arc<Watch>> {
        let mut inner = self.inner.lock();
        let node = inner.keys.remove_node(&key)?;
        let (_, id) = node.to_key_value();

        inner.events.remove(id)
    }

    /// Takes the registration of `watch` from the table, if it is there, as [`Queue::take`] does.
    pub(crate) fn take_watch(&self, key: Key, watch: &Arc<Watch>) -> bool {
        let mut inner = self.inner.lock();

        match inner.keys.get(&key).copied() {
            Some(id)
                if inner
                    .events
                    .item(id)
                    .is_some_and(|item| Arc::ptr_eq(item, watch)) =>
            {
                inner.keys.remove_node(&key);
                inner.events.remove(id);
                true
            }
            _ => false,
        }
    }

    /// Applies one change.  May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what no source knows, and those of the source.
    fn apply(self: ArcBorrow<'_, Self>, change: &Ukevent) -> Result {
        let op = Op::try_from(change.0.op)?;

        if u32::from(change.0.source) != uapi::KEVENT_SOURCE_FD || !change.reserved_is_zero() {
            return Err(EINVAL);
        }

        let _ctl = self.ctl.lock();

        match op {
            Op::Add => fd::add(self, change),
            Op::Modify => fd::modify(self, change),
            Op::Delete => fd::delete(self, change),
        }
    }

    /// Applies `nr` changes and returns how many were; see `kevent_ctl()`.  May sleep.
    pub(crate) fn ctl(
        self: ArcBorrow<'_, Self>,
        changes: UserPtr,
        nr: u32,
        flags: u32,
    ) -> Result<u32> {
        if flags & !uapi::KEVENT_CTL_RESULTS != 0 || nr > MAX_UKEVENTS {
            return Err(EINVAL);
        }

        let results = flags & uapi::KEVENT_CTL_RESULTS != 0;
        let mut applied = 0;
        let mut changes = changes;

        for _ in 0..nr {
            let result = self.ctl_one(changes, results);

            match result {
                Ok(Ok(())) => applied += 1,
                // The change failed, and its result says so.
                Ok(Err(_)) => {}
                Err(error) if applied == 0 => return Err(error),
                Err(_) => break,
            }
            changes = changes.wrapping_byte_add(size_of::<Ukevent>());
        }
        Ok(applied)
    }

    /// Applies the change at `ptr`.
    ///
    /// If `results`, the inner result is also written to the change; else it is an outer error.
    fn ctl_one(self: ArcBorrow<'_, Self>, ptr: UserPtr, results: bool) -> Result<Result> {
        let change = UserSlice::new(ptr, size_of::<Ukevent>())
            .reader()
            .read::<Ukevent>()?;

        if !results {
            return self.apply(&change).map(Ok);
        }

        let field = ptr.wrapping_byte_add(core::mem::offset_of!(uapi::ukevent, result));
        let write = |result: i32| {
            UserSlice::new(field, size_of::<i32>())
                .writer()
                .write(&result)
        };

        // If the result cannot be written, nothing must happen.
        write(change.0.result)?;

        let result = self.apply(&change);

        // If it can no longer be written, the program has just unmapped it.  What was done counts.
        let _ = write(result.map_or_else(|error| error.to_errno(), |()| 0));
        Ok(result)
    }

    /// Waits for events and collects them; see `kevent_getevents()`.  May sleep.
    ///
    /// Returns how many were collected, or if `max` is zero, how many there are.
    pub(crate) fn get_events(
        &self,
        events: Option<UserPtr>,
        min: u32,
        max: u32,
        deadline: Deadline,
    ) -> Result<u32> {
        // Neither one without the other, and nothing that can never be fulfilled.
        if events.is_some() != (max != 0)
            || max > MAX_UKEVENTS
            || events.is_some() && min > max
            || min > self.inner.lock().events.slots()
        {
            return Err(EINVAL);
        }

        let mut collected = 0;

        loop {
            let waited = self.wait(min.saturating_sub(collected), deadline);

            let Some(events) = events else {
                if current!().signal_pending() {
                    // Whoever has a signal to handle may never come to claim the event.
                    self.pass_on();
                }
                return waited.map(|count| count.unwrap_or_else(|| self.count(min)));
            };
            let result = self.collect(events, &mut collected, max);

            if result.is_err() || collected == max {
                // There may be more.
                self.pass_on();
            }
            if collected == 0 {
                result?;
                waited?;
            }
            // Otherwise somebody else was faster.
            if collected >= min || result.is_err() || !matches!(waited, Ok(Some(_))) {
                return Ok(collected);
            }
        }
    }

    /// Counts the events, no further than `limit`.
    fn count(&self, limit: u32) -> u32 {
        self.inner.lock().events.count(limit)
    }

    /// Waits until there are `min` events.
    ///
    /// Returns how many there are, not counting further; [`None`] after the deadline; `EINTR` if
    /// there is a signal to handle.
    fn wait(&self, min: u32, deadline: Deadline) -> Result<Option<u32>> {
        if min == 0 {
            // Let in what waits behind a full ring, for those who look there.
            self.inner.lock().events.flush(STEPS);
            return Ok(Some(0));
        }

        let result = self.waiters.wait_exclusive(min as usize, deadline, || {
            // (B)
            let count = self.count(min);

            if count >= min {
                return Some(count);
            }
            // Somebody else may want fewer.
            if count > 0 && self.waiters.is_active() {
                self.waiters.wake_one(count as usize);
            }
            None
        });

        if !matches!(result, Ok(Some(_))) {
            self.pass_on();
        }
        result
    }

    /// Wakes a waiter if there are events for it.
    fn pass_on(&self) {
        if self.waiters.is_active() {
            let ready = {
                let mut inner = self.inner.lock();

                if inner.events.count(1) == 0 {
                    return;
                }
                inner.events.ready_at_most()
            };

            // Whoever wants more than there really is passes it on again.
            self.waiters.wake_one(ready as usize);
        }
    }

    /// Collects events to `buffer` until `*collected` is `max` or there are no more.
    ///
    /// An event is claimed after it was copied: on `EFAULT` it is still there.
    fn collect(&self, buffer: UserPtr, collected: &mut u32, max: u32) -> Result {
        let mut pos = 0;
        let mut looks = 0;

        while *collected < max {
            let here = pos;
            let (found, end) = {
                let mut inner = self.inner.lock();

                inner.events.flush(STEPS);

                let found = inner.events.find(&mut pos, STEPS).map(|(event, watch)| {
                    // SAFETY: The registration is in the table, and the lock is held.
                    (event, unsafe { watch.handler().pin() })
                });

                (found, inner.events.at_end(pos))
            };

            match found {
                None if end => break,
                None => continue,
                // The file is being released, and the registration with it.
                Some((_, None)) => continue,
                Some((event, Some(file))) => {
                    let precise = looks < LOOKS;
                    let value = if precise {
                        fd::look_again(&file, event.value, event.interest)
                    } else {
                        event.value
                    };

                    if value != 0 {
                        let offset = *collected as usize * size_of::<Ukevent>();

                        write_event(buffer.wrapping_byte_add(offset), &event, value)?;
                    }
                    if !self.inner.lock().events.claim(&event, precise) {
                        // Look at it again; if somebody else claimed it, at the next.
                        pos = here;
                        looks += 1;
                        continue;
                    }
                    looks = 0;
                    *collected += u32::from(value != 0);
                }
            }
        }
        Ok(())
    }
}

/// Copies an event to a program.
fn write_event(to: UserPtr, event: &Event, value: u32) -> Result {
    let event = Ukevent(uapi::ukevent {
        ident: event.payload.ident,
        source: event.payload.source,
        flags: uapi::KEVENT_EDGE,
        events: value,
        user_data: event.payload.user_data,
        ..Default::default()
    });

    UserSlice::new(to, size_of::<Ukevent>())
        .writer()
        .write(&event)
}

#[vtable]
impl FileOperations for Queue {
    type Data = Arc<Self>;

    fn release(queue: Arc<Self>) {
        let slots = queue.inner.lock().events.slots();

        for id in 0..slots {
            // If there is no reference to be had, the release of the file ends the registration.
            let pinned = queue.inner.lock().events.item(id).and_then(|watch| {
                // SAFETY: The registration is in the table, and the lock is held.
                let file = unsafe { watch.handler().pin() }?;

                Some((watch.clone(), file))
            });

            if let Some((watch, _file)) = pinned {
                fd::end(&watch);
            }
        }
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
        queue.memory.map(vma, offset)
    }
}
