// SPDX-License-Identifier: MIT
//! What `/proc/PID/fdinfo/FD` tells of a queue.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

/// What a registration is about: `KEVENT_SOURCE_*` and the ident.
pub(crate) type Name = (u16, u64);

/// A queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) slots: u32,
    /// The sum of the numbers of slots of all sets that can hold events.
    pub(crate) rings: u32,
    pub(crate) flags: u32,
    pub(crate) posted: u64,
    pub(crate) waiting: u64,
    pub(crate) level: u64,
    pub(crate) registrations: u64,
    /// How many registrations there are of each source in each state.
    pub(crate) states: BTreeMap<(u16, String), u64>,
    pub(crate) names: BTreeSet<Name>,
}

/// Reads the text; fails if it is not that of a queue.
pub(crate) fn parse(text: &str) -> Result<Queue> {
    let mut queue = Queue::default();
    let mut seen = 0;
    for line in text.lines() {
        let bad = || format!("cannot read the line '{line}' of fdinfo");
        if line.starts_with("source:") {
            registration(&mut queue, line).with_context(bad)?;
            continue;
        }
        let Some((key, value)) = line
            .strip_prefix("kevent-")
            .and_then(|line| line.split_once(':'))
        else {
            continue;
        };
        let value = value.trim();
        let number = || value.parse::<u64>().with_context(bad);
        match key {
            "slots" => queue.slots = u32::try_from(number()?)?,
            "rings" => queue.rings = u32::try_from(number()?)?,
            "flags" => queue.flags = u32::from_str_radix(value, 16).with_context(bad)?,
            "posted" => queue.posted = number()?,
            "waiting" => queue.waiting = number()?,
            "level" => queue.level = number()?,
            "registrations" => queue.registrations = number()?,
            // A newer kernel tells more.
            _ => continue,
        }
        seen += u32::from(key != "queue");
    }
    anyhow::ensure!(seen == 7, "that is not the fdinfo of a kevent queue");
    Ok(queue)
}

fn registration(queue: &mut Queue, line: &str) -> Result<()> {
    let (mut source, mut ident, mut state) = (None, None, None);
    for (key, value) in line.split(' ').filter_map(|word| word.split_once(':')) {
        match key {
            "source" => source = Some(value.parse()?),
            "ident" => ident = Some(value.parse()?),
            "state" => state = Some(value.to_owned()),
            _ => {}
        }
    }
    let source: u16 = source.context("there is no source")?;
    let state = state.context("there is no state")?;
    *queue.states.entry((source, state)).or_default() += 1;
    queue
        .names
        .insert((source, ident.context("there is no ident")?));
    Ok(())
}

/// The name of a source.
pub(crate) fn source_name(source: u16) -> String {
    match source {
        1 => "file".into(),
        2 => "timer".into(),
        3 => "user".into(),
        other => format!("source {other}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TEXT: &str = "\
pos:\t0
flags:\t02000002
mnt_id:\t15
ino:\t1042
kevent-slots:\t128
kevent-rings:\t192
kevent-flags:\t3
kevent-posted:\t2
kevent-waiting:\t1
kevent-level:\t1
kevent-registrations:\t5
source:1 ident:5 tag:0 events:1 flags:1 user_data:5 state:posted
source:1 ident:6 tag:0 events:1 flags:2 user_data:ffffffffffffffff state:ready
source:1 ident:7 tag:1 events:2005 flags:1 user_data:7 state:idle
source:2 ident:18446744073709551615 tag:0 events:0 flags:1 user_data:0 state:waiting
source:3 ident:6 tag:0 events:1 flags:11 user_data:0 state:disabled
";

    #[test]
    fn everything_is_read() {
        let queue = parse(TEXT).unwrap();
        assert_eq!((queue.slots, queue.rings, queue.flags), (128, 192, 3));
        assert_eq!((queue.posted, queue.waiting, queue.level), (2, 1, 1));
        assert_eq!(queue.registrations, 5);
        let count = |source, state: &str| queue.states.get(&(source, state.into()));
        assert_eq!(count(1, "posted"), Some(&1));
        assert_eq!(count(1, "idle"), Some(&1));
        assert_eq!(count(2, "waiting"), Some(&1));
        assert_eq!(count(3, "disabled"), Some(&1));
        assert_eq!(queue.states.values().sum::<u64>(), 5);
        let names = [(1, 5), (1, 6), (1, 7), (2, u64::MAX), (3, 6)];
        assert_eq!(queue.names, names.into());
    }

    #[test]
    fn a_newer_kernel_may_tell_more() {
        let text = TEXT.replace("kevent-slots", "kevent-new:\tx y\nkevent-slots");
        let queue = parse(&text.replace(" state:", " new:1 state:")).unwrap();
        assert_eq!(queue.states, parse(TEXT).unwrap().states);
    }

    #[test]
    fn what_is_not_a_queue_is_refused() {
        assert!(parse("").is_err());
        assert!(parse("pos:\t0\nflags:\t02\neventfd-count:\t0\n").is_err());
        assert!(parse(&TEXT.replace("kevent-flags:\t3", "kevent-flags:\tx")).is_err());
        assert!(parse(&TEXT.replace("kevent-flags:\t3\n", "")).is_err());
        assert!(parse(&TEXT.replace(" state:idle", "")).is_err());
        assert!(parse(&TEXT.replace("ident:5", "ident:five")).is_err());
    }
}
