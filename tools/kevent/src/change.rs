// SPDX-License-Identifier: MIT
//! Registrations, and changes of them, as `kevent_ctl()` takes them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use crate::abi;

/// The name of a registration: a source, a number and a tag.
///
/// What is registered under different names is apart from each other.  A file is
/// named by its descriptor, and by the open file behind that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    source: u16,
    ident: u64,
    tag: u32,
}

impl Name {
    fn new(source: u16, ident: u64) -> Self {
        Self {
            source,
            ident,
            tag: 0,
        }
    }

    /// That of a file.
    pub fn file(fd: &impl AsFd) -> Self {
        Self::new(abi::KEVENT_SOURCE_FD, fd.as_fd().as_raw_fd() as u64)
    }

    /// That of a timer, by any number.
    pub fn timer(ident: u64) -> Self {
        Self::new(abi::KEVENT_SOURCE_TIMER, ident)
    }

    /// That of a user event, by any number.
    pub fn user(ident: u64) -> Self {
        Self::new(abi::KEVENT_SOURCE_USER, ident)
    }

    /// The same with another tag than 0: another registration.
    pub fn tag(mut self, tag: u32) -> Self {
        self.tag = tag;
        self
    }
}

/// A clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The time since some point in the past, without the time that the system
    /// was suspended.
    #[default]
    Monotonic,
    /// The time since 1970.  It can be set.
    Realtime,
    /// The time since some point in the past.
    Boottime,
    /// International atomic time.
    Tai,
}

impl Clock {
    pub(crate) fn id(self) -> u32 {
        let id = match self {
            Self::Monotonic => libc::CLOCK_MONOTONIC,
            Self::Realtime => libc::CLOCK_REALTIME,
            Self::Boottime => libc::CLOCK_BOOTTIME,
            Self::Tai => libc::CLOCK_TAI,
        };
        id as u32
    }
}

/// Nanoseconds; what is too long is for ever.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// When a timer expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    first: u64,
    interval: u64,
    flags: u32,
}

impl Timer {
    /// After so much time of [`Clock::Monotonic`].
    pub fn after(time: Duration) -> Self {
        Self::after_by(Clock::Monotonic, time)
    }

    /// After so much time of a clock.
    pub fn after_by(clock: Clock, time: Duration) -> Self {
        Self {
            first: nanoseconds(time),
            interval: 0,
            flags: clock.id(),
        }
    }

    /// When a clock shows `time`; at once if it did.
    pub fn at(clock: Clock, time: Duration) -> Self {
        Self {
            first: nanoseconds(time),
            interval: 0,
            flags: clock.id() | abi::KEVENT_TIMER_ABS,
        }
    }

    /// Again and again after such an interval of [`Clock::Monotonic`].
    pub fn every(interval: Duration) -> Self {
        Self::after(interval).then_every(interval)
    }

    /// After the first time, again and again after such an interval.
    pub fn then_every(mut self, interval: Duration) -> Self {
        self.interval = nanoseconds(interval);
        self
    }

    /// For a time [`at`](Self::at) which [`Clock::Realtime`] shows: when that clock
    /// is set, the timer ends with an event that is
    /// [`timer_canceled`](crate::Event::timer_canceled).
    pub fn cancel_on_set(mut self) -> Self {
        self.flags |= abi::KEVENT_TIMER_CANCEL_ON_SET;
        self
    }
}

/// What to register, and how: for [`Change::add`], [`Change::modify`] and
/// [`Change::set`].
///
/// It reports changes (edge-triggered), as often as there are any, unless it is
/// told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Registration(abi::Ukevent);

impl Registration {
    fn new(name: Name) -> Self {
        Self(abi::Ukevent {
            flags: abi::KEVENT_EDGE,
            ..named(name)
        })
    }

    /// A file: `events` are [`interest`](crate::interest) bits.
    ///
    /// The registration belongs to this descriptor and ends when it is closed.  Until it
    /// is made, this is no more than the descriptor's number.
    pub fn file(fd: &impl AsFd, events: u32) -> Self {
        let mut new = Self::new(Name::file(fd));
        new.0.events = events;
        new
    }

    /// A timer.  An event tells how often it has expired:
    /// [`Event::count`](crate::Event::count).
    pub fn timer(ident: u64, timer: Timer) -> Self {
        let mut new = Self::new(Name::timer(ident));
        new.0.data = timer.first;
        new.0.interval = timer.interval;
        new.0.fflags = timer.flags;
        new
    }

    /// A user event that is a counter.  [`Change::count`] adds to it, and
    /// [`Event::count`](crate::Event::count) is the sum since the last event.
    pub fn counter(ident: u64) -> Self {
        let mut new = Self::new(Name::user(ident));
        new.0.events = abi::KEVENT_USER_COUNT;
        new
    }

    /// A user event that is 24 flags.  [`Change::trigger`] changes them, and
    /// [`Event::user_flags`](crate::Event::user_flags) is what they became.
    pub fn flags(ident: u64, flags: u32) -> Self {
        let mut new = Self::new(Name::user(ident));
        new.0.events = abi::KEVENT_USER_FLAGS;
        new.0.fflags = flags;
        new
    }

    /// Registers it under a tag, so that it can be registered several times.
    pub fn tag(mut self, tag: u32) -> Self {
        self.0.tag = tag;
        self
    }

    /// Hands this back with each event.
    pub fn user_data(mut self, user_data: u64) -> Self {
        self.0.user_data = user_data;
        self
    }

    fn mode(mut self, flag: u32) -> Self {
        self.0.flags |= flag;
        self
    }

    /// Reports what is so as long as it is so (level-triggered).  Files only.
    ///
    /// These events are not in the ring; see
    /// [`Ring::level_ready`](crate::Ring::level_ready).
    pub fn level(mut self) -> Self {
        self.0.flags &= !abi::KEVENT_EDGE;
        self.mode(abi::KEVENT_LEVEL)
    }

    /// Ends the registration when its event was claimed.
    pub fn one_shot(self) -> Self {
        self.mode(abi::KEVENT_ONESHOT)
    }

    /// Disables the registration when its event was claimed; see
    /// [`Change::enable`].
    pub fn dispatch(self) -> Self {
        self.mode(abi::KEVENT_DISPATCH)
    }

    /// Begins disabled.
    pub fn disabled(self) -> Self {
        self.mode(abi::KEVENT_DISABLED)
    }

    /// Tells one after the other of the queues that registered the file so, until one
    /// has a thread, or a poller, waiting.  Those before it keep the event; if nobody
    /// waits, all have it.  Cannot be modified.
    pub fn exclusive(self) -> Self {
        self.mode(abi::KEVENT_EXCLUSIVE)
    }

    /// As [`exclusive`](Self::exclusive), but the queues take turns.
    pub fn round_robin(self) -> Self {
        self.mode(abi::KEVENT_EXCLUSIVE | abi::KEVENT_ROUND_ROBIN)
    }

    /// Takes a file that cannot be polled, as regular files are, for one that is
    /// always ready, instead of refusing it.
    pub fn always_ready(self) -> Self {
        self.mode(abi::KEVENT_ALWAYS_READY)
    }

    /// Under which name this is registered.
    pub fn name(&self) -> Name {
        Name {
            source: self.0.source,
            ident: self.0.ident,
            tag: self.0.tag,
        }
    }
}

/// What becomes of the flags of a user event.  Only the lower 24 bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// They stay as they are.
    Keep,
    /// Those that are not in here are cleared.
    And(u32),
    /// Those that are in here are set.
    Or(u32),
    /// They become these.
    Copy(u32),
}

impl Flags {
    fn raw(self) -> u32 {
        let (control, flags) = match self {
            Self::Keep => (abi::KEVENT_NOTE_FFNOP, 0),
            Self::And(flags) => (abi::KEVENT_NOTE_FFAND, flags),
            Self::Or(flags) => (abi::KEVENT_NOTE_FFOR, flags),
            Self::Copy(flags) => (abi::KEVENT_NOTE_FFCOPY, flags),
        };
        control | flags & abi::KEVENT_NOTE_FFLAGS
    }
}

fn named(name: Name) -> abi::Ukevent {
    abi::Ukevent {
        source: name.source,
        ident: name.ident,
        tag: name.tag,
        ..abi::Ukevent::default()
    }
}

/// One change for [`Queue::apply`](crate::Queue::apply) and
/// [`Queue::ctl`](crate::Queue::ctl).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Change(abi::Ukevent);

impl Change {
    fn new(op: u16, raw: abi::Ukevent) -> Self {
        Self(abi::Ukevent { op, ..raw })
    }

    /// Registers.  If the source is ready now, there is an event at once.
    ///
    /// Fails with [`AlreadyExists`](io::ErrorKind::AlreadyExists) if it is
    /// registered, with `ENOSPC` ([`StorageFull`](io::ErrorKind::StorageFull)) if
    /// all slots are reserved.
    pub fn add(what: Registration) -> Self {
        Self::new(abi::KEVENT_OP_ADD, what.0)
    }

    /// Replaces everything but the name.
    ///
    /// This and the other changes below fail with
    /// [`NotFound`](io::ErrorKind::NotFound) if there is no such registration.
    pub fn modify(what: Registration) -> Self {
        Self::new(abi::KEVENT_OP_MOD, what.0)
    }

    /// Replaces everything but the name if it is registered, else registers.
    pub fn set(what: Registration) -> Self {
        Self::new(abi::KEVENT_OP_SET, what.0)
    }

    /// Ends a registration.  No event of it can be claimed any more.
    pub fn delete(name: Name) -> Self {
        Self::new(abi::KEVENT_OP_DEL, named(name))
    }

    /// Reports again, and looks at the source: what is so is reported at once.
    pub fn enable(name: Name) -> Self {
        Self::new(abi::KEVENT_OP_ENABLE, named(name))
    }

    /// Reports nothing until enabled, and takes an unclaimed event back.  Counts
    /// and timers go on.
    pub fn disable(name: Name) -> Self {
        Self::new(abi::KEVENT_OP_DISABLE, named(name))
    }

    /// Adds to a [`counter`](Registration::counter); zero is refused.
    pub fn count(name: Name, more: u64) -> Self {
        let mut change = Self::new(abi::KEVENT_OP_TRIGGER, named(name));
        change.0.data = more;
        change
    }

    /// Changes the [`flags`](Registration::flags) of a user event, and reports
    /// them.
    pub fn trigger(name: Name, flags: Flags) -> Self {
        let mut change = Self::change_flags(name, flags);
        change.0.fflags |= abi::KEVENT_NOTE_TRIGGER;
        change
    }

    /// Changes the [`flags`](Registration::flags) of a user event without
    /// reporting it; an unclaimed event tells of it, though.
    pub fn change_flags(name: Name, flags: Flags) -> Self {
        let mut change = Self::new(abi::KEVENT_OP_TRIGGER, named(name));
        change.0.fflags = flags.raw();
        change
    }

    /// Moves a registration, with its unclaimed event if it has one, to another
    /// queue: a [`Queue`](crate::Queue), or the descriptor of one.
    pub fn move_to(name: Name, queue: &impl AsFd) -> Self {
        let mut change = Self::new(abi::KEVENT_OP_MOVE, named(name));
        change.0.data = queue.as_fd().as_raw_fd() as u64;
        change
    }

    /// Makes at least `slots` slots of the ring; they must be more than there
    /// are.  Consumers follow by themselves.
    pub fn grow(slots: u32) -> Self {
        let mut change = Self::new(abi::KEVENT_OP_GROW, abi::Ukevent::default());
        change.0.data = slots.into();
        change
    }

    /// Lets every thread that waits for events return, with what there is.
    pub fn wake() -> Self {
        Self::new(abi::KEVENT_OP_WAKE, abi::Ukevent::default())
    }

    /// What came of this change in [`Queue::ctl_each`](crate::Queue::ctl_each).
    pub fn result(&self) -> io::Result<()> {
        match self.0.result {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// The structure that the kernel gets.
    pub fn as_raw(&self) -> &abi::Ukevent {
        &self.0
    }

    pub(crate) fn clear_result(&mut self) {
        self.0.result = 0;
    }

    #[cfg(test)]
    fn set_result(&mut self, result: i32) {
        self.0.result = result;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Ukevent;
    use crate::interest;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn changes_of_files_carry_what_the_header_wants() {
        let stdin = io::stdin();
        let name = Ukevent {
            ident: stdin.as_fd().as_raw_fd() as u64,
            source: 1,
            tag: 9,
            ..Ukevent::default()
        };
        let file = Registration::file(&stdin, interest::IN).user_data(7).tag(9);
        let add = Ukevent {
            op: 1,
            flags: 1,
            events: 1,
            user_data: 7,
            ..name
        };
        assert_eq!(*Change::add(file).as_raw(), add);
        assert_eq!(*Change::modify(file).as_raw(), Ukevent { op: 2, ..add });
        assert_eq!(*Change::set(file).as_raw(), Ukevent { op: 4, ..add });

        assert_eq!(file.name(), Name::file(&stdin).tag(9));
        let by_name = [Change::delete, Change::enable, Change::disable];
        for (change, op) in by_name.into_iter().zip([3, 5, 6]) {
            assert_eq!(*change(file.name()).as_raw(), Ukevent { op, ..name });
        }
        let moved = *Change::move_to(file.name(), &stdin).as_raw();
        let expected = Ukevent {
            op: 8,
            data: name.ident,
            ..name
        };
        assert_eq!(moved, expected);
    }

    #[test]
    fn modes_are_those_of_the_header() {
        let file = || Registration::file(&io::stdin(), interest::IN);
        for (file, flags) in [
            (file().level(), 2),
            (file().one_shot(), 5),
            (file().level().dispatch(), 10),
            (file().disabled(), 17),
            (file().exclusive(), 33),
            (file().round_robin(), 97),
            (file().always_ready().level(), 130),
        ] {
            assert_eq!(Change::add(file).as_raw().flags, flags);
        }
    }

    #[test]
    fn timers_are_told_in_nanoseconds() {
        let add = |timer| {
            let raw = *Change::add(Registration::timer(3, timer)).as_raw();
            assert_eq!((raw.source, raw.ident, raw.flags), (2, 3, 1));
            (raw.data, raw.interval, raw.fflags)
        };
        let second = 1_000_000_000;
        assert_eq!(add(Timer::after(SECOND)), (second, 0, 1));
        assert_eq!(add(Timer::every(SECOND)), (second, second, 1));
        assert_eq!(
            add(Timer::at(Clock::Realtime, SECOND).cancel_on_set()),
            (second, 0, 0x300)
        );
        assert_eq!(
            add(Timer::after_by(Clock::Tai, SECOND).then_every(2 * SECOND)),
            (second, 2 * second, 11)
        );
        assert_eq!(add(Timer::at(Clock::Boottime, SECOND)), (second, 0, 0x107));
        assert_eq!(add(Timer::after(Duration::MAX)).0, u64::MAX);
    }

    #[test]
    fn user_events_are_counted_or_flagged() {
        let raw = *Change::add(Registration::counter(3)).as_raw();
        assert_eq!((raw.source, raw.events, raw.fflags), (3, 1, 0));
        let raw = *Change::add(Registration::flags(3, 0x55)).as_raw();
        assert_eq!((raw.source, raw.events, raw.fflags), (3, 2, 0x55));

        let name = Name::user(3);
        let raw = *Change::count(name, 12).as_raw();
        assert_eq!((raw.op, raw.data, raw.fflags), (7, 12, 0));
        for (change, fflags) in [
            (Change::trigger(name, Flags::Keep), 0x0100_0000),
            (Change::trigger(name, Flags::And(7)), 0x4100_0007),
            (Change::trigger(name, Flags::Or(!0)), 0x81ff_ffff),
            (Change::change_flags(name, Flags::Copy(1)), 0xc000_0001),
        ] {
            let raw = change.as_raw();
            assert_eq!((raw.op, raw.data, raw.fflags), (7, 0, fflags));
        }
    }

    #[test]
    fn changes_of_the_queue_name_nothing_else() {
        let nothing = Ukevent::default();
        let grow = Ukevent {
            op: 9,
            data: 64,
            ..nothing
        };
        assert_eq!(*Change::grow(64).as_raw(), grow);
        assert_eq!(*Change::wake().as_raw(), Ukevent { op: 10, ..nothing });
    }

    #[test]
    fn results_are_errors_of_the_system() {
        let mut change = Change::wake();
        assert!(change.result().is_ok());
        change.set_result(-libc::ENOENT);
        assert_eq!(
            change.result().unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
        change.clear_result();
        assert!(change.result().is_ok());
    }
}
