// SPDX-License-Identifier: GPL-2.0

//! Applying changes to the registrations of a queue, for `kevent_ctl()`.

use crate::{
    abi::{
        field,
        Op,
        SourceKind,
        Ukevent,
        MAX_UKEVENTS, //
    },
    events::Payload,
    fd,
    home::Left,
    queue::Queue,
    source::{
        Key,
        Source, //
    },
    timer,
    user, //
};
use kernel::{
    current,
    fs::{
        File,
        LocalFile,
        UncountedFile, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        ArcBorrow, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi, //
};

/// After how many changes a fatal signal is looked for.
const SIGNALS: u32 = 64;

/// What a change names: a registration, and the file that it is of, if it is of one.
pub(crate) struct Named {
    pub(crate) key: Key,
    pub(crate) file: Option<ARef<File>>,
}

/// Returns the file of a descriptor.
pub(crate) fn file_of(fd: u64) -> Result<ARef<File>> {
    let fd = u32::try_from(fd).map_err(|_| EBADF)?;
    let file = LocalFile::fget(fd)?;

    // SAFETY: The system calls of kevent do not call `fdget_pos()`.
    Ok(unsafe { LocalFile::assume_no_fdget_pos(file) })
}

impl Named {
    /// Returns what `change` names.
    ///
    /// # Errors
    ///
    /// `EBADF`: not an open descriptor.
    pub(crate) fn by(change: &Ukevent, kind: SourceKind) -> Result<Self> {
        let payload = Payload {
            user_data: 0,
            ident: change.0.ident,
            source: change.0.source,
            tag: change.0.tag,
        };
        let file = match kind {
            SourceKind::Fd => Some(file_of(change.0.ident)?),
            SourceKind::Queue => None,
            SourceKind::Timer => None,
            SourceKind::User => None,
        };
        let uncounted = file.as_deref().map(UncountedFile::new);

        Ok(Self {
            key: Key::new(&payload, uncounted),
            file,
        })
    }
}

impl Queue {
    /// Applies `nr` changes; see `kevent_ctl()`.  May sleep.
    ///
    /// Returns how many were applied, and the error that ended it.
    pub(crate) fn change_all(
        self: ArcBorrow<'_, Self>,
        changes: UserPtr,
        nr: u32,
        flags: u32,
    ) -> (u32, Result) {
        if flags & !uapi::KEVENT_CTL_RESULTS != 0 || nr > MAX_UKEVENTS {
            return (0, Err(EINVAL));
        }

        let results = flags & uapi::KEVENT_CTL_RESULTS != 0;
        let mut applied = 0;
        let mut at = changes;
        let mut tidy = false;
        let mut result = Ok(());

        for n in 0..nr {
            // Whoever is killed will not learn how many were applied.
            if n % SIGNALS == SIGNALS - 1 && current!().fatal_signal_pending() {
                result = Err(EINTR);
                break;
            }

            let done = Ukevent::copy_from(at).and_then(|change| {
                tidy |= !change.only_posts();
                self.change_at(at, &change, results)
            });

            match done {
                Ok(Ok(())) => applied += 1,
                // The change failed, and its result says so.
                Ok(Err(_)) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            at = at.wrapping_byte_add(size_of::<Ukevent>());
        }
        if tidy {
            self.tidy();
        }
        (applied, result)
    }

    /// Applies a change, which was copied from `ptr`.
    ///
    /// If `results`, the inner result is also written there; else it is an outer error.
    fn change_at(
        self: ArcBorrow<'_, Self>,
        ptr: UserPtr,
        change: &Ukevent,
        results: bool,
    ) -> Result<Result> {
        if !results {
            return self.change(change).map(Ok);
        }

        let field = ptr.wrapping_byte_add(core::mem::offset_of!(uapi::ukevent, result));
        let write = |result: i32| {
            UserSlice::new(field, size_of::<i32>())
                .writer()
                .write(&result)
        };

        // If the result cannot be written, nothing must happen.
        write(change.0.result)?;

        let result = self.change(change);

        // If it can no longer be written, the program has just unmapped it.  What was done counts.
        let _ = write(result.map_or_else(|error| error.to_errno(), |()| 0));
        Ok(result)
    }

    /// Applies one change.  May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what no source knows, and those of the operations and the sources.
    fn change(self: ArcBorrow<'_, Self>, change: &Ukevent) -> Result {
        let op = Op::try_from(change.0.op)?;
        let kind = SourceKind::try_from(change.0.source)?;

        match (op, kind) {
            (Op::Grow | Op::Wake, SourceKind::Queue) => self.change_queue(change, op),
            (Op::Grow | Op::Wake, _) | (_, SourceKind::Queue) => Err(EINVAL),
            (Op::Trigger, SourceKind::User) => user::trigger(self, change),
            (Op::Trigger, _) => Err(EINVAL),
            (Op::Add | Op::Modify | Op::Set, _) => self.set(change, op, kind),
            (Op::Delete | Op::Enable | Op::Disable, _) => {
                change.only(field::NONE)?;
                self.change_named(change, op, kind)
            }
            (Op::Move, _) => {
                change.only(field::DATA)?;
                self.change_named(change, op, kind)
            }
        }
    }

    fn change_queue(self: ArcBorrow<'_, Self>, change: &Ukevent, op: Op) -> Result {
        change.only(if op == Op::Grow {
            field::DATA
        } else {
            field::NONE
        })?;
        if change.0.ident != 0 || change.0.tag != 0 {
            return Err(EINVAL);
        }
        if op == Op::Grow {
            let _ctl = self.ctl.lock();

            self.grow(change.0.data)
        } else {
            self.wake_all();
            Ok(())
        }
    }

    /// Adds a registration, changes it, or does what it takes.
    fn set(self: ArcBorrow<'_, Self>, change: &Ukevent, op: Op, kind: SourceKind) -> Result {
        match kind {
            SourceKind::Fd => {
                let asked = fd::check(change, op)?;
                let named = Named::by(change, kind)?;

                self.add_or_modify(
                    &named.key,
                    op,
                    || fd::add(self, &asked, &named),
                    || fd::modify(self, &asked, &named),
                )
            }
            SourceKind::Timer => {
                let (asked, setting) = timer::check(change)?;
                let named = Named::by(change, kind)?;

                self.add_or_modify(
                    &named.key,
                    op,
                    || timer::add(self, &asked, &setting, &named),
                    || timer::modify(self, &asked, &setting, &named),
                )
            }
            SourceKind::Queue => Err(EINVAL),
            SourceKind::User => {
                let (asked, kind_of_event) = user::check(change)?;
                let named = Named::by(change, kind)?;

                self.add_or_modify(
                    &named.key,
                    op,
                    || user::add(self, &asked, kind_of_event, &named),
                    || user::modify(self, &asked, kind_of_event, &named),
                )
            }
        }
    }

    /// Does what `op` asks for, one at a time.
    fn add_or_modify(
        &self,
        key: &Key,
        op: Op,
        add: impl Fn() -> Result,
        modify: impl Fn() -> Result,
    ) -> Result {
        let _ctl = self.ctl.lock();
        let mut again = op == Op::Set;

        loop {
            if op != Op::Add {
                match modify() {
                    Err(ENOENT) if op == Op::Set => {}
                    result => return result,
                }
            }
            match add() {
                // What has the name may have ended.
                Err(EEXIST) if self.settle(key) => return add(),
                // Or it has just been moved here.
                Err(EEXIST) if again => again = false,
                result => return result,
            }
        }
    }

    /// Applies a change that says no more than which registration it is about.
    fn change_named(
        self: ArcBorrow<'_, Self>,
        change: &Ukevent,
        op: Op,
        kind: SourceKind,
    ) -> Result {
        let named = Named::by(change, kind)?;
        let _ctl = self.ctl.lock();

        match op {
            Op::Disable => self.disable(&named.key),
            Op::Enable if kind == SourceKind::Timer => timer::enable(&self, &named.key),
            Op::Enable => {
                if let ((terms, Source::Fd(watch)), Some(file)) =
                    (self.enable(&named.key)?, &named.file)
                {
                    fd::look(&watch, file, terms.interest);
                }
                Ok(())
            }
            Op::Move => {
                let target = file_of(change.0.data)?;

                self.move_to(&named, Queue::of(&target).ok_or(EINVAL)?)
            }
            _ => {
                let (_, source, _) = self.take(&named.key, |_| true).ok_or(ENOENT)?;

                // If it is a file, it is referenced.
                source.finish();
                Ok(())
            }
        }
    }

    /// Moves a registration to another queue.
    ///
    /// The id that it gets there is reserved first, so that nothing can fail any more once it has
    /// left this queue.  In between it is in neither, and what happens is kept by its home.
    fn move_to(&self, named: &Named, target: ArcBorrow<'_, Queue>) -> Result {
        if core::ptr::eq(self, &*target) {
            return Err(EINVAL);
        }

        let (terms, source) = self.look_up(&named.key)?;
        let room = match source.home() {
            Some(_) => Some(Left::new()?),
            None => None,
        };
        let reserve = || target.reserve(&named.key, &terms, &source);
        let id = match reserve() {
            Err(EEXIST) => {
                // What has the name there may have ended.
                target.settle_all();
                reserve()?
            }
            result => result?,
        };

        // Another one of its name can have been moved here, with other terms.
        let same = |found: &Source| found.is_same(&source);
        let Some((terms, source, pending)) = self.take(&named.key, same) else {
            // Its descriptor was closed, or its event claimed.
            target.unreserve(id, &terms);
            return Err(ENOENT);
        };

        target.fill(id, terms, &source, pending, room);
        source.end_if_closed().map_err(|_| ENOENT)
    }
}

#[cfg(CONFIG_KEVENT_KUNIT_TEST)]
#[kunit_tests(kevent_move)]
mod tests {
    use super::*;
    use crate::{
        events::Update,
        tests::{
            add_fd,
            add_timer,
            change,
            close,
            collect,
            eventually,
            install,
            live,
            make,
            of,
            timer_in,
            Fake, //
        }, //
    };
    use kernel::{
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Release, //
            },
            Arc, //
        },
        workqueue, //
    };

    /// Returns what moves a registration to the queue that has the descriptor `to`.
    fn moves(source: u32, ident: u64, to: u32) -> Ukevent {
        let mut moves = change(uapi::KEVENT_OP_MOVE, source, ident);

        moves.0.data = to.into();
        moves
    }

    #[test]
    fn each_expiry_is_in_one_queue_while_a_timer_is_moved() -> Result {
        const POSTS: u32 = 200_000;

        let files = [make(4, 0)?, make(4, 0)?];
        let queues = [of(&files[0])?, of(&files[1])?];
        let fds = [install(files[0].clone())?, install(files[1].clone())?];
        let done = Arc::new(Atomic::new(false), GFP_KERNEL)?;

        add_timer(queues[0], 7, 0)?;

        let timer = timer_in(&queues[0], 7)?;
        let over = done.clone();

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            for _ in 0..POSTS {
                timer.handler().home().post(Update::Count(1), 0);
            }
            over.store(true, Release);
        })?;

        let (mut here, mut count, mut moved) = (0, 0, 0_u32);

        loop {
            let last = done.load(Acquire);
            let there = 1 - here;

            queues[here].change(&moves(uapi::KEVENT_SOURCE_TIMER, 7, fds[there]))?;
            here = there;
            moved += 1;
            // Now and then, so that events are carried along as well.
            if last || moved % 3 == 0 {
                count += collect(&queues[here]).1;
            }
            if last {
                break;
            }
        }
        pr_info!("{POSTS} expiries, {moved} moves\n");
        assert_eq!(collect(&queues[1 - here]), (0, 0));
        assert_eq!(count, POSTS);
        for fd in fds {
            close(fd);
        }
        Ok(())
    }

    /// A descriptor that another thread closes.
    struct Race {
        fd: Atomic<u32>,
        started: Atomic<u32>,
        done: Atomic<u32>,
    }

    #[test]
    fn a_descriptor_that_is_closed_is_in_no_queue() -> Result {
        const ROUNDS: u32 = 1000;

        let files = [make(4, 0)?, make(4, 0)?];
        let queues = [of(&files[0])?, of(&files[1])?];
        let fds = [install(files[0].clone())?, install(files[1].clone())?];
        let race = Race {
            fd: Atomic::new(0),
            started: Atomic::new(0),
            done: Atomic::new(0),
        };
        let race = Arc::new(race, GFP_KERNEL)?;
        let closer = race.clone();

        workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            for round in 1..=ROUNDS {
                if !eventually(|| closer.started.load(Acquire) == round) {
                    return;
                }
                for _ in 0..round % 61 {
                    core::hint::spin_loop();
                }
                close(closer.fd.load(Acquire));
                closer.done.store(round, Release);
            }
        })?;

        let mut moved = 0_u32;

        for round in 1..=ROUNDS {
            let (fake, file) = Fake::new()?;
            let fd = install(file)?;
            let mut here = 0;

            queues[here].change(&add_fd(fd, 1))?;
            race.fd.store(fd, Release);
            race.started.store(round, Release);

            let error = loop {
                let there = 1 - here;

                match queues[here].change(&moves(uapi::KEVENT_SOURCE_FD, fd.into(), fds[there])) {
                    Ok(()) => (here, moved) = (there, moved + 1),
                    Err(error) => break error,
                }
            };

            assert!(matches!(error, EBADF | ENOENT));
            assert!(eventually(|| race.done.load(Acquire) == round));
            assert_eq!((live(&queues[0]), live(&queues[1])), (0, 0));
            // Kernel threads release files later, so it is not waited for each time.
            if round % 100 == 0 {
                assert!(fake.is_released());
            }
        }
        pr_info!("{ROUNDS} descriptors closed, {moved} moves\n");
        for fd in fds {
            close(fd);
        }
        Ok(())
    }
}
