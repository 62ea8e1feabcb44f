// SPDX-License-Identifier: MIT
//! The demo: an echo server over real TCP on the ring of a kevent queue and on
//! epoll, one after the other, with the same load, every byte checked.
//!
//! It ends with status 0 if nothing was lost, 1 if something was or the demo
//! could not run, 2 if this kernel has no kevent.

#![forbid(unsafe_code)]

mod backend;
mod client;
mod server;
mod table;
mod trial;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use rustix::process::{getrlimit, setrlimit, Resource};

use backend::Kind;
use client::Load;
use trial::Plan;

/// Echo server over TCP: a kevent ring beside epoll.
///
/// Set KEVENT_ICOUNT=1 in a guest with one CPU that runs under QEMU's
/// -icount shift=0: then guest instructions are counted.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Connections that are open at the same time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    connections: u32,
    /// Requests on each connection
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// Bytes of a request
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=8192))]
    size: u32,
    /// Requests that are under way on a connection when its next one is sent
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=4))]
    ahead: u32,
    /// Threads of the client
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// Seconds without a byte after which a request is lost
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    stall: u64,
    /// What the server is to use
    #[arg(long, value_enum, default_value_t = Backends::All)]
    backend: Backends,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backends {
    /// One after the other
    All,
    /// The ring of a kevent queue
    Kevent,
    /// epoll, edge-triggered and level-triggered
    Epoll,
}

/// Two descriptors for each connection, as server and clients are one process.
fn raise_descriptor_limit(connections: u32) -> Result<()> {
    let wanted = u64::from(connections) * 2 + 64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        // Only root may do that, if it must be.
        limit.maximum = limit.maximum.map(|maximum| maximum.max(wanted));
        setrlimit(Resource::Nofile, limit)
            .with_context(|| format!("cannot open {wanted} files: try fewer --connections"))?;
    }
    Ok(())
}

fn run(options: &Options) -> Result<ExitCode> {
    let kinds: &[Kind] = match options.backend {
        Backends::All => &[Kind::Kevent, Kind::EpollEdge, Kind::EpollLevel],
        Backends::Kevent => &[Kind::Kevent],
        Backends::Epoll => &[Kind::EpollEdge, Kind::EpollLevel],
    };
    if kinds.contains(&Kind::Kevent) && !kevent::available() {
        eprintln!(
            "kevent-demo: this kernel has no kevent. Boot one with the patches, as scripts/demo \
             does, or see what epoll does here: --backend epoll"
        );
        return Ok(ExitCode::from(2));
    }
    raise_descriptor_limit(options.connections)?;
    let icount = std::env::var_os("KEVENT_ICOUNT").is_some_and(|value| value == "1");
    let plan = Plan {
        connections: options.connections as usize,
        clients: options.clients.min(options.connections) as usize,
        load: Load {
            requests: options.requests as usize,
            size: options.size as usize,
            ahead: options.ahead.min(options.requests) as usize,
            stall: Duration::from_secs(options.stall),
        },
    };

    // So that the first back-end does not pay for what is used for the first
    // time: memory for sockets, for the most part.
    let mut short = plan;
    short.load.requests = 1;
    short.load.ahead = 1;
    eprintln!("warming up ...");
    trial::run(Kind::EpollEdge, short)?;

    let mut trials = Vec::new();
    for &kind in kinds {
        eprintln!("{} ...", kind.name());
        trials.push(trial::run(kind, plan)?);
    }

    print!("{}", table::render(&plan, &trials, icount));
    let mut lost = false;
    for trial in &trials {
        for failure in &trial.failures {
            println!("FAILED: {}: {failure}", trial.kind.name());
        }
        if trial.lost > 0 {
            println!("LOST: {}: {}", trial.kind.name(), trial.lost);
        }
        lost |= trial.lost > 0 || !trial.failures.is_empty();
    }
    if let Some(ring) = trials.iter().find(|trial| trial.kind == Kind::Kevent) {
        let tally = &ring.tally;
        println!(
            "kevent: events={} collect_syscalls={} lost={}",
            tally.events, tally.collects, ring.lost
        );
    }
    Ok(ExitCode::from(u8::from(lost)))
}

fn main() -> Result<ExitCode> {
    run(&Options::parse())
}
