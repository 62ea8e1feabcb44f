// SPDX-License-Identifier: MIT
//! What is printed.

use std::time::Duration;

use crate::fdinfo::{source_name, Queue};
use crate::process::Holder;
use crate::trace::Counts;

const COLUMNS: [&str; 9] = [
    "PID",
    "COMMAND",
    "FD",
    "RINGS",
    "FLAGS",
    "REGISTERED",
    "POSTED",
    "WAITING",
    "LEVEL",
];
const RATES: [&str; 5] = ["post/s", "merge/s", "collect/s", "overflow/s", "cancel/s"];

/// The numbers of slots of all sets that can have events, the smallest first.
fn rings(queue: &Queue) -> String {
    let sets: Vec<_> = (0..32)
        .map(|bit| 1u32 << bit)
        .filter(|slots| queue.rings & slots != 0)
        .map(|slots| slots.to_string())
        .collect();
    if sets.is_empty() {
        queue.slots.to_string()
    } else {
        sets.join("+")
    }
}

fn flags(queue: &Queue) -> String {
    let mut names: Vec<String> = [(1, "overflow"), (2, "level")]
        .into_iter()
        .filter(|(bit, _)| queue.flags & bit != 0)
        .map(|(_, name)| name.to_owned())
        .collect();
    if queue.flags & !3 != 0 {
        names.push(format!("{:#x}", queue.flags & !3));
    }
    match names.len() {
        0 => "-".into(),
        _ => names.join(","),
    }
}

/// The registrations of each source, by their states.
fn registrations(queue: &Queue) -> String {
    let mut text = String::new();
    let mut last = None;
    for ((source, state), count) in &queue.states {
        if last != Some(source) {
            let gap = if last.is_some() { "; " } else { "" };
            text += &format!("{gap}{}: ", source_name(*source));
            last = Some(source);
        } else {
            text += ", ";
        }
        text += &format!("{count} {state}");
    }
    text
}

fn rate(count: u64, time: Duration) -> String {
    let rate = count as f64 / time.as_secs_f64();
    if count == 0 || rate >= 10.0 {
        format!("{rate:.0}")
    } else {
        format!("{rate:.1}")
    }
}

fn rates(counts: Option<&Counts>, time: Duration) -> [String; 5] {
    let Some(it) = counts else {
        return std::array::from_fn(|_| "?".into());
    };
    [it.post, it.merge, it.collect, it.overflow, it.cancel].map(|count| rate(count, time))
}

/// What was counted, and in what time.
pub(crate) struct Counted<'a> {
    /// Of each queue, in the order of the table; None where it is not known.
    pub(crate) counts: &'a [Option<Counts>],
    pub(crate) time: Duration,
}

/// A table of queues.
pub(crate) fn render(holders: &[&Holder], counted: Option<&Counted<'_>>) -> String {
    let mut head: Vec<String> = COLUMNS.map(Into::into).into();
    if counted.is_some() {
        head.extend(RATES.map(Into::into));
    }
    let rows: Vec<Vec<String>> = holders
        .iter()
        .enumerate()
        .map(|(index, holder)| {
            let queue = &holder.queue;
            let mut row = vec![
                holder.pid.to_string(),
                holder.command.clone(),
                holder.fd.to_string(),
                rings(queue),
                flags(queue),
                queue.registrations.to_string(),
                queue.posted.to_string(),
                queue.waiting.to_string(),
                queue.level.to_string(),
            ];
            if let Some(counted) = counted {
                row.extend(rates(counted.counts[index].as_ref(), counted.time));
            }
            row
        })
        .collect();

    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].as_str());
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &[String]| {
        let mut text = String::new();
        for (index, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Numbers to the right, names to the left.
            text += &match index {
                1 | 4 => format!("{cell:<width$}  "),
                _ => format!("{cell:>width$}  "),
            };
        }
        text.truncate(text.trim_end().len());
        text + "\n"
    };
    let indent = " ".repeat(widths[0] + 2);
    let mut text = line(&head);
    for (row, holder) in rows.iter().zip(holders) {
        text += &line(row);
        if !holder.queue.states.is_empty() {
            text += &format!("{indent}{}\n", registrations(&holder.queue));
        }
    }
    text
}

/// What was counted of queues that are not known.
pub(crate) fn others(counts: &Counts, time: Duration) -> String {
    let rates = rates(Some(counts), time);
    let pairs: Vec<String> = RATES
        .iter()
        .zip(&rates)
        .map(|(name, rate)| format!("{rate} {name}"))
        .collect();
    format!(
        "queues that could not be told apart: {}\n",
        pairs.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdinfo::{parse, tests::TEXT};

    fn holder(pid: u32, text: &str) -> Holder {
        Holder {
            pid,
            command: "server".into(),
            fd: 3,
            queue: parse(text).unwrap(),
        }
    }

    #[test]
    fn a_queue_is_a_line_and_its_registrations_another() {
        let plain = TEXT
            .replace("kevent-rings:\t192", "kevent-rings:\t128")
            .replace("kevent-flags:\t3", "kevent-flags:\t0");
        let holders = [holder(7, TEXT), holder(12345, &plain)];
        let text = render(&holders.iter().collect::<Vec<_>>(), None);
        let expected = "  \
  PID  COMMAND  FD   RINGS  FLAGS           REGISTERED  POSTED  WAITING  LEVEL
    7  server    3  64+128  overflow,level           5       2        1      1
       file: 1 idle, 1 posted, 1 ready; timer: 1 waiting; user: 1 disabled
12345  server    3     128  -                        5       2        1      1
       file: 1 idle, 1 posted, 1 ready; timer: 1 waiting; user: 1 disabled
";
        assert_eq!(text, expected);
    }

    #[test]
    fn rates_are_per_second() {
        let counts = Counts {
            post: 4000,
            merge: 3,
            collect: 0,
            overflow: 20,
            cancel: 1,
        };
        let holders = [holder(7, TEXT), holder(8, TEXT)];
        let counted = Counted {
            counts: &[Some(counts), None],
            time: Duration::from_secs(2),
        };
        let text = render(&holders.iter().collect::<Vec<_>>(), Some(&counted));
        let lines: Vec<_> = text.lines().collect();
        let last = |line: &str| -> Vec<String> {
            let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            words[words.len() - 5..].to_vec()
        };
        assert_eq!(last(lines[0]), RATES);
        assert_eq!(last(lines[1]), ["2000", "1.5", "0", "10", "0.5"]);
        assert_eq!(last(lines[3]), ["?"; 5]);
        assert_eq!(lines[1].chars().count(), lines[0].chars().count());
        assert!(others(&counts, counted.time).contains("2000 post/s, 1.5 merge/s"));
    }

    #[test]
    fn flags_of_a_newer_kernel_are_shown() {
        let queue = parse(&TEXT.replace("kevent-flags:\t3", "kevent-flags:\t11")).unwrap();
        assert_eq!(flags(&queue), "overflow,0x10");
    }
}
