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
//! the queue's lock held, hence the entry must outlive the disarming by a grace period.
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
    marker::{
        PhantomData,
        PhantomPinned, //
    },
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
pub trait PollHandler: Send + Sync + 'static {
    /// The file may have become ready.
    ///
    /// `events` are the bits the wake-up came with.  Zero means that it came without: anything may
    /// have happened.
    ///
    /// Called under the lock of a wait queue of the file, in any context, with or without
    /// interrupts disabled.  It must not sleep, nor poll the file, nor wake that queue.  The lock
    /// is a spinlock, so this is an RCU read-side critical section.
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
/// - While it is in a queue, its `private` points to the [`PollWatch`] that owns this entry.
#[repr(C)]
struct Entry<H: PollHandler> {
    wait: Opaque<bindings::wait_queue_entry>,
    queue: Atomic<*mut bindings::wait_queue_head>,
    sharing: Sharing,
    /// Whether it had its turn, and is to go to the end of the queue when it is asked next; if that
    /// is how it shares.
    had_turn: Atomic<bool>,
    watch: PhantomData<*const PollWatch<H>>,
}

/// One more entry of a watch.
struct More<H: PollHandler> {
    entry: Entry<H>,
    next: Option<KBox<More<H>>>,
}

/// A watch on a file.
///
/// Most files have one wait queue, so there is room for one entry; more are allocated.
///
/// # Examples
///
/// ```
/// use kernel::{
///     fs::File,
///     sync::{
///         atomic::{
///             Atomic,
///             Relaxed, //
///         },
///         poll_watch::{
///             mask,
///             PollHandler,
///             PollWatch,
///             Sharing, //
///         },
///         Arc, //
///     }, //
/// };
///
/// struct Counter(Atomic<u32>);
///
/// impl PollHandler for Counter {
///     fn woken(&self, events: u32) -> bool {
///         if events == 0 || events & mask::IN != 0 {
///             self.0.fetch_add(1, Relaxed);
///         }
///         false
///     }
/// }
///
/// /// Returns how often `file` may have become readable while `f` was running.
/// fn count(file: &File, f: impl FnOnce()) -> Result<u32> {
///     let counter = Counter(Atomic::new(0));
///     let watch = Arc::pin_init(PollWatch::new(counter, Sharing::All), GFP_KERNEL)?;
///     let this = watch.clone();
///
///     // SAFETY: It is a new watch, and disarmed below.
///     let armed = unsafe { PollWatch::arm(&watch, file, mask::IN) };
///
///     if armed.is_ok() {
///         f();
///     }
///     // SAFETY: The file is valid, and the watch is not disarmed elsewhere.
///     unsafe { PollWatch::disarm(watch) };
///     armed?;
///     Ok(this.handler().0.load(Relaxed))
/// }
/// # let _ = |file: &File| count(file, || ());
/// ```
///
/// # Invariants
///
/// `more` is written by [`PollWatch::arm`] alone.
#[pin_data]
pub struct PollWatch<H: PollHandler> {
    first: Entry<H>,
    more: UnsafeCell<Option<KBox<More<H>>>>,
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
    fn new(sharing: Sharing) -> Self {
        // INVARIANT: Not in a queue.
        Self {
            wait: Opaque::uninit(),
            queue: Atomic::new(ptr::null_mut()),
            sharing,
            had_turn: Atomic::new(false),
            watch: PhantomData,
        }
    }

    /// Enters `queue`.
    ///
    /// # Safety
    ///
    /// The entry must be in no queue, and must not move while it is in one.  `queue` must be valid
    /// until the entry has left it.  `watch` must own the entry.
    unsafe fn enter(&self, queue: *mut bindings::wait_queue_head, watch: &PollWatch<H>) {
        let wait = self.wait.get();

        // INVARIANT: By the requirements it owns this entry.
        let private = ptr::from_ref(watch).cast_mut().cast();

        // SAFETY: The entry is in no queue, so nobody else uses it.
        unsafe {
            wait.write(bindings::wait_queue_entry {
                flags: 0,
                private,
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

        // SAFETY: The entry is in the queue.
        let this = unsafe { &*entry };

        if this.had_turn.load(Relaxed) && key & mask::POLLFREE == 0 {
            // SAFETY: The entry is in the queue, whose lock is held.
            if unsafe { Self::give_way(entry) } {
                return 0;
            }
        }

        // SAFETY: The entry is in a queue, so `private` points to its watch, which is alive.
        let watch = unsafe { &*(*wait).private.cast::<PollWatch<H>>() };
        let dealt_with = watch.handler.woken(key & !mask::POLLFREE);

        if key & mask::POLLFREE != 0 {
            // SAFETY: The entry is in the queue, whose lock is held.
            unsafe { Self::freed(entry) };
        } else if dealt_with && this.sharing == Sharing::Turns {
            this.had_turn.store(true, Relaxed);
        }
        dealt_with.into()
    }

    /// Leaves the queue, which is about to be freed.
    ///
    /// # Safety
    ///
    /// The entry must be in its queue, whose lock must be held.
    #[cold]
    unsafe fn freed(entry: *mut Self) {
        // SAFETY: The entry is valid, by the requirements.
        let this = unsafe { &*entry };

        // Whoever has loaded the queue already waits for its lock, and will take the entry off once
        // more.  Hence it is left as a list of its own.
        //
        // SAFETY: The entry is in the queue, whose lock is held.
        unsafe { bindings::list_del_init(&raw mut (*this.wait.get()).entry) };
        // (A) in the module's documentation.
        //
        // The entry is alive: it is freed after a grace period, and the lock is a spinlock.
        this.queue.store(ptr::null_mut(), Release);
    }

    /// Goes to the end of the queue if it had its turn, and returns whether it did.
    ///
    /// That is not done at once, when it has dealt with a wake-up: one that is for all would come
    /// by again and again.  So it comes by once more at most.
    ///
    /// # Safety
    ///
    /// The entry must be in its queue, whose lock must be held.
    #[cold]
    unsafe fn give_way(entry: *mut Self) -> bool {
        // SAFETY: The entry is valid, by the requirements.
        let (this, queue) = unsafe { (&*entry, (*entry).queue.load(Relaxed)) };

        this.had_turn.store(false, Relaxed);
        if queue.is_null() {
            return false;
        }

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
            unsafe { watch.first.enter(queue, watch) };
            return;
        }

        // SAFETY: The watch is being armed, so nobody else uses the list.
        let more = unsafe { &mut *watch.more.get() };

        match KBox::new_uninit(GFP_KERNEL_ACCOUNT) {
            Ok(room) => {
                let added = KBox::write(
                    room,
                    More {
                        entry: Entry::new(this.sharing),
                        next: more.take(),
                    },
                );

                // SAFETY: As above; the contents of a box do not move.
                unsafe { added.entry.enter(queue, watch) };
                *more = Some(added);
            }
            Err(error) => this.result = Err(error.into()),
        }
    }
}

impl<H: PollHandler> PollWatch<H> {
    /// Constructs a watch that watches nothing yet.
    pub fn new(handler: H, sharing: Sharing) -> impl PinInit<Self> {
        pin_init!(Self {
            first: Entry::new(sharing),
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
    /// - If the handler is of a module, `rcu_barrier()` must be called between the last disarming
    ///   and the end of the module, as [`HasRcuHead`] has it.
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
        while let Some(one) = more {
            // SAFETY: As above.
            unsafe { one.entry.leave() };
            more = &one.next;
        }
        // For callbacks that are past (A).
        drop_after_grace(this);
    }
}

// SAFETY: It is a field of the watch, and always the same.
unsafe impl<H: PollHandler> HasRcuHead for PollWatch<H> {
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

#[cfg(CONFIG_RUST_POLL_WATCH_KUNIT_TEST)]
#[macros::kunit_tests(rust_poll_watch)]
mod tests {
    use super::*;
    use crate::{
        fs::anon_inode::{
            FileOperations,
            FileOperationsTable, //
        },
        static_lock_class,
        sync::{
            aref::ARef,
            new_spinlock,
            poll::{
                PollCondVar,
                PollCondVarBox,
                PollTable, //
            },
            rcu::rcu_barrier,
            wait::{
                new_wait_queue_head,
                WaitQueueHead, //
            },
            ArcBorrow,
            SpinLock, //
        },
        time::{
            delay::fsleep,
            Delta,
            Instant,
            Monotonic, //
        },
        workqueue, //
    };

    /// A file with wait queues.
    #[pin_data]
    struct Fake {
        #[pin]
        first: WaitQueueHead,
        #[pin]
        second: WaitQueueHead,
        #[pin]
        third: WaitQueueHead,
        /// How many of these it offers.
        offered: usize,
        /// One that it offers beside these, and that can be freed before the file.
        early: Atomic<*const PollCondVar>,
        ready: Atomic<u32>,
    }

    #[vtable]
    impl FileOperations for Fake {
        type Data = Arc<Fake>;

        fn poll(fake: ArcBorrow<'_, Fake>, file: &File, table: PollTable<'_>) -> u32 {
            for queue in fake.queues().into_iter().take(fake.offered) {
                // SAFETY: The queue lives as long as the file.
                unsafe { table.register_wait_queue(file, queue) };
            }
            // SAFETY: It is null, or alive while the file is polled.
            if let Some(early) = unsafe { fake.early.load(Relaxed).as_ref() } {
                table.register_wait(file, early);
            }
            fake.ready.load(Relaxed)
        }
    }

    static FAKE: FileOperationsTable<Fake> = FileOperationsTable::new();

    impl Fake {
        fn new(offered: usize) -> Result<(Arc<Self>, ARef<File>)> {
            let fake = Arc::pin_init(
                pin_init!(Self {
                    first <- new_wait_queue_head!("kunit_first"),
                    second <- new_wait_queue_head!("kunit_second"),
                    third <- new_wait_queue_head!("kunit_third"),
                    offered,
                    early: Atomic::new(ptr::null()),
                    ready: Atomic::new(0),
                }),
                GFP_KERNEL,
            )?;
            let file = FAKE.create(c"[kunit]", fake.clone(), 0)?;

            Ok((fake, file))
        }

        fn queues(&self) -> [&WaitQueueHead; 3] {
            [&self.first, &self.second, &self.third]
        }
    }

    /// What handlers were told.
    struct Told {
        calls: Atomic<u32>,
        events: Atomic<u32>,
        /// The numbers of those who were told, one decimal digit each.
        order: Atomic<u32>,
        drops: Atomic<u32>,
    }

    fn told() -> Result<Arc<Told>> {
        let told = Told {
            calls: Atomic::new(0),
            events: Atomic::new(0),
            order: Atomic::new(0),
            drops: Atomic::new(0),
        };

        Ok(Arc::new(told, GFP_KERNEL)?)
    }

    impl Told {
        fn calls(&self) -> u32 {
            self.calls.load(Acquire)
        }

        fn events(&self) -> u32 {
            self.events.load(Relaxed)
        }

        /// Returns the numbers of those who were told since this was last called.
        fn order(&self) -> u32 {
            self.order.xchg(0, Relaxed)
        }
    }

    struct Handler {
        told: Arc<Told>,
        number: u32,
        /// Whether there is somebody to deal with it.
        deals: Atomic<bool>,
    }

    impl PollHandler for Handler {
        fn woken(&self, events: u32) -> bool {
            let order = &self.told.order;

            self.told.events.store(events, Relaxed);
            order.store(
                order
                    .load(Relaxed)
                    .wrapping_mul(10)
                    .wrapping_add(self.number),
                Relaxed,
            );
            self.told.calls.fetch_add(1, Release);
            self.deals.load(Relaxed)
        }
    }

    impl Drop for Handler {
        fn drop(&mut self) {
            self.told.drops.fetch_add(1, Relaxed);
        }
    }

    type Watch = Arc<PollWatch<Handler>>;

    /// Makes a watch, and lets it watch `file`; returns what the file is ready for, too.
    fn watch(file: &File, told: &Arc<Told>, number: u32, sharing: Sharing) -> Result<(Watch, u32)> {
        let handler = Handler {
            told: told.clone(),
            number,
            deals: Atomic::new(true),
        };
        let watch = Arc::pin_init(PollWatch::new(handler, sharing), GFP_KERNEL)?;

        // SAFETY: It is new, and all tests end what they watch.
        let ready = unsafe { PollWatch::arm(&watch, file, mask::ALL) }?;

        Ok((watch, ready))
    }

    /// Ends the watch on a file that is still there.
    fn end(watch: Watch) {
        // SAFETY: It was armed, and is disarmed here alone.
        unsafe { PollWatch::disarm(watch) };
    }

    /// Calls `f` until it returns true, but not for ever.
    fn eventually(mut f: impl FnMut() -> bool) -> bool {
        let start = Instant::<Monotonic>::now();

        while start.elapsed() < Delta::from_secs(10) {
            for _ in 0..1000 {
                if f() {
                    return true;
                }
                core::hint::spin_loop();
            }
            // In case that there is one processor only.
            fsleep(Delta::from_micros(50));
        }
        false
    }

    fn spin(steps: u32) {
        for _ in 0..steps {
            core::hint::spin_loop();
        }
    }

    #[test]
    fn the_handler_is_told_the_key() -> Result {
        let (fake, file) = Fake::new(1)?;
        let told = told()?;

        fake.ready.store(mask::OUT, Relaxed);

        let (watch, ready) = watch(&file, &told, 1, Sharing::All)?;

        assert_eq!(ready, mask::OUT);
        assert_eq!(told.calls(), 0);
        fake.first.wake_all((mask::IN | mask::URING_WAKE) as usize);
        assert_eq!(told.calls(), 1);
        assert_eq!(told.events(), mask::IN | mask::URING_WAKE);
        // Without a key.
        fake.first.wake_all(0);
        assert_eq!(told.calls(), 2);
        assert_eq!(told.events(), 0);
        end(watch);
        fake.first.wake_all(mask::IN as usize);
        assert_eq!(told.calls(), 2);
        assert!(!fake.first.is_active());
        Ok(())
    }

    #[test]
    fn dropped_a_grace_period_after_the_end() -> Result {
        let (_fake, file) = Fake::new(1)?;
        let told = told()?;
        let (watch, _) = watch(&file, &told, 1, Sharing::All)?;
        let early = {
            let _guard = rcu::read_lock();

            end(watch);
            told.drops.load(Relaxed)
        };

        assert_eq!(early, 0);
        rcu_barrier();
        assert_eq!(told.drops.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn all_queues_of_a_file_are_watched() -> Result {
        let (fake, file) = Fake::new(3)?;
        let told = told()?;
        let (watch, _) = watch(&file, &told, 1, Sharing::All)?;

        for (queue, calls) in fake.queues().into_iter().zip(1..) {
            queue.wake_all(mask::IN as usize);
            assert_eq!(told.calls(), calls);
        }
        end(watch);
        for queue in fake.queues() {
            queue.wake_all(mask::IN as usize);
            assert!(!queue.is_active());
        }
        assert_eq!(told.calls(), 3);
        rcu_barrier();
        assert_eq!(told.drops.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn a_file_without_queues_can_be_watched() -> Result {
        let (_fake, file) = Fake::new(0)?;
        let told = told()?;
        let (watch, _) = watch(&file, &told, 1, Sharing::All)?;

        end(watch);
        rcu_barrier();
        assert_eq!(told.drops.load(Relaxed), 1);
        Ok(())
    }

    // The queue is freed, so KASAN tells if it is touched later.
    #[test]
    fn a_queue_that_is_freed_is_left_alone() -> Result {
        let (fake, file) = Fake::new(1)?;
        let told = told()?;
        let early = KBox::pin_init(
            PollCondVar::new(c"kunit_early", static_lock_class!()),
            GFP_KERNEL,
        )?;

        fake.early.store(&raw const *early, Relaxed);

        let (watch, _) = watch(&file, &told, 1, Sharing::All)?;
        let entered = watch.first.queue.load(Relaxed);

        assert_eq!(entered, fake.first.as_ptr());

        fake.early.store(ptr::null(), Relaxed);
        // POLLFREE, a grace period, and free.
        drop(early);
        assert_eq!(told.calls(), 1);
        assert_eq!(told.events(), mask::HUP);
        // The other queue is still watched.
        fake.first.wake_all(mask::IN as usize);
        assert_eq!(told.calls(), 2);
        end(watch);
        assert!(!fake.first.is_active());
        Ok(())
    }

    #[test]
    fn an_entry_of_a_queue_that_is_freed_is_in_none() -> Result {
        let (fake, file) = Fake::new(0)?;
        let told = told()?;
        let early = PollCondVarBox::new(c"kunit_early", static_lock_class!())?;

        fake.early.store(&raw const *early, Relaxed);

        let (watch, _) = watch(&file, &told, 1, Sharing::First)?;

        assert!(!watch.first.queue.load(Relaxed).is_null());
        drop(early);
        assert!(watch.first.queue.load(Relaxed).is_null());

        // SAFETY: It is initialised, and in no queue.
        let alone = unsafe {
            let list = &raw mut (*watch.first.wait.get()).entry;

            ptr::eq((*list).next, list) && ptr::eq((*list).prev, list)
        };

        assert!(alone);
        end(watch);
        Ok(())
    }

    /// A queue that is freed by another thread while the watch on it ends.
    #[pin_data]
    struct Race {
        #[pin]
        queue: SpinLock<Option<PollCondVarBox>>,
        started: Atomic<u32>,
        done: Atomic<u32>,
    }

    #[test]
    fn the_end_races_with_the_freeing_of_the_queue() -> Result {
        const ROUNDS: u32 = 5000;

        let (fake, file) = Fake::new(0)?;
        let told = told()?;
        let race = Arc::pin_init(
            pin_init!(Race {
                queue <- new_spinlock!(None, "kunit_race"),
                started: Atomic::new(0),
                done: Atomic::new(0),
            }),
            GFP_KERNEL,
        )?;
        let provider = race.clone();

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            for round in 1..=ROUNDS {
                if !eventually(|| provider.started.load(Acquire) == round) {
                    return;
                }
                let queue = provider.queue.lock().take();

                spin(round % 61);
                drop(queue);
                provider.done.store(round, Release);
            }
        })?;

        let mut told_of_it = 0;

        for round in 1..=ROUNDS {
            let queue = PollCondVarBox::new(c"kunit_early", static_lock_class!())?;

            fake.early.store(&raw const *queue, Relaxed);

            let (watch, _) = watch(&file, &told, 1, Sharing::All)?;
            let before = told.calls();

            *race.queue.lock() = Some(queue);
            race.started.store(round, Release);
            spin(round % 127);
            end(watch);

            // The handler is not running any more, nor is it called again.
            let calls = told.calls() - before;

            assert!(eventually(|| race.done.load(Acquire) == round));
            assert_eq!(told.calls() - before, calls);
            assert!(calls <= 1);
            told_of_it += calls;
        }
        pr_info!("told of the freeing: {told_of_it} of {ROUNDS}\n");
        rcu_barrier();
        assert_eq!(told.drops.load(Relaxed), ROUNDS);
        Ok(())
    }

    #[test]
    fn the_end_races_with_wake_ups() -> Result {
        const ROUNDS: u32 = 2000;

        let (fake, file) = Fake::new(2)?;
        let told = told()?;
        // One: it is over.  Two: the waker knows.
        let over = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let (waker_fake, waker_over) = (fake.clone(), over.clone());

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            while waker_over.load(Acquire) == 0 {
                for _ in 0..100 {
                    waker_fake.first.wake_one(mask::IN as usize);
                    waker_fake.second.wake_one(mask::OUT as usize);
                }
                // In case that there is one processor only.
                fsleep(Delta::from_micros(50));
            }
            waker_over.store(2, Release);
        })?;

        for round in 1..=ROUNDS {
            let (watch, _) = watch(&file, &told, 1, Sharing::Turns)?;

            spin(round % 127);
            end(watch);

            // There is no other watch.
            let calls = told.calls();

            spin(round % 61);
            assert_eq!(told.calls(), calls);
        }
        over.store(1, Release);
        assert!(eventually(|| over.load(Acquire) == 2));
        rcu_barrier();
        assert_eq!(told.drops.load(Relaxed), ROUNDS);
        Ok(())
    }

    #[test]
    fn the_first_that_deals_with_it_is_told() -> Result {
        let (fake, file) = Fake::new(1)?;
        let told = told()?;
        let (first, _) = watch(&file, &told, 1, Sharing::First)?;
        let (second, _) = watch(&file, &told, 2, Sharing::First)?;
        let (all, _) = watch(&file, &told, 9, Sharing::All)?;

        for _ in 0..2 {
            assert!(fake.first.wake_one(mask::IN as usize));
            assert_eq!(told.order(), 91);
        }
        first.handler().deals.store(false, Relaxed);
        assert!(fake.first.wake_one(mask::IN as usize));
        assert_eq!(told.order(), 912);
        second.handler().deals.store(false, Relaxed);
        assert!(!fake.first.wake_one(mask::IN as usize));
        assert_eq!(told.order(), 912);
        for watch in [first, second, all] {
            end(watch);
        }
        Ok(())
    }

    #[test]
    fn those_who_take_turns_are_told_one_after_the_other() -> Result {
        let (fake, file) = Fake::new(1)?;
        let told = told()?;
        let (first, _) = watch(&file, &told, 1, Sharing::Turns)?;
        let (second, _) = watch(&file, &told, 2, Sharing::Turns)?;
        let (third, _) = watch(&file, &told, 3, Sharing::Turns)?;

        for number in [1, 2, 3, 1, 2, 3, 1] {
            assert!(fake.first.wake_one(mask::IN as usize));
            assert_eq!(told.order(), number);
        }
        // Who has nobody to deal with it keeps its place.
        second.handler().deals.store(false, Relaxed);
        assert!(fake.first.wake_one(mask::IN as usize));
        assert_eq!(told.order(), 23);
        assert!(fake.first.wake_one(mask::IN as usize));
        assert_eq!(told.order(), 21);
        second.handler().deals.store(true, Relaxed);
        assert!(fake.first.wake_one(mask::IN as usize));
        assert_eq!(told.order(), 2);
        for watch in [first, second, third] {
            end(watch);
        }
        Ok(())
    }

    #[test]
    fn a_wake_up_for_all_comes_once_to_those_who_take_turns() -> Result {
        let (fake, file) = Fake::new(1)?;
        let told = told()?;
        let (first, _) = watch(&file, &told, 1, Sharing::Turns)?;
        let (second, _) = watch(&file, &told, 2, Sharing::Turns)?;

        for _ in 0..3 {
            fake.first.wake_all(mask::IN as usize);
            // In any order.
            assert!(matches!(told.order(), 12 | 21));
        }
        end(first);
        // Alone it is always its turn.
        for _ in 0..3 {
            assert!(fake.first.wake_one(mask::IN as usize));
            assert_eq!(told.order(), 2);
        }
        end(second);
        Ok(())
    }
}
