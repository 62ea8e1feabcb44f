// SPDX-License-Identifier: GPL-2.0

//! Watching a file as `poll()` does, with a callback.
//!
//! [`PollTable`] is for files that are polled.  A [`PollWatch`] is the other side: it enters the
//! wait queues that a file's `->poll` offers, and calls its handler whenever they are woken.
//!
//! C headers: [`include/linux/poll.h`](srctree/include/linux/poll.h),
//! [`include/linux/wait.h`](srctree/include/linux/wait.h)
//!
//! # Lifetime of the wait queues
//!
//! A wait queue lives as long as its file, with one exception: a provider can free it earlier if it
//! wakes it with `POLLFREE` first.  So an entry leaves its queue in one of two ways:
//!
//! ```text
//! callback, with POLLFREE               disarm
//!
//! (under the queue's lock)              rcu_read_lock()
//!     take the entry off the queue      (B) load `queue`, acquire
//! (A) store null to `queue`, release        if not null: remove_wait_queue()
//! unlock; the provider waits for a      rcu_read_unlock()
//! grace period and frees the queue
//! ```
//!
//! A pairs with B: who finds null also finds the entry off its queue, and the callback touches the
//! entry no more.  Who finds the queue is in an RCU read-side critical section that the provider
//! waits for.  A callback that has stored null can still be on its way out of the wake-up, with
//! interrupts disabled, hence the entry must outlive the disarming by a grace period.
//!
//! [`PollTable`]: crate::sync::poll::PollTable

use crate::{
    bindings,
    fs::File,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        rcu,
        rcu_drop::{
            drop_after_grace,
            HasRcuHead,
            RcuHead, //
        },
        Arc, //
    },
    types::Opaque, //
};
use core::{
    cell::UnsafeCell,
    marker::PhantomPinned,
    ptr, //
};

/// Bits of a poll mask.
pub mod mask {
    use crate::bindings;

    /// There is something to read.
    pub const IN: u32 = bindings::EPOLLIN;
    /// There is something to read; the normal band.
    pub const RDNORM: u32 = bindings::EPOLLRDNORM;
    /// Something can be written.
    pub const OUT: u32 = bindings::EPOLLOUT;
    /// An error happened; reported whether asked for or not.
    pub const ERR: u32 = bindings::EPOLLERR;
    /// The other side hung up; reported whether asked for or not.
    pub const HUP: u32 = bindings::EPOLLHUP;
    /// All that a program can ask for.
    pub const ALL: u32 = bindings::EPOLLIN
        | bindings::EPOLLPRI
        | bindings::EPOLLOUT
        | bindings::EPOLLERR
        | bindings::EPOLLHUP
        | bindings::EPOLLRDNORM
        | bindings::EPOLLRDBAND
        | bindings::EPOLLWRNORM
        | bindings::EPOLLWRBAND
        | bindings::EPOLLMSG
        | bindings::EPOLLRDHUP;
    /// In a wake-up: it comes from io_uring, which must not be entered again from it.
    pub const URING_WAKE: u32 = bindings::EPOLL_URING_WAKE;

    pub(super) const POLLFREE: u32 = bindings::POLLFREE;
}

/// What is called when a watched file wakes its waiters.
pub trait PollHandler: Send + Sync {
    /// The file may have become ready.
    ///
    /// `events` are the bits the wake-up came with.  Zero means that it came without: anything may
    /// have happened.
    ///
    /// Called under the lock of a wait queue of the file, in any context, with or without
    /// interrupts disabled.  It must not sleep, nor poll the file, nor wake that queue.
    ///
    /// Returns whether somebody was woken to deal with it; see [`Sharing`].
    fn woken(&self, events: u32) -> bool;
}

/// Whom a wake-up is for, if a file wakes one of several watches only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All watches of this kind are told.
    All,
    /// Of the watches of this kind, the first whose handler has somebody to deal with it.
    First,
    /// As [`Sharing::First`], but then it is the last to be asked next time.
    Turns,
}

/// An entry in a wait queue of a watched file.
///
/// # Invariants
///
/// - `wait` is in the queue `queue`, unless that is null.
/// - `watch` points to the [`PollWatch`] that owns this entry.
#[repr(C)]
struct Entry<H: PollHandler> {
    wait: Opaque<bindings::wait_queue_entry>,
    queue: Atomic<*mut bindings::wait_queue_head>,
    watch: *const PollWatch<H>,
    sharing: Sharing,
    /// Whether it had its turn, and is to go to the end of the queue when it is asked next.
    had_turn: Atomic<bool>,
    /// The next entry of the same watch.
    next: Option<KBox<Entry<H>>>,
}

/// A watch on a file.
///
/// Most files have one wait queue, so there is room for one entry; more are allocated.
///
/// # Invariants
///
/// `more` is written by [`PollWatch::arm`] alone.
#[pin_data]
pub struct PollWatch<H: PollHandler> {
    first: Entry<H>,
    more: UnsafeCell<Option<KBox<Entry<H>>>>,
    handler: H,
    rcu: RcuHead<Self>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: The entries are used under the locks of the wait queues, or by one thread at a time,
// which `arm` and `disarm` require; handlers are `Send` and `Sync`.
unsafe impl<H: PollHandler> Send for PollWatch<H> {}
// SAFETY: As above.
unsafe impl<H: PollHandler> Sync for PollWatch<H> {}

impl<H: PollHandler> Entry<H> {
    fn new(watch: *const PollWatch<H>, sharing: Sharing, next: Option<KBox<Self>>) -> Self {
        // INVARIANT: Not in a queue.
        Self {
            wait: Opaque::uninit(),
            queue: Atomic::new(ptr::null_mut()),
            watch,
            sharing,
            had_turn: Atomic::new(false),
            next,
        }
    }

    /// Enters `queue`.
    ///
    /// # Safety
    ///
    /// The entry must be in no queue, and must not move while it is in one.  `queue` must be valid
    /// until the entry has left it.
    unsafe fn enter(&self, queue: *mut bindings::wait_queue_head) {
        let wait = self.wait.get();

        // SAFETY: The entry is in no queue, so nobody else uses it.
        unsafe {
            wait.write(bindings::wait_queue_entry {
                flags: 0,
                private: ptr::null_mut(),
                func: Some(Self::woken),
                entry: bindings::list_head::default(),
            })
        };
        // INVARIANT: It is in the queue right below; until then no callback looks.
        self.queue.store(queue, Relaxed);
        // SAFETY: Queue and entry are valid, by the requirements.
        unsafe {
            match self.sharing {
                Sharing::All => bindings::add_wait_queue(queue, wait),
                Sharing::First | Sharing::Turns => bindings::add_wait_queue_exclusive(queue, wait),
            }
        }
    }

    /// Leaves the queue.
    ///
    /// # Safety
    ///
    /// The queue must be valid, or have been woken with `POLLFREE`.
    unsafe fn leave(&self) {
        let _guard = rcu::read_lock();
        // (B) in the module's documentation.
        let queue = self.queue.load(Acquire);

        if !queue.is_null() {
            // SAFETY: The queue is valid, by the requirements, or will be for a grace period.
            unsafe { bindings::remove_wait_queue(queue, self.wait.get()) };
        }
    }

    /// Called when the queue is woken.
    ///
    /// # Safety
    ///
    /// `wait` must be the field of an [`Entry`] that is in a queue, and the queue's lock must be
    /// held.
    unsafe extern "C" fn woken(
        wait: *mut bindings::wait_queue_entry,
        _mode: c_uint,
        _flags: c_int,
        key: *mut c_void,
    ) -> c_int {
        // CAST: The field is the first one.  Poll masks fit in 32 bits.
        let entry = wait.cast::<Self>();
        let key = key.addr() as u32;

        // SAFETY: The entry is in the queue, whose lock is held.
        if key & mask::POLLFREE == 0 && unsafe { Self::give_way(entry) } {
            return 0;
        }

        // SAFETY: The entry is in a queue, so its watch is alive.
        let dealt_with = unsafe { (*(*entry).watch).handler.woken(key & !mask::POLLFREE) };

        if key & mask::POLLFREE != 0 {
            // Whoever has loaded the queue already waits for its lock, and will take the entry off
            // once more.  Hence it is left as a list of its own.
            //
            // SAFETY: The entry is in the queue, whose lock is held.
            unsafe { bindings::list_del_init(&raw mut (*wait).entry) };
            // (A) in the module's documentation.
            //
            // SAFETY: The entry is alive: it is freed after a grace period, and interrupts are
            // disabled.
            unsafe { (*entry).queue.store(ptr::null_mut(), Release) };
        } else if dealt_with {
            // SAFETY: As above.
            unsafe { (*entry).had_turn.store(true, Relaxed) };
        }
        dealt_with.into()
    }

    /// Goes to the end of the queue if it had its turn, and returns whether it did.
    ///
    /// That is not done at once, when it has dealt with a wake-up: one that is for all would come
    /// by again and again.  So it comes by once more at most.
    ///
    /// # Safety
    ///
    /// The entry must be in its queue, whose lock must be held.
    unsafe fn give_way(entry: *mut Self) -> bool {
        // SAFETY: The entry is valid, by the requirements.
        let (this, queue) = unsafe { (&*entry, (*entry).queue.load(Relaxed)) };

        if this.sharing != Sharing::Turns || !this.had_turn.load(Relaxed) || queue.is_null() {
            return false;
        }
        this.had_turn.store(false, Relaxed);

        // SAFETY: Queue and entry are valid, and the lock is held.
        unsafe {
            let list = &raw mut (*this.wait.get()).entry;
            let head = &raw mut (*queue).head;

            // At the end it is, and whoever wakes would not come by again.
            if (*list).next == head {
                return false;
            }
            bindings::list_del_init(list);
            bindings::list_add_tail(list, head);
        }
        true
    }
}

/// A poll table whose queues are entered by the entries of a watch.
#[repr(C)]
struct Table<H: PollHandler> {
    table: bindings::poll_table,
    watch: *const PollWatch<H>,
    sharing: Sharing,
    /// Whether the first entry is in use.
    entered: bool,
    result: Result,
}

impl<H: PollHandler> Table<H> {
    /// Called by the file's `->poll` for each of its queues.
    ///
    /// # Safety
    ///
    /// `table` must be the field of a [`Table`] whose watch is being armed.
    unsafe extern "C" fn enter(
        _file: *mut bindings::file,
        queue: *mut bindings::wait_queue_head,
        table: *mut bindings::poll_table,
    ) {
        // SAFETY: By the requirements; nobody else uses the table.  CAST: It is the first field.
        let this = unsafe { &mut *table.cast::<Self>() };
        // SAFETY: The watch is being armed, so it is alive.
        let watch = unsafe { &*this.watch };

        if !this.entered {
            this.entered = true;
            // SAFETY: The watch is pinned, so the entry does not move.  The queue is valid for as
            // long as `PollWatch::arm` requires the file to be.
            unsafe { watch.first.enter(queue) };
            return;
        }

        // SAFETY: The watch is being armed, so nobody else uses the list.
        let more = unsafe { &mut *watch.more.get() };

        match KBox::new_uninit(GFP_KERNEL_ACCOUNT) {
            Ok(room) => {
                let entry = KBox::write(room, Entry::new(watch, this.sharing, more.take()));

                // SAFETY: As above; the contents of a box do not move.
                unsafe { entry.enter(queue) };
                *more = Some(entry);
            }
            Err(error) => this.result = Err(error.into()),
        }
    }
}

impl<H: PollHandler> PollWatch<H> {
    /// Constructs a watch that watches nothing yet.
    pub fn new(handler: H, sharing: Sharing) -> impl PinInit<Self> {
        // INVARIANT: The entry points to its watch.
        pin_init!(&this in Self {
            first: Entry::new(this.as_ptr(), sharing, None),
            more: UnsafeCell::new(None),
            handler,
            rcu: RcuHead::new(),
            _pin: PhantomPinned,
        })
    }

    /// Returns the handler.
    #[inline]
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// Begins to watch `file`, and returns what it is ready for at once, a poll mask.
    ///
    /// `interest` is a hint to the file what the caller wants to know.  The handler can be called
    /// before this returns.  On failure, which is want of memory, [`PollWatch::disarm`] must be
    /// called all the same.  May sleep.
    ///
    /// # Safety
    ///
    /// - Must be called once at most.
    /// - [`PollWatch::disarm`] must be called after this has returned and before the last reference
    ///   to the watch is dropped, while the file is still valid: by somebody who has a reference to
    ///   the file, or from its release.
    pub unsafe fn arm(this: &Arc<Self>, file: &File, interest: u32) -> Result<u32> {
        let mut table = Table {
            table: bindings::poll_table {
                _qproc: Some(Table::<H>::enter),
                _key: interest,
            },
            watch: &raw const **this,
            sharing: this.first.sharing,
            entered: false,
            result: Ok(()),
        };

        // SAFETY: The file is valid and the table is the field of a `Table`.
        let ready = unsafe { bindings::vfs_poll(file.as_ptr(), (&raw mut table).cast()) };

        table.result.map(|()| ready)
    }

    /// Ends the watch: the handler is not running when this returns, and is not called again.
    ///
    /// Takes the locks of the wait queues.  To be called in process context.
    ///
    /// # Safety
    ///
    /// - The file must be valid, and [`PollWatch::arm`] must have returned.
    /// - Must be called once at most.
    pub unsafe fn disarm(this: Arc<Self>) {
        // SAFETY: The list is written by `arm` alone, which has returned.
        let mut more = unsafe { &*this.more.get() };

        // SAFETY: The file is valid, and so are its queues, or else they were woken with
        // `POLLFREE`.
        unsafe { this.first.leave() };
        while let Some(entry) = more {
            // SAFETY: As above.
            unsafe { entry.leave() };
            more = &entry.next;
        }
        // For callbacks that are past (A).
        drop_after_grace(this);
    }
}

impl<H: PollHandler> HasRcuHead for PollWatch<H> {
    fn rcu_head(&self) -> &RcuHead<Self> {
        &self.rcu
    }
}

/// Returns whether `file` says when it becomes ready.
#[inline]
pub fn can_poll(file: &File) -> bool {
    // SAFETY: The file is valid.
    unsafe { bindings::file_can_poll(file.as_ptr()) }
}

/// Returns what `file` is ready for, a poll mask.  May sleep.
#[inline]
pub fn poll(file: &File, interest: u32) -> u32 {
    let mut table = bindings::poll_table {
        _qproc: None,
        _key: interest,
    };

    // SAFETY: File and table are valid.
    unsafe { bindings::vfs_poll(file.as_ptr(), &raw mut table) }
}
