// SPDX-License-Identifier: MIT
//! How `kevent_getevents()` waits.

use std::time::Duration;

use crate::abi;
use crate::change::{Change, Clock};

/// How to wait for events, for [`Queue::collect_with`](crate::Queue::collect_with).
///
/// Unless told otherwise it waits for ever.
#[derive(Debug, Default)]
#[must_use]
pub struct Wait<'a> {
    pub(crate) min: usize,
    /// The timeout, or the deadline by `clock`.
    pub(crate) time: Option<Duration>,
    pub(crate) clock: Option<Clock>,
    pub(crate) min_wait: Option<Duration>,
    pub(crate) signal_mask: Option<u64>,
    pub(crate) changes: &'a mut [Change],
    pub(crate) change_flags: u32,
}

impl<'a> Wait<'a> {
    /// Until so many events can be collected.
    pub fn new(min: usize) -> Self {
        Self {
            min,
            ..Self::default()
        }
    }

    /// At most so long; zero does not block, and None is for ever.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        (self.time, self.clock) = (timeout.into(), None);
        self
    }

    /// Until a clock shows `time`, at most.
    pub fn deadline(mut self, clock: Clock, time: Duration) -> Self {
        (self.time, self.clock) = (Some(time), Some(clock));
        self
    }

    /// After so long, one event is enough.
    pub fn min_wait(mut self, time: Duration) -> Self {
        self.min_wait = Some(time);
        self
    }

    /// Replaces the mask of blocked signals while it waits, as `ppoll` does.
    /// Signal n is bit n - 1.
    pub fn signal_mask(mut self, mask: u64) -> Self {
        self.signal_mask = Some(mask);
        self
    }

    /// Applies changes first, as [`Queue::ctl`](crate::Queue::ctl) does.  If one
    /// fails, the call fails with its error, and those after it are not applied.
    pub fn changes(mut self, changes: &'a mut [Change]) -> Self {
        self.changes = changes;
        self.change_flags = 0;
        self
    }

    /// Applies changes first, as [`Queue::ctl_each`](crate::Queue::ctl_each)
    /// does: [`Change::result`] tells of each.
    pub fn changes_each(mut self, changes: &'a mut [Change]) -> Self {
        self.changes = changes;
        self.change_flags = abi::KEVENT_CTL_RESULTS;
        self
    }

    /// Whether it has nothing that the call takes by its options.
    pub(crate) fn is_plain(&self) -> bool {
        self.clock.is_none()
            && self.min_wait.is_none()
            && self.signal_mask.is_none()
            && self.changes.is_empty()
    }
}
