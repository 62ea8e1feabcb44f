// SPDX-License-Identifier: MIT
//! The result, for people.

use crate::backend::Kind;
use crate::trial::{Plan, Trial};

const HEAD: [[&str; 2]; 10] = [
    ["", "back-end"],
    ["", "requests"],
    ["", "events"],
    ["collecting", "syscalls"],
    ["of these", "slept"],
    ["while", "busy"],
    ["syscalls", "per event"],
    ["read+write", "syscalls"],
    ["", "ms"],
    ["insns per", "request"],
];

impl Trial {
    /// The collecting system calls that did not sleep.
    fn busy(&self) -> Option<u64> {
        let sleeps = self.tally.sleeps?;
        Some(self.tally.collects.saturating_sub(sleeps))
    }

    /// With QEMU's -icount shift=0 and one CPU, one nanosecond is one guest
    /// instruction.
    fn insns_per_request(&self, icount: bool) -> Option<f64> {
        let (time, _) = self.took.filter(|_| icount && self.echoed > 0)?;
        Some(time.as_nanos() as f64 / self.echoed as f64)
    }

    fn row(&self, icount: bool) -> [String; 10] {
        let tally = &self.tally;
        let number = |number: Option<u64>| number.map_or("-".into(), |number| number.to_string());
        let per_event = match tally.events {
            0 => "-".into(),
            events => format!("{:.5}", tally.collects as f64 / events as f64),
        };
        [
            self.kind.name().into(),
            self.echoed.to_string(),
            tally.events.to_string(),
            tally.collects.to_string(),
            number(tally.sleeps.map(|sleeps| sleeps.min(tally.collects))),
            number(self.busy()),
            per_event,
            tally.transfers.to_string(),
            number(self.took.map(|(time, _)| time.as_millis() as u64)),
            self.insns_per_request(icount)
                .map_or("-".into(), |insns| format!("{insns:.0}")),
        ]
    }
}

/// The table and what is to be said about it.
pub fn render(plan: &Plan, trials: &[Trial], icount: bool) -> String {
    let mut rows: Vec<_> = (0..2)
        .map(|line| HEAD.map(|head| head[line].to_string()))
        .collect();
    rows.extend(trials.iter().map(|trial| trial.row(icount)));
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }

    let mut text = format!(
        "\nEcho over TCP on the loopback interface: {} connections x {} requests of {} bytes.\n\n",
        plan.connections, plan.load.requests, plan.load.size
    );
    for row in &rows {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        text += line.trim_end();
        text.push('\n');
    }

    text.push('\n');
    for note in reading(trials, icount) {
        text += &note;
        text.push('\n');
    }
    text
}

fn find(trials: &[Trial], kind: Kind) -> Option<&Trial> {
    trials.iter().find(|trial| trial.kind == kind)
}

/// What the table says, and how it was measured.
fn reading(trials: &[Trial], icount: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let ring = find(trials, Kind::Kevent);
    let peer = find(trials, Kind::EpollEdge).or(find(trials, Kind::EpollLevel));

    if let Some(ring) = ring {
        let tally = &ring.tally;
        let mut line = format!(
            "In short: the ring's server collected {} events and made {} collecting system calls, \
             {} of them without having found the ring empty",
            tally.events, tally.collects, tally.blind
        );
        if let Some(busy) = ring.busy().filter(|&busy| busy > tally.blind) {
            line += &format!(
                " (in {} of them it did not sleep: an event had come since it looked)",
                busy - tally.blind
            );
        }
        if let Some(peer) = peer {
            line += &format!("; {} made {}", peer.kind.name(), peer.tally.collects);
            let insns = ring
                .insns_per_request(icount)
                .zip(peer.insns_per_request(icount));
            if let Some((ours, theirs)) = insns {
                let percent = (ours - theirs) / theirs * 100.0;
                let word = if percent > 0.0 { "MORE" } else { "fewer" };
                line += &format!(
                    ". A request took {:.1} % {word} instructions than with {}",
                    percent.abs(),
                    peer.kind.name()
                );
            }
        }
        notes.push(line + ".");
    }
    notes.push(
        "slept: the server had nothing to do. while busy: collecting system calls that did not \
         sleep."
            .into(),
    );
    if icount {
        notes.push(
            "insns: guest instructions from the first request to the last reply: server, clients \
             and kernel."
                .into(),
        );
        for trial in trials {
            let Some((time, cpu)) = trial.took else {
                continue;
            };
            let idle = 1.0 - cpu.as_secs_f64() / time.as_secs_f64();
            if idle > 0.02 {
                notes.push(format!(
                    "{}: {:.0} % of that was not spent in this program: an idle CPU, or others.",
                    trial.kind.name(),
                    idle * 100.0
                ));
            }
        }
    } else {
        notes.push(
            "insns: not counted. That takes a guest with one CPU and QEMU's -icount shift=0, and \
             KEVENT_ICOUNT=1."
                .into(),
        );
    }
    if trials.iter().any(|trial| trial.tally.sleeps.is_none()) {
        notes.push("slept: not known, as /proc is not mounted.".into());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Load;
    use crate::server::Tally;
    use std::time::Duration;

    fn trial(kind: Kind, collects: u64, nanos: u64) -> Trial {
        Trial {
            kind,
            echoed: 1000,
            lost: 0,
            tally: Tally {
                events: 800,
                collects,
                sleeps: Some(4),
                ..Tally::default()
            },
            took: Some((Duration::from_nanos(nanos), Duration::from_nanos(nanos))),
            failures: Vec::new(),
        }
    }

    const PLAN: Plan = Plan {
        connections: 10,
        clients: 1,
        load: Load {
            requests: 100,
            size: 128,
            ahead: 1,
            stall: Duration::from_secs(1),
        },
    };

    #[test]
    fn columns_are_aligned_and_instructions_counted() {
        let trials = [
            trial(Kind::Kevent, 4, 9_000_000),
            trial(Kind::EpollEdge, 44, 10_000_000),
        ];
        let text = render(&PLAN, &trials, true);
        let rows: Vec<_> = text.lines().skip(4).take(3).collect();
        assert!(rows[0].starts_with("back-end"), "{text}");
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
        assert!(rows[1].ends_with("9000"), "{text}");
        assert!(rows[2].contains("0.05500"), "{text}");
        assert!(text.contains("10.0 % fewer instructions"), "{text}");
        assert!(!render(&PLAN, &trials, false).contains('%'));
    }

    #[test]
    fn a_regression_is_not_hidden() {
        let trials = [
            trial(Kind::Kevent, 4, 11_000_000),
            trial(Kind::EpollEdge, 4, 10_000_000),
        ];
        let text = render(&PLAN, &trials, true);
        assert!(text.contains("10.0 % MORE instructions"), "{text}");
    }
}
