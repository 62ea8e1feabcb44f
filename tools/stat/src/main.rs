// SPDX-License-Identifier: MIT
//! kevent-stat: which queues processes have, what is registered there, and how often
//! their rings are posted to.

#![forbid(unsafe_code)]

mod fdinfo;
mod process;
mod table;
mod trace;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use clap::Parser;

use process::{Found, Holder};
use table::Counted;
use trace::Tracer;

/// Shows the kevent queues of processes.
///
/// One line for each descriptor of a queue: the numbers of slots of its rings, what the
/// header of the ring says (overflow: events wait behind a full ring; level:
/// level-triggered events may be ready), how many registrations there are, how many of
/// their events are in the ring (at most: with those that were cancelled, or claimed
/// before an older one), wait behind it, or are level-triggered and may be ready. Below
/// that: the registrations of each source by their states.
///
/// With --interval, also what happened in each second: events that were posted; that were
/// merged into one which was unclaimed; that were collected by kevent_getevents(), as the
/// kernel does not see what programs claim from the ring; that found the ring full; and
/// that were taken back. This needs root and tracefs, and makes the events that are
/// counted slower.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Only these processes [default: all]
    #[arg(value_name = "PID")]
    pids: Vec<u32>,
    /// Show it again and again after so many seconds, with rates
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<Duration>,
    /// Stop after so many times
    #[arg(short, long, value_name = "N", requires = "interval")]
    count: Option<u64>,
    /// Where tracefs is mounted
    #[arg(long, value_name = "PATH", default_value = "/sys/kernel/tracing")]
    tracefs: std::path::PathBuf,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..1e6).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds, 0.01 at least".into()),
    }
}

/// Those that were asked for.
fn chosen<'a>(args: &Args, found: &'a Found) -> Result<Vec<(usize, &'a Holder)>> {
    let all = found.holders.iter().enumerate();
    for pid in &args.pids {
        if found.holders.iter().all(|holder| holder.pid != *pid) {
            match Path::new("/proc").join(pid.to_string()).exists() {
                true if found.hidden > 0 => {
                    bail!("process {pid} has no kevent queue, or you may not look at it")
                }
                true => bail!("process {pid} has no kevent queue"),
                false => bail!("there is no process {pid}"),
            }
        }
    }
    Ok(all
        .filter(|(_, holder)| args.pids.is_empty() || args.pids.contains(&holder.pid))
        .collect())
}

fn run(args: &Args, out: &mut impl Write) -> Result<()> {
    let proc = Path::new("/proc");
    let Some(interval) = args.interval else {
        let found = process::find(proc)?;
        let holders: Vec<_> = chosen(args, &found)?.into_iter().map(|it| it.1).collect();
        if holders.is_empty() {
            writeln!(out, "no process has a kevent queue")?;
        } else {
            write!(out, "{}", table::render(&holders, None))?;
        }
        if args.pids.is_empty() && found.hidden > 0 {
            writeln!(out, "{} processes could not be looked at", found.hidden)?;
        }
        return Ok(());
    };

    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    chosen(args, &process::find(proc)?)?;
    let mut tracer = Tracer::new(&args.tracefs)?;
    let mut round = 0;
    let mut start = Instant::now();
    while args.count.is_none_or(|count| round < count) {
        let tally = tracer.count(interval, || stop.load(Relaxed))?;
        // What was traced since the last round, while that was printed, too.
        let time = start.elapsed();
        start = Instant::now();
        if stop.load(Relaxed) {
            break;
        }
        // All processes: which queue is which is found out by comparing them.
        let found = process::find(proc)?;
        let (counts, others) = tally.attribute(&found.holders);
        let chosen = chosen(args, &found)?;
        let holders: Vec<_> = chosen.iter().map(|it| it.1).collect();
        let counts: Vec<_> = chosen.iter().map(|it| counts[it.0]).collect();
        let counted = Counted {
            counts: &counts,
            time,
        };
        if round > 0 {
            writeln!(out)?;
        }
        write!(out, "{}", table::render(&holders, Some(&counted)))?;
        if others != trace::Counts::default() {
            write!(out, "{}", table::others(&others, time))?;
        }
        if tally.lost > 0 {
            writeln!(out, "{} events more were not counted: too many", tally.lost)?;
        }
        out.flush()?;
        round += 1;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // As when the output is piped to head(1)
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kevent-stat: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_understood() {
        let args = Args::try_parse_from(["kevent-stat", "7", "8", "-i", "0.5"]).unwrap();
        assert_eq!(args.pids, [7, 8]);
        assert_eq!(args.interval, Some(Duration::from_millis(500)));
        for wrong in [
            &["x"][..],
            &["-i", "0"],
            &["-i", "-1"],
            &["-i", "nan"],
            &["-c", "1"],
        ] {
            let args = ["kevent-stat"].iter().chain(wrong);
            assert!(Args::try_parse_from(args).is_err(), "{wrong:?}");
        }
    }

    /// Whatever there is on this machine: it can be read.
    #[test]
    fn this_machine_can_be_looked_at() {
        let mut out = Vec::new();
        let args = Args::try_parse_from(["kevent-stat"]).unwrap();
        run(&args, &mut out).unwrap();
        assert!(!out.is_empty());
        let me = std::process::id().to_string();
        let args = Args::try_parse_from(["kevent-stat", &me]).unwrap();
        let error = run(&args, &mut out).unwrap_err().to_string();
        assert!(error.contains("has no kevent queue"), "{error}");
    }
}
