// SPDX-License-Identifier: MIT
//! Counting the events of all queues by their tracepoints, in a trace buffer of our own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::{fcntl_setfl, OFlags};

use crate::fdinfo::Name;
use crate::process::Holder;

/// How the folders of our trace buffers begin; the number of the process follows.
const PREFIX: &str = "kevent-stat-";

/// How often things happened to the events of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) post: u64,
    pub(crate) merge: u64,
    pub(crate) collect: u64,
    pub(crate) overflow: u64,
    pub(crate) cancel: u64,
}

impl Counts {
    fn of(&mut self, tracepoint: &str) -> Option<&mut u64> {
        Some(match tracepoint {
            "kevent_post" => &mut self.post,
            "kevent_merge" => &mut self.merge,
            "kevent_collect" => &mut self.collect,
            "kevent_overflow" => &mut self.overflow,
            "kevent_cancel" => &mut self.cancel,
            _ => return None,
        })
    }
}

/// What was traced of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traced {
    pub(crate) counts: Counts,
    /// What the events were about.
    names: BTreeSet<Name>,
}

/// What was traced of all queues.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// By what the tracepoints call the queues.
    queues: BTreeMap<String, Traced>,
    /// Events that the trace buffer had no room for.
    pub(crate) lost: u64,
}

impl Tally {
    /// Counts what a line of a trace tells.
    fn line(&mut self, line: &str) {
        if let Some((_, rest)) = line.split_once(" [LOST ") {
            let count = rest.split(' ').next().and_then(|count| count.parse().ok());
            self.lost += count.unwrap_or(1);
            return;
        }
        // Before it is the name of a process, which can be anything.
        let Some((head, fields)) = line.rsplit_once(": queue=") else {
            return;
        };
        let tracepoint = head.rsplit(' ').next().unwrap_or_default();
        let mut fields = fields.split(' ');
        let queue = fields.next().unwrap_or_default();
        let mut number = |key| -> Option<u64> {
            let (found, value) = fields.next()?.split_once('=')?;
            (found == key).then(|| value.parse().ok())?
        };
        let (Some(source), Some(ident)) = (number("source"), number("ident")) else {
            return;
        };
        let mut counts = Counts::default();
        if counts.of(tracepoint).is_none() {
            return;
        }
        let traced = self.queues.entry(queue.to_owned()).or_default();
        *traced.counts.of(tracepoint).expect("it is known") += 1;
        traced.names.insert((source as u16, ident));
    }

    /// What was traced of each of the queues, in their order, and of others.
    ///
    /// The kernel does not tell which queue is which, but what the events were about does:
    /// a queue is taken for the one that has most of it registered, if there is only one
    /// such.  `None` if that is not known.
    pub(crate) fn attribute(&self, holders: &[Holder]) -> (Vec<Option<Counts>>, Counts) {
        let mut found = vec![None; holders.len()];
        let mut others = Counts::default();
        for traced in self.queues.values() {
            let to = match best(holders, &traced.names) {
                Some(index) => found[index].get_or_insert_default(),
                None => &mut others,
            };
            add(to, &traced.counts);
        }
        // A queue of which nothing was traced: nothing happened there, unless it might be
        // one of those that are not known.
        if others == Counts::default() {
            for counts in &mut found {
                counts.get_or_insert_default();
            }
        }
        (found, others)
    }
}

/// The only one of the queues which has most of the names registered.
fn best(holders: &[Holder], names: &BTreeSet<Name>) -> Option<usize> {
    let scores: Vec<(usize, usize)> = holders
        .iter()
        .enumerate()
        .map(|(index, it)| (it.queue.names.intersection(names).count(), index))
        .collect();
    let &(score, index) = scores.iter().max()?;
    let alone = scores.iter().filter(|it| it.0 == score).count() == 1;
    (score > 0 && alone).then_some(index)
}

fn add(to: &mut Counts, more: &Counts) {
    to.post += more.post;
    to.merge += more.merge;
    to.collect += more.collect;
    to.overflow += more.overflow;
    to.cancel += more.cancel;
}

/// A trace buffer, which is removed when it is dropped.
pub(crate) struct Tracer {
    // Closed before the buffer is removed, as fields are dropped in order.
    pipe: File,
    /// The beginning of a line whose end was not read yet.
    rest: String,
    _instance: Instance,
}

/// A folder in tracefs that is removed, by the kernel with all that is in it.
struct Instance(PathBuf);

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

impl Tracer {
    /// Makes a trace buffer and begins to trace; `tracefs` is where that is mounted.
    pub(crate) fn new(tracefs: &Path) -> Result<Self> {
        let instances = tracefs.join("instances");
        remove_stale(&instances);
        let folder = instances.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| {
            format!(
                "cannot make {} (is tracefs mounted, and are you root?)",
                folder.display()
            )
        })?;
        let instance = Instance(folder);
        let file = |name: &str| instance.0.join(name);
        fs::write(file("events/kevent/enable"), "1")
            .context("cannot enable the tracepoints of kevent")?;
        fs::write(file("tracing_on"), "1")?;
        let pipe = File::open(file("trace_pipe")).context("cannot open trace_pipe")?;
        fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        Ok(Self {
            pipe,
            rest: String::new(),
            _instance: instance,
        })
    }

    /// Counts for some time, or until `stop` says so.
    pub(crate) fn count(&mut self, time: Duration, stop: impl Fn() -> bool) -> Result<Tally> {
        let mut tally = Tally::default();
        let end = Instant::now() + time;
        while !stop() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Some kernels have no poll() of this file that wakes at once.
            let nap = left.min(Duration::from_millis(100));
            let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
            match poll(&mut fds, Some(&nap.try_into()?)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.read(&mut tally, end)?;
        }
        Ok(tally)
    }

    /// Reads what there is, but not beyond a time.
    fn read(&mut self, tally: &mut Tally, end: Instant) -> Result<()> {
        let mut buffer = [0; 1 << 16];
        while Instant::now() < end {
            match self.pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    self.rest += &String::from_utf8_lossy(&buffer[..len]);
                    let whole = self.rest.rfind('\n').map_or(0, |at| at + 1);
                    self.rest[..whole].lines().for_each(|line| tally.line(line));
                    self.rest.drain(..whole);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => break,
                Err(error) => return Err(error).context("cannot read trace_pipe"),
            }
        }
        Ok(())
    }
}

/// Removes the trace buffers of ours whose process was killed.
fn remove_stale(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdinfo::Queue;

    const TRACE: &str = "\
   echo kevent_post: queue=x-123 [000] d..2.   12.345678: kevent_post: queue=00000000aa source=1 ident=5 value=0x1
            user-7     [001] .....   12.345679: kevent_post: queue=00000000aa source=1 ident=6 value=0x1
            user-7     [001] .....   12.345680: kevent_merge: queue=00000000aa source=1 ident=5 value=0x2005
          <idle>-0     [001] ..s1.   12.345681: kevent_overflow: queue=00000000bb source=2 ident=18446744073709551615 value=0x1
CPU:1 [LOST 1234 EVENTS]
            user-7     [001] .....   12.345682: kevent_collect: queue=00000000aa source=1 ident=5 value=0x2005
            user-7     [001] .....   12.345683: kevent_cancel: queue=00000000aa source=1 ident=6 value=0x1
            user-7     [001] .....   12.345684: kevent_new: queue=00000000aa source=1 ident=6 value=0x1
            user-7     [001] .....   12.345684: sched_waking: comm=a pid=1
            user-7     [001] .....   12.345685: kevent_post: queue=00000000aa source=1
";

    fn tally() -> Tally {
        let mut tally = Tally::default();
        TRACE.lines().for_each(|line| tally.line(line));
        tally
    }

    fn holder(names: &[Name]) -> Holder {
        Holder {
            pid: 1,
            command: String::new(),
            fd: 3,
            queue: Queue {
                names: names.iter().copied().collect(),
                ..Queue::default()
            },
        }
    }

    const AA: Counts = Counts {
        post: 2,
        merge: 1,
        collect: 1,
        overflow: 0,
        cancel: 1,
    };
    const BB: Counts = Counts {
        post: 0,
        merge: 0,
        collect: 0,
        overflow: 1,
        cancel: 0,
    };
    const NONE: Counts = Counts {
        post: 0,
        merge: 0,
        collect: 0,
        overflow: 0,
        cancel: 0,
    };

    #[test]
    fn what_happened_is_counted_for_each_queue() {
        let tally = tally();
        assert_eq!(tally.queues.len(), 2);
        assert_eq!(tally.queues["00000000aa"].counts, AA);
        assert_eq!(tally.queues["00000000aa"].names, [(1, 5), (1, 6)].into());
        assert_eq!(tally.queues["00000000bb"].counts, BB);
        assert_eq!(tally.lost, 1234);
    }

    #[test]
    fn queues_are_known_by_what_is_registered_there() {
        let timer = (2, u64::MAX);
        let mut holders = vec![holder(&[(1, 4), (1, 5), (1, 6)]), holder(&[(1, 5), timer])];
        let (found, others) = tally().attribute(&holders);
        assert_eq!((&found[..], others), (&[Some(AA), Some(BB)][..], NONE));
        // Two that are as likely: it is not known.
        holders.push(holder(&[(1, 6), (1, 5)]));
        let (found, others) = tally().attribute(&holders);
        assert_eq!((&found[..], others), (&[None, Some(BB), None][..], AA));
        let (found, others) = tally().attribute(&[]);
        assert!(found.is_empty());
        assert_eq!((others.post, others.overflow), (2, 1));
    }

    #[test]
    fn without_tracefs_the_error_says_what_to_do() {
        let error = Tracer::new(Path::new("/nowhere")).err().unwrap();
        assert!(error.to_string().contains("is tracefs mounted"), "{error}");
    }
}
